import asyncio
import json
import logging
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
import skimage.data
import sklearn.datasets
from PIL import Image

from llama_index_clip_ext import (
    DualEncoderEmbedding,
    create_retriever,
    create_vector_store,
    errors,
    ingest_images,
    int8,
)
from llama_index_clip_ext.checkpoint import find_checkpoint
from llama_index_clip_ext.errors import ModelLoadError, QuantizationError
from llama_index_clip_ext.int8 import (
    Int8Report,
    int8_folder,
    load_int8,
    save_int8,
)
from llama_index_clip_ext.metrics import neighbour_overlap
from llama_index_clip_ext.quantization import aquantize_images, quantize_images


@pytest.fixture(scope="session")
def openvino():
    pytest.importorskip("nncf", reason="int8 is made by NNCF, which is not installed")
    return pytest.importorskip("openvino", reason="int8 needs OpenVINO, which is not installed")


@pytest.fixture(scope="session")
def crops(tmp_path_factory) -> Path:
    """A folder of 60 details of real photographs."""
    folder = tmp_path_factory.mktemp("crops")
    source = Path(skimage.data.__file__).parent
    paths = [source / name for name in ("astronaut.png", "coffee.png", "chelsea.png", "rocket.jpg")]
    paths += sorted((Path(sklearn.datasets.__file__).parent / "images").glob("*.jpg"))
    rng = np.random.default_rng(0)
    for number in range(60):
        photo = Image.open(paths[number % len(paths)]).convert("RGB")
        side = int(min(photo.size) * rng.uniform(0.3, 0.9))
        x, y = (int(rng.integers(edge - side)) for edge in photo.size)
        photo.crop((x, y, x + side, y + side)).resize((256, 256)).save(folder / f"{number:02}.png")
    return folder


@pytest.fixture(params=["clip_dir", "chinese_clip_dir"])
def own_dir(request, tmp_path):
    """A copy of a tiny checkpoint, to write to."""
    return shutil.copytree(request.getfixturevalue(request.param), tmp_path / "own")


@pytest.fixture
def own_clip_dir(clip_dir, tmp_path):
    return shutil.copytree(clip_dir, tmp_path / "own")


@pytest.fixture
def store_of(tmp_path):
    return lambda embed_model: create_vector_store(embed_model, uri=tmp_path / "int8.db")


@pytest.fixture
def made(clip_dir, openvino, crops, tmp_path_factory, tmp_path):
    """A copy of the tiny CLIP with its int8 tower, which is made once."""
    home = Path(tmp_path_factory.getbasetemp()) / "made-int8"
    if not home.exists():
        shutil.copytree(clip_dir, home)
        quantize_images(DualEncoderEmbedding(home), crops)
    return shutil.copytree(home, tmp_path / "made")


def nothing_new(directory):
    return [p.name for p in directory.iterdir() if "int8" in p.name] == []


def test_it_is_near_float32_on_real_photographs_and_kept_beside_the_checkpoint(
    own_dir, openvino, crops, capfd
):
    before = find_checkpoint(own_dir).space
    embed_model = DualEncoderEmbedding(own_dir)
    report = quantize_images(embed_model, crops)
    assert (report.n_calibration, report.n_checked, report.n_skipped) == (30, 30, 0)
    assert 0.999 <= report.worst_cosine <= report.mean_cosine <= 1.00001
    assert report.top10_overlap > 0.95
    assert report.folder == own_dir / "int8"
    assert f"{report.worst_cosine:.4f} at worst" in str(report)
    # NNCF and OpenVINO print bars and warnings.
    assert capfd.readouterr() == ("", "")
    assert sorted(p.name for p in report.folder.iterdir()) == [
        "model.bin",
        "model.xml",
        "report.json",
    ]
    assert [p.name for p in own_dir.iterdir() if p.name.startswith(".")] == []

    # The folder does not change what the checkpoint is.
    assert find_checkpoint(own_dir).space == before
    tower = load_int8(find_checkpoint(own_dir))
    pixels = np.stack(
        [embed_model.encoder.preprocessing.pixels(Image.open(p)) for p in sorted(crops.iterdir())]
    )
    rows = tower(pixels)
    assert rows.shape == (60, 16)
    assert rows.dtype == np.float32
    exact = np.array(embed_model.get_image_embedding_batch(sorted(crops.iterdir())))
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    assert (unit * exact).sum(axis=1).min() > 0.999

    # Any batch size, and an answer that the next batch does not write over.
    first = tower(pixels[:1])
    kept = first.copy()
    np.testing.assert_allclose(tower(pixels[1:8]), rows[1:8], atol=1e-3)
    np.testing.assert_array_equal(first, kept)
    np.testing.assert_allclose(first, rows[:1], atol=1e-3)
    assert tower(pixels[:0]).shape == (0, 16)


