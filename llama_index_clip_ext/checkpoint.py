"""A checkpoint's files: found on disk or on the hub, and read as far as JSON goes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TypeVar

from .architectures import ARCHITECTURES, Architecture
from .errors import ModelLoadError
from .fingerprint import files_sha256, preprocessing_sha256, read_vocabulary
from .hub import PICKLED, SAFETENSORS, fetch
from .layout import check_weights, read_json, read_modules, weight_files, weight_folders
from .models import DEMO_MODELS, EmbeddingSpace, Family, ModelSpec, resolve_model
from .text_checkpoint import (
    TextCheckpoint,
    is_text_only,
    read_text_checkpoint,
    text_only_message,
)

T = TypeVar("T")


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint on disk, ready to be loaded by transformers.

    Attributes:
        name: What the user calls the model.
        directory: The folder with transformers' files. In the sentence-transformers layout that
            is the folder of the CLIP module, such as ``0_CLIPModel``.
        architecture: How it is loaded.
        dim: Components of an embedding.
        context_length: Tokens that the text tower reads, special tokens included.
        reads_english_only: Whether its vocabulary is one that was made for English.
        revision: Commit on the hub; empty for a directory of one's own.
    """

    name: str
    directory: Path
    architecture: Architecture
    dim: int
    context_length: int
    reads_english_only: bool
    revision: str

    @property
    def family(self) -> Family:
        """What this package calls the architecture."""
        return self.architecture.family

    @property
    def weight_files(self) -> list[Path]:
        """The weight files; safetensors where there are any."""
        return weight_files(self.directory)

    @cached_property
    def space(self) -> EmbeddingSpace:
        """What the vectors of this checkpoint can be compared with. Hashes the weight files."""
        image_processor = self.architecture.image_processor_class
        return EmbeddingSpace(
            model=self.name,
            revision=self.revision,
            weights=files_sha256(self.weight_files),
            preprocessing=preprocessing_sha256(self.name, self.directory, image_processor),
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
    if spec.family == "text-only":
        raise ModelLoadError(text_only_message(spec.name))
    return _find(_read_checkpoint, spec, cache_folder, revision, local_files_only, endpoint)


def find_text_checkpoint(
    name: str | Path,
    *,
    cache_folder: str | Path | None = None,
    local_files_only: bool = False,
    endpoint: str | None = None,
) -> TextCheckpoint:
    """Find the files of a text tower, as `find_checkpoint` finds a model's.

    Raises:
        UnknownModelError: If the name is no model's.
        ModelLoadError: If the files are not there, incomplete, or not a text tower's.
    """
    return _find(
        _read_text_checkpoint, resolve_model(name), cache_folder, None, local_files_only, endpoint
    )


def _find(
    read: Callable[[ModelSpec, Path, str], T],
    spec: ModelSpec,
    cache_folder: str | Path | None,
    revision: str | None,
    local_files_only: bool,
    endpoint: str | None,
) -> T:
    if spec.is_local:
        return read(spec, Path(spec.checkpoint), "")
    try:
        cached = fetch(
            spec,
            revision=revision,
            cache_folder=cache_folder,
            endpoint=endpoint,
            local_files_only=True,
        )
        return read(spec, cached, cached.name)
    except ModelLoadError:
        if local_files_only:
            raise
    folder = _download(spec, None, cache_folder, endpoint, revision)
    return read(spec, folder, folder.name)


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
        name: An alias or a hub id, of a model or of a text tower.
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
    folder = _download(spec, local_dir, cache_folder, endpoint, revision)
    if is_text_only(read_modules(spec.name, folder)):
        read_text_checkpoint(spec, folder)
    else:
        _read_checkpoint(spec, folder, folder.name)
    return folder


def _download(
    spec: ModelSpec,
    local_dir: str | Path | None,
    cache_folder: str | Path | None,
    endpoint: str | None,
    revision: str | None,
) -> Path:
    def fetch_weights(*patterns: str) -> Path:
        return fetch(
            spec,
            revision=revision,
            cache_folder=cache_folder,
            endpoint=endpoint,
            local_dir=local_dir,
            weights=patterns,
        )

    folder = fetch_weights(SAFETENSORS, f"*/{SAFETENSORS}")
    without = [one for one in weight_folders(spec.name, folder) if not any(one.glob(SAFETENSORS))]
    if without:
        fetch_weights(*((one / PICKLED).relative_to(folder).as_posix() for one in without))
    return folder


def _read_checkpoint(spec: ModelSpec, directory: Path, revision: str) -> Checkpoint:
    directory = _transformers_folder(spec, directory)
    config = read_json(spec.name, directory / "config.json")
    architecture = ARCHITECTURES.get(config.get("model_type", ""))
    if architecture is None:
        raise ModelLoadError(
            f"{spec.name!r} in {directory} is a {config.get('model_type')!r} model; supported are: "
            f"{', '.join(ARCHITECTURES)} (config.json, model_type)"
        )
    if not read_vocabulary(spec.name, directory):
        # transformers would make up a tokenizer of a few tokens, and all texts would be alike.
        raise ModelLoadError(
            f"{spec.name!r}: {directory} is not a complete checkpoint, the tokenizer's "
            f"{architecture.tokenizer_files} (or tokenizer.json) are missing"
        )
    old, new = directory / "preprocessor_config.json", directory / "processor_config.json"
    read_json(spec.name, old if old.is_file() or not new.is_file() else new)
    check_weights(spec.name, directory)
    return Checkpoint(
        # A directory by its full path, so that a passport finds it from anywhere.
        name=spec.checkpoint if spec.is_local and spec.name not in DEMO_MODELS else spec.name,
        directory=directory,
        architecture=architecture,
        dim=architecture.dim(config),
        context_length=architecture.context_length(config),
        reads_english_only=architecture.reads_english_only(config),
        revision=revision,
    )


def _read_text_checkpoint(spec: ModelSpec, directory: Path, revision: str) -> TextCheckpoint:
    return read_text_checkpoint(spec, directory)


def _transformers_folder(spec: ModelSpec, directory: Path) -> Path:
    """Return the folder of transformers' files, below a sentence-transformers layout or plain."""
    if not (directory / "modules.json").is_file():
        return directory
    modules = read_modules(spec.name, directory)
    if is_text_only(modules):
        raise ModelLoadError(text_only_message(spec.name))
    names = [module.kind for module in modules]
    encoders = [module for module in modules if module.kind in ("CLIPModel", "Transformer")]
    # A Dense or Pooling module would change the vectors: leaving it out is a wrong answer.
    if len(encoders) != 1 or set(names) - {encoders[0].kind, "Normalize"}:
        raise ModelLoadError(
            f"{spec.name!r} is a sentence-transformers pipeline of {names}; supported is one CLIP "
            "module, alone or with Normalize"
        )
    folder = encoders[0].directory
    return folder if (folder / "config.json").is_file() else directory
