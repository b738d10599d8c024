"""Checkpoints with random weights and real vocabularies, in the layouts the hub publishes."""

from __future__ import annotations

import gzip
import json
import shutil
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from tokenizers.processors import TemplateProcessing
from transformers import (
    AltCLIPConfig,
    AltCLIPModel,
    ChineseCLIPConfig,
    ChineseCLIPModel,
    CLIPConfig,
    CLIPModel,
    DistilBertConfig,
    DistilBertModel,
    MetaClip2Config,
    MetaClip2Model,
    Siglip2Config,
    Siglip2Model,
    SiglipConfig,
    SiglipModel,
)

# As openai/clip-vit-base-patch32 and OFA-Sys/chinese-clip-vit-base-patch16 publish them.
CLIP_PREPROCESSOR = {
    "crop_size": 224,
    "do_center_crop": True,
    "do_normalize": True,
    "do_resize": True,
    "feature_extractor_type": "CLIPFeatureExtractor",
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
    "resample": 3,
    "size": 224,
}
CHINESE_CLIP_PREPROCESSOR = {
    "do_center_crop": False,
    "do_convert_rgb": True,
    "do_normalize": True,
    "do_rescale": True,
    "do_resize": True,
    "feature_extractor_type": "ChineseCLIPFeatureExtractor",
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_processor_type": "ChineseCLIPImageProcessor",
    "image_std": [0.26862954, 0.26130258, 0.27577711],
    "resample": 3,
    "rescale_factor": 0.00392156862745098,
    "size": {"height": 224, "width": 224},
}
# As google/siglip-base-patch16-224 and google/siglip2-base-patch16-naflex publish them.
SIGLIP_PREPROCESSOR = {
    "do_normalize": True,
    "do_rescale": True,
    "do_resize": True,
    "image_mean": [0.5, 0.5, 0.5],
    "image_processor_type": "SiglipImageProcessor",
    "image_std": [0.5, 0.5, 0.5],
    "resample": 3,
    "rescale_factor": 0.00392156862745098,
    "size": {"height": 224, "width": 224},
}
SIGLIP2_PREPROCESSOR = {
    "do_normalize": True,
    "do_rescale": True,
    "do_resize": True,
    "image_mean": [0.5, 0.5, 0.5],
    "image_processor_type": "Siglip2ImageProcessor",
    "image_std": [0.5, 0.5, 0.5],
    "max_num_patches": 256,
    "patch_size": 16,
    "resample": 2,
    "rescale_factor": 0.00392156862745098,
}
# What the vocabularies that are not in any wheel are trained on.
SENTENCES = [
    "a photo of a cat, two red circles and a blue square on a white background",
    "the quick brown fox jumps over the lazy dog; 0123456789 times, said e-mail@example.com",
    "A PHOTO OF THE CAT. TWO ASTRONAUTS IN FRONT OF THE SPACE SHUTTLE",
    "一张猫的照片，白色背景上的红色圆形，一只猫坐在沙发上",
    "un café à côté de la façade naïve, ein rotes Quadrat, красный круг",
]
TINY: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
}


def wheel_file(distribution: str, name: str) -> Path:
    """Return a data file of an installed wheel without importing it (its needs are not there)."""
    for file in metadata.files(distribution) or []:
        if file.name == name:
            return Path(str(file.locate()))
    raise FileNotFoundError(f"{distribution} holds no {name}")


