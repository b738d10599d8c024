"""One embedded Milvus file: its path, its one lock, its disk, and who else holds it."""

from __future__ import annotations

import atexit
import os
import re
import shutil
import sys
import threading
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from pymilvus import MilvusClient, connections
from pymilvus.client.connection_manager import AsyncConnectionManager, ConnectionManager
from pymilvus.exceptions import MilvusException

from .bm25 import Corpus
from .errors import StoreError, StoreLockedError
from .interruption import put_back, put_off

# Milvus Lite writes to its log first, and later makes files of it that are larger: with their index
# up to 1.9 times for rows, and 2.3 times for deletes, which it writes once for each partition.
_GROWTH = 3
# For a write: at most 16 MiB in the log, and the same again, grown, in the files.
_ROOM_FOR_A_WRITE = 64 * 2**20
# How an error of the operating system reads, of Python and of Arrow, and the code it comes with.
_ERRNO = re.compile(r"\[errno (\d{1,3})\]", re.IGNORECASE)
_UNEXPECTED = 1

# The module of milvus-lite that starts servers, imported by pymilvus with the first of them.
_MANAGER = "milvus_lite.server_manager"
# Seconds that calls which still run have to end when a file is closed.
_LAST_CALLS = 2.0


# Milvus Lite unpacks every row that is not in its files yet for each search, at 35 ms per 1,000 of
# 512 components. In a file they are searched at 1 ms per 1,000.
MAX_UNFLUSHED_ROWS = 1_000
# A log that an earlier process left, which is unpacked likewise: some 1,000 small rows.
_LARGE_LOG = 2**20
_MAX_DELETED_IDS = 10_000  # Ids that are remembered, rather than that any may have been deleted.


@dataclass
class Unflushed:
    """What of a collection Milvus Lite holds in its log and in memory, and not in its files.

    Attributes:
        rows: Rows that were written.
        deleted: Ids that were deleted, each with the modality of its row; ``None`` if any may have
            been.
    """

    rows: int = 0
    deleted: set[tuple[str, str]] | None = field(default_factory=set)

    def delete(self, rows: Iterable[tuple[str, str]]) -> None:
        """Remember deleted ids, and the modality of each."""
        if self.deleted is not None:
            self.deleted.update(rows)
            if len(self.deleted) > _MAX_DELETED_IDS:
                self.deleted = None

    def has_deleted(self, ids: Iterable[str], modality: str) -> bool:
        """Whether a row of one of these ids and this modality may have been deleted."""
        if self.deleted is None:
            return True
        return any((node_id, modality) in self.deleted for node_id in ids)

    def clear(self) -> None:
        """Note that everything is in the files now."""
        self.rows, self.deleted = 0, set()


