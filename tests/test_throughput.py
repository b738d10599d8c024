import json
from pathlib import Path

import pytest
from PIL import Image
from sklearn.datasets import load_sample_image
from typer.testing import CliRunner

from llama_index_clip_ext import (
    CLIPEmbedding,
    ImageLoadError,
    encoder,
    measure_throughput,
    throughput,
)
from llama_index_clip_ext.cli import app
from llama_index_clip_ext.throughput import ThroughputReport

STEPS = ["read", "decode", "transfer", "forward", "insert"]


@pytest.fixture
def folder(tmp_path) -> Path:
    """Three photographs, and a file that is none."""
    folder = tmp_path / "photos"
    folder.mkdir()
    china, flower = (
        Image.fromarray(load_sample_image(f"{name}.jpg")) for name in ("china", "flower")
    )
    for name, picture in (("china.jpg", china), ("china.png", china), ("flower.jpg", flower)):
        picture.save(folder / name)
    (folder / "broken.jpg").write_bytes(b"no picture")
    return folder


def test_each_step_is_timed_and_nothing_is_left_behind(folder, clip_dir, tmp_path):
    before = set(tmp_path.rglob("*"))
    report = measure_throughput(folder, embed_model=CLIPEmbedding(clip_dir))
    assert report.images == 3
    assert list(report.seconds) == list(report.threads) == STEPS
    assert all(0 < seconds < 10 for seconds in report.seconds.values())
    assert report.images_per_second > 0
    assert report.bound in STEPS
    assert set(tmp_path.rglob("*")) == before
    lines = str(report).splitlines()
    assert lines[0].startswith("3 images; ")
    assert "on cpu in float32, 32 per forward" in lines[0]
    assert [line.split()[0] for line in lines[2:8]] == [*STEPS, "together"]
    assert lines[-1].startswith(f"{report.bound} bounds it: ")


@pytest.mark.parametrize(
    ("seconds", "options", "bound", "advice"),
    [
        ((1, 9, 1, 4, 1), {}, "decode", "more cores"),
        ((1, 9, 1, 4, 1), {"preprocess": "reference"}, "decode", "preprocess='fast'"),
        ((1, 9, 1, 5, 1), {}, "forward", "clip-ext quantize"),
        ((1, 9, 1, 5, 1), {"dtype": "float32"}, "forward", "dtype='auto'"),
        ((9, 2, 1, 1, 1), {}, "read", "a faster disk"),
        ((1, 1, 1, 1, 2), {}, "insert", "a Milvus server"),
    ],
)
def test_the_slowest_step_bounds_it(clip_dir, monkeypatch, seconds, options, bound, advice):
    """With times of our making: four threads read, two decode."""
    monkeypatch.setattr(encoder, "usable_cores", lambda: 2)
    report = throughput._report(
        CLIPEmbedding(clip_dir, **options), dict(zip(STEPS, seconds, strict=True)), 3, 1.0
    )
    assert report.bound == bound
    assert advice in report.advice


def test_what_cannot_be_measured_says_why(folder, clip_dir, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no images \(looked for \.bmp"):
        measure_throughput([], embed_model=CLIPEmbedding(clip_dir))
    with pytest.raises(ImageLoadError, match=r"broken\.jpg\): not a picture"):
        measure_throughput([folder / "broken.jpg"], embed_model=CLIPEmbedding(clip_dir))


def test_the_command_prints_a_table_or_json(folder, clip_dir):
    Image.new("RGB", (9, 9)).save(folder / "zzz.png")
    run = [*("bench", str(folder), "--model", str(clip_dir), "--images", "3", "--batch-size", "2")]
    result = CliRunner().invoke(app, run)
    assert result.exit_code == 0, result.output
    assert "2 per forward pass" in result.output
    assert "bounds it" in result.output
    facts = json.loads(CliRunner().invoke(app, [*run, "--json"]).output)
    assert set(facts) == set(ThroughputReport.__dataclass_fields__)
    assert facts["images"] == 2  # The third of the first three is no picture.
