"""The store, on real Milvus Lite: what it keeps, finds, refuses and survives."""

import asyncio
import contextlib
import copy
import logging
import math
import os
import pickle
import re
import subprocess
import sys
import textwrap
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from by_hand import MODEL, NEAR_X, X, Y, Z, ask, image, text
from llama_index.core import VectorStoreIndex
from llama_index.core.schema import NodeRelationship, RelatedNodeInfo
from llama_index.core.vector_stores.types import (
    MetadataFilter,
    MetadataFilters,
    VectorStoreQuery,
    VectorStoreQueryMode,
)
from llama_index.vector_stores.milvus import MilvusVectorStore
from pymilvus import DataType, MilvusClient
from pymilvus.exceptions import MilvusException

import llama_index_clip_ext
from llama_index_clip_ext import (
    CLIPEmbedding,
    DimensionMismatchError,
    EmbeddingError,
    EmbeddingSpaceMismatchError,
    FilterError,
    RowTooLargeError,
    StoreError,
    StoreLockedError,
    StoreUnavailableError,
    collection,
    create_retriever,
    create_vector_store,
)
from llama_index_clip_ext.collection import read_passport
from llama_index_clip_ext.vectors import l2_normalize

INJECTION = 'x"] or id in ["b'


def where(key, value, operator="=="):
    return MetadataFilters(filters=[MetadataFilter(key=key, value=value, operator=operator)])


def of_album(node, album):
    node.relationships[NodeRelationship.SOURCE] = RelatedNodeInfo(node_id=album)
    return node


def ids(store):
    return sorted(store.query(ask()).ids)


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    with create_vector_store(MODEL, uri=tmp_path_factory.mktemp("store") / "shared.db") as store:
        yield store


@pytest.fixture
def store(shared):
    """An empty collection of four dimensions; `clear` has a test of its own."""
    shared.clear()
    return shared


@pytest.fixture
def path(tmp_path):
    """Where a test makes a database of its own."""
    return tmp_path / "own.db"


# Presets.


def test_presets(shared):
    description = shared.client.describe_collection(shared.collection_name)
    index = shared.client.describe_index(shared.collection_name, "embedding")

    assert description["enable_dynamic_field"] is True
    assert description["auto_id"] is False
    assert index["index_type"] == "FLAT"
    assert index["metric_type"] == "IP"
    assert {"images", "texts"} <= set(shared.client.list_partitions(shared.collection_name))
    columns = {field["name"]: field["params"] for field in description["fields"]}
    assert columns["embedding"] == {"dim": 4}
    assert {"id", "doc_id", "text", "file_path", "width", "content_hash"} <= set(columns)
    assert shared.passport.space == MODEL.space


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"similarity_metric": "L2"}, "similarity_metric is 'L2', expected 'COSINE', 'IP'"),
        ({"similarity_metric": "dot_product"}, "similarity_metric is 'dot_product'"),
        ({"index_type": "HNSW"}, "index_type is 'HNSW', expected 'FLAT' or 'auto': on Milvus Lite"),
        ({"index_type": "nonsense"}, "index_type is 'nonsense'"),
    ],
)
def test_an_index_that_would_lose_hits_is_refused_before_a_file_is_made(path, option, message):
    with pytest.raises(ValueError, match=message):
        create_vector_store(MODEL, uri=path, **option)
    assert not path.exists()


def test_an_impossible_consistency_level_is_refused(path):
    with pytest.raises(ValueError, match="consistency_level is 'sometimes', expected"):
        create_vector_store(MODEL, uri=path, consistency_level="sometimes")


def test_cosine_and_ip_score_alike(path):
    with create_vector_store(MODEL, uri=path, similarity_metric="cosine") as store:
        store.add([image("a", X), image("b", NEAR_X), image("c", Y)])

        assert store.query(ask(X)).similarities == pytest.approx([1.0, 0.6, 0.0], abs=1e-6)
    with create_vector_store(MODEL, uri=path) as store:
        assert store.similarity_metric == "COSINE"
        assert store.query(ask(X)).ids == ["a", "b", "c"]


# Queries.


def test_scores_are_raw_cosines_best_first(store):
    store.add([image("c", Y), image("a", X), image("b", NEAR_X)])

    result = store.query(ask(X))

    assert result.ids == ["a", "b", "c"]
    assert result.similarities == pytest.approx([1.0, 0.6, 0.0], abs=1e-6)
    assert [node.image_path for node in result.nodes] == [
        "/pictures/a.png",
        "/pictures/b.png",
        "/pictures/c.png",
    ]


def test_an_opposite_vector_scores_minus_one(store):
    store.add([image("a", [-1.0, 0.0, 0.0, 0.0])])

    assert store.query(ask(X)).similarities == pytest.approx([-1.0])


def test_top_k_limits(store):
    store.add([image("a", X), image("b", NEAR_X), image("c", Y)])

    assert store.query(ask(X, top_k=2)).ids == ["a", "b"]


def test_images_and_texts_are_kept_apart(store):
    store.add([image("picture", NEAR_X), text("words", X)])

    assert store.query(ask(X), modality="image").ids == ["picture"]
    assert store.query(ask(X), modality="text").ids == ["words"]
    assert store.query(ask(X)).ids == ["words", "picture"]
    assert (store.count("image"), store.count("text"), store.count()) == (1, 1, 2)


