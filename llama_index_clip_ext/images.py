"""Any image source -> an upright RGB picture, or which input failed and why."""

from __future__ import annotations

import io
import struct
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, get_args

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageColor, ImageOps, UnidentifiedImageError

from .errors import ImageLoadError, ImageNotFoundError
from .sources import ImageSource, describe_source, error_detail, exclusive, read_source

OnError: TypeAlias = Literal["raise", "skip"]

# Where Pillow itself stops with a DecompressionBombError: 512 MiB as RGB.
MAX_PIXELS = 178_956_970

# Of larger pictures one is decoded at a time: each takes some 12 bytes a pixel meanwhile, and there
# are as many threads as cores. Most JPEGs are decoded to far less.
_LARGE_PIXELS = 16_000_000
_LARGE_LOCK = threading.Lock()


@dataclass(frozen=True)
class ImageFailure:
    """One input that could not be used.

    Attributes:
        index: Position in the call.
        source: The input, described.
        reason: Why it failed.
    """

    index: int
    source: str
    reason: str

    def __str__(self) -> str:
        return f"{self.source}: {self.reason}"


def load_image(
    source: ImageSource,
    *,
    background: str = "white",
    max_pixels: int = MAX_PIXELS,
    allow_urls: bool = False,
    least_side: int | None = None,
) -> Image.Image:
    """Turn any image source into an upright RGB picture.

    EXIF orientation is applied, transparency is composited on ``background``, 16-bit and float
    pictures are scaled to 8 bits rather than clipped, and of an animation the first frame is taken.

    Args:
        source: A path (``str`` or ``Path``), encoded bytes, a binary stream, a PIL image, an array
            of shape ``(height, width)`` or ``(height, width, 1 | 3 | 4)``, a data URI, base64 text,
            or a LlamaIndex node that holds an image. A floating-point array counts from 0 to 1.
        background: Colour under transparent pixels, as Pillow names colours.
        max_pixels: Refuse pictures of more pixels before decoding them.
        allow_urls: Reserved: guarded fetching is not there yet, so URLs are refused either way.
        least_side: Decode a JPEG at half, a quarter or an eighth of its size, as long as its sides
            keep this many pixels, which is several times faster; ``None`` decodes in full.

    Returns:
        A decoded picture of mode ``RGB``.

    Raises:
        ImageNotFoundError: If the path does not exist.
        ImageLoadError: If the source is no picture, is damaged, too large, or a URL.
    """
    name = describe_source(source)
    # Outside of what follows: a wrong colour is no fault of the picture.
    ImageColor.getrgb(background)
    try:
        with exclusive(source):
            raw = read_source(source, allow_urls=allow_urls)
            if isinstance(raw, Image.Image):
                _check_pixels(raw, max_pixels)
                return _to_rgb(raw, background)
        if isinstance(raw, bytes):
            return _decode(raw, background, max_pixels, least_side)
        picture = _from_array(raw)
        _check_pixels(picture, max_pixels)
        return _to_rgb(picture, background)
    except ImageLoadError as err:
        raise type(err)(err.reason, source=name) from err.__cause__
    except UnidentifiedImageError as err:
        raise ImageLoadError("not a picture in a format that Pillow reads", source=name) from err
    except FileNotFoundError as err:
        raise ImageNotFoundError("no such file", source=name) from err
    # Pillow's decoders also raise struct.error, KeyError and others over a damaged file.
    except Exception as err:
        raise ImageLoadError(f"damaged or unreadable ({error_detail(err)})", source=name) from err


def iter_images(
    sources: Iterable[tuple[int, ImageSource]],
    *,
    failures: list[ImageFailure] | None = None,
    background: str = "white",
    allow_urls: bool = False,
) -> Iterator[tuple[int, Image.Image]]:
    """Load images one after the other, each dropped before the next is opened.

    Args:
        sources: The position to report and the image source, as `load_image` takes it.
        failures: Where to note a source that fails; ``None`` raises at the first one.
        background: As in `load_image`.
        allow_urls: As in `load_image`.

    Yields:
        The position and the picture, for each source that loads.

    Raises:
        ImageLoadError: If a source fails and ``failures`` is ``None``; carries the index.
    """
    for index, source in sources:
        try:
            yield index, load_image(source, background=background, allow_urls=allow_urls)
        except ImageLoadError as err:
            if failures is None:
                raise type(err)(err.reason, source=err.source, index=index) from err.__cause__
            failures.append(ImageFailure(index, err.source, err.reason))


