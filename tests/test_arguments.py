"""No argument vanishes: what a call does not know, or a file cannot honour, is refused."""

import inspect
from functools import partial

import pytest
from by_hand import MODEL, X, ask, image, text
from filter_oracle import group, one
from llama_index.core import StorageContext, VectorStoreIndex
from llama_index.core.embeddings import MockEmbedding
from llama_index.core.llms import MockLLM
from llama_index.core.memory import ChatMemoryBuffer
from llama_index.core.postprocessor import SimilarityPostprocessor
from llama_index.core.schema import Document
from llama_index.core.vector_stores.types import MetadataFilters

from llama_index_clip_ext import (
    CLIPVectorStoreIndex,
    FilterError,
    create_bilingual_retriever,
    create_retriever,
    create_vector_store,
)
from llama_index_clip_ext.store import CLIPMilvusVectorStore

# What MilvusVectorStore takes, and what is misspelt, or of another store.
STRANGE = [
    "milvus_scalar_filters",
    "milvus_partition_names",
    "milvus_partition_name",
    "string_exp",
    "filter",
    "limit",
    "hybrid_top_k",
]
# LlamaIndex's newer one leaves a database of its own open.
MEMORY = ChatMemoryBuffer.from_defaults(token_limit=1_000)
OWN_METHODS = [
    name
    for name, member in vars(CLIPMilvusVectorStore).items()
    if inspect.isfunction(member) and not name.startswith("_")
]


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    with create_vector_store(MODEL, uri=tmp_path_factory.mktemp("store") / "a.db") as store:
        yield store


@pytest.fixture
def store(shared):
    shared.clear()
    shared.add([image(f"n{number}", X, n=number) for number in range(10)])
    shared.add([text("t", X, n=8)])
    return shared


@pytest.mark.parametrize("name", OWN_METHODS)
def test_no_method_of_the_store_takes_whatever_it_is_given(name):
    parameters = inspect.signature(getattr(CLIPMilvusVectorStore, name)).parameters.values()

    assert not [one for one in parameters if one.kind is inspect.Parameter.VAR_KEYWORD]


def test_the_store_has_its_own_of_each_method_that_llama_index_calls():
    """Those of its base class would pass over what they do not know."""
    names = ("add", "query", "delete", "delete_nodes", "clear", "get_nodes")
    twins = ("async_add", "aquery", "adelete", "adelete_nodes", "aclear", "aget_nodes")
    assert {*names, *twins} <= set(OWN_METHODS)


@pytest.mark.parametrize("keyword", STRANGE)
@pytest.mark.parametrize(
    "call",
    [
        lambda store, extra: store.query(ask(), **extra),
        lambda store, extra: store.query_many(ask(), [X], **extra),
        lambda store, extra: store.get_nodes(["n1"], **extra),
        lambda store, extra: store.get_nodes(filters=group(one("n", ">=", 0)), **extra),
        lambda store, extra: store.delete_nodes(["n1"], **extra),
        lambda store, extra: store.delete_nodes(filters=group(one("n", ">=", 0)), **extra),
        lambda store, extra: store.delete("n1", **extra),
        lambda store, extra: store.clear(**extra),
        lambda store, extra: store.add([image("new")], **extra),
    ],
    ids=lambda _: "",
)
def test_an_unknown_keyword_is_refused_and_nothing_is_done(store, call, keyword):
    with pytest.raises(TypeError, match=keyword):
        call(store, {keyword: "texts"})
    assert store.count() == 11


@pytest.mark.parametrize("keyword", STRANGE)
async def test_so_it_is_by_the_asynchronous_calls(store, keyword):
    extra = {keyword: "texts"}
    for call in (
        lambda: store.aquery(ask(), **extra),
        lambda: store.aget_nodes(["n1"], **extra),
        lambda: store.adelete_nodes(["n1"], **extra),
        lambda: store.adelete("n1", **extra),
        lambda: store.aclear(**extra),
        lambda: store.async_add([image("new")], **extra),
    ):
        with pytest.raises(TypeError, match=keyword):
            await call()
    assert store.count() == 11


