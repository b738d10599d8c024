"""Searches of one collection: by vector, by words, and by both."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from llama_index.core.schema import BaseNode
from llama_index.core.vector_stores.types import (
    VectorStoreQuery,
    VectorStoreQueryMode,
    VectorStoreQueryResult,
)

from .bm25 import Corpus
from .connection import Connection
from .errors import AnswerTooLargeError, DimensionMismatchError
from .expressions import Engine, ids_expression, joined
from .full_text import INDEX, SPARSE_FIELD, lite_terms, searchable
from .fusion import reciprocal_rank_fusion, relative_score_fusion
from .notes import BM25_KEY, SIMILARITY_KEY, note
from .paging import Row, in_parts, pages
from .rows import row_to_node
from .vectors import l2_normalize

Hit: TypeAlias = Mapping[str, Any]

BY_WORDS = (VectorStoreQueryMode.TEXT_SEARCH, VectorStoreQueryMode.SPARSE)
BY_COSINE = (VectorStoreQueryMode.DEFAULT, VectorStoreQueryMode.MMR)

_BM25 = {"metric_type": INDEX["metric_type"]}
MAX_TOP_K = 16_384  # Milvus's query window.
_MAX_QUERIES = 256  # Milvus Lite holds a score for each of them and each row.
# HNSW's ef, which must be no less than the number of hits wanted. Of 6,000 random vectors of 512
# components, 128 finds 90 % of the ten nearest, 512 finds 99.9 %, for a third of a millisecond.
_MIN_EF = 512
_MAX_EF = 32_768  # Milvus's limit.
_MMR_PREFETCH = 4
_MMR_THRESHOLD = 0.5  # LlamaIndex's.
_MAX_IDS = 1_000  # Ids in one expression.
# Rows that are compared one by one, here, where a server's index may miss some of them.
_MAX_COMPARED = 1_024
_HYBRID_PREFETCH = 4  # What is fourth in both lists may be the best.


@dataclass(frozen=True)
class Scope:
    """What is searched.

    Attributes:
        connection: To the database.
        collection_name: The collection.
        dim: Components of its vectors.
        has_hnsw: Whether their index is HNSW, whose searches say how hard to look.
        full_text: Analyzer of its texts; ``None`` if they cannot be searched by words.
        expression: Condition that hits meet; empty for none.
        partitions: Those to look into; ``None`` for all.
        output_fields: What a hit needs to become a node.
        consistency_level: What is seen of others' writes, on a server.
        engine: Who reads expressions.
        is_inexact: Whether the index may miss rows, on a server that has not indexed them yet.
    """

    connection: Connection
    collection_name: str
    dim: int
    has_hnsw: bool
    full_text: str | None
    expression: str
    partitions: list[str] | None
    output_fields: list[str]
    consistency_level: str
    engine: Engine
    is_inexact: bool

    def read(self, **kwargs: Any) -> list[Row]:
        """Query the collection."""
        rows: list[Row] = self.connection.call(
            "query", self.collection_name, consistency_level=self.consistency_level, **kwargs
        )
        return rows


def search(
    scope: Scope, query: VectorStoreQuery, mmr_threshold: float | None
) -> VectorStoreQueryResult:
    """Answer a query in its mode; see `CLIPMilvusVectorStore.query`."""
    top_k = check_top_k("similarity_top_k", query.similarity_top_k)
    check_mode(query.mode)
    check_mmr_threshold(mmr_threshold)
    check_alpha(query.alpha)
    if query.mode == VectorStoreQueryMode.HYBRID:
        return _by_both(scope, query)
    if query.mode in BY_WORDS:
        if not query.query_str:
            raise ValueError(f"the query has no query_str, which mode {query.mode.value!r} needs")
        return _scored(_by_words(scope, query.query_str, top_k))
    return search_many(scope, query, [query.query_embedding], mmr_threshold)[0]


def search_many(
    scope: Scope,
    query: VectorStoreQuery,
    embeddings: Sequence[Sequence[float] | None],
    mmr_threshold: float | None,
) -> list[VectorStoreQueryResult]:
    """Answer a query by vector for each embedding; see `CLIPMilvusVectorStore.query_many`."""
    top_k = check_top_k("similarity_top_k", query.similarity_top_k)
    if query.mode not in BY_COSINE:
        raise ValueError(f"mode {query.mode!r} is not by vectors alone; ask one query at a time")
    vectors = [query_vector(one, scope.dim, scope.collection_name) for one in embeddings]
    if query.mode == VectorStoreQueryMode.DEFAULT:
        return [_scored(hits) for hits in _by_vectors(scope, vectors, top_k)]
    check_mmr_threshold(mmr_threshold)
    limit = min(top_k * _MMR_PREFETCH, MAX_TOP_K)
    found = _by_vectors(scope, vectors, limit, with_vectors=True)
    return [
        _scored(_most_diverse(hits, vector, top_k, mmr_threshold))
        for hits, vector in zip(found, vectors, strict=True)
    ]


def check_mode(mode: VectorStoreQueryMode | str) -> VectorStoreQueryMode:
    """Return a mode that `search` knows.

    Raises:
        ValueError: If it is another.
    """
    for known in (*BY_WORDS, *BY_COSINE, VectorStoreQueryMode.HYBRID):
        if mode == known:
            return known
    raise ValueError(
        f"query mode {getattr(mode, 'value', mode)!r} is not supported; use 'default', 'mmr', "
        "'text_search' or 'hybrid'"
    )


def check_mmr_threshold(threshold: float | None) -> None:
    """Refuse a weight of relevance that is not one.

    Raises:
        ValueError: If it is not from 0 to 1.
    """
    if threshold is not None and not 0 <= threshold <= 1:
        raise ValueError(
            f"mmr_threshold is {threshold}, expected 0 (diverse) to 1 (similar to the query)"
        )


def check_alpha(alpha: float | None) -> None:
    """Refuse a weight of the vectors that is none.

    Raises:
        ValueError: If it is not from 0 to 1.
    """
    if alpha is not None and not 0 <= alpha <= 1:
        raise ValueError(f"alpha is {alpha}, expected 0 (words only) to 1 (vectors only)")


def _by_vectors(
    scope: Scope, vectors: Sequence[list[float]], limit: int, *, with_vectors: bool = False
) -> Iterator[list[Hit]]:
    """Yield the hits of each vector, of as many in one call as one query might return hits."""
    if scope.is_inexact and (rows := _few_rows(scope)) is not None:
        yield from _nearest(rows, vectors, limit)
        return
    ef = min(max(4 * limit, _MIN_EF), _MAX_EF)
    params = {"params": {"ef": ef}} if scope.has_hnsw else {}
    fields = [*scope.output_fields, *(["embedding"] if with_vectors else [])]
    size = min(max(MAX_TOP_K // limit, 1), _MAX_QUERIES)
    for start in range(0, len(vectors), size):
        yield from _hits(scope, "embedding", vectors[start : start + size], limit, params, fields)


def _few_rows(scope: Scope) -> list[Row] | None:
    """Return the rows that meet the scope's condition, with vectors; ``None`` if they are many.

    A server that has not indexed its rows yet misses most of those that a filter matches.
    """
    counted = scope.read(
        filter=scope.expression,
        output_fields=["count(*)"],
        partition_names=scope.partitions,
    )
    if int(counted[0]["count(*)"]) > _MAX_COMPARED:
        return None
    fields = [*scope.output_fields, "embedding"]
    found = pages(
        scope.read,
        scope.expression,
        fields,
        scope.engine,
        with_vectors=True,
        partitions=scope.partitions,
    )
    return [row for page in found for row in page]


def _nearest(
    rows: Sequence[Row], vectors: Sequence[Sequence[float]], limit: int
) -> Iterator[list[Hit]]:
    """Yield the rows nearest to each vector, by comparing it with all."""
    if not rows:
        yield from ([] for _ in vectors)
        return
    stored = l2_normalize(np.array([row["embedding"] for row in rows], dtype=np.float32))
    scores = np.asarray(vectors, dtype=np.float32) @ stored.T
    for row_scores in scores:
        best = np.argsort(-row_scores, kind="stable")[:limit]
        yield [
            {"id": rows[place]["id"], "distance": float(row_scores[place]), "entity": rows[place]}
            for place in best
        ]


def check_full_text(full_text: str | None, collection_name: str) -> None:
    """Refuse to search by words where they were not prepared for it.

    Raises:
        ValueError: If they were not.
    """
    if full_text is None:
        raise ValueError(
            f"collection {collection_name!r} has no full text: index into another one that is "
            "created with create_vector_store(..., collection_name=..., full_text='english') "
            "(clip-ext index --full-text english --collection NAME); overwrite=True would drop "
            "this one with all its data"
        )


def _by_words(scope: Scope, text: str, limit: int) -> list[Hit]:
    check_full_text(scope.full_text, scope.collection_name)
    words = searchable(text)
    if not words:
        return []
    if scope.connection.is_lite and scope.full_text:
        return _by_words_of_all(scope, lite_terms(scope.full_text, words), limit)
    return _hits(scope, SPARSE_FIELD, [words], limit, _BM25, scope.output_fields)[0]


def _by_words_of_all(scope: Scope, terms: Mapping[int, float], limit: int) -> list[Hit]:
    """Search an embedded file by words that are weighed by all of its texts.

    Milvus Lite weighs them by the texts of each of its segments alone, and what was added last is
    in a small one, where no word is rare: new captions would come after all others.
    """
    with scope.connection.lock:
        ranking = _corpus(scope).rank(terms)
        hits: list[Hit] = []
        start, size = 0, _MAX_IDS
        while start < len(ranking) and len(hits) < limit:
            part = ranking[start : start + size]
            rows = _rows(scope, [doc_id for doc_id, _ in part])
            hits += [
                {"id": doc_id, "distance": score, "entity": rows[doc_id]}
                for doc_id, score in part
                if doc_id in rows  # Others do not meet the condition.
            ]
            start, size = start + size, 2 * size
    return hits[:limit]


def _corpus(scope: Scope) -> Corpus:
    """Return the words of all texts, read once and then kept up to date by each write."""
    shared = scope.connection.file_lock
    corpus = shared.current_corpus(scope.collection_name)
    if corpus is None:
        corpus = Corpus()
        for page in pages(scope.read, "", [SPARSE_FIELD], scope.engine):
            for row in page:
                corpus.put(row["id"], row[SPARSE_FIELD] or {})
        shared.keep_corpus(scope.collection_name, corpus)
    return corpus


def _rows(scope: Scope, ids: Sequence[str], *fields: str) -> dict[str, Row]:
    """Return those of some rows that meet the scope's condition, by id."""

    def read(part: Sequence[str]) -> list[Row]:
        tests = [ids_expression("id", part), scope.expression]
        return scope.read(
            filter=joined("and", [test for test in tests if test], scope.engine),
            output_fields=["id", *scope.output_fields, *fields],
            partition_names=scope.partitions,
        )

    return {row["id"]: row for row in in_parts(read, ids)}


