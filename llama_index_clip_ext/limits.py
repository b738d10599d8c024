"""What Pillow may take to open and decode a picture, what it would, and what it may say."""

from __future__ import annotations

import io
import re
import struct
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, BinaryIO

import numpy as np
from PIL import ExifTags, Image

from .errors import ImageLoadError

# Of memory over what was there before, for all that loading a picture does: read, decode, convert.
MAX_MEMORY = 512_000_000

# Kept for what is not counted: a decoder's rows, a band that is being converted, small objects.
_RESERVE = 64_000_000

# What a picture holds beside its pixels is kept by Pillow, some of it several times.
_MAX_NOTES = 32_000_000
_MAX_NOTE = 1 << 20

# WebP and AVIF are read whole.
_MAX_WHOLE = 128_000_000

# Pillow reads some things a byte at a time in Python, such as junk between a JPEG's markers.
_MAX_READS = 1_000_000

# Decoders are fed in blocks of this size: more at a time is kept.
_BLOCK = 65536

# Of each, Pillow makes a Python object: rows, tiles, colours. By far the most have a few thousand.
_MAX_TIFF_NUMBERS = 250_000
_IFD_POINTERS = (34665, 34853, 40965)
# As Pillow has it; some are invalid, and opened all the same. The last two are BigTIFF's.
TIFF_STARTS = (b"II*\0", b"MM\0*", b"II\0*", b"MM*\0", b"II+\0", b"MM\0+")
_BIG_TIFF = ord("+")
# What the segments of a JPEG begin with that Pillow takes apart.
_EXIF = b"Exif\0\0"
_MPF = b"MPF\0"
_BYTE_TYPES = (1, 2, 6, 7)

# A progressive JPEG may go over all its pixels in every scan. Usual are 10 scans.
_MAX_SCANNED_PIXELS = 5_000_000_000
_MIN_SCANS = 64

# Decoded in Python, a run at a time.
_MAX_RLE_PIXELS = 8_000_000

_BYTES_PER_PIXEL = {"1": 1, "L": 1, "P": 1, "I;16": 2, "I;16B": 2, "I;16L": 2, "I;16N": 2}

# WebP's canvas, the one before it, what is handed over, and Pillow's; measured.
_WEBP_BYTES_PER_PIXEL = 16
# Formats that users add; JPEG 2000 takes the most.
_OTHER_BYTES_PER_PIXEL = 24

# Of Pillow, while it works for us. As warnings.filterwarnings would make it.
_PILLOWS_WARNINGS = ("ignore", None, Warning, re.compile(r"PIL\."), 0)
_WARNINGS_LOCK = threading.Lock()
_n_without_warnings = 0


class BoundedFile:
    """A file that Pillow reads a picture from, which counts what it is asked for.

    It has no file number, because libtiff would map the file into memory and crash where the file
    is cut off meanwhile.

    Args:
        file: Opened, and closed, by the caller.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.size = file.seek(0, io.SEEK_END)
        file.seek(0)
        self.n_reads = 0
        self.n_notes = 0
        self.exif = b""
        self.n_scans = 0
        self.most_scans: int | None = None
        self.most_at_once = _MAX_WHOLE
        self.keeps_all = True
        self.last = b""

    def read(self, size: int = -1) -> bytes:
        """Read as of any file.

        Raises:
            ImageLoadError: If more was asked for than a picture needs.
        """
        left = max(0, self.size - self._file.tell())
        size = left if size is None or size < 0 else min(size, left)
        self.n_reads += 1
        if self.n_reads > _MAX_READS:
            raise ImageLoadError(f"it is in more than {_MAX_READS} pieces, which is no picture's")
        if size > self.most_at_once:
            raise ImageLoadError(_too_much("reading it takes", size, self.most_at_once))
        data = self._file.read(size)
        if self.keeps_all:
            self._count_notes(data)
        elif self.most_scans is not None:
            self._count_scans(data)
        self.last = data
        return data

    def _count_notes(self, data: bytes) -> None:
        # Pillow reads notes in blocks of this size; what is read whole is counted as what it is.
        self.n_notes += len(data) if len(data) <= _MAX_NOTE else 0
        block = b""
        if data.startswith(_EXIF):
            block = self.exif = self.exif + data.removeprefix(_EXIF)
        elif data.startswith(_MPF):
            block = data.removeprefix(_MPF)
        if self.n_notes > _MAX_NOTES or len(self.exif) > _MAX_NOTE:
            raise ImageLoadError(
                f"what it holds beside its pixels takes more than {_MAX_NOTES // 10**6} MB, or its "
                f"EXIF data more than {_MAX_NOTE // 10**6} MB; save a copy without them"
            )
        if block:  # Which Pillow takes apart while it opens the picture.
            check_tags(block)

    def _count_scans(self, data: bytes) -> None:
        # A marker may lie across two blocks.
        across = self.last[-1:] + data[:1]
        self.n_scans += data.count(b"\xff\xda") + (across == b"\xff\xda")
        if self.n_scans > (self.most_scans or 0):
            raise ImageLoadError(
                f"a JPEG of more than {self.most_scans} scans, usual are 10; save it anew"
            )

    def seek(self, position: int, whence: int = io.SEEK_SET) -> int:
        """Go to a position, as in any file."""
        return self._file.seek(position, whence)

    def tell(self) -> int:
        """Return the position."""
        return self._file.tell()

    def close(self) -> None:
        """Do nothing: the file is its opener's."""