def test_a_query_embedding_is_scaled_here(store):
    store.add([image("a", X), image("b", NEAR_X)])

    assert store.query(ask([50.0, 0.0, 0.0, 0.0])).similarities == pytest.approx([1.0, 0.6])


def test_an_empty_collection_finds_nothing(store):
    result = store.query(ask(X))

    assert (result.nodes, result.ids, result.similarities) == ([], [], [])


def test_filters_and_ids_narrow_a_query(store):
    store.add(
        [of_album(image("a", X, colour="red"), "album"), image("b", X, colour="red"), image("c", X)]
    )

    assert sorted(store.query(ask(filters=where("colour", "red"))).ids) == ["a", "b"]
    assert store.query(ask(node_ids=["b", "c"], filters=where("colour", "red"))).ids == ["b"]
    assert store.query(ask(doc_ids=["album"])).ids == ["a"]
    assert sorted(store.query(ask(node_ids=[])).ids) == ["a", "b", "c"]
    assert store.query(ask(doc_ids=[])).ids == []
    assert store.query(ask(node_ids=[INJECTION])).ids == []
    assert store.query(ask(doc_ids=[INJECTION])).ids == []


def test_hits_carry_no_vector_and_none_is_asked_for(store, monkeypatch):
    store.add([image("a", X), text("b", X)])
    asked = []
    search = store.client.search
    monkeypatch.setattr(
        store.client,
        "search",
        lambda *args, **kwargs: asked.append(kwargs["output_fields"]) or search(*args, **kwargs),
    )

    result = store.query(ask(X))

    assert [node.embedding for node in result.nodes] == [None, None]
    assert len(asked) == 1
    assert not {"embedding", "*"} & set(asked[0])


@pytest.mark.parametrize(
    ("query", "error", "message"),
    [
        (ask(None), ValueError, "the query has no embedding"),
        (ask([]), ValueError, "the query has no embedding"),
        (ask([1.0, 0.0]), DimensionMismatchError, "2 components, collection 'clip_ext' holds 4-di"),
        (ask([math.nan, 0.0, 0.0, 0.0]), EmbeddingError, "has no direction"),
        (ask([math.inf, 0.0, 0.0, 0.0]), EmbeddingError, "has no direction"),
        (ask([0.0] * 4), EmbeddingError, "has no direction"),
        (
            ask(top_k=0),
            ValueError,
            "similarity_top_k is 0, expected a whole number from 1 to 16384",
        ),
        (ask(top_k=-1), ValueError, "similarity_top_k is -1"),
        (ask(top_k=16_385), ValueError, "similarity_top_k is 16385"),
        (ask(mode=VectorStoreQueryMode.SVM), ValueError, "'svm' is not supported; use 'default'"),
    ],
)
def test_an_impossible_query_is_refused(store, query, error, message):
    store.add([image("a")])

    with pytest.raises(error, match=message):
        store.query(query)


def test_a_query_of_another_dimension_says_both(store):
    with pytest.raises(DimensionMismatchError) as caught:
        store.query(ask([1.0, 0.0]))

    assert (caught.value.expected, caught.value.actual) == (4, 2)


def test_the_largest_top_k(store):
    store.add([image("a")])

    assert store.query(ask(top_k=16_384)).ids == ["a"]


def test_mmr_prefers_less_alike_hits_and_keeps_raw_cosines(store):
    # b is a's twin; c is as near as 0.6, and different.
    twin = [0.8, 0.0, 0.6, 0.0]
    store.add([image("a", twin), image("b", twin), image("c", NEAR_X)])

    plain = store.query(ask(X, top_k=2))
    diverse = store.query(ask(X, top_k=2, mode=VectorStoreQueryMode.MMR), mmr_threshold=0.5)
    alike = store.query(ask(X, top_k=2, mode=VectorStoreQueryMode.MMR), mmr_threshold=1.0)

    assert sorted(plain.ids) == ["a", "b"]
    assert diverse.ids[0] in ("a", "b")
    assert diverse.ids[1] == "c"
    assert diverse.similarities == pytest.approx([0.8, 0.6], abs=1e-6)
    assert [node.embedding for node in diverse.nodes] == [None, None]
    assert sorted(alike.ids) == ["a", "b"]


def test_mmr_takes_its_threshold_from_the_query_too(store):
    twin = [0.8, 0.0, 0.6, 0.0]
    store.add([image("a", twin), image("b", twin), image("c", NEAR_X)])
    query = ask(X, top_k=2, mode=VectorStoreQueryMode.MMR, mmr_threshold=1.0)

    assert sorted(store.query(query).ids) == ["a", "b"]


def textbook_mmr(embeddings, query, count, weight):
    """Carbonell and Goldstein 1998: against the most alike of all that were picked."""
    left, picked = dict(embeddings), []
    while left and len(picked) < count:
        scores = {
            name: weight * np.dot(row, query)
            - (1 - weight) * max((np.dot(row, embeddings[one]) for one in picked), default=0)
            for name, row in left.items()
        }
        picked.append(max(scores, key=scores.get))
        del left[picked[-1]]
    return picked


def test_mmr_compares_with_all_that_were_picked(store):
    """LlamaIndex's own compares with the last alone, and takes a near twin of the first for new."""
    near = 1e-3
    a, b, c = [0.8, 0.6, 0, 0], [0.8, 0, 0.6, 0], [0.65, 0, 0, 0.76]
    rows = {"A0": a, "A1": [*a[:3], near], "B0": b, "B1": [*b[:3], near], "C": c}
    rows = {name: (np.array(row) / np.linalg.norm(row)).tolist() for name, row in rows.items()}
    store.add([image(name, row) for name, row in rows.items()])

    found = store.query(ask(X, 4, mode=VectorStoreQueryMode.MMR, mmr_threshold=0.5)).ids

    assert found[:3] == textbook_mmr(rows, X, 3, 0.5)
    assert {one[0] for one in found[:3]} == {"A", "B", "C"}


