"""Processes that make a collection hold a folder, killed by SIGKILL at any moment."""

import itertools
import json
from collections import Counter

import numpy as np
import pytest
from ingest_jobs import BATCH_SIZE, EMBED_BATCH_SIZE, WAYS
from PIL import Image
from zygote import Zygote

from llama_index_clip_ext import create_vector_store, load_image_nodes
from llama_index_clip_ext.rows import node_hash

KILLS_PER_COLLECTION = 6
TOLERANCE = 1e-5
# Embedded and not stored, at most: the batch that is being stored, the batch that waits for it, and
# of a forward pass all but the picture that completed that batch.
IN_FLIGHT = 2 * BATCH_SIZE + EMBED_BATCH_SIZE - 1


class Folder:
    """Small pictures, all different, and what a collection is to hold of them.

    Attributes:
        vectors: Their embeddings, each made by itself, by path.
        expected: Path and hash of their rows, by id.
    """

    def __init__(self, folder, embed_model, rng, size):
        self.folder = folder
        self.embed_model = embed_model
        self.rng = rng
        self.vectors = {}
        folder.mkdir()
        self.change(replaced=0, added=size)

    def change(self, *, replaced, added):
        names = sorted(path.name for path in self.folder.iterdir())
        new = [f"{len(names) + number:05}.png" for number in range(added)]
        for name in [*self.rng.sample(names, replaced), *new]:
            pixels = np.frombuffer(self.rng.randbytes(6 * 6 * 3), np.uint8).reshape(6, 6, 3)
            picture = Image.fromarray(pixels).resize((32, 32), Image.Resampling.NEAREST)
            picture.save(self.folder / name)
            vector = self.embed_model.get_image_embedding(picture)
            self.vectors[str(self.folder / name)] = vector
        nodes = load_image_nodes(self.folder)
        self.expected = {node.node_id: (node.image_path, node_hash(node)) for node in nodes}

    def missing(self, store):
        """Return the paths of the pictures that are not stored as they are now."""
        stored = store.get_hashes(list(self.expected))
        return {path for key, (path, one) in self.expected.items() if stored.get(key) != one}

    def differences(self, store):
        """Return what the collection lacks, holds twice, or holds with another's vector."""
        ids = store.get_ids()
        nodes = store.get_nodes(sorted(set(ids)))
        rows = Counter(node.image_path for node in nodes)
        found = [f"{path} in {rows[path]} rows" for path in self.vectors if rows[path] != 1]
        found += [f"{path} is no file" for path in rows if path not in self.vectors]
        found += [f"{key} in {n} rows" for key, n in Counter(ids).items() if n != 1]
        if store.count() != len(self.vectors):
            found.append(f"{store.count()} rows, {len(self.vectors)} files")
        for node in nodes:
            by_hand = self.vectors.get(node.image_path, node.embedding)
            if not np.allclose(node.embedding, by_hand, rtol=0, atol=TOLERANCE):
                found.append(f"the vector of {node.image_path}")
        return found


class Killed:
    """Runs over one collection, each compared afterwards with what it had been told.

    Attributes:
        lost: What was acknowledged and was not there; of runs that ended, all that differs.
        in_flight: The most pictures that a run had embedded and not stored.
    """

    def __init__(self, zygote, way, folder, notes, **store):
        self.zygote = zygote
        self.way = way
        self.folder = folder
        self.notes = notes
        self.store = store
        self.missing = set(folder.vectors)
        self.lost = []
        self.in_flight = 0

    def open(self):
        return create_vector_store(
            self.folder.embed_model, **self.store, consistency_level="Strong"
        )

    def run(self, kill_after=None):
        """Run it, open the collection again, and compare."""
        self.notes.write_text("")
        outcome = self.zygote.run(
            "run",
            kill_after=kill_after,
            way=self.way,
            folder=str(self.folder.folder),
            notes=str(self.notes),
            **self.store,
        )
        embedded, acknowledged = [], {}
        for kind, what in map(json.loads, self.notes.read_text().splitlines()):
            if kind == "embedded":
                embedded += what
            else:
                acknowledged |= what
        # Only what was missing is embedded, and once.
        assert sorted(embedded) == sorted(set(embedded) & self.missing)
        with self.open() as store:
            stored = store.get_hashes(list(acknowledged))
            self.lost += [one for one in acknowledged if stored.get(one) != acknowledged[one]]
            self.missing = self.folder.missing(store)
            if not outcome.is_killed:
                self.lost += self.folder.differences(store)
        self.in_flight = max(self.in_flight, len(self.missing & set(embedded)))
        return outcome

    def change(self):
        """Replace some pictures and add some."""
        self.folder.change(replaced=20, added=2)
        with self.open() as store:
            self.missing = self.folder.missing(store)


@pytest.fixture(scope="module")
def zygote(clip_dir):
    process = Zygote("ingest_jobs", model=str(clip_dir))
    yield process
    process.close()


def kill_everywhere(begin, kills, rng):
    """Kill so many runs at moments spread evenly over their length; return what was lost.

    Args:
        begin: Makes a `Killed` of a new collection.
        kills: How many.
        rng: Where the moments come from.
    """
    killed = begin()
    whole = killed.run().seconds
    nothing = killed.run().seconds
    lost, n_kills = killed.lost, 0
    while n_kills < kills:
        killed = begin()
        for number in range(min(KILLS_PER_COLLECTION, kills - n_kills)):
            # The first one while the collection is made.
            share = len(killed.missing) / len(killed.folder.vectors) if number else 0
            outcome = killed.run(rng.uniform(0, nothing + share * (whole - nothing)))
            n_kills += outcome.is_killed
            if not outcome.is_killed or rng.random() < 0.3:
                killed.change()
        killed.run()
        assert killed.in_flight <= IN_FLIGHT
        lost += killed.lost
    return lost, n_kills


def test_the_pictures_are_far_enough_apart_to_tell_a_wrong_vector(clip, tmp_path, rng):
    folder = Folder(tmp_path / "pictures", clip, rng, size=40)
    rows = np.array(list(folder.vectors.values()))
    distances = np.abs(rows[:, None] - rows[None]).max(axis=2)
    assert distances[~np.eye(len(rows), dtype=bool)].min() > 100 * TOLERANCE


@pytest.mark.parametrize("way", WAYS)
def test_killed_over_milvus_lite(way, zygote, clip, tmp_path, rng, tries, tally):
    folder = Folder(tmp_path / "pictures", clip, rng, size=tries(short=24, full=200))
    names = itertools.count()

    def begin():
        uri = str(tmp_path / f"{next(names)}.db")
        return Killed(zygote, way, folder, tmp_path / "notes", uri=uri)

    lost, kills = kill_everywhere(begin, tries(short=2, full=60), rng)
    tally(f"killed, {way}, Milvus Lite", tried=kills, lost=len(lost))
    assert lost == []


@pytest.mark.parametrize("way", WAYS)
def test_killed_over_a_server(way, zygote, clip, server, tmp_path, rng, tries, tally):
    folder = Folder(tmp_path / "pictures", clip, rng, size=tries(short=24, full=200))
    names = (f"killed_{way}_{number}" for number in itertools.count())

    def begin():
        collection = {"uri": server, "collection_name": next(names)}
        return Killed(zygote, way, folder, tmp_path / "notes", **collection)

    lost, kills = kill_everywhere(begin, tries(short=1, full=18), rng)
    tally(f"killed, {way}, server", tried=kills, lost=len(lost))
    assert lost == []