def check_tiff(file: BoundedFile) -> None:
    """Refuse a TIFF whose header holds more numbers than a picture has rows, tiles and colours.

    Raises:
        ImageLoadError: If it does, or its texts and the like are more than is kept.
    """
    start = file.read(16)
    if not start.startswith(TIFF_STARTS):
        return  # Which Pillow finds out, too.
    # As one or the other: on who begins so, decoders do not agree.
    for is_big in {start[2] == _BIG_TIFF, _BIG_TIFF in start[2:4]}:
        n_numbers, n_bytes = _count_tags(file, start, is_big)
        if n_numbers > _MAX_TIFF_NUMBERS or n_bytes > _MAX_NOTES:
            raise ImageLoadError(
                f"its header holds {n_numbers} numbers and {n_bytes} bytes, at most "
                f"{_MAX_TIFF_NUMBERS} and {_MAX_NOTES} are read; save it anew, a TIFF in larger "
                "strips or tiles"
            )
    file.seek(0)


def check_tags(block: bytes) -> None:
    """Refuse EXIF or MPF data, which are a TIFF's header, as a TIFF is.

    The same bytes may be the value of each of thousands of tags, and are copied for each.

    Raises:
        ImageLoadError: If a TIFF would be.
    """
    while block.startswith(_EXIF):
        block = block.removeprefix(_EXIF)
    check_tiff(BoundedFile(io.BytesIO(block)))


def orientation(image: Image.Image) -> int:
    """Return how a picture is to be turned, by the number that EXIF gives it."""
    try:
        for block in _exif_of(image):
            check_tags(block)
        return int(image.getexif().get(ExifTags.Base.Orientation, 1))
    except (SyntaxError, ValueError, KeyError, TypeError, OSError, struct.error):
        return 1  # The EXIF data are damaged, or a bomb; the pixels are whole.


def _exif_of(image: Image.Image) -> Iterator[bytes]:
    """Yield what `Image.getexif` takes apart, but for a TIFF's own header."""
    if exif := image.info.get("exif"):
        yield exif
    # As ImageMagick writes it into a PNG: three lines, and digits.
    elif profile := image.info.get("Raw profile type exif"):
        yield bytes.fromhex("".join(profile.split("\n")[3:]))