def _hits(
    scope: Scope,
    field: str,
    data: Sequence[list[float] | str],
    limit: int,
    params: dict[str, Any],
    output_fields: list[str],
) -> list[list[Hit]]:
    def ask(part: Sequence[list[float] | str], fields: list[str]) -> list[list[Hit]]:
        found = scope.connection.call(
            "search",
            scope.collection_name,
            data=list(part),
            anns_field=field,
            limit=limit,
            filter=scope.expression,
            output_fields=fields,
            search_params=params,
            partition_names=scope.partitions,
            consistency_level=scope.consistency_level,
        )
        return [list(hits) for hits in found]

    try:
        return list(in_parts(lambda part: ask(part, output_fields), data))
    except AnswerTooLargeError:
        # Already of one query: its hits alone first, and then their rows. (For no fields at all,
        # Milvus Lite sends every one.)
        found = [ask([one], ["id"])[0] for one in data]
    rows: dict[str, Row] = {}
    ids = list(dict.fromkeys(hit["id"] for hits in found for hit in hits))
    for start in range(0, len(ids), _MAX_IDS):
        rows |= _rows(scope, ids[start : start + _MAX_IDS], *output_fields)
    return [
        [
            {"id": hit["id"], "distance": hit["distance"], "entity": rows[hit["id"]]}
            for hit in hits
            if hit["id"] in rows
        ]
        for hits in found
    ]


