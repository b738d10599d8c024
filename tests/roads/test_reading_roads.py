"""Every road from a question to what is stored: the right node comes first, as it was stored."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

import pytest
from llama_index.core import StorageContext, VectorStoreIndex, load_index_from_storage
from llama_index.core.agent.workflow import FunctionAgent, ReActAgent
from llama_index.core.base.base_selector import BaseSelector, SelectorResult, SingleSelection
from llama_index.core.base.llms.types import ChatMessage, ToolCallBlock
from llama_index.core.chat_engine import CondensePlusContextChatEngine, ContextChatEngine
from llama_index.core.chat_engine.multi_modal_condense_plus_context import (
    MultiModalCondensePlusContextChatEngine,
)
from llama_index.core.chat_engine.multi_modal_context import MultiModalContextChatEngine
from llama_index.core.indices import MultiModalVectorStoreIndex
from llama_index.core.memory import ChatMemoryBuffer
from llama_index.core.query_engine import RetrieverQueryEngine
from llama_index.core.query_engine.multi_modal import SimpleMultiModalQueryEngine
from llama_index.core.retrievers import QueryFusionRetriever, RouterRetriever
from llama_index.core.retrievers.fusion_retriever import FUSION_MODES
from llama_index.core.schema import NodeWithScore, TextNode
from llama_index.core.tools import QueryEngineTool, RetrieverTool
from llama_index.core.vector_stores import MetadataFilter, MetadataFilters
from llama_index.core.workflow import StartEvent, StopEvent, Workflow, step
from matrix import MODES, assert_complete, call
from node_kinds import (
    ALBUM,
    CLASSES,
    IMAGE_KINDS,
    KINDS,
    PIXEL_KINDS,
    image_path,
    make_node,
    picture,
    words,
)
from witness import Witness

from llama_index_clip_ext import CLIPVectorStoreIndex, create_retriever, create_vector_store


@dataclass
class Shelf:
    """A store with one row of each kind, and what roads need beside it."""

    model: object
    store: object
    nodes: list
    folder: object
    stores: dict = field(default_factory=dict)  # One of images and one of texts.

    def retriever(self, modality, **options):
        return create_retriever(self.model, self.store, modality=modality, **options)

    def index(self):
        return CLIPVectorStoreIndex.from_vector_store(self.store, embed_model=self.model)


def retriever(mode, shelf, question, modality):
    own = shelf.retriever(modality)
    return call(mode, own.retrieve, own.aretrieve, question), None


def our_index(mode, shelf, question, modality):
    own = shelf.index().as_retriever(modality=modality, similarity_top_k=3)
    hits = call(mode, own.retrieve, own.aretrieve, question)
    assert len(hits) == 3
    return hits, None


def our_index_again(mode, shelf, question, modality):
    first = StorageContext.from_defaults(vector_store=shelf.store)
    index = CLIPVectorStoreIndex([], storage_context=first, embed_model=shelf.model)
    index.docstore.set_document_hash("kept", "hash")
    index.storage_context.persist(str(shelf.folder / "storage"))
    again = StorageContext.from_defaults(
        persist_dir=str(shelf.folder / "storage"), vector_store=shelf.store
    )
    index = CLIPVectorStoreIndex([], storage_context=again, embed_model=shelf.model)
    assert index.docstore.get_document_hash("kept") == "hash"
    own = index.as_retriever(modality=modality)
    return call(mode, own.retrieve, own.aretrieve, question), None


def loaded_index(mode, shelf, question, modality):
    first = StorageContext.from_defaults(vector_store=shelf.store)
    CLIPVectorStoreIndex([], storage_context=first, embed_model=shelf.model)
    first.persist(str(shelf.folder / "storage"))
    again = StorageContext.from_defaults(
        persist_dir=str(shelf.folder / "storage"), vector_store=shelf.store
    )
    index = load_index_from_storage(again, embed_model=shelf.model)
    assert type(index) is CLIPVectorStoreIndex
    return _ask_index(mode, index, question, modality=modality)


def core_index(mode, shelf, question, modality):
    index = VectorStoreIndex.from_vector_store(shelf.store, embed_model=shelf.model)
    return _ask_index(mode, index, question)


def core_index_filtered(mode, shelf, question, modality):
    index = VectorStoreIndex.from_vector_store(shelf.store, embed_model=shelf.model)
    only = MetadataFilters(filters=[MetadataFilter(key="modality", value=modality)])
    return _ask_index(mode, index, question, filters=only)


def _ask_index(mode, index, question, **options):
    theirs = index.as_retriever(similarity_top_k=3, **options)
    return call(mode, theirs.retrieve, theirs.aretrieve, question), None


def multi_modal_index(shelf):
    return MultiModalVectorStoreIndex.from_vector_store(
        shelf.stores["text"],
        embed_model=shelf.model,
        image_vector_store=shelf.stores["image"],
        image_embed_model=shelf.model,
    )


def multi_modal_retriever(mode, shelf, question, modality):
    theirs = multi_modal_index(shelf).as_retriever(similarity_top_k=1, image_similarity_top_k=1)
    one_list = call(mode, theirs.retrieve, theirs.aretrieve, question)
    assert len(one_list) == 2
    if modality == "text":
        return call(mode, theirs.text_retrieve, theirs.atext_retrieve, question), None
    hits = call(mode, theirs.text_to_image_retrieve, theirs.atext_to_image_retrieve, question)
    assert [hit.node_id for hit in one_list[1:]] == [hit.node_id for hit in hits]
    return hits, None


def multi_modal_query_engine(mode, shelf, question, modality):
    witness = Witness()
    engine = multi_modal_index(shelf).as_query_engine(
        llm=witness.llm, similarity_top_k=1, image_similarity_top_k=1
    )
    hits = call(mode, engine.query, engine.aquery, question).source_nodes
    return hits[modality == "image" :], witness


def query_engine(multimodal):
    def ask(mode, shelf, question, modality):
        witness = Witness()
        engine = RetrieverQueryEngine.from_args(
            shelf.retriever(modality, similarity_top_k=1), llm=witness.llm, multimodal=multimodal
        )
        hits = call(mode, engine.query, engine.aquery, question).source_nodes
        return hits, witness if multimodal or modality == "text" else None

    return ask


def our_query_engine(mode, shelf, question, modality):
    witness = Witness()
    engine = shelf.index().as_query_engine(
        llm=witness.llm, similarity_top_k=1, modality=modality, multimodal=True
    )
    return call(mode, engine.query, engine.aquery, question).source_nodes, witness


def simple_multi_modal(mode, shelf, question, modality):
    witness = Witness()
    own = shelf.retriever(modality, similarity_top_k=1)
    engine = SimpleMultiModalQueryEngine(own, multi_modal_llm=witness.llm)
    return call(mode, engine.query, engine.aquery, question).source_nodes, witness


def chat_engine(engine_class, argument):
    def ask(mode, shelf, question, modality):
        witness = Witness()
        own = shelf.retriever(modality, similarity_top_k=1)
        engine = engine_class.from_defaults(
            retriever=own, memory=_memory(), **{argument: witness.llm}
        )
        hits = call(mode, engine.chat, engine.achat, question).source_nodes
        return hits, witness if argument == "multi_modal_llm" or modality == "text" else None

    return ask


def _memory():
    # The default one leaves connections of an in-memory database behind, which pytest reports.
    return ChatMemoryBuffer.from_defaults(token_limit=3000)


def our_chat_engine(multimodal):
    def ask(mode, shelf, question, modality):
        witness = Witness()
        engine = shelf.index().as_chat_engine(
            chat_mode="context",
            llm=witness.llm,
            memory=_memory(),
            modality=modality,
            similarity_top_k=1,
            multimodal=multimodal,
        )
        hits = call(mode, engine.chat, engine.achat, question).source_nodes
        return hits, witness if multimodal or modality == "text" else None

    return ask


def fusion(mode, shelf, question, modality):
    fused = QueryFusionRetriever(
        [shelf.retriever("image"), shelf.retriever("text")],
        llm=Witness().llm,
        mode=FUSION_MODES.RECIPROCAL_RANK,
        num_queries=1,
        similarity_top_k=6,
        use_async=mode == "async",
    )
    hits = call(mode, fused.retrieve, fused.aretrieve, question)
    assert {_modality(hit) for hit in hits} == {"image", "text"}
    return [hit for hit in hits if _modality(hit) == modality], None


class ByName(BaseSelector):
    """Selects the tool whose name it was made with."""

    def __init__(self, name):
        self._name = name

    def _select(self, choices, query):
        (index,) = [n for n, choice in enumerate(choices) if choice.name == self._name]
        return SelectorResult(selections=[SingleSelection(index=index, reason="its name")])

    async def _aselect(self, choices, query):
        return self._select(choices, query)

    def _get_prompts(self):
        return {}

    def _update_prompts(self, prompts):
        pass


def router(mode, shelf, question, modality):
    tools = [
        RetrieverTool.from_defaults(shelf.retriever(each), name=each) for each in ("image", "text")
    ]
    routed = RouterRetriever(ByName(modality), tools, llm=Witness().llm)
    return call(mode, routed.retrieve, routed.aretrieve, question), None


def retriever_tool(mode, shelf, question, modality):
    tool = RetrieverTool.from_defaults(shelf.retriever(modality), name="photos")
    return call(mode, tool.call, tool.acall, question).raw_output, None


def query_engine_tool(mode, shelf, question, modality):
    tool = QueryEngineTool.from_defaults(_engine(shelf, modality), name="photos")
    return call(mode, tool.call, tool.acall, input=question).raw_output.source_nodes, None


def _engine(shelf, modality):
    own = shelf.retriever(modality, similarity_top_k=2)
    return RetrieverQueryEngine.from_args(own, llm=Witness().llm)


def function_agent(mode, shelf, question, modality):
    tool = QueryEngineTool.from_defaults(_engine(shelf, modality), name="photos")
    asked = ToolCallBlock(tool_call_id="1", tool_name="photos", tool_kwargs={"input": question})
    witness = Witness([ChatMessage(role="assistant", blocks=[asked])])
    (tool_call,) = _run_agent(FunctionAgent(tools=[tool], llm=witness.llm)).tool_calls
    return tool_call.tool_output.raw_output.source_nodes, None


def react_agent(mode, shelf, question, modality):
    tool = RetrieverTool.from_defaults(shelf.retriever(modality), name="photos")
    script = [
        f'Thought: I look.\nAction: photos\nAction Input: {{"input": "{question}"}}',
        "Thought: I can answer without using any more tools.\nAnswer: found",
    ]
    witness = Witness([ChatMessage(role="assistant", content=content) for content in script])
    (tool_call,) = _run_agent(ReActAgent(tools=[tool], llm=witness.llm)).tool_calls
    return tool_call.tool_output.raw_output, None


def _run_agent(agent):
    async def run():
        return await agent.run("find it")

    return asyncio.run(run())


def workflow(mode, shelf, question, modality):
    class Search(Workflow):
        @step
        async def search(self, event: StartEvent) -> StopEvent:
            return StopEvent(result=await shelf.retriever(modality).aretrieve(event.question))

    async def run():
        return await Search().run(question=question)

    return asyncio.run(run()), None


ROADS = {
    "create_retriever": retriever,
    "CLIPVectorStoreIndex.as_retriever": our_index,
    "CLIPVectorStoreIndex, persisted and opened again": our_index_again,
    "CLIPVectorStoreIndex.as_query_engine, multimodal=True": our_query_engine,
    "CLIPVectorStoreIndex.as_chat_engine": our_chat_engine(multimodal=False),
    "CLIPVectorStoreIndex.as_chat_engine, multimodal=True": our_chat_engine(multimodal=True),
    "RetrieverQueryEngine": query_engine(multimodal=False),
    "RetrieverQueryEngine, multimodal=True": query_engine(multimodal=True),
    "SimpleMultiModalQueryEngine": simple_multi_modal,
    "MultiModalContextChatEngine": chat_engine(MultiModalContextChatEngine, "multi_modal_llm"),
    "MultiModalCondensePlusContextChatEngine": chat_engine(
        MultiModalCondensePlusContextChatEngine, "multi_modal_llm"
    ),
    "ContextChatEngine": chat_engine(ContextChatEngine, "llm"),
    "CondensePlusContextChatEngine": chat_engine(CondensePlusContextChatEngine, "llm"),
    "QueryFusionRetriever": fusion,
    "RouterRetriever": router,
    "RetrieverTool": retriever_tool,
    "QueryEngineTool": query_engine_tool,
    "FunctionAgent, QueryEngineTool": function_agent,
    "ReActAgent, RetrieverTool": react_agent,
    "Workflow": workflow,
    "VectorStoreIndex.from_vector_store": core_index,
    "VectorStoreIndex.from_vector_store, filter on modality": core_index_filtered,
    "load_index_from_storage": loaded_index,
    "MultiModalVectorStoreIndex.as_retriever": multi_modal_retriever,
    "MultiModalVectorStoreIndex.as_query_engine": multi_modal_query_engine,
}

_ONE_LIST = (
    "llama-index-core lists images and texts together by score, texts first: use create_retriever, "
    "CLIPVectorStoreIndex, or a filter on modality"
)
_NO_PIXELS = "pixels are not stored, and the node names no file to show to an LLM: give it a path"
_TO_CORE_TEXT = (
    "llama-index-core shows an LLM the pictures of ImageNodes only: use load_image_nodes, or "
    "RetrieverQueryEngine with multimodal=True"
)
_NO_OBJECT_MAP = (
    "llama-index-core's retriever of this index fails on an IndexNode (run-llama/llama_index#22080)"
)

# Those that show pictures to an LLM: all that have a picture, or ImageNodes only.
_SHOW_ALL = (
    "CLIPVectorStoreIndex.as_query_engine, multimodal=True",
    "RetrieverQueryEngine, multimodal=True",
)
_SHOW_IMAGE_NODES = (
    "CLIPVectorStoreIndex.as_chat_engine, multimodal=True",
    "SimpleMultiModalQueryEngine",
    "MultiModalContextChatEngine",
    "MultiModalCondensePlusContextChatEngine",
    "MultiModalVectorStoreIndex.as_query_engine",
)
_OF_ONE_LIST = ("VectorStoreIndex.from_vector_store",)

# A hole's reason, and how it shows.
HOLES = {
    **{(road, kind): (_NO_PIXELS, ValueError) for road in _SHOW_ALL for kind in PIXEL_KINDS},
    **{
        (road, kind): (_TO_CORE_TEXT, AssertionError)
        for road in _SHOW_IMAGE_NODES
        for kind in ("ImageDocument", "ImageDocument base64", "Node(image)")
    },
    **{(road, "ImageNode base64"): (_NO_PIXELS, ValueError) for road in _SHOW_IMAGE_NODES},
    **{(road, kind): (_ONE_LIST, AssertionError) for road in _OF_ONE_LIST for kind in IMAGE_KINDS},
    **{
        (f"MultiModalVectorStoreIndex.{name}", "IndexNode"): (_NO_OBJECT_MAP, AttributeError)
        for name in ("as_retriever", "as_query_engine")
    },
}
ASYNC_ONLY = ("FunctionAgent, QueryEngineTool", "ReActAgent, RetrieverTool", "Workflow")


def cells():
    for road in ROADS:
        for kind in KINDS:
            for mode in MODES:
                hole, error = HOLES.get((road, kind), ("", None))
                marks = [pytest.mark.road(road, kind=kind, mode=mode, hole=hole)]
                if road in ASYNC_ONLY and mode == "sync":
                    marks.append(
                        pytest.mark.skip("LlamaIndex's agents and workflows are asynchronous")
                    )
                yield pytest.param(road, kind, mode, error, marks=marks, id=f"{road}-{kind}-{mode}")


@pytest.fixture(scope="module")
def shelf(demo, tmp_path_factory):
    folder = tmp_path_factory.mktemp("shelf")
    nodes = [make_node(kind, folder) for kind in KINDS]
    embedded = demo([node.model_copy() for node in nodes])
    names = ("both", "image", "text")
    stores = {
        name: create_vector_store(demo, uri=folder / "shelf.db", collection_name=name)
        for name in names
    }
    stores["both"].add(embedded)
    # What is asked for, as texts: in one list by score they come before every picture.
    stores["both"].add(demo([TextNode(text=words(kind)) for kind in IMAGE_KINDS]))
    for node in embedded:
        stores["image" if node.node_id in IMAGE_KINDS else "text"].add([node])
    yield Shelf(demo, stores.pop("both"), nodes, folder, stores)
    for store in stores.values():
        store.close()


def _modality(hit: NodeWithScore) -> str:
    return "image" if hit.node_id in IMAGE_KINDS else "text"


def check(road, kind, mode, shelf):
    modality = "image" if kind in IMAGE_KINDS else "text"
    hits, witness = ROADS[road](mode, shelf, words(kind), modality)
    assert hits[0].node_id == kind
    node = hits[0].node
    assert type(node) is CLASSES[kind]
    assert node.metadata.items() >= ALBUM.items()
    if modality == "text":
        assert node.get_content() == words(kind)
        assert witness is None or words(kind) in witness.text
        return
    if kind not in PIXEL_KINDS:
        assert image_path(node) == str(picture(kind, shelf.folder))
    if witness:
        assert witness.images == [picture(kind, shelf.folder).read_bytes()]


@pytest.mark.parametrize(("road", "kind", "mode", "error"), cells())
def test_what_is_found(road, kind, mode, error, shelf):
    if error:
        with pytest.raises(error):
            check(road, kind, mode, shelf)
    else:
        check(road, kind, mode, shelf)


def test_no_hole_that_is_not_named(request):
    assert_complete(request, ROADS)
