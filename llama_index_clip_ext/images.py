"""Any image source -> an upright RGB picture, or which input failed and why."""

from __future__ import annotations

import io
import threading
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, BinaryIO, Literal, TypeAlias, get_args

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageColor, UnidentifiedImageError

from .errors import ImageLoadError, ImageNotFoundError, printable
from .limits import (
    TIFF_STARTS,
    BoundedFile,
    check_memory,
    check_tiff,
    check_time,
    decoded_bytes,
    drop_notes,
    orientation,
    start_decoding,
    without_warnings,
)
from .sources import ImageSource, describe_source, error_detail, exclusive, opened
from .urls import AllowUrls, check_hosts

OnError: TypeAlias = Literal["raise", "skip"]

# Decoders that are well kept and that everybody uses. Others come with a user's word for them: EPS,
# for one, is a program, and runs.
IMAGE_FORMATS = ("BMP", "GIF", "JPEG", "PNG", "TIFF", "WEBP")
_NOT_SUGGESTED = frozenset(("EPS", "WMF"))

# Where Pillow itself stops with a DecompressionBombError: 512 MiB as RGB.
MAX_PIXELS = 178_956_970

# Of larger pictures one is decoded at a time: each takes up to 512 MB meanwhile, and there are as
# many threads as cores. Most JPEGs are decoded to far less.
_LARGE_PIXELS = 16_000_000
_LARGE_LOCK = threading.Lock()

# Converted at a time, so that little memory is taken beside the picture and what becomes of it.
_BAND_PIXELS = 1_000_000

_UPRIGHT_BY = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# Where Pillow looks for the turn; not to be found again in a picture that has been turned.
_TELLS_ORIENTATION = ("exif", "xmp", "XML:com.adobe.xmp", "Raw profile type exif")

Box: TypeAlias = tuple[int, int, int, int]


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
        return printable(f"{self.source}: {self.reason}")


def load_image(
    source: ImageSource,
    *,
    background: str = "white",
    max_pixels: int = MAX_PIXELS,
    allow_urls: AllowUrls = False,
    least_side: int | None = None,
    image_formats: Collection[str] = (),
) -> Image.Image:
    """Turn any image source into an upright RGB picture.

    EXIF orientation is applied, transparency is composited on ``background``, 16-bit and float
    pictures are scaled to 8 bits rather than clipped, and of an animation the first frame is taken.
    No more than 512 MB of memory is taken meanwhile; what would take more is refused by its header.

    Args:
        source: A path (``str`` or ``Path``), encoded bytes, a binary stream, a PIL image, an array
            of shape ``(height, width)`` or ``(height, width, 1 | 3 | 4)``, a data URI, base64 text,
            an ``fsspec.open("s3://...")``, a URL where they are allowed, or a LlamaIndex node that
            holds an image. A floating-point array counts from 0 to 1.
        background: Colour under transparent pixels, as Pillow names colours.
        max_pixels: Refuse pictures of more pixels before decoding them.
        allow_urls: Whether http and https URLs are fetched, or the only hosts they may be of, such
            as ``["example.com", "*.example.org"]``. Only from public addresses, at most 64 MiB.
        least_side: Decode a JPEG at half, a quarter or an eighth of its size, as long as its sides
            keep this many pixels, which is several times faster; reduce other pictures of more
            than 16 million pixels likewise; ``None`` keeps them in full.
        image_formats: Formats to read beside BMP, GIF, JPEG, PNG, TIFF and WebP, as Pillow names
            them, such as ``("AVIF",)``. A PIL image may be of any.

    Returns:
        A decoded picture of mode ``RGB``.

    Raises:
        ImageNotFoundError: If the path does not exist.
        ImageLoadError: If the source is no picture of these formats, is damaged, too large, or a
            URL that is not allowed or cannot be fetched.
        ValueError: If Pillow has no such format, or a host is none.
    """
    name = describe_source(source)
    # Outside of what follows: a wrong colour, format or host is no fault of the picture.
    ImageColor.getrgb(background)
    formats = check_formats(image_formats)
    allow_urls = check_hosts(allow_urls)
    try:
        with exclusive(source), opened(source, allow_urls=allow_urls) as raw:
            if isinstance(raw, Image.Image):
                return _from_pil(raw, background, max_pixels)
            if isinstance(raw, np.ndarray):
                return _from_array(raw, background, max_pixels)
            # Of a stream, or base64, the content is ours.
            is_held = isinstance(raw, io.BytesIO) and not isinstance(source, bytes)
            return _decode(raw, is_held, background, max_pixels, least_side, formats)
    except ImageLoadError as err:
        raise type(err)(err.reason, source=name) from err.__cause__
    except FileNotFoundError as err:
        raise ImageNotFoundError("no such file", source=name) from err
    except Image.DecompressionBombError as err:
        raise ImageLoadError(str(err), source=name) from err
    # Pillow's decoders also raise struct.error, KeyError and others over a damaged file.
    except Exception as err:
        raise ImageLoadError(f"damaged or unreadable ({error_detail(err)})", source=name) from err


