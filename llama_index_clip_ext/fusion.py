"""Several rankings of the same things made one, by rank."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from typing import TypeVar

T = TypeVar("T")

_K = 60
# Of what one ranking lists first.
FIRST_RANK_SCORE = 1 / (_K + 1)


def reciprocal_rank_fusion(
    rankings: Sequence[Sequence[T]],
    *,
    key: Callable[[T], Hashable],
) -> list[tuple[T, float]]:
    """Fuse rankings whose scores cannot be compared, such as cosines and BM25.

    The score of an item is the sum of ``1 / (60 + rank)`` over the rankings that list it, with
    ranks from 1. Cormack, Clarke and Büttcher, "Reciprocal Rank Fusion outperforms Condorcet and
    individual Rank Learning Methods", SIGIR 2009, which is also where 60 is from.

    Args:
        rankings: Items, best first. Of one that a ranking lists twice, the better rank counts.
        key: What tells items apart, such as a node's id.

    Returns:
        Each item once, as it was first seen, with its score, best first; of equal scores, the one
        first seen comes first.
    """
    items: dict[Hashable, T] = {}
    scores: dict[Hashable, float] = {}
    for ranking in rankings:
        seen: set[Hashable] = set()
        for rank, item in enumerate(ranking, start=1):
            name = key(item)
            if name in seen:
                continue
            seen.add(name)
            items.setdefault(name, item)
            scores[name] = scores.get(name, 0.0) + 1 / (_K + rank)
    # A stable sort keeps the first seen first.
    return [(items[name], scores[name]) for name in sorted(scores, key=lambda name: -scores[name])]


def relative_score_fusion(
    rankings: Sequence[Sequence[tuple[T, float]]],
    *,
    weights: Sequence[float] | None = None,
    key: Callable[[T], Hashable],
) -> list[tuple[T, float]]:
    """Fuse rankings by their scores, each ranking's scaled to run from 0 (last) to 1 (first).

    Other than by rank, a hit that stands far out in one ranking stands out in the result; the
    scales of the scores still do not matter. It is what LlamaIndex's ``QueryFusionRetriever`` and
    Weaviate call relative score fusion.

    Args:
        rankings: Items with their scores, no item twice in one ranking.
        weights: One per ranking, not negative; ``None`` counts all alike. A ranking of weight 0 is
            left out, with what it alone lists.
        key: What tells items apart, such as a node's id.

    Returns:
        Each item once, as it was first seen, with the weighted sum of its scaled scores, best
        first; of equal sums, the one first seen comes first.

    Raises:
        ValueError: If the weights do not fit the rankings.
    """
    items: dict[Hashable, T] = {}
    sums: dict[Hashable, float] = {}
    for ranking, weight in zip(rankings, _checked(weights, len(rankings)), strict=True):
        if not weight or not ranking:
            continue
        low, high = (bound(score for _, score in ranking) for bound in (min, max))
        for item, score in ranking:
            name = key(item)
            items.setdefault(name, item)
            scaled = (score - low) / (high - low) if high > low else 1.0
            sums[name] = sums.get(name, 0.0) + weight * scaled
    return [(items[name], sums[name]) for name in sorted(sums, key=lambda name: -sums[name])]


def _checked(weights: Sequence[float] | None, count: int) -> Sequence[float]:
    if weights is None:
        return [1.0] * count
    if len(weights) != count:
        raise ValueError(f"{len(weights)} weights for {count} rankings, expected one each")
    if not all(math.isfinite(weight) and weight >= 0 for weight in weights):
        raise ValueError(f"weights are {list(weights)}, expected numbers from 0 up")
    if weights and not any(weights):
        raise ValueError("all weights are 0: nothing would be found")
    return weights
