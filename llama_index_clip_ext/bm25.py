"""BM25, computed over all that was found."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence

# Milvus Lite's own.
_K1 = 1.5
_B = 0.75


def bm25_scores(
    query: Mapping[int, float], documents: Sequence[Mapping[int, float]], count: int
) -> list[float]:
    """Score the documents of a collection that have words in common with a query.

    Robertson and Zaragoza, "The Probabilistic Relevance Framework: BM25 and Beyond", 2009, with the
    idf that is never negative. The average length is that of the documents given, since those
    without a word in common are not known.

    Args:
        query: How often each term occurs in the query.
        documents: The same of each document that has any of the query's.
        count: Documents in the collection.
    """
    if not documents:
        return []
    lengths = [sum(document.values()) for document in documents]
    average = sum(lengths) / len(lengths)
    holders = Counter(term for document in documents for term in query if term in document)
    weights = {
        term: times * math.log(1 + (count - holders[term] + 0.5) / (holders[term] + 0.5))
        for term, times in query.items()
    }
    return [
        sum(
            weights[term]
            * document[term]
            * (_K1 + 1)
            / (document[term] + _K1 * (1 - _B + _B * length / average))
            for term in query
            if term in document
        )
        for document, length in zip(documents, lengths, strict=True)
    ]
