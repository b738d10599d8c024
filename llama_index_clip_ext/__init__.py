"""Search pictures by words and by pictures, in Chinese and English, with LlamaIndex and Milvus.

Names are handed out on first use, so that importing the package stays quick and loads no torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .checkpoint import download_model
    from .dual_encoder import ImageEmbeddings
    from .embedding import ChineseCLIPEmbedding, CLIPEmbedding, load_embedding
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

__all__ = [
    "CLIPEmbedding",
    "CLIPMilvusVectorStore",
    "CLIPRetriever",
    "ChineseCLIPEmbedding",
    "ClipExtError",
    "DimensionMismatchError",
    "EmbeddingError",
    "EmbeddingSpace",
    "EmbeddingSpaceMismatchError",
    "FilterError",
    "ImageEmbeddings",
    "ImageFailure",
    "ImageLoadError",
    "ImageNotFoundError",
    "IngestReport",
    "ModelLoadError",
    "ModelSpec",
    "RowTooLargeError",
    "StoreError",
    "StoreLockedError",
    "TextTooLongError",
    "UnknownModelError",
    "aingest_images",
    "create_retriever",
    "create_vector_store",
    "download_model",
    "ingest_images",
    "list_models",
    "load_embedding",
    "load_image",
    "load_image_nodes",
    "load_images",
    "resolve_model",
]

_HOME_OF = {
    **dict.fromkeys(("CLIPEmbedding", "ChineseCLIPEmbedding", "load_embedding"), "embedding"),
    **dict.fromkeys(("CLIPMilvusVectorStore", "create_vector_store"), "store"),
    **dict.fromkeys(("CLIPRetriever", "create_retriever"), "retriever"),
    **dict.fromkeys(("ImageFailure", "load_image", "load_images"), "images"),
    **dict.fromkeys(("IngestReport", "aingest_images", "ingest_images"), "ingest"),
    **dict.fromkeys(("EmbeddingSpace", "ModelSpec", "list_models", "resolve_model"), "models"),
    "ImageEmbeddings": "dual_encoder",
    "download_model": "checkpoint",
    "load_image_nodes": "nodes",
}


if not TYPE_CHECKING:  # To a type checker, a name that is not imported above is a mistake.

    def __getattr__(name: str) -> Any:
        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(import_module(f".{_HOME_OF.get(name, 'errors')}", __name__), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
