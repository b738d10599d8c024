"""Queries made of several texts and images, as one embedding in a LlamaIndex QueryBundle."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from typing import Any, Literal, Protocol, TypeAlias

import numpy as np
from llama_index.core.base.embeddings.base import Embedding
from llama_index.core.schema import QueryBundle

from .provenance import remember, tower_of
from .sources import ImageSource, describe_source
from .vectors import Rows, combine

# What a query is made of: scores of one kind cannot be compared with those of another.
AskedBy: TypeAlias = Literal["text", "image", "composed"]


class _Embeds(Protocol):
    """The part of a `DualEncoderEmbedding` that is needed here."""

    def get_text_embedding_batch(self, texts: list[str]) -> list[Embedding]: ...

    def get_image_embedding_batch(self, img_file_paths: list[ImageSource]) -> list[Embedding]: ...


def compose_query(
    embed_model: _Embeds,
    *,
    text: str | Sequence[str] | None,
    image: ImageSource | Sequence[ImageSource] | None,
    weights: Sequence[float] | None,
    minus: Sequence[str | ImageSource],
    minus_weight: float,
) -> QueryBundle:
    """Do the work of `DualEncoderEmbedding.compose_query`."""
    texts = [text] if isinstance(text, str) else list(text or ())
    images = list(image) if isinstance(image, (list, tuple)) else [image] * (image is not None)
    if not texts and not images:
        raise ValueError(
            "the query is empty: expected a text, an image, or both; minus alone asks for nothing"
        )
    weights = [1.0] * (len(texts) + len(images)) if weights is None else list(weights)
    _check_weights(weights, texts, images)
    if isinstance(minus, (str, bytes, os.PathLike)):
        raise TypeError(f"minus is one {type(minus).__name__}, expected a list of texts and images")
    if any(isinstance(one, str) and not one.strip() for one in (*texts, *minus)):
        raise ValueError("a text of the query is blank; leave it out")
    if not (math.isfinite(minus_weight) and minus_weight >= 0):
        raise ValueError(f"minus_weight is {minus_weight}, expected a number from 0 up")
    # What counts nothing is no part of the query: of its words, and of what its scores mean.
    of_texts, of_images = weights[: len(texts)], weights[len(texts) :]
    texts, text_weights = _weighty(texts, of_texts)
    images, image_weights = _weighty(images, of_images)
    # A string in minus is a text, whatever it looks like: a text never opens a file.
    not_texts = [item for item in minus if isinstance(item, str)]
    not_images = [item for item in minus if not isinstance(item, str)]
    rows = np.array(
        [
            *embed_model.get_text_embedding_batch([*texts, *not_texts]),
            *embed_model.get_image_embedding_batch([*images, *not_images]),
        ]
    )
    away = -float(minus_weight)
    signed = [
        *(*text_weights, *[away] * len(not_texts)),
        *(*image_weights, *[away] * len(not_images)),
    ]
    row = combine(rows, signed)
    if not images and not not_images:
        remember([row], "text")  # So is what is made of texts alone.
    return QueryBundle(
        ", ".join(texts),
        image_path=describe_source(images[0]) if images else None,
        embedding=row.tolist(),
    )


def rocchio(
    query: Embedding | None, more: Sequence[Any], less: Sequence[Any], weights: Sequence[float]
) -> Rows:
    """Move a query towards some embeddings and away from others.

    Args:
        query: Shape ``(dim,)``; ``None`` starts from the examples alone.
        more: Shape ``(n, dim)``; may be empty.
        less: Shape ``(m, dim)``; may be empty.
        weights: Of the query, of the mean of ``more``, and of the mean of ``less``.

    Returns:
        Unit length. Shape ``(dim,)``.

    Source:
        Rocchio 1971, as in Manning, Raghavan and Schütze, "Introduction to Information Retrieval"
        (2008), equation 9.3.
    """
    alpha, beta, gamma = weights
    terms: list[tuple[float, Sequence[Any]]] = [(beta, more), (-gamma, less)]
    if query is not None:
        terms.append((alpha, [query]))
    rows = [np.mean(vectors, axis=0) for _, vectors in terms if len(vectors)]
    return combine(np.array(rows), [weight for weight, vectors in terms if len(vectors)])


def asked_by(bundle: QueryBundle) -> AskedBy | None:
    """Say what a query is made of; ``None`` for an embedding alone of which that is not known."""
    if bundle.image_path:
        return "composed" if bundle.query_str.strip() else "image"
    tower = None if bundle.embedding is None else tower_of(bundle.embedding)
    if tower is None and not bundle.query_str.strip() and bundle.embedding is not None:
        return None
    return tower or "text"


def _weighty(items: list[Any], weights: Sequence[float]) -> tuple[list[Any], list[float]]:
    """Leave out items of no weight."""
    kept = [(item, weight) for item, weight in zip(items, weights, strict=True) if weight]
    return [item for item, _ in kept], [weight for _, weight in kept]


def _check_weights(weights: list[float], texts: list[str], images: list[Any]) -> None:
    if len(weights) != len(texts) + len(images):
        raise ValueError(
            f"{len(weights)} weights for {len(texts)} texts and {len(images)} images, expected "
            "one each, the texts' first"
        )
    if not all(math.isfinite(weight) and weight >= 0 for weight in weights):
        raise ValueError(
            f"weights are {weights}, expected numbers from 0 up; what to avoid goes into minus"
        )
    if not any(weights):
        raise ValueError("all weights are 0: nothing would be asked for")
