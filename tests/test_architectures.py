import json
import pickle
import shutil

import checkpoints
import numpy as np
import pytest

from llama_index_clip_ext import (
    ChineseCLIPEmbedding,
    CLIPEmbedding,
    DualEncoderEmbedding,
    ModelLoadError,
    create_retriever,
    create_vector_store,
    ingest_images,
    load_embedding,
)
from llama_index_clip_ext.architectures import ARCHITECTURES

MAKERS = {
    "siglip": lambda folder: checkpoints.make_siglip(folder, tiny=True),
    "siglip2": lambda folder: checkpoints.make_siglip2(folder, tiny=True),
    "altclip": checkpoints.make_altclip,
    "metaclip-2": checkpoints.make_metaclip_2,
    "clip": lambda folder: checkpoints.make_clip(folder, tiny=True),
    "chinese-clip": lambda folder: checkpoints.make_chinese_clip(folder, tiny=True),
}


@pytest.fixture(scope="module", params=MAKERS)
def made(request, tmp_path_factory):
    return request.param, MAKERS[request.param](tmp_path_factory.mktemp(request.param))


def test_there_is_a_test_of_each():
    assert {one.family for one in ARCHITECTURES.values()} == set(MAKERS)


def test_load_embedding_makes_the_class_that_fits(made):
    family, directory = made
    expected = {"clip": CLIPEmbedding, "chinese-clip": ChineseCLIPEmbedding}
    embed_model = load_embedding(directory)
    assert type(embed_model) is expected.get(family, DualEncoderEmbedding)
    assert embed_model.encoder.checkpoint.family == family
    # The general class takes any, the others their own only.
    general = DualEncoderEmbedding(directory)
    np.testing.assert_allclose(
        general.get_text_embedding("a red circle"), embed_model.get_text_embedding("a red circle")
    )
    for strict in (CLIPEmbedding, ChineseCLIPEmbedding):
        if strict is not type(embed_model):
            with pytest.raises(ModelLoadError, match=family):
                strict(directory).get_text_embedding("soup")


def test_it_travels(made):
    embed_model = load_embedding(made[1], dtype="float32")
    expected = embed_model.get_text_embedding("a red circle")
    for twin in (
        type(embed_model).from_dict(embed_model.to_dict()),
        pickle.loads(pickle.dumps(embed_model)),
    ):
        assert type(twin) is type(embed_model)
        np.testing.assert_allclose(twin.get_text_embedding("a red circle"), expected, atol=1e-6)


def test_from_pictures_to_hits(made, pictures, tmp_path):
    embed_model = load_embedding(made[1])
    with create_vector_store(embed_model, uri=tmp_path / "own.db") as store:
        assert ingest_images(pictures, embed_model=embed_model, vector_store=store).added == 5
        hits = create_retriever(embed_model, store).retrieve_image(pictures / "green.png")
        assert hits[0].node.metadata["file_name"] == "green.png"
        assert hits[0].score == pytest.approx(1, abs=1e-3)
        assert len(create_retriever(embed_model, store).retrieve("a red circle")) == 5


def test_other_preprocessing_is_another_space(made, tmp_path):
    before = load_embedding(made[1]).space
    copy = shutil.copytree(made[1], tmp_path / "copy")
    assert load_embedding(copy).space.preprocessing == before.preprocessing
    file = copy / "preprocessor_config.json"
    settings = json.loads(file.read_text())
    file.write_text(json.dumps({**settings, "image_mean": [0.1, 0.2, 0.3]}))
    assert load_embedding(copy).space.preprocessing != before.preprocessing


@pytest.mark.parametrize("family", ["siglip", "altclip"])
def test_a_checkpoint_without_its_tokenizer_is_refused(family, tmp_path):
    directory = MAKERS[family](tmp_path)
    for file in directory.glob("*"):
        if file.name == "tokenizer.json" or file.suffix == ".model":
            file.unlink()
    with pytest.raises(ModelLoadError, match="the tokenizer's"):
        load_embedding(directory)


def test_other_architectures_are_refused_with_those_that_are_not(clip_dir, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "blip"}))
    with pytest.raises(ModelLoadError, match=r"'blip' model; supported are: clip, chinese"):
        load_embedding(tmp_path)


def test_texts_are_lower_cased_where_they_were_in_training(tmp_path):
    siglip = load_embedding(MAKERS["siglip"](tmp_path))
    np.testing.assert_allclose(
        siglip.get_text_embedding("A RED Circle"), siglip.get_text_embedding("a red circle")
    )
