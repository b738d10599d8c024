import asyncio
from copy import deepcopy

import numpy as np
import pytest
from llama_index.core import get_response_synthesizer
from llama_index.core.base.base_retriever import BaseRetriever
from llama_index.core.callbacks import CallbackManager, CBEventType, LlamaDebugHandler
from llama_index.core.llms import MockLLM
from llama_index.core.postprocessor import SimilarityPostprocessor
from llama_index.core.query_engine import RetrieverQueryEngine
from llama_index.core.schema import ImageNode, QueryBundle, TextNode
from llama_index.core.vector_stores import MetadataFilter, MetadataFilters
from PIL import Image

from llama_index_clip_ext import (
    CLIPEmbedding,
    DimensionMismatchError,
    ImageNotFoundError,
    ScoreStatistics,
    create_retriever,
    create_vector_store,
    ingest_images,
)


@pytest.fixture
def filled(clip, store, pictures):
    """The five colours, and two texts."""
    ingest_images(pictures, embed_model=clip, vector_store=store)
    store.add(clip([TextNode(text="a red thing", id_="t1"), TextNode(text="soup", id_="t2")]))
    return store


@pytest.fixture
def retriever(clip, filled):
    return create_retriever(clip, filled, similarity_top_k=3)


def names(hits):
    return [hit.node.metadata.get("file_name", hit.node.node_id) for hit in hits]


def test_scores_are_cosines_best_first_and_hits_are_image_nodes(clip, retriever, pictures):
    hits = retriever.retrieve("a red thing")
    assert len(hits) == 3
    query = np.array(clip.get_query_embedding("a red thing"))
    for hit in hits:
        assert type(hit.node) is ImageNode
        assert hit.node.embedding is None
        image = clip.get_image_embedding(hit.node.image_path)
        assert hit.score == pytest.approx(float(query @ image), abs=1e-5)
    scores = [hit.score for hit in hits]
    assert scores == sorted(scores, reverse=True)
    expected = {
        path.name: float(query @ clip.get_image_embedding(path)) for path in pictures.iterdir()
    }
    assert names(hits) == sorted(expected, key=expected.get, reverse=True)[:3]


def test_diverse_hits_by_a_threshold(clip, filled):
    plain = names(create_retriever(clip, filled, similarity_top_k=5).retrieve("soup"))
    for threshold, alike in ((1.0, True), (0.0, False)):
        mmr = create_retriever(
            clip,
            filled,
            similarity_top_k=5,
            vector_store_query_mode="mmr",
            mmr_threshold=threshold,
        )
        assert (names(mmr.retrieve("soup")) == plain) is alike


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"alpha": 7}, "alpha is 7"),
        ({"vector_store_query_mode": "svm"}, "'svm' is not supported; use 'default'"),
        ({"similarity_top_k": 0}, "similarity_top_k is 0"),
    ],
)
def test_options_that_are_impossible_are_refused_at_once(clip, filled, options, message):
    with pytest.raises(ValueError, match=message):
        create_retriever(clip, filled, **options)


@pytest.mark.parametrize("kind", ["path", "str", "bytes", "pil", "node"])
def test_an_image_finds_itself_first(retriever, pictures, kind):
    path = pictures / "green.png"
    with Image.open(path) as image:
        source = {
            "path": path,
            "str": str(path),
            "bytes": path.read_bytes(),
            "pil": image.copy(),
            "node": ImageNode(image_path=str(path)),
        }[kind]
    for hits in (retriever.retrieve_image(source), asyncio.run(retriever.aretrieve_image(source))):
        assert names(hits)[0] == "green.png"
        assert hits[0].score == pytest.approx(1, abs=1e-3)


