"""Draws search results as one picture, for a person to judge at a glance."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont, ImageOps

_TILE, _GAP, _TITLE, _LABEL = 132, 14, 38, 34
_RIGHT, _OTHER, _INK, _PAPER = (34, 139, 34), (190, 190, 190), (30, 30, 30), (255, 255, 255)
# Noto Sans CJK SC, cut down to ASCII and the Chinese characters of the demo (fonts/NOTICE).
_FONT = Path(__file__).parent / "fonts" / "noto-sans-sc-subset.otf"


@dataclass(frozen=True)
class Tile:
    """One picture of a row.

    Attributes:
        image: The picture.
        label: A line below it.
        is_right: Whether it is what was asked for: framed in green, else in grey; ``None`` has no
            frame.
    """

    image: Image.Image
    label: str
    is_right: bool | None = None


def draw_contact_sheet(
    rows: Sequence[tuple[str, Sequence[Tile]]], *, legend: str = ""
) -> Image.Image:
    """Draw rows of pictures, each with a title above it.

    Args:
        rows: Title and tiles, from left to right.
        legend: A line above all rows.
    """
    columns = max(len(tiles) for _, tiles in rows)
    row_height = _TITLE + _TILE + _LABEL + _GAP
    width = columns * (_TILE + _GAP) + _GAP
    head = _TITLE if legend else 0
    sheet = Image.new("RGB", (width, head + row_height * len(rows) + _GAP), _PAPER)
    draw = ImageDraw.Draw(sheet)
    title_font, label_font = (ImageFont.truetype(str(_FONT), size) for size in (19, 14))
    draw.text((_GAP, _GAP), legend, _INK, label_font)
    for index, (title, tiles) in enumerate(rows):
        top = head + _GAP + index * row_height
        draw.text((_GAP, top), title, _INK, title_font)
        for column, tile in enumerate(tiles):
            left = _GAP + column * (_TILE + _GAP)
            _draw_tile(sheet, draw, tile, (left, top + _TITLE), label_font)
    return sheet


def _draw_tile(
    sheet: Image.Image,
    draw: ImageDraw.ImageDraw,
    tile: Tile,
    corner: tuple[int, int],
    font: ImageFont.FreeTypeFont,
) -> None:
    left, top = corner
    picture = ImageOps.pad(tile.image.convert("RGB"), (_TILE, _TILE), color=(235, 235, 235))
    sheet.paste(picture, corner)
    if tile.is_right is not None:
        frame = (left - 4, top - 4, left + _TILE + 3, top + _TILE + 3)
        draw.rectangle(frame, outline=_RIGHT if tile.is_right else _OTHER, width=4)
    draw.text((left, top + _TILE + 7), tile.label, _INK, font)
