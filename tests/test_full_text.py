"""Captions searched by their words, and fused with vectors, on real Milvus Lite."""

import asyncio
import importlib.util
import json
import math
import sys
from collections import Counter

import pytest
from by_hand import MODEL, NEAR_X, X, Y, Z, ask
from llama_index.core import VectorStoreIndex
from llama_index.core.embeddings import MockEmbedding
from llama_index.core.schema import ImageNode, MetadataMode, TextNode
from llama_index.core.vector_stores.types import (
    MetadataFilter,
    MetadataFilters,
    VectorStoreQueryMode,
)
from pymilvus import MilvusClient
from pymilvus.exceptions import MilvusException

from llama_index_clip_ext import (
    StoreError,
    create_retriever,
    create_vector_store,
    full_text,
    ingest_images,
)
from llama_index_clip_ext.collection import read_passport
from llama_index_clip_ext.full_text import SPARSE_FIELD
from llama_index_clip_ext.passport import PROPERTY
from llama_index_clip_ext.rows import add_fields

WORDS = VectorStoreQueryMode.TEXT_SEARCH
BOTH = VectorStoreQueryMode.HYBRID

needs_jieba = pytest.mark.skipif(
    importlib.util.find_spec("jieba") is None, reason="Chinese on Milvus Lite: pip install jieba"
)


def picture(node_id, caption, embedding=X, **metadata):
    return ImageNode(
        id_=node_id,
        text=caption,
        image_path=f"/pictures/{node_id}.png",
        embedding=embedding,
        metadata=metadata,
    )


def words(text, top_k=10, **kwargs):
    return ask(None, top_k, query_str=text, mode=WORDS, **kwargs)


def both(embedding, text, top_k=10, **kwargs):
    return ask(embedding, top_k, query_str=text, mode=BOTH, **kwargs)


def wide(limit):
    return MetadataFilters(filters=[MetadataFilter(key="width", value=limit, operator=">=")])


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    folder = tmp_path_factory.mktemp("words")
    with create_vector_store(MODEL, uri=folder / "shared.db", full_text="english") as store:
        yield store


@pytest.fixture
def store(shared):
    shared.clear()
    return shared


@pytest.fixture
def path(tmp_path):
    return tmp_path / "own.db"


# By words.


def test_the_score_is_bm25_and_positive(store):
    store.add([picture("a", "a red circle"), picture("b", "the blue circle"), picture("c", "")])

    result = store.query(words("red circle"))

    # k1 1.5 and b 0.75; "a" and "the" are stop words: both hits are as long as the average.
    red = math.log((3 - 1 + 0.5) / (1 + 0.5) + 1) * 2.5 / (1 + 1.5)
    circle = math.log((3 - 2 + 0.5) / (2 + 0.5) + 1) * 2.5 / (1 + 1.5)
    assert result.ids == ["a", "b"]
    assert result.similarities == pytest.approx([red + circle, circle], rel=1e-5)
    assert [type(node) for node in result.nodes] == [ImageNode, ImageNode]
    assert [node.text for node in result.nodes] == ["a red circle", "the blue circle"]
    assert result.nodes[0].embedding is None
    assert result.nodes[0].metadata == {}


def test_what_has_no_word_in_common_is_no_hit(store):
    store.add([picture("a", "a red circle"), picture("b", "a blue square")])

    assert store.query(words("circle")).ids == ["a"]
    assert store.query(words("triangle")).ids == []


def test_sparse_is_another_name_of_the_mode(store):
    store.add([picture("a", "a red circle"), picture("b", "a blue square")])

    result = store.query(ask(None, query_str="square", mode=VectorStoreQueryMode.SPARSE))

    assert result.ids == ["b"]


def test_filters_ids_and_modalities_narrow_it(store):
    caption = "a red circle"
    store.add([picture(name, caption, width=width) for name, width in (("a", 10), ("b", 300))])
    store.add([TextNode(id_="t", text=caption, embedding=X)])

    assert set(store.query(words("circle")).ids) == {"a", "b", "t"}
    assert set(store.query(words("circle"), modality="image").ids) == {"a", "b"}
    assert store.query(words("circle"), modality="text").ids == ["t"]
    assert store.query(words("circle", filters=wide(100)), modality="image").ids == ["b"]
    assert store.query(words("circle", node_ids=["a"])).ids == ["a"]
    assert len(store.query(words("circle", 1)).ids) == 1


