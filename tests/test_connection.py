"""Which failures of a server are tried again, how often, and what is said, with a fake client."""

import logging
import math
import re
import time
from contextlib import nullcontext
from itertools import pairwise

import grpc
import pytest
from by_hand import MODEL, ask
from pymilvus.exceptions import MilvusException, ParamError

from llama_index_clip_ext import (
    AnswerTooLargeError,
    CollectionNotFoundError,
    StoreError,
    StoreUnavailableError,
    connection,
    create_vector_store,
)
from llama_index_clip_ext.connection import Connection, split_credentials

ADDRESS = "http://127.0.0.1:19530"


class Failure(grpc.RpcError):
    """What a call of gRPC raises."""

    def __init__(self, status, details=""):
        super().__init__()
        self._status = status
        self._details = details

    def code(self):
        return self._status

    def details(self):
        return self._details


class Client:
    """A client whose searches fail as often as they are told to."""

    def __init__(self):
        self.failures = []
        self.calls = []
        self.loaded = []
        self.seconds_to_load = []
        self.is_closed = False

    def search(self, name, *, timeout, **kwargs):
        self.calls.append((time.monotonic(), timeout))
        if self.failures:
            failure = self.failures.pop(0)
            raise failure() if callable(failure) else failure
        return [name, kwargs]

    query = search

    def load_collection(self, name, *, timeout, _async=False):
        self.loaded.append((name, _async))
        self.seconds_to_load.append(timeout)

    def close(self):
        self.is_closed = True


@pytest.fixture
def client(monkeypatch):
    """Have every server be reached by this client."""
    ours = Client()
    monkeypatch.setattr(connection, "_server_client", lambda *args: ours)
    return ours


def wrapped(failure):
    """What pymilvus makes of a failure to connect, whatever the failure is."""
    error = MilvusException(2, "Fail connecting to server on 127.0.0.1:19530")
    error.__cause__ = failure
    return error


PASSING = {
    "unavailable": Failure(grpc.StatusCode.UNAVAILABLE, "Connection refused"),
    "deadline": Failure(grpc.StatusCode.DEADLINE_EXCEEDED),
    "cancelled": Failure(grpc.StatusCode.CANCELLED),
    "of-pymilvus": MilvusException(grpc.StatusCode.UNAVAILABLE, "Retry timeout: 4s"),
    "of-pymilvus-2.6.11": MilvusException(Failure(grpc.StatusCode.UNAVAILABLE).code, "Retry"),
    "not-connected": wrapped(Failure(grpc.StatusCode.UNAVAILABLE)),
    "not-ready": MilvusException(1, "service not ready[standalone=2]: Abnormal"),
    "rate-limit": MilvusException(8, "rate limit exceeded"),
    "not-loaded": MilvusException(101, "failed to search: collection not loaded[collection=4]"),
    "not-fully-loaded": MilvusException(103, "collection not fully loaded"),
    "no-shard-leader": MilvusException(503, "channel not available[channel=by-dev]"),
    "no-node": MilvusException(901, "node not found[node=3]"),
}
LASTING = {
    "expression": MilvusException(1100, "failed to create query plan: cannot parse expression"),
    "of-2.3": MilvusException(65535, "cannot parse expression: nonsense"),
    "collection": MilvusException(100, "collection not found[collection=absent]"),
    "dimension": MilvusException(1, "the length(10) of float data should divide the dim(64)"),
    "of-the-client": ParamError(message="limit is wrong"),
    "quota": MilvusException(9, "quota exceeded[reason=memory quota exceeded]"),
    "token": wrapped(Failure(grpc.StatusCode.UNAUTHENTICATED, "auth check failure")),
    "none-of-milvus": TypeError("wrong type of argument"),
}


@pytest.mark.parametrize("failure", PASSING.values(), ids=PASSING)
def test_what_may_pass_is_tried_again(client, failure):
    client.failures = [failure, failure]

    found = Connection(ADDRESS, timeout=20).call("search", "photos", limit=3)

    assert found == ["photos", {"limit": 3}]
    assert len(client.calls) == 3


