"""A real Milvus server with TLS, passwords and roles; how it is opened, emptied and overwritten.

The server asks for a client's certificate and for a password, and its certificate names a host that
is not its address. One server serves the module, since a start takes some 15 seconds.
"""

import logging
import time
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import grpc
import pytest
from by_hand import MODEL, X, Y, ask, image, text
from pymilvus import MilvusClient
from pymilvus.client.types import LoadState
from pymilvus.exceptions import MilvusException
from server_process import ServerProcess

from llama_index_clip_ext import (
    CLIPRetriever,
    StoreError,
    StoreUnavailableError,
    connection,
    create_vector_store,
    ingest_images,
)
from llama_index_clip_ext.collection import index_config

HOST = "milvus.test"
PASSWORD = "Milvus"
SECRET = "s3cret-s3cret"
MUTUAL = ("ca_pem_path", "client_pem_path", "client_key_path")

# Seconds. A refused connection must end within SOON, although the server may be slow.
SHORT = 3
SOON = SHORT + 5


def write_certificate(certificate, folder, name):
    """Write a certificate and its key; return the paths of both."""
    pem, key = folder / f"{name}.pem", folder / f"{name}.key"
    for number, part in enumerate(certificate.cert_chain_pems):
        part.write_to_path(pem, append=number > 0)
    certificate.private_key_pem.write_to_path(key)
    return str(pem), str(key)


@pytest.fixture(scope="module")
def certificates(tmp_path_factory):
    """Paths of the certificates: the server's, a client's, and those of an unknown CA."""
    trustme = pytest.importorskip("trustme", reason="the certificates of the tests need trustme")
    folder = tmp_path_factory.mktemp("certificates")
    paths = {}
    for prefix in ("", "unknown_"):
        ca = trustme.CA()
        paths[f"{prefix}ca_pem_path"] = str(folder / f"{prefix}ca.pem")
        ca.cert_pem.write_to_path(paths[f"{prefix}ca_pem_path"])
        for role, name in (("server", HOST), ("client", "client.test")):
            pem, key = write_certificate(ca.issue_cert(name), folder, prefix + role)
            paths[f"{prefix}{role}_pem_path"] = pem
            paths[f"{prefix}{role}_key_path"] = key
    return paths


@pytest.fixture(scope="module")
def tls(certificates):
    """The options by which a client is let in, besides its password."""
    return {**{name: certificates[name] for name in MUTUAL}, "server_name": HOST}


@pytest.fixture(scope="module")
def address(certificates, tls, tmp_path_factory):
    """The address of the server."""
    process = ServerProcess(
        tmp_path_factory.mktemp("secured"),
        scheme="https",
        settings={
            "COMMON_SECURITY_AUTHORIZATIONENABLED": "true",
            "COMMON_SECURITY_TLSMODE": "2",
            "TLS_SERVERPEMPATH": certificates["server_pem_path"],
            "TLS_SERVERKEYPATH": certificates["server_key_path"],
            "TLS_CAPEMPATH": certificates["ca_pem_path"],
        },
        token=f"root:{PASSWORD}",
        **tls,
    )
    try:
        process.start()
        yield process.address
    finally:
        process.kill()


@pytest.fixture(scope="module")
def options(address, tls):
    """The options by which root opens a collection."""
    return {"uri": address, "token": f"root:{PASSWORD}", **tls}


@pytest.fixture(scope="module")
def filled(options):
    """The name of a collection that holds two images and a text."""
    with create_vector_store(MODEL, **options, collection_name="filled") as store:
        store.add([image("a", X), image("b", Y), text("t", X)])
    return "filled"


# Certificates and passwords.


def test_a_client_with_a_certificate_and_a_password_adds_and_searches(options):
    with create_vector_store(MODEL, **options, collection_name="mutual") as store:
        store.add([image("a", X), text("t", Y)])

        assert store.query(ask(X)).ids == ["a", "t"]
        assert store.get_nodes(["a"])[0].embedding == X
        assert store.count() == 2


def refused(error, options):
    """Open a collection that must not open; return the error's text and the seconds it took."""
    started = time.monotonic()
    with pytest.raises(StoreError) as caught:
        create_vector_store(MODEL, **{"timeout": SHORT, **options})
    seconds = time.monotonic() - started
    assert type(caught.value) is error
    assert options["uri"] in str(caught.value)
    return str(caught.value), seconds


@pytest.fixture
def with_secret(options):
    """The options with a wrong password, which must not be shown."""
    return {**options, "token": f"root:{SECRET}"}


