"""How good a ranking is, in numbers that can be checked by hand."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .vectors import Rows

# How far a float32 cosine may be from the same one, summed in another order.
_ROUNDING = 1e-5


@dataclass(frozen=True)
class Estimate:
    """A mean over queries, and how far it may be off by the chance of which queries were asked.

    Attributes:
        value: The mean.
        low: Lower end of its confidence interval.
        high: Upper end.
    """

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


@dataclass(frozen=True)
class IndexRecall:
    """How much of the exact answer an index finds.

    Attributes:
        k: Hits asked for per query.
        mean: Mean share of the exact k nearest among the hits.
        min: The share of the query that fared worst.
        n_queries: Queries asked.
        n_vectors: Vectors that each was compared with, one by one.
    """

    k: int
    mean: float
    min: float
    n_queries: int
    n_vectors: int

    def __str__(self) -> str:
        return (
            f"recall@{self.k} against exact search: {self.mean:.3f} (worst query {self.min:.3f}; "
            f"{self.n_queries} queries, {self.n_vectors} vectors)"
        )


def bootstrap_means(
    scores: Mapping[str, Sequence[float]], *, confidence: float, n_resamples: int, seed: int
) -> dict[str, Estimate]:
    """Estimate the mean of each metric, with a percentile bootstrap interval over the queries.

    Args:
        scores: Each metric's score of each query; as many for every metric, at least one.
        confidence: Share of resamples whose means the interval holds, such as 0.95.
        n_resamples: Resamples, each of as many queries as there are, drawn with replacement.
        seed: Same seed, same intervals.

    Source:
        Efron and Tibshirani 1993, An Introduction to the Bootstrap, chapter 13.
    """
    rng = np.random.default_rng(seed)
    table = np.array([*scores.values()], dtype=np.float64)
    n_queries = table.shape[1]
    means = np.empty((n_resamples, len(table)))
    for row in means:  # One at a time: an array of all would take gigabytes for a large benchmark.
        row[:] = table[:, rng.integers(n_queries, size=n_queries)].mean(axis=1)
    tail = (1 - confidence) / 2
    ends = np.quantile(means, [tail, 1 - tail], axis=0)
    return {
        name: Estimate(float(value), float(low), float(high))
        for name, value, low, high in zip(scores, table.mean(axis=1), *ends, strict=True)
    }


def nearest(queries: Rows, candidates: Rows, k: int) -> NDArray[np.intp]:
    """Find the k candidates of the highest dot product for each query, exactly.

    Args:
        queries: Shape ``(n, dim)``.
        candidates: Shape ``(m, dim)``.
        k: At least 1; more than ``m`` are all.

    Returns:
        Positions of candidates, best first. Shape ``(n, min(k, m))``.
    """
    ranking = np.empty((len(queries), min(k, len(candidates))), dtype=np.intp)
    for start in range(0, len(queries), 256):
        scores = queries[start : start + 256] @ candidates.T
        top = np.argpartition(-scores, ranking.shape[1] - 1, axis=1)[:, : ranking.shape[1]]
        order = np.argsort(-np.take_along_axis(scores, top, axis=1), axis=1, kind="stable")
        ranking[start : start + 256] = np.take_along_axis(top, order, axis=1)
    return ranking


def neighbour_overlap(exact: Rows, approximate: Rows, k: int) -> float:
    """Say how many of each row's nearest rows are found by other vectors of the same items.

    A neighbour is right if it is as near as the k-th nearest: of equal vectors, any will do.

    Args:
        exact: Unit-length rows. Shape ``(n, dim)``.
        approximate: The same items by another model. Shape ``(n, any)``.
        k: Neighbours of a row, itself left out; more than there are, are all.

    Returns:
        The mean share, from 0 to 1.
    """
    k = min(k, len(exact) - 1)
    wanted, cosines = exact @ exact.T, approximate @ approximate.T
    for table in (wanted, cosines):
        np.fill_diagonal(table, -np.inf)
    found = np.argpartition(-cosines, k - 1, axis=1)[:, :k]
    threshold = np.partition(wanted, -k, axis=1)[:, -k] - _ROUNDING
    return float((np.take_along_axis(wanted, found, axis=1) >= threshold[:, None]).mean())


def index_recall(
    queries: Rows,
    hits: Sequence[Sequence[str]],
    batches: Iterable[tuple[Sequence[str], Rows]],
    k: int,
) -> IndexRecall:
    """Compare an index's hits with exact search over the same vectors.

    A hit is right if it is as near as the k-th nearest: of equal vectors, any will do.

    Args:
        queries: Shape ``(n, dim)``.
        hits: For each query, the ids that the index found, at most ``k``.
        batches: The ids and vectors of the whole collection, a part at a time; only one is held.
        k: Hits asked for.

    Source:
        Aumüller, Bernhardsson and Faithfull 2018, ANN-Benchmarks, section 2 (recall by
        distance). arXiv:1807.05614
    """
    found = np.full((len(queries), k), -np.inf, dtype=np.float32)
    best = found.copy()
    places = defaultdict(list)
    for query, ids in enumerate(hits):
        for rank, hit in enumerate(ids):
            places[hit].append((query, rank))
    n_vectors = 0
    for ids, vectors in batches:
        scores = queries @ vectors.T
        best = np.partition(np.concatenate([best, scores], axis=1), -k, axis=1)[:, -k:]
        for column, hit in enumerate(ids):
            for place in places.get(hit, ()):
                found[place] = scores[place[0], column]
        n_vectors += len(ids)
    wanted = min(k, n_vectors)
    threshold = np.sort(best, axis=1)[:, -wanted] - _ROUNDING
    recalls = (found >= threshold[:, None]).sum(axis=1) / wanted
    return IndexRecall(k, float(recalls.mean()), float(recalls.min()), len(queries), n_vectors)
