"""Any image source -> an upright RGB picture, or which input failed and why."""

from __future__ import annotations

import base64
import binascii
import hashlib
import io
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias, Union, get_args

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageColor, ImageOps, UnidentifiedImageError

from .errors import ImageLoadError, ImageNotFoundError

# A node, too: anything with ``image_resource``, or ``image``, ``image_path`` and ``image_url``.
ImageSource: TypeAlias = Union[
    str, "os.PathLike[str]", bytes, bytearray, memoryview, io.BytesIO, Image.Image,
    "NDArray[Any]", Any,
]  # fmt: skip
OnError: TypeAlias = Literal["raise", "skip"]

# Where Pillow itself stops with a DecompressionBombError: 512 MiB as RGB.
MAX_PIXELS = 178_956_970

_EXIF_ORIENTATION = 0x0112
_DATA_URI = re.compile(r"data:[\w.+/-]*(?:;[\w.-]+=[\w.-]+)*(?P<base64>;base64)?,", re.IGNORECASE)
_URL = re.compile(r"[a-z][a-z0-9+.-]+://", re.IGNORECASE)
_BASE64 = re.compile(r"[A-Za-z0-9+/\s]{32,}={0,2}\s*")
# The first characters of base64-encoded JPEG, PNG, GIF, WebP (RIFF), BMP and TIFF data.
_BASE64_MAGIC = ("/9j/", "iVBORw0KGgo", "R0lGOD", "UklGR", "Qk", "SUkq", "TU0A")


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
        raw = read_source(source, allow_urls=allow_urls)
        if isinstance(raw, bytes):
            return _decode(raw, background, max_pixels)
        if isinstance(raw, np.ndarray):
            raw = _from_array(raw)
        _check_pixels(raw, max_pixels)
        return _to_rgb(raw, background)
    except ImageLoadError as err:
        raise type(err)(err.reason, source=name) from err.__cause__
    except UnidentifiedImageError as err:
        raise ImageLoadError("not a picture in a format that Pillow reads", source=name) from err
    except FileNotFoundError as err:
        raise ImageNotFoundError("no such file", source=name) from err
    # Pillow's decoders also raise struct.error, KeyError and others over a damaged file.
    except Exception as err:
        raise ImageLoadError(f"damaged or unreadable ({_detail(err)})", source=name) from err


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


def image_digest(source: ImageSource) -> str:
    """Return the SHA-256 of an image's encoded bytes, or of its pixels if it has no encoding.

    Raises:
        ImageNotFoundError: If the path does not exist.
        ImageLoadError: If the source cannot be read.
    """
    name = describe_source(source)
    try:
        return hashlib.sha256(_digestible(read_source(source))).hexdigest()
    except ImageLoadError as err:
        raise type(err)(err.reason, source=name) from err.__cause__
    except FileNotFoundError as err:
        raise ImageNotFoundError("no such file", source=name) from err
    except Exception as err:
        raise ImageLoadError(f"damaged or unreadable ({_detail(err)})", source=name) from err


def _digestible(raw: bytes | Image.Image | NDArray[Any]) -> bytes:
    """Return the encoded bytes, or the pixels preceded by all that decides how they look."""
    if isinstance(raw, bytes):
        return raw
    if isinstance(raw, np.ndarray):
        return f"{raw.dtype}{raw.shape}".encode() + raw.tobytes()
    content = raw.tobytes()
    orientation = raw.getexif().get(_EXIF_ORIENTATION, 1)
    header = [raw.mode, raw.size, orientation, raw.getpalette(), raw.info.get("transparency")]
    return repr(header).encode() + content


def _detail(err: Exception) -> str:
    """Say what an exception says, without the path that an `OSError` adds (it may be the input)."""
    return getattr(err, "strerror", None) or str(err)


def read_source(
    source: ImageSource, *, allow_urls: bool = False
) -> bytes | Image.Image | NDArray[Any]:
    """Read a source without decoding it: encoded bytes, or the PIL image or array it already is.

    Raises:
        ImageLoadError: If the source is a URL, empty, or of a type that holds no image.
        OSError: If a file cannot be read.
    """
    if isinstance(source, (Image.Image, np.ndarray)):
        return source
    if isinstance(source, (bytes, bytearray, memoryview)):
        return bytes(source)
    if isinstance(source, os.PathLike):
        return Path(source).expanduser().read_bytes()
    if isinstance(source, str):
        return _read_string(source, allow_urls)
    if hasattr(source, "read"):
        return _read_stream(source)
    inner = _node_source(source)
    if inner is None:
        raise ImageLoadError(
            f"{type(source).__name__} holds no image; expected a path, bytes, a binary stream, a "
            "PIL image, an array, a data URI, base64 text, or a node with an image"
        )
    return read_source(inner, allow_urls=allow_urls)