@pytest.mark.parametrize("is_given", [False, True], ids=["no CA", "another CA"])
def test_a_server_of_an_unknown_ca_is_refused_at_once(certificates, with_secret, caplog, is_given):
    if is_given:
        options = {**with_secret, "ca_pem_path": certificates["unknown_ca_pem_path"]}
    else:
        options = {"uri": with_secret["uri"], "token": with_secret["token"]}

    message, seconds = refused(StoreError, options)

    assert "CERTIFICATE_VERIFY_FAILED" in message
    assert "check the address, token, db_name and certificates" in message
    assert SECRET not in message + caplog.text
    assert seconds < SHORT  # Another try would not help, so there is none.


@pytest.mark.parametrize("is_given", [False, True], ids=["no certificate", "of another CA"])
def test_a_client_without_a_valid_certificate_is_refused_in_time(
    certificates, with_secret, caplog, is_given
):
    options = dict(with_secret)
    for name in MUTUAL[1:]:
        del options[name]
        if is_given:
            options[name] = certificates[f"unknown_{name}"]

    # The server closes the connection without a reason, as one that restarts does.
    message, seconds = refused(StoreUnavailableError, options)

    assert "did not answer" in message
    assert SECRET not in message + caplog.text
    assert seconds < SOON


def test_a_certificate_of_another_host_is_refused_in_time(with_secret, caplog):
    """The address is not in the certificate, so that server_name= is needed."""
    options = {name: with_secret[name] for name in with_secret if name != "server_name"}
    started = time.monotonic()

    with pytest.raises(StoreError, match="Hostname Verification Check failed") as caught:
        create_vector_store(MODEL, **options, timeout=SHORT)

    assert time.monotonic() - started < SOON
    assert SECRET not in str(caught.value) + caplog.text


@pytest.mark.parametrize("place", ["token", "uri", "nowhere"])
def test_a_wrong_password_is_said_at_once_and_not_shown(with_secret, caplog, place):
    options = dict(with_secret)
    if place != "token":
        options["token"] = ""
    if place == "uri":
        options["uri"] = options["uri"].replace("https://", f"https://root:{SECRET}@")
    started = time.monotonic()

    with pytest.raises(StoreError, match="UNAUTHENTICATED.*check the address, token") as caught:
        create_vector_store(MODEL, **options, timeout=SHORT)

    assert not isinstance(caught.value, StoreUnavailableError)
    assert time.monotonic() - started < SHORT
    assert SECRET not in f"{caught.value} {caught.value.__cause__} {caplog.text}"


# A role that only reads. DescribeCollection, IndexDetail and ShowCollections are public.

READS = ("Query", "Search", "ShowPartitions")


def make_reader(admin, name, collection_name, privileges):
    """Create a user with these privileges on one collection; return its token."""
    admin.create_user(name, SECRET)
    admin.create_role(name)
    for privilege in privileges:
        admin.grant_privilege(name, "Collection", privilege, collection_name)
    admin.grant_role(name, name)
    return f"{name}:{SECRET}"


# Milvus asks for Load from 2.3.2 to 2.4.9 before it says whether a collection is loaded.
@pytest.mark.parametrize("privileges", [READS, (*READS, "Load")], ids=["reads", "reads and loads"])
def test_a_role_that_only_reads_searches_and_cannot_write(clip, options, pictures, privileges):
    name = f"reader_{len(privileges)}"
    with create_vector_store(clip, **options, collection_name=name) as store:
        report = ingest_images(pictures, embed_model=clip, vector_store=store)
        assert report.added == 5
        token = make_reader(store.client, name, name, privileges)
        ids = store.get_ids()

        read_only = {**options, "token": token, "collection_name": name}
        with create_vector_store(clip, **read_only) as reader:
            hits = CLIPRetriever(clip, reader).retrieve("a red picture")
            assert sorted(hit.node_id for hit in hits) == ids
            assert reader.count() == 5
            assert reader.get_ids() == ids

            for write in (
                lambda: reader.add([text("new", clip.get_text_embedding("new"))]),
                lambda: reader.add(reader.get_nodes(ids[:1])),
                lambda: reader.delete_nodes(ids[:1]),
                reader.clear,
                reader.flush,
            ):
                with pytest.raises(StoreError, match=f"refuses .*{name!r}: PERMISSION_DENIED"):
                    write()
            assert reader.count() == 5

        assert store.get_ids() == ids
        assert store.count() == 5