def test_a_condition_in_milvus_language_is_honoured(store):
    assert sorted(store.query(ask(), string_expr="n > 7").ids) == ["n8", "n9", "t"]
    assert store.query(ask(), modality="text", string_expr="n > 7").ids == ["t"]
    found = store.query(ask(filters=group(one("n", "<", 9))), string_expr="n > 7")
    assert sorted(found.ids) == ["n8", "t"]
    # An "or" in it does not reach beyond it.
    found = store.query(ask(filters=group(one("n", "<", 2))), string_expr="n > 7 or n < 1")
    assert found.ids == ["n0"]
    both = store.query_many(ask(), [X, X], string_expr="n == 3")
    assert [one.ids for one in both] == [["n3"], ["n3"]]


async def test_so_it_is_asynchronously(store):
    assert (await store.aquery(ask(), string_expr="n == 3")).ids == ["n3"]


def test_a_condition_that_milvus_does_not_read_is_a_filter_error(store):
    with pytest.raises(FilterError, match=r"n >< 7"):
        store.query(ask(), string_expr="n >< 7")


def test_llama_index_hands_it_on_from_its_retrievers(store):
    model = MockEmbedding(4)
    options = {"similarity_top_k": 20, "vector_store_kwargs": {"string_expr": "n > 7"}}

    retriever = VectorStoreIndex.from_vector_store(store, embed_model=model).as_retriever(**options)
    assert {hit.node.node_id for hit in retriever.retrieve("x")} == {"n8", "n9", "t"}

    options["vector_store_kwargs"] = {"milvus_partition_names": ["texts"]}
    index = VectorStoreIndex.from_vector_store(store, embed_model=model)
    with pytest.raises(TypeError, match="milvus_partition_names"):
        index.as_retriever(**options).retrieve("x")


def test_an_empty_list_of_documents_finds_nothing(store):
    assert store.query(ask(doc_ids=[])).ids == []
    assert store.query(ask(doc_ids=["n3"])).ids == ["n3"]
    assert len(store.query(ask(top_k=20)).ids) == 11
    # This one LlamaIndex's VectorStoreIndex passes where it means all.
    assert len(store.query(ask(top_k=20, node_ids=[])).ids) == 11


@pytest.mark.parametrize("name", ["node_ids", "doc_ids"])
@pytest.mark.parametrize("ids", ["abc", b"abc", [1], ["a", None]])
def test_ids_are_a_list_of_texts(clip, tmp_path, store, name, ids):
    with pytest.raises(TypeError, match=name):
        store.query(ask(**{name: ids}))
    with create_vector_store(clip, uri=tmp_path / "b.db") as own:
        with pytest.raises(TypeError, match=name):
            create_retriever(clip, own, **{name: ids})
        for nothing in ([], ()):
            assert create_retriever(clip, own, **{name: nothing}).retrieve("a") == []


@pytest.mark.parametrize("ids", ["abc", b"abc", [1]])
def test_so_they_are_where_nodes_are_read_and_deleted(store, ids):
    for call in (store.get_nodes, store.delete_nodes, store.get_hashes, store.get_files_by_id):
        with pytest.raises(TypeError, match="node_ids"):
            call(ids)
    assert store.count() == 11


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("db_name", "tenant_a"),
        ("token", "user:password"),
        ("server_name", "milvus.example"),
        ("server_pem_path", "ca.pem"),
        ("ca_pem_path", "ca.pem"),
    ],
)
@pytest.mark.parametrize("overwrite", [False, True])
def test_what_only_a_server_has_is_refused_of_a_file(store, tmp_path, option, value, overwrite):
    """Tenants that were kept apart by a database's name would share one collection."""
    for uri in (tmp_path / "new.db", store.uri):
        with pytest.raises(ValueError, match=f"{option} is for a Milvus server"):
            create_vector_store(MODEL, uri=uri, overwrite=overwrite, **{option: value})
    assert not (tmp_path / "new.db").exists()
    assert store.count() == 11


def test_so_it_is_by_the_other_ways_to_open_one(clip, chinese_clip, tmp_path):
    options = {"uri": tmp_path / "a.db", "db_name": "tenant"}
    with pytest.raises(ValueError, match="db_name is for a Milvus server"):
        create_bilingual_retriever(clip, chinese_clip, **options)


