"""A checkpoint's files: found on disk or on the hub, and read as far as JSON goes."""

from __future__ import annotations

import hashlib
import json
import logging
import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from .errors import ModelLoadError
from .models import (
    CHINESE_CLIP_CONTEXT_LENGTH,
    CLIP_CONTEXT_LENGTH,
    DEMO_MODELS,
    EmbeddingSpace,
    Family,
    ModelSpec,
    resolve_model,
)

logger = logging.getLogger(__name__)

_FAMILIES: dict[str, Family] = {"clip": "clip", "chinese_clip": "chinese-clip"}

# Enough for both layouts and no more: the hub repositories also hold ONNX and OpenVINO exports.
_SMALL_FILES = ["*.json", "*.txt", "*.md"]
_IGNORED = ["onnx/*", "openvino/*", "*/onnx/*", "*/openvino/*"]
# The leading part reaches into 0_CLIPModel/, since the hub matches whole paths; names are spelt out
# because a repository may hold the weights of other programs, such as open_clip_model.safetensors.
_SAFETENSORS = "model*.safetensors"
_PICKLED = "pytorch_model*.bin"

# The image processor's settings that change pixel values. Others only name classes.
_PREPROCESSING_KEYS = ("size", "crop_size", "image_mean", "image_std")
# What both image processors do unless they are told otherwise. Old files leave it out, and files
# that transformers has saved again write it down.
_PREPROCESSING_DEFAULTS = {
    "do_resize": True,
    "resample": 3,
    "do_center_crop": True,
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
}


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint on disk, ready to be loaded by transformers.

    Attributes:
        name: What the user calls the model.
        directory: The folder with transformers' files. In the sentence-transformers layout that
            is the folder of the CLIP module, such as ``0_CLIPModel``.
        family: Architecture.
        dim: Components of an embedding.
        context_length: Tokens that the text tower reads, special tokens included.
        revision: Commit on the hub; empty for a directory of one's own.
    """

    name: str
    directory: Path
    family: Family
    dim: int
    context_length: int
    revision: str

    @property
    def weight_files(self) -> list[Path]:
        """The weight files; safetensors where there are any."""
        for pattern in (_SAFETENSORS, _PICKLED):
            if files := sorted(self.directory.glob(pattern)):
                return files
        return []

    @property
    def has_safetensors(self) -> bool:
        """Whether the weights can be read without unpickling."""
        return any(self.directory.glob(_SAFETENSORS))

    @cached_property
    def space(self) -> EmbeddingSpace:
        """What the vectors of this checkpoint can be compared with. Hashes the weight files."""
        digest = hashlib.sha256()
        for file in self.weight_files:
            digest.update(_file_sha256(file).encode())
        settings = [_image_processor_settings(self.directory), _vocabulary(self.directory)]
        return EmbeddingSpace(
            model=self.name,
            revision=self.revision,
            weights=digest.hexdigest(),
            preprocessing=hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest(),
            dim=self.dim,
        )


def find_checkpoint(
    name: str | Path,
    *,
    cache_folder: str | Path | None = None,
    revision: str | None = None,
    local_files_only: bool = False,
    endpoint: str | None = None,
) -> Checkpoint:
    """Find a model's files: a directory, the hub's cache, or, if it may, the hub.

    A complete copy in the cache is used without asking the hub.

    Args:
        name: As `resolve_model` takes it.
        cache_folder: Where the hub's files are cached; ``None`` means huggingface_hub's own.
        revision: Branch, tag or commit on the hub.
        local_files_only: Open no socket.
        endpoint: Address of a mirror; ``None`` means ``HF_ENDPOINT`` or the hub.

    Returns:
        The checkpoint, its configuration read, its weights not.

    Raises:
        UnknownModelError: If the name is no model's.
        ModelLoadError: If the files are not there, incomplete, or of another architecture.
    """
    spec = resolve_model(name)
    if spec.is_local:
        return _read_checkpoint(spec, Path(spec.checkpoint), revision="")
    try:
        cached = _snapshot(spec, revision, cache_folder, endpoint, local_files_only=True)
        return _read_checkpoint(spec, cached, revision=cached.name)
    except ModelLoadError:
        if local_files_only:
            raise
    downloaded = download_model(
        spec.name, cache_folder=cache_folder, endpoint=endpoint, revision=revision
    )
    return _read_checkpoint(spec, downloaded, revision=downloaded.name)


def download_model(
    name: str,
    local_dir: str | Path | None = None,
    *,
    cache_folder: str | Path | None = None,
    endpoint: str | None = None,
    revision: str | None = None,
) -> Path:
    """Download a checkpoint, for use offline or on another machine.

    Fetches safetensors where the repository has any, else PyTorch's own format; no exports to
    other runtimes. A download that was cut short is continued.

    Args:
        name: An alias or a hub id.
        local_dir: A plain folder to put the files in, which can be copied elsewhere and named
            in place of the model; ``None`` means the hub's cache.
        cache_folder: Where the hub's files are cached; ``None`` means huggingface_hub's own.
        endpoint: Address of a mirror; ``None`` means ``HF_ENDPOINT`` or the hub.
        revision: Branch, tag or commit on the hub.

    Returns:
        The folder that holds the files.

    Raises:
        UnknownModelError: If the name is no model's.
        ModelLoadError: If the name is a local directory, or the hub does not deliver.
    """
    spec = resolve_model(name)
    if spec.is_local:
        raise ModelLoadError(f"{name!r} is here already, in {spec.checkpoint}: nothing to download")
    folder = _snapshot(spec, revision, cache_folder, endpoint, local_dir=local_dir)
    if not any(folder.rglob(_SAFETENSORS)):
        _snapshot(spec, revision, cache_folder, endpoint, local_dir=local_dir, weights=_PICKLED)
    _read_checkpoint(spec, folder, revision=folder.name)
    return folder


def _snapshot(
    spec: ModelSpec,
    revision: str | None,
    cache_folder: str | Path | None,
    endpoint: str | None,
    *,
    local_dir: str | Path | None = None,
    local_files_only: bool = False,
    weights: str = _SAFETENSORS,
) -> Path:
    # huggingface_hub takes 0.3 s to import, which `clip-ext models` need not wait for.
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    cache = Path(cache_folder or constants.HF_HUB_CACHE).expanduser()
    try:
        return Path(
            snapshot_download(
                spec.checkpoint,
                revision=revision,
                cache_dir=cache,
                local_dir=local_dir,
                endpoint=endpoint,
                local_files_only=local_files_only,
                allow_patterns=[*_SMALL_FILES, weights, f"*/{weights}"],
                ignore_patterns=_IGNORED,
            )
        )
    except LocalEntryNotFoundError as err:
        raise ModelLoadError(_not_here(spec, cache, endpoint, err)) from err
    # HfHubHTTPError, and what httpx, json and the file system raise over a mirror that is none, a
    # connection that breaks, or a full disk.
    except Exception as err:
        raise ModelLoadError(
            f"cannot download {spec.name!r} ({spec.checkpoint}): {type(err).__name__}: {err}. "
            "Check the name, revision and endpoint; a private repository needs HF_TOKEN"
        ) from err


def _not_here(spec: ModelSpec, cache: Path, endpoint: str | None, err: Exception) -> str:
    from huggingface_hub import constants

    address = endpoint or constants.ENDPOINT
    cause: BaseException = err
    while cause.__cause__ or cause.__context__:
        cause = cause.__cause__ or cause.__context__ or cause
    why = f" ({type(cause).__name__}: {cause})" if cause is not err else ""
    return (
        f"model {spec.name!r} ({spec.checkpoint}) is not in the cache {cache} and could not be "
        f"downloaded from {address}{why}. Ways out: (1) on a machine with access, run clip-ext "
        f"download {spec.name} --local-dir DIR, copy DIR here and pass its path as the model; (2) "
        "name a mirror that works, by HF_ENDPOINT or endpoint; (3) where there is access, do not "
        "set HF_HUB_OFFLINE or local_files_only"
    )


def _read_checkpoint(spec: ModelSpec, directory: Path, revision: str) -> Checkpoint:
    directory = _transformers_folder(spec, directory)
    config = _read_json(spec, directory / "config.json")
    family = _FAMILIES.get(config.get("model_type", ""))
    if family is None:
        raise ModelLoadError(
            f"{spec.name!r} in {directory} is a {config.get('model_type')!r} model; supported are: "
            f"{', '.join(_FAMILIES)} (config.json, model_type)"
        )
    if not _vocabulary(directory):
        # transformers would make up a tokenizer of a few tokens, and all texts would be alike.
        files = "vocab.json and merges.txt" if family == "clip" else "vocab.txt"
        raise ModelLoadError(
            f"{spec.name!r}: {directory} is not a complete checkpoint, the tokenizer's {files} (or "
            "tokenizer.json) are missing"
        )
    old, new = directory / "preprocessor_config.json", directory / "processor_config.json"
    _read_json(spec, old if old.is_file() or not new.is_file() else new)
    positions = (config.get("text_config") or {}).get("max_position_embeddings")
    limit = CLIP_CONTEXT_LENGTH if family == "clip" else CHINESE_CLIP_CONTEXT_LENGTH
    checkpoint = Checkpoint(
        # A directory by its full path, so that a passport finds it from anywhere.
        name=spec.checkpoint if spec.is_local and spec.name not in DEMO_MODELS else spec.name,
        directory=directory,
        family=family,
        # 512 is the default of CLIPConfig and ChineseCLIPConfig, left out of old config files.
        dim=config.get("projection_dim", 512),
        context_length=(positions or limit) if family == "clip" else min(positions or 512, limit),
        revision=revision,
    )
    if not checkpoint.weight_files:
        raise ModelLoadError(
            f"{spec.name!r}: no weights in {directory} (expected {_SAFETENSORS} or {_PICKLED})"
        )
    return checkpoint


def _transformers_folder(spec: ModelSpec, directory: Path) -> Path:
    """Return the folder of transformers' files, below a sentence-transformers layout or plain."""
    if not (directory / "modules.json").is_file():
        return directory
    modules = _read_json(spec, directory / "modules.json", list)
    names = [module["type"].rsplit(".", 1)[-1] for module in modules]
    encoders = [name for name in names if name in ("CLIPModel", "Transformer")]
    # A Dense or Pooling module would change the vectors: leaving it out is a wrong answer.
    if len(encoders) != 1 or set(names) - {*encoders, "Normalize"}:
        raise ModelLoadError(
            f"{spec.name!r} is a sentence-transformers pipeline of {names}; supported is one CLIP "
            "module, alone or with Normalize"
        )
    folder = directory / modules[names.index(encoders[0])]["path"]
    return folder if (folder / "config.json").is_file() else directory