class FileLock:
    """The lock of one embedded file, which also ends its use where going on would lose something.

    After a failure Milvus Lite drops from memory what it was to write, and at the next success
    deletes the log that has it; or it leaves half a record in the log, and never reads what it
    writes behind it. Closed at once, it keeps its log, and the next opening reads that.

    Where the file was deleted, or replaced by another, it would write into that one.

    Ctrl-C waits until the lock is free again: gRPC, which runs Milvus Lite here, may hang if it is
    struck, and a lock that is struck while it is taken may never be free. A second one strikes.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self.failure = ""
        # By collection, for all stores of the file: how often it was created, the words of its
        # texts once they were searched, and what is not in the files yet.
        self.created: Counter[str] = Counter()
        self._corpora: dict[str, Corpus] = {}
        self._corpus_files: dict[str, list[tuple[str, int, int]]] = {}
        self.unflushed: defaultdict[str, Unflushed] = defaultdict(Unflushed)
        for collection, n_bytes in _logs(path).items():
            self.unflushed[collection].deleted = None
            if n_bytes > _LARGE_LOG:
                self.unflushed[collection].rows = MAX_UNFLUSHED_ROWS
        self._identity = _identity(path)
        self._lock = threading.RLock()
        self._put_off: list[threading.Event | None] = []

    def current_corpus(self, collection_name: str) -> Corpus | None:
        """Return a collection's corpus, unless another client of this process has written since."""
        corpus = self._corpora.get(collection_name)
        if corpus is None or self._corpus_files[collection_name] != self._files(collection_name):
            return None
        return corpus

    def keep_corpus(self, collection_name: str, corpus: Corpus) -> None:
        """Keep a corpus that is of what the collection's files are now."""
        self._corpora[collection_name] = corpus
        self._corpus_files[collection_name] = self._files(collection_name)

    def drop_corpus(self, collection_name: str) -> None:
        """Have a collection's texts read again by the next search by words."""
        self._corpora.pop(collection_name, None)

    @contextmanager
    def updating_corpus(self, collection_name: str) -> Iterator[Corpus | None]:
        """Yield the corpus, to be changed by what a write inside changes; ``None`` if none is kept.

        After a write that fails, or that of another client, it is no longer current.
        """
        corpus = self.current_corpus(collection_name)
        yield corpus
        if corpus is not None:
            self.keep_corpus(collection_name, corpus)

    def _files(self, collection_name: str) -> list[tuple[str, int, int]]:
        """Return what changes with each write: the log, and the list of the files behind it."""
        folder = Path(self.path, "collections", collection_name)
        found = []
        for file in (*sorted(folder.glob("wal/*")), folder / "manifest.json"):
            with suppress(FileNotFoundError):  # Just put into the files.
                state = file.stat()
                found.append((file.name, state.st_size, state.st_mtime_ns))
        return found

    def __enter__(self) -> None:
        stop = put_off(f"finishing with {self.path}; Ctrl-C again stops at once")
        try:
            self._lock.acquire()
        except BaseException:
            if stop:
                put_back()
            raise
        self._put_off.append(stop)
        try:
            self._check()
        except StoreError:
            self._release()
            raise

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            if (
                isinstance(error, MilvusException)
                and error.code == _UNEXPECTED
                and (said := _ERRNO.search(error.message))
            ):
                self._fail(os.strerror(int(said[1])))
                raise StoreError(self.failure) from error
        finally:
            self._release()

    def _release(self) -> None:
        stop = self._put_off.pop()
        self._lock.release()
        if stop:
            put_back()
            if stop.is_set():
                raise KeyboardInterrupt

    def _check(self) -> None:
        if not self.failure and self.is_replaced():
            if _identity(self.path) is None:
                raise StoreError(f"{self.path} is gone: it was moved or deleted while it was open")
            self.give_up()
        if self.failure:
            raise StoreError(self.failure)

    def is_replaced(self) -> bool:
        """Whether the file is not the one that was opened, or is none."""
        return _identity(self.path) != self._identity

    def give_up(self) -> None:
        """Leave a file that was replaced as it is."""
        self.failure = (
            f"{self.path} was deleted or replaced while it was open, and is not used any more. "
            "Close every store of it, and open it again"
        )
        # Not by release_server, which would close it, and thereby delete the log of the new one.
        server, *_ = _servers().pop(self.path, (None,))
        if server:
            server.stop(None)

    def _fail(self, reason: str) -> None:
        self.failure = (
            f"{self.path} could not be written ({reason}) and was closed, so that nothing is lost "
            "that was stored. Free space on its disk, or make it writable, and open the store again"
        )
        _release_server(self.path)


def _identity(path: str) -> tuple[int, int] | None:
    """Tell an embedded file from others that its path may have had, or may have."""
    try:
        state = os.stat(os.path.join(path, "LOCK"))
    except OSError:
        return None
    return state.st_dev, state.st_ino


def _release_server(path: str) -> None:
    """Stop a file's server, once what it is at is done, and unlock the file."""
    server, *_ = _servers().get(path, (None,))
    if server:
        # release_server does not wait, so that the file would be written to after it is unlocked.
        server.stop(_LAST_CALLS).wait(_LAST_CALLS)
        sys.modules[_MANAGER].server_manager_instance.release_server(path)


def _servers() -> dict[str, tuple[Any, ...]]:
    """Return the servers that run in this process, by the files' paths; each with its database."""
    module: Any = sys.modules.get(_MANAGER)
    return module.server_manager_instance._servers if module else {}


# Milvus Lite loses rows when threads are first to touch a collection together, and counts wrong
# during a flush: all access to one file goes through one lock, whichever store it comes from.
_LOCKS: dict[str, FileLock] = {}
_USERS: dict[str, int] = {}
_REGISTRY_LOCK = threading.Lock()

_SERVERS = re.compile(r"(https?|tcp|unix):", re.IGNORECASE)


def is_lite(uri: str) -> bool:
    """Whether an address means an embedded file rather than a server."""
    return not _SERVERS.match(uri)


