"""BM25 by hand."""

import math
import random

import pytest

from llama_index_clip_ext.bm25 import Corpus

RED, CIRCLE, OTHER = 1, 2, 3


def idf(count, holders):
    return math.log(1 + (count - holders + 0.5) / (holders + 0.5))


def corpus(*documents):
    made = Corpus()
    for number, terms in enumerate(documents):
        made.put(str(number), terms)
    return made


def test_rare_words_count_more_and_long_documents_less():
    made = corpus({RED: 1}, {RED: 1, CIRCLE: 1}, {RED: 2, OTHER: 4}, *[{OTHER: 3}] * 3, {}, {})

    ranking = dict(made.rank({RED: 1, CIRCLE: 1}))

    # Eight documents; lengths 1, 2, 6 and 3, on average 3 of those with words; k1 1.5, b 0.75.
    red, circle = idf(8, 3), idf(8, 1)
    assert ranking == pytest.approx(
        {
            "0": red * 2.5 / (1 + 1.5 * (0.25 + 0.75 * 1 / 3)),
            "1": (red + circle) * 2.5 / (1 + 1.5 * (0.25 + 0.75 * 2 / 3)),
            "2": red * 2 * 2.5 / (2 + 1.5 * (0.25 + 0.75 * 6 / 3)),
        }
    )
    assert [doc_id for doc_id, _ in made.rank({RED: 1, CIRCLE: 1})] == ["1", "0", "2"]


def test_a_word_asked_for_twice_counts_twice():
    made = corpus({RED: 1}, {OTHER: 1})
    once, twice = (made.rank({RED: times})[0][1] for times in (1, 2))

    assert twice == pytest.approx(2 * once)


def test_a_word_that_all_have_still_counts():
    assert corpus({RED: 1}, {RED: 1}).rank({RED: 1})[0][1] > 0


def test_no_documents_and_no_words_have_no_ranking():
    assert Corpus().rank({RED: 1}) == []
    assert corpus({}, {}).rank({RED: 1}) == []
    assert corpus({OTHER: 1}).rank({RED: 1}) == []


def test_a_corpus_that_changed_ranks_as_one_that_was_made_of_what_is_left():
    chance = random.Random(0)
    changed, documents = Corpus(), {}
    for _ in range(20_000):
        doc_id = str(chance.randrange(3_000))
        if chance.random() < 0.4:
            changed.remove(doc_id)
            documents.pop(doc_id, None)
            continue
        terms = {chance.randrange(20): chance.randint(1, 3) for _ in range(chance.randrange(5))}
        changed.put(doc_id, terms)
        documents[doc_id] = terms
    fresh = Corpus()
    for doc_id, terms in documents.items():
        fresh.put(doc_id, terms)

    assert len(changed) == len(fresh) == len(documents)
    assert len(changed._ids) < 8_000, "places of removed documents are never given up"
    for _ in range(20):
        query = {chance.randrange(20): 1 for _ in range(3)}
        assert dict(changed.rank(query)) == pytest.approx(dict(fresh.rank(query)))
