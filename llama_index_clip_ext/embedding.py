"""The classes for the two families by name, and the one that fits a checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from typing_extensions import Unpack

from .checkpoint import find_checkpoint
from .dual_encoder import DualEncoderEmbedding, EmbeddingOptions
from .models import Family, resolve_model
from .signatures import show_options


class CLIPEmbedding(DualEncoderEmbedding):
    """Images and English texts in one space, by OpenAI's CLIP.

    Reads the sentence-transformers layout and transformers' own, published or fine-tuned. With
    ``text_model_name="clip-ViT-B-32-multilingual-v1"`` clip-ViT-B-32 takes texts in 50 languages.

    Args:
        model_name: Alias, hub id, or local directory.
        **options: Those of `DualEncoderEmbedding`.

    Example:
        ``CLIPEmbedding("clip-ViT-B-32").get_text_embedding("a red circle")``
    """

    family: ClassVar[Family | None] = "clip"

    def __init__(
        self, model_name: str | Path = "clip-ViT-B-32", **options: Unpack[EmbeddingOptions]
    ) -> None:
        super().__init__(model_name, **options)


class ChineseCLIPEmbedding(DualEncoderEmbedding):
    """Images and Chinese texts in one space, by OFA-Sys's Chinese-CLIP.

    Args:
        model_name: Alias, hub id, or local directory.
        **options: Those of `DualEncoderEmbedding`.

    Example:
        ``ChineseCLIPEmbedding("Chinese-CLIP-ViT-L").get_text_embedding("红色圆形")``
    """

    family: ClassVar[Family | None] = "chinese-clip"

    def __init__(
        self, model_name: str | Path = "Chinese-CLIP-ViT-L", **options: Unpack[EmbeddingOptions]
    ) -> None:
        super().__init__(model_name, **options)


def load_embedding(
    model_name: str | Path, **options: Unpack[EmbeddingOptions]
) -> DualEncoderEmbedding:
    """Make the embedding whose class fits the checkpoint.

    Args:
        model_name: Alias, hub id, or local directory. The files of a model that the table does not
            list are looked up to tell its family.
        **options: Those of `DualEncoderEmbedding`.

    Returns:
        `CLIPEmbedding` or `ChineseCLIPEmbedding` for their families, `DualEncoderEmbedding` for
        SigLIP, SigLIP 2, AltCLIP and MetaCLIP 2.

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
    for embedding_class in (CLIPEmbedding, ChineseCLIPEmbedding):
        if embedding_class.family == family:
            return embedding_class(model_name, **options)
    return DualEncoderEmbedding(model_name, **options)


for _made in (CLIPEmbedding, ChineseCLIPEmbedding, load_embedding):
    show_options(_made, DualEncoderEmbedding)