def write_clip_tokenizer(directory: Path) -> None:
    """Write vocab.json and merges.txt as OpenAI's clip/simple_tokenizer.py defines them."""
    packed = wheel_file("open_clip_torch", "bpe_simple_vocab_16e6.txt.gz")
    lines = gzip.decompress(packed.read_bytes()).decode().split("\n")
    merges = lines[1 : 49152 - 256 - 2 + 1]
    # Printable bytes stand for themselves and come first, the others for 256 and upwards.
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    characters = [chr(byte) for byte in printable]
    characters += [chr(256 + index) for index in range(256 - len(printable))]
    tokens = [*characters, *(c + "</w>" for c in characters)]
    tokens += ["".join(merge.split()) for merge in merges]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    (directory / "vocab.json").write_text(json.dumps(vocabulary, ensure_ascii=False))
    (directory / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n")
    special = {"bos_token": "<|startoftext|>", "eos_token": "<|endoftext|>"}
    special |= {"unk_token": "<|endoftext|>", "pad_token": "<|endoftext|>"}
    (directory / "special_tokens_map.json").write_text(json.dumps(special))
    settings = {**special, "model_max_length": 77, "do_lower_case": True}
    settings |= {"tokenizer_class": "CLIPTokenizer", "add_prefix_space": False, "errors": "replace"}
    (directory / "tokenizer_config.json").write_text(json.dumps(settings))


def make_clip(directory: Path, *, tiny: bool = False, seed: int = 0) -> Path:
    """Write a CLIP checkpoint as a plain Hugging Face directory: ViT-B/32, or two thin layers."""
    torch.manual_seed(seed)
    config = CLIPConfig(
        text_config={"eos_token_id": 49407, "bos_token_id": 49406, **(TINY if tiny else {})},
        vision_config=TINY if tiny else {},
        projection_dim=16 if tiny else 512,
    )
    CLIPModel(config).save_pretrained(directory)
    write_clip_tokenizer(directory)
    (directory / "preprocessor_config.json").write_text(json.dumps(CLIP_PREPROCESSOR))
    return directory


def make_sentence_transformers(directory: Path, plain: Path) -> Path:
    """Write the legacy layout of sentence-transformers/clip-ViT-B-32 around a plain directory."""
    shutil.copytree(plain, directory / "0_CLIPModel")
    module = {
        "idx": 0,
        "name": "0",
        "path": "0_CLIPModel",
        "type": "sentence_transformers.models.CLIPModel",
    }
    (directory / "modules.json").write_text(json.dumps([module]))
    versions = {"__version__": {"sentence_transformers": "2.0.0"}}
    (directory / "config_sentence_transformers.json").write_text(json.dumps(versions))
    return directory


def make_chinese_clip(directory: Path, *, tiny: bool = False, seed: int = 0) -> Path:
    """Write a Chinese-CLIP checkpoint: ViT-B/16 with RoBERTa-base, or two thin layers."""
    torch.manual_seed(seed)
    config = ChineseCLIPConfig(
        text_config={"vocab_size": 21128, **(TINY if tiny else {})},
        vision_config={"patch_size": 16, **(TINY if tiny else {})},
        projection_dim=16 if tiny else 512,
    )
    ChineseCLIPModel(config).save_pretrained(directory)
    shutil.copy(wheel_file("cn_clip", "vocab.txt"), directory / "vocab.txt")
    (directory / "preprocessor_config.json").write_text(json.dumps(CHINESE_CLIP_PREPROCESSOR))
    return directory


def write_gemma_tokenizer(directory: Path) -> None:
    """Write a tokenizer built as Gemma's, set as SigLIP 2's; its vocabulary is small."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback()])
    special = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>"]
    # Words apart, so that none is learnt as long as a sentence.
    words = [f"{word} " for sentence in SENTENCES for word in sentence.split()]
    trainer = trainers.BpeTrainer(
        vocab_size=600, special_tokens=[*special, *(f"<0x{byte:02X}>" for byte in range(256))]
    )
    tokenizer.train_from_iterator(words, trainer)
    tokenizer.post_processor = TemplateProcessing(single="$A <eos>", special_tokens=[("<eos>", 1)])
    tokenizer.save(str(directory / "tokenizer.json"))
    settings: dict[str, Any] = {f"{token.strip('<>')}_token": token for token in special}
    settings |= {"tokenizer_class": "GemmaTokenizer", "model_max_length": 64, "do_lower_case": True}
    settings |= {"add_bos_token": False, "add_eos_token": True, "padding_side": "right"}
    settings |= {"model_input_names": ["input_ids"]}
    (directory / "tokenizer_config.json").write_text(json.dumps(settings))


def write_xlm_roberta_tokenizer(directory: Path) -> None:
    """Write a tokenizer built as XLM-R's, for AltCLIP and MetaCLIP 2; its vocabulary is small."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()]
    )
    tokenizer.decoder = decoders.Metaspace()
    special = ["<s>", "<pad>", "</s>", "<unk>"]
    trainer = trainers.UnigramTrainer(
        vocab_size=300, special_tokens=special, unk_token="<unk>", show_progress=False
    )
    tokenizer.train_from_iterator(SENTENCES * 20, trainer)
    tokenizer.post_processor = TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    tokenizer.save(str(directory / "tokenizer.json"))
    settings = {"bos_token": "<s>", "cls_token": "<s>", "eos_token": "</s>", "sep_token": "</s>"}
    settings |= {"unk_token": "<unk>", "pad_token": "<pad>", "mask_token": "<mask>"}
    settings |= {"tokenizer_class": "XLMRobertaTokenizer"}
    (directory / "tokenizer_config.json").write_text(json.dumps(settings))


def write_sentencepiece_tokenizer(directory: Path) -> None:
    """Write SigLIP's own kind of tokenizer; its vocabulary is small. Needs sentencepiece."""
    import sentencepiece

    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(SENTENCES * 20),
        model_prefix=str(directory / "spiece"),
        vocab_size=150,
        bos_id=-1,
        pad_id=-1,
        eos_id=1,
        unk_id=0,
        # As in T5's: the dummy prefix is SiglipTokenizer's business.
        hard_vocab_limit=False,
        minloglevel=2,
    )
    (directory / "spiece.vocab").unlink()
    settings = {"tokenizer_class": "SiglipTokenizer", "do_lower_case": True, "eos_token": "</s>"}
    settings |= {"pad_token": "</s>", "unk_token": "<unk>", "model_max_length": 64}
    settings |= {"model_input_names": ["input_ids"]}
    (directory / "tokenizer_config.json").write_text(json.dumps(settings))


