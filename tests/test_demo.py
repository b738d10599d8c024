import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

import llama_index_clip_ext
from llama_index_clip_ext import load_embedding
from llama_index_clip_ext.demo.heldout import heldout_accuracy
from llama_index_clip_ext.vectors import l2_normalize

CHECKPOINTS = Path(llama_index_clip_ext.__file__).parent / "demo" / "checkpoints"


def test_both_checkpoints_together_take_at_most_4_mb():
    sizes = [path.stat().st_size for path in CHECKPOINTS.rglob("*") if path.is_file()]
    assert sum(sizes) <= 4_000_000


def test_they_say_what_they_know():
    for name in ("clip", "chinese-clip"):
        card = (CHECKPOINTS / name / "README.md").read_text(encoding="utf-8")
        assert "shapes" in card
        assert "digits" in card


@pytest.mark.parametrize(
    ("model", "language"),
    [("demo-clip", "en"), ("demo-chinese-clip", "zh"), ("demo-chinese-clip", "en")],
)
def test_they_know_pictures_that_they_were_not_trained_on(model, language):
    embed_model = load_embedding(model, embed_batch_size=64)
    accuracy = heldout_accuracy(
        lambda texts: l2_normalize(embed_model.get_text_embedding_batch(texts)),
        lambda images: embed_model.embed_images(images).embeddings,
        language,
    )
    assert accuracy["colour+shape"] >= 0.95, accuracy
    assert accuracy["digit"] >= 0.95, accuracy


def test_the_demo_finds_the_right_pictures_and_draws_a_sheet(tmp_path):
    command = [
        sys.executable,
        "-m",
        "llama_index_clip_ext",
        "demo",
        "--output",
        str(tmp_path / "out"),
    ]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr + result.stdout
    assert "8 of 8 searches found the right picture first" in result.stdout
    assert "know only drawn shapes" in result.stdout
    for asked in ("a red circle", "绿色三角形", "like this picture"):
        assert asked in result.stdout
    with Image.open(tmp_path / "out" / "contact-sheet.png") as sheet:
        assert sheet.width > 500
        assert sheet.height > 1000
        # The frame of a right answer.
        colours = {colour for _, colour in sheet.getcolors(maxcolors=1 << 24)}
        assert (34, 139, 34) in colours
    again = subprocess.run(command, capture_output=True, text=True)
    assert again.returncode == 0, again.stderr


def test_the_digits_are_scikit_learns():
    import numpy as np

    datasets = pytest.importorskip("sklearn.datasets")
    from llama_index_clip_ext.demo.drawing import DIGIT_COUNT, _load_digits

    expected = datasets.load_digits()
    images, target = _load_digits()
    assert len(images) == DIGIT_COUNT
    np.testing.assert_array_equal(images, expected.images)
    np.testing.assert_array_equal(target, expected.target)