@pytest.mark.parametrize("failure", LASTING.values(), ids=LASTING)
def test_what_the_caller_did_wrong_is_not(client, failure):
    client.failures = [failure]
    is_of_python = isinstance(failure, TypeError)

    with pytest.raises(TypeError if is_of_python else StoreError) as caught:
        Connection(ADDRESS).call("search", "photos")

    assert len(client.calls) == 1
    assert not isinstance(caught.value, StoreUnavailableError)
    if is_of_python:
        assert caught.value is failure
    else:
        assert caught.value.__cause__ is failure
        assert ADDRESS in str(caught.value)
        assert "search of collection 'photos'" in str(caught.value)


def test_a_collection_that_is_gone_and_an_answer_too_large_have_errors_of_their_own(client):
    sizes = "trying to send message larger than max (90014887 vs. 67108864)"
    for failure, error in (
        (LASTING["collection"], CollectionNotFoundError),
        (Failure(grpc.StatusCode.RESOURCE_EXHAUSTED, sizes), AnswerTooLargeError),
        (MilvusException(65535, "query results exceed the limit size"), AnswerTooLargeError),
        (MilvusException(1, "exceed the maxOutputSize Limit, 104857600"), AnswerTooLargeError),
    ):
        client.failures = [failure]
        with pytest.raises(error):
            Connection(ADDRESS).call("query", "photos")


@pytest.mark.parametrize("status", ["PERMISSION_DENIED", "RESOURCE_EXHAUSTED", "UNIMPLEMENTED"])
def test_what_grpc_refuses_has_a_message(client, status):
    client.failures = [Failure(grpc.StatusCode[status], "for a reason")]

    with pytest.raises(StoreError, match=f"refuses search of .*: {status}: for a reason") as caught:
        Connection(ADDRESS).call("search", "photos")

    assert not isinstance(caught.value, StoreUnavailableError)
    assert len(client.calls) == 1


def test_waits_grow_and_end_with_the_time(client):
    client.failures = [PASSING["unavailable"]] * 1_000
    started = time.monotonic()

    with pytest.raises(StoreUnavailableError) as caught:
        Connection(ADDRESS, timeout=1.5).call("search", "photos")

    assert time.monotonic() - started < 1.5 + 5
    # At least 0.1, 0.2, 0.4, 0.8 s between them: a fifth would come too late.
    assert 2 <= len(client.calls) <= 4
    starts, limits = zip(*client.calls, strict=True)
    for number, (one, other) in enumerate(pairwise(starts)):
        assert other - one >= 0.1 * 2**number
    # No try may take longer than what is left.
    for number, limit in enumerate(limits):
        assert limit <= 1.5 - 0.1 * (2**number - 1)
    assert caught.value.address == ADDRESS
    message = str(caught.value)
    for said in (ADDRESS, "search of collection 'photos'", "Connection refused", "timeout="):
        assert said in message
    assert isinstance(caught.value.__cause__, Failure)


def test_waits_have_a_bound(client, monkeypatch):
    waits = []
    monkeypatch.setattr("tenacity.nap.time.sleep", waits.append)
    client.failures = [PASSING["unavailable"]] * 40

    Connection(ADDRESS, timeout=1_000).call("search", "photos")

    assert len(waits) == 40
    assert max(waits) <= 2.0 + 0.1


def test_a_collection_that_the_server_forgot_is_loaded(client):
    client.failures = [PASSING["not-loaded"]]

    Connection(ADDRESS).call("search", "photos")

    assert client.loaded == [("photos", True)]


def test_loading_it_has_the_time_that_is_left(client):
    """Not all of it again."""
    link = Connection(ADDRESS, timeout=60)

    def fail_late():
        time.sleep(0.2)
        return PASSING["not-loaded"]

    client.failures = [fail_late]
    link.call("search", "photos")

    assert client.seconds_to_load[0] <= 60 - 0.2


