import asyncio
from pathlib import Path

import numpy as np
import pytest
from llama_index.core import VectorStoreIndex
from llama_index.core.llms import MockLLM
from llama_index.core.retrievers import QueryFusionRetriever
from llama_index.core.schema import ImageNode, NodeWithScore, QueryBundle, TextNode
from llama_index.core.vector_stores import MetadataFilter, MetadataFilters
from PIL import Image

from llama_index_clip_ext import (
    EmbeddingError,
    create_retriever,
    create_vector_store,
    ingest_images,
)
from llama_index_clip_ext.queries import asked_by, rocchio


@pytest.fixture
def retriever(clip, store, pictures):
    ingest_images(pictures, embed_model=clip, vector_store=store)
    return create_retriever(clip, store, similarity_top_k=3)


def names(hits):
    return [hit.node.metadata.get("file_name", hit.node.node_id) for hit in hits]


def unit(vector):
    return np.array(vector) / np.linalg.norm(vector)


def test_a_composed_embedding_is_the_weighted_sum_by_hand(clip, pictures):
    red, blue = pictures / "red.png", pictures / "blue.png"
    bundle = clip.compose_query(
        text=["a ring", "gold"],
        image=[red, blue],
        weights=[1, 2, 3, 0.5],
        minus=["silver", red],
        minus_weight=0.25,
    )
    texts = [np.array(clip.get_text_embedding(text)) for text in ("a ring", "gold", "silver")]
    images = [np.array(clip.get_image_embedding(path)) for path in (red, blue)]
    by_hand = texts[0] + 2 * texts[1] + 3 * images[0] + 0.5 * images[1]
    by_hand -= 0.25 * (texts[2] + images[0])
    np.testing.assert_allclose(bundle.embedding, unit(by_hand), atol=1e-6)
    assert bundle.query_str == "a ring, gold"
    assert bundle.image_path == str(red)


def test_weight_one_and_zero_is_the_text_alone(clip, pictures, retriever):
    red = pictures / "red.png"
    for weights, alone in (
        ((1, 0), clip.get_text_embedding("soup")),
        ((0, 1), clip.get_image_embedding(red)),
    ):
        bundle = clip.compose_query(text="soup", image=red, weights=weights)
        np.testing.assert_allclose(bundle.embedding, alone, atol=1e-6)
    only_text = clip.compose_query(text="soup", image=red, weights=(1, 0))
    assert names(retriever.retrieve(only_text)) == names(retriever.retrieve("soup"))


def test_what_counts_nothing_is_no_part_of_the_query(clip, store, pictures, tmp_path):
    red = pictures / "red.png"
    for weights, asked in (((1, 0), "text"), ((0, 1), "image"), ((1, 0.1), "composed")):
        assert asked_by(clip.compose_query(text="soup", image=red, weights=weights)) == asked
    several = clip.compose_query(text=["soup", "salt"], image=[red, red], weights=(0, 1, 0, 2))
    assert several.query_str == "salt"
    (pictures / "blue.txt").write_text("a picture of soup")
    with create_vector_store(clip, uri=tmp_path / "w.db", full_text="english") as words:
        ingest_images(pictures, embed_model=clip, vector_store=words)
        hybrid = create_retriever(clip, words, vector_store_query_mode="hybrid")
        # Words of no weight are not searched for either.
        alone = clip.compose_query(text="soup", image=red, weights=(0, 1))
        assert names(hybrid.retrieve(alone)) == names(hybrid.retrieve_image(red))


