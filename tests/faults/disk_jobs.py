"""What is done in a namespace of its own, on a small disk that fills up or becomes read-only.

The disk is a tmpfs; its processes are forked by `zygote` and exit without closing anything, as if
they had been killed.
"""

import logging
import os
import random
import subprocess
from contextlib import contextmanager
from pathlib import Path

# Rows go into files after every few batches, so that the disk may be full at any step.
os.environ["MILVUS_LITE_MEMTABLE_MEMORY_LIMIT_BYTES"] = "500000"

import numpy as np
from by_hand import MODEL, ask, image

from llama_index_clip_ext import StoreError, create_vector_store, lite, store
from llama_index_clip_ext.vectors import l2_normalize

DIM = 256
N_ROWS = 50  # In a batch.

_disk = {}


def setup(disk, size):
    """Make the disk; only this process and its children see it."""
    logging.disable(logging.CRITICAL)  # Milvus Lite's, of errors that are wanted here.
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", disk], check=True)
    _disk["path"] = Path(disk)


def open_store(name):
    return create_vector_store(MODEL.but(dim=DIM), uri=_disk["path"] / name)


def add(vector_store, number):
    """Add a batch of nodes that its number determines; return their ids."""
    rows = np.random.default_rng(number).normal(size=(N_ROWS, DIM)).astype(np.float32)
    nodes = [image(f"{number}-{i}", row) for i, row in enumerate(l2_normalize(rows).tolist())]
    return vector_store.add(nodes)


@contextmanager
def full_disk(free):
    """Leave so many bytes on the disk, as another program does that fills it."""
    filler = _disk["path"] / "filler"
    with filler.open("wb") as file:
        usage = os.statvfs(filler)
        os.posix_fallocate(file.fileno(), 0, usage.f_bavail * usage.f_frsize - free)
    try:
        yield
    finally:
        filler.unlink()


@contextmanager
def read_only(name):
    """Turn a file read-only, as a disk does that the system no longer trusts."""
    path = _disk["path"] / name
    subprocess.run(["mount", "--bind", path, path], check=True)
    subprocess.run(["mount", "-o", "remount,bind,ro", path], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", path], check=True)


def fail(name, how, free=0, is_seen=True, goes_on=False, closes=False, seed=0):
    """Add until it fails; return what was acknowledged, and the errors.

    Args:
        name: The file.
        how: "full" or "read-only".
        free: Bytes left on the full disk.
        is_seen: Whether the disk is looked at before a write; otherwise it changed after that.
        goes_on: Whether the file is opened again, once the disk is as before.
        closes: Whether the stores are closed in the end.
        seed: When there are searches, which put rows into files.
    """
    rng = random.Random(seed)
    if not is_seen:
        lite.check_room = lambda path: None
    store._MAX_UNFLUSHED = 4 * N_ROWS
    acknowledged, errors = [], []

    def add_until_it_fails(vector_store, numbers):
        try:
            for number in numbers:
                acknowledged.extend(add(vector_store, number))
                if rng.random() < 0.3:
                    vector_store.query(ask([1.0] + [0.0] * (DIM - 1)))
        except StoreError as err:
            errors.append(str(err))

    first = open_store(name)
    add_until_it_fails(first, range(rng.randrange(10)))
    with full_disk(free) if how == "full" else read_only(name):
        add_until_it_fails(first, range(100, 1000))
    if goes_on:
        again = open_store(name)
        add_until_it_fails(again, range(1000, 1000 + rng.randrange(1, 10)))
        if closes:
            again.close()
    if closes:
        first.close()
    return {"acknowledged": acknowledged, "errors": errors}


def ids(name):
    """Open the file and return its ids; remove it."""
    with open_store(name) as vector_store:
        found = vector_store.get_ids()
    subprocess.run(["rm", "-r", _disk["path"] / name], check=True)
    return found


def make_on_a_full_disk(name):
    """Open a new file with no room at all, and again with some; return the error and the rows."""
    with full_disk(free=0):
        try:
            open_store(name)
        except StoreError as err:
            error = str(err)
    with open_store(name) as vector_store:
        return error, len(add(vector_store, 1))


def open_read_only(name):
    """Open a file, and make one, on a read-only file system; return the errors."""
    errors = []
    with open_store(name) as vector_store:
        add(vector_store, 1)
    with read_only("."):
        for one in (name, f"new-{name}"):
            try:
                open_store(one)
            except StoreError as err:
                errors.append(str(err))
    return errors