@pytest.mark.parametrize("weight", [0.0, 0.2, 0.5, 0.9, 1.0])
def test_mmr_is_the_textbooks(tmp_path, weight):
    chance = np.random.default_rng(0)
    rows = l2_normalize(chance.normal(size=(400, 24)) + chance.integers(0, 3, size=(400, 1)))
    embeddings = {str(n): row for n, row in enumerate(rows)}
    with create_vector_store(MODEL.but(dim=24), uri=tmp_path / "a.db") as store:
        store.add([image(name, row.tolist()) for name, row in embeddings.items()])
        for query in l2_normalize(chance.normal(size=(4, 24))):
            candidates = store.query(ask(query.tolist(), 100)).ids
            asked = ask(query.tolist(), 25, mode=VectorStoreQueryMode.MMR, mmr_threshold=weight)
            found = store.query(asked)
            known = {name: embeddings[name] for name in candidates}
            assert found.ids == textbook_mmr(known, query, 25, weight)
            assert found.similarities == pytest.approx([embeddings[i] @ query for i in found.ids])


@pytest.mark.parametrize("threshold", [-0.1, 1.1, 7, math.nan])
def test_an_impossible_mmr_threshold_is_refused(store, clip, tmp_path, threshold):
    query = ask(X, mode=VectorStoreQueryMode.MMR)
    with pytest.raises(ValueError, match=r"mmr_threshold is .*expected 0"):
        store.query(query, mmr_threshold=threshold)
    query.mmr_threshold = threshold
    with pytest.raises(ValueError, match=r"mmr_threshold is .*expected 0"):
        store.query(query)
    with (
        create_vector_store(clip, uri=tmp_path / "b.db") as own,
        pytest.raises(ValueError, match=r"mmr_threshold is .*expected 0"),
    ):
        create_retriever(clip, own, vector_store_query_mode="mmr", mmr_threshold=threshold)


def test_mmr_of_nothing(store):
    assert store.query(ask(mode=VectorStoreQueryMode.MMR)).ids == []


# Writing.


def test_adding_twice_keeps_one_row(store):
    assert store.add([image("a", X)]) == ["a"]
    assert store.add([image("a", Y)]) == ["a"]

    assert store.count() == 1
    assert store.query(ask(Y)).similarities == pytest.approx([1.0])


def test_adding_again_replaces_the_whole_row(store):
    store.add([image("a", X, colour="red", file_name="a.png", size=1)])
    store.add([image("a", X, size=2)])

    assert store.query(ask(filters=where("colour", "red"))).ids == []
    assert store.query(ask(filters=where("file_name", "a.png"))).ids == []
    assert store.query(ask(filters=where("size", 1))).ids == []
    assert store.query(ask(filters=where("size", 2))).nodes[0].metadata == {"size": 2}


def test_a_node_that_becomes_a_text_leaves_the_images(store):
    store.add([image("a")])
    store.add([text("a")])

    assert (store.count("image"), store.count("text"), store.count()) == (0, 1, 1)
    assert store.query(ask(), modality="image").ids == []


def test_of_equal_ids_in_one_call_the_last_counts(store):
    assert store.add([image("a", X), image("b", X), image("a", Y, turn=2)]) == ["a", "b", "a"]

    assert store.count() == 2
    assert store.get_nodes(["a"])[0].metadata == {"turn": 2}
    assert store.get_nodes(["a"])[0].embedding == Y


def test_adding_nothing(store):
    assert store.add([]) == []


@pytest.mark.parametrize(
    ("bad", "error"),
    [
        (image("bad", None), EmbeddingError),
        (image("bad", [math.nan, 0.0, 0.0, 0.0]), EmbeddingError),
        (image("bad", [0.0] * 4), EmbeddingError),
        (image("bad", [0.0, 0.0, 0.0, 2.0]), EmbeddingError),
        (image("bad", [1.0]), DimensionMismatchError),
        (image("bad", big="x" * 70_000), RowTooLargeError),
        (image("bad", width="wide"), TypeError),
        (image("bad", **{"$meta": 1}), (TypeError, ValueError)),
    ],
)
def test_one_bad_node_and_nothing_is_written(store, bad, error):
    with pytest.raises(error, match="node 'bad'"):
        store.add([text("good"), bad, image("fine")])

    assert store.count() == 0


def test_batches_are_limited_by_bytes_and_by_rows(store, monkeypatch):
    sizes = []
    insert = store.client.insert
    monkeypatch.setattr(
        store.client,
        "insert",
        lambda name, rows, **kwargs: sizes.append(len(rows)) or insert(name, rows, **kwargs),
    )

    # A row's note is in it twice: by itself, and in the node's content. Two fit 50,000 bytes.
    monkeypatch.setattr(collection, "_MAX_BATCH_BYTES", 50_000)
    store.add([image(str(number), note="x" * 10_000) for number in range(5)])
    assert sizes == [2, 2, 1]

    sizes.clear()
    monkeypatch.setattr(collection, "_MAX_BATCH_ROWS", 3)
    store.add([image(str(number)) for number in range(7)])
    assert sizes == [3, 3, 1]
    assert store.count() == 7


