"""Measures an embedding on pictures that the demo's checkpoints were never trained on."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from llama_index_clip_ext.demo.captions import (
    COLOURS,
    DIGIT,
    SHAPES,
    Language,
    Scene,
    class_caption,
)
from llama_index_clip_ext.demo.drawing import DIGIT_COUNT, Drawing, draw_digits, draw_shapes

Embeddings: TypeAlias = NDArray[np.float32]

HELDOUT_SEED = 1_000_003
"""Training draws with other seeds, so no held-out shape is ever one of its pictures."""

HELDOUT_DIGITS = range(5, DIGIT_COUNT, 6)
"""Rows of the digits that training leaves out. Their writers may have other rows in training."""

TRAINING_DIGITS = tuple(row for row in range(DIGIT_COUNT) if row not in HELDOUT_DIGITS)

_SHAPE_COUNT = 384


def heldout_accuracy(
    encode_texts: Callable[[list[str]], Embeddings],
    encode_images: Callable[[list[Image.Image]], Embeddings],
    language: Language = "en",
) -> dict[str, float]:
    """Tell how often the nearest text or picture is the right one.

    Args:
        encode_texts: Texts to unit rows. Shape ``(len(texts), dim)``.
        encode_images: RGB pictures to unit rows. Shape ``(len(images), dim)``.
        language: The captions' language.

    Returns:
        Shares between 0 and 1:

        - ``colour+shape``: the picture's caption is the nearest of all 64 (``a red circle``).
        - ``digit``: the picture's caption is the nearest of ten (``handwritten digit seven``).
        - ``image to image``: the nearest other picture has the same colour and shape.
        - ``composed``: picture + new colour - old colour, or the same with shapes, finds a
          picture with the new colour and shape first, among all shapes and digits.
    """
    drawings = heldout_drawings()
    shapes = [drawing.scene for drawing in drawings if drawing.scene.digit is None]
    digits = [drawing.scene for drawing in drawings if drawing.scene.digit is not None]
    rows = encode_images([drawing.image for drawing in drawings])
    shape_rows, digit_rows = rows[: len(shapes)], rows[len(shapes) :]
    shape_classes = [Scene(colour, shape) for colour in COLOURS for shape in SHAPES]
    digit_classes = [Scene(shape=DIGIT, digit=digit) for digit in range(10)]

    def top_1(queries: Embeddings, scenes: Sequence[Scene], classes: Sequence[Scene]) -> float:
        texts = encode_texts([class_caption(scene, language) for scene in classes])
        nearest = (queries @ texts.T).argmax(axis=1)
        return _share(classes[i] == _class(s) for i, s in zip(nearest, scenes, strict=True))

    others = shape_rows @ shape_rows.T
    np.fill_diagonal(others, -np.inf)
    composed, wanted = _composed_queries(shape_rows, shapes, encode_texts, language)
    found = (composed @ rows.T).argmax(axis=1)
    scenes = [*shapes, *digits]
    return {
        "colour+shape": top_1(shape_rows, shapes, shape_classes),
        "digit": top_1(digit_rows, digits, digit_classes),
        "image to image": _share(
            _class(shapes[i]) == _class(s)
            for i, s in zip(others.argmax(axis=1), shapes, strict=True)
        ),
        "composed": _share(_class(scenes[i]) == w for i, w in zip(found, wanted, strict=True)),
    }


@lru_cache(maxsize=1)
def heldout_drawings() -> tuple[Drawing, ...]:
    """The held-out pictures: first 384 shapes, six of each colour and shape, then 299 digits."""
    shapes = draw_shapes(_SHAPE_COUNT, seed=HELDOUT_SEED)
    return (*shapes, *draw_digits(HELDOUT_DIGITS, seed=HELDOUT_SEED))


def _composed_queries(
    rows: Embeddings,
    scenes: Sequence[Scene],
    encode_texts: Callable[[list[str]], Embeddings],
    language: Language,
) -> tuple[Embeddings, list[Scene]]:
    """Unit rows that ask each picture for another colour, or every second one for another shape."""
    words = {**COLOURS, **SHAPES}
    texts = encode_texts([word.usual(language) for word in words.values()])
    text_of = dict(zip(words, texts, strict=True))
    queries, wanted = [], []
    for index, (row, scene) in enumerate(zip(rows, scenes, strict=True)):
        colour, shape = scene.colour or "", scene.shape or ""
        if index % 2 == 0:
            old, new = colour, _step(list(COLOURS), colour, 1 + index // 2 % 7)
            wanted.append(Scene(new, shape))
        else:
            old, new = shape, _step(list(SHAPES), shape, 1 + index // 2 % 7)
            wanted.append(Scene(colour, new))
        queries.append(row + text_of[new] - text_of[old])
    composed = np.stack(queries)
    return composed / np.linalg.norm(composed, axis=1, keepdims=True), wanted


def _step(names: list[str], name: str, steps: int) -> str:
    return names[(names.index(name) + steps) % len(names)]


def _class(scene: Scene) -> Scene:
    """A scene as its class: colour and shape, or the digit."""
    if scene.digit is not None:
        return Scene(shape=DIGIT, digit=scene.digit)
    return Scene(scene.colour, scene.shape)


def _share(hits: Iterable[bool]) -> float:
    return float(np.mean(list(hits)))
