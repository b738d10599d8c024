"""The preconfigured Milvus store, which knows its model and loses nothing."""

from __future__ import annotations

import asyncio
import os
import random
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from llama_index.core.bridge.pydantic import PrivateAttr
from llama_index.core.schema import BaseNode
from llama_index.core.vector_stores.types import (
    FilterOperator,
    MetadataFilter,
    MetadataFilters,
    VectorStoreQuery,
    VectorStoreQueryResult,
)
from llama_index.vector_stores.milvus import MilvusVectorStore
from pymilvus import MilvusClient
from pymilvus.exceptions import MilvusException

from . import collection, lite
from .collection import DEFAULT_COLLECTION, DEFAULT_URI, PARTITIONS
from .connection import DEFAULT_TIMEOUT, Connection, split_credentials
from .errors import FilterError, StoreError
from .expressions import Engine, ids_expression, joined
from .filters import filter_expression
from .full_text import FullText, check_analyzer, check_support
from .metrics import IndexRecall, index_recall
from .models import EmbeddingSpace, ScoreStatistics
from .nodes import make_id, path_name
from .passport import Passport
from .prefetch import batched
from .rows import (
    OUTPUT_FIELDS,
    Field,
    Modality,
    image_address,
    metadata_fields,
    node_to_row,
    row_to_node,
)
from .search import Scope, query_vector, search, search_many
from .vectors import Rows, l2_normalize

_MAX_IDS = 1_000  # Ids in one expression.
# Written since Milvus Lite last put rows into its files: until then it unpacks every one of them
# for each search, at 35 ms per 1,000 of 512 components. A file is searched at 1 ms per 1,000.
_MAX_UNFLUSHED = 1_000
# What Milvus Lite and a server answer to a bad expression; 2.3 says it in the message only, the
# second of conditions that are too deep in each other.
_BAD_EXPRESSION = (6, 1100)
_BAD_EXPRESSION_SAID = ("cannot parse expression", "unsupported expr proto node")
_CONSISTENCY_LEVELS = ("Strong", "Session", "Bounded", "Eventually")


# What a server takes; Milvus Lite would take more.
_COLLECTION_NAME = re.compile(r"[A-Za-z_]\w{0,254}", re.ASCII)


class StoredFile(NamedTuple):
    """What is stored of an image file.

    Attributes:
        id: Its row's.
        path: Absolute, without links.
        size: Bytes.
        modified: Its ``last_modified_date``.
        content_hash: Of its bytes.
        node_hash: As `CLIPMilvusVectorStore.get_hashes` returns it.
        text: Its caption.
    """

    id: str
    path: str
    size: int
    modified: str
    content_hash: str
    node_hash: str
    text: str


class _HasSpace(Protocol):
    """A model that says what its embeddings can be compared with, as `CLIPEmbedding` does."""

    @property
    def space(self) -> EmbeddingSpace: ...


def create_vector_store(
    embed_model: _HasSpace,
    *,
    uri: str | os.PathLike[str] = DEFAULT_URI,
    token: str = "",
    db_name: str = "",
    collection_name: str = DEFAULT_COLLECTION,
    overwrite: bool = False,
    index_type: str = "auto",
    similarity_metric: str = "auto",
    consistency_level: str = "Session",
    full_text: FullText | None = None,
    timeout: float = DEFAULT_TIMEOUT,
) -> CLIPMilvusVectorStore:
    """Open the collection of a model, or make it: dimension, metric and index are chosen.

    Args:
        embed_model: The model whose embeddings the collection holds.
        uri: A path ending in ``.db`` for embedded Milvus Lite, its folder made if need be; or the
            address of a server, a cluster, or Zilliz Cloud (``http://`` or ``https://``).
        token: ``"user:password"`` or an API key, for a server.
        db_name: Database on a server.
        collection_name: Letters, digits and underscores.
        overwrite: Drop a collection of this name first, with all that it holds.
        index_type: ``"auto"`` is FLAT on Milvus Lite, AUTOINDEX on Zilliz Cloud, HNSW elsewhere.
        similarity_metric: ``"COSINE"``, ``"IP"``, or ``"auto"`` for the faster of the two, which on
            unit vectors are the same.
        consistency_level: What a search sees: ``"Session"`` reads its own writes, ``"Strong"``
            everybody's.
        full_text: Milvus's analyzer for searches by words among captions and texts (BM25), in a
            collection that is made now: ``"english"``, ``"chinese"`` or ``"standard"``. An existing
            one has that which it was made with. Needs Milvus Lite or Milvus 2.5; for Chinese on
            Milvus Lite, the package ``jieba``.
        timeout: Seconds that a server may take for one call, and to be reached, with all that is
            tried again meanwhile. Many nodes are added in several calls. A collection is loaded
            for as long as the server says that it is at it.

    Returns:
        The store; close it, or use it in a ``with`` statement.

    Raises:
        DimensionMismatchError: If the collection's vectors have another dimension.
        EmbeddingSpaceMismatchError: If another model wrote the collection.
        StoreLockedError: If another process holds the embedded file.
        StoreUnavailableError: If the server does not answer in time.
        StoreError: If the database cannot be opened, or has no full text though it is wanted.
        ValueError: If the index, metric or consistency level is not one that works here.
    """
    if not _COLLECTION_NAME.fullmatch(collection_name):
        raise ValueError(
            f"collection_name is {collection_name!r}, expected letters, digits and underscores, "
            "and no digit first"
        )
    return CLIPMilvusVectorStore(
        space=_space_of(embed_model),
        uri=uri,
        token=token,
        db_name=db_name,
        collection_name=collection_name,
        overwrite=overwrite,
        index_type=index_type,
        similarity_metric=similarity_metric,
        consistency_level=consistency_level,
        full_text=full_text,
        timeout=timeout,
    )


