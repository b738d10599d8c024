"""What LlamaIndex has beside its roads: events, caches, limits, Settings, and many at once."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import textwrap
import threading
from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy

import numpy as np
import pytest
from llama_index.core.bridge.pydantic import Field
from llama_index.core.callbacks import CallbackManager, CBEventType, EventPayload, LlamaDebugHandler
from llama_index.core.instrumentation import get_dispatcher
from llama_index.core.instrumentation.event_handlers import BaseEventHandler
from llama_index.core.instrumentation.span_handlers import SimpleSpanHandler
from llama_index.core.rate_limiter import BaseRateLimiter, TokenBucketRateLimiter
from llama_index.core.schema import ImageNode, QueryBundle, TextNode
from llama_index.core.storage.kvstore import SimpleKVStore
from llama_index.core.vector_stores import MetadataFilter, MetadataFilters
from matrix import call
from node_kinds import IMAGE_KINDS, KINDS, TEXT_KINDS, picture, words
from witness import Witness

from llama_index_clip_ext import CLIPEmbedding, CLIPVectorStoreIndex, create_retriever

MODES = pytest.mark.parametrize("mode", ["sync", "async"])


def road(name, mode=None):
    """A cell of the matrix for whatever kind of node; its mode may be the test's parameter."""
    return pytest.mark.road(name, kind="any", mode=mode)


@pytest.fixture
def counted(demo, monkeypatch):
    """The names of the forward passes of the demo's CLIP."""
    passes = []
    forward = demo.encoder._rows

    def counting(method, inputs):
        passes.append(method)
        return forward(method, inputs)

    monkeypatch.setattr(demo.encoder, "_rows", counting)
    return passes


def with_options(demo, **options):
    """A copy of the demo's CLIP that shares its weights."""
    return demo.model_copy(update=options)


@road("callbacks")
@MODES
def test_callbacks_tell_of_embedding_and_retrieval(mode, demo, shelf, photos):
    debug = LlamaDebugHandler(print_trace_on_end=False)
    embed_model = with_options(demo, callback_manager=CallbackManager([debug]))
    index = CLIPVectorStoreIndex.from_vector_store(shelf, embed_model=embed_model)
    nodes = [TextNode(text="a red circle"), *_image_nodes(photos)]
    call(mode, index.insert_nodes, index.ainsert_nodes, nodes)
    told = [pair[1].payload for pair in debug.get_event_pairs(CBEventType.EMBEDDING)]
    chunks = [chunk for payload in told for chunk in payload[EventPayload.CHUNKS]]
    assert chunks == ["a red circle", *(str(picture(kind, photos)) for kind in IMAGE_KINDS[:2])]
    assert [len(payload[EventPayload.EMBEDDINGS]) for payload in told] == [1, 2]
    retriever = index.as_retriever()
    hits = call(mode, retriever.retrieve, retriever.aretrieve, "a red circle")
    (pair,) = debug.get_event_pairs(CBEventType.RETRIEVE)
    assert pair[0].payload[EventPayload.QUERY_STR] == "a red circle"
    assert pair[1].payload[EventPayload.NODES] == hits


def _image_nodes(photos):
    return [ImageNode(image_path=str(picture(kind, photos))) for kind in IMAGE_KINDS[:2]]


class _Events(BaseEventHandler):
    seen: list = Field(default_factory=list)

    @classmethod
    def class_name(cls):
        return "_Events"

    def handle(self, event, **kwargs):
        self.seen.append(event)


@road("instrumentation events and spans")
@MODES
def test_instrumentation_tells_of_embedding_and_retrieval(mode, demo, filled, photos):
    root = get_dispatcher()
    events, spans = _Events(), SimpleSpanHandler()
    handlers = list(root.event_handlers), list(root.span_handlers)
    root.add_event_handler(events)
    root.add_span_handler(spans)
    try:
        retriever = create_retriever(demo, filled)
        hits = call(mode, retriever.retrieve, retriever.aretrieve, "a red circle")
        embed = demo.get_image_embedding_batch, demo.aget_image_embedding_batch
        call(mode, *embed, [picture("ImageNode", photos)])
    finally:
        root.event_handlers, root.span_handlers = handlers
    names = [type(event).__name__ for event in events.seen]
    assert names == [
        "RetrievalStartEvent",
        "EmbeddingStartEvent",
        "EmbeddingEndEvent",
        "RetrievalEndEvent",
        "EmbeddingStartEvent",
        "EmbeddingEndEvent",
    ]
    assert events.seen[0].str_or_query_bundle == "a red circle"
    assert events.seen[2].chunks == ["a red circle"]
    assert events.seen[3].nodes == hits
    assert events.seen[5].chunks == [str(picture("ImageNode", photos))]
    name = "retrieve" if mode == "sync" else "aretrieve"
    assert any(span.id_.startswith(f"CLIPRetriever.{name}") for span in spans.completed_spans)


