"""What of a checkpoint's files its vectors depend on, as hashes."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import threading
from pathlib import Path
from typing import Any

from .errors import ModelLoadError

logger = logging.getLogger(__name__)

# Files from which hashing takes longer than loading the rest of a command.
_LARGE_BYTES = 64 * 2**20

# SentencePiece's own format, under the names of T5, XLM-R and Llama.
SENTENCEPIECE_FILES = ("spiece.model", "sentencepiece.bpe.model", "tokenizer.model")

# The image processor's settings that change pixel values. Others only name classes.
_IMAGE_KEYS = ("size", "crop_size", "image_mean", "image_std", "patch_size", "max_num_patches")
# What CLIP's image processors do unless they are told otherwise. Old files leave it out, and files
# that transformers has saved again write it down.
_IMAGE_DEFAULTS = {
    "do_resize": True,
    "resample": 3,
    "do_center_crop": True,
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
}
# What those of SigLIP do differently.
_IMAGE_DEFAULTS_OF: dict[str, dict[str, Any]] = {
    "SiglipImageProcessor": {"do_center_crop": False},
    "Siglip2ImageProcessor": {
        "do_center_crop": False,
        "resample": 2,
        "patch_size": 16,
        "max_num_patches": 256,
    },
}


def preprocessing_sha256(name: str, directory: Path, image_processor_class: str) -> str:
    """Hash what the image processor does to pixels and what the tokenizer does to texts."""
    settings = [_image_settings(directory, image_processor_class), read_vocabulary(name, directory)]
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()


def files_sha256(files: list[Path]) -> str:
    """Hash files, one after the other."""
    digest = hashlib.sha256()
    for file in files:
        digest.update(_file_sha256(file).encode())
    return digest.hexdigest()


def read_vocabulary(name: str, directory: Path) -> dict[str, Any]:
    """Return the tokenizer's tokens and ids, whichever file holds them; empty if none does.

    Raises:
        ModelLoadError: If the file is not what its name says.
    """
    file = _vocabulary_file(directory)
    if file is None:
        return {}
    if file.suffix == ".model":
        return {file.name: _file_sha256(file)}
    try:
        content = file.read_text(encoding="utf-8")
        if file.suffix == ".txt":
            # Stripped, as transformers reads and saves them.
            lines = content.rstrip("\n").split("\n")
            return {token.strip(): index for index, token in enumerate(lines)}
        tokens = json.loads(content)
        if file.name == "tokenizer.json":
            tokens = tokens["model"]["vocab"]
        if isinstance(tokens, list):
            # Of a Unigram model: pieces and their scores, in the order of their ids.
            return {piece: [index, score] for index, (piece, score) in enumerate(tokens)}
        return dict(tokens)
    except (OSError, ValueError, TypeError, KeyError) as err:
        raise ModelLoadError(f"{name!r}: cannot read {file}: {type(err).__name__}: {err}") from err


def _vocabulary_file(directory: Path) -> Path | None:
    names = ["vocab.txt", "tokenizer.json", *SENTENCEPIECE_FILES]
    # Without its merges, byte-pair encoding would fall apart into letters.
    if (directory / "merges.txt").is_file():
        names.insert(0, "vocab.json")
    return next((directory / name for name in names if (directory / name).is_file()), None)


def _image_settings(directory: Path, image_processor_class: str) -> dict[str, Any]:
    """Return what of the image processor changes pixels, old and new spellings alike."""
    file = directory / "preprocessor_config.json"
    if file.is_file():
        settings = json.loads(file.read_text(encoding="utf-8"))
    else:
        settings = json.loads((directory / "processor_config.json").read_text(encoding="utf-8"))
        settings = settings.get("image_processor", settings)
    defaults = {**_IMAGE_DEFAULTS, **_IMAGE_DEFAULTS_OF.get(image_processor_class, {})}
    settings = {
        **defaults,
        # A class that has no such setting may write it down as null.
        **{key: settings[key] for key in _IMAGE_KEYS if settings.get(key) is not None},
        **{key: settings[key] for key in _IMAGE_DEFAULTS if key in settings},
    }
    settings["do_center_crop"] = bool(settings["do_center_crop"])
    if not settings["do_center_crop"]:
        settings.pop("crop_size", None)
    if isinstance(settings.get("size"), int):
        settings["size"] = {"shortest_edge": settings["size"]}
    if isinstance(settings.get("crop_size"), int):
        settings["crop_size"] = dict.fromkeys(("height", "width"), settings["crop_size"])
    return settings


def _file_sha256(file: Path) -> str:
    # In the hub's cache a large file is a link to a blob that is named by its SHA-256. One step
    # only: that blob may be a link itself, to one that repositories share and another hash names.
    if file.is_symlink() and re.fullmatch(r"[0-9a-f]{64}", blob := file.readlink().name):
        return blob
    if file.stat().st_size < _LARGE_BYTES:
        return _hash(file)
    return _remembered_hash(file)


def _remembered_hash(file: Path) -> str:
    """Hash a large file once: it takes seconds, of which every search by command line would wait.

    As ``make``, ``git`` and ``rsync`` do, a file is taken for unchanged whose size and time of
    change are.
    """
    from huggingface_hub import cached_assets_path

    stat = file.stat()
    state = [str(file.resolve()), stat.st_size, stat.st_mtime_ns, stat.st_ino]
    key = hashlib.sha256(json.dumps(state).encode()).hexdigest()
    try:
        note = cached_assets_path("llama_index_clip_ext", "sha256", "files") / key
        if note.is_file() and re.fullmatch(r"[0-9a-f]{64}", known := note.read_text()):
            return known
        value = _hash(file)
        # Whole or not at all, whoever else writes it.
        draft = note.with_suffix(f".{os.getpid()}.{threading.get_ident()}")
        draft.write_text(value)
        draft.replace(note)
        return value
    except OSError as err:
        # A home that cannot be written to, as in many a container.
        logger.debug("cannot remember the hash of %s: %s", file, err)
        return _hash(file)


def _hash(file: Path) -> str:
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
