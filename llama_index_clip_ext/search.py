"""Searches of one collection: by vector, by words, and by both."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from llama_index.core.indices.query.embedding_utils import get_top_k_mmr_embeddings
from llama_index.core.schema import BaseNode
from llama_index.core.vector_stores.types import (
    VectorStoreQuery,
    VectorStoreQueryMode,
    VectorStoreQueryResult,
)

from .bm25 import bm25_scores
from .connection import Connection
from .errors import DimensionMismatchError
from .expressions import ids_expression
from .full_text import INDEX, SPARSE_FIELD, FullText, lite_terms, searchable
from .fusion import reciprocal_rank_fusion, relative_score_fusion
from .notes import BM25_KEY, SIMILARITY_KEY, note
from .rows import row_to_node
from .vectors import l2_normalize

Hit: TypeAlias = Mapping[str, Any]

BY_WORDS = (VectorStoreQueryMode.TEXT_SEARCH, VectorStoreQueryMode.SPARSE)
BY_COSINE = (VectorStoreQueryMode.DEFAULT, VectorStoreQueryMode.MMR)

_BM25 = {"metric_type": INDEX["metric_type"]}
_MAX_TOP_K = 16_384  # Milvus's query window.
_MAX_QUERIES = 256  # Milvus Lite holds a score for each of them and each row.
_MIN_EF = 128  # ef must be no less than the number of hits wanted.
_MMR_PREFETCH = 4
_LITE_POOL = 10_000  # Hits weighed anew, at some 0.1 ms each.
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
    """

    connection: Connection
    collection_name: str
    dim: int
    has_hnsw: bool
    full_text: FullText | None
    expression: str
    partitions: list[str] | None
    output_fields: list[str]
    consistency_level: str


def search(
    scope: Scope, query: VectorStoreQuery, mmr_threshold: float | None
) -> VectorStoreQueryResult:
    """Answer a query in its mode; see `CLIPMilvusVectorStore.query`."""
    top_k = _checked_top_k("similarity_top_k", query.similarity_top_k)
    check_mode(query.mode)
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
    top_k = _checked_top_k("similarity_top_k", query.similarity_top_k)
    if query.mode not in BY_COSINE:
        raise ValueError(f"mode {query.mode!r} is not by vectors alone; ask one query at a time")
    vectors = [query_vector(one, scope.dim, scope.collection_name) for one in embeddings]
    if query.mode == VectorStoreQueryMode.DEFAULT:
        return [_scored(hits) for hits in _by_vectors(scope, vectors, top_k)]
    limit = min(top_k * _MMR_PREFETCH, _MAX_TOP_K)
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
    params = {"params": {"ef": max(4 * limit, _MIN_EF)}} if scope.has_hnsw else {}
    fields = [*scope.output_fields, *(["embedding"] if with_vectors else [])]
    size = min(max(_MAX_TOP_K // limit, 1), _MAX_QUERIES)
    for start in range(0, len(vectors), size):
        yield from _hits(scope, "embedding", vectors[start : start + size], limit, params, fields)


def _by_words(scope: Scope, text: str, limit: int) -> list[Hit]:
    if scope.full_text is None:
        raise ValueError(
            f"collection {scope.collection_name!r} has no full text: make another one with "
            "create_vector_store(..., full_text='english'), or this one anew with overwrite=True, "
            "and index again (clip-ext index --full-text english --overwrite)"
        )
    words = searchable(text)
    if not words:
        return []
    if scope.connection.is_lite:
        return _weighed(scope, scope.full_text, words, limit)
    return _hits(scope, SPARSE_FIELD, [words], limit, _BM25, scope.output_fields)[0]


def _weighed(scope: Scope, full_text: FullText, words: str, limit: int) -> list[Hit]:
    """Search by words in an embedded file, and weigh them by the whole of it.

    Milvus Lite weighs them by their numbers in each of its segments alone. What was added last is
    in a small one, where no word is rare: new captions would come after all others.
    """
    found = _hits(scope, SPARSE_FIELD, [words], max(limit, _LITE_POOL), _BM25, [SPARSE_FIELD])[0]
    if not found:
        return []
    counted = scope.connection.call("query", scope.collection_name, output_fields=["count(*)"])
    documents = [hit["entity"][SPARSE_FIELD] for hit in found]
    scores = bm25_scores(lite_terms(full_text, words), documents, counted[0]["count(*)"])
    score_of = {hit["id"]: score for hit, score in zip(found, scores, strict=True)}
    best = sorted(score_of, key=lambda node_id: -score_of[node_id])[:limit]
    rows = scope.connection.call(
        "query",
        scope.collection_name,
        filter=ids_expression("id", best),
        output_fields=["id", *scope.output_fields],
    )
    row_of = {row["id"]: row for row in rows}
    # What was deleted in between is left out.
    return [
        {"id": node_id, "distance": score_of[node_id], "entity": row_of[node_id]}
        for node_id in best
        if node_id in row_of
    ]


def _hits(
    scope: Scope,
    field: str,
    data: Sequence[list[float] | str],
    limit: int,
    params: dict[str, Any],
    output_fields: list[str],
) -> list[list[Hit]]:
    found = scope.connection.call(
        "search",
        scope.collection_name,
        data=list(data),
        anns_field=field,
        limit=limit,
        filter=scope.expression,
        output_fields=output_fields,
        search_params=params,
        partition_names=scope.partitions,
        consistency_level=scope.consistency_level,
    )
    return [list(hits) for hits in found]


def _by_both(scope: Scope, query: VectorStoreQuery) -> VectorStoreQueryResult:
    """Fuse hits by vector and by words, and write into each the scores that it came with."""
    check_alpha(query.alpha)
    alpha = 0.5 if query.alpha is None else query.alpha
    wanted = depth = _checked_top_k("similarity_top_k", query.similarity_top_k)
    if query.hybrid_top_k is None:
        depth = min(depth * _HYBRID_PREFETCH, _MAX_TOP_K)
    else:
        wanted = _checked_top_k("hybrid_top_k", query.hybrid_top_k)
    word_depth = depth
    if query.sparse_top_k is not None:
        word_depth = _checked_top_k("sparse_top_k", query.sparse_top_k)
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
    """Pick hits by maximal marginal relevance; their similarity stays the raw cosine."""
    by_id = {hit["id"]: hit for hit in hits}
    _, ids = get_top_k_mmr_embeddings(
        query_embedding=vector,
        embeddings=[list(hit["entity"]["embedding"]) for hit in hits],
        similarity_top_k=top_k,
        embedding_ids=list(by_id),
        mmr_threshold=threshold,
    )
    return [by_id[node_id] for node_id in ids]


def _checked_top_k(name: str, top_k: int) -> int:
    is_whole = isinstance(top_k, (int, np.integer)) and not isinstance(top_k, bool)
    if not is_whole or not 1 <= top_k <= _MAX_TOP_K:
        raise ValueError(f"{name} is {top_k!r}, expected a whole number from 1 to {_MAX_TOP_K}")
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