@road("embeddings_cache, shared by two models")
@MODES
def test_models_share_a_cache_of_texts_and_images(mode, demo, clip, photos):
    cache = SimpleKVStore()
    for _ in range(2):  # Filled by one model and the other, then read by both.
        for plain in (demo, clip):
            embed_model = with_options(plain, embeddings_cache=cache)
            for name, argument in (
                ("get_text_embedding", "a red circle"),
                ("get_query_embedding", "a blue star"),
                ("get_text_embedding_batch", ["a red circle", "a pink heart", "a red circle"]),
                ("get_image_embedding", picture("ImageNode", photos)),
                ("get_agg_embedding_from_queries", ["a red circle", "a blue star"]),
            ):
                functions = getattr(embed_model, name), getattr(embed_model, f"a{name}")
                expected = getattr(plain, name)(argument)
                np.testing.assert_allclose(call(mode, *functions, argument), expected, atol=1e-6)


@MODES
def test_what_is_cached_is_not_computed_again(mode, demo, photos, counted):
    embed_model = with_options(demo, embeddings_cache=SimpleKVStore())
    texts = embed_model.get_text_embedding_batch, embed_model.aget_text_embedding_batch
    images = embed_model.get_image_embedding_batch, embed_model.aget_image_embedding_batch
    query = embed_model.get_query_embedding, embed_model.aget_query_embedding
    files = [picture(kind, photos) for kind in IMAGE_KINDS]
    first = call(mode, *texts, ["a", "b"]), call(mode, *images, files)
    assert counted == ["text", "image"]
    assert (call(mode, *texts, ["a", "b"]), call(mode, *images, files)) == first
    assert call(mode, *query, "b") == first[0][1]
    assert len(counted) == 2
    call(mode, *texts, ["a", "c"])
    assert len(counted) == 3


def test_a_cached_text_does_not_hide_that_it_is_too_long(demo):
    from llama_index_clip_ext import TextTooLongError

    cache = SimpleKVStore()
    text = "red circle " * 99
    with_options(demo, embeddings_cache=cache).get_text_embedding(text)
    strict = CLIPEmbedding("demo-clip", on_long_text="error", embeddings_cache=cache)
    with pytest.raises(TextTooLongError):
        strict.get_text_embedding(text)


class _Turnstile(BaseRateLimiter):
    """Counts who passes, and lets nobody through before it is opened."""

    def __init__(self, *, is_open=True):
        self.passed = 0
        self.open = threading.Event()
        if is_open:
            self.open.set()

    def acquire(self, num_tokens=0):
        assert self.open.wait(60)
        self.passed += 1

    async def async_acquire(self, num_tokens=0):
        while not self.open.is_set():
            await asyncio.sleep(0.01)
        self.passed += 1


@road("rate_limiter")
@MODES
def test_the_rate_limiter_is_asked_once_a_batch(mode, demo, photos):
    files = [picture(kind, photos) for kind in IMAGE_KINDS[:5]]
    limiter = _Turnstile()
    embed_model = with_options(demo, rate_limiter=limiter, embed_batch_size=2)
    images = embed_model.get_image_embedding_batch, embed_model.aget_image_embedding_batch
    rows = call(mode, *images, files)
    np.testing.assert_allclose(rows, demo.get_image_embedding_batch(files), atol=1e-5)
    assert limiter.passed == 3
    call(mode, embed_model.get_image_embedding, embed_model.aget_image_embedding, files[0])
    assert limiter.passed == 4
    texts = embed_model.get_text_embedding_batch, embed_model.aget_text_embedding_batch
    call(mode, *texts, ["a", "b", "c"])
    assert limiter.passed == 6
    call(mode, embed_model, embed_model.acall, [TextNode(text="a"), *_image_nodes(photos)])
    assert limiter.passed == 8


