"""Pictures with the statistics of photographs, and of their sizes on disk.

    python benchmarks/corpus.py --corpus jpeg-640 --images 64 --work FOLDER

Each is cut from one of a few base pictures: light that falls off with frequency as in nature (1/f),
objects with hard edges, the noise of a sensor, JPEG quality 88 to 92. The pictures of a folder are
the same in each run, and those that are there are not made again.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw


@dataclass(frozen=True)
class Kind:
    """One kind of file.

    Attributes:
        width, height: Pixels.
        suffix: Decides the format.
        bases: Base pictures that the files are cut from.
        softness: By how much a camera of this many pixels blurs: its lens is not better than that
            of one with fewer.
        noise: Of the sensor, in grey levels; more where a pixel is smaller.
    """

    width: int
    height: int
    suffix: str
    bases: int
    softness: int = 1
    noise: float = 2.0


KINDS = {
    "jpeg-640": Kind(640, 480, ".jpg", bases=200),
    "jpeg-2mp": Kind(1632, 1224, ".jpg", bases=48),
    "jpeg-12mp": Kind(4000, 3000, ".jpg", bases=8, softness=2, noise=3.5),
    "png-640": Kind(640, 480, ".png", bases=200),
    # For the growth with the number of paths, where the pictures are not what counts.
    "jpeg-tiny": Kind(96, 72, ".jpg", bases=200),
}


def make_corpus(kind: str, count: int, work: Path) -> list[Path]:
    """Return the paths of that many different files, made where they are missing."""
    settings = KINDS[kind]
    folder = work / "corpus" / kind
    folder.mkdir(parents=True, exist_ok=True)
    files = [folder / f"{number:06}{settings.suffix}" for number in range(count)]
    there = set(os.listdir(folder))
    missing = [number for number, file in enumerate(files) if file.name not in there]
    # Base by base, so that one of them is in memory at a time.
    for base in range(settings.bases):
        numbers = [number for number in missing if number % settings.bases == base]
        if numbers:
            pixels = draw_base(settings, base)
            for number in numbers:
                _write(vary(pixels, settings, number), files[number], quality=88 + number % 5)
    return files


def link_files(files: list[Path], folder: Path, count: int) -> Iterator[Path]:
    """Yield that many different paths, hard links to a few files, as they are asked for.

    A link is an image of its own to whoever goes by paths, and costs no room.
    """
    for number in range(count):
        # A thousand to a folder, because some file systems are slow with more.
        part = folder / f"{number // 1000:04}"
        if number % 1000 == 0:
            part.mkdir(parents=True, exist_ok=True)
        source = files[number % len(files)]
        path = part / f"{number:06}{source.suffix}"
        os.link(source, path)
        yield path


def draw_base(kind: Kind, number: int) -> np.ndarray:
    """Draw one base picture, a little larger than the files. Shape ``(h, w, 3)``, float32."""
    rng = np.random.default_rng([number, kind.width])
    width, height = kind.width * 5 // 4, kind.height * 5 // 4
    light = _texture(rng, width // kind.softness, height // kind.softness)
    # Colours change more slowly than light does.
    colours = [_texture(rng, width // 8, height // 8) for _ in range(2)]
    light, *colours = (_resized(part, width, height) for part in (light, *colours))
    pixels = np.stack(
        [
            128 + 48 * light + 22 * colours[0],
            128 + 48 * light - 8 * colours[0] - 8 * colours[1],
            128 + 48 * light + 22 * colours[1],
        ],
        axis=-1,
    )
    for _ in range(24):
        _add_object(pixels, rng)
    return pixels


def vary(base: np.ndarray, kind: Kind, number: int) -> np.ndarray:
    """Cut a picture of its own out of a base: place, side, light and noise. Uint8."""
    rng = np.random.default_rng([number, kind.width, 1])
    top = rng.integers(base.shape[0] - kind.height + 1)
    left = rng.integers(base.shape[1] - kind.width + 1)
    pixels = base[top : top + kind.height, left : left + kind.width]
    if rng.integers(2):
        pixels = pixels[:, ::-1]
    pixels = pixels * rng.uniform(0.8, 1.2)
    pixels += kind.noise * rng.standard_normal(pixels.shape[:2], dtype=np.float32)[..., None]
    return np.clip(pixels, 0, 255).astype(np.uint8)


def _texture(rng: np.random.Generator, width: int, height: int) -> np.ndarray:
    """Return noise whose amplitude falls as 1/f, of unit variance."""
    spectrum = np.fft.rfft2(rng.standard_normal((height, width), dtype=np.float32))
    rows = np.fft.fftfreq(height)[:, None].astype(np.float32)
    columns = np.fft.rfftfreq(width)[None, :].astype(np.float32)
    # From a quarter of the picture upwards, or nothing but one large gradient would be seen.
    frequency = np.maximum(np.hypot(rows, columns), 4 / max(width, height))
    texture = np.fft.irfft2(spectrum / frequency**1.35, s=(height, width)).astype(np.float32)
    return texture / texture.std()


def _resized(plane: np.ndarray, width: int, height: int) -> np.ndarray:
    if plane.shape == (height, width):
        return plane
    resized = Image.fromarray(plane).resize((width, height), Image.Resampling.BICUBIC)
    return np.asarray(resized, dtype=np.float32)


def _add_object(pixels: np.ndarray, rng: np.random.Generator) -> None:
    """Shift the colour of an ellipse or a triangle, in place: what is there keeps its texture."""
    height, width = pixels.shape[:2]
    size = rng.uniform(0.05, 0.3, 2) * min(height, width)
    left, top = int(rng.integers(width)), int(rng.integers(height))
    box_width, box_height = int(size[0]) + 4, int(size[1]) + 4
    mask = Image.new("L", (box_width, box_height))
    if rng.integers(2):
        ImageDraw.Draw(mask).ellipse((1, 1, box_width - 2, box_height - 2), fill=255)
    else:
        corners = [(int(rng.integers(box_width)), int(rng.integers(box_height))) for _ in range(3)]
        ImageDraw.Draw(mask).polygon(corners, fill=255)
    part = pixels[top : top + box_height, left : left + box_width]
    share = np.asarray(mask, dtype=np.float32)[: part.shape[0], : part.shape[1], None] / 255
    part += share * rng.normal(0, 40, 3).astype(np.float32)


def _write(pixels: np.ndarray, file: Path, *, quality: int) -> None:
    # Under another name first, so that what an interrupted run leaves is not taken for whole.
    unfinished = file.with_name(f".{os.getpid()}-{file.name}")
    options = {"quality": quality} if file.suffix == ".jpg" else {}
    Image.fromarray(pixels).save(unfinished, **options)
    unfinished.replace(file)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--corpus", choices=KINDS, default="jpeg-640")
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--work", type=Path, required=True)
    options = parser.parse_args()
    files = make_corpus(options.corpus, options.images, options.work)
    sizes = sorted(file.stat().st_size for file in files)
    print(f"{len(files)} files in {files[0].parent}; size on disk in KB: ", end="")
    print(f"median {sizes[len(sizes) // 2] / 1e3:.0f}, {sizes[0] / 1e3:.0f}", end="")
    print(f" to {sizes[-1] / 1e3:.0f}")


if __name__ == "__main__":
    main()
