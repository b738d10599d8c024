"""A folder that changes at random between syncs, some of which are cut short at random."""

import hashlib
import os
import random
from collections import Counter
from contextlib import suppress

import numpy as np
import pytest
from PIL import Image

from llama_index_clip_ext import create_vector_store, sync_images
from llama_index_clip_ext import ingest as ingest_module
from llama_index_clip_ext.sources import describe_source

WHAT = "folder changed at random, sync cut short"


class Cut(BaseException):
    """Stands for the end of the process, at a call of the store."""


class Folder:
    """A folder of pictures, and what may happen to it."""

    def __init__(self, path, chance, names):
        self.path = path
        self.names = names
        self.chance = chance
        self.clock = 1_700_000_000
        (path / "sub").mkdir(parents=True)
        for _ in range(6):
            self.add()

    def files(self):
        return sorted(file for file in self.path.rglob("*") if file.suffix == ".bmp")

    def new_name(self):
        folder = self.chance.choice([self.path, self.path / "sub"])
        name = self.chance.choice(self.names)
        return folder / f"{name}{self.chance.randrange(6)}.bmp"

    def draw(self, file):
        # Few pictures, all of one size in bytes, so that copies and returns of old ones are common.
        shade = self.chance.randrange(40) * 6
        Image.new("RGB", (8, 8), (shade, 255 - shade, 90)).save(file)
        self.touch(file)

    def touch(self, file):
        self.clock += 1
        os.utime(file, (self.clock, self.clock))

    def add(self):
        self.draw(self.new_name())

    def change(self):
        if files := self.files():
            self.draw(self.chance.choice(files))

    def rename(self):
        if files := self.files():
            self.chance.choice(files).replace(self.new_name())

    def copy(self):
        if files := self.files():
            target = self.new_name()
            target.write_bytes(self.chance.choice(files).read_bytes())
            self.touch(target)

    def remove(self):
        # Not the last one: of an empty folder nothing is removed.
        if len(files := self.files()) > 1:
            self.chance.choice(files).unlink()

    def brush(self):
        if files := self.files():
            self.touch(self.chance.choice(files))

    def happen(self):
        self.chance.choice(
            [self.add, self.change, self.rename, self.copy, self.remove, self.brush]
        )()


def content(file):
    return hashlib.sha256(file.read_bytes()).hexdigest()


def rows_of(store):
    nodes = store.get_nodes(store.get_ids(modality="image"))
    return {node.metadata["file_path"]: node for node in nodes}, len(nodes)


def to_embed(rows, files):
    """Count the files whose content no row of theirs, or of a file that is gone, has."""
    wanted = Counter()
    for file in files:
        row = rows.get(str(file))
        if row is None or row.metadata["content_hash"] != content(file):
            wanted[content(file)] += 1
    paths = {str(file) for file in files}
    gone = Counter(row.metadata["content_hash"] for path, row in rows.items() if path not in paths)
    return sum((wanted - gone).values())


def cut_short(store, chance, monkeypatch):
    """Let a call of the store end the process, before or after it does its work."""
    calls = chance.randrange(1, 6)

    def counting(function):
        def call(self, *args, **kwargs):
            nonlocal calls
            calls -= 1
            before = chance.random() < 0.5
            if calls == 0 and before:
                raise Cut
            result = function(self, *args, **kwargs)
            if calls == 0:
                raise Cut
            return result

        return call

    for name in ("add", "delete_nodes"):
        monkeypatch.setattr(type(store), name, counting(getattr(type(store), name)))


NAMES = ["图", "é", "a b", "%_", "'\"", "x"]
BOTH_SPELLINGS = [*NAMES, "e\u0301"]


@pytest.mark.parametrize("names", [NAMES, BOTH_SPELLINGS], ids=["plain", "both spellings"])
@pytest.mark.parametrize("delete", [True, False])
def test_folder_and_collection_are_equal_in_the_end(
    clip, tmp_path, monkeypatch, tries, tally, delete, names
):
    monkeypatch.setattr(ingest_module, "_SETTLED_AFTER", -1e12)
    embedded = []
    prepare = type(clip)._prepare

    def noted(self, numbered, **options):
        embedded.append(describe_source(numbered[1]))
        return prepare(self, numbered, **options)

    monkeypatch.setattr(type(clip), "_prepare", noted)
    by_hand = {}
    seed = random.randrange(2**32)
    chance = random.Random(seed)
    folder = Folder(tmp_path / "folder", chance, names)
    rounds = tries(short=8, full=100)
    with create_vector_store(clip, uri=tmp_path / "x.db") as store:
        run = {"embed_model": clip, "vector_store": store, "delete": delete, "batch_size": 2}
        sync_images(folder.path, **run)
        for number in range(rounds):
            for _ in range(chance.randrange(6)):
                folder.happen()
            if chance.random() < 0.4:
                with monkeypatch.context() as patch:
                    cut_short(store, chance, patch)
                    with suppress(Cut):
                        sync_images(folder.path, **run)
            before, _ = rows_of(store)
            files = folder.files()
            embedded.clear()
            report = sync_images(folder.path, **run)

            n_embedded = len(embedded)
            rows, n_rows = rows_of(store)
            paths = {str(file) for file in files}
            lost = paths - set(rows)
            extra = set(rows) - paths if delete else set()
            wrong = set()
            for file in files:
                if str(file) in lost:
                    continue
                key = content(file)
                if key not in by_hand:
                    by_hand[key] = clip.get_image_embedding(file)
                if not np.allclose(rows[str(file)].embedding, by_hand[key], atol=1e-5):
                    wrong.add(file)
            tally(WHAT, tried=1, lost=len(lost) + len(wrong), let_in=len(extra))
            where = f"seed {seed}, round {number}: {report}"
            assert (lost, wrong, extra) == (set(), set(), set()), where
            assert n_rows == len(rows), where
            # Where a twin comes or goes, who has which id changes, and a picture is embedded anew.
            twins = sum(file.name.startswith("e\u0301") for file in files)
            assert 0 <= n_embedded - to_embed(before, files) <= 2 * twins, where
            assert sync_images(folder.path, **run).unchanged == len(files), where
