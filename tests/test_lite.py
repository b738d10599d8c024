"""An embedded file whose disk fails, is full, or was left by a process that was killed.

The failures are real: something lies where Milvus Lite makes a file or folder.
"""

import asyncio
import gc
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections import namedtuple
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from by_hand import MODEL, X, Y, ask, image, text
from filter_oracle import group, one
from llama_index.core import Document, StorageContext
from llama_index.core.schema import ImageDocument
from llama_index.vector_stores.milvus import MilvusVectorStore
from PIL import Image
from pymilvus import AsyncMilvusClient, MilvusClient

import llama_index_clip_ext
from llama_index_clip_ext import (
    CLIPVectorStoreIndex,
    EmbeddingSpaceMismatchError,
    StoreError,
    StoreLockedError,
    create_vector_store,
    ingest_images,
    lite,
)
from llama_index_clip_ext.lite import _release_server, _servers, lock_holder
from llama_index_clip_ext.passport import PROPERTY
from llama_index_clip_ext.rows import node_to_row
from llama_index_clip_ext.vectors import l2_normalize

# Milvus Lite drops the log of a flush that failed, and Python finds it open.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")

N = 1_000  # Rows after which the next search has them put into files.
Usage = namedtuple("Usage", "total used free")


@pytest.fixture
def path(tmp_path):
    yield tmp_path / "a.db"
    gc.collect()  # So that it is found in the test that it is of.


def collection_of(path):
    return path / "collections" / "clip_ext"


def images_of(path):
    return collection_of(path) / "partitions" / "images"


def logs_of(path):
    return list(collection_of(path).glob("wal/*.arrow"))


def size_of(files):
    return sum(file.stat().st_size for file in files)


def run_child(code, folder, *, ends_with=0):
    """Run code in another process, whose embedded file is in a folder."""
    tests, package = Path(__file__).parent, Path(llama_index_clip_ext.__file__).parents[1]
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": f"{tests}{os.pathsep}{package}"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == ends_with, done.stderr


def wait_until(condition):
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def set_free(monkeypatch, mebibytes):
    usage = Usage(2**40, 0, int(mebibytes * 2**20))
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)


# Writing fails.


def test_after_a_failed_flush_the_file_is_closed_and_nothing_is_lost(path):
    store = create_vector_store(MODEL, uri=path)
    store.add([image(f"a{number}") for number in range(N)])
    data = images_of(path) / "data"
    data.parent.mkdir(exist_ok=True)
    data.write_text("in the way")

    with pytest.raises(StoreError, match=r"a\.db could not be written \(File exists\)"):
        store.query(ask())
    data.unlink()

    # Going on would flush again, which deletes the log of what had failed.
    with pytest.raises(StoreError, match="open the store again"):
        store.add([image("b")])
    with pytest.raises(StoreError, match="open the store again"):
        store.count()
    store.close()
    with create_vector_store(MODEL, uri=path) as again:
        assert again.count() == N
        again.add([image("b")])
        assert len(again.query(ask(top_k=2 * N)).ids) == N + 1


def test_after_a_failed_write_the_file_is_closed_and_nothing_is_lost(path):
    with create_vector_store(MODEL, uri=path) as store:
        store.add([image("a")])
        log_of_deletes = collection_of(path) / "wal" / "wal_delta_000001.arrow"
        log_of_deletes.mkdir()
        with pytest.raises(StoreError, match=r"\(Is a directory\) and was closed"):
            store.delete_nodes(["a"])
    log_of_deletes.rmdir()

    with create_vector_store(MODEL, uri=path) as store:
        assert store.get_ids() == ["a"]


