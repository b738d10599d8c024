"""The encoder in LlamaIndex's words: one class a family."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from typing_extensions import Unpack

from .checkpoint import find_checkpoint
from .dual_encoder import DualEncoderEmbedding, EmbeddingOptions
from .models import Family, resolve_model


class CLIPEmbedding(DualEncoderEmbedding):
    """Images and English texts in one space, by OpenAI's CLIP.

    Reads the sentence-transformers layout and transformers' own, published or fine-tuned.

    Args:
        model_name: Alias, hub id, or local directory.
        **options: Those of `DualEncoderEmbedding`.

    Example:
        ``CLIPEmbedding("clip-ViT-B-32").get_text_embedding("a red circle")``
    """

    family: ClassVar[Family] = "clip"

    def __init__(
        self, model_name: str | Path = "clip-ViT-B-32", **options: Unpack[EmbeddingOptions]
    ) -> None:
        super().__init__(model_name, **options)

    @classmethod
    def class_name(cls) -> str:
        """Return the name that LlamaIndex stores."""
        return "CLIPEmbedding"


class ChineseCLIPEmbedding(DualEncoderEmbedding):
    """Images and Chinese texts in one space, by OFA-Sys's Chinese-CLIP.

    Args:
        model_name: Alias, hub id, or local directory.
        **options: Those of `DualEncoderEmbedding`.

    Example:
        ``ChineseCLIPEmbedding("Chinese-CLIP-ViT-L").get_text_embedding("红色圆形")``
    """

    family: ClassVar[Family] = "chinese-clip"

    def __init__(
        self, model_name: str | Path = "Chinese-CLIP-ViT-L", **options: Unpack[EmbeddingOptions]
    ) -> None:
        super().__init__(model_name, **options)

    @classmethod
    def class_name(cls) -> str:
        """Return the name that LlamaIndex stores."""
        return "ChineseCLIPEmbedding"


def load_embedding(
    model_name: str | Path, **options: Unpack[EmbeddingOptions]
) -> CLIPEmbedding | ChineseCLIPEmbedding:
    """Make the embedding whose class fits the checkpoint.

    Args:
        model_name: Alias, hub id, or local directory. The files of a model that the table does not
            list are looked up to tell its family.
        **options: Those of `DualEncoderEmbedding`.

    Raises:
        UnknownModelError: If the name is no model's.
        ModelLoadError: If the files cannot be found or are of another architecture.
    """
    family = resolve_model(model_name).family
    if family is None:
        family = find_checkpoint(
            model_name,
            cache_folder=options.get("cache_folder"),
            revision=options.get("revision"),
            local_files_only=options.get("local_files_only", False),
            endpoint=options.get("endpoint"),
        ).family
    if family == "clip":
        return CLIPEmbedding(model_name, **options)
    return ChineseCLIPEmbedding(model_name, **options)