def test_a_role_that_only_reads_cannot_open_what_is_not_loaded(options):
    with create_vector_store(MODEL, **options, collection_name="released") as store:
        store.add([image("a")])
        token = make_reader(store.client, "released_reader", "released", READS)
        store.client.release_collection("released")

        read_only = {**options, "token": token, "collection_name": "released"}
        with pytest.raises(StoreError, match="PERMISSION_DENIED: PrivilegeLoad"):
            create_vector_store(MODEL, **read_only)


def test_a_role_that_only_reads_cannot_overwrite(options):
    with create_vector_store(MODEL, **options, collection_name="kept") as store:
        store.add([image("a")])
        token = make_reader(store.client, "kept_reader", "kept", READS)

        with pytest.raises(StoreError, match="PERMISSION_DENIED: PrivilegeDropCollection"):
            create_vector_store(
                MODEL, **{**options, "token": token}, collection_name="kept", overwrite=True
            )

        assert store.get_ids() == ["a"]


# The index of Zilliz Cloud.


@pytest.mark.parametrize(
    "uri",
    [
        "https://in03-0123456789abcde.serverless.gcp-us-west1.cloud.zilliz.com",
        "https://in03-0123456789abcde.serverless.ali-cn-hangzhou.cloud.zilliz.com.cn",
        "https://in01-0123456789abcde.aws-us-west-2.cloud.zilliz.com:19530",
        "https://in01-0123456789abcde.ali-cn-hangzhou.cloud.zilliz.com.cn:19530",
        "https://in01-0123456789abcde.aws-us-west-2.vectordb.zillizcloud.com:19530",
        "https://in01-0123456789abcde.ali-cn-hangzhou.vectordb.zillizcloud.com.cn:19530",
        "https://in01-0123456789abcde.ali-cn-hangzhou.vectordb.zilliz.com.cn:19530",
        "HTTPS://IN03-0123456789ABCDE.SERVERLESS.GCP-US-WEST1.CLOUD.ZILLIZ.COM:443",
        "https://in03-0123456789abcde.serverless.gcp-us-west1.cloud.zilliz.com.:443",
    ],
)
def test_zilliz_cloud_gets_its_only_index(uri):
    assert index_config(uri, "auto", "auto") == {
        "index_type": "AUTOINDEX",
        "metric_type": "COSINE",
    }


@pytest.mark.parametrize(
    "uri",
    [
        "https://cloud.zilliz.com.evil.example",
        "https://in01.vectordb.zillizcloud.com.evil.example:19530",
        "https://in01.cloud-zilliz.com",
        "https://notzilliz.com:19530",
        "https://notzillizcloud.com:19530",
        "https://in01.cloud.zilliz.com.ru",
        "https://milvus.example/in01.cloud.zilliz.com",
        "https://10.0.0.5:19530",
    ],
)
def test_a_host_that_only_looks_like_zilliz_cloud_gets_hnsw(uri):
    assert index_config(uri, "auto", "auto")["index_type"] == "HNSW"


class NewCollection:
    """A client of a server without collections, which ends with the index it is asked to make."""

    class EndError(Exception):
        """Ends the opening."""

    def __init__(self):
        self.indexes = []

    def has_collection(self, name, *, timeout):
        return False

    def create_collection(self, name, *, timeout, **kwargs):
        pass

    def create_index(self, name, index_params, *, timeout):
        self.indexes += [one.to_dict() for one in index_params]
        raise self.EndError

    def close(self):
        pass


@pytest.mark.parametrize(
    ("host", "index_type"),
    [
        ("in03-0123456789abcde.serverless.gcp-us-west1.cloud.zilliz.com", "AUTOINDEX"),
        ("cloud.zilliz.com.evil.example", "HNSW"),
    ],
)
def test_a_new_collection_gets_the_index_of_its_host(monkeypatch, host, index_type):
    client = NewCollection()
    monkeypatch.setattr(connection, "_server_client", lambda *args: client)

    with pytest.raises(NewCollection.EndError):
        create_vector_store(MODEL, uri=f"https://{host}:443", token="key")

    assert [one["index_type"] for one in client.indexes] == [index_type]


# Loading.


@pytest.fixture
def loads(monkeypatch):
    """Record the collections that clients load from now on."""
    names = []
    load = MilvusClient.load_collection

    def recorded(self, name, *args, **kwargs):
        names.append(name)
        return load(self, name, *args, **kwargs)

    monkeypatch.setattr(MilvusClient, "load_collection", recorded)
    return names


def test_a_collection_that_is_loaded_is_not_loaded_again(options, filled, loads):
    with create_vector_store(MODEL, **options, collection_name=filled) as store:
        assert store.count() == 3
        assert loads == []

        # Otherwise it is, which also tells that the recorder works.
        store.client.release_collection(filled)
        with create_vector_store(MODEL, **options, collection_name=filled) as again:
            assert again.count() == 3
        assert loads == [filled]


