"""Files that mean no good: pictures with a few bytes changed, bombs, and names that forge lines.

Made from real photographs and drawn pictures, the same ones in every run.
"""

from __future__ import annotations

import io
import lzma
import os
import random
import socket
import struct
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

MB = 10**6


def encoded(image: Image.Image, fmt: str, **options) -> bytes:
    file = io.BytesIO()
    if "append_images" in options:
        options["append_images"] = [one.copy() for one in options["append_images"]]
    # Copies, because Pillow keeps how a picture was encoded, for other formats, too.
    image.copy().save(file, fmt, **options)
    return file.getvalue()


def chunk(kind: bytes, content: bytes) -> bytes:
    checksum = struct.pack(">I", zlib.crc32(kind + content))
    return struct.pack(">I", len(content)) + kind + content + checksum


def png(width: int, height: int, *between: bytes, depth=8, colours=2, after=(), idat=None) -> bytes:
    """A PNG of zeros: by its header of any size."""
    samples = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[colours]
    if idat is None:
        at_once = min(100, height)
        rows = bytes((1 + (width * samples * depth + 7) // 8) * at_once)
        compress = zlib.compressobj(1)
        parts = [compress.compress(rows) for _ in range(-(-height // at_once))]
        idat = b"".join([*parts, compress.flush()])
    header = struct.pack(">IIBBBBB", width, height, depth, colours, 0, 0, 0)
    chunks = [chunk(b"IHDR", header), *between, chunk(b"IDAT", idat), *after, chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def segment(marker: int, content: bytes) -> bytes:
    return struct.pack(">BBH", 0xFF, marker, len(content) + 2) + content


def with_segments(jpeg: bytes, *segments: bytes) -> bytes:
    return jpeg[:2] + b"".join(segments) + jpeg[2:]


def across_blocks(scan: bytes, start: int, times: int, block: int = 65536) -> bytes:
    """Repeat a JPEG's scan so that each of its markers lies across two blocks that are read."""
    marker = scan.index(b"\xff\xda") + 1
    filled, at = [], start
    for _ in range(times):
        left = block - (at + marker) % block
        # Two comments, of four bytes at least, because one is at most a block.
        n_bytes = (left if left >= 8 else left + block) - 8
        comments = segment(0xFE, bytes(n_bytes // 2)) + segment(0xFE, bytes(-(-n_bytes // 2)))
        filled.append(comments + scan)
        at += len(filled[-1])
    return b"".join(filled)


def ifd(entries: list[tuple[int, int, int, int]], following: int = 0) -> bytes:
    """A directory of TIFF: tag, type, count, and value or address."""
    body = b"".join(struct.pack("<HHII", *entry) for entry in sorted(entries))
    return struct.pack("<H", len(entries)) + body + struct.pack("<I", following)


def tiff(width: int, height: int, *more: tuple[int, int, int, int], strip=b"", **tags) -> bytes:
    """A grey TIFF of one strip, the address of which is behind its directory."""
    entries = {
        256: (4, 1, width),
        257: (4, 1, height),
        258: (3, 1, 8),
        259: (3, 1, tags.get("compression", 1)),
        262: (3, 1, 1),
        273: (4, 1, 8),
        277: (3, 1, 1),
        278: (4, 1, tags.get("rows", height)),
        279: (4, 1, len(strip)),
    }
    entries |= {entry[0]: entry[1:] for entry in more}
    start = b"II*\0" + struct.pack("<I", 8 + len(strip)) + strip
    listed = [(tag, *rest) for tag, rest in entries.items()]
    return start + ifd(listed, tags.get("following", 0)) + tags.get("data", b"")


def in_segments(marker: int, block: bytes) -> list[bytes]:
    """Cut EXIF data that are longer than a segment of a JPEG."""
    content = block[6:]
    parts = (content[at : at + 65_000] for at in range(0, len(content), 65_000))
    return [segment(marker, b"Exif\0\0" + part) for part in parts]


def exif(*entries: tuple[int, int, int, int], following: int = 0, data: bytes = b"") -> bytes:
    return b"Exif\0\0II*\0\x08\0\0\0" + ifd(list(entries), following) + data


# Pictures that are what they seem.


def photographs() -> list[Image.Image]:
    """Real ones, small, so that thousands of files take a minute."""
    found = []
    for module, folder in (("sklearn.datasets", "images"), ("skimage.data", ".")):
        try:
            at = Path(__import__(module, fromlist=["_"]).__file__).parent / folder
        except ImportError:
            continue
        files = sorted(file for file in at.iterdir() if file.suffix in (".jpg", ".jpeg", ".png"))
        for file in files[:6]:
            with Image.open(file) as image:
                image.load()
                image.thumbnail((120, 120))
                found.append(image.convert("RGB"))
    return found


def drawing(mode: str, size: tuple[int, int] = (90, 60)) -> Image.Image:
    image = Image.linear_gradient("L").resize(size).convert("RGB")
    draw = ImageDraw.Draw(image)
    draw.ellipse((10, 8, 60, 50), (200, 30, 40))
    draw.rectangle((40, 20, 85, 40), (20, 90, 200))
    if mode in ("LA", "RGBA"):
        image.putalpha(Image.radial_gradient("L").resize(size))
        return image.convert(mode)
    if mode in ("I;16", "I", "F"):
        values = np.asarray(image.convert("L")).astype(np.float32) * 257
        kinds = {"I;16": np.uint16, "I": np.int32, "F": np.float32}
        return Image.fromarray(values.astype(kinds[mode]))
    return image.convert(mode)


def rle_bmp(width: int, height: int, runs: bytes) -> bytes:
    palette = b"".join(bytes((n, 255 - n, n // 2, 0)) for n in range(256))
    info = struct.pack("<IIIHHIIIIII", 40, width, height, 1, 8, 1, len(runs), 0, 0, 256, 0)
    start = 14 + len(info) + len(palette)
    return b"BM" + struct.pack("<IHHI", start + len(runs), 0, 0, start) + info + palette + runs


def seeds() -> dict[str, bytes]:
    """Sound files of every format that is read, in every mode that it has."""
    made: dict[str, bytes] = {}
    for number, photo in enumerate(photographs()):
        made[f"photo{number}.jpg"] = encoded(photo, "JPEG", progressive=bool(number % 2))
        if number % 3 == 0:
            made[f"photo{number}.png"] = encoded(photo, "PNG")
            made[f"photo{number}.webp"] = encoded(photo, "WEBP")
            made[f"photo{number}.tif"] = encoded(photo, "TIFF", compression="tiff_lzw")
    frames = [drawing("RGB"), drawing("RGB").rotate(90), drawing("RGB").rotate(180)]
    several = {"save_all": True, "append_images": frames[1:]}
    turned = Image.Exif()
    turned[0x0112], turned[0x010E] = 6, "a description"
    for mode in ("L", "RGB", "CMYK"):
        made[f"{mode}.jpg"] = encoded(drawing(mode), "JPEG", exif=turned)
        made[f"{mode}-progressive.jpg"] = encoded(drawing(mode), "JPEG", progressive=True)
    made["phone.jpg"] = encoded(frames[0], "MPO", **several)
    for mode in ("1", "L", "LA", "P", "RGB", "RGBA", "I;16"):
        made[f"{mode}.png"] = encoded(drawing(mode), "PNG", exif=turned)
    made["transparent.png"] = encoded(drawing("P"), "PNG", transparency=3)
    made["animated.png"] = encoded(frames[0], "PNG", **several)
    for name, options in {
        "lossy": {"quality": 70, "exif": turned},
        "lossless": {"lossless": True},
        "animated": several,
    }.items():
        made[f"{name}.webp"] = encoded(frames[0], "WEBP", **options)
    made["alpha.webp"] = encoded(drawing("RGBA"), "WEBP")
    made["plain.gif"] = encoded(drawing("P"), "GIF", transparency=7)
    made["animated.gif"] = encoded(frames[0], "GIF", disposal=2, **several)
    for mode in ("1", "L", "P", "RGB", "RGBA"):
        made[f"{mode}.bmp"] = encoded(drawing(mode), "BMP")
    made["rle.bmp"] = rle_bmp(16, 8, b"\x10\x05\0\0\x08\x07\x08\x20\0\0" * 4 + b"\0\1")
    for mode in ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16", "I", "F"):
        made[f"{mode}.tif"] = encoded(drawing(mode), "TIFF")
    for compression in ("tiff_lzw", "tiff_deflate", "packbits", "jpeg", "zstd", "lzma"):
        made[f"{compression}.tif"] = encoded(drawing("RGB"), "TIFF", compression=compression)
    made["fax.tif"] = encoded(drawing("1"), "TIFF", compression="group4")
    made["pages.tif"] = encoded(frames[0], "TIFF", **several)
    made["big.tif"] = encoded(drawing("RGB"), "TIFF", big_tiff=True)
    return made


# The same with a few bytes changed.


def mutated(content: bytes, other: bytes, chance: random.Random) -> bytes:
    """Change a file as bad disks, bad networks and bad people do."""
    data = bytearray(content)
    kind = chance.randrange(9)
    head = min(len(data), 400)
    if kind == 0:  # Bytes flipped anywhere.
        for _ in range(chance.choice((1, 3, 30))):
            data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
    elif kind == 1:  # Bytes of the header are others.
        for _ in range(chance.choice((1, 2, 5))):
            data[chance.randrange(head)] = chance.randrange(256)
    elif kind == 2:  # Cut off.
        del data[chance.choice((chance.randrange(64), chance.randrange(len(data)))) :]
    elif kind == 3:  # Another format's header.
        size = chance.choice((2, 4, 8, 16, 64))
        data[:size] = other[:size]
    elif kind == 4:  # A number in the header is as large as it can be.
        at = chance.randrange(max(1, head - 4))
        data[at : at + 4] = chance.choice(
            (b"\xff" * 4, b"\x7f\xff\xff\xff", b"\0" * 4, b"\xff\xff")
        )
    elif kind == 5:  # A part is missing.
        at = chance.randrange(len(data))
        del data[at : at + chance.randrange(1, 200)]
    elif kind == 6:  # A part comes twice.
        at = chance.randrange(len(data))
        data[at:at] = data[max(0, at - 300) : at] * chance.choice((1, 20))
    elif kind == 7:  # Junk between.
        at = chance.randrange(len(data))
        data[at:at] = chance.choice((b"\xff", b"\0", b"\xff\xd8", b"\xff\xda")) * 500
    else:  # Half of it is another file's.
        data = data[: len(data) // 2] + bytearray(other[len(other) // 2 :])
    return bytes(data)


def fuzz_corpus(n_files: int, seed: int = 0) -> Iterator[tuple[str, bytes]]:
    """Yield names and contents of sound files, each followed by what became of it."""
    chance = random.Random(seed)
    sound = seeds()
    names = sorted(sound)
    yield from sound.items()
    for number in range(n_files - len(sound)):
        name, other = names[number % len(names)], chance.choice(names)
        yield f"{number:05d}-{name}", mutated(sound[name], sound[other], chance)


# What is made to cost: memory, time, or somebody else's program.


def bombs() -> dict[str, Callable[[Path], object]]:
    """How each is written: some are a gigabyte of holes."""
    jpeg = encoded(drawing("RGB", (6000, 4000)), "JPEG", progressive=True)
    plain = encoded(drawing("RGB"), "JPEG")
    deflated = zlib.compress(bytes(64 * MB), 1)
    text = zlib.compress(b"a" * (2**20 - 10) + "\U0001f600".encode(), 9)
    # Unpacked with a dictionary as large as what comes out.
    packer = lzma.LZMACompressor(
        lzma.FORMAT_XZ, filters=[{"id": lzma.FILTER_LZMA2, "preset": 0, "dict_size": 1 << 29}]
    )
    packed = b"".join(packer.compress(bytes(3 * 7900)) for _ in range(7900)) + packer.flush()
    # A scan with the table before it.
    scan = jpeg.rindex(b"\xff\xc4")
    after_scan = len(jpeg) - 2
    n_rationals = 130_000

    def sparse(content: bytes, size: int = 900 * MB) -> Callable[[Path], object]:
        def write(path: Path) -> None:
            with path.open("wb") as file:
                file.write(content)
                file.truncate(size)

        return write

    def texts(kind: bytes, n: int) -> list[bytes]:
        heads = {b"zTXt": b"%d\0\0", b"iTXt": b"%d\0\1\0\0\0", b"tEXt": b"%d\0"}
        return [chunk(kind, heads[kind] % number + text) for number in range(n)]

    written = {
        "huge-dimensions.png": png(0x7FFFFFFF, 0x7FFFFFFF, idat=b""),
        "13000x13000.png": png(13000, 13000, colours=0),
        "13000x13000-rgb.png": png(13000, 13000),
        "10000x10000-rgba.png": png(10000, 10000, colours=6),
        "10000x10000-16-bit.png": png(10000, 10000, depth=16, colours=0),
        "idat-after-the-end.png": png(10, 10, idat=deflated * 400),
        "many-texts.png": png(8000, 8000, *texts(b"iTXt", 60)),
        "many-texts-after.png": png(11000, 9000, after=texts(b"iTXt", 200)),
        "text-bomb.png": png(9, 9, chunk(b"zTXt", b"k\0\0" + deflated)),
        "profile-bomb.png": png(9, 9, chunk(b"iCCP", b"k\0\0" + deflated)),
        "long-text.png": png(9, 9, chunk(b"tEXt", b"Raw profile type exif\0" + b"\n" * 30 * MB)),
        "chunks.png": png(9, 9, *[chunk(b"abCd", b"")] * 300_000),
        "private-after.png": png(10000, 9000, after=[chunk(b"abCd", bytes(60_000))] * 900),
        "deep-exif.png": png(9, 9, chunk(b"eXIf", exif((0x8769, 4, 1, 8), following=8)[6:])),
        "wide.gif": b"GIF89a" + struct.pack("<HHBBB", 65535, 65535, 0, 0, 0) + b",",
        "13000x13000.gif": (
            b"GIF89a\xc8\x32\xc8\x32\xf0\0\0" + bytes(6) + b"!\xf9\x04\x08\0\0\0\0"
            b",\0\0\0\0\xc8\x32\xc8\x32\0\x02\x02\x44\x01\0;"
        ),
        "comments.gif": b"GIF89a\x09\0\x09\0\0\0\0" + b"!\xfe\x01a\0" * MB,
        "frames.gif": encoded(drawing("P"), "GIF")[:-1] * 2000,
        "65535x65535.jpg": plain.replace(struct.pack(">HH", 60, 90), b"\xff\xff\xff\xff", 1),
        "scans.jpg": jpeg[:scan] + (jpeg[scan:after_scan]) * 3000 + b"\xff\xd9",
        "scans-across-blocks.jpg": jpeg[:scan] + across_blocks(jpeg[scan:after_scan], scan, 400)
        + b"\xff\xd9",
        "junk.jpg": plain[:20] + bytes(8 * MB) + plain[20:],
        "long-exif.jpg": with_segments(plain, *[segment(0xE1, exif() + bytes(60_000))] * 500),
        "many-segments.jpg": with_segments(plain, *[segment(0xE5, bytes(65_000))] * 900),
        "rationals.jpg": with_segments(
            plain,
            segment(0xE1, exif((0x011A, 5, n_rationals, 26)) + b"\1\2\0\0" * 8000),
            *[segment(0xE1, b"Exif\0\0" + b"\1\2\0\0" * 16_000)] * 17,
        ),
        "looping-exif.jpg": with_segments(
            plain, segment(0xE1, exif((0x8769, 4, 1, 8), (0x8825, 4, 1, 8), following=8))
        ),
        "huge-orientation.jpg": with_segments(
            plain, segment(0xE1, exif((0x0112, 5, 8000, 26), data=b"\1\0\0\0" * 16_000))
        ),
        # Each of thousands of tags has all of the others' bytes for its value.
        "exif-again.jpg": with_segments(
            plain, segment(0xE1, exif(*[(n, 7, 64_000, 0) for n in range(1000, 6400)]))
        ),
        "long-exif-again.jpg": with_segments(
            plain, *in_segments(0xE1, exif(*[(n, 7, 720_000, 0) for n in range(1000, 61_000)]))
        ),
        "exif-again.png": png(
            9, 9, chunk(b"eXIf", exif(*[(n, 7, 720_000, 0) for n in range(1000, 61_000)])[6:])
        ),
        "exif-again.webp": encoded(
            drawing("RGB"), "WEBP", exif=exif(*[(n, 7, 720_000, 0) for n in range(1000, 61_000)])
        ),
        "raw-exif-again.png": png(
            9, 9, chunk(b"tEXt", b"Raw profile type exif\0\nexif\n1\n" + exif(
                *[(n, 7, 480_000, 0) for n in range(1000, 41_000)]
            ).hex().encode()),
        ),
        "mpf-again.jpg": with_segments(
            plain,
            segment(0xE2, b"MPF\0" + exif(*[(n, 3, 32_000, 0) for n in range(1000, 6400)])[6:]),
        ),
        "looping.tif": tiff(9, 9, strip=bytes(81), following=89),
        "rationals.tif": tiff(9, 9, (282, 5, 3 * MB, 200), strip=bytes(81), data=bytes(24 * MB)),
        "rationals-in-exif.tif": tiff(
            9, 9, (34665, 4, 1, 300), strip=bytes(81),
            data=bytes(85) + ifd([(0x9201, 10, 3 * MB, 400)]) + bytes(24 * MB),
        ),
        "many-bits.tif": tiff(9, 9, (258, 3, 12 * MB, 200), strip=bytes(81), data=bytes(24 * MB)),
        "many-tags.tif": tiff(9, 9, *[(n, 3, 1, n) for n in range(400, 60_000)], strip=bytes(81)),
        # Begin as Pillow takes them, and nobody else.
        "odd-start.tif": b"II\0*" + tiff(9, 9, (700, 3, 15 * MB, 300), data=b"\1\2" * 15 * MB)[4:],
        "odd-big-start.tif": b"MM\0+" + struct.pack(">IHHHII", 8, 1, 700, 3, 15 * MB, 30)
        + bytes(4) + b"\1\2" * 15 * MB,
        "dictionary.tif": tiff(
            7900, 7900, (262, 3, 1, 2), (277, 3, 1, 3), strip=packed, compression=34925
        ),
        "wide.png": png(100_000_000, 1),
        "wide-grey.tif": tiff(60_000_000, 1, strip=bytes(60 * MB)),
        "wide.bmp": b"BM" + struct.pack("<IHHIIIIHH", 0, 0, 0, 54, 40, 20 * MB, 1, 1, 24)
        + bytes(24 + 60 * MB),
        "strips-again.tif": tiff(
            2000, 2000, (273, 4, 99_000, 4_000_122), rows=1999, strip=bytes(4 * MB),
            data=struct.pack("<99000I", *range(8, 99_008)),
        ),
        "one-strip.tif": tiff(13000, 13000, strip=deflated, compression=8),
        "huge-tile.tif": tiff(
            60, 60, (322, 4, 1, 60_000), (323, 4, 1, 30_000), (324, 4, 1, 8),
            (325, 4, 1, len(deflated)), strip=deflated, compression=8,
        ),
        "fax.tif": tiff(12000, 12000, (258, 3, 1, 1), strip=b"\0\x10\x01" * 9, compression=4),
        "13000x13000.webp": b"RIFF" + struct.pack("<I", 30) + b"WEBPVP8X" + struct.pack("<I", 10)
        + b"\0\0\0\0" + b"\xc7\x32\0\xc7\x32\0",
        "6000x5000.webp": encoded(Image.new("RGB", (6000, 4000)), "WEBP", method=0),
        "8000x8000.webp": encoded(Image.new("RGB", (8000, 8000)), "WEBP", method=0, lossless=True),
        "long-rows.bmp": rle_bmp(60_000, 2900, b"\1\1\0\0" * 2900),
        "runs.bmp": rle_bmp(4000, 1900, b"\1\1" * 3 * MB),
        "13000x13000.bmp": rle_bmp(13000, 13000, b"")[:30] + bytes(4) + bytes(2000),
        "header.bmp": b"BM" + bytes(12) + struct.pack("<I", 0x7FFFFFFF) + bytes(40),
    }  # fmt: skip
    many: dict[str, Callable[[Path], object]] = {
        name: (lambda path, content=content: path.write_bytes(content))
        for name, content in written.items()
    }
    many |= {
        "holes.jpg": sparse(plain[:200]),
        "holes.png": sparse(png(2000, 2000)[:100]),
        "holes-in-a-chunk.png": sparse(png(9, 9)[:33] + b"\x30\0\0\0abCd"),
        "holes.gif": sparse(b"GIF89a\x09\0\x09\0\0\0\0!\xfe"),
        "holes.tif": sparse(tiff(13000, 13000)),
        "holes-lzw.tif": sparse(tiff(9000, 9000, (279, 4, 1, 800 * MB), compression=5)),
        "strips-far-apart.tif": sparse(
            tiff(
                9000, 9000, (273, 4, 2, 200), rows=4500, data=struct.pack("<II", 300, 800 * MB) * 9
            )
        ),
        "holes.webp": sparse(encoded(drawing("RGB"), "WEBP")),
        "holes.bmp": sparse(rle_bmp(13000, 13000, b"")),
        "too-large.jpg": sparse(plain, 10**13),
    }
    return many


_NOT_PICTURES = {
    "svg.jpg": b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"><rect/></svg>',
    "xml.jpg": b'<?xml version="1.0"?><!DOCTYPE a [<!ENTITY b SYSTEM "file:///etc/passwd">]><a>&b;</a>',
    "pdf.jpg": b"%PDF-1.7\n1 0 obj<</Type/Catalog/OpenAction<</S/JavaScript>>>>endobj\n%%EOF",
    "html.png": b"<!DOCTYPE html><html><body><img src=x onerror=alert(1)></body></html>",
    "eps.jpg": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(%pipe%touch ran) (w) file\n",
    "zip.png": b"PK\x03\x04" + bytes(60),
    "elf.gif": b"\x7fELF" + bytes(60),
    "text.webp": b"RIFF\x10\0\0\0WEBPtext",
    "empty.jpg": b"",
    "one-byte.jpg": b"\xff",
    "avif.jpg": b"\0\0\0\x20ftypavif\0\0\0\0avifmif1" + bytes(60),
}


def write_odd_files(folder: Path) -> tuple[int, int]:
    """Write what is no picture, and pictures under odd names; return how many of each.

    Where the file system refuses a name, it is left out.
    """
    good = encoded(drawing("RGB"), "PNG")
    for name, content in _NOT_PICTURES.items():
        (folder / name).write_bytes(content)
    (folder / "directory.jpg").mkdir()
    (folder / "loop.jpg").symlink_to(folder / "loop.jpg")
    (folder / "dangling.jpg").symlink_to(folder / "nothing.jpg")
    (folder / "to-a-directory.jpg").symlink_to(folder)
    os.mkfifo(folder / "pipe.jpg")
    (folder / "to-a-pipe.png").symlink_to(folder / "pipe.jpg")
    for device in ("zero", "random", "full", "tty"):
        (folder / f"{device}.png").symlink_to(f"/dev/{device}")
    with socket.socket(socket.AF_UNIX) as listening:
        here = os.getcwd()
        os.chdir(folder)  # A socket's path may have 108 bytes.
        try:
            listening.bind("socket.jpg")
        finally:
            os.chdir(here)
    bad = len(_NOT_PICTURES) + 11
    n_good = 0
    for name in (
        b"two\nlines.png",
        b"clear\x1b[2J\x1b[31mred.png",
        b"back\x08\x08\x08over\rit.png",
        b"latin-1-\xe9\xff.png",
        "right\u202egnp.exe.png".encode(),
        "line\u2028separator\u0085.png".encode(),
        b"-rf.png",
        b"$(touch ran).png",
        b"'; DROP TABLE.png",
        b"%s%n%x.png",
        b"[red]rich[/red].png",
        b"a" * 251 + b".png",
        "狗".encode() * 83 + b".png",
        b" .png",
    ):
        try:
            with open(os.path.join(os.fsencode(folder), name), "wb") as file:
                file.write(good)
            n_good += 1
        except OSError:
            continue
    return n_good, bad