def test_a_replaced_and_a_deleted_caption_are_found_no_more(store):
    store.add([picture("a", "a red circle"), picture("b", "a red square")])

    store.add([picture("a", "a green star")])
    store.delete_nodes(["b"])

    assert store.query(words("red circle square")).ids == []
    assert store.query(words("star")).ids == ["a"]


def test_a_node_that_becomes_a_text_is_found_once(store):
    store.add([picture("a", "a red circle")])
    store.add([TextNode(id_="a", text="a red circle", embedding=X)])

    assert store.query(words("circle")).ids == ["a"]
    assert store.query(words("circle"), modality="image").ids == []


@pytest.mark.parametrize("text", [" ", "...", "\"'", "🔴", "_", "*:*", "\x00", "\ud800", "a the"])
def test_a_query_without_a_word_finds_nothing(store, text):
    store.add([picture("a", 'a red circle ... 🔴 _ "quoted"')])

    assert store.query(words(text)).ids == []


@pytest.mark.parametrize(
    "text",
    [
        'text:"red" AND (square OR *)',
        'red") or id != ("',
        "-red ~5 ^2 +[a TO b]",
        "{red} && $meta['x'] \\ %_",
        "red\n\tsquare\x00",
        "RED",
        "red " * 20_000,
        "red\ud800 square",
        "red🔴square 红色",
    ],
)
def test_operators_and_hostile_text_are_words(store, text):
    store.add([picture("a", "a red circle"), picture("b", "a blue star")])

    assert store.query(words(text)).ids == ["a"]


@pytest.mark.parametrize("text", [None, ""])
def test_a_query_by_words_needs_a_text(store, text):
    with pytest.raises(ValueError, match="no query_str, which mode 'text_search' needs"):
        store.query(words(text))


def test_a_caption_as_large_as_milvus_stores_is_found_by_its_last_word(store):
    caption = "red " * 16_000 + "needle"
    store.add([picture("big", caption), picture("small", "a red circle")])

    result = store.query(words("needle"))

    assert result.ids == ["big"]
    assert result.nodes[0].text == caption


# By both.


def test_both_are_fused_by_rank_and_keep_their_scores(store):
    store.add(
        [
            picture("near", "a blue star"),
            picture("both", "a red circle", NEAR_X),
            picture("far", "a red ring", Y),
        ]
    )

    result = store.query(both(X, "red circle"))

    # By vector: near, both, far. By words: both, far.
    scores = {"near": 1 / 61, "both": 1 / 62 + 1 / 61, "far": 1 / 63 + 1 / 62}
    assert result.ids == ["both", "far", "near"]
    assert result.similarities == pytest.approx([scores[name] for name in result.ids])
    hits = {node.node_id: node for node in result.nodes}
    assert hits["both"].metadata["retrieval_similarity"] == pytest.approx(0.6, abs=1e-6)
    assert hits["near"].metadata == {"retrieval_similarity": pytest.approx(1.0)}
    by_words = store.query(words("red circle"))
    scores = [hits[name].metadata["retrieval_bm25"] for name in ("both", "far")]
    assert scores == by_words.similarities
    for node in result.nodes:
        assert node.get_content(MetadataMode.LLM) == node.text
        assert node.get_content(MetadataMode.EMBED) == node.text


@pytest.mark.parametrize(
    ("alpha", "expected"),
    [(1, ["near", "both", "far"]), (0.9, ["near", "both", "far"]), (0, ["far", "both"])],
)
def test_alpha_weighs_vectors_against_words(store, alpha, expected):
    store.add(
        [
            picture("near", "blue"),
            picture("both", "red square", NEAR_X),
            picture("far", "red circle", Y),
        ]
    )
    result = store.query(both(X, "red circle", alpha=alpha))

    def scaled(hits):
        low, high = min(hits.similarities), max(hits.similarities)
        scores = [(score - low) / (high - low) for score in hits.similarities]
        return dict(zip(hits.ids, scores, strict=True))

    near, about = scaled(store.query(ask(X, 10))), scaled(store.query(words("red circle")))
    for name, score in zip(result.ids, result.similarities, strict=True):
        by_hand = alpha * near.get(name, 0) + (1 - alpha) * about.get(name, 0)
        assert score == pytest.approx(by_hand, abs=1e-6)
    assert sorted(result.ids) == sorted(expected)
    if alpha in (0, 1):
        assert result.ids == expected