def test_again_replaces_it_and_asynchronously(made, crops):
    old = json.loads((made / "int8" / "report.json").read_text())
    report = asyncio.run(aquantize_images(DualEncoderEmbedding(made), crops, n_images=40))
    new = json.loads((made / "int8" / "report.json").read_text())
    assert (old["n_checked"], new["n_checked"], report.n_checked) == (30, 20, 20)
    assert old["weights"] == new["weights"]
    assert {"openvino", "nncf", "torch", "transformers"} == set(new["versions"])
    assert [p.name for p in made.iterdir() if p.name.startswith(".")] == []


def test_below_a_bound_it_is_refused_and_nothing_is_left(own_clip_dir, openvino, crops):
    embed_model = DualEncoderEmbedding(own_clip_dir)
    with pytest.raises(
        QuantizationError, match=r"at worst .*at least 1\.0 wanted.*bfloat16"
    ) as err:
        quantize_images(embed_model, crops, n_images=40, min_cosine=1.0)
    assert isinstance(err.value.report, Int8Report)
    assert 0.99 < err.value.report.worst_cosine < 1
    assert nothing_new(own_clip_dir)


def test_a_refusal_leaves_the_older_one(made, crops):
    before = (made / "int8" / "report.json").read_bytes()
    with pytest.raises(QuantizationError, match="Nothing was kept"):
        quantize_images(DualEncoderEmbedding(made), crops, n_images=40, min_top10_overlap=1.01)
    assert (made / "int8" / "report.json").read_bytes() == before
    assert load_int8(find_checkpoint(made))


def test_unreadable_pictures_are_skipped_and_copies_count_once(
    own_clip_dir, openvino, crops, caplog, monkeypatch
):
    monkeypatch.setattr("llama_index_clip_ext.quantization.check_can_make", lambda _: None)
    pictures = sorted(crops.iterdir())
    sources = [*pictures[:39], *pictures[:39], b"no picture", "missing.png"]
    message = r"39 different pictures came \(2 could not be read\), at least 40 are needed"
    with (
        caplog.at_level(logging.WARNING),
        pytest.raises(ValueError, match=message),
    ):
        quantize_images(DualEncoderEmbedding(own_clip_dir), sources)
    assert "left out image (missing.png): no such file" in caplog.text


def test_bad_arguments():
    with pytest.raises(ValueError, match="n_images is 10, expected at least 40"):
        quantize_images(None, "photos", n_images=10)


def test_what_its_few_steps_cannot_do_is_refused(clip_dir, monkeypatch):
    embed_model = DualEncoderEmbedding(clip_dir)
    monkeypatch.setattr(type(embed_model.encoder), "preprocessing", None)
    with pytest.raises(ModelLoadError, match="has no int8: its image processor does more"):
        quantize_images(embed_model, "photos")


def test_without_one_it_says_how_to_make_it(clip_dir):
    with pytest.raises(ModelLoadError) as err:
        load_int8(find_checkpoint(clip_dir))
    assert "quantize_images(embed_model, 'PHOTOS')" in str(err.value)
    assert f"clip-ext quantize PHOTOS --model {clip_dir}" in str(err.value)


def test_without_the_extra_it_says_how_to_install_it(own_clip_dir, monkeypatch):
    monkeypatch.setitem(sys.modules, "openvino", None)
    checkpoint = find_checkpoint(own_clip_dir)
    with pytest.raises(ModelLoadError, match="pip install nncf openvino"):
        int8.check_can_make(checkpoint)
    monkeypatch.setattr(int8, "_check_files", lambda *_: None)
    int8_folder(checkpoint).mkdir()
    with pytest.raises(ModelLoadError, match="pip install nncf openvino"):
        load_int8(checkpoint)


def test_a_folder_that_is_read_only_is_said_before_the_work(clip_dir, openvino, monkeypatch):
    def refuse(*_, **__):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(tempfile, "mkdtemp", refuse)
    with pytest.raises(ModelLoadError, match=r"Read-only file system.*--local-dir DIR"):
        int8.check_can_make(find_checkpoint(clip_dir))


def test_a_disk_that_is_full_leaves_the_older_one(made, monkeypatch):
    checkpoint = find_checkpoint(made)

    class Full:
        @staticmethod
        def save_model(_, path, **__):
            path.write_bytes(b"half")
            raise RuntimeError("no space left")

    monkeypatch.setattr(int8, "_import", lambda _: Full)
    report = Int8Report(1, 1, 0, 1.0, 1.0, 1.0, int8_folder(checkpoint))
    with pytest.raises(ModelLoadError, match="no space left"):
        save_int8(checkpoint, None, report)
    monkeypatch.undo()
    assert [p.name for p in made.iterdir() if "int8" in p.name] == ["int8"]
    assert load_int8(checkpoint)


