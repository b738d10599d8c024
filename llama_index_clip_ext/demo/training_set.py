"""The training pictures: drawn once, resized as the checkpoint will, varied in every batch."""

from __future__ import annotations

import io
import random
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from llama_index_clip_ext.demo import layouts
from llama_index_clip_ext.demo.captions import Scene
from llama_index_clip_ext.demo.drawing import Drawing, draw_digits, draw_shapes
from llama_index_clip_ext.demo.heldout import TRAINING_DIGITS

SHAPE_COUNT = 6400
DRAWINGS_PER_DIGIT = 5


@dataclass(frozen=True)
class TrainingSet:
    """Pictures and what they show.

    Attributes:
        pixels: uint8. Shape ``(pictures, 3, image_size, image_size)``.
        scenes: One per picture.
    """

    pixels: Tensor
    scenes: list[Scene]


def draw_training_set(image_processor: Any, *, seed: int) -> TrainingSet:
    """Draw the pictures, save every second one as JPEG, and resize them as the checkpoint will.

    Args:
        image_processor: The checkpoint's own.
        seed: Same seed, same pictures.
    """
    rng = random.Random(seed)
    rows = list(TRAINING_DIGITS) * DRAWINGS_PER_DIGIT
    pixels, scenes = [], []
    for drawings in (draw_shapes(SHAPE_COUNT, seed=seed), draw_digits(rows, seed=seed)):
        for drawing in drawings:
            image = _as_saved(drawing, rng)
            # Rescaling and normalizing wait until the batch, so that one byte per value is kept.
            resized = image_processor(image, do_rescale=False, do_normalize=False)
            pixels.append(np.asarray(resized["pixel_values"][0]).round().astype(np.uint8))
            scenes.append(drawing.scene)
    return TrainingSet(torch.from_numpy(np.stack(pixels)), scenes)


def augment(pixels: Tensor) -> Tensor:
    """Turn, grow, move and light most pictures a little, then normalize them.

    Args:
        pixels: uint8. Shape ``(pictures, 3, height, width)``.

    Returns:
        What a processor calls ``pixel_values``, of the same shape.
    """
    count = len(pixels)
    pictures = pixels.float() / 255
    angle = (torch.rand(count) - 0.5) * 0.2
    sizes = 1 + (torch.rand(count, 2) - 0.5) * 0.2
    moves = (torch.rand(count, 2) - 0.5) * 0.2
    cos, sin = angle.cos(), angle.sin()
    rows = [
        torch.stack([cos * sizes[:, 0], -sin, moves[:, 0]], dim=1),
        torch.stack([sin, cos * sizes[:, 1], moves[:, 1]], dim=1),
    ]
    grid = F.affine_grid(torch.stack(rows, dim=1), list(pictures.shape), align_corners=False)
    turned = F.grid_sample(pictures, grid, padding_mode="border", align_corners=False)
    pictures = torch.where(torch.rand(count, 1, 1, 1) < 0.75, turned, pictures)
    pictures = (pictures * (1 + (torch.rand(count, 1, 1, 1) - 0.5) * 0.1)).clamp(0, 1)
    mean = torch.tensor(layouts.OPENAI_CLIP_MEAN)[:, None, None]
    std = torch.tensor(layouts.OPENAI_CLIP_STD)[:, None, None]
    return (pictures - mean) / std


def _as_saved(drawing: Drawing, rng: random.Random) -> Image.Image:
    if rng.random() < 0.5:
        return drawing.image
    file = io.BytesIO()
    drawing.image.save(file, "JPEG", quality=rng.randint(70, 95))
    return Image.open(file).convert("RGB")
