"""No file crashes, hangs or floods us: each is loaded, or reported by its name."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import hostile_files
import pytest
from PIL import Image

from llama_index_clip_ext import CLIPEmbedding, create_vector_store, ingest_images
from llama_index_clip_ext.errors import printable
from llama_index_clip_ext.nodes import list_images

pytestmark = pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="measures memory by /proc, and makes pipes"
)

HERE = Path(__file__).parent
MOST_MEGABYTES = 512

# In seconds of computing, of one file: no measure of speed, but of what would be a hang.
MOST_SECONDS = 30

_KNOWN = re.compile(
    r"(tempfile\.tif|\w+Decode\w*|\w*TIFF\w*|JPEGLib|(ZIP|ZSTD|LZMA)\w*): |More samples per pixel"
)

# What costs no gigabytes to write, of each kind.
SOME_BOMBS = (
    "huge-dimensions.png", "10000x10000-16-bit.png", "many-texts.png", "profile-bomb.png",
    "idat-after-the-end.png", "deep-exif.png", "13000x13000.gif", "65535x65535.jpg", "junk.jpg",
    "looping-exif.jpg", "huge-orientation.jpg", "looping.tif", "rationals.tif", "huge-tile.tif",
    "holes-lzw.tif", "strips-far-apart.tif", "holes.webp", "13000x13000.webp", "long-rows.bmp",
    "holes-in-a-chunk.png", "too-large.jpg", "wide.bmp",
    "strips-again.tif", "exif-again.jpg", "long-exif-again.jpg", "exif-again.png",
    "exif-again.webp", "raw-exif-again.png", "mpf-again.jpg", "odd-start.tif",
    "odd-big-start.tif", "dictionary.tif", "scans-across-blocks.jpg",
)  # fmt: skip


def load_each(folder: Path, *sides: str) -> dict[str, dict]:
    """Load a folder's files in a process that has nothing but Pillow, and return what came."""
    run = subprocess.run(
        [sys.executable, str(HERE / "load_each.py"), str(folder), *sides],
        capture_output=True,
        text=True,
        timeout=1500,
    )
    names = [os.fsdecode(name) for name in sorted(os.listdir(os.fsencode(folder)))]
    came = {}
    for line in run.stdout.splitlines():
        row = json.loads(line)
        came[names[row["number"]]] = row
    last = list(came)[-1] if came else "none"
    assert run.returncode == 0, f"died of {last!r}: {run.returncode}\n{run.stderr[-3000:]}"
    # libtiff says by itself what is wrong with a file, Pillow logs one thing, nobody else a word.
    said = [line for line in run.stderr.splitlines() if not _KNOWN.match(line)]
    assert said == []
    assert len(came) == len(names)
    return came


def assert_harmless(came: dict[str, dict]) -> None:
    raised = {name: row["raised"] for name, row in came.items() if "raised" in row}
    assert raised == {}
    assert [name for name, row in came.items() if not row.get("is_named", True)] == []
    floods = {name: row["megabytes"] for name, row in came.items()}
    assert {name: most for name, most in floods.items() if most > MOST_MEGABYTES} == {}
    hangs = {name: row["seconds"] for name, row in came.items() if row["seconds"] > MOST_SECONDS}
    assert hangs == {}


def test_changed_pictures_are_loaded_or_reported(tmp_path, tries, tally):
    n_files = tries(short=600, full=6000)
    for name, content in hostile_files.fuzz_corpus(n_files):
        (tmp_path / name).write_bytes(content)
    came = load_each(tmp_path)
    n_raised = sum("raised" in row for row in came.values())
    tally("hostile images: bytes changed", tried=len(came), lost=n_raised)
    assert_harmless(came)
    assert len(came) == n_files
    # What was not touched is loaded, and of the rest neither all nor none.
    failed = {name for name, row in came.items() if "failed" in row}
    assert failed & set(hostile_files.seeds()) == set()
    assert n_files * 0.2 < len(failed) < n_files * 0.8


def test_bombs_are_refused_or_fit(tmp_path, tries, tally):
    bombs = hostile_files.bombs()
    names = tries(short=SOME_BOMBS, full=tuple(bombs))
    for name in names:
        bombs[name](tmp_path / name)
    came = load_each(tmp_path)
    n_floods = sum(row["megabytes"] > MOST_MEGABYTES for row in came.values())
    tally("hostile images: bombs", tried=len(came), lost=n_floods)
    assert_harmless(came)


def test_what_is_no_picture_or_no_file(tmp_path, tally):
    n_good, n_bad = hostile_files.write_odd_files(tmp_path)
    came = load_each(tmp_path)
    n_loaded = sum("loaded" in row for row in came.values())
    tally("hostile images: odd files and names", tried=len(came), let_in=n_loaded - n_good)
    assert_harmless(came)
    assert (n_loaded, len(came)) == (n_good, n_good + n_bad)
    for row in came.values():
        # Whatever a file is called, what is said of it is one line.
        assert printable(row.get("text", "")) == row.get("text", "")


def test_large_pictures_of_real_users_are_loaded(tmp_path, tries, tally):
    """No limit is worth more than what it keeps out."""
    sizes = tries(short=[(6000, 4000)], full=[(6000, 4000), (11_648, 8_736)])
    for width, height in sizes:
        picture = Image.linear_gradient("L").resize((width, height)).convert("RGB")
        picture.save(tmp_path / f"{width}.jpg", quality=90)
        picture.save(tmp_path / f"{width}-progressive.jpg", progressive=True)
        picture.save(tmp_path / f"{width}.png", compress_level=1)
        # In strips, as scanners write them.
        picture.save(tmp_path / f"{width}.tif", "TIFF")
        picture.convert("L").save(tmp_path / f"{width}-grey.tif", compression="tiff_lzw")
        picture.convert("1").save(tmp_path / f"{width}-fax.tif", compression="group4")
    # As default settings load them for a model that reads 224 pixels.
    came = load_each(tmp_path, "448")
    tally(
        "large pictures of users",
        tried=len(came),
        lost=sum("failed" in row for row in came.values()),
    )
    assert_harmless(came)
    assert {name: row["failed"] for name, row in came.items() if "failed" in row} == {}


def test_ingest_counts_every_file_and_names_each_failure(tmp_path, clip_dir, tries, tally):
    folder = tmp_path / "folder"
    folder.mkdir()
    for name, content in hostile_files.fuzz_corpus(tries(short=120, full=400), seed=1):
        (folder / name).write_bytes(content)
    hostile_files.write_odd_files(folder)
    listed = [os.fspath(path) for path in list_images(folder)]
    model = CLIPEmbedding(clip_dir)
    with create_vector_store(model, uri=tmp_path / "hostile.db") as store:
        report = ingest_images(folder, embed_model=model, vector_store=store)
        again = ingest_images(folder, embed_model=model, vector_store=store)
        n_rows = store.count()
    n_lost = len(listed) - report.total
    tally("hostile images: ingested", tried=len(listed), lost=n_lost)
    assert report.total == again.total == len(listed)
    assert {printable(name) for name in listed} >= {one.source for one in report.failed}
    assert (again.added, again.replaced) == (0, 0)
    assert again.unchanged == report.added + report.unchanged
    assert n_rows == report.added
    assert [(one.index, one.source) for one in again.failed] == [
        (one.index, one.source) for one in report.failed
    ]
    lines = str(report).splitlines()
    assert len(lines) == 1 + len(report.failed)
    assert printable("".join(lines)) == "".join(lines)
