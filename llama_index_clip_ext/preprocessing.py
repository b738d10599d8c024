"""A checkpoint's image preprocessing, as few steps over the fewest pixels that give its result."""

from __future__ import annotations

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
        size = dict(getattr(processor, "size", None) or {})  # NaFlex has none in transformers 4.
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
        kept = self.kept_box(*image.size)
        if kept != (0, 0, *image.size):
            image = image.crop(kept)
        resized = image.resize(
            (self.width, self.height),
            Image.Resampling(self.resample),
            box=self._resized_box(*image.size),
        )
        return np.asarray(resized)

    def kept_box(self, width: int, height: int) -> tuple[int, int, int, int]:
        """Return what is left of a picture before it is resized: all, unless it is very thin."""
        if self.resize_to is None:
            return (0, 0, width, height)
        return _thick_box(width, height)

    def scaled_size(self, width: int, height: int) -> tuple[int, int]:
        """Return width and height of a picture after resizing, before its centre is cut out."""
        if self.resize_to is None:
            return self.width, self.height
        short = min(width, height)
        # As transformers and torchvision round.
        return int(self.resize_to * width / short), int(self.resize_to * height / short)

    def _resized_box(self, width: int, height: int) -> tuple[float, float, float, float]:
        """Return the part of a picture that is resized: of one that is cropped, what is left of it.

        Pillow's filter reads beyond the box, so that the result is that of resizing it all.
        """
        scaled_width, scaled_height = self.scaled_size(width, height)
        x, y = width / scaled_width, height / scaled_height
        left, top = (scaled_width - self.width) // 2, (scaled_height - self.height) // 2
        right, bottom = (left + self.width) * x, (top + self.height) * y
        return (left * x, top * y, min(right, width), min(bottom, height))


def crop_to_aspect_ratio(image: Image.Image) -> Image.Image:
    """Cut the ends off a picture that is far longer than it is wide; others stay as they are."""
    box = _thick_box(*image.size)
    return image if box == (0, 0, *image.size) else image.crop(box)


def _thick_box(width: int, height: int) -> tuple[int, int, int, int]:
    longest = min(width, height) * _MAX_ASPECT_RATIO
    left = max(0, (width - longest) // 2)
    top = max(0, (height - longest) // 2)
    return (left, top, width - left, height - top)
