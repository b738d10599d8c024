"""`recall_vs_exact`: what an index finds of the exact answer, on real indexes."""

import numpy as np
import pytest
from by_hand import MODEL, NEAR_X, X, Y, image, text
from llama_index.core.vector_stores import MetadataFilter, MetadataFilters
from milvus_lite.server_manager import server_manager_instance
from pymilvus import DataType, MilvusClient

from llama_index_clip_ext import (
    DimensionMismatchError,
    EmbeddingError,
    EmbeddingSpaceMismatchError,
    create_vector_store,
)
from llama_index_clip_ext.vectors import l2_normalize


def unit(n, dim=4, seed=0):
    return l2_normalize(np.random.default_rng(seed).normal(size=(n, dim)))


@pytest.fixture
def store(tmp_path):
    with create_vector_store(MODEL, uri=tmp_path / "a.db") as vector_store:
        yield vector_store


@pytest.fixture
def filled(store):
    """More images than one batch of ids holds, some ids hostile, and a text that is in the way."""
    ids = [*map(str, range(1200)), 'a"b', "back\\slash\\", "it's\n猫"]
    store.add([image(ids[n], row.tolist(), n=n) for n, row in enumerate(unit(1203))])
    store.add([text("t", X)])
    return store


def test_a_flat_index_finds_all(filled):
    recall = filled.recall_vs_exact()

    assert (recall.mean, recall.min) == (1, 1)
    assert (recall.k, recall.n_queries, recall.n_vectors) == (10, 100, 1203)


def test_queries_may_be_embeddings_of_any_length(filled):
    for queries in (unit(5, seed=1), (3 * unit(5, seed=1)).tolist()):
        recall = filled.recall_vs_exact(queries, k=7)
        assert (recall.mean, recall.n_queries, recall.k) == (1, 5, 7)


def test_a_sample_is_at_most_all_there_is(store):
    store.add([image("a", X), image("b", Y), image("c", NEAR_X)])

    recall = store.recall_vs_exact(k=10)

    assert (recall.mean, recall.n_queries, recall.n_vectors) == (1, 3, 3)


def test_one_modality_or_what_filters_leave(filled):
    few = MetadataFilters(filters=[MetadataFilter(key="n", value=5, operator="<")])

    assert filled.recall_vs_exact([X], filters=few).n_vectors == 5
    assert filled.recall_vs_exact([X], filters=few).mean == 1
    assert filled.recall_vs_exact([X], modality="text").n_vectors == 1


def test_texts_need_the_model_of_the_store(clip, tmp_path, filled):
    with create_vector_store(clip, uri=tmp_path / "clip.db") as store:
        store.add([image(str(n), row.tolist()) for n, row in enumerate(unit(30, dim=clip.dim))])
        recall = store.recall_vs_exact(["a red thing", "soup"], k=3, embed_model=clip)
        assert (recall.mean, recall.n_queries) == (1, 2)
        with pytest.raises(TypeError, match="embed_model is needed"):
            store.recall_vs_exact(["a red thing"])
        with pytest.raises(TypeError, match="queries is one str"):
            store.recall_vs_exact("a red thing", embed_model=clip)
    with pytest.raises((DimensionMismatchError, EmbeddingSpaceMismatchError)):
        filled.recall_vs_exact(["a red thing"], embed_model=clip)


def test_bad_input(store, filled):
    with pytest.raises(ValueError, match="queries is empty"):
        filled.recall_vs_exact([])
    with pytest.raises(ValueError, match="similarity_top_k is 0"):
        filled.recall_vs_exact(k=0)
    with pytest.raises(ValueError, match="n_sample is 0"):
        filled.recall_vs_exact(n_sample=0)
    with pytest.raises(DimensionMismatchError):
        filled.recall_vs_exact([[1.0, 0.0]])
    with pytest.raises(EmbeddingError):
        filled.recall_vs_exact([[0.0] * 4])
    store.clear()
    with pytest.raises(ValueError, match="holds no image to find"):
        store.recall_vs_exact()


async def test_async(filled):
    assert await filled.arecall_vs_exact(k=5) == filled.recall_vs_exact(k=5)


def test_an_index_that_loses_hits_is_caught(tmp_path):
    """A collection of another program's, with an index that Milvus Lite searches coarsely."""
    rows = unit(2000, dim=16, seed=3)
    client = MilvusClient(str(tmp_path / "other.db"))
    schema = client.create_schema(auto_id=False, enable_dynamic_field=True)
    schema.add_field("id", DataType.VARCHAR, max_length=64, is_primary=True)
    schema.add_field("embedding", DataType.FLOAT_VECTOR, dim=16)
    client.create_collection("other", schema=schema)
    client.insert("other", [{"id": str(n), "embedding": row} for n, row in enumerate(rows)])
    index = client.prepare_index_params()
    index.add_index("embedding", "IVF_FLAT", "embedding", metric_type="IP", params={"nlist": 128})
    client.create_index("other", index)
    client.close()
    # Closed for good, the file is written out and its index built; until then search is exact.
    server_manager_instance.release_server(str(tmp_path / "other.db"))

    with create_vector_store(
        MODEL.but(dim=16), uri=tmp_path / "other.db", collection_name="other"
    ) as store:
        of_others = store.recall_vs_exact(unit(50, dim=16, seed=4))
        of_itself = store.recall_vs_exact(k=1)
    assert of_others.n_vectors == 2000
    assert of_others.min < of_others.mean < 0.97
    # Why a sample of stored vectors says little: each finds itself.
    assert of_itself.mean == 1