def test_a_row_over_the_batch_limit_goes_alone(store, monkeypatch):
    monkeypatch.setattr(collection, "_MAX_BATCH_BYTES", 10)

    store.add([image("a"), image("b")])

    assert store.count() == 2


# Reading and deleting.


def test_nodes_come_in_the_order_asked(store):
    store.add([image("a", X), image("b", NEAR_X), text("c", Y)])

    nodes = store.get_nodes(["c", "missing", "a", "c"])

    assert [node.node_id for node in nodes] == ["c", "a"]
    assert [node.embedding for node in nodes] == [Y, X]
    assert nodes[0].text == "text of c"
    assert store.get_nodes([]) == []
    assert store.get_nodes([INJECTION]) == []


def test_nodes_by_filters(store):
    store.add([image("a", colour="red"), image("b", colour="red"), image("c")])

    assert sorted(n.node_id for n in store.get_nodes(filters=where("colour", "red"))) == ["a", "b"]
    assert [n.node_id for n in store.get_nodes(["b", "c"], where("colour", "red"))] == ["b"]
    assert len(store.get_nodes(filters=MetadataFilters(filters=[]))) == 3
    with pytest.raises(ValueError, match="get_nodes needs node_ids or filters"):
        store.get_nodes()


def test_more_ids_than_one_expression_takes(store):
    wanted = [f"id {number}" for number in range(2_500)]
    store.add([image(node_id) for node_id in wanted])

    assert [node.node_id for node in store.get_nodes(wanted[::-1])] == wanted[::-1]
    assert set(store.get_hashes(wanted)) == set(wanted)
    store.delete_nodes(wanted[:2_400])
    assert store.count() == 100


def test_a_query_by_more_ids_than_one_expression_takes(store):
    wanted = [f"id {number}" for number in range(2_500)]
    store.add([image(node_id) for node_id in wanted])

    assert store.query(ask(node_ids=wanted[-1:] + ["absent"] * 2_499)).ids == wanted[-1:]


def test_deleting_a_document(store):
    store.add([of_album(image("a"), "album"), of_album(text("b"), "album"), image("c")])

    store.delete("album")

    assert ids(store) == ["c"]
    store.delete("c")  # A node without a source is its own document.
    assert ids(store) == []


@pytest.mark.parametrize("name", ["None", "", INJECTION, '" or id != "', "x' or 'a' == 'a", "%"])
def test_deleting_what_is_not_there_deletes_nothing(store, name):
    store.add([image("a"), image("b"), of_album(image("c"), "album")])

    store.delete(name)
    store.delete_nodes([name])

    assert ids(store) == ["a", "b", "c"]


def test_deleting_an_injection_deletes_only_what_is_named_so(store):
    store.add([image(INJECTION), image("b"), of_album(image("c"), INJECTION)])

    store.delete_nodes([INJECTION])
    assert ids(store) == ["b", "c"]
    store.delete(INJECTION)
    assert ids(store) == ["b"]


def test_deleting_nodes(store):
    store.add([image(name, colour=colour) for name, colour in zip("abcd", "rrgb", strict=True)])

    store.delete_nodes(["a", "missing"])
    assert ids(store) == ["b", "c", "d"]
    store.delete_nodes(["b", "c"], where("colour", "r"))
    assert ids(store) == ["c", "d"]
    store.delete_nodes(filters=where("colour", "b"))
    assert ids(store) == ["c"]
    store.delete_nodes([])
    assert ids(store) == ["c"]


def test_deleting_says_how_many_there_were(store):
    store.add([image("a"), image("b", colour="red"), text("t", colour="red")])
    assert store.delete_nodes(["a", "no such"]) == 1
    assert store.delete_nodes(["b"], where("colour", "blue")) == 0
    assert store.delete_nodes(filters=where("colour", "red")) == 2
    assert store.delete_nodes([]) == 0
    assert store.count() == 0


async def test_deleting_in_a_loop_says_how_many_there_were(store):
    store.add([image("a"), image("b")])
    assert await store.adelete_nodes(["a", "no such"]) == 1


@pytest.mark.parametrize(
    "filters",
    [None, MetadataFilters(filters=[]), MetadataFilters(filters=[MetadataFilters(filters=[])])],
)
def test_deleting_nodes_without_a_condition_is_refused(store, filters):
    store.add([image("a")])

    with pytest.raises(ValueError, match="delete_nodes needs node_ids or filters"):
        store.delete_nodes(filters=filters)
    assert store.count() == 1


def test_nodes_and_ids_may_come_from_a_generator(store):
    assert store.add(image(name) for name in "abc") == ["a", "b", "c"]
    assert [node.node_id for node in store.get_nodes(iter("cb"))] == ["c", "b"]
    store.delete_nodes(iter("ab"))
    assert store.get_ids() == ["c"]
    assert store.add(image("d")) == ["d"]