def test_a_composed_query_is_asked_whole_by_every_method(clip, retriever, pictures):
    composed = clip.compose_query(image=pictures / "red.png", minus=["soup"], text="salt")
    expected = names(retriever.retrieve(composed))
    assert names(retriever.text_to_image_retrieve(composed)) == expected
    assert names(retriever.image_to_image_retrieve(composed)) == expected
    by_bytes = clip.compose_query(image=(pictures / "red.png").read_bytes(), minus=["soup"])
    assert len(retriever.image_to_image_retrieve(by_bytes)) == 3
    retriever.vector_store.add(clip([TextNode(text=one, id_=one) for one in ("soup", "salt")]))
    texts = create_retriever(clip, retriever.vector_store, modality="text")
    for bundle in (composed, QueryBundle("", image_path=str(pictures / "red.png"))):
        scores = [(hit.node_id, pytest.approx(hit.score)) for hit in texts.retrieve(bundle)]
        for hits in (
            retriever.text_retrieve(bundle),
            asyncio.run(retriever.atext_retrieve(bundle)),
        ):
            assert [(hit.node_id, hit.score) for hit in hits] == scores


def test_words_alone_take_no_picture_and_no_example(clip, pictures, tmp_path):
    (pictures / "red.txt").write_text("a bowl of soup")
    with create_vector_store(clip, uri=tmp_path / "w.db", full_text="english") as words:
        ingest_images(pictures, embed_model=clip, vector_store=words)
        retriever = create_retriever(clip, words, vector_store_query_mode="text_search")
        for ask in (
            lambda: retriever.retrieve(QueryBundle("a", image_path=str(pictures / "red.png"))),
            lambda: retriever.retrieve_image(pictures / "red.png"),
        ):
            with pytest.raises(ValueError, match="'text_search' asks for words alone"):
                ask()
        with pytest.raises(ValueError, match="retrieve_like goes by vectors"):
            retriever.retrieve_like([pictures / "red.png"], query="soup")
        # LlamaIndex's retriever leaves its embedding in the bundle that both are asked with.
        bundle = QueryBundle("soup")
        VectorStoreIndex.from_vector_store(words, embed_model=clip).as_retriever().retrieve(bundle)
        assert bundle.embedding is not None
        assert names(retriever.retrieve(bundle)) == ["red.png"]


def test_a_blank_text_beside_a_picture_is_none(retriever, pictures):
    bundle = QueryBundle(" ", image_path=str(pictures / "red.png"))
    assert names(retriever.retrieve(bundle)) == names(retriever.retrieve_image(bundle.image_path))
    assert names(asyncio.run(retriever.aretrieve(bundle))) == names(retriever.retrieve(bundle))
    assert asked_by(bundle) == "image"
    with pytest.raises(ValueError, match="the query is empty"):
        retriever.retrieve("  ")


def test_texts_that_several_questions_find_are_fused_by_llama_index(clip, store):
    store.add(clip([TextNode(text=f"soup {number}", id_=str(number)) for number in range(6)]))
    texts = create_retriever(clip, store, modality="text", similarity_top_k=4)
    fused = QueryFusionRetriever(
        [texts, texts],
        llm=MockLLM(),
        mode="reciprocal_rerank",
        num_queries=1,
        similarity_top_k=4,
        use_async=False,
    ).retrieve("soup 1")
    assert names(fused) == names(texts.retrieve("soup 1"))
    assert fused[0].score > 1.5 / 60  # Twice the first, not once each.


def test_the_async_twin_composes_the_same(clip, pictures):
    ask = {"text": "soup", "image": pictures / "red.png", "minus": ["salt"]}
    composed = asyncio.run(clip.acompose_query(**ask))
    np.testing.assert_allclose(composed.embedding, clip.compose_query(**ask).embedding, atol=1e-6)


def test_a_text_and_an_image_in_one_bundle_count_alike(clip, pictures, retriever):
    bundle = QueryBundle("soup", image_path=str(pictures / "red.png"))
    expected = retriever.retrieve(clip.compose_query(text="soup", image=pictures / "red.png"))
    assert names(retriever.retrieve(bundle)) == names(expected)
    assert [hit.score for hit in asyncio.run(retriever.aretrieve(bundle))] == pytest.approx(
        [hit.score for hit in expected], abs=1e-6
    )