class Loading:
    """A load that the server accepts, and whose progress the test decides.

    Args:
        progress: Percentages that the server tells, one after another; the last for ever.
    """

    LONGEST = 20

    def __init__(self, progress):
        self.progress = progress
        self.asked = 0
        self.started = None

    def load_collection(self, client, name, **kwargs):
        self.started = time.monotonic()

    def get_load_state(self, client, name, **kwargs):
        if self.started is None:
            return {"state": LoadState.NotLoad}
        # So that opening fails the test where it would wait for ever.
        assert time.monotonic() - self.started < self.LONGEST, "it still waits for a stuck load"
        now = self.progress[min(self.asked, len(self.progress) - 1)]
        self.asked += 1
        if now == 100:
            return {"state": LoadState.Loaded}
        return {"state": LoadState.Loading, "progress": f"{now}%"}

    def replace(self, monkeypatch):
        """Have every client load by this."""
        for name in ("load_collection", "get_load_state"):
            call = getattr(self, name)
            monkeypatch.setattr(
                MilvusClient, name, lambda *args, call=call, **kwargs: call(*args, **kwargs)
            )


def said(caplog):
    """Return the seconds since the epoch and the text of each warning of the connection."""
    return [
        (record.created, record.getMessage())
        for record in caplog.records
        if record.name == connection.__name__ and record.levelno >= logging.WARNING
    ]


def test_a_load_that_is_stuck_is_said_and_ends(options, filled, monkeypatch, caplog):
    Loading([40]).replace(monkeypatch)
    timeout = 8
    monkeypatch.setattr(connection, "_LOADS_WITHIN", 1)
    started, began = time.monotonic(), time.time()

    with pytest.raises(StoreUnavailableError, match="is stuck at 40 %") as caught:
        create_vector_store(MODEL, **options, collection_name=filled, timeout=timeout)

    assert timeout <= time.monotonic() - started < timeout + 5
    assert caught.value.address == options["uri"]
    assert f"{filled!r}" in str(caught.value)
    assert "timeout=" in str(caught.value)
    when, first = said(caplog)[0]
    assert f"is loading collection {filled!r}: 40 % after" in first
    assert when - began < timeout


def test_a_load_that_makes_progress_may_take_longer_than_the_timeout(options, filled, monkeypatch):
    loading = Loading([*range(0, 100, 2), 100])
    loading.replace(monkeypatch)
    started = time.monotonic()

    with create_vector_store(MODEL, **options, collection_name=filled, timeout=SHORT) as store:
        assert time.monotonic() - started > SHORT
        assert store.count() == 3
    assert loading.asked == 51


class Unanswered(grpc.RpcError):
    """What a call raises whose time is up."""

    def code(self):
        return grpc.StatusCode.DEADLINE_EXCEEDED

    def details(self):
        return "Deadline Exceeded"


def test_a_load_that_is_not_answered_ends_at_the_deadline(options, filled, monkeypatch):
    limits = []

    def hang(self, name, *, timeout, **kwargs):
        limits.append(timeout)
        time.sleep(timeout)
        raise Unanswered

    monkeypatch.setattr(MilvusClient, "load_collection", hang)
    monkeypatch.setattr(
        MilvusClient, "get_load_state", lambda *args, **kwargs: {"state": LoadState.NotLoad}
    )
    started = time.monotonic()

    with pytest.raises(StoreUnavailableError, match=f"load_collection of .*{filled!r}.*DEADLINE"):
        create_vector_store(MODEL, **options, collection_name=filled, timeout=SHORT)

    assert SHORT <= time.monotonic() - started < SOON
    assert limits
    assert max(limits) <= SHORT


@pytest.mark.parametrize("method", ["describe_collection", "load_collection", "query"])
def test_a_server_that_is_not_ready_while_a_collection_is_opened_is_unavailable(
    options, filled, monkeypatch, method
):
    """Milvus says this in an answer of its own, while it starts."""

    def refuse(*args, **kwargs):
        raise MilvusException(1, "service not ready[standalone=2]: Abnormal")

    monkeypatch.setattr(MilvusClient, method, refuse)
    monkeypatch.setattr(
        MilvusClient, "get_load_state", lambda *args, **kwargs: {"state": LoadState.NotLoad}
    )

    with pytest.raises(StoreUnavailableError, match=f"{method} of .*service not ready") as caught:
        create_vector_store(MODEL, **options, collection_name=filled, timeout=1)

    assert caught.value.address == options["uri"]


