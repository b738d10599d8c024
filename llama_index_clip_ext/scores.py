"""What a score means: cutoffs, calibration, and what is kept of it in a hit's metadata."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from llama_index.core.schema import NodeWithScore

from .models import ScoreStatistics
from .notes import MODALITY_KEY, SIMILARITY_KEY, note
from .queries import AskedBy
from .rows import Modality


def check_cutoffs(
    similarity_cutoff: float | None,
    relative_cutoff: float | None,
    is_calibrated: bool,
    has_cosines: bool,
) -> None:
    """Refuse cutoffs that mean nothing.

    Raises:
        ValueError: If ``relative_cutoff`` is not from 0 to 1, no cosine reaches
            ``similarity_cutoff``, or the scores are ranks.
    """
    if relative_cutoff is not None and not 0 <= relative_cutoff <= 1:
        raise ValueError(f"relative_cutoff is {relative_cutoff}, expected 0 to 1")
    if similarity_cutoff is not None and math.isnan(similarity_cutoff):
        raise ValueError("similarity_cutoff is NaN, expected a number")
    if similarity_cutoff is not None and similarity_cutoff > 1 and not is_calibrated:
        raise ValueError(
            f"similarity_cutoff is {similarity_cutoff}, and no cosine is above 1; only with "
            "calibrated=True it is a number of standard deviations"
        )
    asked = {
        "similarity_cutoff": similarity_cutoff is not None,
        "relative_cutoff": relative_cutoff is not None,
        "calibrated": is_calibrated,
    }
    given = [name for name, is_given in asked.items() if is_given]
    if given and not has_cosines:
        raise ValueError(
            f"{given[0]} is for cosines, and words are not scored by them; use "
            "vector_store_query_mode='default' or 'mmr'"
        )


def cut_off(
    hits: list[NodeWithScore], similarity_cutoff: float | None, relative_cutoff: float | None
) -> list[NodeWithScore]:
    """Leave out hits below a score, and below a share of the best score where that is positive."""
    scores = [hit.score or 0.0 for hit in hits]
    lowest = float("-inf") if similarity_cutoff is None else similarity_cutoff
    best = max(scores, default=0.0)
    if relative_cutoff is not None and best > 0:
        lowest = max(lowest, relative_cutoff * best)
    return [hit for hit, score in zip(hits, scores, strict=True) if score >= lowest]


def calibrate(
    hits: Sequence[NodeWithScore],
    statistics: Mapping[str, ScoreStatistics],
    asked: AskedBy,
    modality: Modality,
) -> list[NodeWithScore]:
    """Replace cosines by standard deviations above what unrelated pairs score.

    Raises:
        ValueError: If this direction was not measured.
    """
    if not hits:
        return []
    direction = f"{asked}->{modality}"
    if direction not in statistics:
        raise ValueError(
            f"{direction} is not calibrated, only {', '.join(statistics)}: there were too few "
            f"{modality}s in the collection; add some, and call calibrate_scores again"
        )
    mean, std = statistics[direction].mean, statistics[direction].std
    return [NodeWithScore(node=hit.node, score=((hit.score or 0.0) - mean) / std) for hit in hits]


def annotate(hits: Sequence[NodeWithScore], modality: Modality, *, has_cosines: bool) -> None:
    """Keep the modality, and a score that is a cosine, in each hit's metadata for later."""
    for hit in hits:
        note(hit.node, {MODALITY_KEY: modality})
        if has_cosines:
            note(hit.node, {SIMILARITY_KEY: hit.score})