def test_llama_indexs_own_retriever_takes_a_composed_query(clip, pictures, retriever):
    bundle = clip.compose_query(text="soup", image=pictures / "red.png")
    index = VectorStoreIndex.from_vector_store(retriever.vector_store, embed_model=clip)
    own = index.as_retriever(similarity_top_k=3).retrieve(bundle)
    assert names(own) == names(retriever.retrieve(bundle))


def test_a_string_in_minus_never_opens_a_file(clip, pictures):
    path = str(pictures / "red.png")
    by_text = clip.compose_query(text="soup", minus=[path]).embedding
    by_image = clip.compose_query(text="soup", minus=[Path(path)]).embedding
    expected = np.array(clip.get_text_embedding("soup")) - clip.get_text_embedding(path)
    np.testing.assert_allclose(by_text, unit(expected), atol=1e-6)
    assert not np.allclose(by_text, by_image, atol=1e-3)


@pytest.mark.parametrize(
    ("ask", "error", "message"),
    [
        ({}, ValueError, "the query is empty"),
        ({"minus": ["soup"]}, ValueError, "the query is empty"),
        ({"text": "soup", "weights": [1, 2]}, ValueError, "2 weights for 1 texts and 0 images"),
        ({"text": "soup", "weights": [-1]}, ValueError, "what to avoid goes into minus"),
        ({"text": "soup", "weights": [float("nan")]}, ValueError, "expected numbers from 0 up"),
        ({"text": "soup", "weights": [0]}, ValueError, "all weights are 0"),
        ({"text": " "}, ValueError, "a text of the query is blank"),
        ({"text": "soup", "minus": "salt"}, TypeError, "minus is one str"),
        ({"text": "soup", "minus_weight": -1}, ValueError, "minus_weight is -1"),
        ({"text": "soup", "minus": ["soup"]}, EmbeddingError, "cancel each other out"),
        ({"image": "gone.png"}, FileNotFoundError, "gone.png"),
    ],
)
def test_impossible_compositions_say_so(clip, ask, error, message):
    with pytest.raises(error, match=message):
        clip.compose_query(**ask)


def test_rocchio_by_hand():
    query, more, less = [1.0, 0.0, 0.0], [[0.0, 1.0, 0.0], [1.0, 0.0, 0.0]], [[0.0, 0.0, 1.0]]
    row = rocchio(query, more, less, (1.0, 0.75, 0.15))
    np.testing.assert_allclose(row, unit([1 + 0.375, 0.375, -0.15]), atol=1e-6)
    np.testing.assert_allclose(rocchio(None, more, [], (1, 1, 1)), unit([1, 1, 0]), atol=1e-6)
    np.testing.assert_allclose(rocchio(query, [], less, (1, 1, 1)), unit([1, 0, -1]), atol=1e-6)


def test_more_and_less_like_this(clip, pictures, retriever):
    everything = {hit.node.metadata["file_name"]: hit for hit in _all(clip, retriever)}
    red, green = everything["red.png"], everything["green.png"]
    by_id = retriever.retrieve_like([red.node.node_id], [green.node.node_id])
    by_hit = retriever.retrieve_like([red], [green])
    by_image = retriever.retrieve_like([pictures / "red.png"], [Image.open(pictures / "green.png")])
    by_async = asyncio.run(retriever.aretrieve_like([red], [green]))
    rows = {name: np.array(clip.get_image_embedding(pictures / name)) for name in everything}
    query = unit(0.75 * rows["red.png"] - 0.15 * rows["green.png"])
    rest = sorted(set(rows) - {"red.png", "green.png"}, key=lambda name: -query @ rows[name])
    assert names(by_id) == names(by_hit) == names(by_async) == rest
    assert [hit.score for hit in by_id] == pytest.approx([query @ rows[n] for n in rest], abs=1e-5)
    # A decoded picture has no file to tell it by, so that the stored one stays among the hits.
    assert "red.png" not in names(by_image)
    text = TextNode(text="soup", id_="text")
    retriever.vector_store.add(clip([text]))
    assert names(retriever.retrieve_like([text])) == names(retriever.retrieve_like(["text"]))
    with_text = retriever.retrieve_like([red], query="soup")
    expected = rocchio(clip.get_text_embedding("soup"), [rows["red.png"]], [], (1, 0.75, 0.15))
    assert with_text[0].score == pytest.approx(
        max(expected @ rows[name] for name in rows if name != "red.png"), abs=1e-5
    )