@pytest.mark.parametrize(
    ("call", "error", "said"),
    [
        (lambda store: store.add(["a"]), TypeError, "nodes holds a str"),
        (lambda store: store.get_nodes([1]), TypeError, "node_ids holds 1"),
        (lambda store: store.get_nodes(b"1"), TypeError, "node_ids is one bytes"),
        (lambda store: store.get_hashes("12"), TypeError, "node_ids is one str"),
        (lambda store: store.delete_nodes([1]), TypeError, "node_ids holds 1"),
        (lambda store: store.delete(5), TypeError, "ref_doc_id holds 5"),
        (lambda store: store.query(ask(node_ids="1")), TypeError, "node_ids is one str"),
        (lambda store: store.query(ask(top_k=2.5)), ValueError, "similarity_top_k is 2.5"),
        (lambda store: store.query(ask(top_k=True)), ValueError, "similarity_top_k is True"),
        (lambda store: store.query(ask(top_k=None)), ValueError, "similarity_top_k is None"),
        (lambda store: store.count(filters={"key": 1}), FilterError, "filters is a dict"),
        (
            lambda store: store.delete_nodes(filters=MetadataFilter(key="a", value=1)),
            FilterError,
            "filters is a MetadataFilter,",
        ),
    ],
)
def test_what_is_of_a_wrong_type_is_named(store, call, error, said):
    store.add([image("1"), image("2"), image("12")])
    with pytest.raises(error, match=re.escape(said)):
        call(store)
    assert store.count() == 3


def test_numbers_of_numpy_are_numbers(store):
    store.add([image("1"), image("2")])
    assert len(store.query(ask(top_k=np.int64(1))).ids) == 1


def test_one_id_is_no_list(store):
    store.add([image("1"), image("2"), image("12")])
    for call in (store.get_nodes, store.delete_nodes):
        with pytest.raises(TypeError, match="node_ids is one str"):
            call("12")
    assert store.count() == 3


def test_ids_by_filters_and_modality(store):
    store.add([image("a", width=1), image("b", width=2), text("c", width=2)])
    assert sorted(store.get_ids()) == ["a", "b", "c"]
    assert store.get_ids(where("width", 2), "image") == ["b"]
    assert store.get_ids(modality="text") == ["c"]


@pytest.mark.parametrize("modality", ["images", "both", ""])
def test_another_modality_is_refused(store, modality):
    for call in (
        lambda: store.count(modality),
        lambda: store.get_ids(modality=modality),
        lambda: store.query(ask(X), modality=modality),
    ):
        with pytest.raises(ValueError, match="modality is .*, expected 'image', 'text' or None"):
            call()


def test_clearing_keeps_the_collection_and_its_passport(store):
    store.add([image("a"), text("b")])

    store.clear()

    assert store.count() == 0
    assert store.query(ask()).ids == []
    store.add([image("c")])
    assert ids(store) == ["c"]
    assert read_passport(uri=store.uri) == (store.passport, 1)


# Opening.


def test_reopening_finds_everything_at_once(path):
    with create_vector_store(MODEL, uri=path) as store:
        store.add([image("a", X, colour="red"), text("b", Y)])
        passport = store.passport
    for _ in range(2):
        with create_vector_store(MODEL, uri=path) as store:
            assert store.query(ask(X, filters=where("colour", "red"))).ids == ["a"]
            assert store.count() == 2
            assert store.get_nodes(["b"])[0].text == "text of b"
            assert store.passport == passport


def test_a_closed_store_says_so(path):
    with create_vector_store(MODEL, uri=path) as store:
        pass
    store.close()

    for use in (
        lambda: store.query(ask()),
        lambda: store.add([image("a")]),
        lambda: store.get_nodes(["a"]),
        lambda: store.delete("a"),
        store.count,
        store.clear,
    ):
        with pytest.raises(StoreError, match=r"own\.db' is closed; open it again"):
            use()


def test_overwrite_starts_afresh(path):
    with create_vector_store(MODEL, uri=path) as store:
        store.add([image("a")])
    other = MODEL.but(model="model-b", weights="c" * 64, dim=2)
    with create_vector_store(other, uri=path, overwrite=True) as store:
        assert store.count() == 0
        store.add([image("b", [0.6, 0.8])])
        assert store.query(ask([1.0, 0.0])).similarities == pytest.approx([0.6])


def test_two_collections_in_one_file(path):
    with (
        create_vector_store(MODEL, uri=path, collection_name="one") as one,
        create_vector_store(MODEL.but(dim=2), uri=path, collection_name="two") as two,
    ):
        one.add([image("a")])
        two.add([image("b", [1.0, 0.0])])

        assert (one.query(ask()).ids, two.query(ask([1.0, 0.0])).ids) == (["a"], ["b"])


def test_a_refused_open_lets_go_of_the_file(path):
    create_vector_store(MODEL, uri=path).close()

    with pytest.raises(EmbeddingSpaceMismatchError):
        create_vector_store(MODEL.but(weights="c" * 64), uri=path)

    assert in_another_process(path).startswith("opened")


def test_another_model_of_the_same_dimension_is_refused(clip, clip_dir, other_clip_dir, path):
    create_vector_store(clip, uri=path).close()

    with pytest.raises(EmbeddingSpaceMismatchError) as caught:
        create_vector_store(CLIPEmbedding(other_clip_dir), uri=path)

    assert str(clip_dir) in str(caught.value)
    assert str(other_clip_dir) in str(caught.value)
    assert "overwrite=True" in str(caught.value)


def test_a_model_of_another_dimension_is_refused(clip, path):
    create_vector_store(clip, uri=path).close()

    with pytest.raises(DimensionMismatchError) as caught:
        create_vector_store(MODEL, uri=path)

    assert (caught.value.expected, caught.value.actual) == (clip.space.dim, 4)
    assert "'model-a'" in str(caught.value)
    assert clip.space.model in str(caught.value)


