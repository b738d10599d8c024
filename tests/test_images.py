"""Any source of the same picture gives the same pixels; what is no picture says which and why."""

from __future__ import annotations

import base64
import io
import os
import pickle
import struct
import threading
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import numpy as np
import pytest
from llama_index.core.schema import ImageDocument, ImageNode, MediaResource, Node, TextNode
from PIL import Image, ImageOps, TiffImagePlugin

from llama_index_clip_ext import images as images_module
from llama_index_clip_ext import limits, sources
from llama_index_clip_ext.errors import ClipExtError, ImageLoadError, ImageNotFoundError
from llama_index_clip_ext.images import ImageFailure, iter_images, load_image, load_images
from llama_index_clip_ext.sources import describe_source, has_image, image_digest, read_source

# Three wide, two high, every pixel another colour: a turned or mirrored picture is another one.
PIXELS = np.array(
    [
        [[255, 0, 0], [0, 255, 0], [0, 0, 255]],
        [[255, 255, 0], [10, 20, 30], [200, 100, 50]],
    ],
    dtype=np.uint8,
)
GREYS = np.array([[0, 51, 102], [153, 204, 255]], dtype=np.uint8)
RED_50 = (
    255,
    0,
    0,
    128,
)  # over white: 255 * 127 / 255 = 127 in green and blue; over black: 128 red


def png(image: Image.Image | np.ndarray, **options) -> bytes:
    return encoded(image, "PNG", **options)


def encoded(image: Image.Image | np.ndarray, fmt: str, **options) -> bytes:
    stream = io.BytesIO()
    picture = image if isinstance(image, Image.Image) else Image.fromarray(image)
    picture.save(stream, fmt, **options)
    return stream.getvalue()


def pixels(source, **options) -> list:
    image = load_image(source, **options)
    assert image.mode == "RGB"
    return np.asarray(image).tolist()


def grey(rows) -> list:
    return [[[int(value)] * 3 for value in row] for row in rows]


@pytest.fixture
def file(tmp_path) -> Path:
    path = tmp_path / "picture.png"
    path.write_bytes(png(PIXELS))
    return path


# Sources.

ENCODED = png(PIXELS)
TEXT = base64.b64encode(ENCODED).decode()
BROKEN_LINES = base64.encodebytes(ENCODED).decode()

SOURCES = {
    "str path": str,
    "relative path": lambda file: file.name,
    "Path": lambda file: file,
    "bytes": lambda file: ENCODED,
    "bytearray": lambda file: bytearray(ENCODED),
    "memoryview": lambda file: memoryview(ENCODED),
    "BytesIO": lambda file: io.BytesIO(ENCODED),
    "PIL": lambda file: Image.open(io.BytesIO(ENCODED)),
    "PIL in memory": lambda file: Image.fromarray(PIXELS),
    "HxWx3 uint8": lambda file: PIXELS,
    "HxWx3 uint16": lambda file: PIXELS.astype(np.uint16) * 257,
    "HxWx3 big-endian uint16": lambda file: (PIXELS.astype(np.uint16) * 257).astype(">u2"),
    "HxWx3 float32": lambda file: PIXELS.astype(np.float32) / 255,
    "HxWx3 float64": lambda file: PIXELS / 255,
    "HxWx3 int64": lambda file: PIXELS.astype(np.int64),
    "HxWx3 float 0..255": lambda file: PIXELS.astype(np.float32),
    "HxWx3 not contiguous": lambda file: PIXELS[:, ::-1][:, ::-1],
    "HxWx4 opaque": lambda file: np.dstack([PIXELS, np.full((2, 3), 255, np.uint8)]),
    "data URI": lambda file: f"data:image/png;base64,{TEXT}",
    "data URI without a type": lambda file: f"data:;base64,{TEXT}",
    "data URI with a parameter": lambda file: f"data:image/png;name=a.png;base64,{TEXT}",
    "data URI with line breaks": lambda file: f"data:image/png;base64,{BROKEN_LINES}",
    "data URI in capitals": lambda file: f"DATA:IMAGE/PNG;BASE64,{TEXT}",
    "base64": lambda file: TEXT,
    "base64 with line breaks": lambda file: BROKEN_LINES,
    "ImageNode image": lambda file: ImageNode(image=TEXT),
    "ImageNode data URI": lambda file: ImageNode(image=f"data:image/png;base64,{TEXT}"),
    "ImageNode image_path": lambda file: ImageNode(image_path=str(file)),
    "ImageDocument image": lambda file: ImageDocument(image=TEXT),
    "ImageDocument image_path": lambda file: ImageDocument(image_path=str(file)),
    "Node path": lambda file: Node(image_resource=MediaResource(path=file)),
    "Node data": lambda file: Node(image_resource=MediaResource(data=ENCODED)),
}


@pytest.mark.parametrize("kind", SOURCES)
def test_same_picture_from_every_kind_of_source_gives_the_same_pixels(kind, file):
    assert pixels(SOURCES[kind](file)) == PIXELS.tolist()


def test_open_file_is_read_and_stays_open(file):
    with file.open("rb") as stream:
        assert pixels(stream) == PIXELS.tolist()
        assert pixels(stream) == PIXELS.tolist()


@pytest.mark.parametrize("position", [0, 7, len(ENCODED)])
def test_stream_is_read_from_its_start_and_left_where_it_was(position):
    stream = io.BytesIO(ENCODED)
    stream.seek(position)
    assert pixels(stream) == PIXELS.tolist()
    assert stream.tell() == position
    assert pixels(stream) == PIXELS.tolist()


def test_stream_that_cannot_seek_is_read():
    class Pipe(io.RawIOBase):
        def readable(self):
            return True

        def readinto(self, buffer):
            # As pipes do, less than there is room for.
            return waiting.readinto(memoryview(buffer)[:50])

    waiting = io.BytesIO(ENCODED)
    assert pixels(Pipe()) == PIXELS.tolist()


@pytest.mark.parametrize("kind", [str, Path])
def test_tilde_is_the_home_folder(kind, file, monkeypatch):
    monkeypatch.setenv("HOME", str(file.parent))
    monkeypatch.setenv("USERPROFILE", str(file.parent))
    assert pixels(kind("~/picture.png")) == PIXELS.tolist()


