"""One collection against a dictionary, by two store objects: any calls in any order."""

import numpy as np
import pytest
from by_hand import MODEL, ask
from filter_oracle import SAME_EACH_TIME, group, one
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from mixed_work import make, same, vector

from llama_index_clip_ext import create_vector_store
from llama_index_clip_ext.rows import node_hash

NUMBERS = st.integers(0, 11)
SOME = st.lists(NUMBERS, min_size=1, max_size=6, unique=True)
WHICH = st.sampled_from([0, 1])
MODALITY = st.sampled_from([None, "image", "text"])
OWNERS = ["ann", "ben"]
FILTERS = st.one_of(
    st.builds(lambda owner: group(one("owner", "==", owner)), st.sampled_from(OWNERS)),
    st.builds(
        lambda key, operator, number: group(one(f"only_{key}", operator, number)),
        st.integers(0, 2),
        st.sampled_from(["==", ">=", "<"]),
        st.integers(0, 6),
    ),
)


def matches(node, wanted):
    """Whether a node is one that a filter of `FILTERS` finds."""
    (condition,) = wanted.filters if wanted else (None,)
    if condition is None:
        return True
    value = node.metadata.get(condition.key)
    if value is None:
        return False
    compare = {"==": np.equal, ">=": np.greater_equal, "<": np.less}[condition.operator.value]
    return bool(compare(value, condition.value))


class StoreMachine(RuleBasedStateMachine):
    """Two store objects of one collection, and what it must hold."""

    def __init__(self, options, compared):
        super().__init__()
        self.options = options
        self.compared = compared
        self.stores = [self.open(), self.open()]
        self.stores[0].clear()
        # A server allows it once in ten seconds.
        self.may_flush = not str(options["uri"]).startswith("http")
        self.nodes = {}
        self.versions = 0

    def open(self):
        return create_vector_store(MODEL, **self.options)

    def teardown(self):
        for store in self.stores:
            store.close()

    def of(self, wanted, modality=None):
        kind = {"image": "ImageNode", "text": "TextNode"}.get(modality)
        return {
            node_id: node
            for node_id, node in self.nodes.items()
            if matches(node, wanted) and kind in (None, node.class_name())
        }

    @rule(
        which=WHICH,
        numbers=SOME,
        is_image=st.booleans(),
        owner=st.sampled_from(OWNERS),
        force_flush=st.booleans(),
    )
    def add(self, which, numbers, is_image, owner, force_flush):
        self.versions += 1
        nodes = [
            make(f"id {number}", self.versions, is_image, owner, f"album {number % 3}")
            for number in numbers
        ]
        added = self.stores[which].add(nodes, force_flush=force_flush and self.may_flush)
        assert added == [node.node_id for node in nodes]
        self.nodes |= {node.node_id: node for node in nodes}

    @rule(which=WHICH, numbers=SOME)
    def delete_by_id(self, which, numbers):
        ids = [f"id {number}" for number in numbers]
        self.stores[which].delete_nodes(ids)
        for node_id in ids:
            self.nodes.pop(node_id, None)

    @rule(which=WHICH, wanted=FILTERS)
    def delete_by_filters(self, which, wanted):
        self.stores[which].delete_nodes(filters=wanted)
        for node_id in self.of(wanted):
            del self.nodes[node_id]

    @rule(which=WHICH, album=st.integers(0, 2))
    def delete_document(self, which, album):
        self.stores[which].delete(f"album {album}")
        self.nodes = {
            node_id: node
            for node_id, node in self.nodes.items()
            if node.ref_doc_id != f"album {album}"
        }

    @rule(which=WHICH)
    def clear(self, which):
        self.stores[which].clear()
        self.nodes = {}

    @precondition(lambda self: self.may_flush)
    @rule(which=WHICH)
    def flush(self, which):
        self.stores[which].flush()

    @rule(which=WHICH)
    def reopen_one(self, which):
        self.stores[which].close()
        self.stores[which] = self.open()

    @rule()
    def reopen_both(self):
        self.teardown()
        self.stores = [self.open(), self.open()]

    @rule(
        which=WHICH,
        seed=st.integers(0, 999),
        top_k=st.integers(1, 20),
        wanted=st.none() | FILTERS,
        modality=MODALITY,
    )
    def query(self, which, seed, top_k, wanted, modality):
        asked = vector(seed)
        expected = self.of(wanted, modality)
        scores = {one: np.dot(asked, node.embedding) for one, node in expected.items()}
        best = sorted(scores, key=lambda node_id: -scores[node_id])[:top_k]

        result = self.stores[which].query(ask(asked, top_k, filters=wanted), modality=modality)

        assert result.ids == best
        assert result.similarities == pytest.approx([scores[one] for one in best], abs=1e-5)
        for node in result.nodes:
            assert same(node, expected[node.node_id], with_embedding=False)

    @rule(which=WHICH, wanted=st.none() | FILTERS, modality=MODALITY)
    def count(self, which, wanted, modality):
        assert self.stores[which].count(modality, wanted) == len(self.of(wanted, modality))
        assert set(self.stores[which].get_ids(wanted, modality)) == set(self.of(wanted, modality))

    @rule(which=WHICH, numbers=SOME)
    def get_nodes_and_hashes(self, which, numbers):
        ids = [f"id {number}" for number in numbers]
        nodes = self.stores[which].get_nodes(ids)
        assert [node.node_id for node in nodes] == [one for one in ids if one in self.nodes]
        assert all(same(node, self.nodes[node.node_id]) for node in nodes)
        assert self.stores[which].get_hashes(ids) == {
            node.node_id: node_hash(self.nodes[node.node_id]) for node in nodes
        }

    @invariant()
    def holds_what_it_must(self):
        self.compared.append(len(self.nodes))
        for store in self.stores:
            left = {node.node_id: node for node in store.get_nodes(filters=group())}
            assert left.keys() == self.nodes.keys()
            assert all(same(left[node_id], self.nodes[node_id]) for node_id in left)
        # What was deleted, or is of the other modality now, comes back in none of the partitions.
        for modality in (None, "image", "text"):
            ids = self.stores[0].query(ask(vector(0), 100), modality=modality).ids
            assert sorted(ids) == sorted(self.of(None, modality))


def check(what, options, tally, *, examples, steps):
    """Run sequences of calls; each is followed by a comparison of all that is stored."""
    compared = []
    lost = 1
    try:
        run_state_machine_as_test(
            lambda: StoreMachine(options, compared),
            settings=settings(
                max_examples=examples,
                stateful_step_count=steps,
                suppress_health_check=list(HealthCheck),
                **SAME_EACH_TIME,
            ),
        )
        lost = 0
    finally:
        tally(what, tried=len(compared), lost=lost)


def test_any_calls_in_any_order_on_milvus_lite(tmp_path, tries, tally):
    effort = {"examples": tries(short=8, full=60), "steps": tries(short=20, full=50)}
    check("any order, Milvus Lite", {"uri": tmp_path / "stateful.db"}, tally, **effort)


def test_any_calls_in_any_order_on_a_server(server, tries, tally):
    effort = {"examples": tries(short=1, full=8), "steps": tries(short=15, full=40)}
    check("any order, server", {"uri": server, "collection_name": "stateful"}, tally, **effort)
