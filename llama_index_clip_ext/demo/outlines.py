"""The outlines of the shapes, as polygons in a circle of radius 1, y pointing down."""

from __future__ import annotations

import math
from typing import TypeAlias

Point: TypeAlias = tuple[float, float]
Outline: TypeAlias = list[Point]


def _round(radius: float, *, x: float = 0.0, y: float = 0.0) -> Outline:
    turns = [math.tau * step / 90 for step in range(90)]
    return [(x + radius * math.cos(turn), y + radius * math.sin(turn)) for turn in turns]


def _regular(corners: int, *radii: float) -> Outline:
    """Corners at equal angles from the top on, at the radii in turn."""
    return [
        (
            radii[corner % len(radii)] * math.sin(math.tau * corner / corners),
            -radii[corner % len(radii)] * math.cos(math.tau * corner / corners),
        )
        for corner in range(corners)
    ]


def _heart() -> Outline:
    """Source: https://mathworld.wolfram.com/HeartCurve.html, the sixth curve."""
    turns = [math.tau * step / 90 for step in range(90)]
    return [
        (
            math.sin(turn) ** 3,
            -(13 * math.cos(turn) - 5 * math.cos(2 * turn) - 2 * math.cos(3 * turn)
              - math.cos(4 * turn)) / 16 - 0.12,
        )
        for turn in turns
    ]  # fmt: skip


_ARM = 0.3
_CROSS = [
    (-_ARM, -1.0), (_ARM, -1.0), (_ARM, -_ARM), (1.0, -_ARM), (1.0, _ARM), (_ARM, _ARM),
    (_ARM, 1.0), (-_ARM, 1.0), (-_ARM, _ARM), (-1.0, _ARM), (-1.0, -_ARM), (-_ARM, -_ARM),
]  # fmt: skip

OUTLINES: dict[str, list[Outline]] = {
    "circle": [_round(0.95)],
    "square": [[(-0.8, -0.8), (0.8, -0.8), (0.8, 0.8), (-0.8, 0.8)]],
    "triangle": [_regular(3, 1.05)],
    "star": [_regular(10, 1.05, 0.42)],
    "heart": [_heart()],
    "cross": [_CROSS],
    "ring": [_round(0.98), _round(0.58)],
    "moon": [_round(0.98), _round(0.82, x=0.48, y=-0.12)],
}
"""A shape is its first polygon without the others."""
