"""Answers larger than a message of Milvus, and pages that lose no row whatever its segments are."""

import random

import numpy as np
import pytest
from by_hand import MODEL, Model, ask
from llama_index.core.schema import ImageNode, TextNode
from llama_index.core.vector_stores import FilterOperator, MetadataFilter, MetadataFilters

from llama_index_clip_ext import EmbeddingSpace, create_vector_store
from llama_index_clip_ext.paging import in_parts

DIM = 8
WIDE = Model(EmbeddingSpace("wide", "", "c" * 64, "d" * 64, dim=DIM))
MIB = 2**20
ALL = MetadataFilters(
    filters=[MetadataFilter(key="doc_id", operator=FilterOperator.NE, value="of no node")]
)


def vectors(count, seed=0):
    found = np.random.default_rng(seed).normal(size=(count, DIM))
    return found / np.linalg.norm(found, axis=1, keepdims=True)


def heavy(count, size, kind=ImageNode):
    """Nodes whose texts are of some size, in bytes, under ids in no order."""
    numbers = random.Random(0).sample(range(10**6), count)
    return [
        kind(
            id_=f"n{number:06}",
            text=f"{number} " + "x" * size,
            embedding=vector.tolist(),
            metadata={"file_path": f"/photos/{number}.png", "even": number % 2},
            **({"image_path": f"/photos/{number}.png"} if kind is ImageNode else {}),
        )
        for number, vector in zip(numbers, vectors(count), strict=True)
    ]


@pytest.fixture(scope="module")
def large_lite(tmp_path_factory):
    """24 MB of rows in a Milvus Lite whose messages hold 4 MB: its own limit, made smaller."""
    server = pytest.importorskip("milvus_lite.adapter.grpc.server", reason="another Milvus Lite")
    path = tmp_path_factory.mktemp("large") / "large.db"
    nodes = heavy(600, 40_000)
    with create_vector_store(WIDE, uri=path) as store:
        store.add(nodes)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(server, "_MAX_MESSAGE_SIZE", 4 * MIB)
        with create_vector_store(WIDE, uri=path) as store:
            yield store, nodes


@pytest.fixture(scope="module")
def large_server(server):
    """69 MB of rows on a server, whose messages hold 64 MiB."""
    nodes = heavy(1_150, 60_000)
    with create_vector_store(WIDE, uri=server, collection_name="large") as store:
        store.add(nodes)
        yield store, nodes


@pytest.fixture(params=["large_lite", "large_server"])
def large(request):
    return request.getfixturevalue(request.param)


def test_all_nodes_and_their_vectors(large):
    store, nodes = large
    read = {node.node_id: node for node in store.get_nodes(filters=ALL)}
    assert len(read) == len(nodes)
    for node in nodes:
        assert read[node.node_id].text == node.text
        np.testing.assert_allclose(read[node.node_id].embedding, node.embedding, atol=1e-6)


def test_nodes_by_ids_and_by_filters(large):
    store, nodes = large
    ids = [node.node_id for node in nodes]
    assert [node.node_id for node in store.get_nodes(ids)] == ids
    even = MetadataFilters(filters=[MetadataFilter(key="even", value=0)])
    expected = sorted(node.node_id for node in nodes if not node.metadata["even"])
    assert sorted(node.node_id for node in store.get_nodes(filters=even)) == expected
    assert sorted(store.get_ids(even)) == expected
    assert sorted(store.get_hashes(ids)) == sorted(ids)


def test_files_of_a_folder(large):
    store, nodes = large
    expected = sorted(node.image_path for node in nodes)
    assert sorted(file.path for file in store.get_files("/photos")) == expected
    ids = [node.node_id for node in nodes]
    assert sorted(file.path for file in store.get_files_by_id(ids)) == expected


@pytest.mark.parametrize("mode", ["default", "mmr"])
def test_many_queries(large, mode):
    store, nodes = large
    asked = vectors(12, seed=1)
    all_vectors = np.array([node.embedding for node in nodes])
    answers = store.query_many(ask(None, top_k=50, mode=mode), asked.tolist())
    for vector, answer in zip(asked, answers, strict=True):
        assert len(answer.ids) == 50
        if mode == "default":
            best = np.argsort(-(all_vectors @ vector))[:50]
            assert len({nodes[at].node_id for at in best} & set(answer.ids)) >= 48
        texts = {node.node_id: node.text for node in nodes}
        assert all(node.text == texts[node.node_id] for node in answer.nodes)


def test_one_query_of_more_than_a_message(large):
    store, nodes = large
    answer = store.query(ask(vectors(1, seed=2)[0].tolist(), top_k=len(nodes)))
    assert sorted(answer.ids) == sorted(node.node_id for node in nodes)
    assert answer.similarities == sorted(answer.similarities, reverse=True)


@pytest.mark.parametrize(("engine", "seed"), [("lite", 0), ("lite", 1), ("lite", 2), ("server", 0)])
def test_no_row_is_lost_or_twice_between_pages(engine, seed, tmp_path, request, monkeypatch):
    """Rows of several segments, some replaced, moved and deleted, are read a few at a time."""
    for name in ("_PAGE", "_LITE_PAGE", "_VECTOR_PAGE"):
        monkeypatch.setattr(f"llama_index_clip_ext.paging.{name}", 7)
    chance = random.Random(seed)
    place = {"uri": tmp_path / "pages.db"}
    if engine == "server":
        place = {"uri": request.getfixturevalue("server"), "collection_name": "pages"}
    alive = {}
    with create_vector_store(MODEL, overwrite=True, **place) as store:
        for turn in range(6):
            for number in chance.sample(range(120), 40):
                kind = chance.choice([ImageNode, TextNode])
                node = kind(id_=f"{number}", text=f"of turn {turn}", embedding=[1.0, 0, 0, 0])
                if kind is ImageNode:
                    node.image_path = f"/p/{number}.png"
                    node.metadata["file_path"] = node.image_path
                alive[node.id_] = node
            changed = [node for node in alive.values() if node.text == f"of turn {turn}"]
            store.add(changed)
            gone = chance.sample(sorted(alive), 5)
            assert store.delete_nodes(gone) == 5
            for id_ in gone:
                del alive[id_]
            if turn in (1, 3):
                store.client.flush(store.collection_name)
            read = store.get_nodes(filters=ALL)
            assert sorted((node.node_id, node.text, type(node)) for node in read) == sorted(
                (node.node_id, node.text, type(node)) for node in alive.values()
            )
            assert sorted(store.get_ids()) == sorted(alive)
            images = sorted(id_ for id_, node in alive.items() if isinstance(node, ImageNode))
            assert sorted(store.get_ids(modality="image")) == images
            assert len(store.get_files("/p")) == len(images)


def test_halves_are_asked_for_until_they_fit():
    from llama_index_clip_ext import AnswerTooLargeError

    asked = []

    def ask_for(part):
        asked.append(len(part))
        if sum(part) > 10:
            raise AnswerTooLargeError("too large")
        return part

    assert list(in_parts(ask_for, [1, 2, 3, 4, 5, 9, 1])) == [1, 2, 3, 4, 5, 9, 1]
    assert asked[0] == 7
    with pytest.raises(AnswerTooLargeError):
        list(in_parts(ask_for, [1, 11]))