def test_a_store_beside_one_that_failed_says_the_same_until_it_is_opened_again(path):
    first = create_vector_store(MODEL, uri=path)
    beside = create_vector_store(MODEL, uri=path)
    beside.add([image(f"a{number}") for number in range(N)])
    images_of(path).mkdir(exist_ok=True)
    (images_of(path) / "data").write_text("in the way")
    with pytest.raises(StoreError, match="could not be written"):
        beside.query(ask())
    (images_of(path) / "data").unlink()

    with pytest.raises(StoreError, match="could not be written"):
        first.get_ids()
    with create_vector_store(MODEL, uri=path) as again:
        first.close()
        beside.close()
        assert again.count() == N


# The disk is full, or not to be written.


def test_a_full_disk_is_told_before_a_write_and_costs_nothing(path, monkeypatch):
    with create_vector_store(MODEL, uri=path) as store:
        store.add([image("a")])
        set_free(monkeypatch, 3)

        with pytest.raises(StoreError, match=r"a\.db is full: 3 MiB are free, and 64 MiB may be"):
            store.add([image("b")])
        with pytest.raises(StoreError, match="is full"):
            store.delete_nodes(["a"])
        assert store.query(ask()).ids == ["a"]

        set_free(monkeypatch, 300)
        store.add([image("b")])
        assert sorted(store.get_ids()) == ["a", "b"]


def test_an_ingest_that_found_the_disk_full_goes_on_once_there_is_room(
    clip, store, pictures, monkeypatch
):
    set_free(monkeypatch, 3)
    with pytest.raises(StoreError, match="is full"):
        ingest_images(pictures, embed_model=clip, vector_store=store)

    set_free(monkeypatch, 300)
    assert ingest_images(pictures, embed_model=clip, vector_store=store).added == 5


def test_what_waits_in_the_log_counts_as_needed(path, monkeypatch):
    with create_vector_store(MODEL, uri=path) as store:
        store.add([image(f"a{number}", about="x" * 10_000) for number in range(50)])
        (log,) = logs_of(path)
        set_free(monkeypatch, 64 + 3 * log.stat().st_size / 2**20 - 0.1)
        with pytest.raises(StoreError, match="is full"):
            store.add([image("b")])
        set_free(monkeypatch, 64 + 3 * log.stat().st_size / 2**20 + 0.1)
        store.add([image("b")])


def test_on_a_full_disk_a_search_leaves_the_rows_in_the_log(path, monkeypatch):
    with create_vector_store(MODEL, uri=path) as store:
        store.add([image(f"a{number}") for number in range(N)])
        set_free(monkeypatch, 3)
        assert len(store.query(ask(top_k=2 * N)).ids) == N
        assert logs_of(path)

        set_free(monkeypatch, 300)
        assert len(store.query(ask(top_k=2 * N)).ids) == N
        assert not logs_of(path)


def test_files_take_at_most_the_room_that_is_kept_for_them(path):
    """Random vectors and ids, which nothing shortens."""
    rows = l2_normalize(np.random.default_rng(0).normal(size=(N, 512)).astype(np.float32))
    ids = [hashlib.sha256(bytes(row)).hexdigest() for row in rows]
    with create_vector_store(MODEL.but(dim=512), uri=path) as store:
        store.add([image(*pair) for pair in zip(ids, rows.tolist(), strict=True)])
        written = size_of(logs_of(path))
    assert 1.5 * written < size_of(images_of(path).glob("*/*")) < 3 * written

    with create_vector_store(MODEL.but(dim=512), uri=path) as store:
        store.delete_nodes(ids)
        written = size_of(logs_of(path))
    assert 2 * written < size_of(collection_of(path).glob("partitions/*/delta/*")) < 3 * written


def test_a_file_that_vanished_while_it_was_open_is_told(path):
    with create_vector_store(MODEL, uri=path) as store:
        store.add([image("a")])
        path.rename(path.with_name("b.db"))
        with pytest.raises(StoreError, match=r"a\.db is gone: it was moved or deleted"):
            store.add([image("b")])
        path.with_name("b.db").rename(path)
        store.add([image("b")])


