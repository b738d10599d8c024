"""Decoding on the device, with Pillow in nvJPEG's place where there is no CUDA."""

import io
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_sample_image

from llama_index_clip_ext import CLIPEmbedding, ImageLoadError, nvjpeg
from llama_index_clip_ext.checkpoint import find_checkpoint
from llama_index_clip_ext.encoder import Encoder


def encoded(picture, suffix="JPEG", **options):
    file = io.BytesIO()
    picture.save(file, suffix, **options)
    return file.getvalue()


@pytest.fixture(scope="module")
def photo():
    return Image.fromarray(load_sample_image("china.jpg"))


@pytest.fixture
def pillow_as_nvjpeg(monkeypatch):
    """Decode as nvJPEG would; return how many pictures each call was given."""
    calls = []

    def decode(tensors, device):
        calls.append(len(tensors))
        pictures = [Image.open(io.BytesIO(one.numpy().tobytes())).convert("RGB") for one in tensors]
        return [torch.from_numpy(np.array(one)).permute(2, 0, 1).to(device) for one in pictures]

    monkeypatch.setattr(nvjpeg, "has_nvjpeg", lambda device: True)
    monkeypatch.setattr(nvjpeg, "_decode_jpegs", decode)
    return calls


@pytest.fixture
def preprocessing(clip_dir):
    return Encoder(find_checkpoint(clip_dir)).preprocessing


def test_it_takes_cuda_and_torchvision(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchvision", None)
    assert not nvjpeg.has_nvjpeg("cpu")
    monkeypatch.setattr(nvjpeg, "find_spec", lambda name: object())
    assert nvjpeg.has_nvjpeg("cuda:1")
    assert not nvjpeg.has_nvjpeg("cpu")
    monkeypatch.setattr(nvjpeg, "find_spec", lambda name: None)
    assert not nvjpeg.has_nvjpeg("cuda")


def test_what_pillow_does_otherwise_is_left_to_it(photo, preprocessing):
    turned = Image.Exif()
    turned[0x0112] = 6
    upright = Image.Exif()
    upright[0x0112] = 1
    whole = encoded(photo)
    takes = {
        "a photograph": whole,
        "grey": encoded(photo.convert("L")),
        "upright": encoded(photo, exif=upright),
        "with zeros behind it": whole + b"\0\0",
    }
    leaves = {
        "turned": encoded(photo, exif=turned),
        "CMYK": encoded(photo.convert("CMYK")),
        "PNG": encoded(photo, "PNG"),
        "cut off": whole[:-2],
        "an end without a start": b"\xff\xd8" + b"\xff\xd9",
        "empty": b"",
    }
    assert {name for name, one in takes.items() if nvjpeg.takes(one, preprocessing)} == set(takes)
    assert not [name for name, one in leaves.items() if nvjpeg.takes(one, preprocessing)]


@pytest.mark.parametrize("size", [(640, 480), (333, 641), (60, 50), (3000, 2000), (3000, 20)])
def test_the_pixels_are_pillows(photo, preprocessing, size, pillow_as_nvjpeg):
    content = encoded(photo.resize(size))
    (pixels,) = nvjpeg.decode([content], preprocessing, "cpu")
    expected = preprocessing.pixels(Image.open(io.BytesIO(content)).convert("RGB"))
    assert (pixels.dtype, tuple(pixels.shape)) == (torch.uint8, expected.shape)
    assert np.abs(pixels.numpy().astype(int) - expected).mean() < 0.6


def test_a_batch_of_both_kinds_keeps_its_order(photo, clip_dir, pillow_as_nvjpeg, monkeypatch):
    sources = [
        encoded(photo.rotate(angle), suffix)
        for angle, suffix in ((0, "JPEG"), (90, "PNG"), (180, "JPEG"), (270, "BMP"))
    ]
    embed_model = CLIPEmbedding(clip_dir)
    rows = np.array(embed_model.get_image_embedding_batch(sources))
    assert pillow_as_nvjpeg == [2]
    np.testing.assert_allclose(embed_model.get_image_embedding(sources[2]), rows[2], atol=1e-5)
    monkeypatch.setattr(nvjpeg, "has_nvjpeg", lambda device: False)
    expected = np.array(CLIPEmbedding(clip_dir).get_image_embedding_batch(sources))
    assert (rows * expected).sum(axis=1).min() > 0.999
    assert (rows @ expected.T).argmax(axis=1).tolist() == [0, 1, 2, 3]


def test_where_nvjpeg_fails_pillow_says_which_one(photo, clip_dir, pillow_as_nvjpeg, monkeypatch):
    def fail(tensors, device):
        raise RuntimeError("nvjpegDecodeJpeg failed: 5")

    monkeypatch.setattr(nvjpeg, "_decode_jpegs", fail)
    good = encoded(photo)
    start, middle = good[:20], good[20:-2]
    bad = start + bytes(len(middle)) + good[-2:]
    monkeypatch.setattr(nvjpeg, "takes", lambda content, preprocessing: True)
    embed_model = CLIPEmbedding(clip_dir)
    result = embed_model.embed_images([good, bad, good], on_error="skip")
    assert result.kept == [0, 2]
    (failure,) = result.failures
    assert (failure.index, failure.source) == (1, f"bytes of {len(bad)} bytes")
    with pytest.raises(ImageLoadError) as caught:
        embed_model.get_image_embedding_batch([good, bad, good])
    assert caught.value.index == 1


def test_an_nvjpeg_that_never_works_is_asked_once(
    photo, clip_dir, pillow_as_nvjpeg, monkeypatch, caplog
):
    calls = []

    def fail(tensors, device):
        calls.append(len(tensors))
        raise RuntimeError("not compiled with nvJPEG support")

    monkeypatch.setattr(nvjpeg, "_decode_jpegs", fail)
    embed_model = CLIPEmbedding(clip_dir, embed_batch_size=2)
    rows = embed_model.get_image_embedding_batch([encoded(photo)] * 2)
    embed_model.get_image_embedding_batch([encoded(photo)] * 20)
    assert calls == [2]
    assert "from now on Pillow decodes them all" in caplog.text
    np.testing.assert_allclose(rows[0], embed_model.get_image_embedding(encoded(photo)), atol=1e-5)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
def test_nvjpeg_itself_stays_within_the_bound(clip_dir, photo):
    pytest.importorskip("torchvision", reason="nvJPEG comes with torchvision")
    sources = [encoded(photo.resize(size)) for size in ((640, 480), (2000, 1500), (4000, 3000))]
    fast = CLIPEmbedding(clip_dir, device="cuda")
    assert fast.encoder.decodes_on_device
    expected = CLIPEmbedding(clip_dir, device="cpu", preprocess="reference")
    rows = fast.embed_images(sources).embeddings * expected.embed_images(sources).embeddings
    assert rows.sum(axis=1).min() > 0.999