# Deletes.


@pytest.fixture
def levels(monkeypatch):
    """Record the consistency level of each read from now on."""
    seen = []
    for method in ("query", "search"):
        call = getattr(MilvusClient, method)

        def recorded(self, *args, call=call, **kwargs):
            seen.append(kwargs.get("consistency_level"))
            return call(self, *args, **kwargs)

        monkeypatch.setattr(MilvusClient, method, recorded)
    return seen


@pytest.fixture(scope="module")
def numbered(options):
    with create_vector_store(MODEL, **options, collection_name="numbered") as store:
        yield store


@pytest.fixture
def deleting(numbered):
    """A collection of ten images, each its own document."""
    numbered.clear()
    numbered.add([image(str(number), X, number=number) for number in range(10)])
    assert numbered.count() == 10
    return numbered


def delete_by_id(store, node_id):
    return store.delete_nodes([node_id])


def delete_by_document(store, node_id):
    return store.delete(node_id)


@pytest.mark.parametrize("delete", [delete_by_id, delete_by_document])
def test_many_deletes_wait_for_the_server_once(deleting, levels, delete):
    levels.clear()

    deleted = [delete(deleting, str(number)) for number in range(5)]
    found = deleting.query(ask(top_k=20)).ids

    assert deleted == [1] * 5
    assert sorted(found) == ["5", "6", "7", "8", "9"]
    assert levels.count("Strong") <= 1, levels
    assert levels[-1] == "Strong"  # Without it, the read may find what was deleted.


@pytest.mark.parametrize("delete", [delete_by_id, delete_by_document])
def test_a_delete_ends_without_a_read_of_its_own(deleting, levels, monkeypatch, delete):
    """A client that only deletes need not wait until the server has done it."""
    send = MilvusClient.delete

    def sent(self, *args, **kwargs):
        levels.append("delete")
        return send(self, *args, **kwargs)

    monkeypatch.setattr(MilvusClient, "delete", sent)
    levels.clear()

    for number in range(5):
        delete(deleting, str(number))

        assert levels[-1] == "delete"
    assert levels.count("delete") == 5


@pytest.mark.parametrize("delete", [delete_by_id, delete_by_document])
def test_what_was_deleted_is_neither_found_nor_counted_nor_deleted_again(deleting, delete):
    for number in range(10):
        node_id = str(number)
        assert delete(deleting, node_id) == 1
        match number % 4:
            case 0:
                assert node_id not in deleting.query(ask(top_k=20)).ids
            case 1:
                assert deleting.get_nodes([node_id]) == []
            case 2:
                assert deleting.count() == 9 - number
            case 3:
                assert delete(deleting, node_id) == 0
    assert deleting.get_ids() == []


@pytest.mark.parametrize("delete", [delete_by_id, delete_by_document])
def test_what_was_just_written_is_deleted(deleting, delete):
    for number in range(10, 15):
        node_id = str(number)
        deleting.add([image(node_id, Y)])
        assert delete(deleting, node_id) == 1
    assert len(deleting.query(ask(top_k=20)).ids) == 10


# Several clients that overwrite.


# Seconds from one drop to the next: while another client makes, checks or loads its collection.
@pytest.mark.parametrize(
    "interval", [0, *(pytest.param(one, marks=pytest.mark.long) for one in (0.1, 0.4))]
)
def test_three_that_overwrite_at_once_all_get_an_empty_collection(options, monkeypatch, interval):
    contested = {**options, "collection_name": f"contested_{int(interval * 10)}"}
    with create_vector_store(MODEL, **contested) as store:
        store.add([image(str(number)) for number in range(20)])
        assert store.count() == 20
    drop = MilvusClient.drop_collection
    begin = Barrier(3)
    began = []

    def drop_together(self, *args, **kwargs):
        if self not in began:  # A client that has to begin again does so by itself.
            began.append(self)
            # Each client has found the old collection by now.
            time.sleep(interval * begin.wait(30))
        return drop(self, *args, **kwargs)

    def overwrite(_):
        with create_vector_store(MODEL, **contested, overwrite=True) as store:
            return store.passport.space

    monkeypatch.setattr(MilvusClient, "drop_collection", drop_together)
    with ThreadPoolExecutor(3) as threads:
        spaces = list(threads.map(overwrite, range(3)))

    assert spaces == [MODEL.space] * 3
    with create_vector_store(MODEL, **contested) as store:
        assert store.count() == 0
        assert store.query(ask()).ids == []
        store.add([image("new")])
        assert store.query(ask()).ids == ["new"]