@pytest.mark.parametrize("key", ["weights", "preprocessing"])
def test_one_of_other_weights_or_preprocessing_is_refused(key, made, other_clip_dir):
    if key == "weights":
        shutil.copy(other_clip_dir / "model.safetensors", made)
    else:
        settings = json.loads((made / "preprocessor_config.json").read_text())
        settings["image_mean"] = [0.5, 0.5, 0.5]
        (made / "preprocessor_config.json").write_text(json.dumps(settings))
    facts = json.loads((made / "int8" / "report.json").read_text())
    checkpoint = find_checkpoint(made)
    message = f"other {key} .*{facts[key]}.*{getattr(checkpoint.space, key)}.*clip-ext quantize"
    with pytest.raises(ModelLoadError, match=message):
        load_int8(checkpoint)


@pytest.mark.parametrize("name", ["model.xml", "model.bin", "report.json"])
def test_one_that_is_damaged_is_refused(name, made):
    file = made / "int8" / name
    file.write_bytes(file.read_bytes()[:-40])
    with pytest.raises(ModelLoadError, match="is damaged.*clip-ext quantize"):
        load_int8(find_checkpoint(made))
    file.unlink()
    with pytest.raises(ModelLoadError, match="is damaged.*clip-ext quantize"):
        load_int8(find_checkpoint(made))


def test_it_moves_with_its_folder(made, tmp_path):
    shutil.move(made, tmp_path / "elsewhere")
    assert load_int8(find_checkpoint(tmp_path / "elsewhere"))


def test_the_command_makes_it_and_tells_nobody(own_clip_dir, openvino, crops, tmp_path):
    """In a process of its own: in pytest's, NNCF sends nothing by itself."""
    script = (
        "import sys, openvino_telemetry.utils.sender as sender\n"
        "sender.TelemetrySender.send = lambda *_: sys.exit('usage data was sent')\n"
        "from llama_index_clip_ext.cli import main\n"
        f"sys.argv = ['clip-ext', 'quantize', {str(crops)!r}, '--model', {str(own_clip_dir)!r},"
        " '--n-images', '40', '--json']\n"
        "main()\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        env={"PATH": "", "HOME": str(tmp_path), "PYTHONPATH": ":".join(filter(None, sys.path))},
    )
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout)["n_checked"] == 20
    assert (own_clip_dir / "int8" / "report.json").is_file()
    assert not (tmp_path / "intel").exists()


def test_neighbours_in_common_by_hand():
    angles = np.radians([0, 10, 25, 45, 90])
    exact = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    assert neighbour_overlap(exact, exact, 1) == 1
    # 25 degrees moved to 40: the nearest of 25 is 45 in place of 10, and that of 45 stays 25.
    angles[2] = np.radians(40)
    moved = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    assert neighbour_overlap(exact, moved, 1) == pytest.approx(4 / 5)
    assert neighbour_overlap(exact, moved, 10) == 1
    # Of equal vectors, any will do.
    same = np.ones((5, 1), dtype=np.float32)
    assert neighbour_overlap(same, exact, 2) == 1


def test_the_error_is_caught_as_ours():
    assert issubclass(errors.QuantizationError, errors.ClipExtError)


def test_images_are_embedded_in_int8_and_texts_as_ever(made, crops, store_of):
    fast = DualEncoderEmbedding(made, dtype="int8")
    exact = DualEncoderEmbedding(made, dtype="float32", preprocess="reference")
    files = sorted(crops.glob("*.png"))
    rows, expected = fast.embed_images(files).embeddings, exact.embed_images(files).embeddings
    assert type(fast.encoder._tower("image")) is int8.Int8Tower
    assert fast.encoder.arithmetic == "int8"
    assert 0.99 < (rows * expected).sum(axis=1).min() < 1 - 1e-6
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-5)
    np.testing.assert_allclose(
        fast.get_text_embedding("a cat"), exact.get_text_embedding("a cat"), atol=1e-5
    )
    assert fast.encoder.logit_scale == pytest.approx(exact.encoder.logit_scale)
    # It is the same space: int8 fills a collection that float32 searches.
    with store_of(exact) as store:
        report = ingest_images(crops, embed_model=fast, vector_store=store, batch_size=16)
        assert report.added == 60
        (hit,) = create_retriever(exact, store, similarity_top_k=1).retrieve_image(files[7])
        assert hit.node.metadata["file_name"] == files[7].name


def test_int8_is_made_before_it_is_used(own_clip_dir, crops):
    embed_model = DualEncoderEmbedding(own_clip_dir, dtype="int8")
    with pytest.raises(ModelLoadError, match="no int8 image tower yet.*clip-ext quantize"):
        embed_model.get_image_embedding(crops / "00.png")
    reference = DualEncoderEmbedding(own_clip_dir, dtype="int8", preprocess="reference")
    with pytest.raises(ModelLoadError, match="calibrated on preprocess='fast'"):
        reference.get_image_embedding(crops / "00.png")
