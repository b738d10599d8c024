"""What an image may come as: read without decoding, named for a person, told apart by content."""

from __future__ import annotations

import base64
import binascii
import hashlib
import io
import os
import re
import stat
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias, Union

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from .errors import ImageLoadError, ImageNotFoundError, printable
from .filesystems import address, is_file, read_file
from .limits import orientation
from .urls import AllowUrls, Fetched, describe_url

# An fsspec file, too, and a node: anything with ``image_resource``, or with ``image``,
# ``image_path`` and ``image_url``.
ImageSource: TypeAlias = Union[
    str, "os.PathLike[str]", bytes, bytearray, memoryview, io.BytesIO, Image.Image,
    "NDArray[Any]", Any,
]  # fmt: skip

# Of a file that is decoded or hashed in blocks.
MAX_FILE_BYTES = 1_000_000_000
# Of what has to be held in memory: a stream's content, a file that is read at once.
MAX_HELD_BYTES = 128_000_000
# Of base64, in characters: it is copied several times.
MAX_BASE64_LENGTH = 64_000_000

_BLOCK = 1 << 20
_KINDS_OF_FILE = {
    stat.S_IFDIR: "a directory",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}

# A PIL image decodes itself, and a stream is read from a position, in place: one that is passed
# twice must not be worked on by two threads. A lock for each object, as good as.
_IN_PLACE_LOCKS = [threading.RLock() for _ in range(64)]

_DATA_URI = re.compile(r"data:[\w.+/-]*(?:;[\w.-]+=[\w.-]+)*(?P<base64>;base64)?,", re.IGNORECASE)
_URL = re.compile(r"[a-z][a-z0-9+.-]+://", re.IGNORECASE)
_BASE64 = re.compile(r"[A-Za-z0-9+/\s]{32,}={0,2}\s*")
_SPACES = b" \t\n\r\v\f"
# The first characters of base64-encoded JPEG, PNG, GIF, WebP (RIFF), BMP and TIFF data.
_BASE64_MAGIC = ("/9j/", "iVBORw0KGgo", "R0lGOD", "UklGR", "Qk", "SUkq", "TU0A")


def image_digest(source: ImageSource) -> str:
    """Return the SHA-256 of an image's encoded bytes, or of its pixels if it has no encoding.

    Raises:
        ImageNotFoundError: If the path does not exist.
        ImageLoadError: If the source cannot be read.
    """
    name = describe_source(source)
    try:
        with exclusive(source), opened(source) as raw:
            if isinstance(raw, (Image.Image, np.ndarray)):
                return hashlib.sha256(_digestible(raw)).hexdigest()
            digest = hashlib.sha256()
            while block := raw.read(_BLOCK):
                digest.update(block)
            return digest.hexdigest()
    except ImageLoadError as err:
        raise type(err)(err.reason, source=name) from err.__cause__
    except FileNotFoundError as err:
        raise ImageNotFoundError("no such file", source=name) from err
    except Exception as err:
        raise ImageLoadError(f"damaged or unreadable ({error_detail(err)})", source=name) from err


def _digestible(raw: Image.Image | NDArray[Any]) -> bytes:
    """Return the pixels, preceded by all that decides how they look."""
    if isinstance(raw, np.ndarray):
        return f"{raw.dtype}{raw.shape}".encode() + raw.tobytes()
    content = raw.tobytes()
    facts = [raw.mode, raw.size, orientation(raw), raw.getpalette()]
    header = [*facts, raw.info.get("transparency")]
    return repr(header).encode() + content


def exclusive(source: ImageSource) -> AbstractContextManager[Any]:
    """Keep other threads from a source that is read in place, until the ``with`` block ends."""
    if isinstance(source, Image.Image) or hasattr(source, "read"):
        return _IN_PLACE_LOCKS[hash(id(source)) % len(_IN_PLACE_LOCKS)]
    return nullcontext()


def error_detail(err: Exception) -> str:
    """Say what an exception says, without the path that an `OSError` adds (it may be the input)."""
    return getattr(err, "strerror", None) or str(err) or type(err).__name__


@contextmanager
def opened(
    source: ImageSource, *, allow_urls: AllowUrls = False
) -> Iterator[BinaryIO | Image.Image | NDArray[Any]]:
    """Open an encoded picture as a file, without reading a file into memory.

    Yields:
        The file, until the ``with`` block ends; or the PIL image or array that the source is.

    Raises:
        ImageLoadError: As `read_source`.
        OSError: As `read_source`.
    """
    path = _path_of(source)
    if path is not None:
        with open_file(path) as file:
            yield file
        return
    raw = read_source(source, allow_urls=allow_urls)
    yield io.BytesIO(raw) if isinstance(raw, bytes) else raw