@road("rate_limiter with embeddings_cache")
@MODES
def test_the_rate_limiter_and_the_cache_together(mode, demo, photos):
    limiter, files = _Turnstile(), [picture(kind, photos) for kind in IMAGE_KINDS[:2]]
    embed_model = with_options(demo, rate_limiter=limiter, embeddings_cache=SimpleKVStore())
    images = embed_model.get_image_embedding_batch, embed_model.aget_image_embedding_batch
    call(mode, *images, files)
    call(mode, *images, files)
    assert limiter.passed == 1  # Pictures that are all in the cache take no forward pass.
    query = embed_model.get_query_embedding, embed_model.aget_query_embedding
    call(mode, *query, "a red circle")
    assert limiter.passed == 2


async def test_the_loop_goes_on_while_the_rate_limiter_waits(demo, photos):
    limiter = _Turnstile(is_open=False)
    embed_model = with_options(demo, rate_limiter=limiter)
    task = asyncio.create_task(embed_model.aget_image_embedding(picture("ImageNode", photos)))
    for _ in range(5):
        await asyncio.sleep(0.01)
    assert not task.done()
    limiter.open.set()
    assert len(await task) == demo.dim


def test_llama_indexs_own_rate_limiter(demo, photos):
    limiter = TokenBucketRateLimiter(requests_per_minute=1000)
    embed_model = with_options(demo, rate_limiter=limiter)
    embed_model.get_image_embedding(picture("ImageNode", photos))
    assert limiter._request_tokens < 1000


def _mixed_questions(demo, filled, photos):
    """Fifty questions by text and by image, each with the retriever that it goes to."""
    album = MetadataFilters(filters=[MetadataFilter(key="album", value="summer")])
    file = picture("load_image_nodes", photos)
    green = MetadataFilters(filters=[MetadataFilter(key="file_name", value=file.name)])
    retrievers = [
        create_retriever(demo, filled, similarity_top_k=1),
        create_retriever(demo, filled, similarity_top_k=4, filters=album),
        create_retriever(demo, filled, filters=green),
        create_retriever(demo, filled, modality="text", similarity_top_k=2),
        create_retriever(demo, filled, similarity_top_k=9, similarity_cutoff=0.1),
    ]
    questions = []
    for number in range(50):
        kind = list(KINDS)[number % len(KINDS)]
        if number % 3 == 1:
            shown = IMAGE_KINDS[number % len(IMAGE_KINDS)]
            question = QueryBundle("", image_path=str(picture(shown, photos)))
        elif number % 3 == 2:
            question = QueryBundle("", embedding=demo.get_text_embedding(words(kind)))
        else:
            question = words(kind)
        questions.append((retrievers[(number * 3) % 5], question))
    return questions


def _answers(all_hits):
    return [
        [(hit.node_id, pytest.approx(hit.score, abs=1e-5)) for hit in hits] for hits in all_hits
    ]


@road("50 mixed questions at once", "sync")
@road("50 mixed questions at once", "async")
def test_fifty_at_once_get_what_they_would_get_one_by_one(demo, filled, photos):
    questions = _mixed_questions(demo, filled, photos)
    before = deepcopy([question for _, question in questions])
    one_by_one = [retriever.retrieve(question) for retriever, question in questions]
    assert len({tuple(hit.node_id for hit in hits) for hits in one_by_one}) > 10
    assert {hit.node_id for hits in one_by_one for hit in hits} >= {*IMAGE_KINDS, *TEXT_KINDS}

    async def ask_all():
        return await asyncio.gather(*(own.aretrieve(question) for own, question in questions))

    with ThreadPoolExecutor(8) as pool:
        in_threads = list(pool.map(lambda pair: pair[0].retrieve(pair[1]), questions))
    for answers in (asyncio.run(ask_all()), asyncio.run(ask_all()), in_threads):
        assert [[(hit.node_id, hit.score) for hit in hits] for hits in answers] == _answers(
            one_by_one
        )
    assert [question for _, question in questions] == before


