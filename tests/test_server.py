"""The store on a real Milvus server: where its rules are stricter than those of Milvus Lite."""

import filter_oracle
import numpy as np
import pytest
from by_hand import MODEL, NEAR_X, X, Y, ask, image, text
from hypothesis import assume, given, settings
from llama_index.core.vector_stores.types import (
    FilterCondition,
    FilterOperator,
    MetadataFilter,
    MetadataFilters,
    VectorStoreQueryMode,
)
from server_process import ServerProcess

from llama_index_clip_ext import (
    DimensionMismatchError,
    EmbeddingSpaceMismatchError,
    FilterError,
    RowTooLargeError,
    StoreError,
    create_vector_store,
)
from llama_index_clip_ext.collection import read_passport
from llama_index_clip_ext.vectors import l2_normalize

NODES = filter_oracle.corpus()


@pytest.fixture(scope="session")
def server(tmp_path_factory):
    """The address of a server that runs in a folder and a network of its own."""
    process = ServerProcess(tmp_path_factory.mktemp("milvus"))
    process.start()
    yield process.address
    process.kill()


@pytest.fixture(scope="module")
def shared(server):
    with create_vector_store(MODEL, uri=server, collection_name="shared") as store:
        yield store


@pytest.fixture
def store(shared):
    shared.clear()
    return shared


def where(*triples, condition=FilterCondition.AND):
    return MetadataFilters(
        filters=[
            MetadataFilter(key=key, operator=FilterOperator(operator), value=value)
            for key, operator, value in triples
        ],
        condition=condition,
    )


def found(store, *triples, condition=FilterCondition.AND):
    return sorted(store.query(ask(filters=where(*triples, condition=condition))).ids)


def test_presets(shared):
    description = shared.client.describe_collection("shared")
    index = shared.client.describe_index("shared", "embedding")

    assert index["index_type"] == "HNSW"
    assert index["metric_type"] == "COSINE"
    assert (int(index["M"]), int(index["efConstruction"])) == (32, 360)
    assert description["enable_dynamic_field"] is True
    assert description["consistency_level"] == 1  # Session.
    assert {"images", "texts"} <= set(shared.client.list_partitions("shared"))


def test_the_passport_is_kept_by_the_server(shared, server):
    shared.clear()
    shared.add([image("a"), text("b")])

    passport, rows = read_passport(uri=server, collection_name="shared")

    assert passport == shared.passport
    assert passport.space == MODEL.space
    assert passport.metric == "COSINE"
    assert rows == 2


def test_scores_are_raw_cosines_best_first(store):
    store.add([image("c", Y), image("a", X), image("b", NEAR_X)])

    result = store.query(ask([5.0, 0.0, 0.0, 0.0]))

    assert result.ids == ["a", "b", "c"]
    assert result.similarities == pytest.approx([1.0, 0.6, 0.0], abs=1e-6)
    assert result.nodes[0].image_path == "/pictures/a.png"
    assert [node.embedding for node in result.nodes] == [None] * 3


def test_adding_again_replaces_the_whole_row(store):
    store.add([image("a", X, colour="red", file_name="a.png")])
    store.add([image("a", Y, size=2)])

    assert store.count() == 1
    assert store.query(ask(Y)).similarities == pytest.approx([1.0])
    assert found(store, ("colour", "==", "red")) == []
    assert found(store, ("file_name", "==", "a.png")) == []
    assert store.get_nodes(["a"])[0].metadata == {"size": 2}


def test_of_equal_ids_in_one_call_the_last_counts(store):
    store.add([image("a", X), image("a", Y)])

    assert store.count() == 1
    assert store.get_nodes(["a"])[0].embedding == Y


def test_images_and_texts_are_kept_apart(store):
    store.add([image("picture", NEAR_X), text("words", X)])

    assert store.query(ask(X), modality="image").ids == ["picture"]
    assert store.query(ask(X), modality="text").ids == ["words"]
    assert store.query(ask(X)).ids == ["words", "picture"]
    assert (store.count("image"), store.count("text"), store.count()) == (1, 1, 2)


def test_a_node_that_becomes_a_text_leaves_the_images(store):
    store.add([image("a"), image("b")])
    store.add([text("a")])

    assert store.query(ask(), modality="image").ids == ["b"]
    assert (store.count("image"), store.count("text"), store.count()) == (1, 1, 2)
    store.add([image("a")])
    assert (store.count("image"), store.count("text"), store.count()) == (2, 0, 2)