def test_all_the_ways_to_ask_agree(retriever, pictures):
    path = str(pictures / "blue.png")
    by_text = names(retriever.retrieve("soup"))
    by_image = names(retriever.retrieve_image(path))
    bundle = QueryBundle("", image_path=path)
    assert isinstance(retriever, BaseRetriever)
    assert names(retriever.retrieve(QueryBundle("soup"))) == by_text
    assert names(retriever.text_to_image_retrieve("soup")) == by_text
    assert names(retriever.retrieve(bundle)) == by_image
    assert names(retriever.image_to_image_retrieve(path)) == by_image
    assert names(retriever.image_to_image_retrieve(bundle)) == by_image
    assert names(retriever.text_retrieve("a red thing")) == ["t1", "t2"]

    async def ask():
        assert names(await retriever.aretrieve("soup")) == by_text
        assert names(await retriever.atext_to_image_retrieve("soup")) == by_text
        assert names(await retriever.aretrieve(bundle)) == by_image
        assert names(await retriever.aimage_to_image_retrieve(path)) == by_image
        assert names(await retriever.atext_retrieve("a red thing")) == ["t1", "t2"]

    asyncio.run(ask())
    asyncio.run(ask())


def test_an_embedding_in_the_bundle_is_what_is_searched_with(clip, retriever, pictures):
    embedding = clip.get_image_embedding(pictures / "black.png")
    hits = retriever.retrieve(QueryBundle("words that must not count", embedding=embedding))
    assert names(hits)[0] == "black.png"


def test_the_callers_bundle_is_left_alone(retriever, pictures):
    for bundle in (QueryBundle("soup"), QueryBundle("", image_path=str(pictures / "red.png"))):
        before = deepcopy(bundle)
        retriever.retrieve(bundle)
        asyncio.run(retriever.aretrieve(bundle))
        assert bundle == before


def test_fifty_concurrent_queries_get_their_own_answers(retriever, pictures):
    files = sorted(pictures.iterdir())
    queries = [
        QueryBundle("", image_path=str(files[n % 5])) if n % 2 else f"thing {n}" for n in range(50)
    ]
    expected = [names(retriever.retrieve(query)) for query in queries]

    async def ask_all():
        return await asyncio.gather(*(retriever.aretrieve(query) for query in queries))

    assert [names(hits) for hits in asyncio.run(ask_all())] == expected


def test_modality_text_and_unknown(clip, filled):
    texts = create_retriever(clip, filled, modality="text").retrieve("a red thing")
    assert names(texts) == ["t1", "t2"]
    assert texts[0].score == pytest.approx(1, abs=1e-3)
    with pytest.raises(ValueError, match="modality is 'sound', expected 'image', 'text' or 'both'"):
        create_retriever(clip, filled, modality="sound")


def test_filters_top_k_and_cutoff(clip, filled, pictures):
    only = MetadataFilters(filters=[MetadataFilter(key="file_name", value="white.png")])
    assert names(create_retriever(clip, filled, filters=only).retrieve("red")) == ["white.png"]
    assert len(create_retriever(clip, filled, similarity_top_k=1).retrieve("red")) == 1
    assert len(create_retriever(clip, filled, similarity_top_k=50).retrieve("red")) == 5
    strict = create_retriever(clip, filled, similarity_cutoff=0.9999)
    assert names(strict.retrieve_image(pictures / "red.png")) == ["red.png"]
    with pytest.raises(ValueError, match="similarity_top_k is 0"):
        create_retriever(clip, filled, similarity_top_k=0)


def test_impossible_queries_say_so(retriever):
    with pytest.raises(ValueError, match="the query is empty"):
        retriever.retrieve("")
    with pytest.raises(ImageNotFoundError, match=r"gone\.png"):
        retriever.retrieve_image("gone.png")
    with pytest.raises(ValueError, match="no image_path"):
        retriever.image_to_image_retrieve(QueryBundle("soup"))
    with pytest.raises(DimensionMismatchError):
        retriever.retrieve(QueryBundle("", embedding=[1.0, 0.0]))


def test_query_engine_and_postprocessors(clip, retriever):
    engine = RetrieverQueryEngine(
        retriever,
        get_response_synthesizer(llm=MockLLM()),
        node_postprocessors=[SimilarityPostprocessor(similarity_cutoff=-1.0)],
    )
    assert len(engine.query("a red thing").source_nodes) == 3
    assert len(asyncio.run(engine.aquery("a red thing")).source_nodes) == 3


