import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llama_index_clip_ext.metrics import Estimate, bootstrap_means, index_recall, nearest
from llama_index_clip_ext.vectors import l2_normalize

OPTIONS = {"confidence": 0.95, "n_resamples": 500, "seed": 0}


def unit(n, dim=8, seed=0):
    return l2_normalize(np.random.default_rng(seed).normal(size=(n, dim)))


def named(rows, size=3):
    for start in range(0, len(rows), size):
        yield [str(n) for n in range(start, min(start + size, len(rows)))], rows[start:][:size]


def test_the_mean_is_the_mean_and_equal_scores_leave_no_doubt():
    estimates = bootstrap_means({"a": [1, 0, 0, 1, 1], "b": [0.5] * 5}, **OPTIONS)

    assert estimates["a"].value == pytest.approx(0.6)
    assert 0 <= estimates["a"].low < 0.6 < estimates["a"].high <= 1
    assert estimates["b"] == Estimate(0.5, 0.5, 0.5)


def test_a_seed_decides_the_interval():
    scores = {"a": list(np.random.default_rng(1).random(30))}

    first, again = (bootstrap_means(scores, **OPTIONS) for _ in range(2))
    other = bootstrap_means(scores, **{**OPTIONS, "seed": 1})

    assert first == again
    assert other["a"].value == first["a"].value
    assert other["a"] != first["a"]


def test_the_interval_is_near_the_normal_one_for_many_queries():
    # Of 400 coin tosses: 0.5 plus or minus 1.96 * 0.5 / sqrt(400) = 0.049.
    estimate = bootstrap_means({"a": [0, 1] * 200}, **{**OPTIONS, "n_resamples": 4000})["a"]

    assert (estimate.low, estimate.high) == pytest.approx((0.451, 0.549), abs=0.006)


def test_intervals_hold_the_truth_about_as_often_as_they_say():
    rng = np.random.default_rng(2)
    held = 0
    for trial in range(200):
        scores = (rng.random(80) < 0.7).astype(float)
        estimate = bootstrap_means({"a": list(scores)}, **{**OPTIONS, "seed": trial})["a"]
        held += estimate.low <= 0.7 <= estimate.high
    assert 0.88 <= held / 200 <= 0.99


def test_more_confidence_is_a_wider_interval():
    scores = {"a": list(np.random.default_rng(3).random(40))}

    narrow, wide = (
        bootstrap_means(scores, **{**OPTIONS, "confidence": confidence})["a"]
        for confidence in (0.5, 0.99)
    )

    assert wide.low < narrow.low < narrow.value < narrow.high < wide.high


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 600), st.integers(1, 40), st.integers(1, 50))
def test_the_nearest_are_those_of_a_full_sort(n, m, k):
    queries, candidates = unit(n, seed=n), unit(m, seed=m + 1)

    found = nearest(queries, candidates, k)

    expected = np.argsort(-(queries @ candidates.T), axis=1, kind="stable")[:, :k]
    assert found.shape == (n, min(k, m))
    np.testing.assert_array_equal(found, expected)


def test_recall_of_an_index_by_hand():
    queries = np.array([[1, 0], [0, 1]], dtype=np.float32)
    rows = np.array([[1, 0], [0.8, 0.6], [0.6, 0.8], [0, 1]], dtype=np.float32)

    # The two nearest of the first query are 0 and 1; of the second 3 and 2.
    recall = index_recall(queries, [["0", "2"], ["3", "2"]], named(rows), 2)

    assert (recall.mean, recall.min) == (0.75, 0.5)
    assert (recall.k, recall.n_queries, recall.n_vectors) == (2, 2, 4)
    assert str(recall) == (
        "recall@2 against exact search: 0.750 (worst query 0.500; 2 queries, 4 vectors)"
    )


def test_hits_that_are_missing_or_unknown_are_not_right():
    rows = unit(6)

    assert index_recall(rows[:1], [[]], named(rows), 3).mean == 0
    assert index_recall(rows[:1], [["0", "gone"]], named(rows), 3).mean == pytest.approx(1 / 3)


def test_of_equal_vectors_any_is_right():
    rows = np.array([[1, 0]] * 3 + [[0, 1]], dtype=np.float32)

    for hit in "012":
        assert index_recall(rows[:1], [[hit]], named(rows), 1).mean == 1
    assert index_recall(rows[:1], [["3"]], named(rows), 1).mean == 0


def test_fewer_vectors_than_hits_asked_for():
    rows = unit(4)

    assert index_recall(rows, [[*"0123"]] * 4, named(rows), 10).mean == 1
    assert index_recall(rows, [[*"012"]] * 4, named(rows), 10).mean == 0.75


@pytest.mark.parametrize("size", [1, 7, 1000])
def test_the_size_of_a_batch_changes_nothing(size):
    queries, rows = unit(20, seed=5), unit(50, seed=6)
    hits = [[str(n) for n in np.random.default_rng(7).permutation(50)[:10]]] * 20

    by_hand = [
        len({*map(int, ids)} & {*np.argsort(-(rows @ query))[:10].tolist()}) / 10
        for query, ids in zip(queries, hits, strict=True)
    ]

    recall = index_recall(queries, hits, named(rows, size), 10)
    assert recall.mean == pytest.approx(np.mean(by_hand))
    assert recall.min == min(by_hand)