def test_core_changes_the_question_and_we_do_not(demo, filled, photos):
    from llama_index.core import VectorStoreIndex

    question = QueryBundle("a red circle")
    create_retriever(demo, filled).retrieve(question)
    assert question == QueryBundle("a red circle")
    theirs = VectorStoreIndex.from_vector_store(filled, embed_model=demo).as_retriever()
    theirs.retrieve(question)
    assert question.embedding is not None, "core leaves it alone now: say so in the README"


@MODES
def test_an_image_asked_for_through_a_simple_multi_modal_engine(mode, demo, filled, photos):
    from llama_index.core.prompts import PromptTemplate
    from llama_index.core.query_engine.multi_modal import SimpleMultiModalQueryEngine

    witness, file = Witness(), picture("ImageNode", photos)
    retriever = create_retriever(demo, filled, similarity_top_k=1)
    options = {"image_qa_template": PromptTemplate("{query_str}")}
    engine = SimpleMultiModalQueryEngine(retriever, multi_modal_llm=witness.llm, **options)

    async def in_thread(*args):  # It has no asynchronous twin.
        return await asyncio.to_thread(engine.image_query, *args)

    answer = call(mode, engine.image_query, in_thread, str(file), "What is that?")
    assert [hit.node_id for hit in answer.source_nodes] == ["ImageNode"]
    assert witness.images == [file.read_bytes()]
    assert witness.text == "What is that?"


@MODES
def test_a_picture_asked_for_through_the_multi_modal_index(mode, demo, filled, photos):
    from llama_index.core.indices import MultiModalVectorStoreIndex

    index = MultiModalVectorStoreIndex.from_vector_store(
        filled, embed_model=demo, image_vector_store=filled, image_embed_model=demo
    )
    theirs = index.as_retriever(image_similarity_top_k=1)
    functions = theirs.image_to_image_retrieve, theirs.aimage_to_image_retrieve
    (hit,) = call(mode, *functions, str(picture("ImageNode", photos)))
    assert hit.node_id == "ImageNode"
    assert hit.score == pytest.approx(1, abs=1e-3)


@road("no OpenAI package, no key", "sync")
@road("no OpenAI package, no key", "async")
def test_no_openai_package_and_no_key_from_build_to_query_engine(tmp_path):
    script = """
        import asyncio, os, sys
        os.environ.pop("OPENAI_API_KEY", None)

        # None: not installed, also to those that only look whether it is, as transformers does.
        for place in ("", "llama_index.llms.", "llama_index.embeddings.", "llama_index.agent."):
            sys.modules[f"{place}openai"] = None

        from llama_index.core import Settings, StorageContext
        from llama_index.core.llms import MockLLM
        from llama_index_clip_ext import (
            CLIPEmbedding, CLIPVectorStoreIndex, create_vector_store, load_image_nodes
        )
        from llama_index_clip_ext.demo.run import draw_pictures
        from pathlib import Path

        draw_pictures(Path("photos"))
        model = CLIPEmbedding("demo-clip")
        with create_vector_store(model, uri="photos.db") as store:
            context = StorageContext.from_defaults(vector_store=store)
            CLIPVectorStoreIndex(
                load_image_nodes("photos"), storage_context=context, embed_model=model
            )
            context.persist("storage")
        with create_vector_store(model, uri="photos.db") as store:
            context = StorageContext.from_defaults(persist_dir="storage", vector_store=store)
            index = CLIPVectorStoreIndex([], storage_context=context, embed_model=model)
            retriever = index.as_retriever(similarity_top_k=2)
            hits = retriever.retrieve("a red circle")
            assert all("red-circle" in hit.node.metadata["file_name"] for hit in hits), hits
            assert asyncio.run(retriever.aretrieve("a red circle")) == hits
            first = hits[0].node.image_path
            assert retriever.retrieve_image(first)[0].node.image_path == first
            engine = index.as_query_engine(llm=MockLLM(), similarity_top_k=2)
            assert engine.query("a red circle").source_nodes == hits
            assert asyncio.run(engine.aquery("a red circle")).source_nodes == hits
        assert Settings._embed_model is None and Settings._llm is None
        # LlamaIndex loads LangChain where that is installed, as it is for its test suite.
        loaded = [
            name
            for name, module in sys.modules.items()
            if module is not None and not name.startswith("langchain")
        ]
        assert not any("openai" in name.split(".") for name in loaded)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