def _read_json(spec: ModelSpec, file: Path, kind: type = dict) -> Any:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        if not isinstance(content, kind):
            raise ValueError(f"it holds a {type(content).__name__}, expected a {kind.__name__}")
        return content
    except FileNotFoundError as err:
        raise ModelLoadError(
            f"{spec.name!r}: {file.parent} is not a complete checkpoint, {file.name} is missing"
        ) from err
    except (OSError, ValueError) as err:
        raise ModelLoadError(f"{spec.name!r}: cannot read {file}: {err}") from err


def _image_processor_settings(directory: Path) -> dict[str, Any]:
    """Return what of the image processor changes pixels, old and new spellings alike."""
    file = directory / "preprocessor_config.json"
    if file.is_file():
        settings = json.loads(file.read_text(encoding="utf-8"))
    else:
        settings = json.loads((directory / "processor_config.json").read_text(encoding="utf-8"))
        settings = settings.get("image_processor", settings)
    settings = {
        **{key: settings[key] for key in _PREPROCESSING_KEYS if key in settings},
        **{key: settings.get(key, default) for key, default in _PREPROCESSING_DEFAULTS.items()},
    }
    if not settings["do_center_crop"]:
        settings.pop("crop_size", None)
    if isinstance(settings.get("size"), int):
        settings["size"] = {"shortest_edge": settings["size"]}
    if isinstance(settings.get("crop_size"), int):
        settings["crop_size"] = dict.fromkeys(("height", "width"), settings["crop_size"])
    return settings


def _vocabulary(directory: Path) -> dict[str, int]:
    """Return the tokenizer's tokens and ids, whichever file holds them; empty if none does."""
    # Without its merges, byte-pair encoding would fall apart into letters.
    if (file := directory / "vocab.json").is_file() and (directory / "merges.txt").is_file():
        return dict(json.loads(file.read_text(encoding="utf-8")))
    if (file := directory / "vocab.txt").is_file():
        # Stripped, as transformers reads and saves them.
        lines = file.read_text(encoding="utf-8").rstrip("\n").split("\n")
        return {token.strip(): index for index, token in enumerate(lines)}
    if (file := directory / "tokenizer.json").is_file():
        return dict(json.loads(file.read_text(encoding="utf-8"))["model"]["vocab"])
    return {}


def _file_sha256(file: Path) -> str:
    # In the hub's cache a large file is a link to a blob that is named by its SHA-256. One step
    # only: that blob may be a link itself, to one that repositories share and another hash names.
    if file.is_symlink() and re.fullmatch(r"[0-9a-f]{64}", blob := file.readlink().name):
        return blob
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