@pytest.mark.parametrize(
    ("array", "expected"),
    [
        (GREYS, GREYS),
        (GREYS[:, :, None], GREYS),
        (GREYS.astype(np.uint16) * 257, GREYS),
        (GREYS / 255, GREYS),
        ((GREYS / 255)[:, :, None], GREYS),
        (GREYS.astype(np.int64), GREYS),
        (np.array([[True, False]]), [[255, 0]]),
        (np.array([[0, 1], [2, 255]], np.int64), [[0, 1], [2, 255]]),
        # All values are small, but their type says that white is 255: nearly black.
        (np.array([[0, 1]], np.int64), [[0, 1]]),
        (np.array([[0, 1]], np.uint16), [[0, 0]]),
    ],
)
def test_grey_arrays(array, expected):
    assert pixels(array) == grey(expected)


def test_array_with_transparency_is_laid_on_white():
    assert pixels(np.array([[RED_50, (0, 0, 0, 0)]], np.uint8)) == [
        [[255, 127, 127], [255, 255, 255]]
    ]


@pytest.mark.parametrize(
    ("array", "reason"),
    [
        (np.zeros((2, 2, 2), np.uint8), "(height, width)"),
        (np.zeros((2, 2, 5), np.uint8), "(height, width)"),
        (np.zeros(4, np.uint8), "(height, width)"),
        (np.zeros((1, 2, 2, 3), np.uint8), "(height, width)"),
        (np.zeros((0, 2), np.uint8), "without pixels"),
        (np.array([[0.5, np.nan]]), "NaN"),
        (np.array([[0.5, np.inf]]), "infinity"),
        (np.array([["a"]]), "holds no pixels"),
        (np.array([[None]]), "holds no pixels"),
        (np.array([[1j]]), "holds no pixels"),
    ],
)
def test_array_that_is_no_picture_says_why(array, reason):
    with pytest.raises(ImageLoadError, match=r"array .*: ") as caught:
        load_image(array)
    assert reason in caught.value.reason


@pytest.mark.parametrize(
    ("name", "fmt"),
    [
        ("no_extension", "PNG"),
        ("photo.jfif", "JPEG"),
        ("photo.tif", "PNG"),
        ("photo.jpg", "WEBP"),
        ("photo.txt", "BMP"),
        ("图片 一.png", "GIF"),
    ],
)
def test_content_decides_and_not_the_name(name, fmt, tmp_path):
    content = encoded(Image.new("RGB", (16, 8), "white"), fmt)
    (tmp_path / name).write_bytes(content)
    assert pixels(tmp_path / name) == [[[255, 255, 255]] * 16] * 8
    assert pixels(content) == [[[255, 255, 255]] * 16] * 8


# Orientation.

# The operation that turns what a camera stored, under each value of the tag, upright (EXIF 2.3).
UPRIGHT_BY = {
    1: None,
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_UNDO = {6: Image.Transpose.ROTATE_90, 8: Image.Transpose.ROTATE_270}


def camera_file(orientation: int, fmt: str = "PNG") -> bytes:
    """Encode the picture as a camera held another way would store it."""
    stored = Image.fromarray(PIXELS)
    operation = _UNDO.get(orientation, UPRIGHT_BY[orientation])
    if operation is not None:
        stored = stored.transpose(operation)
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encoded(stored, fmt, exif=exif, **({"lossless": True} if fmt == "WEBP" else {}))


@pytest.mark.parametrize("orientation", UPRIGHT_BY)
@pytest.mark.parametrize("fmt", ["PNG", "WEBP", "TIFF"])
def test_turned_photo_is_upright(orientation, fmt):
    assert pixels(camera_file(orientation, fmt)) == PIXELS.tolist()


@pytest.mark.parametrize("orientation", UPRIGHT_BY)
def test_turned_pil_image_is_upright(orientation):
    image = Image.open(io.BytesIO(camera_file(orientation)))
    assert pixels(image) == PIXELS.tolist()
    # The caller's own image was not turned.
    assert image.size == ((2, 3) if orientation >= 5 else (3, 2))


def test_turned_jpeg_keeps_the_sky_above():
    upright = Image.new("RGB", (32, 16), "green")
    upright.paste("blue", (0, 0, 32, 8))
    exif = Image.Exif()
    exif[0x0112] = 6
    photo = encoded(upright.transpose(_UNDO[6]), "JPEG", exif=exif)
    image = load_image(photo)
    assert image.size == (32, 16)
    assert image.getpixel((16, 2))[2] > 200
    assert image.getpixel((16, 14))[2] < 50


def test_loaded_picture_does_not_turn_a_second_time():
    image = load_image(camera_file(6))
    assert np.asarray(ImageOps.exif_transpose(image)).tolist() == PIXELS.tolist()


# Transparency.


def transparent_palette() -> Image.Image:
    """Return a palette picture of a red pixel and one that is transparent (and green below)."""
    image = Image.new("P", (2, 1))
    image.putpalette([255, 0, 0, 0, 255, 0])
    image.putpixel((1, 0), 1)
    return image


def rgb_with_transparent_green() -> bytes:
    image = Image.new("RGB", (2, 1), (255, 0, 0))
    image.putpixel((1, 0), (0, 255, 0))
    return png(image, transparency=(0, 255, 0))


def rgba(*colours) -> Image.Image:
    return Image.fromarray(np.array([colours], np.uint8), "RGBA")


WHITE, BLACK, RED = [255, 255, 255], [0, 0, 0], [255, 0, 0]
TRANSPARENT = {
    "RGBA": (rgba((255, 0, 0, 255), (0, 255, 0, 0)), RED),
    "RGBA png": (png(rgba((255, 0, 0, 255), (0, 255, 0, 0))), RED),
    "LA": (Image.fromarray(np.array([[[7, 255], [9, 0]]], np.uint8), "LA"), [7, 7, 7]),
    "P gif": (encoded(transparent_palette(), "GIF", transparency=1), RED),
    "P png": (png(transparent_palette(), transparency=1), RED),
    "P png, alpha a colour": (png(transparent_palette(), transparency=b"\xff\x00"), RED),
    "RGB tRNS": (rgb_with_transparent_green(), RED),
    "L tRNS": (png(np.array([[7, 9]], np.uint8), transparency=9), [7, 7, 7]),
    "webp": (encoded(rgba((255, 0, 0, 255), (0, 255, 0, 0)), "WEBP", lossless=True), RED),
}


@pytest.mark.parametrize("kind", TRANSPARENT)
def test_transparent_pixels_show_the_background_and_not_their_hidden_colour(kind):
    source, opaque = TRANSPARENT[kind]
    assert pixels(source) == [[opaque, WHITE]]
    assert pixels(source, background="black") == [[opaque, BLACK]]
    assert pixels(source, background="#00f") == [[opaque, [0, 0, 255]]]


def test_half_transparent_pixels_are_mixed():
    assert pixels(rgba(RED_50)) == [[[255, 127, 127]]]
    assert pixels(rgba(RED_50), background="black") == [[[128, 0, 0]]]


def test_transparent_logo_equals_the_logo_on_white():
    logo = Image.new("RGBA", (20, 20), (255, 0, 0, 0))
    logo.paste((0, 0, 255, 255), (5, 5, 15, 15))
    drawn = Image.new("RGB", (20, 20), "white")
    drawn.paste((0, 0, 255), (5, 5, 15, 15))
    assert pixels(png(logo)) == np.asarray(drawn).tolist()


def test_background_must_be_a_colour():
    """The caller's slip, and not the picture's fault: it must not be reported as a bad image."""
    with pytest.raises(ValueError, match="nonsense") as caught:
        load_images([rgba(RED_50)], background="nonsense", on_error="skip")
    assert not isinstance(caught.value, ImageLoadError)


# Modes.


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        (Image.new("1", (1, 1), 1), WHITE),
        (png(Image.new("1", (1, 1), 1)), WHITE),
        (Image.new("L", (1, 1), 77), [77, 77, 77]),
        (png(Image.new("P", (1, 1), 0)), BLACK),
        (Image.new("CMYK", (1, 1), (0, 255, 255, 0)), RED),
        (encoded(Image.new("CMYK", (1, 1), (0, 255, 255, 0)), "TIFF"), RED),
        (Image.new("I;16", (1, 1), 65535), WHITE),
        (Image.new("I", (1, 1), 65535), WHITE),
        (Image.new("I", (1, 1), 255), WHITE),
        (Image.new("F", (1, 1), 1.0), WHITE),
        (Image.new("YCbCr", (1, 1), (255, 128, 128)), WHITE),
        (Image.new("HSV", (1, 1), (0, 255, 255)), RED),
    ],
    ids=lambda value: value.mode if isinstance(value, Image.Image) else None,
)
def test_modes(source, expected):
    assert pixels(source) == [[expected]]