def lite_path(uri: str, *, make: bool = True) -> str:
    """Return the absolute path of an embedded file, so that one file has one name.

    Args:
        uri: The path, relative or with ``~``.
        make: Whether to make its folder if it is missing.

    Raises:
        StoreError: If Milvus Lite could not keep its data there.
    """
    try:
        path = Path(os.path.realpath(Path(uri).expanduser()))
    except (RuntimeError, ValueError) as err:
        raise StoreError(f"uri {uri!r} is no path: {err}") from err
    if path.suffix != ".db" or "://" in uri:
        raise StoreError(
            f"uri {uri!r}: an embedded Milvus file ends in .db (such as ./photos.db); a "
            "server's address starts with http:// or https://"
        )
    try:
        if make:
            path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as err:
        raise StoreError(f"cannot make the folder {path.parent} for {path.name}: {err}") from err
    return str(path)


def connect(path: str) -> tuple[Any, FileLock]:
    """Open an embedded file, or join those of this process that have it open.

    Args:
        path: As `lite_path` returns it.

    Returns:
        A client, and the lock under which to use it.

    Raises:
        StoreLockedError: If another process holds the file.
        StoreError: If it cannot be opened for another reason, which the message names.
    """
    with _REGISTRY_LOCK:
        lock = _LOCKS.get(path)
        if lock and lock.is_replaced():
            lock.give_up()
        is_running = path in _servers()  # For another client of this process.
        try:
            client = _client(path)
            if lock is None or lock.failure:
                if not is_running:
                    _remove_cut_short_indexes(path)
                lock = _LOCKS[path] = FileLock(path)
        except (MilvusException, OSError) as err:
            error = _open_error(path, err)
            if not _USERS.get(path) and not is_running:
                _release_server(path)
            raise error from err
        _USERS[path] = _USERS.get(path, 0) + 1
        return client, lock


def _client(path: str) -> MilvusClient:
    # Its connection ends with it: shared ones are kept for ever, and each opening of a file has a
    # port of its own. And no proxy is asked to reach this process.
    return MilvusClient(path, dedicated=True, grpc_options={"grpc.enable_http_proxy": 0})


def disconnect(path: str) -> None:
    """Leave an embedded file; the last to leave lets other processes have it.

    Where other clients of this process use it, such as LlamaIndex's own store, it stays open for
    them, until the process ends or a store of ours is the last to be closed.
    """
    with _REGISTRY_LOCK:
        _USERS[path] -= 1
        if _USERS[path] == 0:
            lock = _LOCKS.pop(path)
            if lock.is_replaced():
                lock.give_up()
            elif not _has_other_clients(path):
                _release_server(path)


def _has_other_clients(path: str) -> bool:
    """Whether a client of pymilvus that is not ours is connected to a file's server."""
    _, _, port = _servers().get(path, (None, None, None))
    address = f"127.0.0.1:{port}"
    managers = [ConnectionManager.get_instance(), *AsyncConnectionManager._instances.values()]
    clients = (
        one
        for manager in managers
        for one in (*manager._registry.values(), *manager._dedicated.values())
    )
    if any(one.config.address == address and one.has_clients for one in clients):
        return True
    # By pymilvus's older interface, whose public functions warn that it will go.
    handlers = getattr(connections, "_alias_handlers", {})
    configs = getattr(connections, "_alias_config", {})
    return any(
        handlers.get(alias) and config.get("address") == address
        for alias, config in configs.items()
    )


def check_room(path: str) -> None:
    """Refuse a write that Milvus Lite might not get into its files later, before it is asked.

    Raises:
        StoreError: If the file is read-only, or its disk too full; nothing is lost, and the store
            may go on once that has changed.
    """
    if not os.access(path, os.W_OK):
        raise StoreError(f"{path} has become read-only; make it writable, and write again")
    needed = _GROWTH * sum(_logs(path).values()) + _ROOM_FOR_A_WRITE
    free = shutil.disk_usage(path).free
    if free < needed:
        raise StoreError(
            f"the disk of {path} is full: {free / 2**20:.0f} MiB are free, and "
            f"{needed / 2**20:.0f} MiB may be needed. Free some, and write again; what is stored "
            "is safe and can be searched"
        )


def _logs(path: str) -> dict[str, int]:
    """Return the bytes in the log of each collection of an embedded file that has a log."""
    sizes: Counter[str] = Counter()
    for log in Path(path).glob("collections/*/wal/*.arrow"):
        sizes[log.parts[-3]] += log.stat().st_size
    return sizes


def has_room(path: str) -> bool:
    """Whether `check_room` would let a write pass."""
    try:
        check_room(path)
    except StoreError:
        return False
    return True