class CLIPMilvusVectorStore(MilvusVectorStore):
    """A Milvus collection of unit vectors, images and texts kept apart.

    Writes are upserts; what would poison the collection is refused before a call, alike on Milvus
    Lite and on a server; hits come without their vectors. While a server does not answer, calls are
    tried again, up to the time limit; then they raise `StoreUnavailableError`, and once it does,
    the same store works again. `create_vector_store` makes one.
    """

    _passport: Passport | None = PrivateAttr(default=None)
    _dim: int = PrivateAttr(default=0)
    _has_hnsw: bool = PrivateAttr(default=False)
    _connection: Connection = PrivateAttr()
    _db_name: str = PrivateAttr(default="")
    _fields: dict[str, Field] = PrivateAttr(default_factory=metadata_fields)
    _engine: Engine = PrivateAttr(default=Engine.LITE)
    _is_partitioned: bool = PrivateAttr(default=True)
    _unflushed: int = PrivateAttr(default=0)
    _n_made: int = PrivateAttr(default=0)

    def __init__(
        self,
        *,
        space: EmbeddingSpace,
        uri: str | os.PathLike[str],
        token: str,
        db_name: str,
        collection_name: str,
        overwrite: bool,
        index_type: str,
        similarity_metric: str,
        consistency_level: str,
        full_text: FullText | None = None,
        timeout: float = DEFAULT_TIMEOUT,
    ) -> None:
        if consistency_level not in _CONSISTENCY_LEVELS:
            raise ValueError(
                f"consistency_level is {consistency_level!r}, expected one of "
                f"{', '.join(_CONSISTENCY_LEVELS)}"
            )
        check_analyzer(full_text)
        address, _ = split_credentials(os.fspath(uri))
        index = collection.index_config(address, index_type, similarity_metric)
        connection = Connection(uri, token, db_name, timeout=timeout)
        try:
            with connection.lock, collection.reported(connection.address):
                if full_text:
                    is_lite = connection.is_lite
                    check_support(
                        None if is_lite else connection.call("get_server_version"), full_text
                    )
                if overwrite and connection.call("has_collection", collection_name):
                    connection.call("drop_collection", collection_name)
                if not connection.call("has_collection", collection_name):
                    if connection.is_lite:
                        lite.remove_remains(
                            connection.address, collection_name, overwrite=overwrite
                        )
                    new = Passport(space, index["metric_type"], full_text=full_text)
                    collection.create(connection, collection_name, new, index, consistency_level)
                description = connection.call("describe_collection", collection_name)
                passport = collection.check(connection, description, space, index, full_text)
                # Serially and before any thread searches: after reopening, Milvus Lite's
                # collections are released, and a first access by several threads loses rows.
                connection.load(collection_name)
                if not connection.is_lite:
                    # A session waits for its own writes only: for those of others until now, once.
                    connection.call(
                        "query",
                        collection_name,
                        filter="",
                        output_fields=["count(*)"],
                        consistency_level="Strong",
                    )
                partitions = connection.call("list_partitions", collection_name)
                made = connection.call("describe_index", collection_name, "embedding") or {}
                read_by = collection.engine(connection)
                n_made = connection.n_made(collection_name)
        except BaseException:
            connection.close()
            raise
        # Not by the constructor of MilvusVectorStore, which would reach the database once more, in
        # its own way; and without the token, which would be shown wherever the fields are.
        fields: dict[str, Any] = {
            "uri": connection.address,
            "collection_name": collection_name,
            "dim": space.dim,
            "similarity_metric": passport.metric if passport else index["metric_type"],
            "consistency_level": consistency_level,
            "output_fields": OUTPUT_FIELDS,
            "upsert_mode": True,
            "index_config": index,
            "search_config": {},
            "sparse_index_config": {},
            "sparse_embedding_function": None,
            "collection_properties": None,
            "hybrid_ranker": "RRFRanker",
            "scalar_field_names": None,
            "scalar_field_types": None,
            "use_async_client": False,
        }
        super(MilvusVectorStore, self).__init__(**fields)
        self._async_milvusclient = None
        self._collection_initialized = True
        self._connection = connection
        self._passport = passport
        self._dim = space.dim
        # As it was made, which the options of a later opening do not change.
        self._has_hnsw = made.get("index_type") == "HNSW"
        self._db_name = db_name
        if not passport:
            self._fields = collection.columns(description)
        self._engine = read_by
        self._n_made = n_made
        self._is_partitioned = set(PARTITIONS.values()) <= set(partitions)

    @classmethod
    def class_name(cls) -> str:
        """Return the name that LlamaIndex stores."""
        return "CLIPMilvusVectorStore"

    @property
    def passport(self) -> Passport | None:
        """What the collection says of its vectors; ``None`` if another program made it."""
        return self._passport

    @property
    def db_name(self) -> str:
        """Database on the server; empty for its default one, and for an embedded file."""
        return self._db_name

    @property
    def full_text(self) -> FullText | None:
        """Analyzer of the words that can be searched for; ``None`` if none can."""
        return self._passport.full_text if self._passport else None

    @property
    def client(self) -> MilvusClient:
        """The client, to be used by one thread at a time on an embedded file."""
        return self._connection.client

    def add(self, nodes: Sequence[BaseNode], **add_kwargs: Any) -> list[str]:
        """Write nodes; a node whose id is there is replaced whole. All are checked before any is.

        Args:
            nodes: Nodes with unit-length embeddings. Of nodes with the same id, the last counts.
            **add_kwargs: Not used.

        Returns:
            The ids, one per node, in the order given.

        Raises:
            EmbeddingError: If an embedding is missing, not finite, or not of unit length.
            DimensionMismatchError: If an embedding has another dimension.
            RowTooLargeError: If Milvus could not store a node.
            StoreUnavailableError: If a server did not answer in time; some of the nodes may be
                stored. Adding them again stores the others, and none twice.
            StoreError: If the disk of an embedded file is too full, or fails. What was stored
                before is safe; of these nodes a part may be stored.
            MilvusException: If Milvus fails.
        """
        nodes = _checked_nodes(nodes)
        rows = {node.node_id: node_to_row(node, self._dim) for node in nodes}
        with self._connection.lock:
            for modality, partition in PARTITIONS.items():
                of_modality = [row for row in rows.values() if row["modality"] == modality]
                for batch in collection.batches(of_modality):
                    self._write(batch, partition if self._is_partitioned else "")
        return [node.node_id for node in nodes]

    def query(
        self, query: VectorStoreQuery, *, modality: Modality | None = None, **kwargs: Any
    ) -> VectorStoreQueryResult:
        """Find nodes by a query embedding, by the words of a query, or by both.

        Args:
            query: ``similarity_top_k``, filters, and a mode. ``DEFAULT``: nearest to the embedding,
                which is scaled to unit length here. ``MMR``: the same, less alike. ``TEXT_SEARCH``
                or ``SPARSE``: words in common with ``query_str``. ``HYBRID``: both, fused by
                reciprocal rank; or, with ``alpha``, by their scores scaled alike, where it is the
                embedding's weight (1) against the words' (0). ``sparse_top_k`` is how many hits by
                words take part, and ``hybrid_top_k`` how many are returned, of
                ``similarity_top_k`` by embedding.
            modality: Images only, or texts only; ``None`` mixes them in one list.
            **kwargs: ``mmr_threshold`` for ``MMR``: from 0 (diverse) to 1 (similar to the query).

        Returns:
            Nodes, scores and ids, best first. The score is the raw cosine; by words, that of BM25;
            for ``HYBRID`` the fused one, and each node's metadata holds the cosine as
            ``retrieval_similarity`` and that of the words as ``retrieval_bm25``, as far as it was
            found by them. Nodes come without embeddings.

        Raises:
            DimensionMismatchError: If the query embedding has another dimension.
            EmbeddingError: If it is zero or not finite.
            FilterError: If a filter cannot be expressed.
            ValueError: If there is no embedding or text to search by, the collection has no full
                text, or ``similarity_top_k``, ``alpha`` or the mode is impossible.
        """
        scope = self._scope(query, modality)
        with _naming(query.filters):
            return search(scope, query, kwargs.get("mmr_threshold", query.mmr_threshold))

    def query_many(
        self,
        query: VectorStoreQuery,
        embeddings: Sequence[Sequence[float]],
        *,
        modality: Modality | None = None,
    ) -> list[VectorStoreQueryResult]:
        """Ask one query by each of several embeddings, in as few calls of Milvus as it takes.

        Args:
            query: As `query` takes it, in mode ``DEFAULT`` or ``MMR``; its own embedding is not
                used.
            embeddings: What to ask by, scaled to unit length here. Shape ``(n, dim)``.
            modality: Images only, or texts only; ``None`` mixes them in one list.

        Returns:
            What `query` returns for each of them, in order.

        Raises:
            DimensionMismatchError: If an embedding has another dimension.
            EmbeddingError: If one is zero or not finite.
            FilterError: If a filter cannot be expressed.
            ValueError: If ``similarity_top_k`` or the mode is impossible.
        """
        scope = self._scope(query, modality)
        with _naming(query.filters):
            return search_many(scope, query, embeddings, query.mmr_threshold)

    def get_nodes(
        self,
        node_ids: Sequence[str] | None = None,
        filters: MetadataFilters | None = None,
        **kwargs: Any,
    ) -> list[BaseNode]:
        """Return nodes with their embeddings, by id (in the order asked) or by filters.

        Raises:
            FilterError: If a filter cannot be expressed.
            ValueError: If neither ids nor filters are given.
        """
        if node_ids is None and filters is None:
            raise ValueError("get_nodes needs node_ids or filters")
        node_ids = None if node_ids is None else _checked_ids(node_ids)
        fields = [*self._output_fields, self.embedding_field]
        rows = self._select(node_ids, filters, fields)
        nodes = {str(row["id"]): row_to_node(row) for row in rows}
        if node_ids is None:
            return list(nodes.values())
        return [nodes[node_id] for node_id in dict.fromkeys(node_ids) if node_id in nodes]

    def get_ids(
        self, filters: MetadataFilters | None = None, modality: Modality | None = None
    ) -> list[str]:
        """Return the ids of the nodes that the filters match, of one modality or of both.

        Raises:
            FilterError: If a filter cannot be expressed.
        """
        # Not by pymilvus's query_iterator, which puts ids into its expressions unescaped.
        with _naming(filters):
            rows = self._call(
                "query",
                filter=self._expression(filters, None, None) or 'id != ""',
                output_fields=["id"],
                partition_names=self._partition_names(modality),
            )
        return [str(row["id"]) for row in rows]

    def get_hashes(self, node_ids: Sequence[str]) -> dict[str, str]:
        """Return the hash of each of these nodes that is stored, by id; see `rows.node_hash`."""
        rows = self._select(_checked_ids(node_ids), None, ["node_hash"])
        return {str(row["id"]): row["node_hash"] for row in rows}

    def get_files(self, folder: str | os.PathLike[str]) -> list[StoredFile]:
        """Return what is stored of the images whose files lie below a folder.

        Args:
            folder: Its absolute path, without links.

        Raises:
            StoreError: If another program made the collection: it does not say.
        """
        if self._passport is None:
            raise StoreError(
                f"collection {self.collection_name!r} was not made by this package, and does not "
                "say what its rows are of"
            )
        below = os.path.join(folder, "")
        # From "/photos/" to before "/photos0": by `like`, "_" and "%" would match others, too.
        after = below[:-1] + chr(ord(below[-1]) + 1)
        bounds: list[MetadataFilter | MetadataFilters] = [
            MetadataFilter(key="file_path", operator=FilterOperator.GTE, value=below),
            MetadataFilter(key="file_path", operator=FilterOperator.LT, value=after),
            MetadataFilter(key="modality", value="image"),
        ]
        names = ("file_path", "file_size", "last_modified_date", "content_hash", "node_hash")
        rows = self._select(None, MetadataFilters(filters=bounds), [*names, "text"])
        files = [StoredFile._make(row[name] for name in ("id", *names, "text")) for row in rows]
        # Others than ingesting makes may be of another file than they name. A part at a time: as
        # nodes they take some kilobytes each.
        by_hand = [file.id for file in files if file.id != make_id(path_name(Path(file.path)))]
        others = {
            str(row["id"])
            for ids in batched(by_hand, _MAX_IDS)
            for row in self._select(ids, None, [*OUTPUT_FIELDS, "file_path"])
            if not _is_of(row_to_node(row), row["file_path"])
        }
        return [file for file in files if file.id not in others]

    def sample_nodes(self, modality: Modality, size: int, *, seed: int = 0) -> list[BaseNode]:
        """Return a random sample of the nodes of one modality, with their embeddings.

        Args:
            modality: Images or texts.
            size: Nodes, at most.
            seed: The same seed samples the same nodes of the same collection.
        """
        ids = self.get_ids(modality=modality)
        chosen = random.Random(seed).sample(sorted(ids), min(size, len(ids)))  # noqa: S311
        return self.get_nodes(chosen) if chosen else []

    def save_calibration(self, statistics: Mapping[str, ScoreStatistics]) -> None:
        """Write what unrelated pairs score into the passport; see `calibrate_scores`.

        Raises:
            StoreError: If the collection has no passport, because another program made it.
        """
        if self._passport is None:
            raise StoreError(
                f"collection {self.collection_name!r} was not made by this package and has no "
                "passport to keep a calibration in"
            )
        passport = replace(self._passport, calibration=dict(statistics))
        self._call("alter_collection_properties", passport.to_properties())
        self._passport = passport

    def count(
        self, modality: Modality | None = None, filters: MetadataFilters | None = None
    ) -> int:
        """Count the rows that are there now: all, of one modality, that the filters match.

        Raises:
            FilterError: If a filter cannot be expressed.
        """
        parts = [self._expression(filters, None, None)]
        if self._partition_names(modality) and modality:
            # By column: count(*) of a partition counts the whole collection on Milvus Lite.
            parts.append(ids_expression("modality", [modality]))
        expression = joined("and", [part for part in parts if part], self._engine)
        with _naming(filters):
            rows = self._call("query", filter=expression, output_fields=["count(*)"])
        return int(rows[0]["count(*)"])

    def recall_vs_exact(
        self,
        queries: Sequence[str] | Sequence[Sequence[float]] | Rows | None = None,
        *,
        k: int = 10,
        embed_model: Any | None = None,
        modality: Modality = "image",
        filters: MetadataFilters | None = None,
        n_sample: int = 100,
        seed: int = 0,
    ) -> IndexRecall:
        """Tell how much of the exact answer the index finds, on the vectors that are stored.

        Ask with the queries that you expect. Texts lie apart from images in the space, so that an
        index that finds every image's neighbours may still lose many of a text's: a sample of
        stored vectors says little about text queries.

        Args:
            queries: Texts, or embeddings of shape ``(n, dim)``; ``None`` takes a sample of the
                stored vectors, each of which is its own nearest.
            k: Hits per query.
            embed_model: What embeds texts: the model that the store was made for.
            modality: Search images only, or texts only.
            filters: Conditions on what is searched; approximate indexes lose most under them.
            n_sample: Stored vectors to ask with, if there are no queries; at most as many as there
                are.
            seed: Of the sample.

        Returns:
            The share of the exact k nearest that `query` finds. Every vector is read, in batches;
            of the whole collection only the ids are held. Nothing should be written meanwhile.

        Raises:
            EmbeddingSpaceMismatchError: If ``embed_model`` is not the model of the store.
            DimensionMismatchError: If the queries have another dimension.
            TypeError: If the queries are texts and there is no ``embed_model``.
            ValueError: If there is nothing to ask with or to find, or ``k`` is impossible.
        """
        ids = self.get_ids(filters, modality)
        if not ids:
            raise ValueError(f"{self!r} holds no {modality} to find; index some, or change filters")
        if queries is None:
            if n_sample < 1:
                raise ValueError(f"n_sample is {n_sample}, expected at least 1")
            chosen = np.random.default_rng(seed).permutation(len(ids))[:n_sample]
            parts = [self._vectors(part)[1] for part in batched([ids[i] for i in chosen], _MAX_IDS)]
            rows = np.concatenate(parts)
        else:
            rows = self._query_rows(queries, embed_model)
        query = VectorStoreQuery(similarity_top_k=k, filters=filters)
        hits = [one.ids or [] for one in self.query_many(query, rows.tolist(), modality=modality)]
        return index_recall(rows, hits, map(self._vectors, batched(ids, _MAX_IDS)), k)

    def delete(self, ref_doc_id: str, **delete_kwargs: Any) -> None:
        """Delete the nodes of a document. A node without a source is its own document."""
        self._delete(ids_expression(self.doc_id_field, _checked_ids([ref_doc_id])))

    def delete_nodes(
        self,
        node_ids: Sequence[str] | None = None,
        filters: MetadataFilters | None = None,
        **delete_kwargs: Any,
    ) -> None:
        """Delete nodes by id, by filters, or those of the ids that the filters match.

        Raises:
            FilterError: If a filter cannot be expressed.
            ValueError: If neither ids nor filters are given: that would delete everything.
        """
        if node_ids is None and not self._expression(filters, None, None):
            raise ValueError("delete_nodes needs node_ids or filters; clear() deletes everything")
        for ids in [None] if node_ids is None else batched(_checked_ids(node_ids), _MAX_IDS):
            with _naming(filters):
                self._delete(self._expression(filters, ids, None))

    def clear(self) -> None:
        """Delete everything; the collection and its passport stay."""
        self._delete('id != ""')

    def close(self) -> None:
        """Let go of the database; the last store to close an embedded file unlocks it."""
        self._connection.close()

    def __enter__(self) -> CLIPMilvusVectorStore:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def __repr__(self) -> str:
        model = self._passport.space.model if self._passport else "unknown"
        return (
            f"{type(self).__name__}(uri={self.uri!r}, collection_name={self.collection_name!r}, "
            f"model={model!r})"
        )

    __str__ = __repr__

    def __reduce__(self) -> Any:
        raise TypeError(
            "a Milvus store cannot be pickled or copied; call create_vector_store in each process"
        )

    def __copy__(self) -> Any:
        return self.__reduce__()

    def __deepcopy__(self, memo: dict[int, Any] | None = None) -> Any:
        return self.__reduce__()

    async def async_add(self, nodes: Sequence[BaseNode], **add_kwargs: Any) -> list[str]:
        """Do what `add` does, off the event loop."""
        return await asyncio.to_thread(self.add, nodes, **add_kwargs)

    async def aquery(
        self, query: VectorStoreQuery, *, modality: Modality | None = None, **kwargs: Any
    ) -> VectorStoreQueryResult:
        """Do what `query` does, off the event loop."""
        return await asyncio.to_thread(self.query, query, modality=modality, **kwargs)

    async def aquery_many(
        self,
        query: VectorStoreQuery,
        embeddings: Sequence[Sequence[float]],
        *,
        modality: Modality | None = None,
    ) -> list[VectorStoreQueryResult]:
        """Do what `query_many` does, off the event loop."""
        return await asyncio.to_thread(self.query_many, query, embeddings, modality=modality)

    async def aget_nodes(
        self,
        node_ids: Sequence[str] | None = None,
        filters: MetadataFilters | None = None,
        **kwargs: Any,
    ) -> list[BaseNode]:
        """Do what `get_nodes` does, off the event loop."""
        return await asyncio.to_thread(self.get_nodes, node_ids, filters, **kwargs)

    async def arecall_vs_exact(
        self,
        queries: Sequence[str] | Sequence[Sequence[float]] | Rows | None = None,
        *,
        k: int = 10,
        embed_model: Any | None = None,
        modality: Modality = "image",
        filters: MetadataFilters | None = None,
        n_sample: int = 100,
        seed: int = 0,
    ) -> IndexRecall:
        """Do what `recall_vs_exact` does, off the event loop."""
        return await asyncio.to_thread(
            self.recall_vs_exact,
            queries,
            k=k,
            embed_model=embed_model,
            modality=modality,
            filters=filters,
            n_sample=n_sample,
            seed=seed,
        )

    async def acount(
        self, modality: Modality | None = None, filters: MetadataFilters | None = None
    ) -> int:
        """Do what `count` does, off the event loop."""
        return await asyncio.to_thread(self.count, modality, filters)

    async def adelete(self, ref_doc_id: str, **delete_kwargs: Any) -> None:
        """Do what `delete` does, off the event loop."""
        await asyncio.to_thread(self.delete, ref_doc_id, **delete_kwargs)

    async def adelete_nodes(
        self,
        node_ids: Sequence[str] | None = None,
        filters: MetadataFilters | None = None,
        **delete_kwargs: Any,
    ) -> None:
        """Do what `delete_nodes` does, off the event loop."""
        await asyncio.to_thread(self.delete_nodes, node_ids, filters, **delete_kwargs)

    async def aclear(self) -> None:
        """Do what `clear` does, off the event loop."""
        await asyncio.to_thread(self.clear)

    @property
    def _output_fields(self) -> list[str]:
        # Of a collection that another program made, everything: what it named its fields is open.
        return OUTPUT_FIELDS if self._passport else ["*"]

    def _scope(self, query: VectorStoreQuery, modality: Modality | None) -> Scope:
        self._reload_if_made_anew()
        # Where the disk is too full for it, the search is slower.
        if self._unflushed >= _MAX_UNFLUSHED and lite.has_room(self._connection.address):
            with self._connection.lock:
                self._call("flush")
                self._unflushed = 0
        return Scope(
            connection=self._connection,
            collection_name=self.collection_name,
            dim=self._dim,
            has_hnsw=self._has_hnsw,
            full_text=self.full_text,
            # LlamaIndex's empty list of ids means no condition.
            expression=self._expression(
                query.filters,
                _checked_ids(query.node_ids or ()) or None,
                _checked_ids(query.doc_ids or ()) or None,
            ),
            partitions=self._partition_names(modality),
            output_fields=self._output_fields,
            consistency_level=self.consistency_level,
        )

    def _partition_names(self, modality: Modality | None) -> list[str] | None:
        if modality is not None and modality not in PARTITIONS:
            raise ValueError(f"modality is {modality!r}, expected 'image', 'text' or None")
        if modality is None or not self._is_partitioned:
            return None
        return [PARTITIONS[modality]]

    def _query_rows(self, queries: Any, embed_model: Any | None) -> Rows:
        if isinstance(queries, str):
            raise TypeError("queries is one str, expected a list of texts or of embeddings")
        if len(queries) == 0:
            raise ValueError("queries is empty; leave it out to ask with stored vectors")
        if isinstance(queries[0], str):
            if embed_model is None:
                raise TypeError("queries are texts: embed_model is needed to embed them")
            check_pair(embed_model, self)
            queries = embed_model.get_text_embedding_batch(list(queries))
        rows = [query_vector(row, self._dim, self.collection_name) for row in queries]
        return np.array(rows, dtype=np.float32)

    def _vectors(self, ids: list[str]) -> tuple[list[str], Rows]:
        """Return the ids that are stored, and their vectors. Shape ``(n, dim)``, unit length."""
        rows = self._select(ids, None, [self.embedding_field])
        vectors = np.array([row[self.embedding_field] for row in rows], dtype=np.float32)
        return [str(row["id"]) for row in rows], l2_normalize(vectors.reshape(-1, self._dim))

    def _expression(
        self,
        filters: MetadataFilters | None,
        node_ids: Sequence[str] | None,
        doc_ids: Sequence[str] | None,
    ) -> str:
        parts = [filter_expression(filters, self._fields, engine=self._engine)]
        if node_ids is not None:
            parts.append(ids_expression("id", node_ids))
        if doc_ids is not None:
            parts.append(ids_expression(self.doc_id_field, doc_ids))
        return joined("and", [part for part in parts if part], self._engine)

    def _write(self, batch: list[dict[str, Any]], partition: str) -> None:
        # Milvus Lite's upsert merges: metadata that the new row lacks would stay. Its insert
        # replaces a row of the same id whole, where a server's would keep both.
        is_lite = self._connection.is_lite
        if is_lite:
            lite.check_room(self._connection.address)
        if is_lite or not self._is_partitioned:
            self._call("insert" if is_lite else "upsert", batch, partition_name=partition)
            self._unflushed += len(batch) if is_lite else 0
            return
        # A server's upsert looks into its own partition only: a node that was an image would stay
        # one. Deleted after it, so that a node killed in between is there twice, not gone.
        (other,) = set(PARTITIONS.values()) - {partition}
        same_ids = ids_expression("id", [row["id"] for row in batch])
        has_moved = self._call(
            "query", filter=same_ids, partition_names=[other], output_fields=["id"]
        )
        self._call("upsert", batch, partition_name=partition)
        if has_moved:
            self._delete(same_ids, other)

    def _select(
        self,
        node_ids: Sequence[str] | None,
        filters: MetadataFilters | None,
        fields: list[str],
    ) -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = []
        for ids in [None] if node_ids is None else batched(node_ids, _MAX_IDS):
            expression = self._expression(filters, ids, None)
            with _naming(filters):
                # Without an expression a server wants a limit.
                rows += self._call(
                    "query",
                    filter=expression or 'id != ""',
                    output_fields=["id", *fields],
                )
        return rows

    def _delete(self, expression: str, partition: str | None = None) -> None:
        if self._connection.is_lite:
            lite.check_room(self._connection.address)
        self._call("delete", filter=expression, partition_name=partition)
        if not self._connection.is_lite:
            # Milvus 2.3 dates deletes at 0, so that a session does not wait for its own.
            self._call("query", filter='id == ""', consistency_level="Strong")

    def reload_passport(self) -> None:
        """Read again what the collection says of its vectors: it may have been made anew.

        Of an embedded file this is done by itself, where another store of it has made it anew.

        Raises:
            DimensionMismatchError: If it was, for vectors of another dimension.
            EmbeddingSpaceMismatchError: If it was, for another model's.
        """
        with self._connection.lock:
            n_made = self._connection.n_made(self.collection_name)
            description = self._connection.call("describe_collection", self.collection_name)
            passport = Passport.from_properties(description["properties"], self.collection_name)
            if self._passport and passport:
                passport.check(self._passport.space, self.collection_name)
                self._passport = passport
            self._n_made = n_made

    def _reload_if_made_anew(self) -> None:
        if self._connection.n_made(self.collection_name) != self._n_made:
            self.reload_passport()

    def _call(self, method: str, *args: Any, **kwargs: Any) -> Any:
        self._reload_if_made_anew()
        if method == "query":
            # Else the server takes the level that the collection was made with.
            kwargs.setdefault("consistency_level", self.consistency_level)
        return self._connection.call(method, self.collection_name, *args, **kwargs)