def test_cmyk_jpeg_is_not_inverted():
    red = load_image(encoded(Image.new("CMYK", (16, 16), (0, 255, 255, 0)), "JPEG"))
    assert np.abs(np.asarray(red).astype(int) - RED).max() <= 3


@pytest.mark.parametrize("fmt", ["PNG", "TIFF"])
def test_16_bit_gradient_keeps_its_levels(fmt):
    gradient = np.linspace(0, 65535, 256).astype(np.uint16)[None]
    loaded = np.asarray(load_image(encoded(gradient, fmt)))[0, :, 0]
    assert loaded.tolist() == list(range(256))


def test_dark_16_bit_picture_stays_dark():
    assert pixels(png(np.array([[0, 257, 2570]], np.uint16))) == grey([[0, 1, 10]])


def test_transparent_grey_of_a_16_bit_picture_shows_the_background():
    assert pixels(png(np.array([[2570, 0]], np.uint16), transparency=0)) == [[[10] * 3, WHITE]]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0.0, 0.2, 1.0], [0, 51, 255]),
        ([0.0, 51.0, 255.0], [0, 51, 255]),
        ([0.0, 0.2, 0.4], [0, 51, 102]),
        # No white of their own: the range is stretched.
        ([-100.0, 0.0, 100.0], [0, 128, 255]),
        ([1e6, 1.5e6, 2e6], [0, 128, 255]),
        ([-5.0, -5.0, -5.0], [0, 0, 0]),
    ],
)
def test_float_tiff(values, expected):
    content = encoded(np.array([values], np.float32), "TIFF")
    assert Image.open(io.BytesIO(content)).mode == "F"
    assert pixels(content) == grey([expected])


@pytest.mark.parametrize("fmt", ["GIF", "WEBP", "PNG", "TIFF"])
def test_first_frame_of_an_animation(fmt):
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue", "lime")]
    options = {"lossless": True} if fmt == "WEBP" else {}
    content = encoded(frames[0], fmt, save_all=True, append_images=frames[1:], **options)
    assert Image.open(io.BytesIO(content)).n_frames == 3
    assert pixels(content) == [[RED] * 4] * 4


@pytest.mark.parametrize("size", [(1, 1), (1, 300), (300, 1)])
@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16", "I", "F"])
def test_thin_pictures(mode, size):
    image = load_image(Image.new(mode, size))
    assert (image.mode, image.size) == ("RGB", size)


# What is no picture.


@pytest.fixture
def broken(tmp_path) -> dict[str, Path]:
    """Files that are no pictures, by what is wrong with them."""
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    files = {
        "empty": (tmp_path / "empty.png", b""),
        "html": (tmp_path / "error.jpg", b"<!DOCTYPE html><html><body>404 Not Found</body></html>"),
        "truncated png": (tmp_path / "half.png", png(noise)[:4000]),
        "truncated jpeg": (tmp_path / "half.jpg", encoded(noise, "JPEG")[:1500]),
        "cut in the header": (tmp_path / "tenth.png", png(noise)[:20]),
    }
    for path, content in files.values():
        path.write_bytes(content)
    return {what: path for what, (path, _) in files.items()}


def test_missing_file_is_the_error_that_callers_guess():
    with pytest.raises(ImageNotFoundError) as caught:
        load_image("missing.png")
    for kind in (FileNotFoundError, ImageLoadError, ClipExtError, ValueError, OSError):
        assert isinstance(caught.value, kind)
    assert str(caught.value) == "image (missing.png): no such file"
    assert (caught.value.source, caught.value.index) == ("missing.png", None)


@pytest.mark.parametrize(
    "source",
    [
        Path("missing.png"),
        ImageNode(image_path="missing.png"),
        Node(image_resource=MediaResource(path=Path("missing.png"))),
    ],
    ids=lambda source: type(source).__name__,
)
def test_missing_file_of_any_source_is_not_found(source):
    with pytest.raises(ImageNotFoundError, match=r"^image \(missing\.png\): no such file$"):
        load_image(source)


