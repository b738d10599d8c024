"""BM25 by hand."""

import math

import pytest

from llama_index_clip_ext.bm25 import bm25_scores

RED, CIRCLE, OTHER = 1, 2, 3


def idf(count, holders):
    return math.log(1 + (count - holders + 0.5) / (holders + 0.5))


def test_rare_words_count_more_and_long_documents_less():
    documents = [{RED: 1}, {RED: 1, CIRCLE: 1}, {RED: 2, OTHER: 4}]

    scores = bm25_scores({RED: 1, CIRCLE: 1}, documents, 10)

    # Lengths 1, 2 and 6, 3 on average; k1 1.5, b 0.75.
    red, circle = idf(10, 3), idf(10, 1)
    assert scores == pytest.approx(
        [
            red * 2.5 / (1 + 1.5 * (0.25 + 0.75 * 1 / 3)),
            (red + circle) * 2.5 / (1 + 1.5 * (0.25 + 0.75 * 2 / 3)),
            red * 2 * 2.5 / (2 + 1.5 * (0.25 + 0.75 * 6 / 3)),
        ]
    )


def test_a_word_asked_for_twice_counts_twice():
    once, twice = (bm25_scores({RED: times}, [{RED: 1}], 5)[0] for times in (1, 2))

    assert twice == pytest.approx(2 * once)


def test_a_word_that_all_have_still_counts():
    assert bm25_scores({RED: 1}, [{RED: 1}, {RED: 1}], 2)[0] > 0


def test_no_documents_have_no_scores():
    assert bm25_scores({RED: 1}, [], 5) == []