def check_formats(image_formats: Collection[str]) -> tuple[str, ...]:
    """Return the formats that are read, those of a user's beside the usual ones.

    Raises:
        ValueError: If Pillow has no such format; says which it has.
    """
    if isinstance(image_formats, str):
        raise ValueError(
            f"image_formats is {image_formats!r}, expected a list such as [{image_formats!r}]"
        )
    added = [name.upper() for name in image_formats]
    if not set(added) <= set(Image.OPEN):
        Image.init()  # Imports those that are not imported yet.
    if unknown := sorted(set(added) - set(Image.OPEN)):
        raise ValueError(
            f"image_formats names {', '.join(unknown)}, which Pillow does not read here; it reads "
            f"{', '.join(sorted(Image.OPEN))}"
        )
    return tuple(dict.fromkeys((*IMAGE_FORMATS, *added)))


def suffixes_of(image_formats: Collection[str]) -> frozenset[str]:
    """Return how files of formats that a user adds are called, such as ``.avif``."""
    added = {name.upper() for name in image_formats}
    check_formats(image_formats)
    by_suffix = Image.registered_extensions() if added else {}
    return frozenset(suffix for suffix, name in by_suffix.items() if name in added)


def read_header(
    source: ImageSource, *, image_formats: Collection[str] = ()
) -> tuple[str, int, int]:
    """Return a picture's mime type, width and height, as stored, without decoding it.

    Raises:
        ImageLoadError: If it is no picture of the formats that are read.
    """
    formats = check_formats(image_formats)
    name = describe_source(source)
    try:
        with opened(source) as raw:
            if isinstance(raw, (Image.Image, np.ndarray)):
                raise ImageLoadError("pixels have no header")
            with _opened(BoundedFile(raw), formats) as image:
                return image.get_format_mimetype() or "", image.width, image.height
    except ImageLoadError as err:
        raise type(err)(err.reason, source=name) from err.__cause__
    except Exception as err:
        raise ImageLoadError(f"damaged or unreadable ({error_detail(err)})", source=name) from err


def iter_images(
    sources: Iterable[tuple[int, ImageSource]],
    *,
    failures: list[ImageFailure] | None = None,
    background: str = "white",
    allow_urls: AllowUrls = False,
    image_formats: Collection[str] = (),
) -> Iterator[tuple[int, Image.Image]]:
    """Load images one after the other, each dropped before the next is opened.

    Args:
        sources: The position to report and the image source, as `load_image` takes it.
        failures: Where to note a source that fails; ``None`` raises at the first one.
        background: As in `load_image`.
        allow_urls: As in `load_image`.
        image_formats: As in `load_image`.

    Yields:
        The position and the picture, for each source that loads.

    Raises:
        ImageLoadError: If a source fails and ``failures`` is ``None``; carries the index.
    """
    for index, source in sources:
        try:
            picture = load_image(
                source, background=background, allow_urls=allow_urls, image_formats=image_formats
            )
        except ImageLoadError as err:
            if failures is None:
                raise type(err)(err.reason, source=err.source, index=index) from err.__cause__
            failures.append(ImageFailure(index, err.source, err.reason))
        else:
            yield index, picture