def test_filters(store):
    store.add(
        [
            image("cat", n=1, tags=["猫"], width=100, file_name=r"C:\new\it's.png"),
            image("dog", n=2.5, tags=["狗", "猫"], **{"拍-摄": '"北京"\n'}),
            image("none", n=None),
        ]
    )

    assert found(store, ("file_name", "==", r"C:\new\it's.png")) == ["cat"]
    assert found(store, ("拍-摄", "==", '"北京"\n')) == ["dog"]
    assert found(store, ("拍-摄", "in", ['"北京"\n', "🐈"])) == ["dog"]
    assert found(store, ("n", ">", 1)) == ["dog"]
    assert found(store, ("n", "!=", 1)) == ["dog", "none"]
    assert found(store, ("n", "nin", [1])) == ["dog", "none"]
    assert found(store, ("n", "in", [])) == []
    assert found(store, ("width", "<", 150)) == ["cat"]
    assert found(store, ("width", "!=", 100)) == ["dog", "none"]
    assert found(store, ("tags", "contains", "猫")) == ["cat", "dog"]
    assert found(store, ("tags", "all", ["猫", "狗"])) == ["dog"]
    assert found(store, ("n", "==", 1), condition=FilterCondition.NOT) == ["dog", "none"]


@pytest.fixture(scope="module")
def filtered(server):
    with create_vector_store(MODEL, uri=server, collection_name="filtered") as store:
        filter_oracle.fill(store, NODES)
        yield store


@pytest.mark.parametrize("wanted", filter_oracle.KNOWN)
def test_known_filters(filtered, wanted):
    filter_oracle.check(filtered, NODES, wanted)


@settings(max_examples=1000, **filter_oracle.SAME_EACH_TIME)
@given(filter_oracle.filters(with_text_match=False))
def test_any_filter_finds_what_llama_index_matches(filtered, wanted):
    filter_oracle.check(filtered, NODES, wanted)


@settings(max_examples=20, **filter_oracle.SAME_EACH_TIME)
@given(filter_oracle.filters(with_text_match=False))
def test_deleting_by_any_filter_deletes_what_it_matches(filtered, wanted):
    assume(not filter_oracle.says_nothing(wanted))
    filter_oracle.check_deleting(filtered, NODES, wanted)


def test_parts_of_texts_are_refused_before_the_call(filtered):
    for key in ("file_name", "text_only"):
        with pytest.raises(FilterError, match="before 2.4, Milvus matches the beginning"):
            filtered.count(filters=filter_oracle.group(filter_oracle.one(key, "text_match", "a")))
    # Of every text, "" is a part.
    every = filter_oracle.group(filter_oracle.one("text_only", "text_match", ""))
    filter_oracle.check(filtered, NODES, every)


def test_what_is_too_deep_for_a_server_says_so(filtered):
    with pytest.raises(FilterError, match="Milvus refuses .*unsupported expr proto node"):
        filtered.query(ask(filters=filter_oracle.deep(24, 40)))


def test_what_the_server_refuses_after_all_names_the_filter(filtered, monkeypatch):
    monkeypatch.setattr(filtered, "_expression", lambda *_: "width ==")

    with pytest.raises(FilterError, match="Milvus refuses .*'width'.*cannot parse"):
        filtered.count(filters=filter_oracle.group(filter_oracle.one("width", "==", 7)))


@pytest.mark.parametrize(
    "value", ['"] or id in ["b', "two\nlines", "tab\t\r", "back\\", "🐈‍⬛ 猫", "it's", "%"]
)
def test_hostile_ids(store, value):
    store.add([image(value), image("b")])

    assert [node.node_id for node in store.get_nodes([value])] == [value]
    assert store.query(ask(node_ids=[value])).ids == [value]
    store.delete(value)
    assert store.query(ask()).ids == ["b"]


def test_nodes_come_in_the_order_asked(store):
    store.add([image("a", X), image("b", NEAR_X), text("c", Y)])

    assert [node.node_id for node in store.get_nodes(["c", "gone", "a"])] == ["c", "a"]
    assert store.get_nodes(["c"])[0].embedding == Y
    assert store.get_nodes([]) == []


def test_deleting(store):
    store.add([image(name, colour=colour) for name, colour in zip("abcd", "rrgb", strict=True)])

    store.delete("None")
    store.delete_nodes(["a", "missing"])
    store.delete_nodes(filters=where(("colour", "==", "g")))
    assert sorted(store.query(ask()).ids) == ["b", "d"]
    store.clear()
    assert store.count() == 0


def test_what_the_server_would_refuse_is_refused_before_the_call(store):
    with pytest.raises(RowTooLargeError, match="node 'big'"):
        store.add([image("good"), image("big", note="猫" * 30_000)])
    assert store.count() == 0

    # Just below the limit, in what the server counts: bytes.
    store.add([image("fits", note="猫" * 20_000), text("caption")])
    assert store.get_nodes(["fits"])[0].metadata["note"] == "猫" * 20_000


def test_many_hits_and_the_largest_top_k(store):
    store.add([image(f"{number}", X) for number in range(600)])

    assert len(store.query(ask(X, top_k=500)).ids) == 500
    assert len(store.query(ask(X, top_k=16_384)).ids) == 600
    assert len(store.get_nodes(filters=MetadataFilters(filters=[]))) == 600


def test_mmr(store):
    twin = [0.8, 0.0, 0.6, 0.0]
    store.add([image("a", twin), image("b", twin), image("c", NEAR_X)])

    result = store.query(ask(X, top_k=2, mode=VectorStoreQueryMode.MMR), mmr_threshold=0.5)

    assert result.ids[1] == "c"
    assert result.similarities == pytest.approx([0.8, 0.6], abs=1e-6)


