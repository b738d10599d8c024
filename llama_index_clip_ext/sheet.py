"""Search results as one picture, for a person to judge at a glance."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from llama_index.core.schema import MetadataMode, NodeWithScore
from PIL import Image, ImageDraw, ImageFont, ImageOps

from .errors import ImageLoadError
from .images import load_image
from .nodes import is_image_node
from .notes import SIMILARITY_KEY
from .sources import ImageSource
from .urls import AllowUrls

_TILE, _GAP, _TITLE, _LINE, _UNDER = 132, 14, 38, 19, 15
_RIGHT, _OTHER, _INK, _FAINT = (34, 139, 34), (190, 190, 190), (30, 30, 30), (120, 120, 120)
_PAPER, _MOUNT = (255, 255, 255), (235, 235, 235)
# Pixels that a title may widen a narrow sheet to; what is longer is cut, as a query of a page is.
_TITLE_WIDTH = 900
# Noto Sans CJK SC: Latin, Greek, Cyrillic, kana, and the Chinese of GB 2312 (fonts/NOTICE).
_FONT = Path(__file__).parent / "fonts" / "noto-sans-sc-subset.otf"


@dataclass(frozen=True)
class Tile:
    """One picture of a row.

    Attributes:
        image: The picture.
        label: A line below it.
        is_right: Whether it is what was asked for: framed in green, else in grey; ``None`` has no
            frame.
        detail: One or two more lines, fainter; what is longer is cut.
    """

    image: Image.Image
    label: str
    is_right: bool | None = None
    detail: str = ""


def show_results(
    hits: Sequence[NodeWithScore],
    *,
    query: str | ImageSource | None = None,
    title: str = "",
    columns: int = 5,
    allow_urls: AllowUrls = False,
    image_formats: Collection[str] = (),
) -> Image.Image:
    """Draw what a retriever found, with ranks and scores; a notebook shows it by itself.

    Args:
        hits: As any LlamaIndex retriever returns them. Texts are drawn as text, and an image that
            cannot be read says why. Beside a score that is no cosine stands the cosine, if it is
            known.
        query: What was asked with: a text becomes the title, an image a tile before the first hit.
            A string is a text; name a file by a ``Path``.
        title: A line above the hits, where it is not the query's text.
        columns: Hits in a row.
        allow_urls: As in `load_image`, for hits that are known by a URL.
        image_formats: As in `load_image`.

    Returns:
        The contact sheet, in RGB.

    Example:
        ``show_results(retriever.retrieve("a red circle"), query="a red circle")``
    """
    if columns < 1:
        raise ValueError(f"columns is {columns}, expected at least 1")
    if isinstance(query, str):
        title, query = title or query, None
    load = partial(load_image, allow_urls=allow_urls, image_formats=image_formats)
    tiles = [] if query is None else [Tile(load(query), "query")]
    columns += len(tiles)
    tiles += [_hit_tile(rank, hit, load) for rank, hit in enumerate(hits, 1)]
    if not tiles:
        tiles = [Tile(_text_picture("nothing was found"), "")]
    rows = [tiles[start : start + columns] for start in range(0, len(tiles), columns)]
    return draw_contact_sheet([(title, rows[0]), *(("", row) for row in rows[1:])])


def draw_contact_sheet(
    rows: Sequence[tuple[str, Sequence[Tile]]], *, legend: str = ""
) -> Image.Image:
    """Draw rows of pictures, each with its title, if it has one, above it.

    Args:
        rows: Title and tiles, from left to right.
        legend: A line above all rows.
    """
    columns = max(len(tiles) for _, tiles in rows)
    width = columns * (_TILE + _GAP) + _GAP
    title_font, label_font = (ImageFont.truetype(str(_FONT), size) for size in (19, 14))
    lines = 1 + max(len(_detail(tile, label_font)) for _, tiles in rows for tile in tiles)
    heights = [_TITLE * bool(title) + _TILE + _UNDER + lines * _LINE + _GAP for title, _ in rows]
    top = _GAP + _TITLE * bool(legend)
    most = max(width, _TITLE_WIDTH) - 2 * _GAP
    titles = [_fit(" ".join(title.split()), title_font, most) for title, _ in rows]
    longest = max(title_font.getlength(title) for title in titles)
    width = max(width, round(max(longest, label_font.getlength(legend))) + 2 * _GAP)
    sheet = Image.new("RGB", (width, top + sum(heights)), _PAPER)
    draw = ImageDraw.Draw(sheet)
    draw.text((_GAP, _GAP), legend, _INK, label_font)
    for title, (_, tiles), height in zip(titles, rows, heights, strict=True):
        draw.text((_GAP, top), title, _INK, title_font)
        for column, tile in enumerate(tiles):
            corner = (_GAP + column * (_TILE + _GAP), top + _TITLE * bool(title))
            _draw_tile(sheet, draw, tile, corner, label_font)
        top += height
    return sheet


def _hit_tile(rank: int, hit: NodeWithScore, load: Callable[[ImageSource], Image.Image]) -> Tile:
    node = hit.node
    label = str(rank) if hit.score is None else f"{rank}  {hit.score:.3f}"
    cosine = node.metadata.get(SIMILARITY_KEY)
    if cosine is not None and cosine != hit.score:
        label += f"  cos {cosine:.3f}"
    name = node.metadata.get("file_name") or Path(getattr(node, "image_path", None) or "").name
    text = " ".join(node.get_content(MetadataMode.NONE).split())
    if not is_image_node(node):
        return Tile(_text_picture(text), label, detail=name)
    try:
        picture = load(node)
    except ImageLoadError as err:
        picture = _text_picture(err.reason)
    return Tile(picture, label, detail=text or name)


def _text_picture(text: str) -> Image.Image:
    """Set a text in a tile, as much of it as fits."""
    font = ImageFont.truetype(str(_FONT), 14)
    picture = Image.new("RGB", (_TILE, _TILE), _MOUNT)
    draw = ImageDraw.Draw(picture)
    for number, line in enumerate(_lines(text, font, _TILE - _GAP, (_TILE - _GAP) // _LINE)):
        draw.text((_GAP // 2, _GAP // 2 + number * _LINE), line, _INK, font)
    return picture


def _detail(tile: Tile, font: ImageFont.FreeTypeFont) -> list[str]:
    return _lines(tile.detail, font, _TILE, 2)


def _lines(text: str, font: ImageFont.FreeTypeFont, width: float, most: int) -> list[str]:
    """Break a text into lines, as many as there is room for."""
    lines = list(_wrap(text, font, width)) if text else []
    if len(lines) > most:
        lines[most - 1] = _fit(f"{lines[most - 1]} ...", font, width)
    return lines[:most]


def _wrap(text: str, font: ImageFont.FreeTypeFont, width: float) -> Iterator[str]:
    """Break a text into lines, between words where there are spaces."""
    line = ""
    for word in text.split():
        if font.getlength(f"{line} {word}".strip()) <= width:
            line = f"{line} {word}".strip()
            continue
        if line:
            yield line
        line = ""
        for character in word:
            if font.getlength(line + character) > width:
                yield line
                line = ""
            line += character
    yield line


def _fit(text: str, font: ImageFont.FreeTypeFont, width: float) -> str:
    """Cut a text to a width, with dots where something is missing."""
    if font.getlength(text) <= width:
        return text
    kept = text.removesuffix(" ...")
    while kept and font.getlength(f"{kept}...") > width:
        kept = kept[:-1]
    return f"{kept}..."


def _draw_tile(
    sheet: Image.Image,
    draw: ImageDraw.ImageDraw,
    tile: Tile,
    corner: tuple[int, int],
    font: ImageFont.FreeTypeFont,
) -> None:
    left, top = corner
    picture = ImageOps.pad(tile.image.convert("RGB"), (_TILE, _TILE), color=_MOUNT)
    sheet.paste(picture, corner)
    if tile.is_right is not None:
        frame = (left - 4, top - 4, left + _TILE + 3, top + _TILE + 3)
        draw.rectangle(frame, outline=_RIGHT if tile.is_right else _OTHER, width=4)
    draw.text((left, top + _TILE + 7), tile.label, _INK, font)
    for number, line in enumerate(_detail(tile, font), 1):
        draw.text((left, top + _TILE + 7 + number * _LINE), line, _FAINT, font)