def has_image(node: Any) -> bool:
    """Whether a LlamaIndex node holds an image, by value, path or URL."""
    return _node_source(node) is not None


def describe_source(source: ImageSource) -> str:
    """Name a source for a person: its path, or its type and size. Never its content."""
    if isinstance(source, os.PathLike):
        return os.fspath(source)
    if isinstance(source, str):
        if len(source) > 256 or source[:5].lower() == "data:":
            return f"{source[:24]}... ({len(source)} characters)"
        return source
    if isinstance(source, (bytes, bytearray, memoryview)):
        return f"{type(source).__name__} of {len(source)} bytes"
    if isinstance(source, Image.Image):
        return f"PIL image {source.mode} {source.width}x{source.height}"
    if isinstance(source, np.ndarray):
        return f"array {source.dtype} {source.shape}"
    inner = _node_source(source)
    if inner is not None:
        return describe_source(inner)
    return type(source).__name__


def _read_string(text: str, allow_urls: bool) -> bytes:
    if match := _DATA_URI.match(text):
        if not match["base64"]:
            raise ImageLoadError("a data URI without base64 content holds no picture")
        return _decode_base64(text[match.end() :])
    if _URL.match(text):
        later = "; fetching with allow_urls=True is not there yet" if allow_urls else ""
        raise ImageLoadError(
            f"URLs are not fetched{later}: download the file and pass its path or bytes"
        )
    looks_encoded = text.startswith(_BASE64_MAGIC) and _BASE64.fullmatch(text)
    if looks_encoded and not os.path.lexists(text):
        return _decode_base64(text)
    if not text:
        raise ImageLoadError("an empty string is no image")
    return Path(text).expanduser().read_bytes()


def _decode_base64(text: str) -> bytes:
    try:
        return base64.b64decode("".join(text.split()), validate=True)
    except binascii.Error as err:
        raise ImageLoadError(f"invalid base64 ({err})") from err


def _read_stream(stream: Any) -> bytes:
    """Read a stream from its start and leave it where it was, so that it can be read again."""
    position = stream.tell() if stream.seekable() else None
    if position:
        stream.seek(0)
    content = stream.read()
    if position is not None:
        stream.seek(position)
    if not isinstance(content, bytes):
        raise ImageLoadError("the stream gives text; open it in binary mode")
    return content


def _node_source(node: Any) -> ImageSource | None:
    """Return where a node keeps its image, by the attributes LlamaIndex's classes share."""
    if resource := getattr(node, "image_resource", None):
        if resource.data:
            return f"data:;base64,{resource.data.decode()}"
        return resource.path or (str(resource.url) if resource.url else None)
    if image := getattr(node, "image", None):
        return image if image[:5].lower() == "data:" else f"data:;base64,{image}"
    path = getattr(node, "image_path", None)
    return Path(path).expanduser() if path else getattr(node, "image_url", None)


def _decode(content: bytes, background: str, max_pixels: int) -> Image.Image:
    if not content:
        raise ImageLoadError("the file is empty (0 bytes)")
    with Image.open(io.BytesIO(content)) as image:
        _check_pixels(image, max_pixels)
        return _to_rgb(image, background)


def _check_pixels(image: Image.Image, max_pixels: int) -> None:
    if image.width * image.height > max_pixels:
        raise ImageLoadError(
            f"{image.width}x{image.height} pixels are more than the limit of {max_pixels}"
        )
    if image.width * image.height == 0:
        raise ImageLoadError(f"{image.width}x{image.height}: a picture without pixels")


def _to_rgb(image: Image.Image, background: str) -> Image.Image:
    image = ImageOps.exif_transpose(image)
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode.startswith(("I", "F")):
        values = np.asarray(image)
        picture = _scale_to_8_bit(values).convert("RGB")
        if (clear := image.info.get("transparency")) is not None:
            picture.paste(ImageColor.getrgb(background), mask=Image.fromarray(values == clear))
        return picture
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
