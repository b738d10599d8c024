"""Int8 against transformers' own processor and forward pass, for each image tower."""

from __future__ import annotations

import checkpoints
import numpy as np
import pytest
import torch
from PIL import Image

from llama_index_clip_ext.checkpoint import find_checkpoint
from llama_index_clip_ext.int8 import Int8Tower, image_features, make_int8, trace_tower
from llama_index_clip_ext.loading import load_image_processor, load_tower
from llama_index_clip_ext.preprocessing import Preprocessing

openvino = pytest.importorskip("openvino", reason="int8 needs OpenVINO, which is not installed")
pytest.importorskip("nncf", reason="int8 is made by NNCF, which is not installed")

MAKERS = {
    "siglip": lambda directory: checkpoints.make_siglip(directory, tiny=True),
    "altclip": checkpoints.make_altclip,
    "metaclip-2": checkpoints.make_metaclip_2,
    "open-clip": checkpoints.make_open_clip,
}


@pytest.fixture(params=["vit-b-32", *MAKERS])
def checkpoint(request, tmp_path):
    if request.param == "vit-b-32":
        return find_checkpoint(request.getfixturevalue("vit_b_32"))
    return find_checkpoint(MAKERS[request.param](tmp_path / "own"))


def test_as_traced_it_is_the_same_and_in_int8_near(checkpoint, photos):
    processor = load_image_processor(checkpoint)
    preprocessing = Preprocessing.of(processor)
    scaling = preprocessing.factor, preprocessing.offset
    model = load_tower(checkpoint, "image", torch.float32)
    pictures = [Image.open(path).convert("RGB") for path in photos[:20]]
    pixels = np.stack([preprocessing.pixels(picture) for picture in pictures])
    values = processor(pictures[1::2], return_tensors="pt")["pixel_values"]
    with torch.inference_mode():
        exact = unit(image_features(model, values).numpy())

    core = openvino.Core()
    traced = trace_tower(model, pixels[:2], *scaling)
    traced = core.compile_model(traced, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    # What resizing in two steps changes is in it.
    np.testing.assert_allclose(unit(traced(pixels[1::2])[0]), exact, atol=2e-3)

    rows = unit(Int8Tower(make_int8(checkpoint, model, pixels[::2], *scaling))(pixels[1::2]))
    cosines = (exact * rows).sum(axis=1)
    # In models of two thin layers, a picture beyond the ranges of the ten that they were calibrated
    # on may fare worse.
    assert np.median(cosines) > 0.998
    if checkpoint.dim == 512:
        assert cosines.min() > 0.998


def unit(rows):
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)
