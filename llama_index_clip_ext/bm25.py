"""BM25 over all texts of a collection, whichever of them a filter lets through."""

from __future__ import annotations

import math
from array import array
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

# Milvus Lite's own.
_K1 = 1.5
_B = 0.75

_MIN_DEAD = 1_000  # Places of removed documents, before they are given up.


class Corpus:
    """Counts the words of documents, and ranks them by BM25.

    How rare a word is, is that of all documents, so that a filter does not reorder those that it
    leaves; the average length is that of documents with a word in them.

    Source:
        Robertson and Zaragoza, "The Probabilistic Relevance Framework: BM25 and Beyond", 2009, with
        the idf that is never negative.
    """

    def __init__(self) -> None:
        self._places: dict[str, int] = {}
        self._ids: list[str] = []
        # By place; 0 for a document without words, or one that was removed.
        self._lengths = array("d")
        # By term: places, in ascending order, and how often the term occurs there.
        self._postings: dict[int, tuple[array[int], array[float]]] = {}

    def __len__(self) -> int:
        return len(self._places)

    def put(self, doc_id: str, terms: Mapping[int, float]) -> None:
        """Add a document, in place of one with its id.

        Args:
            doc_id: Its id.
            terms: How often each term occurs in it.
        """
        self.remove(doc_id)
        place = self._places[doc_id] = len(self._ids)
        self._ids.append(doc_id)
        self._lengths.append(sum(terms.values()))
        for term, times in terms.items():
            places, counts = self._postings.setdefault(term, (array("q"), array("d")))
            places.append(place)
            counts.append(times)

    def remove(self, doc_id: str) -> None:
        """Remove a document, if it is there."""
        place = self._places.pop(doc_id, None)
        if place is None:
            return
        self._lengths[place] = 0
        dead = len(self._ids) - len(self._places)
        if dead > max(_MIN_DEAD, len(self._places)):
            self._compact()

    def rank(self, query: Mapping[int, float]) -> list[tuple[str, float]]:
        """Return the documents that share words with a query, and their scores, best first.

        Args:
            query: How often each term occurs in it.
        """
        lengths = np.array(self._lengths)
        with_words = lengths[lengths > 0]
        if not len(with_words):
            return []
        count = len(self._places)
        norms = _K1 * (1 - _B + _B * lengths / with_words.mean())
        scores = np.zeros(len(lengths))
        for term, times in query.items():
            places, counts = self._living(term, lengths)
            idf = math.log(1 + (count - len(places) + 0.5) / (len(places) + 0.5))
            scores[places] += times * idf * counts * (_K1 + 1) / (counts + norms[places])
        found = np.flatnonzero(scores)
        best = found[np.argsort(-scores[found], kind="stable")]
        return [(self._ids[place], float(scores[place])) for place in best]

    def _living(
        self, term: int, lengths: NDArray[np.float64]
    ) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        places, counts = map(np.array, self._postings.get(term, (array("q"), array("d"))))
        alive = lengths[places] > 0
        return places[alive], counts[alive]

    def _compact(self) -> None:
        """Give up the places of removed documents."""
        lengths = np.array(self._lengths)
        kept = sorted(self._places.values())
        moved = np.zeros(len(lengths), dtype=np.int64)
        moved[kept] = np.arange(len(kept))
        postings = {}
        for term in self._postings:
            places, counts = self._living(term, lengths)
            if len(places):
                postings[term] = array("q", moved[places].tolist()), array("d", counts.tolist())
        self._postings = postings
        self._ids = [self._ids[place] for place in kept]
        self._lengths = array("d", lengths[kept].tolist())
        self._places = {doc_id: place for place, doc_id in enumerate(self._ids)}
