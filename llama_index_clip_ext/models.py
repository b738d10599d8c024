"""What is known of each checkpoint before any of its files is read."""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from .errors import UnknownModelError

# "text-only" is half a model: a text tower that was trained for another model's images.
Family = Literal["clip", "chinese-clip", "siglip", "siglip2", "altclip", "metaclip-2", "text-only"]

# CLIP's text tower has 77 positions (Radford et al. 2021, arXiv:2103.00020, section 2.4).
CLIP_CONTEXT_LENGTH = 77
# Chinese-CLIP was pretrained on 52 tokens (Yang et al. 2022, arXiv:2211.01335; the default of
# cn_clip.clip.tokenize). Its BERT tokenizer would allow 512, which is out of distribution.
CHINESE_CLIP_CONTEXT_LENGTH = 52


@dataclass(frozen=True)
class ModelSpec:
    """One checkpoint, as far as its name tells.

    Attributes:
        name: What the user calls it: an alias, a hub id, or a local directory.
        checkpoint: Hub id, or the absolute path of a local directory.
        family: Architecture; ``None`` until the files of an unlisted checkpoint are read.
        dim: Components of an embedding; ``None`` as above.
        context_length: Tokens that the text tower reads; ``None`` as above.
        advice: When to choose it, in a few words.
        images_of: Of a text-only model, the model whose images it was trained for.
    """

    name: str
    checkpoint: str
    family: Family | None = None
    dim: int | None = None
    context_length: int | None = None
    advice: str = ""
    images_of: str = ""

    @property
    def is_local(self) -> bool:
        """Whether the checkpoint is a directory rather than a hub id."""
        return Path(self.checkpoint).is_absolute()


@dataclass(frozen=True)
class EmbeddingSpace:
    """What makes two vectors comparable: the model, its weights and its preprocessing.

    Attributes:
        model: Name of the model that made the vectors.
        revision: Commit of the checkpoint on the hub, where it is known.
        weights: SHA-256 of the weight files.
        preprocessing: SHA-256 of the image processor's settings and the tokenizer's vocabulary.
        dim: Components of a vector.
    """

    model: str
    revision: str
    weights: str
    preprocessing: str
    dim: int


@dataclass(frozen=True)
class ScoreStatistics:
    """What unrelated pairs of a collection score, in one direction.

    Attributes:
        mean: Of their cosines.
        std: Standard deviation of their cosines.
    """

    mean: float
    std: float


def _openai(name: str, dim: int, advice: str) -> ModelSpec:
    hub_id = f"sentence-transformers/{name}"
    return ModelSpec(name, hub_id, "clip", dim, CLIP_CONTEXT_LENGTH, advice)


def _ofa_sys(name: str, hub_name: str, dim: int, advice: str) -> ModelSpec:
    hub_id = f"OFA-Sys/{hub_name}"
    return ModelSpec(name, hub_id, "chinese-clip", dim, CHINESE_CLIP_CONTEXT_LENGTH, advice)


_MODELS = (
    _openai("clip-ViT-B-32", 512, "default: fast, good enough, lightest"),
    _openai("clip-ViT-B-16", 512, "medium"),
    _openai("clip-ViT-L-14", 768, "highest accuracy"),
    _ofa_sys("Chinese-CLIP-ViT-B", "chinese-clip-vit-base-patch16", 512, "Chinese, lightweight"),
    _ofa_sys("Chinese-CLIP-ViT-L", "chinese-clip-vit-large-patch14", 768, "Chinese, recommended"),
    _ofa_sys("Chinese-CLIP-ViT-H", "chinese-clip-vit-huge-patch14", 1024, "Chinese, largest"),
)

# Text towers to pair with a model's images, as text_model_name. The multilingual one is DistilBERT,
# taught to give 50 languages the vectors of CLIP (Reimers and Gurevych 2020, arXiv:2004.09813).
TEXT_MODELS = {
    spec.name: spec
    for spec in (
        ModelSpec(
            "clip-ViT-B-32-multilingual-v1",
            "sentence-transformers/clip-ViT-B-32-multilingual-v1",
            "text-only",
            512,
            128,
            "texts in 50 languages for the images of clip-ViT-B-32, as text_model_name",
            images_of="clip-ViT-B-32",
        ),
    )
}

_DEMO_CHECKPOINTS = Path(__file__).resolve().parent / "demo" / "checkpoints"

# Tiny encoders that ship with the package: they know drawn shapes, colours and digits only.
DEMO_MODELS = {
    spec.name: spec
    for spec in (
        ModelSpec("demo-clip", str(_DEMO_CHECKPOINTS / "clip"), "clip", 64, CLIP_CONTEXT_LENGTH),
        ModelSpec(
            "demo-chinese-clip",
            str(_DEMO_CHECKPOINTS / "chinese-clip"),
            "chinese-clip",
            64,
            CHINESE_CLIP_CONTEXT_LENGTH,
        ),
    )
}

# What huggingface_hub's validate_repo_id lets through.
_HUB_ID = re.compile(r"(?!.*(?:--|\.\.))\w(?:[\w.-]*\w)?/\w(?:[\w.-]*\w)?(?<!\.git)", re.ASCII)


def list_models() -> list[ModelSpec]:
    """Return the published checkpoints, in the order of the README's table."""
    return list(_MODELS)


def resolve_model(name: str | Path) -> ModelSpec:
    """Look up a model by alias, hub id, or local directory. Reads no file and no network.

    Args:
        name: An alias of `list_models` or of the multilingual text tower (letter case does not
            matter), a demo model's name, a hub id such as
            ``OFA-Sys/chinese-clip-vit-base-patch16``, or a directory.

    Returns:
        The table's row for a known checkpoint; for another hub id or a directory, a spec whose
        ``family``, ``dim`` and ``context_length`` are unknown until its files are read.

    Raises:
        UnknownModelError: If the name is none of these; lists the known ones.
    """
    text = str(name)
    for spec in (*_MODELS, *TEXT_MODELS.values()):
        if text.lower() in (spec.name.lower(), spec.checkpoint.lower()):
            return spec
    if text in DEMO_MODELS:
        return DEMO_MODELS[text]
    directory = Path(text).expanduser()
    if text and directory.is_dir():
        return ModelSpec(text, str(directory.resolve()))
    if isinstance(name, str) and _HUB_ID.fullmatch(text):
        return ModelSpec(text, text)
    known = [spec.name for spec in _MODELS] + [*TEXT_MODELS, *DEMO_MODELS]
    by_lower = {one.lower(): one for one in known}
    close = difflib.get_close_matches(text.lower(), by_lower, n=1, cutoff=0.6)
    hint = f" Did you mean {by_lower[close[0]]!r}?" if close else ""
    raise UnknownModelError(
        f"unknown model {text!r}: not an alias, not a hub id (owner/name), and no such directory."
        f"{hint} Known: {', '.join(known)}"
    )
