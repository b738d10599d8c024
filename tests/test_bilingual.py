import asyncio
import io

import pytest
from llama_index.core.schema import QueryBundle

from llama_index_clip_ext import (
    BilingualRetriever,
    ChineseCLIPEmbedding,
    CLIPEmbedding,
    EmbeddingSpaceMismatchError,
    create_bilingual_retriever,
    create_retriever,
    create_vector_store,
    ingest_images,
)
from llama_index_clip_ext import lite as lite_files
from llama_index_clip_ext.demo.captions import COLOURS, SHAPES, Scene, class_caption
from llama_index_clip_ext.demo.run import draw_pictures


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bilingual")
    draw_pictures(folder / "pictures")
    return folder


@pytest.fixture(scope="module")
def models():
    return CLIPEmbedding("demo-clip"), ChineseCLIPEmbedding("demo-chinese-clip")


@pytest.fixture(scope="module")
def bilingual(folder, models):
    """Both collections of the demo's pictures, in one file."""
    with create_bilingual_retriever(*models, uri=folder / "both.db") as retriever:
        for one in (retriever.english, retriever.chinese):
            report = ingest_images(
                folder / "pictures", embed_model=one.embed_model, vector_store=one.vector_store
            )
            assert report.added == 168
        yield retriever


def names(hits):
    return [hit.node.metadata["file_name"] for hit in hits]


@pytest.mark.parametrize(
    ("text", "language"),
    [
        ("a red circle", "english"),
        ("红色圆形", "chinese"),
        ("红色 circle", "chinese"),
        ("50 % & !", "english"),
    ],
)
def test_a_text_goes_to_the_model_that_reads_its_script(bilingual, text, language):
    expected = getattr(bilingual, language).retrieve(text)
    assert names(bilingual.retrieve(text)) == names(expected)
    assert names(asyncio.run(bilingual.aretrieve(text))) == names(expected)
    if text != "50 % & !":
        assert "red-circle" in names(expected)[0]


def test_both_are_asked_and_fused_by_rank(bilingual):
    both = BilingualRetriever(bilingual.english, bilingual.chinese, routing="both")
    rankings = [one.retrieve("a red circle") for one in (bilingual.english, bilingual.chinese)]
    scores = {}
    for ranking in rankings:
        for rank, hit in enumerate(ranking, 1):
            scores[hit.node.node_id] = scores.get(hit.node.node_id, 0) + 1 / (60 + rank)
    for hits in (both.retrieve("a red circle"), asyncio.run(both.aretrieve("a red circle"))):
        assert len(hits) == 5
        assert [hit.score for hit in hits] == pytest.approx(
            sorted(scores.values(), reverse=True)[:5]
        )
        assert all(hit.score == pytest.approx(scores[hit.node.node_id]) for hit in hits)


@pytest.mark.parametrize("language", ["en", "zh"])
@pytest.mark.parametrize("routing", ["script", "both"])
def test_whatever_the_routing_what_is_asked_for_comes_first(bilingual, language, routing):
    retriever = BilingualRetriever(bilingual.english, bilingual.chinese, routing=routing)
    shown = {(file.split("-", 1)[1]) for file in names(_everything(bilingual))}
    scenes = [Scene(colour, shape) for colour in COLOURS for shape in SHAPES]
    scenes = [one for one in scenes if f"{one.colour}-{one.shape}.png" in shown]
    assert len(scenes) > 50
    right = [
        names(retriever.retrieve(class_caption(one, language)))[0].endswith(
            f"{one.colour}-{one.shape}.png"
        )
        for one in scenes
    ]
    assert sum(right) / len(right) >= 0.95


def _everything(bilingual):
    one = bilingual.english
    return create_retriever(one.embed_model, one.vector_store, similarity_top_k=200).retrieve("x")


def test_an_english_model_that_reads_chinese_is_asked_too(bilingual, monkeypatch):
    both = BilingualRetriever(bilingual.english, bilingual.chinese, routing="both")
    assert [one.score for one in both.retrieve("红色圆形")] == [
        one.score for one in bilingual.chinese.retrieve("红色圆形")
    ]
    monkeypatch.setattr(type(bilingual.english.embed_model.encoder), "reads", lambda *_: True)
    hits = both.retrieve("红色圆形")
    assert hits[0].score <= 2 / 61
    # The cosine is that of the model that reads the script, whose answer comes first.
    best = bilingual.chinese.retrieve("红色圆形")[0]
    (same,) = (hit for hit in hits if hit.node_id == best.node_id)
    assert same.node.metadata["retrieval_similarity"] == pytest.approx(best.score)
    assert same.node.metadata["retrieval_modality"] == "image"


def test_a_collection_that_was_not_filled_is_named(models, folder, tmp_path, caplog):
    with create_bilingual_retriever(*models, uri=tmp_path / "half.db") as retriever:
        picture = sorted((folder / "pictures").glob("*.png"))[0]
        ingest_images([picture], embed_model=models[0], vector_store=retriever.english.vector_store)
        assert len(retriever.retrieve("a red circle")) == 1
        assert "is empty" not in caplog.text
        assert retriever.retrieve("红色圆形") == asyncio.run(retriever.aretrieve("红色圆形")) == []
        assert "collection 'clip_ext_zh' is empty: ingest the pictures" in caplog.text


@pytest.mark.parametrize("routing", ["script", "both"])
def test_an_image_finds_itself(bilingual, folder, routing):
    retriever = BilingualRetriever(bilingual.english, bilingual.chinese, routing=routing)
    file = sorted((folder / "pictures").glob("*.png"))[7]
    for hits in (
        retriever.retrieve_image(file),
        asyncio.run(retriever.aretrieve_image(file)),
        retriever.retrieve(QueryBundle("", image_path=str(file))),
    ):
        assert names(hits)[0] == file.name
    assert file.name not in names(retriever.retrieve_image(file, exclude_self=True))


class Once(io.BytesIO):
    """A stream that can be read once only, such as a socket's."""

    def seekable(self):
        return False


def test_what_can_be_read_once_is_read_for_both_models(bilingual, folder):
    retriever = BilingualRetriever(bilingual.english, bilingual.chinese, routing="both")
    content = sorted((folder / "pictures").glob("*.png"))[7].read_bytes()
    expected = names(retriever.retrieve_image(content))
    assert names(retriever.retrieve_image(Once(content))) == expected
    assert names(asyncio.run(retriever.aretrieve_image(Once(content)))) == expected


def test_what_cannot_be_asked_says_so(bilingual, models, folder):
    with pytest.raises(ValueError, match="one model's: ask .english or .chinese"):
        bilingual.retrieve(models[0].compose_query(text="red"))
    with pytest.raises(ValueError, match="routing is 'guess'"):
        BilingualRetriever(bilingual.english, bilingual.chinese, routing="guess")
    with pytest.raises(ValueError, match="expected two different names"):
        create_bilingual_retriever(*models, collection_names=("one", "one"))


def test_what_was_opened_is_closed_when_the_other_fails(models, tmp_path):
    with create_vector_store(models[0], uri=tmp_path / "x.db", collection_name="zh"):
        pass
    with pytest.raises(EmbeddingSpaceMismatchError):
        create_bilingual_retriever(*models, uri=tmp_path / "x.db", collection_names=("en", "zh"))
    assert lite_files._USERS[str(tmp_path / "x.db")] == 0
    with create_vector_store(models[0], uri=tmp_path / "x.db", collection_name="en") as store:
        assert create_retriever(models[0], store).retrieve("soup") == []