OTHER_PROCESS = """
import sys
from by_hand import MODEL, image
from llama_index_clip_ext import create_vector_store
with create_vector_store(MODEL, uri=sys.argv[1]) as store:
    for line in sys.stdin:
        store.add([image(line.strip())])
        print(store.count(), flush=True)
"""


def test_a_file_that_was_replaced_while_it_was_open_is_left_to_who_has_it(path):
    """Two processes would write one file, and who closes deletes the log of the other."""
    store = create_vector_store(MODEL, uri=path)
    store.add([image("a")])
    shutil.rmtree(path)
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path]),
    }
    with subprocess.Popen(
        [sys.executable, "-c", OTHER_PROCESS, str(path)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment,
    ) as other:  # fmt: skip
        for number in range(2):
            other.stdin.write(f"b{number}\n")
            other.stdin.flush()
            assert other.stdout.readline() == f"{number + 1}\n"
            with pytest.raises(StoreError, match="deleted or replaced while it was open"):
                store.add([image("a2")])
        with pytest.raises(StoreLockedError) as caught:
            create_vector_store(MODEL, uri=path)
        assert caught.value.pid == other.pid
        store.close()
    with create_vector_store(MODEL, uri=path) as store:
        assert sorted(store.get_ids()) == ["b0", "b1"]


def test_a_file_that_was_deleted_is_made_anew(path):
    old = create_vector_store(MODEL, uri=path)
    old.add([image("a")])
    shutil.rmtree(path)
    with create_vector_store(MODEL, uri=path) as store:
        assert store.count() == 0
        store.add([image("b")])
        with pytest.raises(StoreError, match="deleted or replaced"):
            old.count()
        old.close()
        assert store.get_ids() == ["b"]
    with create_vector_store(MODEL, uri=path) as store:
        assert store.get_ids() == ["b"]


def test_a_proxy_is_not_asked_to_reach_this_process(path, monkeypatch):
    for name in ("http_proxy", "https_proxy", "grpc_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    with create_vector_store(MODEL, uri=path) as store:
        store.add([image("a")])
        assert store.count() == 1


def test_a_file_that_is_opened_in_vain_is_unlocked(path):
    with create_vector_store(MODEL, uri=path) as store:
        store.add([image("a")])
    index = images_of(path) / "indexes" / "embedding.flat.idx"
    index.mkdir(parents=True)
    with pytest.raises(StoreError, match="could not be used: .*Is a directory"):
        create_vector_store(MODEL, uri=path)
    assert lock_holder(path / "LOCK") is None
    index.rmdir()
    with create_vector_store(MODEL, uri=path) as store:
        assert store.get_ids() == ["a"]


def test_a_damaged_file_is_named(path):
    with create_vector_store(MODEL, uri=path) as store:
        store.add([image("a")])
    schema = collection_of(path) / "schema.json"
    whole = schema.read_text()
    schema.write_text(whole[:50])
    with pytest.raises(StoreError, match=r"a\.db could not be opened: .*schema\.json"):
        create_vector_store(MODEL, uri=path)
    schema.write_text(whole)
    with create_vector_store(MODEL, uri=path) as store:
        assert store.get_ids() == ["a"]


def test_a_file_is_unlocked_after_what_is_still_written():
    """A call that was struck by Ctrl-C may go on in Milvus Lite's own thread."""
    from milvus_lite.server_manager import server_manager_instance

    happened = []

    class Server:
        def stop(self, grace):
            is_done = threading.Event()

            def write():
                happened.append("written")
                is_done.set()

            threading.Timer(0.2, write).start()
            return is_done

    database = SimpleNamespace(close=lambda: happened.append("unlocked"))
    server_manager_instance._servers["/photos.db"] = (Server(), database, 1)
    _release_server("/photos.db")
    assert happened == ["written", "unlocked"]
    assert "/photos.db" not in server_manager_instance._servers


# Ctrl-C.


@pytest.fixture
def interrupt(interruptible, monkeypatch):
    """Press Ctrl-C while Milvus Lite is at a call."""
    insert = MilvusClient.insert

    def interrupted(self, *args, **kwargs):
        signal.raise_signal(signal.SIGINT)
        return insert(self, *args, **kwargs)

    monkeypatch.setattr(MilvusClient, "insert", interrupted)


@pytest.mark.usefixtures("interrupt")
def test_ctrl_c_waits_for_the_call_that_runs(path, caplog):
    """It would strike gRPC, which may hang then, in this process's own server."""
    with create_vector_store(MODEL, uri=path) as store:
        with pytest.raises(KeyboardInterrupt):
            store.add([image("a")])
        assert "Ctrl-C again stops at once" in caplog.text
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
        # Others have the lock.
        with ThreadPoolExecutor(1) as thread:
            assert thread.submit(store.get_ids).result(timeout=20) == ["a"]


@pytest.mark.usefixtures("interruptible")
def test_ctrl_c_is_not_lost_where_the_call_fails(path):
    def fail():
        with store._connection.lock:
            signal.raise_signal(signal.SIGINT)
            raise StoreError("of another kind")

    with create_vector_store(MODEL, uri=path) as store, pytest.raises(KeyboardInterrupt):
        fail()


@pytest.mark.usefixtures("interruptible")
def test_close_is_done_though_it_is_interrupted(path):
    store = create_vector_store(MODEL, uri=path)
    is_held, may_go = threading.Event(), threading.Event()

    def hold():
        with store._connection.lock:
            is_held.set()
            may_go.wait(20)

    def press():
        for _ in range(2):
            time.sleep(0.5)
            os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.5)
        may_go.set()

    threads = [threading.Thread(target=one) for one in (hold, press)]
    threads[0].start()
    is_held.wait(20)
    threads[1].start()
    with pytest.raises(KeyboardInterrupt):
        store.close()
    for thread in threads:
        thread.join()
    store.close()
    assert lock_holder(path / "LOCK") is None


def test_a_store_notices_that_another_one_made_its_collection_anew(path):
    with create_vector_store(MODEL, uri=path) as old:
        old.add([image("a")])
        with create_vector_store(MODEL, uri=path, overwrite=True) as same:
            same.add([image("b")])
            assert old.get_ids() == ["b"]
        with create_vector_store(
            MODEL.but(model="model-b", weights="c" * 64), uri=path, overwrite=True
        ) as other:
            for call in (
                lambda: old.add([image("c")]),
                lambda: old.query(ask()),
                lambda: old.delete_nodes(["a"]),
                old.count,
            ):
                with pytest.raises(EmbeddingSpaceMismatchError, match="model-b"):
                    call()
            assert other.count() == 0


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere; faults/ has a namespace")
def test_a_file_that_became_read_only_is_told(path):
    with create_vector_store(MODEL, uri=path) as store:
        path.chmod(0o500)
        with pytest.raises(StoreError, match=r"a\.db has become read-only"):
            store.add([image("b")])
        path.chmod(0o700)
        store.add([image("b")])


# What a process leaves that was killed.


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_collection_whose_making_was_cut_short_is_made(overwrite, path):
    collection_of(path).mkdir(parents=True)
    (collection_of(path) / "schema.json.tmp").write_text("{")

    with create_vector_store(MODEL, uri=path, overwrite=overwrite) as store:
        store.add([image("a")])
        assert store.get_ids() == ["a"]


def test_a_collection_whose_dropping_was_cut_short_is_made_anew_when_asked(path):
    with create_vector_store(MODEL, uri=path) as store:
        store.add([image("a")])
    (collection_of(path) / "schema.json").unlink()

    with pytest.raises(StoreError, match=r"'clip_ext' in .*a\.db has rows but no schema\.json"):
        create_vector_store(MODEL, uri=path)
    with create_vector_store(MODEL, uri=path, overwrite=True) as store:
        assert store.get_ids() == []


def test_other_collections_stay_when_one_is_made(path):
    (path / "collections" / "other").mkdir(parents=True)
    (path / "collections" / "other" / "rows.parquet").write_text("")
    with create_vector_store(MODEL, uri=path):
        pass
    assert (path / "collections" / "other" / "rows.parquet").exists()


@pytest.mark.parametrize("size", [0, 7, -1])
def test_an_index_that_was_cut_short_is_made_again(size, path):
    with create_vector_store(MODEL, uri=path) as store:
        store.add([image("a", X)])
    (index,) = images_of(path).glob("indexes/*.idx")
    whole = index.read_bytes()
    index.write_bytes(whole[:size])

    with create_vector_store(MODEL, uri=path) as store:
        assert store.query(ask(X)).ids == ["a"]
    assert index.read_bytes() == whole


# A row comes back: Milvus Lite forgets a delete once its id is inserted again.


@contextmanager
def reopened(store, path):
    """Close a store, which has everything put into files, and open it again."""
    store.close()
    with create_vector_store(MODEL, uri=path) as again:
        yield again


def shown(store):
    """Return the ids that each road shows, by modality: all of them agree."""
    shown = {}
    for modality in ("image", "text", None):
        ids = sorted(store.get_ids(modality=modality))
        assert sorted(store.query(ask(X, 100), modality=modality).ids) == ids
        assert store.count(modality) == len(ids)
        assert sorted(node.node_id for node in store.get_nodes(ids)) == ids
        shown[modality] = ids
    assert sorted(shown["image"] + shown["text"]) == shown[None]
    return shown["image"], shown["text"]


@pytest.mark.parametrize("made", ["in memory", "in a file", "by another process's run"])
@pytest.mark.parametrize("then", ["in memory", "in a file"])
@pytest.mark.parametrize("first", [image, text])
def test_a_node_whose_modality_changes_leaves_no_row_behind(path, first, made, then):
    second = text if first is image else image
    store = create_vector_store(MODEL, uri=path)
    store.add([first("x", X), first("stays", Y), second("other", Y)])
    if made == "in a file":
        store.flush()
    if made == "by another process's run":
        store.close()
        store = create_vector_store(MODEL, uri=path)

    store.add([second("x", Y)], force_flush=then == "in a file")

    expected = {first: ["stays"], second: ["other", "x"]}
    assert shown(store) == (expected[image], expected[text])
    with reopened(store, path) as again:
        assert shown(again) == (expected[image], expected[text])
        assert again.query(ask(Y)).ids.count("x") == 1
        # And back.
        again.add([first("x", X)])
        expected = {first: ["stays", "x"], second: ["other"]}
        assert shown(again) == (expected[image], expected[text])


WAYS_TO_DELETE = {
    "delete": lambda store: store.delete("x"),
    "delete_nodes": lambda store: store.delete_nodes(["x"]),
    "by a filter": lambda store: store.delete_nodes(filters=group(one("n", "==", 1))),
    "clear": lambda store: store.clear(),
}


@pytest.mark.parametrize("delete", WAYS_TO_DELETE.values(), ids=WAYS_TO_DELETE)
@pytest.mark.parametrize("made", ["in memory", "in a file", "by another process's run"])
@pytest.mark.parametrize("is_flushed", [False, True])
@pytest.mark.parametrize("again_as", [image, text])
def test_an_id_that_was_deleted_and_is_added_again_is_there_once(
    path, delete, made, is_flushed, again_as
):
    store = create_vector_store(MODEL, uri=path)
    store.add([image("x", X, n=1)])
    if made == "in a file":
        store.flush()
    if made == "by another process's run":
        store.close()
        store = create_vector_store(MODEL, uri=path)
    delete(store)
    assert shown(store) == ([], [])
    if is_flushed:
        store.flush()

    store.add([again_as("x", Y)])

    expected = (["x"], []) if again_as is image else ([], ["x"])
    assert shown(store) == expected
    assert store.query(ask(Y)).similarities == pytest.approx([1])
    with reopened(store, path) as again:
        assert shown(again) == expected
        assert again.query(ask(Y)).similarities == pytest.approx([1])
        assert again.get_nodes(["x"])[0].metadata == {}


def test_a_delete_in_the_log_of_a_process_that_was_killed_is_remembered(path):
    code = """
    import os
    from by_hand import *
    from llama_index_clip_ext import create_vector_store
    store = create_vector_store(MODEL, uri="a.db")
    store.add([image("x", X)])
    store.flush()
    store.delete("x")
    os._exit(9)
    """
    run_child(code, path.parent, ends_with=9)

    with create_vector_store(MODEL, uri=path) as store:
        assert shown(store) == ([], [])
        store.add([text("x", Y)])
        assert shown(store) == ([], ["x"])
        with reopened(store, path) as again:
            assert shown(again) == ([], ["x"])


def test_an_image_of_an_index_that_becomes_a_text_is_found_as_a_text_only(clip, path, tmp_path):
    Image.new("RGB", (40, 30), "red").save(tmp_path / "red.png")
    picture = ImageDocument(id_="item-7", image_path=str(tmp_path / "red.png"))
    with create_vector_store(clip, uri=path) as store:
        CLIPVectorStoreIndex.from_documents(
            [picture],
            StorageContext.from_defaults(vector_store=store),
            embed_model=clip,
        )
    with create_vector_store(clip, uri=path) as store:
        index = CLIPVectorStoreIndex.from_vector_store(store, embed_model=clip)
        index.update_ref_doc(Document(id_="item-7", text="the picture was withdrawn"))
        found = {
            modality: [
                type(hit.node)
                for hit in index.as_retriever(modality=modality).retrieve("a picture")
            ]
            for modality in ("image", "text")
        }
        assert found == {"image": [], "text": [Document]}


# Searches after a kill, and by stores that do not know of each other's rows.


def test_rows_that_a_killed_process_left_in_the_log_are_put_into_files_by_the_first_search(path):
    code = """
    import os
    import numpy as np
    from by_hand import *
    from llama_index_clip_ext import create_vector_store
    store = create_vector_store(MODEL.but(dim=256), uri="a.db")
    rows = np.eye(256).tolist()
    for start in range(0, 2_000, 500):
        nodes = [image(f"{n}", rows[n % 256]) for n in range(start, start + 500)]
        store.add(nodes)
    os._exit(9)
    """
    run_child(code, path.parent, ends_with=9)
    assert size_of(logs_of(path)) > 2**20

    with create_vector_store(MODEL.but(dim=256), uri=path) as store:
        assert len(store.query(ask([1.0] * 256, 5)).ids) == 5
        assert logs_of(path) == []


def test_rows_of_many_short_lived_stores_are_counted_together(path):
    with create_vector_store(MODEL, uri=path) as store:
        for part in range(6):
            with create_vector_store(MODEL, uri=path) as another:
                another.add([image(f"{part} {n}") for n in range(N // 4)])
        assert size_of(logs_of(path)) > 0
        store.query(ask())
        assert logs_of(path) == []


# Stores that were dropped, and clients that are not ours.


def test_a_store_that_was_dropped_without_being_closed_lets_go_of_its_file(path):
    store = create_vector_store(MODEL, uri=path)
    store.add([image("a")])
    del store
    gc.collect()

    code = """
    from by_hand import *
    from llama_index_clip_ext import create_vector_store
    with create_vector_store(MODEL, uri="a.db") as store:
        assert store.count() == 1
    """
    wait_until(lambda: str(path) not in _servers())
    run_child(code, path.parent)


def test_a_store_that_was_dropped_by_a_failing_function_does_too(path):
    def fails():
        store = create_vector_store(MODEL, uri=path)
        store.add([image("a")])
        raise RuntimeError

    with pytest.raises(RuntimeError):
        fails()
    gc.collect()
    wait_until(lambda: str(path) not in _servers())


@pytest.mark.parametrize("their", ["LlamaIndex's store", "pymilvus's client", "an async client"])
def test_closing_leaves_a_file_to_other_clients_of_this_process(path, their):
    store = create_vector_store(MODEL, uri=path)
    store.add([image("a")])
    if their == "LlamaIndex's store":
        other = MilvusVectorStore(uri=str(path), collection_name="theirs", dim=4)
        client = other.client
    elif their == "pymilvus's client":
        client = MilvusClient(str(path))
    else:
        client = None

    async def count():
        one = AsyncMilvusClient(str(path))
        try:
            await one.has_collection("clip_ext")
            store.close()
            return await one.query("clip_ext", output_fields=["count(*)"])
        finally:
            await one.close()

    try:
        if client is None:
            assert asyncio.run(count())[0]["count(*)"] == 1
        else:
            store.close()
            assert client.query("clip_ext", output_fields=["count(*)"])[0]["count(*)"] == 1
            with create_vector_store(MODEL, uri=path) as again:
                assert again.count() == 1
            assert client.query("clip_ext", output_fields=["count(*)"])[0]["count(*)"] == 1
    finally:
        if client is not None:
            client.close()
    # Once they are gone, our next close unlocks it.
    create_vector_store(MODEL, uri=path).close()
    assert str(path) not in _servers()


def test_where_there_is_no_milvus_lite_the_way_out_is_said(path, monkeypatch):
    """As on Windows, for which the package is not built."""
    for name in [name for name in sys.modules if name.partition(".")[0] == "milvus_lite"]:
        monkeypatch.delitem(sys.modules, name)

    class Absent:
        def find_spec(self, name, *args):
            if name.partition(".")[0] == "milvus_lite":
                raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    monkeypatch.setattr(lite, "find_spec", lambda name: None)
    monkeypatch.setattr(sys, "meta_path", [Absent(), *sys.meta_path])
    with pytest.raises(StoreError, match=r"needs the package milvus-lite, .*Windows; use a Milvus"):
        create_vector_store(MODEL, uri=path)


@pytest.mark.parametrize("full_text", [None, "english"])
def test_rows_that_an_older_version_left_behind_go_with_the_first_write(path, full_text):
    """It left the old row of a node whose modality changed in the other partition's file."""
    with create_vector_store(MODEL, uri=path, full_text=full_text) as store:
        store.add([image("a"), image("b", colour="red"), text("c", colour="blue")])
        store.flush()
        moved = {"texts": text("a", Y, colour="green"), "images": image("c", Y)}
        for partition, node in moved.items():  # As that version wrote them.
            store.client.insert(
                store.collection_name, [node_to_row(node, 4)], partition_name=partition
            )
        old = json.loads(store.passport.to_properties()[PROPERTY]) | {"format": 1}
        store.client.alter_collection_properties(store.collection_name, {PROPERTY: json.dumps(old)})
    with create_vector_store(MODEL, uri=path) as store:
        store.add([text("d")])
    for _ in range(2):
        with create_vector_store(MODEL, uri=path) as store:
            ids = {m: sorted(store.query(ask(), modality=m).ids) for m in ("image", "text")}
            assert ids == {"image": ["b", "c"], "text": ["a", "d"]}
            assert (store.count("image"), store.count("text")) == (2, 2)
            (node,) = store.get_nodes(["a"])
            assert (node.text, node.metadata) == ("text of a", {"colour": "green"})
            np.testing.assert_allclose(node.embedding, Y)
            assert store.delete_nodes(["a"]) == 1
            store.add([text("a", Y, colour="green")])
            if full_text:
                query = ask(None, query_str="text", mode="text_search")
                assert sorted(store.query(query).ids) == ["a", "d"]
