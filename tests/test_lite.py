"""An embedded file whose disk fails, is full, or was left by a process that was killed.

The failures are real: something lies where Milvus Lite makes a file or folder.
"""

import gc
import hashlib
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import namedtuple
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from by_hand import MODEL, X, ask, image
from pymilvus import MilvusClient

from llama_index_clip_ext import (
    EmbeddingSpaceMismatchError,
    StoreError,
    StoreLockedError,
    create_vector_store,
    ingest_images,
)
from llama_index_clip_ext.lite import _release_server, lock_holder
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
