"""A checkpoint's image preprocessing, as few steps over the fewest pixels that give its result."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image

# Shape (height, width, 3), before they are scaled to what the image tower reads.
Pixels: TypeAlias = NDArray[np.uint8]

# A picture thinner than this is cropped to it before it is resized: the checkpoint's centre crop
# throws the rest away, but resizing first could take gigabytes (1x100000 becomes 224x22400000).
_MAX_ASPECT_RATIO = 64

# How much finer than the model's input a picture is decoded, where its format decodes to fractions
# of its size. By benchmarks/fidelity.py, at 1 a photograph's embedding moves visibly, at 2 hardly.
_DECODED_TO_INPUT = 2


@dataclass(frozen=True)
class Preprocessing:
    """What an image processor of transformers does: resize, cut out the centre, scale the values.

    Attributes:
        height: Of the model's input.
        width: Of the model's input.
        resize_to: Shortest edge after resizing, the aspect ratio kept, of which the centre is cut
            out; ``None`` resizes to height and width, whatever the aspect ratio.
        resample: Pillow's filter.
        factor: By channel, what a pixel is multiplied with.
        offset: By channel, what is then added.
    """

    height: int
    width: int
    resize_to: int | None
    resample: int
    factor: tuple[float, ...]
    offset: tuple[float, ...]

    @classmethod
    def of(cls, processor: Any) -> Preprocessing | None:
        """Read an image processor's settings; ``None`` if it does more than these steps.

        Args:
            processor: transformers' image processor.
        """
        size = dict(processor.size or {})
        crop = dict(getattr(processor, "crop_size", None) or {})
        crops = bool(getattr(processor, "do_center_crop", False))
        steps = ("do_resize", "do_rescale", "do_normalize")
        if not all(getattr(processor, step, False) for step in steps):
            return None
        if getattr(processor, "do_pad", False) or hasattr(processor, "max_num_patches"):
            return None
        given = {key for key, value in size.items() if value}
        if given == {"shortest_edge"} and crops and {"height", "width"} <= set(crop):
            # A smaller edge would be padded with black.
            if size["shortest_edge"] < max(crop["height"], crop["width"]):
                return None
            height, width, resize_to = crop["height"], crop["width"], size["shortest_edge"]
        elif given == {"height", "width"} and (not crops or crop == size):
            height, width, resize_to = size["height"], size["width"], None
        else:
            return None
        mean, std = np.asarray(processor.image_mean), np.asarray(processor.image_std)
        return cls(
            height=int(height),
            width=int(width),
            resize_to=resize_to and int(resize_to),
            resample=int(processor.resample),
            factor=tuple((processor.rescale_factor / std).tolist()),
            offset=tuple((-mean / std).tolist()),
        )

    @property
    def least_side(self) -> int:
        """Pixels that a decoded picture's sides should have at least; more are of little use."""
        return _DECODED_TO_INPUT * max(self.height, self.width, self.resize_to or 0)

    def pixels(self, image: Image.Image) -> Pixels:
        """Resize an RGB picture to the model's input. Shape ``(height, width, 3)``."""
        image = crop_to_aspect_ratio(image) if self.resize_to else image
        resized = image.resize(
            (self.width, self.height),
            Image.Resampling(self.resample),
            box=self._box(*image.size),
        )
        return np.asarray(resized)

    def _box(self, width: int, height: int) -> tuple[float, float, float, float]:
        """Return the part of a picture that is resized: of one that is cropped, what is left of it.

        Pillow's filter reads beyond the box, so that the result is that of resizing it all.
        """
        if self.resize_to is None:
            return (0, 0, width, height)
        short = min(width, height)
        # As transformers and torchvision round.
        scaled_width = int(self.resize_to * width / short)
        scaled_height = int(self.resize_to * height / short)
        x, y = width / scaled_width, height / scaled_height
        left, top = (scaled_width - self.width) // 2, (scaled_height - self.height) // 2
        return (
            left * x,
            top * y,
            min((left + self.width) * x, width),
            min((top + self.height) * y, height),
        )


def crop_to_aspect_ratio(image: Image.Image) -> Image.Image:
    """Cut the ends off a picture that is far longer than it is wide; others stay as they are."""
    width, height = image.size
    longest = math.floor(min(width, height) * _MAX_ASPECT_RATIO)
    left = max(0, (width - longest) // 2)
    top = max(0, (height - longest) // 2)
    if left == top == 0:
        return image
    return image.crop((left, top, width - left, height - top))