def load_images(
    sources: Sequence[ImageSource],
    *,
    on_error: OnError = "raise",
    background: str = "white",
    allow_urls: AllowUrls = False,
    image_formats: Collection[str] = (),
) -> tuple[list[Image.Image], list[int], list[ImageFailure]]:
    """Load several images, keeping track of which ones they are.

    Args:
        sources: Image sources, as `load_image` takes them.
        on_error: Stop at a source that fails, or go on and report it.
        background: As in `load_image`.
        allow_urls: As in `load_image`.
        image_formats: As in `load_image`.

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
            image_formats=image_formats,
        )
    )
    return [image for _, image in loaded], [index for index, _ in loaded], failures


@contextmanager
def _opened(file: BoundedFile, formats: Sequence[str]) -> Iterator[Any]:
    """Open an encoded picture, and keep what Pillow warns of meanwhile to us."""
    if not file.size:
        raise ImageLoadError("the file is empty (0 bytes)")
    with without_warnings():
        if file.read(4) in TIFF_STARTS:
            file.seek(0)
            check_tiff(file)
        try:
            image = Image.open(file, formats=formats)  # type: ignore[arg-type]
        except UnidentifiedImageError as err:
            raise ImageLoadError(_unidentified(file, formats)) from err
        with image:
            yield image


def _unidentified(file: BoundedFile, formats: Sequence[str]) -> str:
    """Say why no decoder took a file, by its first bytes: none is run over it."""
    file.seek(0)
    start = file.read(16)
    Image.init()
    like = [kind for kind, (_, accept) in Image.OPEN.items() if accept and _accepts(accept, start)]
    if begins := next((kind for kind in like if kind in formats), None):
        return f"damaged or unreadable (it begins as {begins}, with a header that is not whole)"
    allowed = f"not a picture in a format that is read ({', '.join(formats)})"
    if known := next((kind for kind in like if kind not in _NOT_SUGGESTED), None):
        return f"{allowed}; it begins as {known}, which image_formats=({known!r},) adds"
    return f"{allowed}; image_formats=(...) adds others"


def _accepts(accept: Callable[[bytes], Any], start: bytes) -> bool:
    try:
        return accept(start) is True
    except Exception:  # It was made for files that are not cut off.
        return False


def _decode(
    file: BinaryIO,
    is_held: bool,
    background: str,
    max_pixels: int,
    least_side: int | None,
    formats: Sequence[str],
) -> Image.Image:
    bounded = BoundedFile(file)
    with _opened(bounded, formats) as image:
        _check_pixels(image.width, image.height, max_pixels)
        check_time(image)
        size = image.size
        if least_side:
            # Of no effect on formats that do not decode to fractions of their size.
            image.draft(None, (least_side, least_side))
        is_large = image.width * image.height > _LARGE_PIXELS
        factor = max(1, min(image.size) // least_side) if is_large and least_side else 1
        held = drop_notes(image) + 2 * bounded.n_notes + is_held * bounded.size
        decoding = decoded_bytes(image, of_encoded=size)
        converting = _converted_bytes(image, factor)
        check_memory(_described(image), held + decoding + converting)
        with _LARGE_LOCK if is_large else nullcontext():
            start_decoding(image, bounded, size)
            image.load()
            drop_notes(image)
            turn = orientation(image)
            picture = _to_rgb(image, background, factor)
            image.close()
            return _turned(picture, turn)


def _from_pil(image: Image.Image, background: str, max_pixels: int) -> Image.Image:
    _check_pixels(image.width, image.height, max_pixels)
    decoding = 4 * image.width * image.height
    if getattr(image, "tile", None):  # Opened, and not decoded yet.
        check_time(image)
        decoding = decoded_bytes(image, of_encoded=image.size) + _converted_bytes(image, 1)
    check_memory(_described(image), decoding)
    is_large = image.width * image.height > _LARGE_PIXELS
    with without_warnings(), _LARGE_LOCK if is_large else nullcontext():
        image.load()
        turn = orientation(image)
        picture = _to_rgb(image, background, 1)
        if turn in _UPRIGHT_BY:
            return _turned(picture, turn)
        # The caller's stays the caller's.
        return picture.copy() if picture.im is image.im else picture


def _check_pixels(width: int, height: int, max_pixels: int) -> None:
    if width * height > max_pixels:
        raise ImageLoadError(f"{width}x{height} pixels are more than the limit of {max_pixels}")
    if width * height == 0:
        raise ImageLoadError(f"{width}x{height}: a picture without pixels")


def _described(image: Image.Image) -> str:
    return f"{image.width}x{image.height} pixels ({image.format or 'in memory'}, {image.mode})"


def _turned(picture: Image.Image, turn: int) -> Image.Image:
    method = _UPRIGHT_BY.get(turn)
    if method is None:
        return picture
    check_memory(_described(picture), 8 * picture.width * picture.height)
    turned = picture.transpose(method)
    for key in _TELLS_ORIENTATION:
        turned.info.pop(key, None)
    return turned


def _is_plain(image: Image.Image, factor: int) -> bool:
    return image.mode == "RGB" and "transparency" not in image.info and factor == 1


def _converted_bytes(image: Image.Image, factor: int) -> int:
    """Return what `_to_rgb` takes beside the picture."""
    if _is_plain(image, factor):
        return 0
    return 4 * -(-image.width // factor) * -(-image.height // factor)


def _to_rgb(image: Image.Image, background: str, factor: int) -> Image.Image:
    """Convert a decoded picture, and reduce it, a band at a time."""
    if _is_plain(image, factor):
        return image._new(image.im)
    if image.mode.startswith(("I", "F")):
        parts = (np.asarray(image.crop(box)) for box in _boxes(*image.size, factor))
        low, high = _black_and_white(parts)
    else:
        low, high = 0.0, 255.0
    picture = Image.new("RGB", (-(-image.width // factor), -(-image.height // factor)))
    for left, top, right, bottom in _boxes(*image.size, factor):
        part = _part_to_rgb(image.crop((left, top, right, bottom)), background, low, high)
        picture.paste(part.reduce(factor) if factor > 1 else part, (left // factor, top // factor))
    return picture


def _boxes(width: int, height: int, factor: int = 1) -> Iterator[Box]:
    """Yield parts of a picture that are small, and whole numbers of ``factor`` wide and high."""
    across = min(width, max(1, _BAND_PIXELS // factor**2) * factor)
    down = max(1, _BAND_PIXELS // (across * factor)) * factor
    for top in range(0, height, down):
        for left in range(0, width, across):
            yield left, top, min(left + across, width), min(top + down, height)


def _part_to_rgb(image: Image.Image, background: str, low: float, high: float) -> Image.Image:
    if image.mode.startswith(("I", "F")):
        values = np.asarray(image)
        picture = Image.fromarray(_scaled(values, low, high)).convert("RGB")
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


def _from_array(array: NDArray[Any], background: str, max_pixels: int) -> Image.Image:
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (3, 4)):
        raise ImageLoadError(
            "expected an array of shape (height, width) or (height, width, 1, 3 or 4)"
        )
    if not array.size:
        raise ImageLoadError("an array without pixels")
    height, width = array.shape[:2]
    _check_pixels(width, height, max_pixels)
    # Its values as bytes, the picture, and the picture without its transparency.
    check_memory(f"an array of shape {array.shape}", array.size + 8 * height * width)
    if array.dtype == np.bool_:
        array = array.astype(np.uint8) * 255
    if array.dtype != np.uint8:
        array = _scaled_array(array)
    return _to_rgb(Image.fromarray(array), background, 1)


def _scaled_array(array: NDArray[Any]) -> NDArray[np.uint8]:
    height, width = array.shape[:2]
    boxes = list(_boxes(width, height))
    low, high = _black_and_white(array[top:low, left:right] for left, top, right, low in boxes)
    scaled = np.empty(array.shape, np.uint8)
    for left, top, right, bottom in boxes:
        part = array[top:bottom, left:right]
        scaled[top:bottom, left:right] = _scaled(part, low, high)
    return scaled


def _black_and_white(parts: Iterable[NDArray[Any]]) -> tuple[float, float]:
    """Return what is black and what is white in a picture of more than 8 bits.

    White is 65535 for unsigned 16-bit, and the first of 1 (floating point only), 255 and 65535 that
    is not exceeded for other types. Values beyond that, or negative ones, have no white of their
    own: their range is stretched.
    """
    low, high, dtype = np.inf, -np.inf, np.dtype(np.uint8)
    for part in parts:
        dtype = part.dtype
        if dtype.kind not in "iuf":
            raise ImageLoadError(f"an array of {dtype} holds no pixels")
        if not np.isfinite(part).all():
            raise ImageLoadError("the pixels contain NaN or infinity")
        low, high = min(low, float(part.min())), max(high, float(part.max()))
    if dtype.kind == "u" and dtype.itemsize == 2:
        whites = [65535.0]
    else:
        whites = [1.0, 255.0, 65535.0] if dtype.kind == "f" else [255.0, 65535.0]
    if low >= 0 and high <= whites[-1]:
        low, high = 0.0, next(white for white in whites if high <= white)
    return low, high


def _scaled(values: NDArray[Any], low: float, high: float) -> NDArray[np.uint8]:
    span = (high - low) or 1.0
    return np.rint((values.astype(np.float64) - low) / span * 255).astype(np.uint8)