def test_with_alpha_0_no_embedding_is_needed_and_with_1_no_text(store):
    store.add([picture("a", "red"), picture("b", "blue", Y)])

    assert store.query(both(None, "blue", alpha=0)).ids == ["b"]
    assert store.query(both(Y, None, alpha=1)).ids == ["b", "a"]


def test_a_query_without_words_is_by_vector_alone(store):
    store.add([picture("a", "red"), picture("b", "blue", Y)])

    for text in (None, "", "?!"):
        assert store.query(both(Y, text)).ids == ["b", "a"]


def test_what_is_low_in_both_lists_can_come_first(store):
    vectors = {"a": X, "b": [0.8, 0.6, 0.0, 0.0], "c": NEAR_X, "d": Y}
    captions = {"a": "blue", "b": "circle dot", "c": "red circle", "d": "red red circle circle"}
    store.add([picture(name, captions[name], vectors[name]) for name in vectors])

    # By vector: a, b, c, d. By words: d, c, b.
    assert store.query(words("red circle")).ids == ["d", "c", "b"]
    assert store.query(both(X, "red circle", 1)).ids == ["d"]
    assert len(store.query(both(X, "red circle", 2)).ids) == 2


def test_the_top_ks_of_llamaindex_are_kept(store):
    store.add([picture("a", "blue"), picture("b", "red", NEAR_X), picture("c", "red red", Y)])

    # One by vector, one by words, and both or one of them returned.
    result = store.query(both(X, "red", 1, sparse_top_k=1, hybrid_top_k=5))
    assert sorted(result.ids) == ["a", "c"]
    assert len(store.query(both(X, "red", 3, hybrid_top_k=1)).ids) == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"alpha": 1.1}, "alpha is 1.1, expected 0"),
        ({"alpha": math.nan}, "alpha is nan"),
        ({"hybrid_top_k": 0}, "hybrid_top_k is 0"),
        ({"sparse_top_k": -1}, "sparse_top_k is -1"),
    ],
)
def test_impossible_options_are_refused(store, options, message):
    with pytest.raises(ValueError, match=message):
        store.query(both(X, "red", **options))


def test_fused_hits_can_be_narrowed(store):
    store.add([picture("a", "red", width=10), picture("b", "red", Y, width=300)])
    store.add([TextNode(id_="t", text="red", embedding=X)])

    assert store.query(both(X, "red", filters=wide(100)), modality="image").ids == ["b"]
    assert store.query(both(X, "red"), modality="text").ids == ["t"]


async def test_fifty_searches_at_once_find_what_each_finds_alone(store):
    store.add([picture(f"p{i}", f"word{i % 7} red", X if i % 2 else Y) for i in range(60)])
    queries = [
        query
        for i in range(17)
        for query in (words(f"word{i % 7}"), both(X, f"red word{i % 7}"), ask(Y))
    ]
    alone = [store.query(query, modality="image") for query in queries]

    together = await asyncio.gather(*(store.aquery(query, modality="image") for query in queries))

    assert len(queries) > 50
    assert [result.ids for result in together] == [result.ids for result in alone]
    assert [result.similarities for result in together] == [result.similarities for result in alone]


# Kept, and refused.