def test_examples_that_are_none_say_so(retriever):
    with pytest.raises(ValueError, match="needs examples"):
        retriever.retrieve_like()
    with pytest.raises(ValueError, match=r"no node 'red\.png' in collection 'clip_ext'"):
        retriever.retrieve_like(["red.png"])
    with pytest.raises(TypeError, match="expected a list of ids and images, got one str"):
        retriever.retrieve_like("red.png")
    with pytest.raises(TypeError, match="expected a list of ids and images, got one NodeWithScore"):
        retriever.retrieve_like(retriever.retrieve("soup")[0])
    one = [retriever.retrieve("soup")[0]]
    for weights in ((1, 1), (1, -1, 0), (1, float("nan"), 0)):
        with pytest.raises(ValueError, match="expected three numbers from 0 up"):
            retriever.retrieve_like(one, weights=weights)


def test_a_cutoff_by_the_best_does_not_count_the_examples(clip, store):
    store.add(clip([TextNode(text=one, id_=one) for one in ("soup", "a soup", "salt")]))
    texts = create_retriever(clip, store, modality="text")
    best = texts.retrieve_like(["soup"])[0].score
    strict = create_retriever(clip, store, modality="text", relative_cutoff=1)
    assert [hit.score for hit in strict.retrieve_like(["soup"])] == [pytest.approx(best)]


def test_an_image_and_its_copies_are_left_out_by_content(clip, store, pictures):
    (pictures / "copy.png").write_bytes((pictures / "red.png").read_bytes())
    ingest_images(pictures, embed_model=clip, vector_store=store)
    store.add(clip([TextNode(text="a red thing", id_="t1")]))
    retriever = create_retriever(clip, store, similarity_top_k=3)
    red = pictures / "red.png"
    assert set(names(retriever.retrieve_image(red))[:2]) == {"red.png", "copy.png"}
    for source in (red, str(red), red.read_bytes()):
        for hits in (
            retriever.retrieve_image(source, exclude_self=True),
            asyncio.run(retriever.aretrieve_image(source, exclude_self=True)),
        ):
            assert len(hits) == 3
            assert not {"red.png", "copy.png"} & set(names(hits))
    assert names(retriever.retrieve_image(red))[0] in ("red.png", "copy.png")  # As it was.
    with Image.open(red) as picture, pytest.raises(ValueError, match="pass a path or bytes"):
        retriever.retrieve_image(picture, exclude_self=True)
    # What came by one of LlamaIndex's roads is known by its file, too.
    store.add(clip([ImageNode(image_path=str(red), id_="by path")]))
    assert "by path" not in names(retriever.retrieve_image(red, exclude_self=True))
    # A text has no content hash, and stays.
    both = create_retriever(clip, store, similarity_top_k=9, modality="both")
    assert "t1" in names(both.retrieve_image(red, exclude_self=True))


def test_exclusion_keeps_the_retrievers_own_filters(clip, store, pictures):
    ingest_images(pictures, embed_model=clip, vector_store=store)
    some = MetadataFilters(
        filters=[MetadataFilter(key="file_name", value=["red.png", "blue.png"], operator="in")]
    )
    retriever = create_retriever(clip, store, filters=some)
    hits = retriever.retrieve_image(pictures / "red.png", exclude_self=True)
    assert names(hits) == ["blue.png"]


def test_what_a_query_is_made_of():
    assert asked_by(QueryBundle("soup")) == "text"
    assert asked_by(QueryBundle("", image_path="red.png")) == "image"
    assert asked_by(QueryBundle("soup", image_path="red.png")) == "composed"


def _all(clip, retriever) -> list[NodeWithScore]:
    return create_retriever(clip, retriever.vector_store, similarity_top_k=50).retrieve("soup")