def remove_remains(path: str, collection_name: str, *, overwrite: bool) -> None:
    """Remove what is left of a collection whose making, or dropping, was cut short.

    Milvus Lite does not see a folder without a schema, nor makes a collection in its place.

    Args:
        path: As `lite_path` returns it, and open.
        collection_name: The collection that is to be made.
        overwrite: Whether that may cost rows.

    Raises:
        StoreError: If rows are left, which only ``overwrite`` may remove.
    """
    for folder in Path(path, "collections").iterdir():
        if folder.name != collection_name or (folder / "schema.json").exists():
            continue
        has_rows = any(file.suffix in (".parquet", ".arrow") for file in folder.rglob("*"))
        if has_rows and not overwrite:
            raise StoreError(
                f"collection {collection_name!r} in {path} has rows but no schema.json: dropping "
                "it was cut short, or the file is damaged. overwrite=True drops the rows, "
                "and creates it again"
            )
        shutil.rmtree(folder)


def _remove_cut_short_indexes(path: str) -> None:
    """Remove index files that are not whole: Milvus Lite makes anew what is missing, but fails.

    It writes them in their place, behind the flush, and may be killed or find the disk full.
    """
    for file in Path(path).glob("collections/*/partitions/*/indexes/*.flat.idx"):
        try:
            np.load(
                file, mmap_mode="r", allow_pickle=False
            )  # Reads the head, and compares it with the size.
        except (EOFError, ValueError):
            file.unlink()


def _leave_to_parent() -> None:
    """Forget, in a forked child, what its parent has open.

    Milvus Lite would close it as the child ends: write the file that the parent is writing, and
    unlock it for a third process. To the child it is now as locked as to any other.
    """
    global _REGISTRY_LOCK
    _REGISTRY_LOCK = threading.Lock()  # Held, perhaps, by a thread that is not in the child.
    _LOCKS.clear()
    _USERS.clear()
    manager: Any = sys.modules.get(_MANAGER)
    if manager is not None:
        atexit.unregister(manager.server_manager_instance.release_all)
        manager.server_manager_instance = manager.ServerManager()


if hasattr(os, "register_at_fork"):  # Not on Windows.
    os.register_at_fork(after_in_child=_leave_to_parent)


def _open_error(path: str, err: Exception) -> StoreError:
    """Find out why Milvus Lite did not open a file: its own message never says."""
    file = Path(path)
    if find_spec("milvus_lite") is None:
        return StoreError(
            "embedded Milvus needs the package milvus-lite, which there is not for Windows; use a "
            "Milvus server and its http:// address"
        )
    if os.path.isfile(path):
        return StoreError(
            f"{path} is a file; milvus-lite 3 keeps a folder of that name, and cannot read the "
            "file that milvus-lite 2 kept. Choose another path and index again"
        )
    lock = file / "LOCK"
    place = next(one for one in (file, *file.parents) if os.path.exists(one))
    if os.statvfs(place).f_flag & os.ST_RDONLY:
        return StoreError(f"{path} is on a read-only file system; choose another path")
    if not os.access(lock if os.path.exists(lock) else place, os.W_OK):
        return StoreError(f"no permission to write {path}; change its owner or choose another path")
    if not os.path.exists(lock):
        free = shutil.disk_usage(place).free / 2**20
        return StoreError(
            f"Milvus Lite cannot open {path}, on a disk with {free:.0f} MiB free; its log "
            "(milvus_lite) has the cause"
        )
    pid = lock_holder(lock)
    if pid == os.getpid():
        return StoreError(f"{path} was opened, and then could not be used: {err}")
    holder = f"process {pid}" if pid else "another process"
    return StoreLockedError(
        f"{path} is held by {holder}: an embedded Milvus file serves one process at a time. Close "
        "the store there (store.close()), end that process or its notebook's kernel, or use a "
        "Milvus server",
        path=path,
        pid=pid,
    )


def lock_holder(lock: Path) -> int | None:
    """Return the process that holds a lock file, where Linux tells: /proc/locks, by inode."""
    with suppress(OSError):
        inode = str(lock.stat().st_ino)
        for line in Path("/proc/locks").read_text().splitlines():
            # "1: FLOCK  ADVISORY  WRITE 12345 08:01:9876 0 EOF", after a "->" for one that waits.
            fields = line.split()
            if fields[1] != "->" and fields[5].rsplit(":", 1)[-1] == inode:
                return int(fields[4])
    return None