@pytest.mark.parametrize(
    ("what", "reason"),
    [
        ("empty", "empty (0 bytes)"),
        ("html", "not a picture"),
        ("truncated png", "damaged"),
        ("truncated jpeg", "damaged"),
        ("cut in the header", ""),
    ],
)
@pytest.mark.parametrize("as_bytes", [False, True])
def test_broken_file_says_which_and_why(what, reason, as_bytes, broken):
    path = broken[what]
    source = path.read_bytes() if as_bytes else path
    with pytest.raises(ImageLoadError) as caught:
        load_image(source)
    error = caught.value
    assert reason in error.reason
    assert error.source == (f"bytes of {len(source)} bytes" if as_bytes else str(path))
    assert str(error) == f"image ({error.source}): {error.reason}"
    assert not isinstance(error, FileNotFoundError)


def test_truncated_pil_image_is_an_image_load_error(broken):
    image = Image.open(io.BytesIO(broken["truncated png"].read_bytes()))
    with pytest.raises(ImageLoadError, match="damaged"):
        load_image(image)


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("", "empty string"),
        (".", "irectory"),
        (b"", "empty"),
        (io.BytesIO(), "empty"),
        (io.StringIO("text"), "binary mode"),
        ("a\0b.png", "null"),
        ("data:text/plain,hello", "without base64"),
        ("data:text/plain;charset=utf-8,hello", "without base64"),
        ("data:image/png;base64,", "empty"),
        ("data:image/png;base64,a", "invalid base64"),
        ("data:text/plain;base64,aGVsbG8=", "not a picture"),
        (Image.new("RGB", (0, 5)), "without pixels"),
        (None, "NoneType holds no image"),
        (7, "int holds no image"),
        ([1, 2], "list holds no image"),
        (TextNode(text="a text"), "TextNode holds no image"),
        (ImageNode(text="a caption"), "ImageNode holds no image"),
        (ImageNode(image="a"), "invalid base64"),
    ],
    ids=lambda value: repr(value)[:30] if isinstance(value, (str, bytes)) else type(value).__name__,
)
def test_what_is_no_image_says_why(source, reason):
    with pytest.raises(ImageLoadError) as caught:
        load_image(source)
    assert reason in str(caught.value)


def test_folder_is_no_image(tmp_path):
    with pytest.raises(ImageLoadError) as caught:
        load_image(tmp_path)
    assert caught.value.source == str(tmp_path)
    assert not isinstance(caught.value, ImageNotFoundError)


@pytest.mark.parametrize("allow_urls", [False, True])
@pytest.mark.parametrize("kind", ["str", "ImageNode", "Node"])
def test_url_is_refused_and_nothing_is_fetched(allow_urls, kind):
    asked = []

    class Server(BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            self.send_response(200)
            self.end_headers()
            self.wfile.write(ENCODED)

        do_HEAD = do_GET  # noqa: N815

    with HTTPServer(("127.0.0.1", 0), Server) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}/a.png"
        source = {
            "str": url,
            "ImageNode": ImageNode(image_url=url),
            "Node": Node(image_resource=MediaResource(url=url)),
        }[kind]
        with pytest.raises(ImageLoadError) as caught:
            load_image(source, allow_urls=allow_urls)
        server.shutdown()
    assert asked == []
    assert caught.value.source == url
    # This machine's own servers are not fetched from, even where URLs are.
    reason = "has no public address" if allow_urls else "URLs are not fetched unless allowed"
    assert reason in caught.value.reason


@pytest.mark.parametrize(
    ("url", "advice"),
    [
        ("https://a.example/b.png", "allow_urls=True or a list of hosts"),
        ("file:///etc/passwd", "for a file its path"),
        ("s3://b/c.png", "fsspec.open"),
    ],
)
def test_every_scheme_is_refused(url, advice):
    with pytest.raises(ImageLoadError, match="not fetched") as caught:
        load_image(url)
    assert advice in caught.value.reason


def test_a_url_of_a_node_is_no_path(tmp_path):
    """A list of URLs from somebody else reads no file of ours."""
    Image.new("RGB", (9, 9)).save(tmp_path / "secret.png")
    for url in (str(tmp_path / "secret.png"), (tmp_path / "secret.png").as_uri()):
        with pytest.raises(ImageLoadError, match="not fetched"):
            load_image(ImageNode(image_url=url), allow_urls=True)


def test_a_picture_that_its_caller_opened_takes_no_more_than_a_file(tmp_path):
    """It is decoded here: as a path it would be refused for what that takes."""
    Image.new("RGB", (9000, 9000)).save(tmp_path / "large.jpg", progressive=True, subsampling=0)
    with Image.open(tmp_path / "large.jpg") as image:
        for source in (image, tmp_path / "large.jpg"):
            with pytest.raises(ImageLoadError, match="more than the 512 MB"):
                load_image(source)
    with Image.open(io.BytesIO(png(Image.new("RGB", (30, 20), "red")))) as image:
        assert load_image(image).getpixel((0, 0)) == (255, 0, 0)


def test_a_folder_that_cannot_be_listed_says_why(tmp_path, monkeypatch):
    def scandir(path):
        raise PermissionError(13, "Permission denied", os.fspath(path))

    monkeypatch.setattr(os, "scandir", scandir)  # Root may list any.
    with pytest.raises(ImageLoadError, match="Permission denied"):
        load_image(tmp_path)


def test_more_pixels_than_allowed():
    image = Image.new("RGB", (10, 10))
    assert load_image(png(image), max_pixels=100).size == (10, 10)
    for source in (png(image), image, np.zeros((10, 10, 3), np.uint8)):
        with pytest.raises(ImageLoadError, match="10x10 pixels are more than the limit of 99"):
            load_image(source, max_pixels=99)


