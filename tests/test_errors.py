"""What Milvus refuses comes as one of the package's errors, whichever method is called."""

import asyncio
import inspect

import pytest
from by_hand import MODEL, X, ask, image, text
from llama_index.core.vector_stores import MetadataFilter, MetadataFilters
from pymilvus.exceptions import MilvusException

from llama_index_clip_ext import (
    CLIPMilvusVectorStore,
    CollectionNotFoundError,
    FilterError,
    StoreError,
    create_retriever,
    create_vector_store,
    ingest_images,
    sync_images,
)
from llama_index_clip_ext.collection import read_passport
from llama_index_clip_ext.rows import node_to_row

RED = MetadataFilters(filters=[MetadataFilter(key="colour", value="red")])

CALLS = {
    "add": lambda store: store.add([image("a")]),
    "async_add": lambda store: asyncio.run(store.async_add([image("a")])),
    "query": lambda store: store.query(ask()),
    "aquery": lambda store: asyncio.run(store.aquery(ask())),
    "query, mmr": lambda store: store.query(ask(mode="mmr")),
    "query, words": lambda store: store.query(ask(query_str="text", mode="text_search")),
    "query, hybrid": lambda store: store.query(ask(query_str="text", mode="hybrid")),
    "query_many": lambda store: store.query_many(ask(None), [X]),
    "aquery_many": lambda store: asyncio.run(store.aquery_many(ask(None), [X])),
    "get_nodes": lambda store: store.get_nodes(["a"]),
    "get_nodes, filters": lambda store: store.get_nodes(filters=RED),
    "aget_nodes": lambda store: asyncio.run(store.aget_nodes(["a"])),
    "get_ids": lambda store: store.get_ids(),
    "get_hashes": lambda store: store.get_hashes(["a"]),
    "get_provenance": lambda store: store.get_provenance(["a"]),
    "get_files": lambda store: store.get_files("/pictures"),
    "get_files_by_id": lambda store: store.get_files_by_id(["a"]),
    "iter_files": lambda store: list(store.iter_files("/pictures")),
    "count": lambda store: store.count(),
    "count, filters": lambda store: store.count("image", RED),
    "acount": lambda store: asyncio.run(store.acount()),
    "delete": lambda store: store.delete("a"),
    "adelete": lambda store: asyncio.run(store.adelete("a")),
    "delete_nodes": lambda store: store.delete_nodes(["a"]),
    "delete_nodes, filters": lambda store: store.delete_nodes(filters=RED),
    "adelete_nodes": lambda store: asyncio.run(store.adelete_nodes(["a"])),
    "clear": lambda store: store.clear(),
    "aclear": lambda store: asyncio.run(store.aclear()),
    "write_rows": lambda store: store.write_rows([node_to_row(image("a"), 4)]),
    "flush": lambda store: store.flush(),
    "sample_nodes": lambda store: store.sample_nodes("image", 1),
    "reload_passport": lambda store: store.reload_passport(),
    "save_calibration": lambda store: store.save_calibration({}),
    "recall_vs_exact": lambda store: store.recall_vs_exact([X]),
    "arecall_vs_exact": lambda store: asyncio.run(store.arecall_vs_exact([X])),
}
# Those that ask Milvus for nothing, or read what it said before.
NOT_ASKING = {
    *("close", "from_params", "wait_for_index", "await_for_index", "settle", "check_filters"),
    *("persist", "model_post_init", "arun"),
}


def test_no_method_is_left_out():
    own = {
        name
        for name, function in vars(CLIPMilvusVectorStore).items()
        if inspect.isfunction(function) and not name.startswith("_")
    }
    tried = {name.partition(",")[0] for name in CALLS}
    assert own - tried - NOT_ASKING == set()


@pytest.fixture(params=["lite", "server"], scope="module")
def place(request, tmp_path_factory):
    if request.param == "lite":
        return {"uri": tmp_path_factory.mktemp("dropped") / "dropped.db", "full_text": "english"}
    return {"uri": request.getfixturevalue("server"), "collection_name": "dropped"}