def open_file(path: Path) -> BinaryIO:
    """Open a regular file, and nothing else: pipes and devices may never end, or never begin.

    Raises:
        ImageLoadError: If it is something else, or too large.
        OSError: If it cannot be opened.
    """
    # Asked before, because opening a device may set it going, and after, because it may have been
    # replaced meanwhile; a pipe that takes its place does not keep us waiting.
    found = os.stat(path)
    if stat.S_ISDIR(found.st_mode):
        os.scandir(path).close()  # One that cannot be listed is passed for a file, to say why.
    _check_regular(found)

    def without_waiting(name: str, flags: int) -> int:
        return os.open(name, flags | getattr(os, "O_NONBLOCK", 0))

    file = open(path, "rb", opener=without_waiting)  # noqa: SIM115
    try:
        _check_regular(os.fstat(file.fileno()))
    except BaseException:
        file.close()
        raise
    return file


def _check_regular(found: os.stat_result) -> None:
    if not stat.S_ISREG(found.st_mode):
        kind = _KINDS_OF_FILE.get(stat.S_IFMT(found.st_mode), "something else")
        raise ImageLoadError(f"{kind}, not a file")
    if found.st_size > MAX_FILE_BYTES:
        raise ImageLoadError(_too_large(found.st_size, MAX_FILE_BYTES))


def _read_file(path: Path) -> bytes:
    with open_file(path) as file:
        return _read_whole(file)


def _read_whole(stream: Any) -> bytes:
    """Read a stream to its end, unless that is too far away."""
    blocks: list[bytes] = []
    size = 0
    while block := stream.read(_BLOCK):
        if not isinstance(block, (bytes, bytearray)):
            raise ImageLoadError("the stream gives text; open it in binary mode")
        blocks.append(bytes(block))
        size += len(block)
        if size > MAX_HELD_BYTES:
            raise ImageLoadError(_too_large(size, MAX_HELD_BYTES))
    if block is None:
        raise ImageLoadError("the stream has nothing to read yet; open it in blocking mode")
    if not isinstance(block, (bytes, bytearray)):
        raise ImageLoadError("the stream gives text; open it in binary mode")
    return b"".join(blocks)


def _too_large(size: int, most: int) -> str:
    return f"at least {size} bytes, at most {most} are read; make it smaller"


def _path_of(source: ImageSource) -> Path | None:
    """Return where a source's file lies; ``None`` if it is no file's path."""
    if isinstance(source, os.PathLike):
        return Path(source).expanduser()
    if isinstance(source, str):
        is_other = not source or _DATA_URI.match(source) or _URL.match(source) or _is_base64(source)
        return None if is_other else Path(source).expanduser()
    if isinstance(source, (bytes, bytearray, memoryview, Image.Image, np.ndarray)):
        return None
    inner = None if hasattr(source, "read") else _node_source(source)
    return None if inner is None else _path_of(inner)


def read_source(
    source: ImageSource, *, allow_urls: AllowUrls = False
) -> bytes | Image.Image | NDArray[Any]:
    """Read a source without decoding it: encoded bytes, or the PIL image or array it already is.

    Raises:
        ImageLoadError: If the source is empty, too large to be held in memory, no regular file, of
            a type that holds no image, or a URL that is not allowed or cannot be fetched.
        OSError: If a file cannot be read.
    """
    if isinstance(source, (bytes, Image.Image, np.ndarray)):
        return source
    if isinstance(source, (bytearray, memoryview)):
        return bytes(source)
    if is_file(source):
        return read_file(source)
    if isinstance(source, os.PathLike):
        return _read_file(Path(source).expanduser())
    if isinstance(source, str):
        return _read_string(source, allow_urls)
    if hasattr(source, "read"):
        return _read_stream(source)
    inner = _node_source(source)
    if inner is None:
        raise ImageLoadError(
            f"{type(source).__name__} holds no image; expected a path, bytes, a binary stream, an "
            "fsspec file, a PIL image, an array, a data URI, base64 text, a URL where they are "
            "allowed, or a node with an image"
        )
    return read_source(inner, allow_urls=allow_urls)


def fetched(source: ImageSource, allow_urls: AllowUrls) -> ImageSource:
    """Return the content of an image that is elsewhere: by URL, or an fsspec file. Else the source.

    For who uses it twice, as for its hash and for its pixels: it may be another one by then.

    Raises:
        ImageLoadError: If it is not allowed or cannot be fetched.
    """
    place = source if isinstance(source, str) or is_file(source) else _node_source(source)
    if not is_file(place) and not is_url(place):
        return source
    try:
        content = read_source(place, allow_urls=allow_urls)
    except ImageLoadError as err:
        raise type(err)(err.reason, source=describe_source(place)) from err.__cause__
    except FileNotFoundError as err:
        raise ImageNotFoundError("no such file", source=describe_source(place)) from err
    except Exception as err:  # Whatever the libraries of file systems raise.
        reason = f"unreadable ({error_detail(err)})"
        raise ImageLoadError(reason, source=describe_source(place)) from err
    return content


def is_url(source: Any) -> bool:
    """Whether a source is a string that names a scheme and a host, such as ``https://...``."""
    return isinstance(source, str) and _URL.match(source) is not None