def test_decompression_bomb_is_refused_by_its_header():
    """A PNG of 45 bytes that says it is 30,000 pixels wide and high."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        checksum = struct.pack(">I", zlib.crc32(kind + content))
        return struct.pack(">I", len(content)) + kind + content + checksum

    header = struct.pack(">IIBBBBB", 30_000, 30_000, 8, 2, 0, 0, 0)
    bomb = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"")
    with pytest.raises(ImageLoadError, match="pixels"):
        load_image(bomb)


# Several at once.


def test_good_ones_are_kept_and_bad_ones_reported_in_step(broken):
    good = png(PIXELS)
    sources = [
        good,
        broken["truncated png"],
        broken["empty"],
        broken["html"],
        "missing.png",
        Image.fromarray(GREYS),
    ]
    images, kept, failures = load_images(sources, on_error="skip")
    assert kept == [0, 5]
    assert [np.asarray(image).tolist() for image in images] == [PIXELS.tolist(), grey(GREYS)]
    assert [(failure.index, failure.source) for failure in failures] == [
        (1, str(broken["truncated png"])),
        (2, str(broken["empty"])),
        (3, str(broken["html"])),
        (4, "missing.png"),
    ]
    assert "damaged" in failures[0].reason
    assert [failure.reason for failure in failures[1:]] == [
        "the file is empty (0 bytes)",
        "not a picture in a format that is read (BMP, GIF, JPEG, PNG, TIFF, WEBP); "
        "image_formats=(...) adds others",
        "no such file",
    ]
    assert str(failures[3]) == "missing.png: no such file"
    # The next call is not the worse for it.
    assert load_images([good], on_error="raise")[1:] == ([0], [])


def test_raise_stops_at_the_first_bad_one_and_names_it(broken):
    with pytest.raises(ImageLoadError, match=r"^image 1 \(.*half\.png\): damaged") as caught:
        load_images([ENCODED, broken["truncated png"], "missing.png"])
    assert caught.value.index == 1
    assert caught.value.source == str(broken["truncated png"])
    with pytest.raises(ImageNotFoundError, match=r"^image 0 \(missing\.png\)"):
        load_images(["missing.png"])


def test_no_images():
    assert load_images([]) == ([], [], [])


def test_on_error_is_one_of_two_words():
    with pytest.raises(ValueError, match="on_error"):
        load_images(["missing.png"], on_error="ignore")


def test_images_are_loaded_one_by_one():
    opened = []

    def sources():
        for index in (3, 8):
            opened.append(index)
            yield index, PIXELS

    stream = iter_images(sources())
    assert opened == []
    assert next(stream)[0] == 3
    assert opened == [3]
    assert next(stream)[0] == 8


# Errors and descriptions.


@pytest.mark.parametrize("kind", [ImageLoadError, ImageNotFoundError])
def test_errors_survive_pickling(kind):
    error = kind("no such file", source="a.png", index=4)
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is kind
    assert (copy.reason, copy.source, copy.index) == ("no such file", "a.png", 4)
    assert str(copy) == str(error) == "image 4 (a.png): no such file"


def test_failures_survive_pickling():
    failure = ImageFailure(2, "a.png", "no such file")
    assert pickle.loads(pickle.dumps(failure)) == failure


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("a/b.png", "a/b.png"),
        (Path("a/b.png"), "a/b.png"),
        (b"12345", "bytes of 5 bytes"),
        (bytearray(6), "bytearray of 6 bytes"),
        (memoryview(b"1234567"), "memoryview of 7 bytes"),
        (Image.new("LA", (3, 2)), "PIL image LA 3x2"),
        (np.zeros((3, 2), np.uint16), "array uint16 (3, 2)"),
        ("data:image/png;base64,AAAA", "data:image/png;base64,AA... (26 characters)"),
        (io.BytesIO(b"123"), "BytesIO"),
        (ImageNode(image_path="a/b.png"), "a/b.png"),
        (ImageNode(image_url="http://a.example/b.png"), "http://a.example/b.png"),
        (ImageNode(), "ImageNode"),
        (None, "NoneType"),
    ],
    ids=lambda value: value[:20] if isinstance(value, str) else type(value).__name__,
)
def test_description(source, expected):
    assert describe_source(source) == expected


LONG = base64.b64encode(bytes(range(256)) * 40).decode()


@pytest.mark.parametrize(
    "source",
    [
        LONG,
        f"data:image/png;base64,{LONG}",
        # Pillow reads AVIF and JPEG 2000, too: base64 that does not begin as the usual formats do.
        f"AAAA{LONG}",
        "iVBORw0KGgo" + LONG,
        ImageNode(image=LONG),
        ImageDocument(image=LONG),
        Node(image_resource=MediaResource(data=LONG.encode())),
        base64.b64decode(LONG),
    ],
    ids=["base64", "data URI", "other base64", "png base64", "ImageNode", "Document", "Node", "b"],
)
def test_neither_description_nor_error_shows_content(source):
    assert len(describe_source(source)) < 80
    with pytest.raises(ImageLoadError) as caught:
        load_image(source)
    assert LONG[40:80] not in str(caught.value)
    assert len(str(caught.value)) < 300


# Digests.


def test_digest_is_of_the_file_whichever_way_it_comes(file, tmp_path):
    digest = image_digest(file)
    assert len(digest) == 64
    for source in (str(file), ENCODED, io.BytesIO(ENCODED), TEXT, ImageNode(image_path=str(file))):
        assert image_digest(source) == digest
    other = tmp_path / "other.png"
    other.write_bytes(png(PIXELS[::-1]))
    assert image_digest(other) != digest


def recoloured() -> Image.Image:
    image = transparent_palette()
    image.putpalette([0, 0, 255, 0, 255, 0])
    return image


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (Image.fromarray(PIXELS), Image.fromarray(PIXELS[::-1])),
        (Image.new("L", (2, 3)), Image.new("L", (3, 2))),
        (Image.open(io.BytesIO(camera_file(1))), Image.open(io.BytesIO(camera_file(3)))),
        (PIXELS, PIXELS[::-1]),
        (np.zeros((2, 3), np.uint8), np.zeros((3, 2), np.uint8)),
        (np.zeros((2, 2), np.uint8), np.zeros((1, 2), np.uint16)),
        (transparent_palette(), recoloured()),
    ],
    ids=["pixels", "size", "orientation", "array", "shape", "dtype", "palette"],
)
def test_digest_of_what_has_no_file_tells_pictures_apart(one, other):
    assert image_digest(one) == image_digest(one.copy())
    assert image_digest(one) != image_digest(other)


@pytest.mark.parametrize(
    ("source", "kind"),
    [
        ("missing.png", ImageNotFoundError),
        (".", ImageLoadError),
        ("http://a.example/b.png", ImageLoadError),
        (None, ImageLoadError),
        (ImageNode(image="a"), ImageLoadError),
    ],
)
def test_digest_of_what_cannot_be_read(source, kind):
    with pytest.raises(kind) as caught:
        image_digest(source)
    assert type(caught.value) is kind


def test_digest_of_a_damaged_pil_image(broken):
    image = Image.open(io.BytesIO(broken["truncated png"].read_bytes()))
    with pytest.raises(ImageLoadError, match="truncated"):
        image_digest(image)


def test_what_has_an_image(file):
    assert has_image(ImageNode(image_path="a.png"))
    assert has_image(ImageNode(image_url="http://a.example/b.png"))
    assert has_image(ImageNode(image="not base64"))
    assert has_image(Node(image_resource=MediaResource(path=file)))
    assert not has_image(ImageNode(text="a caption"))
    assert not has_image(TextNode(text="a text"))
    assert not has_image(Node(text_resource=MediaResource(text="a text")))


def test_reading_does_not_decode():
    assert read_source(io.BytesIO(b"no picture")) == b"no picture"


def test_loading_warns_of_nothing():
    """Such as Pillow's warnings over palettes with transparency."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for source, _ in TRANSPARENT.values():
            load_image(source)