def test_a_collection_that_was_dropped_elsewhere(place):
    with create_vector_store(MODEL, **place) as store:
        store.add([image("a", colour="red"), text("t")])
        store.client.drop_collection(store.collection_name)
        for name, call in CALLS.items():
            if "full_text" not in place and ("words" in name or "hybrid" in name):
                continue  # Milvus 2.3 has no searches by words.
            if "full_text" in place and name == "flush":
                continue  # Milvus Lite flushes what is not there, and says nothing.
            try:
                call(store)
            except StoreError as err:
                caught = err
            else:
                pytest.fail(f"{name} raised nothing")
            said = str(caught)
            assert not isinstance(caught, MilvusException), name
            assert repr(store.collection_name) in said, name
            assert "RPC error" not in said, name


def test_it_says_that_the_collection_is_gone_and_what_to_do(place):
    with create_vector_store(MODEL, **place) as store:
        store.client.drop_collection(store.collection_name)
        with pytest.raises(CollectionNotFoundError, match="dropped or renamed, open the store"):
            store.query(ask())
        # And that way out leads out.
    with create_vector_store(MODEL, **place) as store:
        store.add([image("a")])
        assert store.query(ask()).ids == ["a"]


def test_reading_the_passport_of_no_collection(place):
    options = {key: value for key, value in place.items() if key != "full_text"}
    with pytest.raises(StoreError, match="none_such"):
        read_passport(**{**options, "collection_name": "none_such"})


def test_what_uses_a_store_raises_its_errors(clip, store, pictures):
    ingest_images(pictures, embed_model=clip, vector_store=store)
    retriever = create_retriever(clip, store)
    store.client.drop_collection(store.collection_name)
    for call in (
        lambda: ingest_images(pictures, embed_model=clip, vector_store=store),
        lambda: sync_images(pictures, embed_model=clip, vector_store=store),
        lambda: retriever.retrieve("soup"),
        lambda: retriever.retrieve_many(["soup"]),
        lambda: retriever.retrieve_image(pictures / "red.png"),
        lambda: retriever.retrieve_like(["an id"]),
    ):
        with pytest.raises(CollectionNotFoundError, match="does not exist"):
            call()


def test_an_expression_of_ones_own_that_milvus_refuses_is_named(store):
    with pytest.raises(FilterError, match="Milvus refuses no such syntax"):
        store.query(ask([0.25] * 16), string_expr="no such syntax")


@pytest.mark.parametrize("how", ["node", "id", "hit"])
@pytest.mark.parametrize("kind", ["more", "less"])
def test_examples_that_were_found_need_no_file(clip, store, pictures, monkeypatch, how, kind):
    """A hit is in the collection with its vector: neither embedded again nor looked for."""
    ingest_images(pictures, embed_model=clip, vector_store=store)
    retriever = create_retriever(clip, store, similarity_top_k=5)
    hit = retriever.retrieve_image(pictures / "red.png")[0]
    example = {"node": hit.node, "id": hit.node_id, "hit": hit}[how]
    before = retriever.retrieve_like([example])
    (pictures / "red.png").unlink()
    monkeypatch.setattr(clip.encoder, "_rows", lambda *args: pytest.fail("embedded again"))
    if kind == "more":
        hits = retriever.retrieve_like([example])
        assert [one.node_id for one in hits] == [one.node_id for one in before]
        assert hit.node_id not in {one.node_id for one in hits}
        many = asyncio.run(retriever.aretrieve_like([example]))
        assert [one.node_id for one in many] == [one.node_id for one in before]
    else:
        other = next(one for one in before if one.node_id != hit.node_id)
        hits = retriever.retrieve_like([other.node_id], [example])
        assert {hit.node_id, other.node_id}.isdisjoint(one.node_id for one in hits)