def test_it_survives_reopening_and_is_found_without_being_asked_for(path):
    captions = {"a": "a red circle", "b": "a blue circle", "gone": "red red red", "t": ""}
    with create_vector_store(MODEL, uri=path, full_text="english") as store:
        store.add([picture(name, caption, width=10) for name, caption in captions.items()])
        store.delete_nodes(["gone"])
        store.add([picture("b", "a red square", width=300)])

    with create_vector_store(MODEL, uri=path) as store:
        assert store.full_text == "english"
        assert set(store.query(words("red")).ids) == {"a", "b"}
        assert store.query(words("blue")).ids == []
        assert store.query(words("red", filters=wide(100)), modality="image").ids == ["b"]
        assert store.query(both(Z, "square")).ids[0] == "b"
        store.add([picture("new", "a green ring")])
        assert store.query(words("green ring")).ids == ["new"]

    assert read_passport(uri=path)[0].full_text == "english"


def test_scores_do_not_depend_on_when_a_caption_was_added(path, tmp_path):
    # Milvus Lite writes what a session added into a file of its own when it ends.
    old = [picture(f"old{i}", f"red {'box' if i % 2 else 'ring'} number{i}") for i in range(40)]
    new = [picture("new", "a red circle"), picture("other", "a circle of red rings")]
    with create_vector_store(MODEL, uri=path, full_text="english") as store:
        store.add(old)
    with create_vector_store(MODEL, uri=path) as store:
        store.add(new)
        in_memory = store.query(words("red circle", 3))
    with create_vector_store(MODEL, uri=path) as store:
        in_two_files = store.query(words("red circle", 3))
    with create_vector_store(MODEL, uri=tmp_path / "at_once.db", full_text="english") as store:
        store.add([*old, *new])
        at_once = store.query(words("red circle", 3))

    assert at_once.ids[:2] == ["new", "other"]
    for result in (in_memory, in_two_files):
        assert result.ids[:2] == at_once.ids[:2]
        assert result.similarities == pytest.approx(at_once.similarities)


def test_a_collection_without_it_opens_as_before_and_says_what_to_do(path):
    with create_vector_store(MODEL, uri=path) as store:
        store.add([picture("a", "a red circle")])
        assert store.full_text is None
        fields = store.client.describe_collection(store.collection_name)["fields"]
        assert "sparse_embedding" not in {field["name"] for field in fields}
        for query in (words("red"), both(X, "red")):
            with pytest.raises(ValueError, match="no full text: index .*'english'.* all its data"):
                store.query(query)

    with pytest.raises(StoreError, match="made with no full text, full_text='english' is wanted"):
        create_vector_store(MODEL, uri=path, full_text="english")

    with create_vector_store(MODEL, uri=path) as store:
        assert store.query(ask(X)).ids == ["a"]
    with create_vector_store(MODEL, uri=path, full_text="english", overwrite=True) as store:
        assert store.query(words("red")).ids == []


def test_another_analyzer_is_refused(path):
    create_vector_store(MODEL, uri=path, full_text="english").close()

    with pytest.raises(StoreError, match="made with full_text='english', full_text='standard' is"):
        create_vector_store(MODEL, uri=path, full_text="standard")


def test_a_passport_of_before_full_text_is_read(path):
    with create_vector_store(MODEL, uri=path) as store:
        properties = store.client.describe_collection(store.collection_name)["properties"]
        content = json.loads(properties[PROPERTY])
        del content["full_text"]
        store.client.alter_collection_properties(
            store.collection_name, {PROPERTY: json.dumps(content)}
        )

    with create_vector_store(MODEL, uri=path) as store:
        assert store.full_text is None
        assert store.passport.space == MODEL.space


def test_an_analyzer_that_is_none_is_refused_before_a_file_is_made(path):
    with pytest.raises(ValueError, match="full_text is 'klingon', expected 'standard', 'english'"):
        create_vector_store(MODEL, uri=path, full_text="klingon")
    assert not path.exists()


def test_a_collection_of_another_program_has_none(path):
    client = MilvusClient(str(path))
    schema = client.create_schema(auto_id=False, enable_dynamic_field=True)
    client.create_collection("clip_ext", schema=add_fields(schema, 4))
    client.close()

    with pytest.raises(StoreError, match="not made by this package, so its texts are not prepared"):
        create_vector_store(MODEL, uri=path, full_text="english")