def test_that_it_is_away_is_said_once(client, caplog):
    link = Connection(ADDRESS)
    for is_back in (True, False, False, True, True):
        link.timeout = 60 if is_back else 0.3
        client.failures = [PASSING["unavailable"]] * (2 if is_back else 1_000)
        with nullcontext() if is_back else pytest.raises(StoreUnavailableError):
            link.call("search", "photos")

    told = [record.getMessage() for record in caplog.records if record.name == connection.__name__]
    # Away and back; away, away still, and back; away and back.
    assert len(told) == 3
    assert told[0] == (
        f"Milvus at {ADDRESS} does not answer (UNAVAILABLE: Connection refused); trying again "
        "for 60 s"
    )


def test_nobody_waits_for_a_store_that_is_closed(client):
    link = Connection(ADDRESS, timeout=60)

    def close():
        link.close()
        return PASSING["unavailable"]

    client.failures = [close, *[PASSING["unavailable"]] * 100]

    with pytest.raises(StoreError, match="is closed; open it again"):
        link.call("search", "photos")
    assert len(client.calls) == 1
    assert client.is_closed


def test_nothing_is_tried_again_on_an_embedded_file(store, monkeypatch):
    calls = []

    def search(*args, **kwargs):
        calls.append(kwargs)
        raise PASSING["unavailable"]

    monkeypatch.setattr(store.client, "search", search)
    with pytest.raises(StoreError, match="refuses search .*UNAVAILABLE"):
        store.query(ask([1.0] * store.dim))
    assert len(calls) == 1
    assert "timeout" not in calls[0]


@pytest.mark.parametrize("timeout", [0, -1, math.nan, math.inf, None, "5"])
def test_a_time_limit_is_more_than_nothing(timeout, tmp_path):
    with pytest.raises(ValueError, match="timeout is .*, expected seconds"):
        create_vector_store(MODEL, uri=tmp_path / "a.db", timeout=timeout)


def test_a_wrong_token_is_said_at_once(monkeypatch):
    tries = []

    def refuse(*args):
        tries.append(args)
        raise LASTING["token"]

    monkeypatch.setattr(connection, "_server_client", refuse)
    with pytest.raises(StoreError, match="UNAUTHENTICATED: auth check failure; check") as caught:
        Connection("http://root:s3cret@127.0.0.1:19530")
    assert not isinstance(caught.value, StoreUnavailableError)
    assert len(tries) == 1
    assert tries[0][:3] == (ADDRESS, "root:s3cret", "")


@pytest.mark.parametrize(
    ("uri", "address", "token"),
    [
        ("http://milvus:19530", "http://milvus:19530", ""),
        ("http://root:Milvus@milvus:19530/db", "http://milvus:19530/db", "root:Milvus"),
        ("https://key@cloud.example", "https://cloud.example", "key"),
        ("tcp://u:p@[::1]:19530", "tcp://[::1]:19530", "u:p"),
        ("http://u:p@ss/w#rd@milvus:19530", "http://milvus:19530", "u:p@ss/w#rd"),
        ("grpc://u:p@milvus", "grpc://milvus", "u:p"),
        ("u:p@milvus:19530", "milvus:19530", "u:p"),
        ("./photos.db", "./photos.db", ""),
        ("me@home/my:photos.db", "me@home/my:photos.db", ""),
        ("me@home/photos.db/", "me@home/photos.db/", ""),
        ("unix:/run/milvus.sock", "unix:/run/milvus.sock", ""),
    ],
)
def test_credentials_are_taken_out_of_an_address(uri, address, token):
    assert split_credentials(uri) == (address, token)


