"""Where a checkpoint keeps what: transformers' plain folder, or sentence-transformers' modules."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .errors import ModelLoadError
from .hub import PICKLED, SAFETENSORS

# The modules of sentence-transformers that have weights.
_WITH_WEIGHTS = ("CLIPModel", "Transformer", "Dense")


@dataclass(frozen=True)
class Module:
    """One step of a sentence-transformers pipeline.

    Attributes:
        kind: Its class, without the package.
        directory: Its files.
    """

    kind: str
    directory: Path


def read_modules(name: str, directory: Path) -> list[Module]:
    """Return the steps of a sentence-transformers pipeline; none if the folder is a plain one.

    Raises:
        ModelLoadError: If modules.json cannot be read.
    """
    file = directory / "modules.json"
    if not file.is_file():
        return []
    try:
        return [
            Module(entry["type"].rsplit(".", 1)[-1], directory / entry["path"])
            for entry in read_json(name, file, list)
        ]
    except (TypeError, KeyError) as err:
        raise ModelLoadError(f"{name!r}: cannot read {file}: {type(err).__name__}: {err}") from err


def weight_folders(name: str, directory: Path) -> list[Path]:
    """Return the folders that a model's weights lie in."""
    modules = read_modules(name, directory)
    folders = [module.directory for module in modules if module.kind in _WITH_WEIGHTS]
    return [folder if (folder / "config.json").is_file() else directory for folder in folders] or [
        directory
    ]


def weight_files(directory: Path) -> list[Path]:
    """Return a folder's weight files; safetensors where there are any."""
    for pattern in (SAFETENSORS, PICKLED):
        if files := sorted(directory.glob(pattern)):
            return files
    return []


def check_weights(name: str, directory: Path) -> None:
    """Refuse a folder without weights.

    Raises:
        ModelLoadError: Names the folder and what was expected in it.
    """
    if not weight_files(directory):
        raise ModelLoadError(
            f"{name!r}: no weights in {directory} (expected {SAFETENSORS} or {PICKLED})"
        )


def read_json(name: str, file: Path, kind: type = dict) -> Any:
    """Read one of a model's JSON files.

    Args:
        name: The model, for messages.
        file: What to read.
        kind: What it must hold: a ``dict`` or a ``list``.

    Raises:
        ModelLoadError: If it is missing or holds something else.
    """
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        if not isinstance(content, kind):
            raise ValueError(f"it holds a {type(content).__name__}, expected a {kind.__name__}")
        return content
    except FileNotFoundError as err:
        raise ModelLoadError(
            f"{name!r}: {file.parent} is not a complete checkpoint, {file.name} is missing"
        ) from err
    except (OSError, ValueError) as err:
        raise ModelLoadError(f"{name!r}: cannot read {file}: {err}") from err