def test_an_index_that_was_cut_short_is_made_good(path):
    with create_vector_store(MODEL, uri=path, full_text="english") as store:
        store.add([picture("a", "a red circle")])
        store.client.release_collection(store.collection_name)
        store.client.drop_index(store.collection_name, "sparse_embedding")

    with create_vector_store(MODEL, uri=path) as store:
        index = store.client.describe_index(store.collection_name, "sparse_embedding")
        assert (index["index_type"], index["metric_type"]) == ("SPARSE_INVERTED_INDEX", "BM25")
        assert store.query(words("red")).ids == ["a"]


# Languages.


def test_standard_drops_no_words(path):
    with create_vector_store(MODEL, uri=path, full_text="standard") as store:
        store.add([picture("a", "un cercle rouge"), picture("b", "the étoile")])

        assert store.query(words("CERCLE")).ids == ["a"]
        assert store.query(words("Étoile")).ids == ["b"]
        assert store.query(words("the")).ids == ["b"]


@needs_jieba
def test_chinese_captions_are_found_by_chinese_words(path):
    captions = {"a": "一个红色的圆形。", "b": "蓝色正方形，白色背景", "c": "A RED circle"}
    with create_vector_store(MODEL, uri=path, full_text="chinese") as store:
        store.add([picture(name, caption) for name, caption in captions.items()])
    with create_vector_store(MODEL, uri=path) as store:
        assert store.full_text == "chinese"
        assert store.query(words("红色圆形")).ids == ["a"]
        assert store.query(words("白色背景的正方形，")).ids[0] == "b"
        assert store.query(words("red")).ids == ["c"]
        assert store.query(words("，。")).ids == []
        assert store.query(words("红色，")).ids == ["a"]
        assert store.query(both(X, "蓝色")).ids[0] == "b"


def test_chinese_without_jieba_is_refused_before_anything_is_dropped(path, monkeypatch):
    with create_vector_store(MODEL, uri=path) as store:
        store.add([picture("a", "红色圆形")])
    monkeypatch.setattr(full_text, "find_spec", lambda name: None)

    with pytest.raises(StoreError, match="needs the package jieba.*pip install jieba"):
        create_vector_store(MODEL, uri=path, full_text="chinese", overwrite=True)

    with create_vector_store(MODEL, uri=path) as store:
        assert store.count() == 1


@needs_jieba
def test_a_chinese_collection_without_jieba_says_what_shuts_the_file(path, monkeypatch):
    create_vector_store(MODEL, uri=path, collection_name="cn", full_text="chinese").close()
    monkeypatch.setitem(sys.modules, "jieba", None)

    with pytest.raises(StoreError, match="needs the package jieba, for the whole file") as info:
        create_vector_store(MODEL, uri=path, collection_name="cn")
    assert isinstance(info.value.__cause__, MilvusException)
    # Nothing asks Milvus Lite to open every collection, so that others still are.
    create_vector_store(MODEL, uri=path, collection_name="another").close()


# In LlamaIndex.


def test_the_modes_of_llamaindexs_own_retriever(store):
    store.add([picture("near", "a blue star"), picture("far", "a red circle", Y)])
    embed_model = MockEmbedding(embed_dim=4)  # Every vector is (0.5, 0.5, 0.5, 0.5).
    index = VectorStoreIndex.from_vector_store(store, embed_model=embed_model)

    hits = index.as_retriever(vector_store_query_mode="text_search").retrieve("red circle")
    assert [hit.node_id for hit in hits] == ["far"]
    retriever = index.as_retriever(
        vector_store_query_mode="hybrid", alpha=0.4, vector_store_kwargs={"modality": "image"}
    )
    hits = retriever.retrieve("red circle")
    assert hits[0].node_id == "far"
    assert {hit.node_id for hit in hits} == {"near", "far"}
    assert [hit.node_id for hit in asyncio.run(retriever.aretrieve("red circle"))] == [
        hit.node_id for hit in hits
    ]


