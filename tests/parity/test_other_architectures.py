"""Every other architecture gives what a plain loop over transformers' own classes gives."""

from __future__ import annotations

import gc

import checkpoints
import numpy as np
import pytest
import torch
import transformers
from PIL import Image

from llama_index_clip_ext import DualEncoderEmbedding, load_embedding

TEXTS = [
    "a photo of a cat",
    "Two ASTRONAUTS in front of the space shuttle, 1999",
    "一张猫的照片",
    "",
    "a red circle on a white background and " * 40,
]

# model, image processor, tokens that the text tower was trained on, padded to them or not, and
# components of an embedding.
CASES = {
    "siglip": ("SiglipModel", "SiglipImageProcessor", 64, True, 768),
    "siglip-tiny": ("SiglipModel", "SiglipImageProcessor", 64, True, 32),
    "siglip-16-tokens": ("SiglipModel", "SiglipImageProcessor", 16, True, 32),
    "siglip-sentencepiece": ("SiglipModel", "SiglipImageProcessor", 64, True, 32),
    "siglip2": ("Siglip2Model", "Siglip2ImageProcessor", 64, True, 768),
    "altclip": ("AltCLIPModel", "CLIPImageProcessor", 77, False, 16),
    "metaclip-2": ("MetaClip2Model", "CLIPImageProcessor", 77, False, 16),
    "open-clip": ("CLIPModel", "CLIPImageProcessor", 77, False, 24),
}


def make(name, directory):
    if name == "siglip":
        return checkpoints.make_siglip(directory)
    if name == "siglip-tiny":
        return checkpoints.make_siglip(directory, tiny=True)
    if name == "siglip-16-tokens":
        # As google/siglip-so400m-patch14-224.
        return checkpoints.make_siglip(directory, tiny=True, max_position_embeddings=16)
    if name == "siglip-sentencepiece":
        pytest.importorskip("sentencepiece", reason="SigLIP's own tokenizer needs sentencepiece")
        return checkpoints.make_siglip(directory, tiny=True, sentencepiece=True)
    if name == "siglip2":
        return checkpoints.make_siglip2(directory)
    if name == "altclip":
        return checkpoints.make_altclip(directory)
    if name == "metaclip-2":
        return checkpoints.make_metaclip_2(directory)
    return checkpoints.make_open_clip(directory)


def reference(directory, images, texts, model_name, processor_name, context, padded):
    """The forward pass as transformers' documentation of each model has it, one at a time."""
    model = getattr(transformers, model_name).from_pretrained(directory, dtype=torch.float32).eval()
    pillow = getattr(transformers, f"{processor_name}Pil", getattr(transformers, processor_name))
    processor = pillow.from_pretrained(directory)
    tokenizer = transformers.AutoTokenizer.from_pretrained(directory)
    if padded:  # SigLIP's convention; it was trained on lower-cased texts.
        texts = [text.lower() for text in texts]
    rows = [[], []]
    with torch.inference_mode():
        for image in images:
            pixels = processor(images=[image], return_tensors="pt")
            rows[0].append(model.get_image_features(**pixels))
        for text in texts:
            tokens = tokenizer(
                [text],
                padding="max_length" if padded else True,
                truncation=True,
                max_length=context,
                return_tensors="pt",
            )
            rows[1].append(model.get_text_features(**tokens))
    features = [[getattr(item, "pooler_output", item) for item in part] for part in rows]
    return [torch.nn.functional.normalize(torch.cat(part).float()).numpy() for part in features]


@pytest.mark.parametrize("name", CASES)
def test_every_row_is_the_references(name, photos, tmp_path):
    model_name, processor_name, context, padded, dim = CASES[name]
    directory = make(name, tmp_path)
    images = [Image.open(path).convert("RGB") for path in photos[:4] + photos[-2:]]
    expected = reference(directory, images, TEXTS, model_name, processor_name, context, padded)
    embed_model = load_embedding(directory, embed_batch_size=4)
    assert isinstance(embed_model, DualEncoderEmbedding)
    assert (embed_model.dim, embed_model.encoder.checkpoint.context_length) == (dim, context)
    actual = (
        embed_model.get_image_embedding_batch(images),
        embed_model.get_text_embedding_batch(TEXTS),
    )
    for rows, wanted in zip(actual, expected, strict=True):
        rows = np.array(rows)
        assert rows.shape == (len(wanted), dim)
        assert (rows * wanted).sum(axis=1).min() > 0.9999
        assert np.abs(np.linalg.norm(rows, axis=1) - 1).max() < 1e-5
    # With random weights many vectors are nearly alike: they must be nearest to their own.
    images_alike = np.array(actual[0]) @ expected[0].T
    assert images_alike.argmax(axis=1).tolist() == list(range(len(images)))
    del embed_model
    gc.collect()


def test_multilingual_text_tower_is_sentence_transformers(vit_b_32, photos, tmp_path):
    """The layout of clip-ViT-B-32-multilingual-v1 at its own size, DistilBERT of six layers."""
    sentence_transformers = pytest.importorskip("sentence_transformers")
    directory = checkpoints.make_text_tower(tmp_path, dim=512, tiny=False)
    texts = [*TEXTS, "ein rotes Quadrat", "很长的文字，超过一百二十八个字。" * 30]
    model = sentence_transformers.SentenceTransformer(str(directory), device="cpu")
    expected = model.encode(texts, normalize_embeddings=True, batch_size=3)
    embed_model = load_embedding(vit_b_32, text_model_name=directory)
    rows = np.array(embed_model.get_text_embedding_batch(texts))
    assert rows.shape == (len(texts), 512)
    assert (rows * expected).sum(axis=1).min() > 0.9999
    images = [Image.open(path).convert("RGB") for path in photos[:3]]
    np.testing.assert_allclose(
        embed_model.get_image_embedding_batch(images),
        load_embedding(vit_b_32).get_image_embedding_batch(images),
        atol=1e-5,
    )