@pytest.mark.parametrize("suffix", ["png", "webp"])
def test_damaged_exif_costs_no_picture(suffix, tmp_path):
    path = tmp_path / f"photo.{suffix}"
    picture = Image.fromarray(PIXELS)
    picture.save(path, exif=b"Exif\0\0garbage that is no TIFF header", lossless=True)
    np.testing.assert_array_equal(np.asarray(load_image(path)), PIXELS)


class TestLeastSide:
    """JPEGs are decoded at a fraction of their size, as long as their sides stay long enough."""

    @staticmethod
    def jpeg(size, mode="RGB", **options):
        file = io.BytesIO()
        Image.linear_gradient("L").resize(size).convert(mode).save(file, "JPEG", **options)
        return file.getvalue()

    @pytest.mark.parametrize(
        ("size", "least_side", "expected"),
        [
            ((4000, 3000), 448, (1000, 750)),
            ((4000, 3000), None, (4000, 3000)),
            ((895, 1200), 448, (895, 1200)),
            ((896, 1200), 448, (448, 600)),
            ((100, 80), 448, (100, 80)),
            ((4001, 3001), 10, (501, 376)),
        ],
    )
    def test_to_a_half_a_quarter_or_an_eighth(self, size, least_side, expected):
        picture = load_image(self.jpeg(size), least_side=least_side)
        assert (picture.mode, picture.size) == ("RGB", expected)

    @pytest.mark.parametrize("mode", ["L", "CMYK"])
    def test_in_any_mode(self, mode):
        content = self.jpeg((1000, 1000), mode)
        picture = load_image(content, least_side=448)
        assert (picture.mode, picture.size) == ("RGB", (500, 500))
        whole = load_image(content).resize((500, 500), Image.Resampling.BOX)
        assert np.abs(np.asarray(picture, int) - np.asarray(whole, int)).max() <= 3

    def test_it_is_upright_all_the_same(self):
        exif = Image.Exif()
        exif[0x0112] = 6
        picture = load_image(self.jpeg((1000, 900), exif=exif), least_side=448)
        assert picture.size == (450, 500)

    def test_other_formats_and_pictures_in_memory_stay_whole(self):
        file = io.BytesIO()
        Image.new("RGB", (1000, 1000)).save(file, "PNG")
        assert load_image(file, least_side=448).size == (1000, 1000)
        opened = Image.open(io.BytesIO(self.jpeg((1000, 1000))))
        assert load_image(opened, least_side=448).size == opened.size == (1000, 1000)

    def test_a_bomb_is_a_bomb_at_any_fraction(self):
        content = self.jpeg((1000, 1000))
        with pytest.raises(ImageLoadError, match="1000x1000 pixels are more than the limit"):
            load_image(content, least_side=10, max_pixels=999_999)

    def test_a_cut_off_file_is_an_error_at_any_fraction(self):
        content = self.jpeg((1000, 1000))
        with pytest.raises(ImageLoadError, match="truncated"):
            load_image(content[: len(content) // 2], least_side=448)


def test_one_picture_in_many_threads_is_one_picture():
    """PIL decodes a file's image in place, and a stream is read from a position."""
    noise = np.random.default_rng(0).integers(0, 256, (300, 400, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(noise).save(file, "PNG")
    for source in (file, Image.open(io.BytesIO(file.getvalue()))):
        with ThreadPoolExecutor(8) as executor:
            pictures = list(executor.map(load_image, [source] * 40))
        assert all(np.array_equal(np.asarray(picture), noise) for picture in pictures)


# Formats.


def test_only_the_usual_formats_are_read_unless_a_user_adds_some():
    ppm = encoded(PIXELS, "PPM")
    with pytest.raises(ImageLoadError) as caught:
        load_image(ppm)
    assert caught.value.reason == (
        "not a picture in a format that is read (BMP, GIF, JPEG, PNG, TIFF, WEBP); it begins as "
        "PPM, which image_formats=('PPM',) adds"
    )
    assert pixels(ppm, image_formats=["ppm"]) == PIXELS.tolist()
    # The usual ones are read all the same.
    assert pixels(ENCODED, image_formats=["PPM"]) == PIXELS.tolist()
    images, _, failures = load_images([ppm, ENCODED], image_formats=("PPM",))
    assert (len(images), failures) == (2, [])
    # What somebody else opened is pixels.
    assert pixels(Image.open(io.BytesIO(ppm))) == PIXELS.tolist()


@pytest.mark.parametrize("fmt", ["BMP", "GIF", "JPEG", "MPO", "PNG", "TIFF", "WEBP"])
def test_usual_formats_are_read(fmt):
    white = Image.new("RGB", (16, 8), "white")
    options = {"save_all": True, "append_images": [white.copy()]} if fmt == "MPO" else {}
    assert pixels(encoded(white, fmt, **options)) == [[WHITE] * 16] * 8


def test_a_format_that_pillow_has_not_is_the_callers_slip():
    with pytest.raises(
        ValueError, match=r"names JPEGXXL, which Pillow does not read.*PNG"
    ) as caught:
        load_images([ENCODED], image_formats=["jpegxxl"], on_error="skip")
    assert not isinstance(caught.value, ImageLoadError)
    with pytest.raises(ValueError, match=r"expected a list such as \['AVIF'\]"):
        load_image(ENCODED, image_formats="AVIF")


@pytest.mark.parametrize(
    "content",
    [
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(%pipe%touch ran) (w) file\n",
        b"%PDF-1.7\n",
        b'<svg xmlns="http://www.w3.org/2000/svg"/>',
    ],
)
def test_a_program_named_as_a_picture_is_not_run(content, tmp_path, monkeypatch):
    monkeypatch.setattr("subprocess.Popen", None)
    (tmp_path / "a.jpg").write_bytes(content)
    with pytest.raises(ImageLoadError, match="not a picture") as caught:
        load_image(tmp_path / "a.jpg")
    assert "EPS" not in caught.value.reason


# What is no file, or none that ends.


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
def test_pipes_and_devices_are_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "zero.png").symlink_to("/dev/zero")
    for name, kind in (("pipe.jpg", "a named pipe"), ("zero.png", "a device")):
        for do in (load_image, image_digest, read_source):
            with pytest.raises(ImageLoadError, match=f"{kind}, not a file"):
                do(tmp_path / name)


class Endless(io.RawIOBase):
    """A stream without an end, such as a socket may be."""

    def __init__(self):
        self.n_read = 0

    def readable(self):
        return True

    def readinto(self, buffer):
        self.n_read += len(buffer)
        return len(buffer)


def test_endless_stream_is_left(monkeypatch):
    monkeypatch.setattr(sources, "MAX_HELD_BYTES", 3_000_000)
    for do in (load_image, image_digest, read_source):
        stream = Endless()
        with pytest.raises(ImageLoadError, match=r"at least \d+ bytes, at most 3000000 are read"):
            do(stream)
        assert stream.n_read < 5_000_000


def test_stream_that_has_nothing_yet():
    class Waiting(io.RawIOBase):
        def readable(self):
            return True

        def readinto(self, buffer):
            return None

    with pytest.raises(ImageLoadError, match="nothing to read yet"):
        load_image(Waiting())


def test_file_of_any_length_is_neither_read_nor_hashed(tmp_path):
    path = tmp_path / "a.jpg"
    path.write_bytes(ENCODED)
    os.truncate(path, 10**12)
    for do in (load_image, image_digest, read_source):
        with pytest.raises(ImageLoadError, match="at least 1000000000000 bytes"):
            do(path)


def test_long_base64_is_refused(monkeypatch):
    monkeypatch.setattr(sources, "MAX_BASE64_LENGTH", len(TEXT) - 1)
    node = Node(image_resource=MediaResource(data=ENCODED))
    for source in (TEXT, f"data:image/png;base64,{TEXT}", ImageNode(image=TEXT), node):
        with pytest.raises(ImageLoadError, match=r"base64 of \d+ characters, at most"):
            load_image(source)


# What would take too much.


def deep_png(size, mode="L", **options) -> bytes:
    return png(Image.new(mode, size), compress_level=1, **options)


def test_what_takes_too_much_memory_is_refused_by_its_header(monkeypatch):
    monkeypatch.setattr(limits, "MAX_MEMORY", limits._RESERVE + 1_000_000)
    assert load_image(deep_png((300, 500))).size == (300, 500)
    # A byte a pixel as grey, four as RGB.
    with pytest.raises(ImageLoadError) as caught:
        load_image(deep_png((1000, 10_000)))
    assert caught.value.reason == (
        "decoding 1000x10000 pixels (PNG, L) takes 115 MB of memory, more than the 65 MB that one "
        "picture may; make it smaller, such as by Image.reduce of PIL, and pass that"
    )
    with pytest.raises(ImageLoadError, match="in memory, L"):
        load_image(Image.new("L", (1000, 1000)))
    with pytest.raises(ImageLoadError, match="an array of shape"):
        load_image(np.zeros((1000, 1000), np.uint16))


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16", "I", "F"])
def test_bands_change_no_pixel(mode, monkeypatch):
    rng = np.random.default_rng(0)
    noise = Image.fromarray(rng.integers(0, 256, (70, 50, 3), dtype=np.uint8))
    if mode in ("I;16", "I", "F"):
        kinds = {"I;16": np.uint16, "I": np.int32, "F": np.float32}
        image = Image.fromarray(rng.integers(0, 60_000, (70, 50)).astype(kinds[mode]))
    elif mode in ("LA", "RGBA"):
        noise.putalpha(Image.fromarray(rng.integers(0, 256, (70, 50), dtype=np.uint8)))
        image = noise.convert(mode)
    else:
        image = noise.convert(mode)
    whole = pixels(image)
    array = np.asarray(image)
    of_array = pixels(array) if mode not in ("LA", "P", "CMYK") else None
    for band in (7, 50, 333):
        monkeypatch.setattr(images_module, "_BAND_PIXELS", band)
        assert pixels(image) == whole
        assert of_array is None or pixels(array) == of_array


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "P", "I;16"])
def test_large_pictures_are_reduced_as_they_would_be_in_full(mode, monkeypatch):
    monkeypatch.setattr(images_module, "_LARGE_PIXELS", 10_000)
    picture = Image.linear_gradient("L").resize((301, 211))
    if mode == "I;16":
        picture = Image.fromarray(np.asarray(picture).astype(np.uint16) * 257)
    content = png(picture if mode == "I;16" else picture.convert(mode))
    expected = load_image(content).reduce(4)
    for band in (100, 10**6):
        monkeypatch.setattr(images_module, "_BAND_PIXELS", band)
        reduced = load_image(content, least_side=50)
        assert reduced.size == (76, 53)
        assert np.array_equal(np.asarray(reduced), np.asarray(expected))
    assert load_image(content, least_side=200).size == (301, 211)


def jpeg_with(segments: bytes) -> bytes:
    content = encoded(Image.new("RGB", (32, 16), "white"), "JPEG")
    return content[:2] + segments + content[2:]


def app1(content: bytes) -> bytes:
    return b"\xff\xe1" + struct.pack(">H", len(content) + 2) + content


def test_exif_without_an_end_is_refused():
    """Pillow puts the segments together one by one, and makes objects of its numbers."""
    with pytest.raises(ImageLoadError, match="EXIF data"):
        load_image(jpeg_with(app1(b"Exif\0\0" + bytes(60_000)) * 20))


def test_junk_between_markers_is_refused(monkeypatch):
    """Pillow skips it byte by byte."""
    content = jpeg_with(app1(b"a"))
    junk = content[:7] + bytes(3000) + content[7:]
    assert load_image(junk).size == (32, 16)
    monkeypatch.setattr(limits, "_MAX_READS", 1000)
    with pytest.raises(ImageLoadError, match="in more than 1000 pieces"):
        load_image(junk)


def test_jpeg_of_many_scans_is_refused():
    """Each goes over all pixels, and takes a few bytes."""
    content = encoded(Image.new("RGB", (640, 480), "white"), "JPEG", progressive=True)
    last = content.rindex(b"\xff\xda")
    assert load_image(content).size == (640, 480)
    bomb = content[:last] + content[last:-2] * 20_000 + content[-2:]
    with pytest.raises(ImageLoadError, match=r"more than \d+ scans, usual are 10"):
        load_image(bomb)


def test_coefficients_of_a_progressive_jpeg_count(monkeypatch):
    """Six bytes a pixel, whatever fraction it is decoded to."""
    monkeypatch.setattr(limits, "MAX_MEMORY", limits._RESERVE + 5_000_000)
    picture = Image.new("RGB", (1000, 1000))
    assert load_image(encoded(picture, "JPEG", subsampling=0), least_side=100).size == (125, 125)
    progressive = encoded(picture, "JPEG", subsampling=0, progressive=True)
    with pytest.raises(ImageLoadError, match="takes 71 MB"):
        load_image(progressive, least_side=100)


def test_tiff_of_too_many_numbers_is_refused():
    """Pillow makes an object of each, some 50 times as large."""
    tags = TiffImagePlugin.ImageFileDirectory_v2()
    tags[65000] = tuple(range(300_000))
    tags.tagtype[65000] = 4
    content = encoded(PIXELS, "TIFF", tiffinfo=tags)
    with pytest.raises(ImageLoadError, match="header holds 300"):
        load_image(content)


def test_a_scan_in_many_rows_is_read(monkeypatch):
    monkeypatch.setattr(TiffImagePlugin, "STRIP_SIZE", 1)
    assert pixels(encoded(PIXELS, "TIFF")) == PIXELS.tolist()


def test_warnings_of_pillow_are_no_end_of_a_picture(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    large = png(Image.new("RGB", (4, 4)))
    damaged = jpeg_with(app1(b"Exif\0\0II*\0\x08\0\0\0\x09\0" + b"\x12\1\5\0\xff\xff\0\0" * 3))
    filters = list(warnings.filters)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(Image.DecompressionBombWarning):
            Image.open(io.BytesIO(large))
        assert load_image(large).size == (4, 4)
        with ThreadPoolExecutor(4) as threads:
            list(threads.map(load_image, [large] * 50))
        monkeypatch.undo()
        assert load_image(damaged).size == (32, 16)
        # Those of others, and of Pillow in others' hands, are what they were.
        with pytest.raises(UserWarning):
            warnings.warn("mine", stacklevel=1)
    assert warnings.filters == filters


def test_libtiff_gets_no_file_to_map(tmp_path):
    """It maps a file that has a number into memory, and crashes where it is cut off meanwhile."""
    noise = np.random.default_rng(0).integers(0, 256, (300, 400, 3), dtype=np.uint8)
    path = tmp_path / "a.tif"
    path.write_bytes(encoded(noise, "TIFF", compression="tiff_lzw"))
    with path.open("rb") as file, pytest.raises(AttributeError):
        limits.BoundedFile(file).fileno()
    assert load_image(path).size == (400, 300)


# Names.


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("two\nlines.png", r"two\nlines.png"),
        ("\x1b[31mred.png", r"\x1b[31mred.png"),
        ("back\x08space.png", r"back\x08space.png"),
        ("right\u202egnp.png", r"right\u202egnp.png"),
        ("line\u2028end.png", r"line\u2028end.png"),
        ("c1\x9b2J.png", r"c1\x9b2J.png"),
        ("latin-\udce9.png", r"latin-\xe9.png"),
        ("图片 一\u3000é👨\u200d👩.png", "图片 一\u3000é👨\u200d👩.png"),
    ],
)
def test_a_name_is_one_line_and_steers_no_terminal(name, shown):
    for source in (name, Path(name), ImageNode(image_path=name) if "\udce9" not in name else name):
        assert describe_source(source) == shown
        with pytest.raises(ImageNotFoundError) as caught:
            load_image(source)
        assert str(caught.value) == f"image ({shown}): no such file"
        assert caught.value.source == shown
    assert str(ImageFailure(0, name, "no\nsuch")) == rf"{shown}: no\nsuch"
    assert str(ImageLoadError("no\nsuch", source=name)) == rf"image ({shown}): no\nsuch"


