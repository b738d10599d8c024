"""Mixed calls of one store by many workers, each of which knows what its own nodes must be."""

import random
from dataclasses import dataclass, field

import numpy as np
from by_hand import ask
from filter_oracle import group, one
from llama_index.core.schema import (
    ImageNode,
    NodeRelationship,
    RelatedNodeInfo,
    TextNode,
)

DIM = 4


def vector(seed):
    """Return a unit vector that no other seed has. Shape ``(DIM,)``."""
    row = np.random.default_rng(seed).standard_normal(DIM)
    return (row / np.linalg.norm(row)).tolist()


def make(node_id, version, is_image, owner, album):
    """Make a node all of whose parts tell its version, so that a mix of two is known."""
    kind = ImageNode if is_image else TextNode
    node = kind(
        id_=node_id,
        text=f"{node_id} version {version}",
        embedding=vector([version, *node_id.encode()]),
        metadata={"owner": owner, "version": version, f"only_{version % 3}": version},
    )
    node.relationships[NodeRelationship.SOURCE] = RelatedNodeInfo(node_id=album)
    return node


def make_many(name, version=0):
    """Make twenty nodes, images and texts."""
    return [
        make(f"{name} {number}", version, number % 3 > 0, name, f"album {number}")
        for number in range(20)
    ]


def same(found, expected, *, with_embedding=True):
    """Whether a node that was found is one that was written, whole."""
    return (
        type(found) is type(expected)
        and found.text == expected.text
        and found.metadata == expected.metadata
        and found.ref_doc_id == expected.ref_doc_id
        and (not with_embedding or np.allclose(found.embedding, expected.embedding, atol=1e-6))
    )


@dataclass
class Worker:
    """One of many on a store; nobody else writes its nodes.

    Attributes:
        name: Of the worker; no two have the same.
        stored: Its nodes that must be in the store, by id.
        written: By id, all versions that it ever wrote or was about to write.
        seen: What it found among everybody's.
        wrong: What was found to be otherwise.
        calls: How many calls it has made.
    """

    name: str
    stored: dict = field(default_factory=dict)
    written: dict = field(default_factory=dict)
    seen: list = field(default_factory=list)
    wrong: list = field(default_factory=list)
    calls: int = 0

    def __post_init__(self):
        self.random = random.Random(self.name)

    def steps(self, number):
        """Yield calls: the method's name, its arguments, and what takes its result."""
        shares = {self.add: 6, self.search: 3, self.search_all: 2, self.get: 2, self.count: 1}
        shares |= {self.delete_ids: 1, self.delete_album: 1, self.delete_by_filter: 1}
        for _ in range(number):
            self.calls += 1
            (call,) = self.random.choices(list(shares), shares.values())
            yield call()

    def add(self):
        """Write new nodes and new versions of others, which may become an image or a text."""
        numbers = self.random.sample(range(24), self.random.randint(1, 6))
        nodes = []
        for number in numbers:
            node_id = f"{self.name}-{number}"
            version = len(self.written.get(node_id, ()))
            is_image = self.random.random() < 0.6
            node = make(node_id, version, is_image, self.name, f"{self.name} {number % 5}")
            self.written.setdefault(node_id, []).append(node)
            nodes.append(node)
        return "add", (nodes,), lambda _: self.stored.update({n.node_id: n for n in nodes})

    def delete_ids(self):
        gone = self.random.sample(range(24), 2)
        return self._delete("delete_nodes", ([f"{self.name}-{number}" for number in gone],))

    def delete_album(self):
        return self._delete("delete", (f"{self.name} {self.random.randrange(5)}",))

    def delete_by_filter(self):
        key = f"only_{self.random.randrange(3)}"
        wanted = group(one("owner", "==", self.name), one(key, ">=", self.random.randrange(6)))
        return self._delete("delete_nodes", (None, wanted))

    def _delete(self, method, args):
        def left(node):
            if method == "delete":
                return node.ref_doc_id != args[0]
            if args[0] is not None:
                return node.node_id not in args[0]
            key, least = args[1].filters[1].key, args[1].filters[1].value
            return node.metadata.get(key, -1) < least

        def forget(_):
            self.stored = {node_id: node for node_id, node in self.stored.items() if left(node)}

        return method, args, forget

    def search(self):
        """Search among its own nodes, all of which must be found, whole and in order."""
        asked = self._vector()
        query = ask(asked, 100, filters=group(one("owner", "==", self.name)))

        def check(result):
            self.same_nodes("search", result.nodes, with_embedding=False)
            for node, score in zip(result.nodes, result.similarities, strict=True):
                if node.node_id in self.stored:
                    expected = np.dot(asked, self.stored[node.node_id].embedding)
                    if not np.isclose(score, expected, atol=1e-4):
                        self.wrong.append(f"score {score} of {node.node_id}, not {expected}")
            if result.similarities != sorted(result.similarities, reverse=True):
                self.wrong.append(f"search out of order: {result.similarities}")

        return "query", (query,), check

    def search_all(self):
        """Search among everybody's, while they write."""
        return "query", (ask(self._vector(), 20),), lambda found: self.seen.extend(found.nodes)

    def get(self):
        ids = [f"{self.name}-{number}" for number in range(24)]
        return "get_nodes", (ids,), lambda nodes: self.same_nodes("get_nodes", nodes)

    def count(self):
        def check(number):
            if number != len(self.stored):
                self.wrong.append(f"count {number}, not {len(self.stored)}")

        return "count", (None, group(one("owner", "==", self.name))), check

    def _vector(self):
        return vector(self.random.randrange(10**6))

    def same_nodes(self, call, nodes, *, with_embedding=True):
        """Compare what a call found with all that is stored."""
        found = {node.node_id: node for node in nodes}
        if len(nodes) != len(found):
            self.wrong.append(f"{call}: the same node twice")
        for node_id in self.stored.keys() | found.keys():
            if node_id not in found:
                self.wrong.append(f"{call}: {node_id} is missing")
            elif node_id not in self.stored:
                self.wrong.append(f"{call}: {node_id} is there, and should not be")
            elif not same(found[node_id], self.stored[node_id], with_embedding=with_embedding):
                self.wrong.append(f"{call}: {found[node_id]} is not {self.stored[node_id]}")


def compare(store, workers):
    """Compare a store with what its workers know, after the last of them.

    Returns:
        What is wrong or lost; and what is there, or was found meanwhile, that nobody wrote so.
    """
    lost = [wrong for worker in workers for wrong in worker.wrong]
    everything = Worker("everybody")
    for worker in workers:
        everything.stored |= worker.stored
        everything.written |= worker.written
    left = store.get_nodes(filters=group())
    everything.same_nodes("in the end", left)
    seen = [(node, False) for worker in workers for node in worker.seen]
    strange = [
        node
        for node, with_embedding in [*seen, *((node, True) for node in left)]
        if not any(
            same(node, one, with_embedding=with_embedding)
            for one in everything.written.get(node.node_id, ())
        )
    ]
    return lost + everything.wrong, strange
