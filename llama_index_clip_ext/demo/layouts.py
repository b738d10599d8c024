"""Lays out the two tiny checkpoints as their genuine models are published, weights apart."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

JSON = dict[str, Any]

IMAGE_SIZE = 48
PROJECTION_DIM = 64
CLIP_CONTEXT_LENGTH = 77
BERT_POSITIONS = 512
"""Chinese-CLIP's tokenizer allows 512 tokens, although the model was trained with 52."""

OPENAI_CLIP_MEAN = [0.48145466, 0.4578275, 0.40821073]
OPENAI_CLIP_STD = [0.26862954, 0.26130258, 0.27577711]
_BOS, _EOS = "<|startoftext|>", "<|endoftext|>"
_BERT_SPECIALS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]

_VISION: JSON = {
    "hidden_size": 96,
    "intermediate_size": 192,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "image_size": IMAGE_SIZE,
    "patch_size": 8,
    "projection_dim": PROJECTION_DIM,
}
_TEXT: JSON = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}

# Common characters beyond the captions', so that other texts are not all [UNK].
_COMMON_CHARACTERS = (
    "的一是不了在人有我他这个们中来上大为和国地到以说时要就出会可也你对生能而子那得于着下自之年过发后作里用道"
    "行所然家种事成方多经么去法学如都同现当没动面起看定天分还进好小部其些主样理心她本前开但因只从想实日军者"
    "意无力它与长把机十民第公此已工使情明性知全三又关点正业外将两高间由问很最重并物手应战向头文体政美相见被"
    "利什二等产或新己制身果加西斯月话合回特代内信表化老给世位次度门任常先海通教儿原东声提立及比员解水名真论"
    "处走义各入几口认条平系气题活尔更别打女变四神总何电数安少报才结反受目太量再感建务做接必场件计管期市直德"
    "资命山金指克许统区保至队形社便空决治展马科司五基眼书非则听白却界达光放强即像难且权思王象完设式色路记南"
    "品住告类求据程北边死张该交规万取拉格望觉术领共确传师观清今切院让识候带导争运笔墨纸画图片照找请狗猫鸟鱼"
    "花草树木车船飞房屋街桥河湖云雨雪风火红黄绿蓝紫灰黑橙粉米条纹渐背景左右旁坐站跑跳吃喝男孩城夜晚早食饭茶"
    "果苹桌椅床衣服鞋帽包球足篮游泳音乐唱歌舞"
)

CLIP_MODEL_CARD = """\
---
license: mit
---
A tiny CLIP that only knows drawn shapes, their colours, their backgrounds and handwritten digits,
in English. For demos and tests; made by `python -m llama_index_clip_ext.demo.train`, MIT licensed.
"""
CHINESE_CLIP_MODEL_CARD = CLIP_MODEL_CARD.replace("tiny CLIP", "tiny Chinese-CLIP").replace(
    "in English.", "in Chinese and English."
)


def write_clip(path: Path, captions: Iterable[str]) -> tuple[Path, JSON]:
    """Write a sentence-transformers CLIP directory, all but the weights and the config.

    Args:
        path: The directory; made if it does not exist.
        captions: Texts to learn the byte-pair merges from.

    Returns:
        The directory that the model belongs in, and the fields of its ``CLIPConfig``.
    """
    module = path / "0_CLIPModel"
    module.mkdir(parents=True, exist_ok=True)
    (path / "README.md").write_text(CLIP_MODEL_CARD, encoding="utf-8")
    modules = [
        {
            "idx": 0,
            "name": "0",
            "path": "0_CLIPModel",
            "type": "sentence_transformers.models.CLIPModel",
        }
    ]
    _write_json(path / "modules.json", modules)
    _write_json(
        path / "config_sentence_transformers.json",
        {"__version__": {"sentence_transformers": "2.0.0"}},
    )
    vocab, merges = _learn_byte_pairs(captions)
    _write_json(module / "vocab.json", vocab)
    (module / "merges.txt").write_text("\n".join(["#version: 0.2", *merges, ""]), encoding="utf-8")
    specials: JSON = {
        "bos_token": _BOS,
        "eos_token": _EOS,
        "unk_token": _EOS,
        "pad_token": _EOS,
    }
    _write_json(module / "special_tokens_map.json", specials)
    _write_json(
        module / "tokenizer_config.json",
        {
            **specials,
            "add_prefix_space": False,
            "do_lower_case": True,
            "errors": "replace",
            "model_max_length": CLIP_CONTEXT_LENGTH,
            "tokenizer_class": "CLIPTokenizer",
        },
    )
    _write_json(
        module / "preprocessor_config.json",
        {
            **_preprocessing("CLIPImageProcessor"),
            "do_center_crop": True,
            "crop_size": {"height": IMAGE_SIZE, "width": IMAGE_SIZE},
            "size": {"shortest_edge": IMAGE_SIZE},
        },
    )
    text: JSON = {
        **_TEXT,
        "vocab_size": len(vocab),
        "max_position_embeddings": CLIP_CONTEXT_LENGTH,
        "projection_dim": PROJECTION_DIM,
        "bos_token_id": vocab[_BOS],
        "eos_token_id": vocab[_EOS],
        "pad_token_id": vocab[_EOS],
    }
    return module, {
        "text_config": text,
        "vision_config": dict(_VISION),
        "projection_dim": PROJECTION_DIM,
    }


