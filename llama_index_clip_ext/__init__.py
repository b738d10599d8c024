"""Search pictures by words and by pictures, in Chinese and English, with LlamaIndex and Milvus.

Names are handed out on first use, so that importing the package stays quick and loads no torch.
"""

import sys
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .bilingual import BilingualRetriever, create_bilingual_retriever
    from .calibration import acalibrate_scores, calibrate_scores
    from .captions import ImageCaptioner
    from .checkpoint import download_model
    from .dual_encoder import DualEncoderEmbedding, ImageEmbeddings
    from .embedding import ChineseCLIPEmbedding, CLIPEmbedding, load_embedding
    from .errors import (
        AnswerTooLargeError,
        CaptionError,
        ClipExtError,
        CollectionNotFoundError,
        DimensionMismatchError,
        EmbeddingError,
        EmbeddingSpaceMismatchError,
        FilterError,
        ImageLoadError,
        ImageNotFoundError,
        IngestInterrupted,
        ModelLoadError,
        QuantizationError,
        RowTooLargeError,
        StoreError,
        StoreLockedError,
        StoreUnavailableError,
        SyncError,
        SyncRunningError,
        TextTooLongError,
        UnknownModelError,
    )
    from .evaluation import RetrievalEvaluation, aevaluate_retrieval, evaluate_retrieval
    from .images import ImageFailure, load_image, load_images
    from .index import CLIPVectorStoreIndex
    from .ingest import IngestReport, aingest_images, ingest_images
    from .int8 import Int8Report
    from .metrics import Estimate, IndexRecall
    from .models import EmbeddingSpace, ModelSpec, ScoreStatistics, list_models, resolve_model
    from .nodes import load_image_nodes
    from .postprocessors import NearDuplicatePostprocessor
    from .quantization import aquantize_images, quantize_images
    from .retriever import CLIPRetriever, create_retriever
    from .sheet import show_results
    from .store import CLIPMilvusVectorStore, create_vector_store
    from .sync import SyncReport, async_images, sync_images
    from .tags import ZeroShotTagger
    from .throughput import ThroughputReport, measure_throughput
    from .transforms import TextsOnly

__version__ = "0.1.0"

__all__ = [
    "AnswerTooLargeError",
    "BilingualRetriever",
    "CLIPEmbedding",
    "CLIPMilvusVectorStore",
    "CLIPRetriever",
    "CLIPVectorStoreIndex",
    "CaptionError",
    "ChineseCLIPEmbedding",
    "ClipExtError",
    "CollectionNotFoundError",
    "DimensionMismatchError",
    "DualEncoderEmbedding",
    "EmbeddingError",
    "EmbeddingSpace",
    "EmbeddingSpaceMismatchError",
    "Estimate",
    "FilterError",
    "ImageCaptioner",
    "ImageEmbeddings",
    "ImageFailure",
    "ImageLoadError",
    "ImageNotFoundError",
    "IndexRecall",
    "IngestInterrupted",
    "IngestReport",
    "Int8Report",
    "ModelLoadError",
    "ModelSpec",
    "NearDuplicatePostprocessor",
    "QuantizationError",
    "RetrievalEvaluation",
    "RowTooLargeError",
    "ScoreStatistics",
    "StoreError",
    "StoreLockedError",
    "StoreUnavailableError",
    "SyncError",
    "SyncReport",
    "SyncRunningError",
    "TextTooLongError",
    "TextsOnly",
    "ThroughputReport",
    "UnknownModelError",
    "ZeroShotTagger",
    "acalibrate_scores",
    "aevaluate_retrieval",
    "aingest_images",
    "aquantize_images",
    "async_images",
    "calibrate_scores",
    "create_bilingual_retriever",
    "create_retriever",
    "create_vector_store",
    "download_model",
    "evaluate_retrieval",
    "ingest_images",
    "list_models",
    "load_embedding",
    "load_image",
    "load_image_nodes",
    "load_images",
    "measure_throughput",
    "quantize_images",
    "resolve_model",
    "show_results",
    "sync_images",
]

# Each room's public names; those of `errors` are all the others.
_NAMES_OF = {
    "bilingual": ("BilingualRetriever", "create_bilingual_retriever"),
    "calibration": ("acalibrate_scores", "calibrate_scores"),
    "captions": ("ImageCaptioner",),
    "checkpoint": ("download_model",),
    "dual_encoder": ("DualEncoderEmbedding", "ImageEmbeddings"),
    "embedding": ("ChineseCLIPEmbedding", "CLIPEmbedding", "load_embedding"),
    "evaluation": ("RetrievalEvaluation", "aevaluate_retrieval", "evaluate_retrieval"),
    "images": ("ImageFailure", "load_image", "load_images"),
    "index": ("CLIPVectorStoreIndex",),
    "ingest": ("IngestReport", "aingest_images", "ingest_images"),
    "int8": ("Int8Report",),
    "metrics": ("Estimate", "IndexRecall"),
    "models": ("EmbeddingSpace", "ModelSpec", "ScoreStatistics", "list_models", "resolve_model"),
    "nodes": ("load_image_nodes",),
    "postprocessors": ("NearDuplicatePostprocessor",),
    "quantization": ("aquantize_images", "quantize_images"),
    "retriever": ("CLIPRetriever", "create_retriever"),
    "sheet": ("show_results",),
    "store": ("CLIPMilvusVectorStore", "create_vector_store"),
    "sync": ("SyncReport", "async_images", "sync_images"),
    "tags": ("ZeroShotTagger",),
    "throughput": ("ThroughputReport", "measure_throughput"),
    "transforms": ("TextsOnly",),
}
_HOME_OF = {name: room for room, names in _NAMES_OF.items() for name in names}


def _register_index() -> None:
    """Have load_index_from_storage know our index, whichever names are imported."""
    if "llama_index.core" in sys.modules:
        import_module(".index_struct", __name__)


_register_index()

if not TYPE_CHECKING:  # To a type checker, a name that is not imported above is a mistake.

    def __getattr__(name: str) -> Any:
        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = getattr(import_module(f".{_HOME_OF.get(name, 'errors')}", __name__), name)
        _register_index()
        return value


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
