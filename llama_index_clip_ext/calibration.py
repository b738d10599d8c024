"""Measures what unrelated pairs of a collection score, so that scores can be compared."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from llama_index.core.schema import BaseNode, MetadataMode
from numpy.typing import NDArray

from .background import write_in_own_thread
from .dual_encoder import DualEncoderEmbedding
from .models import ScoreStatistics
from .rows import Modality
from .store import CLIPMilvusVectorStore, check_pair
from .vectors import Rows

# Fewer pairs would make a standard deviation of chance.
_MIN_SAMPLE = 10

# Of float32 cosines: what varies by less does not vary.
_ROUNDING = 1e-6


def calibrate_scores(
    embed_model: DualEncoderEmbedding,
    vector_store: CLIPMilvusVectorStore,
    *,
    texts: Sequence[str] | None = None,
    sample_size: int = 500,
    seed: int = 0,
) -> dict[str, ScoreStatistics]:
    """Measure what unrelated pairs score in this collection, and keep it in the passport.

    Cosines of a text with images lie far below those of an image with images. After this, a
    retriever made with ``calibrated=True`` scores by standard deviations above the mean of
    unrelated pairs: a hit of 3 stands out as much whichever way it was asked for. (In speaker
    verification this is called Z-norm: Auckenthaler et al. 2000, section 3.)

    Args:
        embed_model: The model that the store was made for.
        vector_store: The store, as `create_vector_store` returns it.
        texts: Queries such as users ask; ``None`` takes the captions and texts in the collection.
        sample_size: Images, and texts, that are compared, at most.
        seed: Which of them; the same seed measures the same.

    Returns:
        The statistics by direction, such as ``text->image``, ``image->image`` and
        ``composed->image`` (a text and an image that count alike).

    Raises:
        EmbeddingSpaceMismatchError: If the store holds vectors of another model.
        StoreError: If another program made the collection.
        ValueError: If there are too few images and texts, or too many copies of one, to measure
            anything.
    """
    check_pair(embed_model, vector_store)
    if isinstance(texts, str):
        raise TypeError("texts is one str, expected a list of queries such as users ask")
    images, stored = (
        vector_store.sample_nodes(modality, sample_size, seed=seed)
        for modality in ("image", "text")
    )
    if texts is None:
        texts = [node.get_content(MetadataMode.NONE) for node in (*stored, *images)]
    texts = list(dict.fromkeys(text for text in texts if text.strip()))[:sample_size]
    if len(images) < _MIN_SAMPLE or len(texts) < _MIN_SAMPLE:
        raise ValueError(
            f"cannot calibrate with {len(images)} images and {len(texts)} texts, at least "
            f"{_MIN_SAMPLE} of each are needed; pass texts=[...] such as users ask"
        )
    asked = list(_queries(embed_model, texts, images, seed))
    targets: dict[Modality, list[BaseNode]] = {"image": images, "text": stored}
    statistics = {
        f"{kind}->{modality}": _statistics(rows, names, nodes)
        for modality, nodes in targets.items()
        if len(nodes) >= _MIN_SAMPLE
        for kind, rows, names in asked
    }
    vector_store.save_calibration(statistics)
    return statistics


async def acalibrate_scores(
    embed_model: DualEncoderEmbedding,
    vector_store: CLIPMilvusVectorStore,
    *,
    texts: Sequence[str] | None = None,
    sample_size: int = 500,
    seed: int = 0,
) -> dict[str, ScoreStatistics]:
    """Do what `calibrate_scores` does, off the event loop."""
    return await write_in_own_thread(
        lambda: calibrate_scores(
            embed_model,
            vector_store,
            texts=texts,
            sample_size=sample_size,
            seed=seed,
        )
    )


def _queries(
    embed_model: DualEncoderEmbedding, texts: list[str], images: list[BaseNode], seed: int
) -> Iterator[tuple[str, Rows, list[set[str]]]]:
    """Yield, by what is asked with, the queries' rows and what each is related to."""
    text_rows = np.array(embed_model.get_text_embedding_batch(texts), dtype=np.float32)
    image_rows = _embeddings(images)
    image_names = [_names(node) for node in images]
    yield "text", text_rows, [{text} for text in texts]
    yield "image", image_rows, image_names
    count = max(len(texts), len(images))
    rng = np.random.default_rng(seed)
    pairs = [
        rng.permutation(np.resize(np.arange(size), count)) for size in (len(texts), len(images))
    ]
    sums = text_rows[pairs[0]] + image_rows[pairs[1]]
    rows = sums / np.linalg.norm(sums, axis=1, keepdims=True)
    yield "composed", rows, [{texts[t]} | image_names[i] for t, i in zip(*pairs, strict=True)]


def _statistics(rows: Rows, names: list[set[str]], nodes: list[BaseNode]) -> ScoreStatistics:
    """Measure the cosines of all pairs but those of an image or text with itself or its own.

    Raises:
        ValueError: If there are too few, or all of them are the same.
    """
    cosines = rows @ _embeddings(nodes).T
    targets = [_names(node) for node in nodes]
    is_related = np.array([[bool(own & target) for target in targets] for own in names])
    unrelated: NDArray[np.float32] = cosines[~is_related]
    if unrelated.size < _MIN_SAMPLE or unrelated.std() < _ROUNDING:
        raise ValueError(
            f"cannot calibrate: of {cosines.size} pairs {unrelated.size} are unrelated, and they "
            "score alike; are these copies of one image, or of one text?"
        )
    return ScoreStatistics(mean=float(unrelated.mean()), std=float(unrelated.std()))


def _names(node: BaseNode) -> set[str]:
    """Return what tells a node from unrelated ones: its content, and its caption or text."""
    names = {node.metadata.get("content_hash", node.node_id), node.get_content(MetadataMode.NONE)}
    return names - {""}


def _embeddings(nodes: Sequence[BaseNode]) -> Rows:
    return np.array([node.embedding for node in nodes], dtype=np.float32)
