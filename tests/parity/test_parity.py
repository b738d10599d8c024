"""Correct means: what transformers, and sentence-transformers, compute in float32."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import transformers
from PIL import Image

from llama_index_clip_ext import load_embedding

ENGLISH = [
    "a photo of a cat",
    "two astronauts in front of the space shuttle, 1999",
    "a café's naïve façade — “quoted”, e-mail@example.com",
    "",
    "short",
    "a red circle on a white background and " * 40,
]
CHINESE = [
    "一张猫的照片",
    "白色背景上的红色圆形",
    "Chinese 和 English 混合",
    "",
    "杰尼龟",
    "很长的文字，超过五十二个字。" * 30,
]


@pytest.fixture(
    params=["vit_b_32", "vit_b_32_st", "chinese_vit_b_16"],
)
def layout(request):
    return request.param, request.getfixturevalue(request.param)


def reference(name, directory, images, texts):
    """The forward pass as transformers' own documentation has it."""
    if name == "vit_b_32_st":
        directory = directory / "0_CLIPModel"
    chinese = name.startswith("chinese")
    model_class = transformers.ChineseCLIPModel if chinese else transformers.CLIPModel
    processor_class = transformers.ChineseCLIPProcessor if chinese else transformers.CLIPProcessor
    model = model_class.from_pretrained(directory, dtype=torch.float32).eval()
    processor = processor_class.from_pretrained(directory)
    context = 52 if chinese else 77
    with torch.inference_mode():
        pixels = processor.image_processor(images=images, return_tensors="pt")
        tokens = processor.tokenizer(
            texts, padding=True, truncation=True, max_length=context, return_tensors="pt"
        )
        features = [model.get_image_features(**pixels), model.get_text_features(**tokens)]
    rows = [getattr(item, "pooler_output", item) for item in features]
    return [torch.nn.functional.normalize(row.float()).numpy() for row in rows]


def test_every_row_is_the_references(layout, photos):
    name, directory = layout
    texts = CHINESE if name.startswith("chinese") else ENGLISH
    images = [Image.open(path).convert("RGB") for path in photos[:12] + photos[-2:]]
    expected_images, expected_texts = reference(name, directory, images, texts)
    embed_model = load_embedding(directory)
    assert embed_model.dim == 512
    for rows, expected in (
        (embed_model.get_image_embedding_batch(images), expected_images),
        (embed_model.get_text_embedding_batch(texts), expected_texts),
    ):
        rows = np.array(rows)
        assert (rows * expected).sum(axis=1).min() > 0.9999
        assert np.abs(np.linalg.norm(rows, axis=1) - 1).max() < 1e-5


@pytest.mark.parametrize("checkpoint", ["vit_b_32", "chinese_vit_b_16"])
def test_batch_1_and_batch_64_agree(checkpoint, photos, request):
    embed_model = load_embedding(request.getfixturevalue(checkpoint))
    files = (photos * 3)[:64]
    texts = [f"{text} {number}" for number in range(11) for text in ENGLISH][:64]
    for method, items in (
        (embed_model.get_image_embedding_batch, files),
        (embed_model.get_text_embedding_batch, texts),
    ):
        embed_model.embed_batch_size = 64
        together = np.array(method(items))
        embed_model.embed_batch_size = 1
        alone = np.array(method(items[:8]))
        assert (together[:8] * alone).sum(axis=1).min() > 0.9999


def test_sentence_transformers_computes_the_same(vit_b_32_st, photos):
    sentence_transformers = pytest.importorskip("sentence_transformers")
    model = sentence_transformers.SentenceTransformer(str(vit_b_32_st), device="cpu")
    images = [Image.open(path).convert("RGB") for path in photos[:6]]
    texts = ENGLISH[:3]
    embed_model = load_embedding(vit_b_32_st)
    for rows, expected in (
        (embed_model.get_image_embedding_batch(images), model.encode(images)),
        (embed_model.get_text_embedding_batch(texts), model.encode(texts)),
    ):
        expected = expected / np.linalg.norm(expected, axis=1, keepdims=True)
        assert (np.array(rows) * expected).sum(axis=1).min() > 0.9999


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_stays_within_its_bound(vit_b_32, photos, dtype):
    exact = np.array(load_embedding(vit_b_32).get_image_embedding_batch(photos[:8]))
    half = np.array(load_embedding(vit_b_32, dtype=dtype).get_image_embedding_batch(photos[:8]))
    assert (exact * half).sum(axis=1).min() > 0.999
