"""The store on a real Milvus server: where its rules are stricter than those of Milvus Lite."""

from functools import partial
from itertools import islice

import filter_oracle
import numpy as np
import pytest
from by_hand import MODEL, NEAR_X, X, Y, ask, image, text
from hypothesis import assume, given, settings
from llama_index.core.schema import ImageNode
from llama_index.core.vector_stores.types import (
    FilterCondition,
    FilterOperator,
    MetadataFilter,
    MetadataFilters,
    VectorStoreQueryMode,
)
from PIL import Image

from llama_index_clip_ext import (
    CollectionNotFoundError,
    DimensionMismatchError,
    EmbeddingSpaceMismatchError,
    FilterError,
    RowTooLargeError,
    StoreError,
    create_vector_store,
    ingest_images,
)
from llama_index_clip_ext.collection import read_passport
from llama_index_clip_ext.dual_encoder import ImageEmbeddings
from llama_index_clip_ext.vectors import l2_normalize

NODES = filter_oracle.corpus()
ROWS = len(NODES)


@pytest.fixture(scope="module", params=["growing", "sealed"])
def shared(request, server):
    """A collection whose segments all grow, or one that has sealed and indexed ones, too."""
    name = f"shared_{request.param}"
    with create_vector_store(MODEL, uri=server, collection_name=name) as store:
        if request.param == "sealed":
            # As many as an index is built for, in both partitions; each test begins by clearing.
            for make in (image, text):
                store.add([make(f"{make.__name__} {number}") for number in range(1_200)])
            store.flush()
            assert store.wait_for_index(timeout=60)
            assert sealed_rows(store) == 2_400
        yield store


def sealed_rows(store):
    segments = store.client.list_loaded_segments(store.collection_name)
    return sum(one.num_rows for one in segments if one.state_name == "Sealed")


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


def found_by(store, embedding, *triples):
    return store.query(ask(embedding.tolist(), filters=where(*triples))).ids


def test_presets(shared):
    description = shared.client.describe_collection(shared.collection_name)
    index = shared.client.describe_index(shared.collection_name, "embedding")

    assert index["index_type"] == "HNSW"
    assert index["metric_type"] == "COSINE"
    assert (int(index["M"]), int(index["efConstruction"])) == (32, 360)
    assert description["enable_dynamic_field"] is True
    assert description["consistency_level"] == 1  # Session.
    assert {"images", "texts"} <= set(shared.client.list_partitions(shared.collection_name))


def test_the_passport_is_kept_by_the_server(shared, server):
    shared.clear()
    shared.add([image("a"), text("b")])

    passport, rows = read_passport(uri=server, collection_name=shared.collection_name)

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