def test_callbacks(clip_dir, pictures, tmp_path):
    debug = LlamaDebugHandler(print_trace_on_end=False)
    embed_model = CLIPEmbedding(clip_dir, callback_manager=CallbackManager([debug]))
    with create_vector_store(embed_model, uri=tmp_path / "own.db") as store:
        ingest_images(pictures, embed_model=embed_model, vector_store=store)
        create_retriever(embed_model, store).retrieve_image(pictures / "red.png")
    (pair,) = debug.get_event_pairs(CBEventType.RETRIEVE)
    assert names(pair[1].payload["nodes"])[0] == "red.png"


def test_an_existing_collection_needs_its_address_and_the_model(clip, pictures, tmp_path):
    uri = tmp_path / "deep" / "photos.db"
    with create_vector_store(clip, uri=uri) as store:
        ingest_images(pictures, embed_model=clip, vector_store=store)
    with create_vector_store(clip, uri=uri) as store:
        assert (
            names(create_retriever(clip, store).retrieve_image(pictures / "red.png"))[0]
            == "red.png"
        )


def test_vector_store_index_over_our_store(clip, filled, pictures, monkeypatch):
    """The road of LlamaIndex's own index and retriever, with no key and no Settings."""
    from llama_index.core import VectorStoreIndex

    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    index = VectorStoreIndex.from_vector_store(filled, embed_model=clip)
    hits = index.as_retriever(similarity_top_k=7).retrieve("a red thing")
    assert hits[0].node.node_id == "t1"
    assert len(hits) == 7


def test_a_local_set_up_needs_no_key_no_settings_and_one_load_of_each_tower(
    clip_dir, pictures, tmp_path, monkeypatch
):
    import llama_index.core.settings as settings_module
    from transformers import CLIPModel

    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    for name in ("_embed_model", "_llm"):
        monkeypatch.setattr(settings_module.Settings, name, None)
    loads = []
    load = CLIPModel.from_pretrained.__func__
    monkeypatch.setattr(
        CLIPModel,
        "from_pretrained",
        classmethod(lambda cls, *a, **k: loads.append(a) or load(cls, *a, **k)),
    )
    embed_model = CLIPEmbedding(clip_dir)
    for _ in range(2):  # build, then reopen
        with create_vector_store(embed_model, uri=tmp_path / "own.db") as store:
            ingest_images(pictures, embed_model=embed_model, vector_store=store)
            retriever = create_retriever(embed_model, store)
            assert len(retriever.retrieve("a red thing")) == 5
            assert names(retriever.retrieve_image(pictures / "red.png"))[0] == "red.png"
    assert len(loads) == 2  # One of each tower.
    assert settings_module.Settings._embed_model is None
    assert settings_module.Settings._llm is None


def facts(hits):
    """What of hits two answers must agree in."""
    return [
        (hit.node.node_id, pytest.approx(hit.score, abs=1e-5), sorted(hit.node.metadata))
        for hit in hits
    ]


def mixed_queries(clip, pictures):
    return [
        "soup",
        QueryBundle("", image_path=str(pictures / "blue.png")),
        QueryBundle("a red thing", image_path=str(pictures / "red.png")),
        QueryBundle("", embedding=clip.get_image_embedding(pictures / "black.png")),
        QueryBundle("green", custom_embedding_strs=["a green thing", "green"]),
        "a red thing",
    ]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"modality": "both"},
        {"modality": "text", "similarity_top_k": 1},
        {"vector_store_query_mode": "mmr", "mmr_threshold": 0.1},
        {"similarity_cutoff": 0.2},
        {"relative_cutoff": 0.9, "modality": "both"},
        {"filters": MetadataFilters(filters=[MetadataFilter(key="file_name", value="red.png")])},
        {"node_ids": []},
        {"node_ids": ["t1"], "modality": "both"},
        {"node_postprocessors": [SimilarityPostprocessor(similarity_cutoff=0.1)]},
    ],
    ids=str,
)
def test_many_are_answered_as_each(clip, filled, pictures, options):
    retriever = create_retriever(clip, filled, **options)
    queries = mixed_queries(clip, pictures)
    before = deepcopy(queries)
    each = [facts(retriever.retrieve(query)) for query in queries]

    many = retriever.retrieve_many(queries)

    assert [facts(hits) for hits in many] == each
    assert [facts(hits) for hits in asyncio.run(retriever.aretrieve_many(queries))] == each
    assert queries == before