def make_siglip(
    directory: Path, *, tiny: bool = False, sentencepiece: bool = False, **text_config: Any
) -> Path:
    """Write SigLIP base-patch16-224, with SigLIP's tokenizer or with SigLIP 2's, or a thin one."""
    torch.manual_seed(0)
    size = TINY if tiny else {}
    SiglipModel(
        SiglipConfig(text_config={**size, **text_config}, vision_config=size)
    ).save_pretrained(directory)
    write = write_sentencepiece_tokenizer if sentencepiece else write_gemma_tokenizer
    write(directory)
    (directory / "preprocessor_config.json").write_text(json.dumps(SIGLIP_PREPROCESSOR))
    return directory


def make_siglip2(directory: Path, *, tiny: bool = False) -> Path:
    """Write SigLIP 2 base-patch16-naflex, or a thin one."""
    torch.manual_seed(0)
    size = TINY if tiny else {}
    Siglip2Model(Siglip2Config(text_config=size, vision_config=size)).save_pretrained(directory)
    write_gemma_tokenizer(directory)
    (directory / "preprocessor_config.json").write_text(json.dumps(SIGLIP2_PREPROCESSOR))
    return directory


def make_altclip(directory: Path) -> Path:
    """Write an AltCLIP of two thin layers."""
    torch.manual_seed(0)
    config = AltCLIPConfig(
        text_config={**TINY, "vocab_size": 400, "project_dim": 24},
        vision_config=TINY,
        projection_dim=16,
    )
    AltCLIPModel(config).save_pretrained(directory)
    write_xlm_roberta_tokenizer(directory)
    (directory / "preprocessor_config.json").write_text(json.dumps(CLIP_PREPROCESSOR))
    return directory


def make_metaclip_2(directory: Path) -> Path:
    """Write a MetaCLIP 2 of two thin layers."""
    torch.manual_seed(0)
    marks = {"bos_token_id": 0, "pad_token_id": 1, "eos_token_id": 2}
    config = MetaClip2Config(
        text_config={**TINY, **marks, "vocab_size": 400}, vision_config=TINY, projection_dim=16
    )
    MetaClip2Model(config).save_pretrained(directory)
    write_xlm_roberta_tokenizer(directory)
    (directory / "preprocessor_config.json").write_text(json.dumps(CLIP_PREPROCESSOR))
    return directory


def make_open_clip(directory: Path) -> Path:
    """Write a CLIP as converted from OpenCLIP: other activation, width and mark of the end."""
    torch.manual_seed(0)
    config = CLIPConfig(
        text_config={**TINY, "hidden_act": "gelu", "eos_token_id": 2, "bos_token_id": 0},
        vision_config={**TINY, "hidden_act": "gelu", "patch_size": 14},
        projection_dim=24,
    )
    CLIPModel(config).save_pretrained(directory)
    write_clip_tokenizer(directory)
    # OpenCLIP pads with 0, which is "!" in CLIP's vocabulary.
    settings = json.loads((directory / "tokenizer_config.json").read_text())
    (directory / "tokenizer_config.json").write_text(json.dumps({**settings, "pad_token": "!"}))
    (directory / "preprocessor_config.json").write_text(json.dumps(CLIP_PREPROCESSOR))
    return directory


def make_text_tower(directory: Path, *, dim: int = 16, tiny: bool = True) -> Path:
    """Write the layout of sentence-transformers/clip-ViT-B-32-multilingual-v1."""
    torch.manual_seed(0)
    size = {"dim": 32, "hidden_dim": 64, "n_layers": 2, "n_heads": 2} if tiny else {}
    config = DistilBertConfig(vocab_size=21128, **size)
    DistilBertModel(config).save_pretrained(directory)
    # Chinese-CLIP's vocabulary is BERT's for Chinese, which knows many scripts.
    shutil.copy(wheel_file("cn_clip", "vocab.txt"), directory / "vocab.txt")
    kind = "sentence_transformers.models"
    dense = {"in_features": config.dim, "out_features": dim, "bias": False}
    dense |= {"activation_function": "torch.nn.modules.linear.Identity"}
    files: dict[str, Any] = {
        "modules.json": [
            {"idx": 0, "name": "0", "path": "", "type": f"{kind}.Transformer"},
            {"idx": 1, "name": "1", "path": "1_Pooling", "type": f"{kind}.Pooling"},
            {"idx": 2, "name": "2", "path": "2_Dense", "type": f"{kind}.Dense"},
        ],
        "sentence_bert_config.json": {"max_seq_length": 128, "do_lower_case": False},
        "tokenizer_config.json": {
            "tokenizer_class": "DistilBertTokenizer",
            "do_lower_case": False,
            "model_max_length": 512,
        },
        "1_Pooling/config.json": {
            "word_embedding_dimension": config.dim,
            "pooling_mode_cls_token": False,
            "pooling_mode_mean_tokens": True,
            "pooling_mode_max_tokens": False,
            "pooling_mode_mean_sqrt_len_tokens": False,
        },
        "2_Dense/config.json": dense,
    }
    for name, content in files.items():
        (directory / name).parent.mkdir(exist_ok=True)
        (directory / name).write_text(json.dumps(content))
    weight = torch.randn(dim, config.dim)
    torch.save({"linear.weight": weight}, directory / "2_Dense" / "pytorch_model.bin")
    return directory
