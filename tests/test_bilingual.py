import asyncio

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