@pytest.fixture(scope="module", params=["half sealed", "sealed"])
def filtered(request, server):
    name = f"filtered_{request.param.replace(' ', '_')}"
    with create_vector_store(MODEL, uri=server, collection_name=name) as store:
        filter_oracle.fill(store, NODES)
        if request.param == "sealed":
            store.flush()
        assert store.wait_for_index(timeout=60)
        assert sealed_rows(store) == (ROWS if request.param == "sealed" else ROWS // 2)
        yield store


@pytest.mark.parametrize("wanted", filter_oracle.KNOWN)
def test_known_filters(filtered, wanted):
    filter_oracle.check(filtered, NODES, wanted)


@settings(max_examples=500, **filter_oracle.SAME_EACH_TIME)
@given(filter_oracle.filters(with_text_match=False))
def test_any_filter_finds_what_llama_index_matches(filtered, wanted):
    filter_oracle.check(filtered, NODES, wanted)


@settings(max_examples=10, **filter_oracle.SAME_EACH_TIME)
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

    with create_vector_store(MODEL, uri=server, collection_name=shared.collection_name) as again:
        assert again.passport == shared.passport
        assert again.query(ask()).ids == ["a"]
    assert shared.count() == 1  # One client closed, the other works.


def test_another_model_is_refused(shared, server):
    other = MODEL.but(model="model-b", weights="c" * 64)
    with pytest.raises(EmbeddingSpaceMismatchError, match="'model-a' .* 'model-b'"):
        create_vector_store(other, uri=server, collection_name=shared.collection_name)
    with pytest.raises(DimensionMismatchError, match="4-dim .* makes 8"):
        create_vector_store(MODEL.but(dim=8), uri=server, collection_name=shared.collection_name)


@pytest.mark.parametrize("is_sealed", [False, True])
def test_hnsw_finds_nearly_all_of_the_exact_answer(server, is_sealed):
    rng = np.random.default_rng(0)
    # Images lie around one direction, texts around another: the modality gap.
    images, texts = (
        l2_normalize(rng.normal(size=(n, 64)) + 3 * rng.normal(size=64)) for n in (3000, 50)
    )
    with create_vector_store(
        MODEL.but(dim=64), uri=server, collection_name="recall", overwrite=True
    ) as store:
        store.add([image(f'"{n}"', row.tolist(), n=n) for n, row in enumerate(images)])
        if is_sealed:
            store.flush()
            assert store.wait_for_index(timeout=60)
        assert sealed_rows(store) == is_sealed * 3000
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
        MODEL,
        uri=server,
        collection_name=store.collection_name,
        index_type="FLAT",
        consistency_level="Strong",
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


@pytest.fixture(scope="module")
def own(server):
    with create_vector_store(MODEL, uri=server, collection_name="own", overwrite=True) as store:
        yield store


def seal(store):
    store.flush()
    assert store.wait_for_index(timeout=60)


def test_rows_that_are_sealed_are_read_replaced_moved_and_deleted(own):
    # Not alike: HNSW does not lead out of a thousand rows that are the same.
    near_x = l2_normalize(np.random.default_rng(0).normal(NEAR_X, 0.05, size=(1_500, 4)))
    own.add([image(f"row {n}", row.tolist(), n=n) for n, row in enumerate(near_x)])
    own.add([image("a", X, colour="red"), image("b", Y), image('"quoted"\n', [0, 0, 1.0, 0])])
    own.add([text("t", X), text("u", Y)])
    seal(own)
    assert sealed_rows(own) == own.count() == 1_505

    assert own.query(ask(X, 1)).ids[0] in ("a", "t")
    assert own.query(ask(X, 1), modality="image").ids == ["a"]
    assert own.query(ask(X, 9), modality="text").ids == ["t", "u"]
    assert len(own.query(ask(NEAR_X, 10_000)).ids) == 1_505
    assert own.get_nodes(['"quoted"\n'])[0].embedding == [0, 0, 1, 0]
    for number in range(0, 1_500, 100):
        assert found(own, ("n", "==", number)) == [f"row {number}"]
    # A sealed row is replaced whole, moves to the texts, and is deleted by each way.
    own.add([image("a", Y, size=2)])
    assert found(own, ("colour", "==", "red")) == []
    assert own.query(ask(X, filters=where(("size", "==", 2)))).similarities == pytest.approx([0])
    assert own.query(ask(X, 1), modality="image").ids != ["a"]
    own.add([text("b", X)])
    assert own.query(ask(Y, 9), modality="image").ids[0] == "a"
    assert "b" not in own.query(ask(Y, 10_000), modality="image").ids
    assert own.delete_nodes(filters=where(("n", "<", 1_000))) == 1_000
    assert own.delete_nodes(['"quoted"\n', "missing"]) == 1
    assert own.delete("u") == 1
    assert (own.count("image"), own.count("text")) == (501, 2)
    assert len(own.query(ask(X, 10_000)).ids) == 503
    seal(own)
    assert (own.count("image"), own.count("text")) == (501, 2)
    assert len(own.query(ask(X, 10_000)).ids) == 503
    own.clear()
    assert own.count() == 0
    assert own.query(ask(X, 10_000)).ids == []


class RandomImages:
    """In place of a model: every image has a random embedding."""

    space = MODEL.but(dim=512).space
    image_formats = ()
    allow_urls = False

    def __init__(self):
        self.embeddings = l2_normalize(np.random.default_rng(0).normal(size=(6_000, 512)))

    def stream_images(self, nodes, *, on_error):
        numbered = iter(enumerate(nodes))
        while batch := [number for number, _ in islice(numbered, 64)]:
            yield ImageEmbeddings(self.embeddings[batch], list(batch), [])


@pytest.mark.parametrize("from_another_client", [False, pytest.param(True, marks=pytest.mark.long)])
def test_what_was_ingested_is_found_at_once(server, tmp_path, caplog, from_another_client):
    """A server would search these rows by an index that misses most of them, for hours."""
    picture = tmp_path / "red.png"
    Image.new("RGB", (8, 8), "red").save(picture)
    model = RandomImages()
    nodes = [
        ImageNode(id_=f"{n}", image_path=str(picture), metadata={"n": n}) for n in range(6_000)
    ]
    options = {"uri": server, "collection_name": "fresh", "overwrite": True}
    ingest = partial(ingest_images, embed_model=model, batch_size=1_000)
    with create_vector_store(model, **options) as store:
        if from_another_client:
            # Neither of the two writes so many by itself.
            with create_vector_store(model, uri=server, collection_name="fresh") as other:
                ingest(nodes[3_000:], vector_store=other)
                model.embeddings = np.roll(model.embeddings, 3_000, axis=0)
                ingest(nodes[:3_000], vector_store=store)
                model.embeddings = np.roll(model.embeddings, 3_000, axis=0)
        else:
            report = ingest(nodes, vector_store=store)
            assert report.added == 6_000, report

        chance = np.random.default_rng(1)
        for n in chance.choice(6_000, 100, replace=False):
            assert found_by(store, model.embeddings[0], ("n", "==", int(n))) == [str(n)]
        queries = l2_normalize(chance.normal(size=(50, 512)))
        assert len(store.query(ask(queries[0].tolist(), 1_000)).ids) == 1_000
        recall = store.recall_vs_exact(queries)
    assert recall.mean >= 0.95, str(recall)
    assert "has not indexed" not in caplog.text


def test_rows_that_are_not_indexed_yet_are_said_and_still_found_by_what_few_match(server, caplog):
    rows = l2_normalize(np.random.default_rng(0).normal(size=(6_000, 16)))
    model = MODEL.but(dim=16)
    options = {"uri": server, "collection_name": "unwaited", "overwrite": True}
    with create_vector_store(model, **options) as store:
        store.add([image(f"{n}", row.tolist(), n=n) for n, row in enumerate(rows)])
        assert "the server is indexing" in caplog.text
        for n in range(0, 6_000, 600):
            assert found_by(store, rows[0], ("n", "==", n)) == [f"{n}"]
        assert store.wait_for_index(timeout=60)
        assert sealed_rows(store) == 6_000


def test_a_small_segment_that_never_gets_an_index_is_searched_exactly(server):
    """A server leaves it to an index for the time being, for ever."""
    rows = l2_normalize(np.random.default_rng(0).normal(size=(1_000, 16)))
    options = {"uri": server, "collection_name": "small", "overwrite": True}
    with create_vector_store(MODEL.but(dim=16), **options) as store:
        store.add(
            [image(f"{n}", row.tolist(), n=n) for n, row in enumerate(rows)], force_flush=True
        )
        assert store.wait_for_index(timeout=60)
        assert sealed_rows(store) == 1_000
        for n in range(0, 1_000, 10):
            assert found_by(store, rows[0], ("n", "==", n)) == [f"{n}"]
        assert len(store.query(ask(rows[0].tolist(), 1_000)).ids) == 1_000
        assert store.recall_vs_exact(rows[:50]).mean == 1


def test_a_read_after_a_delete_waits_for_it_and_no_other_read_does(own):
    own.clear()
    own.add([image(f"{number}") for number in range(20)])
    levels = []
    call = own._connection.call

    def noted(method, *args, **kwargs):
        if "consistency_level" in kwargs:
            levels.append(kwargs["consistency_level"])
        return call(method, *args, **kwargs)

    own._connection.call = noted
    try:
        for number in range(10):
            own.delete_nodes([f"{number}"])
        levels.clear()
        assert own.count() == 10
        assert sorted(own.query(ask(top_k=20)).ids) == sorted(map(str, range(10, 20)))
        assert own.count() == 10
    finally:
        own._connection.call = call
    assert len(levels) >= 3
    assert levels[0] == "Strong"
    assert set(levels[1:]) == {"Session"}


def test_a_collection_that_was_dropped_elsewhere_says_so(server):
    options = {"uri": server, "collection_name": "dropped"}
    with create_vector_store(MODEL, **options) as store:
        store.add([image("a")])
        store.client.drop_collection("dropped")
        for call in (
            lambda: store.query(ask()),
            lambda: store.count(),
            lambda: store.get_nodes(["a"]),
            lambda: store.add([image("a")]),
            lambda: store.delete("a"),
            lambda: store.flush(),
            lambda: store.clear(),
        ):
            with pytest.raises(CollectionNotFoundError, match="'dropped'.*does not exist"):
                call()
