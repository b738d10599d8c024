"""JPEGs decoded and resized on a CUDA device, by torchvision's nvJPEG."""

from __future__ import annotations

import io
from collections.abc import Sequence
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
from PIL import Image

from .limits import BoundedFile, without_warnings
from .prefetch import batched
from .preprocessing import Preprocessing

if TYPE_CHECKING:
    import torch

# Beyond this a picture is left to Pillow, which decodes it at a fraction of its size.
_MAX_PIXELS = 25_000_000

# More than JPEGs of so many pixels take, and far more scans than they are in.
_MAX_BYTES = 64_000_000
_MAX_SCANS = 64

# Decoded at a time, at 75 MB each at most, before they are resized.
_CHUNK = 16

_ORIENTATION = 0x0112
_UPRIGHT = (None, 1)
_START, _END, _SCAN = b"\xff\xd8", b"\xff\xd9", b"\xff\xda"

# Pillow's filters as torch names them, where torch has the same one.
_FILTERS = {Image.Resampling.BILINEAR: "bilinear", Image.Resampling.BICUBIC: "bicubic"}


def has_nvjpeg(device: str) -> bool:
    """Whether JPEGs can be decoded on a device: it is CUDA's, and torchvision is installed."""
    return device.startswith("cuda") and find_spec("torchvision") is not None


def read_jpeg(file: BinaryIO) -> bytes:
    """Read a file that may be for nvJPEG; empty if it is no JPEG, or a large one."""
    if file.read(len(_START)) != _START:
        return b""
    content = _START + file.read(_MAX_BYTES)
    return content if len(content) <= _MAX_BYTES else b""


def takes(content: bytes, preprocessing: Preprocessing) -> bool:
    """Whether nvJPEG gives what Pillow would, from an encoded picture's header.

    It neither turns a picture as its EXIF data say, nor converts CMYK, nor says that a file was cut
    off: those are Pillow's.
    """
    if preprocessing.resample not in _FILTERS:
        return False
    if not content.startswith(_START) or not content.rstrip(b"\0").endswith(_END):
        return False
    if content.count(_SCAN) > _MAX_SCANS:
        return False
    file: Any = BoundedFile(io.BytesIO(content))
    try:
        with without_warnings(), Image.open(file, formats=("JPEG",)) as image:
            return (
                image.format == "JPEG"
                and image.mode in ("RGB", "L")
                and 0 < image.width * image.height <= _MAX_PIXELS
                and image.getexif().get(_ORIENTATION) in _UPRIGHT
            )
    except Exception:
        return False  # Pillow says what is wrong with it, where it is decoded.


def decode(
    contents: Sequence[bytes], preprocessing: Preprocessing, device: str
) -> list[torch.Tensor]:
    """Decode JPEGs and resize them to the model's input, on the device.

    Args:
        contents: Encoded pictures that `takes` takes.
        preprocessing: What is done to them.
        device: The CUDA device.

    Returns:
        For each, a tensor of uint8 on the device. Shape ``(height, width, 3)``.

    Raises:
        RuntimeError: If nvJPEG fails on one of them.
    """
    import torch

    # Copied, because torch has no tensors that are not to be written to.
    encoded = (torch.from_numpy(np.frombuffer(one, np.uint8).copy()) for one in contents)
    return [
        _resize(picture, preprocessing)
        for chunk in batched(encoded, _CHUNK)
        for picture in _decode_jpegs(chunk, device)
    ]


def _decode_jpegs(encoded: list[torch.Tensor], device: str) -> list[torch.Tensor]:
    from torchvision.io import ImageReadMode, decode_jpeg  # type: ignore[import-not-found]

    pictures: list[torch.Tensor] = decode_jpeg(encoded, mode=ImageReadMode.RGB, device=device)
    return pictures


def _resize(picture: torch.Tensor, preprocessing: Preprocessing) -> torch.Tensor:
    """Do what `Preprocessing.pixels` does, to a tensor of shape ``(3, height, width)``."""
    from torch.nn.functional import interpolate

    left, top, right, bottom = preprocessing.kept_box(picture.shape[2], picture.shape[1])
    picture = picture[:, top:bottom, left:right]
    scaled_width, scaled_height = preprocessing.scaled_size(picture.shape[2], picture.shape[1])
    resized = interpolate(
        picture[None].float(),
        size=(scaled_height, scaled_width),
        mode=_FILTERS[Image.Resampling(preprocessing.resample)],
        antialias=True,
    )[0]
    left = (scaled_width - preprocessing.width) // 2
    top = (scaled_height - preprocessing.height) // 2
    cropped = resized[:, top : top + preprocessing.height, left : left + preprocessing.width]
    return cropped.clamp(0, 255).round().byte().permute(1, 2, 0)