def test_the_same_weights_under_another_path_are_the_same_model(clip, clip_dir, path, tmp_path):
    link = tmp_path / "elsewhere"
    link.symlink_to(clip_dir)
    create_vector_store(clip, uri=path).close()

    with create_vector_store(CLIPEmbedding(link), uri=path) as store:
        assert store.count() == 0


@pytest.fixture
def plain_collection(path):
    """What MilvusVectorStore makes when it is not ours."""
    plain = MilvusVectorStore(
        uri=str(path), collection_name="clip_ext", dim=4, similarity_metric="COSINE",
        use_async_client=False,
    )  # fmt: skip
    plain.add([image("a", X, colour="red"), image("b", NEAR_X)])
    plain.client.close()


@pytest.mark.parametrize(
    "options",
    [
        {"id_type": "string", "max_length": 9, "primary_field_name": "pk"},
        {"id_type": "int"},
        {"id_type": "string", "max_length": 9, "vector_field_name": "vector"},
    ],
)
def test_a_collection_whose_rows_are_none_of_ours_is_refused(path, options):
    client = MilvusClient(str(path))
    client.create_collection(
        "clip_ext", **{"dimension": 4, "vector_field_name": "embedding", **options}
    )
    client.close()
    with pytest.raises(StoreError, match="has no primary key 'id' of type VARCHAR"):
        create_vector_store(MODEL, uri=path)


def test_a_collection_whose_ids_are_no_keys_is_refused(path):
    client = MilvusClient(str(path))
    schema = client.create_schema()
    schema.add_field("key", DataType.VARCHAR, max_length=9, is_primary=True)
    schema.add_field("id", DataType.VARCHAR, max_length=9)
    schema.add_field("embedding", DataType.FLOAT_VECTOR, dim=4)
    client.create_collection("clip_ext", schema=schema)
    client.close()
    with pytest.raises(StoreError, match="has no primary key 'id' of type VARCHAR"):
        create_vector_store(MODEL, uri=path)


@pytest.mark.usefixtures("plain_collection")
def test_a_collection_of_another_program_opens_with_a_warning(path, caplog):
    with caplog.at_level(logging.WARNING), create_vector_store(MODEL, uri=path) as store:
        assert "'clip_ext' was not made by this package" in caplog.text
        assert store.passport is None
        assert store.query(ask(X)).similarities == pytest.approx([1.0, 0.6], abs=1e-6)
        assert store.query(ask(X)).nodes[0].image_path == "/pictures/a.png"
        assert store.query(ask(X, filters=where("colour", "red"))).ids == ["a"]
        assert store.query(ask(X), modality="image").ids == ["a", "b"]
        assert [node.node_id for node in store.get_nodes(["b"])] == ["b"]
        assert store.count() == 2


@pytest.mark.usefixtures("plain_collection")
def test_a_collection_of_another_program_counts_by_modality(path):
    with create_vector_store(MODEL, uri=path) as store:
        assert store.count("image") == 2


@pytest.mark.usefixtures("plain_collection")
def test_a_collection_of_another_program_can_be_written(path):
    with create_vector_store(MODEL, uri=path) as store:
        store.add([image("c", Z)])

        assert store.query(ask(Z)).ids[0] == "c"


@pytest.mark.usefixtures("plain_collection")
def test_a_collection_of_another_program_and_dimension_is_refused(path):
    with pytest.raises(DimensionMismatchError, match="holds 4-dim vectors .* makes 8") as caught:
        create_vector_store(MODEL.but(dim=8), uri=path)

    assert (caught.value.expected, caught.value.actual) == (4, 8)


def test_a_collection_of_another_program_and_metric_is_refused(path):
    plain = MilvusVectorStore(
        uri=str(path), collection_name="clip_ext", dim=4, similarity_metric="L2",
        use_async_client=False,
    )  # fmt: skip
    plain.client.close()

    with pytest.raises(StoreError, match="L2"):
        create_vector_store(MODEL, uri=path)


def test_a_collection_cut_short_while_it_was_made_is_completed(path):
    with create_vector_store(MODEL, uri=path) as store:
        store.client.drop_partition(store.collection_name, "texts")

    with create_vector_store(MODEL, uri=path) as store:
        store.add([text("a")])
        assert store.query(ask(), modality="text").ids == ["a"]


def test_reading_a_passport_needs_no_model(path):
    with pytest.raises(StoreError, match="does not exist"):
        read_passport(uri=path)
    assert not path.exists()
    with create_vector_store(MODEL, uri=path) as store:
        store.add([image("a"), text("b")])

    passport, rows = read_passport(uri=path)

    assert passport.space == MODEL.space
    assert passport.metric == "IP"
    assert passport.package == llama_index_clip_ext.__version__
    assert rows == 2
    with pytest.raises(StoreError, match="no collection 'other' in .*; there are: clip_ext"):
        read_passport(uri=path, collection_name="other")


# Paths.


@pytest.mark.parametrize("name", ["a.db", "with spaces.db", "图片 库/猫.db", "not/there/yet.db"])
def test_paths(tmp_path, name):
    with create_vector_store(MODEL, uri=str(tmp_path / name)) as store:
        store.add([image("a")])

    assert (tmp_path / name).is_dir()


def test_a_path_in_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))

    create_vector_store(MODEL, uri="~/photos.db").close()

    assert (tmp_path / "home" / "photos.db").is_dir()