def check_pair(embed_model: object, vector_store: object) -> None:
    """Refuse a model whose embeddings do not belong into a store, as opening the store does.

    Raises:
        TypeError: If either is not one of this package's.
        DimensionMismatchError: If the model's vectors have another dimension.
        EmbeddingSpaceMismatchError: If another model wrote the collection.
    """
    if not isinstance(vector_store, CLIPMilvusVectorStore):
        raise TypeError(
            f"vector_store is a {type(vector_store).__name__}, expected what create_vector_store "
            "returns"
        )
    space = _space_of(embed_model)
    if vector_store.passport:
        vector_store.passport.check(space, vector_store.collection_name)


def _space_of(embed_model: object) -> EmbeddingSpace:
    space = getattr(embed_model, "space", None)
    if not isinstance(space, EmbeddingSpace):
        raise TypeError(
            f"embed_model is a {type(embed_model).__name__}, expected CLIPEmbedding or "
            "ChineseCLIPEmbedding, as load_embedding(name) makes them"
        )
    return space


@contextmanager
def _naming(filters: MetadataFilters | None) -> Iterator[None]:
    """Say by which filters an expression came about that Milvus does not read after all."""
    try:
        yield
    except MilvusException as err:
        is_said = any(saying in str(err.message) for saying in _BAD_EXPRESSION_SAID)
        if filters and (err.code in _BAD_EXPRESSION or is_said):
            raise FilterError(f"Milvus refuses {filters!r}: {err.message}") from err
        raise


def _checked_nodes(nodes: Iterable[BaseNode]) -> list[BaseNode]:
    nodes = [nodes] if isinstance(nodes, BaseNode) else list(nodes)
    for node in nodes:
        if not isinstance(node, BaseNode):
            raise TypeError(f"nodes holds a {type(node).__name__}, expected LlamaIndex nodes")
    return nodes


def _checked_ids(node_ids: Iterable[str]) -> list[str]:
    if isinstance(node_ids, (str, bytes)):
        raise TypeError(f"node_ids is one {type(node_ids).__name__}, expected a list of ids")
    node_ids = list(node_ids)
    for node_id in node_ids:
        if not isinstance(node_id, str):
            raise TypeError(f"node_ids holds {node_id!r}, expected str")
    return node_ids


def _is_of(node: BaseNode, file_path: str) -> bool:
    """Whether a node's image is the file that its metadata name: it may be a part of it."""
    path, url = image_address(node)
    if not path:
        return not url
    return os.path.realpath(os.path.expanduser(path)) == os.path.realpath(file_path)
