"""Reciprocal rank fusion, by hand."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llama_index_clip_ext.fusion import reciprocal_rank_fusion, relative_score_fusion


def same(item):
    return item


def test_the_score_is_the_sum_of_reciprocal_ranks():
    fused = reciprocal_rank_fusion([["a", "b", "c"], ["c", "a"]], key=same)

    assert [item for item, _ in fused] == ["a", "c", "b"]
    scores = [1 / 61 + 1 / 62, 1 / 63 + 1 / 61, 1 / 62]
    assert [score for _, score in fused] == pytest.approx(scores, rel=1e-12)


def test_of_equal_scores_the_one_first_seen_comes_first():
    fused = reciprocal_rank_fusion([["x", "y"], ["y", "x"], ["z"]], key=same)

    assert [item for item, _ in fused] == ["x", "y", "z"]
    assert fused[0][1] == fused[1][1]


def test_the_key_tells_items_apart_and_the_first_seen_stays():
    first, again = {"id": 1, "from": "vectors"}, {"id": 1, "from": "words"}

    fused = reciprocal_rank_fusion([[first], [again]], key=lambda item: item["id"])

    assert fused == [(first, pytest.approx(2 / 61))]


def test_an_item_listed_twice_counts_at_its_better_rank():
    # The next one keeps its place in the list, 3.
    fused = reciprocal_rank_fusion([["a", "a", "b"]], key=same)

    assert fused == [("a", pytest.approx(1 / 61)), ("b", pytest.approx(1 / 63))]


def test_nothing_fused_is_nothing():
    assert reciprocal_rank_fusion([], key=same) == []
    assert reciprocal_rank_fusion([[], []], key=same) == []


@pytest.mark.parametrize(
    ("weights", "reason"),
    [
        ([1.0], "1 weights for 2 rankings"),
        ([1.0, -0.1], "from 0 up"),
        ([1.0, math.nan], "from 0 up"),
        ([0, 0], "all weights are 0"),
    ],
)
def test_impossible_weights_are_refused(weights, reason):
    with pytest.raises(ValueError, match=reason):
        relative_score_fusion([[("a", 1.0)], [("b", 1.0)]], weights=weights, key=same)


@given(st.lists(st.lists(st.integers(0, 20), unique=True), max_size=4))
def test_what_any_ranking_lists_comes_once_and_best_first(rankings):
    fused = reciprocal_rank_fusion(rankings, key=same)

    assert sorted(item for item, _ in fused) == sorted(set().union(*rankings))
    scores = [score for _, score in fused]
    assert scores == sorted(scores, reverse=True)


def test_relative_scores_by_hand():
    near = [("a", 0.9), ("b", 0.5), ("c", 0.1)]
    about = [("c", 20.0), ("d", 12.0), ("b", 10.0)]
    fused = relative_score_fusion([near, about], weights=[0.25, 0.75], key=str)
    assert fused == [
        ("c", pytest.approx(0.75)),
        ("a", pytest.approx(0.25)),
        ("d", pytest.approx(0.15)),
        ("b", pytest.approx(0.125)),
    ]


def test_relative_scores_do_not_depend_on_their_scale():
    near, about = [("a", 0.9), ("b", 0.5), ("c", 0.1)], [("c", 20.0), ("d", 12.0), ("b", 10.0)]
    scaled = [(item, -7 + 1000 * score) for item, score in about]
    one = relative_score_fusion([near, about], key=str)
    other = relative_score_fusion([near, scaled], key=str)
    assert [item for item, _ in one] == [item for item, _ in other]
    assert [score for _, score in one] == pytest.approx([score for _, score in other])


def test_relative_scores_of_few_or_equal_items():
    assert relative_score_fusion([[("a", 3.0)], []], key=str) == [("a", 1.0)]
    assert relative_score_fusion([[("a", 3.0), ("b", 3.0)]], key=str) == [("a", 1.0), ("b", 1.0)]
    assert relative_score_fusion([[("a", 1.0)], [("b", 1.0)]], weights=[0, 1], key=str) == [
        ("b", 1.0)
    ]
    with pytest.raises(ValueError, match="1 weights for 2 rankings"):
        relative_score_fusion([[], []], weights=[1], key=str)