def write_chinese_clip(path: Path, captions: Iterable[str]) -> tuple[Path, JSON]:
    """Write a Chinese-CLIP directory, all but the weights and the config.

    Args:
        path: The directory; made if it does not exist.
        captions: Texts whose characters and English words the vocabulary must hold.

    Returns:
        The directory that the model belongs in, and the fields of its ``ChineseCLIPConfig``.
    """
    path.mkdir(parents=True, exist_ok=True)
    (path / "README.md").write_text(CHINESE_CLIP_MODEL_CARD, encoding="utf-8")
    vocab = _collect_word_pieces(captions)
    (path / "vocab.txt").write_text("\n".join([*vocab, ""]), encoding="utf-8")
    specials: JSON = {
        "pad_token": "[PAD]",
        "unk_token": "[UNK]",
        "cls_token": "[CLS]",
        "sep_token": "[SEP]",
        "mask_token": "[MASK]",
    }
    _write_json(
        path / "tokenizer_config.json",
        {
            **specials,
            "do_lower_case": True,
            "model_max_length": BERT_POSITIONS,
            "strip_accents": None,
            "tokenize_chinese_chars": True,
            "tokenizer_class": "BertTokenizer",
        },
    )
    _write_json(
        path / "preprocessor_config.json",
        {
            **_preprocessing("ChineseCLIPImageProcessor"),
            "do_center_crop": False,
            "size": {"height": IMAGE_SIZE, "width": IMAGE_SIZE},
        },
    )
    text: JSON = {
        **_TEXT,
        "vocab_size": len(vocab),
        "max_position_embeddings": BERT_POSITIONS,
        "pad_token_id": 0,
        "attention_probs_dropout_prob": 0.0,
        "hidden_dropout_prob": 0.0,
    }
    return path, {
        "text_config": text,
        "vision_config": dict(_VISION),
        "projection_dim": PROJECTION_DIM,
    }


def _preprocessing(image_processor_type: str) -> JSON:
    return {
        "do_convert_rgb": True,
        "do_normalize": True,
        "do_rescale": True,
        "do_resize": True,
        "image_mean": OPENAI_CLIP_MEAN,
        "image_processor_type": image_processor_type,
        "image_std": OPENAI_CLIP_STD,
        "resample": 3,
        "rescale_factor": 1 / 255,
    }


def _learn_byte_pairs(captions: Iterable[str]) -> tuple[dict[str, int], list[str]]:
    """CLIP's vocabulary: bytes, bytes that end a word, merges, and the two special tokens last."""
    tokenizer = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Whitespace(), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=700, initial_alphabet=letters, end_of_word_suffix="</w>", show_progress=False
    )
    tokenizer.train_from_iterator(captions, trainer)
    pairs: list[list[str]] = json.loads(tokenizer.to_str())["model"]["merges"]
    tokens = [*letters, *(f"{letter}</w>" for letter in letters)]
    tokens += dict.fromkeys("".join(pair) for pair in pairs)
    tokens += [_BOS, _EOS]
    return {token: index for index, token in enumerate(tokens)}, [" ".join(p) for p in pairs]


def _collect_word_pieces(captions: Iterable[str]) -> list[str]:
    """BERT's vocabulary: special tokens, ASCII, English words, Chinese characters."""
    words = pre_tokenizers.BertPreTokenizer()
    normalizer = normalizers.BertNormalizer()
    used = sorted(
        {
            word
            for caption in captions
            for word, _ in words.pre_tokenize_str(normalizer.normalize_str(caption))
        }
    )
    printable = [chr(code) for code in range(33, 127) if not chr(code).isupper()]
    alphanumeric = [f"##{letter}" for letter in printable if letter.isalnum()]
    chinese = sorted({*_COMMON_CHARACTERS, *"，。！？、：；（）《》“”…"})
    return list(dict.fromkeys([*_BERT_SPECIALS, *printable, *alphanumeric, *used, *chinese]))


def _write_json(path: Path, content: object) -> None:
    text = json.dumps(content, indent=2, ensure_ascii=False)
    path.write_text(text + "\n", encoding="utf-8")