def reusable(source: ImageSource, allow_urls: AllowUrls) -> ImageSource:
    """Return the content of what can be read once only, or is elsewhere; else the source.

    Raises:
        ImageLoadError: As `fetched` does.
    """
    source = fetched(source, allow_urls)
    stream: Any = source
    with suppress(Exception):  # Whoever reads it next finds out why it cannot be read.
        if hasattr(stream, "read") and not stream.seekable():
            return _read_stream(stream)
    return source


def held(source: ImageSource) -> ImageSource:
    """Return a source that stays what it is when whoever yielded it goes on.

    A generator may close a file, or draw the next picture into the same array, once it is asked
    for the next one.
    """
    stream: Any = source
    with suppress(Exception):  # Whoever reads it next finds out why it cannot be read.
        if isinstance(source, Image.Image):
            source.load()
        elif isinstance(source, np.ndarray):
            return source.copy()
        elif hasattr(stream, "read"):
            return _read_stream(stream)
    return source


def has_image(node: Any) -> bool:
    """Whether a LlamaIndex node holds an image, by value, path or URL."""
    return _node_source(node) is not None


def is_decoded(source: ImageSource) -> bool:
    """Whether a source is pixels already, so that its digest is not that of any file."""
    return isinstance(source, (Image.Image, np.ndarray))


def describe_source(source: ImageSource) -> str:
    """Name a source for a person: its path, or its type and size. Never its content.

    What a terminal would obey is escaped: a name cannot pass for a line of its own.
    """
    if isinstance(source, os.PathLike):
        return printable(os.fsdecode(source))
    if is_file(source):
        return describe_url(address(source))
    if isinstance(source, Fetched):
        return describe_url(source.url)
    if isinstance(source, str):
        if _URL.match(source):
            return describe_url(source)
        if len(source) > 256 or source[:5].lower() == "data:":
            return printable(f"{source[:24]}... ({len(source)} characters)")
        return printable(source)
    if isinstance(source, (bytes, bytearray, memoryview)):
        return f"{type(source).__name__} of {len(source)} bytes"
    if isinstance(source, Image.Image):
        return f"PIL image {source.mode} {source.width}x{source.height}"
    if isinstance(source, np.ndarray):
        return f"array {source.dtype} {source.shape}"
    # Of a node that holds its image, too, it is where that lies that tells it from others.
    inner = _node_address(source) or _node_source(source)
    if inner is not None:
        return describe_source(inner)
    return type(source).__name__


def _read_string(text: str, allow_urls: AllowUrls) -> bytes:
    if match := _DATA_URI.match(text):
        if not match["base64"]:
            raise ImageLoadError("a data URI without base64 content holds no picture")
        return _decode_base64(text[match.end() :])
    if is_url(text):
        # Here, because few have URLs, and all would wait for an HTTP client to be imported.
        from .remote import fetch

        return fetch(text, allow_urls)
    if _is_base64(text):
        return _decode_base64(text)
    if not text:
        raise ImageLoadError("an empty string is no image")
    return _read_file(Path(text).expanduser())


def _is_base64(text: str) -> bool:
    looks_encoded = text.startswith(_BASE64_MAGIC) and _BASE64.fullmatch(text)
    return bool(looks_encoded) and not os.path.lexists(text)


def _decode_base64(text: str) -> bytes:
    if len(text) > MAX_BASE64_LENGTH:
        raise ImageLoadError(
            f"base64 of {len(text)} characters, at most {MAX_BASE64_LENGTH} are read; pass the "
            "file's path or bytes"
        )
    try:
        return base64.b64decode(text.encode("ascii").translate(None, _SPACES), validate=True)
    except (binascii.Error, UnicodeEncodeError) as err:
        raise ImageLoadError(f"invalid base64 ({err})") from err


def _read_stream(stream: Any) -> bytes:
    """Read a stream from its start and leave it where it was, so that it can be read again."""
    position = stream.tell() if stream.seekable() else None
    if position:
        stream.seek(0)
    try:
        return _read_whole(stream)
    finally:
        if position is not None:
            stream.seek(position)


def _node_source(node: Any) -> ImageSource | None:
    """Return where a node keeps its image, by the attributes LlamaIndex's classes share."""
    if resource := getattr(node, "image_resource", None):
        if resource.data:
            # Cut off, what is too long is found to be.
            return f"data:;base64,{resource.data[: MAX_BASE64_LENGTH + 1].decode()}"
    elif image := getattr(node, "image", None):
        return image if image[:5].lower() == "data:" else f"data:;base64,{image}"
    return _node_address(node)


def _node_address(node: Any) -> ImageSource | None:
    """Return where a node's image lies, whether or not the node holds it, too."""
    if resource := getattr(node, "image_resource", None):
        return resource.path or (str(resource.url) if resource.url else None)
    if file := getattr(node, "image_file", None):
        return file
    if path := getattr(node, "image_path", None):
        return Path(path).expanduser()
    url = getattr(node, "image_url", None)
    # Never a path: a list of URLs from somebody else reads no file of ours.
    is_elsewhere = not url or is_url(url) or _DATA_URI.match(url)
    return url if is_elsewhere else f"file://{url}"