def test_a_relative_path_is_one_file_whatever_the_folder(tmp_path, monkeypatch):
    with create_vector_store(MODEL, uri="./a.db") as store:
        (tmp_path / "folder").mkdir()
        monkeypatch.chdir(tmp_path / "folder")
        with create_vector_store(MODEL, uri="../a.db") as same:
            same.add([image("a")])

        assert store.count() == 1


def test_a_link_to_an_open_database_joins_it(path, tmp_path):
    link = tmp_path / "link.db"
    with create_vector_store(MODEL, uri=path) as store:
        link.symlink_to(path)
        with create_vector_store(MODEL, uri=link) as same:
            same.add([image("a")])

        assert store.count() == 1


@pytest.mark.parametrize("uri", ["photos", "photos.sqlite", "photos.DB", "file:///tmp/photos.db"])
def test_a_path_with_another_ending_is_refused(uri, tmp_path):
    with pytest.raises(StoreError, match=r"an embedded Milvus file ends in \.db"):
        create_vector_store(MODEL, uri=uri)
    assert list(tmp_path.iterdir()) == []


def test_an_old_file_is_explained(path):
    path.write_bytes(b"SQLite format 3\0")

    with pytest.raises(StoreError, match=r"is a file; milvus-lite 3 keeps a folder"):
        create_vector_store(MODEL, uri=path)
    assert path.read_bytes() == b"SQLite format 3\0"


def test_a_folder_that_is_a_file_is_explained(tmp_path):
    (tmp_path / "folder").write_text("")

    with pytest.raises(StoreError, match=r"cannot make the folder .*folder for a\.db"):
        create_vector_store(MODEL, uri=tmp_path / "folder" / "a.db")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_may_not_be_written_is_explained(tmp_path):
    tmp_path.chmod(0o500)

    with pytest.raises(StoreError, match="no permission to write"):
        create_vector_store(MODEL, uri=tmp_path / "a.db")


# Processes and threads.


def in_another_process(path):
    """Open a database from a second process; return what it printed."""
    code = """
        import logging, sys
        logging.disable(logging.CRITICAL)
        from by_hand import MODEL
        from llama_index_clip_ext import StoreLockedError, create_vector_store
        try:
            with create_vector_store(MODEL, uri=sys.argv[1]) as store:
                print("opened", store.count())
        except StoreLockedError as err:
            print("locked", err.pid, err.path, err)
    """
    tests = Path(__file__).parent
    package = Path(llama_index_clip_ext.__file__).parents[1]
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), str(path)],
        env={**os.environ, "PYTHONPATH": f"{tests}{os.pathsep}{package}"},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    return done.stdout


def test_a_second_process_is_told_who_holds_the_file(path):
    with create_vector_store(MODEL, uri=path) as store:
        store.add([image("a")])
        told = in_another_process(path)
    after = in_another_process(path)

    assert told.startswith("locked")
    assert f"{path} is held by" in told
    assert "store.close()" in told
    if sys.platform == "linux":
        assert told.startswith(f"locked {os.getpid()} {path}")
    assert after == "opened 1\n"


def test_this_process_is_told_who_holds_the_file(path):
    create_vector_store(MODEL, uri=path).close()
    holder = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent("""
            import fcntl, sys
            lock = open(sys.argv[1], "a")
            fcntl.flock(lock, fcntl.LOCK_EX)
            print("held", flush=True)
            sys.stdin.read()
        """), str(path / "LOCK")],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    with holder:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(StoreLockedError, match="is held by") as caught:
            create_vector_store(MODEL, uri=path)
        holder.stdin.close()

    assert caught.value.path == str(path)
    if sys.platform == "linux":
        assert caught.value.pid == holder.pid
    create_vector_store(MODEL, uri=path).close()


def test_closing_one_of_two_stores_leaves_the_other_working(path):
    one = create_vector_store(MODEL, uri=path)
    two = create_vector_store(MODEL, uri=path)
    one.add([image("a")])
    one.close()

    assert two.query(ask()).ids == ["a"]
    two.add([image("b")])
    assert two.count() == 2
    assert in_another_process(path).startswith("locked")
    two.close()
    assert in_another_process(path) == "opened 2\n"


def test_eight_threads_writing_lose_nothing(store):
    def add(thread):
        for number in range(10):
            store.add([image(f"{thread}-{number}"), text(f"{thread}-{number} text")])

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(add, range(8)))

    assert (store.count("image"), store.count("text")) == (80, 80)


def test_two_stores_writing_at_once_lose_nothing(path):
    with (
        create_vector_store(MODEL, uri=path) as one,
        create_vector_store(MODEL, uri=path) as two,
        ThreadPoolExecutor(8) as pool,
    ):
        list(pool.map(lambda n: (one, two)[n % 2].add([image(str(n))]), range(100)))

        assert one.count() == two.count() == 100


def test_a_first_access_by_many_threads_after_reopening_loses_nothing(path):
    with create_vector_store(MODEL, uri=path) as store:
        store.add([image(str(number)) for number in range(160)])
    barrier = threading.Barrier(16)

    def search(thread):
        barrier.wait()
        return store.query(ask(top_k=1000)).ids

    with create_vector_store(MODEL, uri=path) as store, ThreadPoolExecutor(16) as pool:
        assert [len(found) for found in pool.map(search, range(16))] == [160] * 16
        assert store.count() == 160


