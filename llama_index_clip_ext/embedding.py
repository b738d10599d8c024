"""The encoder in LlamaIndex's words: one class a family."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from .checkpoint import find_checkpoint
from .dual_encoder import DualEncoderEmbedding, ImageEmbeddings
from .encoder import Dtype
from .models import Family, resolve_model

__all__ = ["CLIPEmbedding", "ChineseCLIPEmbedding", "ImageEmbeddings", "load_embedding"]


class CLIPEmbedding(DualEncoderEmbedding):
    """Images and English texts in one space, by OpenAI's CLIP.

    Reads the sentence-transformers layout and transformers' own, published or fine-tuned. The
    options are those of `DualEncoderEmbedding`.

    Example:
        ``CLIPEmbedding("clip-ViT-B-32").get_text_embedding("a red circle")``
    """

    family: ClassVar[Family] = "clip"
    default_model: ClassVar[str] = "clip-ViT-B-32"

    # Named again, because type checkers would make one up from the fields.
    __init__ = DualEncoderEmbedding.__init__

    @classmethod
    def class_name(cls) -> str:
        """Return the name that LlamaIndex stores."""
        return "CLIPEmbedding"


class ChineseCLIPEmbedding(DualEncoderEmbedding):
    """Images and Chinese texts in one space, by OFA-Sys's Chinese-CLIP.

    The options are those of `DualEncoderEmbedding`.

    Example:
        ``ChineseCLIPEmbedding("Chinese-CLIP-ViT-L").get_text_embedding("红色圆形")``
    """

    family: ClassVar[Family] = "chinese-clip"
    default_model: ClassVar[str] = "Chinese-CLIP-ViT-L"

    # Named again, because type checkers would make one up from the fields.
    __init__ = DualEncoderEmbedding.__init__

    @classmethod
    def class_name(cls) -> str:
        """Return the name that LlamaIndex stores."""
        return "ChineseCLIPEmbedding"


def load_embedding(
    model_name: str | Path,
    *,
    device: str = "auto",
    dtype: Dtype = "auto",
    embed_batch_size: int = 32,
    cache_folder: str | Path | None = None,
    revision: str | None = None,
    local_files_only: bool = False,
    endpoint: str | None = None,
) -> CLIPEmbedding | ChineseCLIPEmbedding:
    """Make the embedding whose class fits the checkpoint.

    Args:
        model_name: Alias, hub id, or local directory. The files of a model that the table does not
            list are looked up to tell its family.
        device: As in `CLIPEmbedding`.
        dtype: As in `CLIPEmbedding`.
        embed_batch_size: As in `CLIPEmbedding`.
        cache_folder: As in `CLIPEmbedding`.
        revision: As in `CLIPEmbedding`.
        local_files_only: As in `CLIPEmbedding`.
        endpoint: As in `CLIPEmbedding`.

    Raises:
        UnknownModelError: If the name is no model's.
        ModelLoadError: If the files cannot be found or are of another architecture.
    """
    family = resolve_model(model_name).family
    if family is None:
        family = find_checkpoint(
            model_name,
            cache_folder=cache_folder,
            revision=revision,
            local_files_only=local_files_only,
            endpoint=endpoint,
        ).family
    embedding_class = CLIPEmbedding if family == "clip" else ChineseCLIPEmbedding
    embedding: CLIPEmbedding | ChineseCLIPEmbedding = embedding_class(
        model_name,
        device=device,
        dtype=dtype,
        embed_batch_size=embed_batch_size,
        cache_folder=cache_folder,
        revision=revision,
        local_files_only=local_files_only,
        endpoint=endpoint,
    )
    return embedding