async def test_async(store):
    await store.async_add([image("a")])

    assert (await store.aquery(ask())).ids == ["a"]


def test_reopening(shared, server):
    shared.clear()
    shared.add([image("a")])

    with create_vector_store(MODEL, uri=server, collection_name="shared") as again:
        assert again.passport == shared.passport
        assert again.query(ask()).ids == ["a"]
    assert shared.count() == 1  # One client closed, the other works.


@pytest.mark.usefixtures("shared")
def test_another_model_is_refused(server):
    other = MODEL.but(model="model-b", weights="c" * 64)
    with pytest.raises(EmbeddingSpaceMismatchError, match="'model-a' .* 'model-b'"):
        create_vector_store(other, uri=server, collection_name="shared")
    with pytest.raises(DimensionMismatchError, match="4-dim .* makes 8"):
        create_vector_store(MODEL.but(dim=8), uri=server, collection_name="shared")


def test_hnsw_finds_nearly_all_of_the_exact_answer(server):
    rng = np.random.default_rng(0)
    # Images lie around one direction, texts around another: the modality gap.
    images, texts = (
        l2_normalize(rng.normal(size=(n, 64)) + 3 * rng.normal(size=64)) for n in (3000, 50)
    )
    with create_vector_store(
        MODEL.but(dim=64), uri=server, collection_name="recall", overwrite=True
    ) as store:
        store.add([image(f'"{n}"', row.tolist(), n=n) for n, row in enumerate(images)])
        store.client.flush("recall")
        of_texts = store.recall_vs_exact(texts)
        of_images = store.recall_vs_exact(n_sample=50)
        few = store.recall_vs_exact(texts, k=5, filters=where(("n", "<", 20)))

    assert (of_texts.n_queries, of_texts.n_vectors) == (50, 3000)
    assert of_texts.mean >= 0.95, str(of_texts)
    assert of_images.mean >= 0.95, str(of_images)
    assert (few.n_vectors, few.k) == (20, 5)
    assert few.mean >= 0.95, str(few)


@pytest.mark.parametrize("index_type", ["FLAT", "AUTOINDEX"])
def test_another_index_is_kept_when_reopened(server, index_type):
    name = f"with_{index_type}"
    with create_vector_store(
        MODEL, uri=server, collection_name=name, index_type=index_type
    ) as store:
        store.add([image("a")])
        assert store.query(ask()).ids == ["a"]
    with create_vector_store(MODEL, uri=server, collection_name=name) as store:
        assert store.client.describe_index(name, "embedding")["index_type"] == index_type
        assert store.query(ask(top_k=500)).ids == ["a"]


def test_an_hnsw_index_opened_as_another_still_gets_its_ef(store, server):
    store.add([image(str(number)) for number in range(600)])

    with create_vector_store(
        MODEL, uri=server, collection_name="shared", index_type="FLAT", consistency_level="Strong"
    ) as again:
        assert len(again.query(ask(top_k=500)).ids) == 500


def test_strong_reads_see_what_others_wrote_though_the_collection_was_made_otherwise(server):
    options = {"uri": server, "collection_name": "strong"}
    with (
        create_vector_store(MODEL, **options) as writer,
        create_vector_store(MODEL, **options, consistency_level="Strong") as reader,
    ):
        for number in range(5):
            writer.add([image(str(number))])
            assert len(reader.query(ask()).ids) == number + 1
            assert reader.count() == number + 1
            assert len(reader.get_ids()) == number + 1


def test_overwrite(server):
    for _ in range(2):
        with create_vector_store(
            MODEL, uri=server, collection_name="again", overwrite=True
        ) as store:
            store.add([image("a")])
            assert store.count() == 1


def test_a_collection_that_was_made_anew_for_another_model_is_noticed(server):
    """By who fills it; on a server nobody tells the others."""
    options = {"uri": server, "collection_name": "other_model"}
    with create_vector_store(MODEL, **options) as old:
        old.reload_passport()
        other = MODEL.but(model="model-b", weights="c" * 64)
        create_vector_store(other, overwrite=True, **options).close()
        with pytest.raises(EmbeddingSpaceMismatchError, match="model-b"):
            old.reload_passport()


def test_a_server_without_bm25_is_refused_before_anything_is_made_or_dropped(server):
    options = {"uri": server, "collection_name": "no_bm25"}
    with pytest.raises(StoreError, match=r"needs Milvus 2\.5 or newer, this server is .*2\.3\.5"):
        create_vector_store(MODEL, full_text="english", **options)

    with create_vector_store(MODEL, **options) as store:
        assert store.full_text is None
        store.add([image("a")])
        with pytest.raises(ValueError, match="no full text"):
            store.query(ask(query_str="red", mode=VectorStoreQueryMode.TEXT_SEARCH))
    with pytest.raises(StoreError, match="needs Milvus"):
        create_vector_store(MODEL, full_text="english", overwrite=True, **options)
    with create_vector_store(MODEL, **options) as store:
        assert store.query(ask()).ids == ["a"]
