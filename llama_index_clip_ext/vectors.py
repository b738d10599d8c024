"""Vectors, checkable by hand: scaled to unit length, and refused where they have no direction."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from .errors import DimensionMismatchError, EmbeddingError

Rows: TypeAlias = NDArray[np.float32]

# How far a vector's length may be from 1: float32 rounding of a long vector stays far below.
_UNIT_TOLERANCE = 1e-3

# A sum of weighted unit vectors that is shorter than this points anywhere.
_MIN_COMBINED_LENGTH = 1e-4


def l2_normalize(features: NDArray[Any]) -> Rows:
    """Scale rows to unit length, in float32.

    Args:
        features: Shape ``(n, dim)``.

    Returns:
        Shape ``(n, dim)``.

    Raises:
        EmbeddingError: If a row is zero, NaN or infinite: it has no direction.
    """
    rows = np.asarray(features, dtype=np.float32)
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    bad = np.flatnonzero(~np.isfinite(norms[:, 0]) | (norms[:, 0] == 0))
    if bad.size:
        raise EmbeddingError(
            f"row {bad[0]} of {len(rows)} has length {norms[bad[0], 0]}: it has no "
            "direction; if a model made it, try dtype='float32'"
        )
    return np.asarray(rows / norms, dtype=np.float32)


def combine(embeddings: NDArray[Any], weights: Sequence[float]) -> Rows:
    """Add embeddings up, each with its weight, and scale the sum to unit length.

    Args:
        embeddings: Unit-length rows. Shape ``(n, dim)``.
        weights: One per row; below zero leads away from it.

    Returns:
        Shape ``(dim,)``.

    Raises:
        EmbeddingError: If they cancel each other out, so that nothing is left to search with.
    """
    total = np.asarray(weights, dtype=np.float64) @ np.asarray(embeddings, dtype=np.float64)
    # Rounding leaves a length of 1e-7 where a text is taken from itself.
    if np.linalg.norm(total) < _MIN_COMBINED_LENGTH:
        raise EmbeddingError(
            "what is asked for and what is to be avoided cancel each other out: nothing is left to "
            "search with; use other items or weights"
        )
    row: Rows = l2_normalize(total[None])[0]
    return row


def check_vector(vector: Sequence[float], dim: int, name: str) -> list[float]:
    """Return a vector as floats, after refusing what would poison a search.

    Raises:
        DimensionMismatchError: If it has another dimension.
        EmbeddingError: If it is not finite or not of unit length.
    """
    array = np.asarray(vector, dtype=np.float32)
    if array.shape != (dim,):
        raise DimensionMismatchError(
            f"{name}: the embedding has shape {array.shape}, the collection expects ({dim},)",
            expected=dim,
            actual=array.shape[-1] if array.ndim else 0,
        )
    length = float(np.linalg.norm(array))
    if not np.isfinite(length):
        raise EmbeddingError(f"{name}: the embedding contains NaN or infinity")
    if abs(length - 1) > _UNIT_TOLERANCE:
        raise EmbeddingError(
            f"{name}: the embedding has length {length:.4g}, expected 1; normalise it, or use this "
            "package's embedding models, which do"
        )
    components: list[float] = array.tolist()
    return components