class TestRetriever:
    """The roads of our own retriever; those of LlamaIndex's are above."""

    @pytest.fixture
    def filled(self, clip, pictures, tmp_path):
        for name, caption in (
            ("red", "an old barn in the snow"),
            ("green", "a meadow with a horse"),
            ("blue", "a barn by the sea"),
        ):
            (pictures / f"{name}.txt").write_text(caption)
        with create_vector_store(clip, uri=tmp_path / "words.db", full_text="english") as store:
            ingest_images(pictures, embed_model=clip, vector_store=store)
            store.add(clip([TextNode(text="barn, meadow and sea", id_="t1")]))
            yield store

    @staticmethod
    def names(hits):
        return [hit.node.metadata.get("file_name", hit.node.node_id) for hit in hits]

    def test_by_words_alone_nothing_is_embedded(self, clip, filled, monkeypatch):
        retriever = create_retriever(clip, filled, vector_store_query_mode="text_search")
        monkeypatch.setattr(type(clip), "_get_text_embeddings", None)
        assert set(self.names(retriever.retrieve("barns"))) <= {"red.png", "blue.png"}
        assert self.names(retriever.retrieve("horse")) == ["green.png"]
        assert self.names(asyncio.run(retriever.aretrieve("horse"))) == ["green.png"]
        assert retriever.retrieve("elephant") == []

    def test_words_and_vectors_are_weighted_by_alpha(self, clip, filled):
        def found(alpha):
            return create_retriever(
                clip, filled, vector_store_query_mode="hybrid", alpha=alpha
            ).retrieve("a horse")

        words, half, vectors = found(0.0), found(None), found(1.0)
        assert self.names(words) == ["green.png"]
        assert self.names(half)[0] == "green.png"
        assert len(half) == 5
        assert self.names(vectors) == self.names(create_retriever(clip, filled).retrieve("a horse"))
        assert {"retrieval_similarity", "retrieval_bm25"} <= set(half[0].node.metadata)

    def test_images_and_texts_are_both_found_by_words(self, clip, filled):
        retriever = create_retriever(
            clip, filled, vector_store_query_mode="text_search", modality="both"
        )
        hits = retriever.retrieve("meadow")
        assert set(self.names(hits)) == {"green.png", "t1"}
        assert {hit.node.metadata["retrieval_modality"] for hit in hits} == {"image", "text"}

    @pytest.mark.parametrize("mode", ["text_search", "hybrid"])
    def test_many_are_answered_as_each(self, clip, filled, mode):
        retriever = create_retriever(
            clip, filled, vector_store_query_mode=mode, modality="both", similarity_top_k=9
        )
        queries = ["meadow", "barn", "a horse"]
        each = [self.names(retriever.retrieve(query)) for query in queries]
        assert [self.names(hits) for hits in retriever.retrieve_many(queries)] == each

    def test_a_picture_has_no_words(self, clip, filled, pictures):
        retriever = create_retriever(clip, filled, vector_store_query_mode="hybrid")
        hits = retriever.retrieve_image(pictures / "red.png")
        assert self.names(hits)[0] == "red.png"
        assert hits[0].score == pytest.approx(1, abs=1e-3)


# Weights are of all texts, whatever is added last, filtered out, or deleted.


def test_the_newest_captions_of_many_are_found(tmp_path):
    """Milvus Lite ranks by the texts of a segment: in the newest, small one, no word is rare.

    So the 10,000 that it puts first may hold none of them.
    """
    with create_vector_store(MODEL, uri=tmp_path / "a.db", full_text="english") as store:
        for start in range(0, 12_000, 4_000):
            store.add(
                [
                    picture(f"n{n}", f"photo of a {('dog', 'cat')[n % 2]} number{n}")
                    for n in range(start, start + 4_000)
                ]
            )
        store.client.flush(store.collection_name)
        newest = [f"z{n}" for n in range(5)]
        store.add([picture(name, "photo of a zebra") for name in newest])

        for asked in ("zebra", "dog zebra", "photo of a zebra and a dog"):
            assert sorted(store.query(words(asked, 5)).ids) == newest
            assert set(newest) <= set(store.query(words(asked, 16_384)).ids)
            assert sorted(store.query(both(Y, asked, 5, alpha=0)).ids) == newest


