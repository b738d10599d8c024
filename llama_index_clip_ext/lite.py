"""One embedded Milvus file: its path, its one lock, and who else holds it."""

from __future__ import annotations

import os
import threading
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

from .errors import StoreError, StoreLockedError

# Milvus Lite loses rows when threads are first to touch a collection together, and counts wrong
# during a flush: all access to one file goes through one lock, whichever store it comes from.
_LOCKS: dict[str, threading.RLock] = {}
_USERS: dict[str, int] = {}
_REGISTRY_LOCK = threading.Lock()


def is_lite(uri: str) -> bool:
    """Whether an address means an embedded file rather than a server."""
    return urlparse(uri).scheme.lower() not in ("http", "https", "tcp", "unix")


def lite_path(uri: str, *, make: bool = True) -> str:
    """Return the absolute path of an embedded file, so that one file has one name.

    Args:
        uri: The path, relative or with ``~``.
        make: Whether to make its folder if it is missing.

    Raises:
        StoreError: If Milvus Lite could not keep its data there.
    """
    path = Path(os.path.realpath(Path(uri).expanduser()))
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


def connect(path: str) -> tuple[Any, threading.RLock]:
    """Open an embedded file, or join those of this process that have it open.

    Args:
        path: As `lite_path` returns it.

    Returns:
        A client, and the lock under which to use it.

    Raises:
        StoreLockedError: If another process holds the file.
        StoreError: If it cannot be opened for another reason, which the message names.
    """
    from pymilvus import MilvusClient
    from pymilvus.exceptions import MilvusException

    with _REGISTRY_LOCK:
        lock = _LOCKS.setdefault(path, threading.RLock())
        try:
            client = MilvusClient(path)
        except MilvusException as err:
            raise _open_error(path) from err
        _USERS[path] = _USERS.get(path, 0) + 1
        return client, lock


def disconnect(path: str) -> None:
    """Leave an embedded file; the last to leave lets other processes have it."""
    from milvus_lite.server_manager import server_manager_instance

    with _REGISTRY_LOCK:
        _USERS[path] -= 1
        if _USERS[path] == 0:
            server_manager_instance.release_server(path)


def _open_error(path: str) -> StoreError:
    """Find out why Milvus Lite did not open a file: its own message never says."""
    file = Path(path)
    if find_spec("milvus_lite") is None:
        return StoreError(
            "embedded Milvus needs the package milvus-lite, which there is not for Windows; use a "
            "Milvus server and its http:// address"
        )
    if file.is_file():
        return StoreError(
            f"{path} is a file; milvus-lite 3 keeps a folder of that name, and cannot read the "
            "file that milvus-lite 2 kept. Choose another path and index again"
        )
    lock = file / "LOCK"
    if not os.access(lock if lock.exists() else file if file.exists() else file.parent, os.W_OK):
        return StoreError(f"no permission to write {path}; change its owner or choose another path")
    if not lock.exists():
        return StoreError(f"Milvus Lite cannot open {path}; its log (milvus_lite) has the cause")
    pid = lock_holder(lock)
    holder = f"process {pid}" if pid else "another process"
    return StoreLockedError(
        f"{path} is held by {holder}: an embedded Milvus file serves one process at a time. Close "
        "the store there (store.close(), or end the notebook's kernel), or use a Milvus server",
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
