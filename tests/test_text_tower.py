import logging
import pickle

import checkpoints
import numpy as np
import pytest
import torch
from llama_index.core.storage.kvstore import SimpleKVStore
from transformers import AutoModel, AutoTokenizer

from llama_index_clip_ext import (
    CLIPEmbedding,
    DimensionMismatchError,
    ModelLoadError,
    ZeroShotTagger,
    create_retriever,
    create_vector_store,
    ingest_images,
    load_embedding,
)

TEXTS = ["a red thing", "ein rotes Ding", "红色的东西", ""]


@pytest.fixture(scope="module")
def tower_dir(tmp_path_factory):
    return checkpoints.make_text_tower(tmp_path_factory.mktemp("tower"))


@pytest.fixture(scope="module")
def paired(clip_dir, tower_dir):
    return CLIPEmbedding(clip_dir, text_model_name=tower_dir)


def test_texts_are_the_mean_over_tokens_through_the_dense_layer(paired, tower_dir):
    model, tokenizer = (
        AutoModel.from_pretrained(tower_dir),
        AutoTokenizer.from_pretrained(tower_dir),
    )
    dense = torch.load(tower_dir / "2_Dense" / "pytorch_model.bin", weights_only=True)
    for text, row in zip(TEXTS, paired.get_text_embedding_batch(TEXTS), strict=True):
        with torch.inference_mode():
            hidden = model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0]
            expected = (dense["linear.weight"] @ hidden.mean(0)).numpy()
        np.testing.assert_allclose(row, expected / np.linalg.norm(expected), atol=1e-5)


def test_images_and_the_collection_stay_the_models_own(clip, paired, pictures, tmp_path):
    red = pictures / "red.png"
    np.testing.assert_allclose(
        paired.get_image_embedding(red), clip.get_image_embedding(red), atol=1e-6
    )
    assert paired.space == clip.space
    with create_vector_store(clip, uri=tmp_path / "own.db") as store:
        ingest_images(pictures, embed_model=clip, vector_store=store)
    with create_vector_store(paired, uri=tmp_path / "own.db") as store:
        hits = create_retriever(paired, store).retrieve("红色的东西")
    query = np.array(paired.get_text_embedding("红色的东西"))
    best = max(pictures.iterdir(), key=lambda path: query @ clip.get_image_embedding(path))
    assert hits[0].node.metadata["file_name"] == best.name


def test_it_travels(paired):
    expected = paired.get_text_embedding("soup")
    for twin in (
        CLIPEmbedding.from_dict(paired.to_dict()),
        pickle.loads(pickle.dumps(paired)),
        paired.model_copy(),
    ):
        np.testing.assert_allclose(twin.get_text_embedding("soup"), expected, atol=1e-6)
    plain = paired.model_copy(update={"text_model_name": None})
    assert not np.allclose(plain.get_text_embedding("soup"), expected, atol=1e-2)


def test_its_texts_share_no_cache_with_the_models_own(clip_dir, tower_dir):
    cache = SimpleKVStore()
    plain = CLIPEmbedding(clip_dir, embeddings_cache=cache)
    paired = CLIPEmbedding(clip_dir, text_model_name=tower_dir, embeddings_cache=cache)
    assert not np.allclose(plain.get_text_embedding("soup"), paired.get_text_embedding("soup"))
    assert paired.get_text_embedding("soup") == paired.get_text_embedding("soup")


def test_long_texts_are_cut_to_its_own_context(paired, caplog):
    words = " ".join(["soup"] * 200)
    with caplog.at_level(logging.WARNING):
        row = paired.get_text_embedding(words)
    assert "cut to the 128" in caplog.text
    tokens = paired.encoder._text_tokenizer.tokenize([words])[0]
    assert len(tokens) > 128
    np.testing.assert_allclose(row, paired.get_text_embedding(" ".join(["soup"] * 126)), atol=1e-5)


def test_chinese_is_no_surprise_to_it(paired, caplog):
    with caplog.at_level(logging.WARNING):
        paired.get_text_embedding("红色的东西")
    assert caplog.messages == []


def test_tags_take_the_images_logit_scale(clip, paired):
    assert paired.encoder.logit_scale == pytest.approx(clip.encoder.logit_scale)
    assert set(ZeroShotTagger(paired, ["红色", "蓝色"]).labels) == {"红色", "蓝色"}


def test_what_does_not_belong_together_is_refused(clip_dir, chinese_clip_dir, tower_dir, tmp_path):
    with pytest.raises(ModelLoadError, match="embeds texts only; pair it with the images"):
        load_embedding(tower_dir)
    with pytest.raises(ModelLoadError, match="embeds texts only; pair it with the images"):
        CLIPEmbedding("clip-ViT-B-32-multilingual-v1")
    with pytest.raises(ModelLoadError, match="a whole clip model; expected a text tower"):
        CLIPEmbedding("clip-ViT-B-32", text_model_name="clip-ViT-B-16")
    with pytest.raises(DimensionMismatchError, match="makes 512 components, the images of"):
        CLIPEmbedding("clip-ViT-L-14", text_model_name="clip-ViT-B-32-multilingual-v1")
    with pytest.raises(ModelLoadError, match="trained for the images of 'clip-ViT-B-32'"):
        CLIPEmbedding("clip-ViT-B-16", text_model_name="clip-ViT-B-32-multilingual-v1")
    with pytest.raises(ModelLoadError, match="is no text tower"):
        CLIPEmbedding(clip_dir, text_model_name=chinese_clip_dir).get_text_embedding("soup")
    wide = checkpoints.make_text_tower(tmp_path, dim=24)
    with pytest.raises(DimensionMismatchError, match="makes 24 components, the images of"):
        CLIPEmbedding(clip_dir, text_model_name=wide).get_text_embedding("soup")
