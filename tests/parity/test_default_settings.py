"""Default settings against the checkpoint's own processor and the float32 forward pass."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from llama_index_clip_ext import load_embedding
from llama_index_clip_ext.devices import has_native_bfloat16

# Around the sizes at which a JPEG is decoded to another fraction of itself: twice, four and eight
# times the 448 pixels that are kept at least.
SHORT_SIDES = (150, 300, 449, 895, 900, 1795, 1800, 3600)
LEAST_COSINE = 0.999


@pytest.fixture(scope="module")
def jpegs(photos) -> list[bytes]:
    """Real photographs and synthetic textures, at many sizes and qualities."""
    rng = np.random.default_rng(0)
    pictures = [Image.open(path).convert("RGB") for path in photos]
    # The hardest there is for a decoder that leaves fine detail out.
    noise = rng.integers(0, 256, (600, 800, 3), dtype=np.uint8)
    stripes = np.indices((600, 800)).sum(0) % 2 * 255
    pictures += [Image.fromarray(noise), Image.fromarray(stripes.astype(np.uint8)).convert("RGB")]
    encoded = []
    for number, picture in enumerate(pictures):
        for short in SHORT_SIDES[number % 4 :: 4]:
            scale = short / min(picture.size)
            size = [max(1, round(side * scale)) for side in picture.size]
            if max(size) > 6000:
                continue
            file = io.BytesIO()
            options = {"quality": (75, 90, 96)[number % 3], "progressive": number % 5 == 0}
            picture.resize(size).save(file, "JPEG", **options)
            encoded.append(file.getvalue())
    return encoded


def worst_cosine(directory, jpegs, **options):
    reference = load_embedding(directory, dtype="float32", preprocess="reference")
    expected = reference.embed_images(jpegs).embeddings
    rows = load_embedding(directory, **options).embed_images(jpegs).embeddings
    return float((rows * expected).sum(axis=1).min()), rows, expected


@pytest.mark.parametrize("model", ["vit_b_32", "chinese_vit_b_16"])
def test_every_picture_decoded_fast_is_close_to_its_reference(model, jpegs, request):
    directory = request.getfixturevalue(model)
    some = jpegs if model == "vit_b_32" else jpegs[::4]
    worst, rows, expected = worst_cosine(directory, some, dtype="float32")
    assert worst >= LEAST_COSINE
    # With random weights all pictures are alike, so that this says more: what tells them apart.
    mean = expected.mean(axis=0)
    apart, apart_expected = rows - mean, expected - mean
    cosines = (apart * apart_expected).sum(axis=1) / (
        np.linalg.norm(apart, axis=1) * np.linalg.norm(apart_expected, axis=1)
    )
    assert np.median(cosines) > 0.999


@pytest.mark.skipif(not has_native_bfloat16(), reason="this CPU has no bfloat16 of its own")
def test_default_settings_stay_within_the_bound(vit_b_32, jpegs):
    worst, *_ = worst_cosine(vit_b_32, jpegs)
    assert worst >= LEAST_COSINE


def test_a_texts_default_settings_stay_within_the_bound(vit_b_32):
    texts = ["a photo of a cat", "", "two astronauts, 1999", "and so on " * 90, "一张猫的照片"]
    expected = load_embedding(vit_b_32, dtype="float32").get_text_embedding_batch(texts)
    rows = load_embedding(vit_b_32).get_text_embedding_batch(texts)
    assert (np.array(rows) * np.array(expected)).sum(axis=1).min() >= LEAST_COSINE


def test_large_pictures_that_are_reduced_stay_within_the_bound(vit_b_32, photos):
    """Beyond 16 million pixels, whatever the format; here by about 7 times."""
    rng = np.random.default_rng(0)
    noise = Image.fromarray(rng.integers(0, 256, (3400, 5000, 3), dtype=np.uint8))
    photo = Image.open(photos[0]).convert("RGBA").resize((5000, 3400))
    large = []
    for picture in (noise, photo, photo.convert("L")):
        file = io.BytesIO()
        picture.save(file, "TIFF")
        large.append(file.getvalue())
    worst, *_ = worst_cosine(vit_b_32, large, dtype="float32")
    assert worst >= LEAST_COSINE