def load_images(
    sources: Sequence[ImageSource],
    *,
    on_error: OnError = "raise",
    background: str = "white",
    allow_urls: bool = False,
) -> tuple[list[Image.Image], list[int], list[ImageFailure]]:
    """Load several images, keeping track of which ones they are.

    Args:
        sources: Image sources, as `load_image` takes them.
        on_error: Stop at a source that fails, or go on and report it.
        background: As in `load_image`.
        allow_urls: As in `load_image`.

    Returns:
        The pictures; for each its position in ``sources``; and the failures.

    Raises:
        ImageLoadError: If a source fails and ``on_error`` is ``"raise"``; carries the index.
    """
    if on_error not in get_args(OnError):
        raise ValueError(f"on_error is {on_error!r}, expected 'raise' or 'skip'")
    failures: list[ImageFailure] = []
    loaded = list(
        iter_images(
            enumerate(sources),
            failures=failures if on_error == "skip" else None,
            background=background,
            allow_urls=allow_urls,
        )
    )
    return [image for _, image in loaded], [index for index, _ in loaded], failures


def _decode(
    content: bytes, background: str, max_pixels: int, least_side: int | None
) -> Image.Image:
    if not content:
        raise ImageLoadError("the file is empty (0 bytes)")
    with Image.open(io.BytesIO(content)) as image:
        _check_pixels(image, max_pixels)
        if least_side:
            # Of no effect on formats that do not decode to fractions of their size.
            image.draft(None, (least_side, least_side))
        is_large = image.width * image.height > _LARGE_PIXELS
        with _LARGE_LOCK if is_large else nullcontext():
            return _to_rgb(image, background)


def _check_pixels(image: Image.Image, max_pixels: int) -> None:
    if image.width * image.height > max_pixels:
        raise ImageLoadError(
            f"{image.width}x{image.height} pixels are more than the limit of {max_pixels}"
        )
    if image.width * image.height == 0:
        raise ImageLoadError(f"{image.width}x{image.height}: a picture without pixels")


def _upright(image: Image.Image) -> Image.Image:
    """Return a decoded copy, turned as its EXIF data say."""
    image.load()
    try:
        return ImageOps.exif_transpose(image)
    except (SyntaxError, ValueError, KeyError, TypeError, struct.error):
        # The EXIF data are damaged, the pixels are whole.
        return image.copy()


def _to_rgb(image: Image.Image, background: str) -> Image.Image:
    image = _upright(image)
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode.startswith(("I", "F")):
        values = np.asarray(image)
        picture = _scale_to_8_bit(values).convert("RGB")
        if (clear := image.info.get("transparency")) is not None:
            picture.paste(ImageColor.getrgb(background), mask=Image.fromarray(values == clear))
        return picture
    if image.mode == "La":
        image = image.convert("LA")
    if image.has_transparency_data:
        picture = image.convert("RGBA")
        canvas = Image.new("RGBA", picture.size, ImageColor.getrgb(background))
        return Image.alpha_composite(canvas, picture).convert("RGB")
    return image.convert("RGB")


def _from_array(array: NDArray[Any]) -> Image.Image:
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (3, 4)):
        raise ImageLoadError(
            "expected an array of shape (height, width) or (height, width, 1, 3 or 4)"
        )
    if not array.size:
        raise ImageLoadError("an array without pixels")
    if array.dtype == np.bool_:
        array = array.astype(np.uint8) * 255
    if array.dtype != np.uint8:
        return _scale_to_8_bit(array)
    return Image.fromarray(array)


def _scale_to_8_bit(array: NDArray[Any]) -> Image.Image:
    """Scale a deeper picture to 8 bits by what white is in it.

    White is 65535 for unsigned 16-bit, and the first of 1 (floating point only), 255 and 65535 that
    is not exceeded for other types. Values beyond that, or negative ones, have no white of their
    own: their range is stretched.
    """
    if array.dtype.kind not in "iuf":
        raise ImageLoadError(f"an array of {array.dtype} holds no pixels")
    values = array.astype(np.float64)
    if not np.isfinite(values).all():
        raise ImageLoadError("the pixels contain NaN or infinity")
    low, high = float(values.min()), float(values.max())
    if array.dtype.kind == "u" and array.dtype.itemsize == 2:
        whites = [65535.0]
    else:
        whites = [1.0, 255.0, 65535.0] if array.dtype.kind == "f" else [255.0, 65535.0]
    if low >= 0 and high <= whites[-1]:
        low, high = 0.0, next(white for white in whites if high <= white)
    span = (high - low) or 1.0
    return Image.fromarray(np.rint((values - low) / span * 255).astype(np.uint8))