def test_a_picture_of_one_long_row_is_read_at_once():
    """Pillow copies what it has of a row at each block of 64 kB: minutes, of some megabytes."""
    width = 400_000
    head = struct.pack("<IHHIIIIHHIIIIII", 0, 0, 0, 54, 40, width, 1, 1, 24, 0, 0, 0, 0, 0, 0)
    file = BlocksCounted(b"BM" + head + b"\x01\x02\x03" * width)
    picture = load_image(file.getvalue())
    assert (picture.size, picture.getpixel((width - 1, 0))) == ((width, 1), (3, 2, 1))
    with Image.open(file) as image:
        limits.start_decoding(image, limits.BoundedFile(io.BytesIO(file.getvalue())), image.size)
        file.n_reads = 0
        image.load()
    assert file.n_reads == 1


class BlocksCounted(io.BytesIO):
    n_reads = 0

    def read(self, size=-1):
        self.n_reads += 1
        return super().read(size)


def test_tiff_whose_strips_cover_it_again_and_again_is_refused():
    """Each is decoded: a hundred thousand pictures for the price of one."""
    tags = TiffImagePlugin.ImageFileDirectory_v2()
    noise = np.random.default_rng(0).integers(0, 256, (40, 30), dtype=np.uint8)
    tags[278] = 20
    content = bytearray(encoded(noise, "TIFF", tiffinfo=tags))
    assert pixels(bytes(content)) == grey(noise)
    n_strips = 500
    entry = next(at for at in range(8, len(content)) if content[at : at + 4] == b"\x11\1\4\0")
    content[entry + 4 : entry + 12] = struct.pack("<II", n_strips, len(content))
    content += struct.pack(f"<{n_strips}I", *range(8, 8 + n_strips))
    with pytest.raises(ImageLoadError, match="cover it several times"):
        load_image(bytes(content))