def _by_both(scope: Scope, query: VectorStoreQuery) -> VectorStoreQueryResult:
    """Fuse hits by vector and by words, and write into each the scores that it came with."""
    alpha = 0.5 if query.alpha is None else query.alpha
    wanted = depth = check_top_k("similarity_top_k", query.similarity_top_k)
    if query.hybrid_top_k is None:
        depth = min(depth * _HYBRID_PREFETCH, MAX_TOP_K)
    else:
        wanted = check_top_k("hybrid_top_k", query.hybrid_top_k)
    word_depth = depth
    if query.sparse_top_k is not None:
        word_depth = check_top_k("sparse_top_k", query.sparse_top_k)
    near: list[Hit] = []
    about: list[Hit] = []
    if alpha > 0:
        vector = query_vector(query.query_embedding, scope.dim, scope.collection_name)
        (near,) = _by_vectors(scope, [vector], depth)
    if alpha < 1:
        # A query by an image has no words.
        about = _by_words(scope, query.query_str or "", word_depth)
    if query.alpha is None:
        both = reciprocal_rank_fusion([near, about], key=lambda hit: hit["id"])
    else:
        scored = [[(hit, float(hit["distance"])) for hit in hits] for hits in (near, about)]
        both = relative_score_fusion(scored, weights=[alpha, 1 - alpha], key=lambda hit: hit["id"])
    parts = {
        key: {hit["id"]: float(hit["distance"]) for hit in hits}
        for key, hits in ((SIMILARITY_KEY, near), (BM25_KEY, about))
    }
    found = []
    for hit, score in both[:wanted]:
        node = _node(hit)
        note(node, {key: part[hit["id"]] for key, part in parts.items() if hit["id"] in part})
        found.append((hit, node, score))
    return _result(found)