@pytest.mark.parametrize(
    ("uri", "said"),
    [
        ("http:/root:s3cret@127.0.0.1/x.db", "lacks the // of"),
        ("http://127.0.0.1:1?user=root&password=s3cret", "http://127.0.0.1:1 and a query"),
        ("https://127.0.0.1:1#s3cret", "https://127.0.0.1:1 and a query or fragment"),
        ("http://root:s3cret@127.0.0.1:1/x.db", "http://127.0.0.1:1/x.db': a server's address"),
        ("tcp:s3cret.db", "lacks the //"),
        ("http://root:s3cret@milvus:none", "'http://milvus:none': Port"),
        ("http://root:s3cret@milvus:70000", "'http://milvus:70000': Port"),
        ("http://root:s3cret@[::1", "Invalid IPv6"),
        ("http://root:s3cret@", "expected http://HOST:PORT"),
    ],
)
def test_an_address_that_is_none_is_refused_and_no_secret_said(uri, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=re.escape(said)) as caught:
        create_vector_store(MODEL, uri=uri)
    assert "s3cret" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("uri", [None, b"a.db", 5])
def test_a_uri_is_text(uri):
    with pytest.raises(TypeError, match=type(uri).__name__):
        create_vector_store(MODEL, uri=uri)


@pytest.mark.parametrize("uri", ["~nosuchuser/x.db", "a\0b.db"])
def test_a_path_that_is_none_is_named(uri):
    with pytest.raises(StoreError, match="is no path") as caught:
        create_vector_store(MODEL, uri=uri)
    assert repr(uri) in str(caught.value)


@pytest.mark.parametrize("uri", ["grpc://root:s3cret@milvus", "root:s3cret@milvus:19530"])
def test_an_address_that_is_none_is_refused_without_its_credentials(uri):
    with pytest.raises(StoreError) as caught:
        create_vector_store(MODEL, uri=uri)
    assert "milvus" in str(caught.value)
    assert "s3cret" not in str(caught.value)


def warnings_of(caplog, *args):
    connection._warn_if_exposed.cache_clear()
    for _ in range(2):  # Once for each address, not for each store.
        Connection(*args).close()
    return [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]


@pytest.mark.parametrize(
    "uri",
    [
        "http://localhost:19530",
        "http://127.0.0.1:19530",
        "http://127.1.2.3:19530",
        "http://[::1]:19530",
        "http://[::ffff:127.0.0.1]:19530",
        "unix:///run/milvus.sock",
    ],
)
def test_a_server_on_this_machine_gets_no_warning(client, caplog, uri):
    assert warnings_of(caplog, uri) == []


@pytest.mark.parametrize(
    ("uri", "token", "said"),
    [
        ("http://milvus.example:19530", "key", ("without TLS",)),
        ("http://root:Milvus@10.0.0.5:19530", "", ("without TLS",)),
        ("https://milvus.example", "", ("without a token",)),
        ("tcp://[2001:db8::1]:19530", "", ("without TLS", "without a token")),
        ("http://127.0.0.1.example:19530", "", ("without TLS", "without a token")),
    ],
)
def test_a_server_that_others_reach_gets_one(client, caplog, uri, token, said):
    (warning,) = warnings_of(caplog, uri, token)

    for one in ("without TLS", "without a token"):
        assert (one in warning) == (one in said)
    for secret in ("key", "Milvus@", "root"):
        assert secret not in warning
    host = uri.rpartition("@")[2].rpartition("//")[2].removesuffix(":19530").strip("[]")
    assert f"Milvus at {host} is reached without" in warning


def test_a_safe_server_gets_none(client, caplog):
    assert warnings_of(caplog, "https://milvus.example", "key") == []


def test_a_search_by_the_store_names_what_failed(client, monkeypatch):
    # All that opening asks for.
    monkeypatch.setattr(Client, "has_collection", lambda *args, **kwargs: False, raising=False)
    monkeypatch.setattr(
        Client,
        "create_collection",
        lambda *args, **kwargs: (_ for _ in ()).throw(PASSING["unavailable"]),
        raising=False,
    )
    with pytest.raises(StoreUnavailableError, match="create_collection of collection 'clip_ext'"):
        create_vector_store(MODEL, uri=ADDRESS, timeout=0.2)
    assert client.is_closed
