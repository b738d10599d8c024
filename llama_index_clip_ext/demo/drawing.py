"""Draws the demo's pictures: coloured shapes on backgrounds, and handwritten digits on paper.

Everything is drawn from a :class:`random.Random`, so one seed gives one set of pictures on every
machine.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from llama_index_clip_ext.demo.captions import (
    BACKGROUNDS,
    COLOURS,
    DIGIT,
    SHAPES,
    Scene,
    canonical_caption,
    label,
)
from llama_index_clip_ext.demo.outlines import OUTLINES, Point

RGB: TypeAlias = tuple[int, int, int]

PICTURE_SIZES = (200, 400)
"""Smallest and largest side of a picture, in pixels; sides differ by at most a third."""

INKS = ("red", "orange", "green", "blue", "purple", "black")
PAPERS = ("white", "cream", "striped", "gradient")
"""What digits are written in and on: all pairs are legible."""

DIGIT_COUNT = 1797
"""Rows of :func:`sklearn.datasets.load_digits`."""

# Its images and targets as they are, so that drawing needs no scikit-learn; a test compares them.
_DIGITS_FILE = Path(__file__).parent / "digits.npz"

COLOUR_RGB: dict[str, RGB] = {
    "red": (214, 40, 40),
    "orange": (247, 127, 0),
    "yellow": (250, 210, 30),
    "green": (46, 160, 67),
    "blue": (33, 90, 210),
    "purple": (123, 44, 191),
    "pink": (245, 125, 180),
    "black": (25, 25, 28),
}
BACKGROUND_RGB: dict[str, tuple[RGB, RGB]] = {
    "white": ((250, 250, 250), (250, 250, 250)),
    "black": ((20, 20, 24), (20, 20, 24)),
    "grey": ((152, 152, 156), (152, 152, 156)),
    "cream": ((246, 233, 206), (246, 233, 206)),
    "pink": ((250, 212, 226), (250, 212, 226)),
    "striped": ((250, 250, 250), (226, 228, 233)),
    "gradient": ((244, 247, 252), (160, 182, 212)),
}


@dataclass(frozen=True)
class Drawing:
    """One picture, what it shows, and the words for it.

    Attributes:
        image: RGB picture.
        scene: What was drawn.
    """

    image: Image.Image
    scene: Scene

    @property
    def label_en(self) -> str:
        """The English class name, such as ``red circle`` or ``seven``."""
        return label(self.scene, "en")

    @property
    def label_zh(self) -> str:
        """The Chinese class name, such as ``红色圆形`` or ``七``."""
        return label(self.scene, "zh")

    @property
    def caption_en(self) -> str:
        """A full English sentence, such as ``a red circle on a white background``."""
        return canonical_caption(self.scene, "en")

    @property
    def caption_zh(self) -> str:
        """A full Chinese sentence, such as ``白色背景上的红色圆形``."""
        return canonical_caption(self.scene, "zh")


def draw_shapes(count: int, *, seed: int) -> Iterator[Drawing]:
    """Draw shapes, each colour and shape as often as any other.

    Args:
        count: Number of drawings; 64 in a row hold every colour of every shape once.
        seed: Same seed, same drawings.

    Yields:
        Drawings in a shuffled order.
    """
    rng = random.Random(seed)
    pairs = [(colour, shape) for colour in COLOURS for shape in SHAPES]
    for index in range(count):
        if index % len(pairs) == 0:
            rng.shuffle(pairs)
        colour, shape = pairs[index % len(pairs)]
        background = rng.choice([name for name in BACKGROUNDS if name != colour])
        yield draw_shape(Scene(colour=colour, shape=shape, background=background), rng)


def draw_digits(rows: Iterable[int], *, seed: int) -> Iterator[Drawing]:
    """Draw handwritten digits in a random ink on a random paper.

    Args:
        rows: Indices into :func:`sklearn.datasets.load_digits`, 0 to 1796, in the order wanted.
        seed: Same seed and rows, same drawings.

    Yields:
        One drawing per row, in order.

    Source:
        E. Alpaydin and C. Kaynak, Optical Recognition of Handwritten Digits, UCI 1998, as
        redistributed by scikit-learn.
    """
    rng = random.Random(seed)
    strokes, digits = _load_digits()
    for row in rows:
        colour, background = rng.choice(INKS), rng.choice(PAPERS)
        scene = Scene(colour=colour, shape=DIGIT, background=background, digit=int(digits[row]))
        yield Drawing(_draw_digit(strokes[row], scene, rng), scene)


def draw_shape(scene: Scene, rng: random.Random) -> Drawing:
    """Draw one shape at a random place, size and angle.

    Args:
        scene: A shape of :data:`SHAPES`, a colour and a background, none left out.
        rng: Where chance comes from.

    Raises:
        KeyError: If the scene leaves one out, or names one that is not in the tables.
    """
    outlines = OUTLINES[scene.shape or ""]
    picture = _background(scene.background or "", rng)
    width, height = picture.size
    side = min(width, height)
    radius = side * rng.uniform(0.24, 0.40)
    # Inside the middle square, because CLIP's preprocessor cuts the rest away.
    slack = max(side / 2 - radius * 1.08, 0)
    centre = (width / 2 + rng.uniform(-slack, slack), height / 2 + rng.uniform(-slack, slack))
    angle = math.radians(rng.uniform(-20, 20))
    mask = Image.new("L", (width * 2, height * 2))
    canvas = ImageDraw.Draw(mask)
    for index, outline in enumerate(outlines):
        canvas.polygon(_place(outline, centre, radius, angle, 2), fill=0 if index else 255)
    mask = mask.resize(picture.size, Image.Resampling.BOX)
    picture.paste(_jitter(COLOUR_RGB[scene.colour or ""], rng), mask=mask)
    return Drawing(picture, scene)


def _draw_digit(strokes: NDArray[np.float64], scene: Scene, rng: random.Random) -> Image.Image:
    picture = _background(scene.background or "", rng)
    width, height = picture.size
    side = min(width, height) * rng.uniform(0.72, 0.95)
    # Two empty cells all round, so that turning a digit never cuts it.
    cells = Image.fromarray(np.pad(strokes * (255 / 16), 2).astype(np.uint8))
    scale = cells.width / (side * 1.5)
    angle, shear = math.radians(rng.uniform(-8, 8)), rng.uniform(-0.08, 0.08)
    cos, sin = math.cos(angle) * scale, math.sin(angle) * scale
    slack = min(width, height) * 0.05
    left = width / 2 + rng.uniform(-slack, slack)
    top = height / 2 + rng.uniform(-slack, slack)
    middle = cells.width / 2
    matrix = (cos, sin + shear * scale, 0.0, -sin, cos, 0.0)
    offset_x = middle - matrix[0] * left - matrix[1] * top
    offset_y = middle - matrix[3] * left - matrix[4] * top
    grown = cells.transform(
        picture.size,
        Image.Transform.AFFINE,
        (matrix[0], matrix[1], offset_x, matrix[3], matrix[4], offset_y),
        resample=Image.Resampling.BICUBIC,
    )
    # A soft threshold turns the blurred grey cells into the edge of a pen stroke.
    threshold = rng.uniform(110, 135)
    table = [round(min(max((grey - threshold) * 3 + 128, 0), 255)) for grey in range(256)]
    mask = grown.point(table)
    picture.paste(_jitter(COLOUR_RGB[scene.colour or ""], rng), mask=mask)
    return picture


def _background(name: str, rng: random.Random) -> Image.Image:
    side = rng.randint(*PICTURE_SIZES)
    other = rng.randint(max(PICTURE_SIZES[0], side * 3 // 4), side)
    width, height = (side, other) if rng.random() < 0.5 else (other, side)
    first, second = (_jitter(rgb, rng, 5) for rgb in BACKGROUND_RGB[name])
    angle = rng.uniform(0, math.tau)
    if name not in ("striped", "gradient"):
        return Image.new("RGB", (width, height), first)
    y, x = np.mgrid[0:height, 0:width]
    along = (x * math.cos(angle) + y * math.sin(angle)) / side
    if name == "striped":
        mix = (along * rng.uniform(8, 13) % 1 > 0.5).astype(float)
    else:
        mix = (along - along.min()) / (along.max() - along.min())
    pixels = np.array(first) + np.subtract(second, first) * mix[:, :, None]
    return Image.fromarray(pixels.round().clip(0, 255).astype(np.uint8))


def _jitter(rgb: RGB, rng: random.Random, amount: int = 12) -> RGB:
    red, green, blue = (min(max(part + rng.randint(-amount, amount), 0), 255) for part in rgb)
    return red, green, blue


def _place(
    outline: list[Point], centre: Point, radius: float, angle: float, scale: int
) -> list[Point]:
    cos, sin = math.cos(angle) * radius, math.sin(angle) * radius
    return [
        ((centre[0] + x * cos - y * sin) * scale, (centre[1] + x * sin + y * cos) * scale)
        for x, y in outline
    ]


@lru_cache(maxsize=1)
def _load_digits() -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    with np.load(_DIGITS_FILE, allow_pickle=False) as digits:
        return digits["images"].astype(np.float64), digits["target"].astype(np.int64)