@pytest.fixture
def index(clip, tmp_path):
    with create_vector_store(clip, uri=tmp_path / "index.db") as store:
        yield CLIPVectorStoreIndex.from_documents(
            [Document(id_=f"d{n}", text=f"text {n}", metadata={"n": n}) for n in range(4)],
            StorageContext.from_defaults(vector_store=store),
            embed_model=clip,
        )


@pytest.mark.parametrize("keyword", ["filter", "similarity_topk", "sparse_top_k", "streaming"])
def test_an_index_makes_no_retriever_of_what_it_does_not_know(index, clip, keyword):
    with pytest.raises(TypeError, match=keyword):
        index.as_retriever(**{keyword: MetadataFilters(filters=[])})
    with pytest.raises(TypeError, match=keyword):
        create_retriever(clip, index.vector_store, **{keyword: 1})


@pytest.mark.parametrize("make", ["as_query_engine", "as_chat_engine"])
def test_engines_split_their_keywords_and_refuse_the_rest(index, make):
    of_engine = {"llm": MockLLM(), **({"memory": MEMORY} if make == "as_chat_engine" else {})}
    make = partial(getattr(index, make), **of_engine)
    wanted = group(one("n", "==", 2))

    engine = make(similarity_top_k=3, filters=wanted, modality="text")
    retriever = getattr(engine, "retriever", None) or engine._retriever
    assert (retriever.similarity_top_k, retriever.filters) == (3, wanted)
    assert [hit.node_id for hit in retriever.retrieve("text")] == ["d2"]
    with pytest.raises(TypeError, match="'filter'"):
        make(filter=wanted)


def test_an_option_of_the_engine_reaches_the_engine(index):
    engine = index.as_query_engine(
        llm=MockLLM(), similarity_top_k=1, response_mode="tree_summarize"
    )
    answer = engine.query("text 1")
    assert len(answer.source_nodes) == 1

    chat = index.as_chat_engine("context", llm=MockLLM(), memory=MEMORY, system_prompt="Be short.")
    assert any("Be short." in message.content for message in chat._prefix_messages)


def test_updates_take_the_keywords_of_llama_index_and_no_others(index):
    document = Document(id_="d1", text="another text", metadata={"n": 1})
    known = {"delete_kwargs": {"delete_from_docstore": True}}
    index.update_ref_doc(document, **known)
    assert index.refresh_ref_docs([document], update_kwargs=known) == [False]
    for call in (
        lambda: index.update_ref_doc(document, delete_from_docstore=True),
        lambda: index.refresh_ref_docs([document], modality="text"),
        lambda: index.insert_nodes([text("i", [1.0, *[0.0] * 15])], strange=1),
        lambda: index.delete_ref_doc("d1", strange=1),
        lambda: index.delete_nodes(["d1"], strange=1),
    ):
        with pytest.raises(TypeError):
            call()
    assert index.vector_store.count() == 4


@pytest.mark.parametrize(
    "expression", ["n == 1) or (n == 2", "(n == 1", 'n == "1', ")(", "n == 1))", "'"]
)
def test_an_expression_of_ones_own_cannot_end_the_filters(store, expression):
    with pytest.raises(FilterError, match="without its twin"):
        store.query(ask(filters=group(one("n", "==", 1))), string_expr=expression)
    # But may hold them as text.
    found = store.query(ask(), string_expr='n == 1 and id != ")(" and id != "a\\"("')
    assert found.ids == ["n1"]


def test_options_that_another_mode_would_ignore_are_checked_all_the_same(store):
    with pytest.raises(ValueError, match="mmr_threshold is 7"):
        store.query(ask(), mmr_threshold=7)
    with pytest.raises(ValueError, match="alpha is 9"):
        store.query(ask(alpha=9))


def test_one_postprocessor_is_no_list(index, clip):
    with pytest.raises(TypeError, match="node_postprocessors is one postprocessor"):
        create_retriever(clip, index.vector_store, node_postprocessors=SimilarityPostprocessor())


def test_a_chat_engine_that_retrieves_nothing_takes_no_option_of_a_retriever(index):
    with pytest.raises(TypeError, match="similarity_top_k is a retriever's"):
        index.as_chat_engine("simple", llm=MockLLM(), memory=MEMORY, similarity_top_k=3)
