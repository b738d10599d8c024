"""Filters find, count and delete on Milvus Lite what LlamaIndex's own function matches.

`test_server.py` asks the same of a server.
"""

import filter_oracle
import pytest
from by_hand import MODEL, X, ask, image
from filter_oracle import group, one
from hypothesis import assume, example, given, settings

from llama_index_clip_ext import create_vector_store

NODES = filter_oracle.corpus()


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    with create_vector_store(MODEL, uri=tmp_path_factory.mktemp("properties") / "f.db") as store:
        filter_oracle.fill(store, NODES)
        yield store


@pytest.mark.parametrize("wanted", filter_oracle.KNOWN)
def test_known_cases(store, wanted):
    filter_oracle.check(store, NODES, wanted)


def test_many_conditions_in_groups_in_each_other(store):
    """Of which a server would say that they are too deep."""
    filter_oracle.check(store, NODES, filter_oracle.deep(24, 40))


@settings(max_examples=1000, **filter_oracle.SAME_EACH_TIME)
@given(filter_oracle.filters(with_text_match=True))
@example(group(one("text_only", "text_match", ""), one("mixed", "text_match", "it's")))
def test_any_filter_finds_what_llama_index_matches(store, wanted):
    filter_oracle.check(store, NODES, wanted)


@settings(max_examples=50, **filter_oracle.SAME_EACH_TIME)
@given(filter_oracle.filters(with_text_match=True))
def test_deleting_by_any_filter_deletes_what_it_matches(store, wanted):
    assume(not filter_oracle.says_nothing(wanted))
    filter_oracle.check_deleting(store, NODES, wanted)


async def test_the_asynchronous_twins(store):
    wanted = group(one("flag", "==", 1), one("width", ">", 5))
    expected = filter_oracle.matching(NODES, wanted)

    assert await store.acount(filters=wanted) == len(expected) > 0
    assert {node.node_id for node in await store.aget_nodes(filters=wanted)} == expected
    assert set((await store.aquery(ask(X, top_k=len(NODES), filters=wanted))).ids) == expected
    await store.adelete_nodes(filters=wanted)
    assert await store.acount() == len(NODES) - len(expected)
    store.add([node for node in NODES if node.node_id in expected])


def test_counting_by_modality_and_filters(store):
    wanted = group(one("flag", "==", 1), one("flag", "is_empty"), condition="or")
    expected = filter_oracle.matching(NODES, wanted)
    texts = {node.node_id for node in NODES if node.class_name() == "TextNode"}

    assert store.count("text", wanted) == len(expected & texts) > 0
    assert store.count("image", wanted) == len(expected - texts) > 0
    assert store.count("text", group()) == len(texts)


def test_ids_and_filters_together(store):
    wanted = group(one("flag", "==", 1))
    expected = filter_oracle.matching(NODES, wanted)
    ids = [node.node_id for node in NODES[:20]]

    found = [node.node_id for node in store.get_nodes(ids, wanted)]

    assert found == [node_id for node_id in ids if node_id in expected]


def test_nothing_is_deleted_by_filters_that_say_nothing(store):
    for wanted in (None, group(), group(group(), condition="not")):
        with pytest.raises(ValueError, match="needs node_ids or filters"):
            store.delete_nodes(filters=wanted)
    store.delete_nodes(filters=group(one("number", "in", [])))
    assert store.count() == len(NODES)


def test_what_milvus_refuses_after_all_names_the_filter(store, monkeypatch):
    monkeypatch.setattr(store, "_expression", lambda *_: "width ==")
    wanted = group(one("width", "==", 7))

    for call in (
        lambda: store.query(ask(filters=wanted)),
        lambda: store.get_nodes(filters=wanted),
        lambda: store.count(filters=wanted),
        lambda: store.delete_nodes(filters=wanted),
    ):
        with pytest.raises(ValueError, match="Milvus refuses .*'width'.*unexpected (end|token)"):
            call()


def test_of_a_collection_reopened_filters_find_the_same(tmp_path):
    wanted = group(one("mixed", "in", [1, 2]), one("tags", "contains", "猫"), condition="or")
    for _ in range(2):
        with create_vector_store(MODEL, uri=tmp_path / "again.db") as store:
            if not store.count():
                filter_oracle.fill(store, [*NODES, image("other")])
            filter_oracle.check(store, [*NODES, image("other")], wanted)
