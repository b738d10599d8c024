"""Search pictures by words and by pictures, in Chinese and English, with LlamaIndex and Milvus.

Names are handed out on first use, so that importing the package stays quick and loads no torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .checkpoint import download_model
    from .embedding import (
        ChineseCLIPEmbedding,
        CLIPEmbedding,
        ImageEmbeddings,
        load_embedding,
    )
    from .errors import (
        ClipExtError,
        DimensionMismatchError,
        EmbeddingError,
        EmbeddingSpaceMismatchError,
        FilterError,
        ImageLoadError,
        ImageNotFoundError,
        ModelLoadError,
        RowTooLargeError,
        StoreError,
        StoreLockedError,
        TextTooLongError,
        UnknownModelError,
    )
    from .images import ImageFailure, load_image, load_images
    from .ingest import IngestReport, aingest_images, ingest_images
    from .models import EmbeddingSpace, ModelSpec, list_models, resolve_model
    from .nodes import load_image_nodes
    from .retriever import CLIPRetriever, create_retriever
    from .store import CLIPMilvusVectorStore, create_vector_store

__version__ = "0.1.0"

_HOMES = {
    "checkpoint": ["download_model"],
    "embedding": ["CLIPEmbedding", "ChineseCLIPEmbedding", "ImageEmbeddings", "load_embedding"],
    "errors": [
        "ClipExtError",
        "DimensionMismatchError",
        "EmbeddingError",
        "EmbeddingSpaceMismatchError",
        "FilterError",
        "ImageLoadError",
        "ImageNotFoundError",
        "ModelLoadError",
        "RowTooLargeError",
        "StoreError",
        "StoreLockedError",
        "TextTooLongError",
        "UnknownModelError",
    ],
    "images": ["ImageFailure", "load_image", "load_images"],
    "ingest": ["IngestReport", "aingest_images", "ingest_images"],
    "models": ["EmbeddingSpace", "ModelSpec", "list_models", "resolve_model"],
    "nodes": ["load_image_nodes"],
    "retriever": ["CLIPRetriever", "create_retriever"],
    "store": ["CLIPMilvusVectorStore", "create_vector_store"],
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [  # noqa: PLE0604 - the table above, which a test compares with the type checker's imports
    "__version__",
    *sorted(_HOME_OF),
]


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_HOME_OF[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted(__all__)