def test_many_by_calibrated_scores(clip, filled, pictures):
    directions = ("text->image", "image->image")
    filled.save_calibration(
        {one: ScoreStatistics(0.1 * n, 0.2) for n, one in enumerate(directions)}
    )
    retriever = create_retriever(clip, filled, calibrated=True)
    queries = ["soup", QueryBundle("", image_path=str(pictures / "blue.png"))]
    each = [facts(retriever.retrieve(query)) for query in queries]
    assert [facts(hits) for hits in retriever.retrieve_many(queries)] == each


def test_many_are_few_calls(clip, filled, monkeypatch):
    calls = []
    for owner, name in ((filled.client, "search"), (clip.encoder, "encode_texts")):
        function = getattr(owner, name)

        def counted(*args, _name=name, _function=function, **kwargs):
            calls.append(_name)
            return _function(*args, **kwargs)

        monkeypatch.setattr(owner, name, counted)
    queries = [f"thing {number}" for number in range(30)]

    create_retriever(clip, filled).retrieve_many(queries)
    assert sorted(calls) == ["encode_texts", "search"]

    calls.clear()  # As many hits as one query may ask for, in one call.
    create_retriever(clip, filled, similarity_top_k=1000).retrieve_many(queries)
    assert calls.count("search") == 2


def test_of_many_none_is_lost_between_batches(clip, filled, capsys):
    retriever = create_retriever(clip, filled, similarity_top_k=1)
    rows = [filled.get_nodes([node_id])[0] for node_id in filled.get_ids(modality="image")]
    queries = [QueryBundle("", embedding=rows[n % 5].embedding) for n in range(300)]

    answers = retriever.retrieve_many(queries, show_progress=True)

    assert [hits[0].node.node_id for hits in answers] == [rows[n % 5].node_id for n in range(300)]
    assert "300/300" in capsys.readouterr().err


def test_observers_are_told_of_each_of_many(clip_dir, pictures, tmp_path):
    debug = LlamaDebugHandler(print_trace_on_end=False)
    embed_model = CLIPEmbedding(clip_dir, callback_manager=CallbackManager([debug]))
    with create_vector_store(embed_model, uri=tmp_path / "own.db") as store:
        ingest_images(pictures, embed_model=embed_model, vector_store=store)
        answers = create_retriever(embed_model, store).retrieve_many(["soup", "a red thing"])
    pairs = debug.get_event_pairs(CBEventType.RETRIEVE)
    assert [start.payload["query_str"] for start, _ in pairs] == ["soup", "a red thing"]
    assert [names(end.payload["nodes"]) for _, end in pairs] == [names(hits) for hits in answers]


def test_of_many_the_bad_one_is_named(clip, retriever, pictures):
    assert retriever.retrieve_many([]) == []
    with pytest.raises(TypeError, match="queries is one str"):
        retriever.retrieve_many("soup")
    with pytest.raises(ValueError, match="the query is empty"):
        retriever.retrieve_many(["soup", ""])
    good = QueryBundle("", image_path=str(pictures / "red.png"))
    for words in ("", "red"):
        bad = QueryBundle(words, image_path="gone.png")
        with pytest.raises(ImageNotFoundError, match=r"gone\.png") as caught:
            retriever.retrieve_many(["soup", good, bad])
        assert caught.value.index == 2
    with pytest.raises(DimensionMismatchError):
        retriever.retrieve_many(["soup", QueryBundle("", embedding=[1.0, 0.0])])