def query_vector(embedding: Sequence[float] | None, dim: int, collection_name: str) -> list[float]:
    """Scale a query's embedding to unit length, after refusing what cannot be searched with.

    Raises:
        DimensionMismatchError: If it has another dimension.
        EmbeddingError: If it is zero or not finite.
        ValueError: If there is none.
    """
    if embedding is None or len(embedding) == 0:
        raise ValueError("the query has no embedding: use a retriever, or embed it first")
    row = np.asarray([embedding], dtype=np.float32)
    if row.shape != (1, dim):
        raise DimensionMismatchError(
            f"the query embedding has {row.shape[-1]} components, collection "
            f"{collection_name!r} holds {dim}-dim vectors",
            expected=dim,
            actual=row.shape[-1],
        )
    components: list[float] = l2_normalize(row)[0].tolist()
    return components


def _most_diverse(
    hits: Sequence[Hit], vector: list[float], top_k: int, threshold: float | None
) -> list[Hit]:
    """Pick hits by maximal marginal relevance; their similarity stays the raw cosine.

    Each pick is compared with all before it, where LlamaIndex's own compares with the last alone.

    Source:
        Carbonell and Goldstein 1998, "The Use of MMR, Diversity-Based Reranking", section 2.
    """
    if not hits:
        return []
    weight = _MMR_THRESHOLD if threshold is None else threshold
    rows = l2_normalize(np.array([hit["entity"]["embedding"] for hit in hits], dtype=np.float32))
    relevance = rows @ np.asarray(vector, dtype=np.float32)
    nearest = np.zeros(len(hits), dtype=np.float32)  # To what was picked.
    left = np.ones(len(hits), dtype=bool)
    picked: list[int] = []
    while len(picked) < min(top_k, len(hits)):
        scores = weight * relevance - (1 - weight) * nearest
        best = int(np.argmax(np.where(left, scores, -np.inf)))
        left[best] = False
        similarity = rows @ rows[best]
        nearest = np.maximum(nearest, similarity) if picked else similarity
        picked.append(best)
    return [hits[place] for place in picked]


def check_top_k(name: str, top_k: int) -> int:
    """Return a number of hits as an integer.

    Raises:
        ValueError: If it is not a whole number that Milvus's query window holds.
    """
    is_whole = isinstance(top_k, (int, np.integer)) and not isinstance(top_k, bool)
    if not is_whole or not 1 <= top_k <= MAX_TOP_K:
        raise ValueError(f"{name} is {top_k!r}, expected a whole number from 1 to {MAX_TOP_K}")
    return int(top_k)


def _scored(hits: Sequence[Hit]) -> VectorStoreQueryResult:
    return _result([(hit, _node(hit), float(hit["distance"])) for hit in hits])


def _node(hit: Hit) -> BaseNode:
    node = row_to_node({**hit["entity"], "id": hit["id"]})
    node.embedding = None
    return node


def _result(found: Sequence[tuple[Hit, BaseNode, float]]) -> VectorStoreQueryResult:
    return VectorStoreQueryResult(
        nodes=[node for _, node, _ in found],
        similarities=[score for _, _, score in found],
        ids=[str(hit["id"]) for hit, _, _ in found],
    )