@pytest.fixture
def zoo(tmp_path):
    """Dogs are common and zebras rare, but not in album y."""
    with create_vector_store(MODEL, uri=tmp_path / "zoo.db", full_text="english") as store:
        store.add([picture(f"dog {n}", "dog", album="x") for n in range(400)])
        store.add([picture(f"zebra {n}", "zebra", album="x") for n in range(20)])
        store.add([picture("DOG", "dog", album="y")])
        store.add([picture(f"ZEBRA {n}", "zebra", album="y") for n in range(12)])
        store.add([TextNode(id_=f"text {n}", text="dog", embedding=Y) for n in range(5)])
        store.add([picture(f"nothing {n}", "") for n in range(50)])
        yield store


def scores_of(result):
    return dict(zip(result.ids, result.similarities, strict=True))


@pytest.mark.parametrize("asked", ["dog zebra", "zebra", "dog"])
def test_a_filter_changes_neither_scores_nor_their_order(zoo, asked):
    everything = scores_of(zoo.query(words(asked, 1_000)))
    of_album = MetadataFilters(filters=[MetadataFilter(key="album", value="y")])

    for narrowed in (
        zoo.query(words(asked, 1_000, filters=of_album)),
        zoo.query(words(asked, 1_000), modality="image"),
        zoo.query(words(asked, 1_000), modality="text"),
        zoo.query(words(asked, 1_000, node_ids=["DOG", "ZEBRA 3"])),
        zoo.query(words(asked, 1_000), string_expr='album == "y"'),
        zoo.query(words(asked, 7)),
    ):
        assert scores_of(narrowed).items() <= everything.items()
    in_y = zoo.query(words("dog zebra", 1_000, filters=of_album)).ids
    assert in_y[-1] == "DOG"


def test_scores_are_bm25_of_all_texts(zoo):
    """Written out: k1 and b are Milvus's, 1.2 and 0.75; here every text that has words has one."""

    def bm25(n_with, n_all, average):
        idf = math.log(1 + (n_all - n_with + 0.5) / (n_with + 0.5))
        return idf * 2.2 / (1 + 1.2 * (1 - 0.75 + 0.75 / average))

    def check():
        texts = Counter(node.text for node in zoo.get_nodes(zoo.get_ids()))
        n_dogs, n_zebras = texts["dog"], texts["zebra"]
        n_all = zoo.count()
        found = scores_of(zoo.query(words("dog zebra", 1_000)))
        assert len(found) == n_dogs + n_zebras
        expected = {"dog": bm25(n_dogs, n_all, 1), "zebra": bm25(n_zebras, n_all, 1)}
        for node in zoo.get_nodes(list(found)):
            assert found[node.node_id] == pytest.approx(expected[node.text], rel=1e-6)

    check()
    zoo.delete_nodes([f"dog {n}" for n in range(300)])
    check()
    zoo.add([picture("DOG", "zebra"), TextNode(id_="text 1", text="zebra", embedding=X)])
    check()


def test_what_another_client_of_this_process_wrote_is_found(tmp_path):
    """Also where it leaves the number of rows as it was."""
    with create_vector_store(MODEL, uri=tmp_path / "words.db", full_text="english") as store:
        texts = {"a": "a cat", "b": "a dog"}
        store.add([TextNode(id_=id_, text=words, embedding=X) for id_, words in texts.items()])

        def found(words):
            query = ask(None, query_str=words, mode="text_search")
            return sorted(store.query(query).ids)

        assert (found("cat"), found("dog")) == (["a"], ["b"])
        client = MilvusClient(store.uri)
        (row,) = client.query(store.collection_name, 'id == "b"', output_fields=["*", "embedding"])
        client.delete(store.collection_name, ids=["b"])
        row = {key: value for key, value in row.items() if key != SPARSE_FIELD}
        client.insert(
            store.collection_name, [row | {"text": "a green cat"}], partition_name="texts"
        )
        assert (found("cat"), found("dog")) == (["a", "b"], [])
        # Ours are noted without reading all of them again.
        store.add([TextNode(id_="c", text="a cow", embedding=X)])
        assert (found("cow"), found("cat")) == (["c"], ["a", "b"])
        store.flush()
        assert store.delete_nodes(["b"]) == 1
        assert found("cat") == ["a"]
