"""Checkpoints with random weights and real vocabularies, in the layouts the hub publishes."""

from __future__ import annotations

import gzip
import json
import shutil
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from transformers import ChineseCLIPConfig, ChineseCLIPModel, CLIPConfig, CLIPModel

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