def test_opening_by_many_threads_at_once(path):
    with create_vector_store(MODEL, uri=path) as store:
        store.add([image(str(number)) for number in range(160)])

    def count(thread):
        with create_vector_store(MODEL, uri=path) as store:
            return store.count()

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(count, range(8))) == [160] * 8


# Async.


async def use_async(store):
    assert await store.async_add([image("a", X), image("b", Y)]) == ["a", "b"]
    assert (await store.aquery(ask(X), modality="image")).ids == ["a", "b"]
    assert [node.node_id for node in await store.aget_nodes(["b"])] == ["b"]
    await store.adelete("a")
    assert (await store.aquery(ask(X))).ids == ["b"]
    await store.adelete_nodes(["b"])
    assert (await store.aquery(ask(X))).ids == []
    await store.async_add([image("c", X)])
    await store.aclear()
    assert (await store.aquery(ask(X))).ids == []


def test_async_in_two_event_loops(store):
    asyncio.run(use_async(store))
    asyncio.run(use_async(store))


async def test_async_where_a_loop_runs(path):
    with create_vector_store(MODEL, uri=path) as store:
        await use_async(store)
        await asyncio.gather(*(store.async_add([image(str(n))]) for n in range(20)))
        assert store.count() == 20


async def test_async_does_not_block_the_event_loop(store, monkeypatch):
    store.add([image("a")])
    search = store.client.search
    monkeypatch.setattr(
        store.client,
        "search",
        lambda *args, **kwargs: time.sleep(0.5) or search(*args, **kwargs),
    )
    beats = 0

    async def beat():
        nonlocal beats
        while True:
            await asyncio.sleep(0.01)
            beats += 1

    heart = asyncio.create_task(beat())
    assert (await store.aquery(ask(X))).ids == ["a"]
    heart.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await heart

    assert beats > 10  # Of some 50; none, if the loop had waited.


# Copies, LlamaIndex, servers.


@pytest.mark.parametrize("duplicate", [pickle.dumps, copy.deepcopy, copy.copy])
def test_a_store_is_not_copied(store, duplicate):
    with pytest.raises(TypeError, match="cannot be pickled or copied; call create_vector_store"):
        duplicate(store)


def test_an_index_on_the_store_retrieves(clip, path):
    with create_vector_store(clip, uri=path) as store:
        nodes = [text("cat"), text("dog")]
        for node in nodes:
            node.embedding = None
        store.add(clip(nodes))
        index = VectorStoreIndex.from_vector_store(store, embed_model=clip)

        hits = index.as_retriever(similarity_top_k=2).retrieve("text of dog")

        assert [hit.node.node_id for hit in hits] == ["dog", "cat"]
        assert hits[0].score == pytest.approx(1.0, abs=1e-3)
        index.insert_nodes([text("cow", None)])
        assert store.count() == 3
        index.delete_ref_doc("cow")
        assert store.count() == 2


def test_an_unreachable_server_is_named_without_its_credentials():
    address = "http://root:s3cret@127.0.0.1:1"
    started = time.monotonic()
    with pytest.raises(StoreUnavailableError, match=r"http://127\.0\.0\.1:1 did not an") as caught:
        create_vector_store(MODEL, uri=address, token="root:t0ken", timeout=0.5)

    assert time.monotonic() - started < 15
    assert caught.value.address == "http://127.0.0.1:1"
    assert "s3cret" not in str(caught.value)
    assert "t0ken" not in str(caught.value)


def test_errors_of_milvus_itself_come_through(store):
    with pytest.raises(MilvusException):
        store.client.search("absent", data=[X])  # A client of its own would share the connection.


def test_a_query_object_is_not_changed(store):
    store.add([image("a")])
    query = VectorStoreQuery(query_embedding=[2.0, 0.0, 0.0, 0.0], similarity_top_k=1)

    store.query(query)

    assert query == VectorStoreQuery(query_embedding=[2.0, 0.0, 0.0, 0.0], similarity_top_k=1)


def test_what_was_written_is_put_into_files_before_a_search(tmp_path, monkeypatch):
    monkeypatch.setattr("llama_index_clip_ext.lite.MAX_UNFLUSHED_ROWS", 3)
    flushed = []
    with create_vector_store(MODEL, uri=tmp_path / "own.db") as store:
        flush = store.client.flush
        monkeypatch.setattr(store.client, "flush", lambda name: flushed.append(name) or flush(name))
        store.add([image("a"), image("b", Y)])
        assert store.query(ask(X)).ids == ["a", "b"]
        assert flushed == []
        store.add([image("c", Z)])
        for _ in range(2):
            assert set(store.query(ask(X)).ids) == {"a", "b", "c"}
        assert flushed == [store.collection_name]
        store.add([image("a", Y)])
        store.delete_nodes(["b"])
        assert store.query(ask(Y)).ids == ["a", "c"]


def test_one_query_by_many_embeddings(store):
    store.add([image("a", X), image("b", Y), text("t", Z)])
    query = ask(None, 1)
    assert [one.ids for one in store.query_many(query, [X, NEAR_X, Z], modality="image")][:2] == [
        ["a"],
        ["b"],
    ]
    (result,) = asyncio.run(store.aquery_many(query, [[0, 0, 9, 0]]))
    assert (result.ids, result.similarities) == (["t"], [pytest.approx(1)])
    assert result.nodes[0].embedding is None
    assert store.query_many(query, []) == []
    with pytest.raises(ValueError, match="not by vectors alone"):
        store.query_many(ask(None, mode="hybrid"), [X])
