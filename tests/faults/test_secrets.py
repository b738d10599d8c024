"""Tokens and passwords appear nowhere: whatever comes out of a store is searched for them."""

import io
import logging
import traceback
from base64 import b64encode
from contextlib import redirect_stderr, redirect_stdout, suppress
from unittest.mock import patch

import filter_oracle
import pytest
from by_hand import MODEL, X, ask, image
from llama_index.core import VectorStoreIndex
from llama_index.core.instrumentation import get_dispatcher
from llama_index.core.instrumentation.event_handlers import BaseEventHandler
from llama_index.core.instrumentation.span_handlers import NullSpanHandler
from PIL import Image
from pymilvus.exceptions import MilvusException

from llama_index_clip_ext import create_retriever, create_vector_store
from llama_index_clip_ext.cli import main
from llama_index_clip_ext.collection import read_passport
from llama_index_clip_ext.connection import Connection


def b64(text):
    return b64encode(text.encode()).decode()


PASSWORD = "p4ssw0rd-of-the-address"
TOKEN = "t0ken-of-the-call"
# As they are, in part, and as gRPC sends them.
SECRETS = ("p4ssw0rd", "t0ken", b64(f"root:{PASSWORD}"), b64(TOKEN))


def address_with_password(address):
    return address.replace("://", f"://root:{PASSWORD}@")


@pytest.fixture
def heard():
    """All that LlamaIndex's instrumentation is told."""
    told = []

    class Events(BaseEventHandler):
        def handle(self, event, **kwargs):
            told.extend([repr(event), str(event.model_dump())])

    class Spans(NullSpanHandler):
        def span_enter(self, id_, bound_args, instance=None, **kwargs):
            told.extend([repr(bound_args), repr(instance), str(kwargs)])

        def span_exit(self, id_, bound_args, instance=None, result=None, **kwargs):
            told.extend([repr(bound_args), repr(result)])

        def span_drop(self, id_, bound_args, instance=None, err=None, **kwargs):
            told.extend([repr(bound_args), repr(err)])

    root = get_dispatcher()
    handlers = Events(), Spans()
    root.add_event_handler(handlers[0])
    root.add_span_handler(handlers[1])
    yield told
    root.event_handlers.remove(handlers[0])
    root.span_handlers.remove(handlers[1])


def said_by(err):
    """All that an error says, with those that it came from."""
    seen = []
    while err is not None and err not in seen:
        seen.append(err)
        yield from (str(err), repr(err), str(err.args), str(vars(err)))
        yield from traceback.format_exception(err)
        if err.__context__ is not err.__cause__ and err.__context__ is not None:
            yield from said_by(err.__context__)
        err = err.__cause__


def failing(kinds, *calls):
    """Make calls that fail, each with one of the kinds; return what the errors say."""
    said = []
    for call in calls:
        with pytest.raises(kinds) as caught:
            call()
        said += said_by(caught.value)
    return said


def of_the_command_line(*arguments):
    out = io.StringIO()
    logger = logging.getLogger("pymilvus")
    before = list(logger.filters)
    try:
        with (
            redirect_stdout(out),
            redirect_stderr(out),
            patch("sys.argv", ["clip-ext", *arguments]),
            suppress(SystemExit),
        ):
            main()
    finally:
        logger.filters = before
    return out.getvalue()


def check(tally, what, texts):
    let_in = sum(secret in str(one) for one in texts for secret in SECRETS)
    tally(what, tried=len(texts), let_in=let_in)
    assert [one for one in texts for secret in SECRETS if secret in str(one)] == []


@pytest.mark.parametrize("token", ["", TOKEN], ids=["in-the-address", "beside-it"])
def test_nothing_that_comes_out_holds_a_secret(server, clip, heard, caplog, tally, token):
    caplog.set_level(logging.DEBUG)
    for name in ("pymilvus", "llama_index_clip_ext"):
        caplog.set_level(logging.DEBUG, logger=name)
    uri = address_with_password(server)
    name = f"secrets_{'beside' if token else 'inside'}"
    said = []
    with create_vector_store(clip, uri=uri, token=token, collection_name=name) as store:
        nodes = [image("a", clip.get_image_embedding(Image.new("RGB", (32, 32), "red")))]
        store.add(nodes)
        retriever = create_retriever(clip, store)
        assert retriever.retrieve("a cat")
        index = VectorStoreIndex.from_vector_store(store, clip)
        assert index.as_retriever().retrieve("a cat")
        for shown in (store, retriever, index, index.as_retriever()):
            said += [repr(shown), str(shown)]
        said += [store.to_dict(), store.model_dump(), store.model_dump_json(), vars(store)]
        said += [store.client.describe_collection(name), store.passport]
        said += [read_passport(uri=uri, token=token, collection_name=name)]

        too_deep = filter_oracle.deep(24, 40)
        said += failing(
            Exception,
            lambda: store.add([image("b", X)]),
            lambda: store.query(ask(X)),
            lambda: store.query(ask(nodes[0].embedding, top_k=0)),
            lambda: store.query(ask(nodes[0].embedding, filters=too_deep)),
            lambda: create_vector_store(MODEL, uri=uri, token=token, collection_name=name),
            lambda: create_vector_store(clip, uri=uri, token=token, db_name="absent"),
            lambda: create_vector_store(
                clip, uri=uri, token=token, collection_name="other", full_text="english"
            ),
            lambda: read_passport(uri=uri, token=token, collection_name="absent"),
            lambda: retriever.retrieve(""),
            lambda: store.__reduce__(),
        )
        said += failing(MilvusException, lambda: store.client.search("absent", data=[X]))
    said += failing(Exception, lambda: retriever.retrieve("a cat"), lambda: store.client)
    said += [of_the_command_line("info", "--uri", uri, "--token", token, "--collection", name)]
    said += [of_the_command_line("info", "--uri", uri, "--token", token, "--collection", "absent")]
    said += heard
    said += [record.getMessage() for record in caplog.records] + [caplog.text]

    assert "secrets" in "".join(map(str, said))
    check(tally, "tokens and passwords in what comes out", said)


@pytest.mark.parametrize(
    "uri",
    [
        "http://127.0.0.1:1",
        "https://127.0.0.1:1",
        "tcp://127.0.0.1:1",
        "http://127.0.0.1:none",
        "grpc://127.0.0.1:1",
        "ftp://127.0.0.1:1/a",
    ],
)
def test_nor_does_what_is_said_of_an_address_that_does_not_work(uri, caplog, monkeypatch, tally):
    caplog.set_level(logging.DEBUG)
    for logger in ("pymilvus", "llama_index_clip_ext"):
        caplog.set_level(logging.DEBUG, logger=logger)
    uris = [address_with_password(uri), address_with_password(uri).replace("-", "/#?@")]
    uris += [one.partition("://")[2] for one in uris]
    said = []
    monkeypatch.setitem(Connection.__init__.__kwdefaults__, "timeout", 0.3)
    for one in uris:
        said += failing(
            (OSError, ValueError),
            lambda one=one: create_vector_store(MODEL, uri=one, token=TOKEN, timeout=0.3),
            lambda one=one: read_passport(uri=one, token=TOKEN),
        )
        said += [of_the_command_line("info", "--uri", one, "--token", TOKEN)]
    said += [record.getMessage() for record in caplog.records] + [caplog.text]

    check(tally, "tokens and passwords in errors of opening", said)
    assert "127.0.0.1" in "".join(said)