def _count_tags(file: BoundedFile, start: bytes, is_big: bool) -> tuple[int, int]:
    """Return how many numbers the tags of a TIFF are, and how many bytes of text and the like."""
    order = "<" if start.startswith(b"II") else ">"
    address, count = (f"{order}Q", f"{order}Q") if is_big else (f"{order}L", f"{order}H")
    entry = np.dtype([("tag", f"{order}u2"), ("type", f"{order}u2")] + [
        (name, f"{order}u{8 if is_big else 4}") for name in ("count", "value")
    ])  # fmt: skip
    first = start[8:16] if is_big else start[4:8]
    waiting = list(struct.unpack(address, first)) if len(start) == 16 else []
    n_numbers = n_bytes = 0
    for _ in range(1 + len(_IFD_POINTERS)):
        if not waiting or waiting[0] + struct.calcsize(count) > file.size:
            break
        file.seek(waiting.pop(0))
        (n_entries,) = struct.unpack(count, file.read(struct.calcsize(count)))
        table = file.read(min(n_entries, 65536) * entry.itemsize)
        entries: Any = np.frombuffer(table, entry, count=len(table) // entry.itemsize)
        # Damaged ones are read to the end at most.
        is_bytes = np.isin(entries["type"], _BYTE_TYPES)
        counts = np.minimum(entries["count"], np.where(is_bytes, file.size, file.size // 2))
        n_numbers += len(entries) + int(counts[~is_bytes].sum())
        n_bytes += int(counts[is_bytes].sum())
        waiting += entries["value"][np.isin(entries["tag"], _IFD_POINTERS)].tolist()
    return n_numbers, n_bytes


def drop_notes(image: Image.Image) -> int:
    """Cut off what is long of a picture's texts, profiles and EXIF data; return what is left.

    The turn that EXIF data and XMP tell of is near their start.
    """
    for key, value in image.info.items():
        if isinstance(value, (str, bytes)) and len(value) > _MAX_NOTE:
            image.info[key] = value[:_MAX_NOTE]
    # Characters take up to 4 bytes.
    return sum(4 * len(v) for v in image.info.values() if isinstance(v, (str, bytes)))


def decoded_bytes(image: Image.Image, *, of_encoded: tuple[int, int]) -> int:
    """Return how much memory decoding an opened picture takes, by its header.

    Args:
        image: Opened, and not decoded.
        of_encoded: Its size before it was told to decode to a fraction.
    """
    pixels = image.width * image.height
    # And two rows, which are most of it where there is one.
    own = pixels * bytes_per_pixel(image.mode) * (image.height + 2) // image.height
    kind, size = image.format, getattr(image.fp, "size", 0) if hasattr(image, "fp") else 0
    if kind in ("JPEG", "MPO"):
        return own + _coefficients(image, of_encoded)
    if kind == "PNG":
        return own
    if kind == "GIF":
        return own + pixels  # What its first frame is replaced with.
    if kind in ("BMP", "DIB"):
        return own + (2 * pixels if _is_rle(image) else 0)
    if kind == "TIFF":
        return own + _tiff_buffers(image, own, size)
    each = _WEBP_BYTES_PER_PIXEL if kind == "WEBP" else _OTHER_BYTES_PER_PIXEL
    return pixels * each + 2 * size


def bytes_per_pixel(mode: str) -> int:
    """Return what a pixel takes in Pillow's memory."""
    return _BYTES_PER_PIXEL.get(mode, 4)


def check_memory(what: str, n_bytes: int) -> None:
    """Refuse what takes more memory than there is for one picture.

    Args:
        what: The picture, for a person.
        n_bytes: What it takes.

    Raises:
        ImageLoadError: If that is too much.
    """
    if n_bytes + _RESERVE > MAX_MEMORY:
        raise ImageLoadError(_too_much(f"decoding {what} takes", n_bytes + _RESERVE, MAX_MEMORY))


def check_time(image: Image.Image) -> None:
    """Refuse a picture whose header alone tells that it would take minutes.

    Raises:
        ImageLoadError: If it does.
    """
    tiles = [tile[1] for tile in getattr(image, "tile", ()) if tile[1]]
    covered = sum((right - left) * (bottom - top) for left, top, right, bottom in tiles)
    # Once, or once for each colour.
    if covered > image.width * image.height * max(1, len(image.getbands())):
        raise ImageLoadError("its strips or tiles cover it several times; save it anew")
    if _is_rle(image) and image.width * image.height > _MAX_RLE_PIXELS:
        raise ImageLoadError(
            f"{image.width}x{image.height} pixels are more than the {_MAX_RLE_PIXELS} that are "
            "decoded of a run-length encoded BMP; save it as PNG"
        )


def start_decoding(image: Image.Image, file: BoundedFile, of_encoded: tuple[int, int]) -> None:
    """Let Pillow read the pixels of a picture that was checked: little of them is kept."""
    file.keeps_all = False
    own = image.width * image.height * bytes_per_pixel(image.mode)
    file.most_at_once = max(_BLOCK, MAX_MEMORY - _RESERVE - own)
    if image.format in ("JPEG", "MPO"):
        pixels = of_encoded[0] * of_encoded[1]
        file.most_scans = max(_MIN_SCANS, _MAX_SCANNED_PIXELS // pixels)
    # A row at least: of a part of one nothing is decoded, and it is copied at each further block.
    row = image.width * bytes_per_pixel(image.mode)
    image.decodermaxblock = max(_BLOCK, row)  # type: ignore[attr-defined]
    png: Any = getattr(image, "png", None)
    if png is not None and hasattr(png, "text_memory"):
        # What comes after the pixels is mostly a date.
        png.text_memory = max(png.text_memory, _png_text_memory() - 8 * _MAX_NOTE)
    load_end = image.load_end  # type: ignore[attr-defined]

    def counted_load_end() -> None:
        file.keeps_all, file.most_at_once, file.n_notes = True, _MAX_NOTE, 0
        load_end()

    image.load_end = counted_load_end  # type: ignore[attr-defined]


@contextmanager
def without_warnings() -> Iterator[None]:
    """Ignore Pillow's warnings, in all threads, for which `warnings.catch_warnings` is not made."""
    global _n_without_warnings
    filters: Any = warnings.filters
    with _WARNINGS_LOCK:
        _n_without_warnings += 1
        if _PILLOWS_WARNINGS not in filters:
            filters.insert(0, _PILLOWS_WARNINGS)
    try:
        yield
    finally:
        with _WARNINGS_LOCK:
            _n_without_warnings -= 1
            if not _n_without_warnings:
                # Others may have put back what there was before.
                with suppress(ValueError):
                    filters.remove(_PILLOWS_WARNINGS)


def _png_text_memory() -> int:
    from PIL import PngImagePlugin

    return PngImagePlugin.MAX_TEXT_MEMORY


def _coefficients(image: Any, size: tuple[int, int]) -> int:
    """Return what the coefficients of a JPEG take that is not decoded row by row.

    Pillow was left at the first scan's header, whose first byte says how many layers are in it:
    all, for who opened it himself.
    """
    last = getattr(image.fp, "last", b"")
    in_scan = last[0] if last else image.layers
    if not image.info.get("progressive") and in_scan >= image.layers:
        return 0
    samples = [across * down for _, across, down, _ in image.layer]
    most = max(h for _, h, _, _ in image.layer) * max(v for _, _, v, _ in image.layer)
    return int(2 * size[0] * size[1] * sum(samples) / most)


def _is_rle(image: Image.Image) -> bool:
    return image.format in ("BMP", "DIB") and image.info.get("compression") in (1, 2)


def _tiff_buffers(image: Any, own: int, size: int) -> int:
    """Return what libtiff takes for a strip or tile, and Pillow for the file and for turning."""
    tags = image.tag_v2
    bits = tags.get(258, (1,))
    deepest = max(bits) if isinstance(bits, tuple) else bits
    # YCbCr is handed over as RGB with a fourth byte.
    each = 4 if tags.get(262) == 6 else tags.get(277, 1) * int(deepest) / 8
    across, down = (tags.get(322), tags.get(323)) if 322 in tags else (tags[256], tags.get(278))
    whole = tags[257]
    rows = min(int(down), whole) if down and 322 not in tags else int(down or whole)
    part = int(across * rows * each)
    turned = own if tags.get(274, 1) != 1 else 0
    if image.info.get("compression") == "raw":
        # One strip is read in blocks, several each whole.
        return turned + (2 * part if len(image.tile) > 1 else 0)
    # liblzma's dictionary may be as large as what comes out.
    dictionary = part if image.info.get("compression") == "lzma" else 0
    return turned + part + size + dictionary


def _too_much(what: str, n_bytes: int, most: int) -> str:
    return (
        f"{what} {-(-n_bytes // 10**6)} MB of memory, more than the {most // 10**6} MB that one "
        "picture may; make it smaller, such as by Image.reduce of PIL, and pass that"
    )
