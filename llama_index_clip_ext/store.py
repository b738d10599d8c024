"""The preconfigured Milvus store, which knows its model and loses nothing."""

from __future__ import annotations

import logging
import os
import random
import re
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeVar

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
from .background import read_in_own_thread, run_in, run_to_end, write_in_own_thread
from .collection import DEFAULT_COLLECTION, DEFAULT_URI, PARTITIONS
from .connection import (
    DEFAULT_TIMEOUT,
    Connection,
    TLSOptions,
    answer_within,
    split_credentials,
)
from .errors import FilterError, StoreError
from .expressions import NEVER, Engine, check_whole, ids_expression, joined
from .filters import (
    NODE_TYPE,
    filter_expression,
    guarded_filters,
    modality_expression,
    text_guard,
)
from .full_text import SPARSE_FIELD, FullText, check_analyzer, lite_terms
from .indexing import FreshRows
from .metrics import IndexRecall, index_recall
from .models import EmbeddingSpace, ScoreStatistics
from .nodes import NAMESPACE_KEY, make_id, path_name
from .paging import Row, in_parts, pages
from .passport import FORMAT, Passport
from .prefetch import batched
from .provenance import UNKNOWN, Provenance, remember
from .rows import (
    OUTPUT_FIELDS,
    PROVENANCE_FIELD,
    Field,
    Modality,
    image_address,
    metadata_fields,
    node_to_row,
    row_to_node,
)
from .search import Scope, query_vector, search, search_many
from .vectors import Rows, l2_normalize

logger = logging.getLogger(__name__)

T = TypeVar("T")

_MAX_IDS = 1_000  # Ids in one expression.
# What Milvus Lite and a server answer to a bad expression; 2.3 says it in the message only, the
# second of conditions that are too deep in each other.
_BAD_EXPRESSION = (6, 1100)
_BAD_EXPRESSION_SAID = ("cannot parse expression", "unsupported expr proto node")
_FILE_FIELDS = [
    *("file_path", "file_size", "last_modified_date", "content_hash", "node_hash", "text"),
    PROVENANCE_FIELD,
]
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
        provenance: The tower that made its vector, or ``"unknown"``.
        is_by_hand: Whether its id is another than ingesting gives it.
    """

    id: str
    path: str
    size: int
    modified: str
    content_hash: str
    node_hash: str
    text: str
    provenance: Provenance
    is_by_hand: bool


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
    server_pem_path: str = "",
    server_name: str = "",
    ca_pem_path: str = "",
    client_pem_path: str = "",
    client_key_path: str = "",
) -> CLIPMilvusVectorStore:
    """Open the collection of a model, or make it: dimension, metric and index are chosen.

    Args:
        embed_model: The model whose embeddings the collection holds.
        uri: A path ending in ``.db`` for embedded Milvus Lite, its folder made if need be; or the
            address of a server, a cluster, or Zilliz Cloud (``http://`` or ``https://``).
        token: ``"user:password"`` or an API key, for a server only.
        db_name: Database on a server; an embedded file has none.
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
            tried again meanwhile; an asynchronous search is answered within them. Many nodes are
            added in several calls. A collection is loaded for as long as the server makes progress
            within them.
        server_pem_path: File with the certificate of a server, or of its CA, that this machine does
            not trust by itself; like the other options for TLS, it is pymilvus's, for ``https://``.
        server_name: Name in the server's certificate, where the address has another.
        ca_pem_path: File with the CA's certificate; with the two below, for a server that asks for
            a client's certificate.
        client_pem_path: File with the client's certificate.
        client_key_path: File with the client's key.

    Returns:
        The store; close it, or use it in a ``with`` statement.

    Raises:
        DimensionMismatchError: If the collection's vectors have another dimension.
        EmbeddingSpaceMismatchError: If another model wrote the collection.
        StoreLockedError: If another process holds the embedded file.
        StoreUnavailableError: If the server does not answer in time.
        StoreError: If the database cannot be opened, or has no full text though it is wanted.
        ValueError: If the index, metric or consistency level is not one that works here, or an
            option for servers is given for an embedded file.
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
        tls=_tls_options(
            server_pem_path=server_pem_path,
            server_name=server_name,
            ca_pem_path=ca_pem_path,
            client_pem_path=client_pem_path,
            client_key_path=client_key_path,
        ),
    )


def _tls_options(**options: str) -> TLSOptions:
    return {name: os.fspath(value) for name, value in options.items() if value}  # type: ignore[return-value]


class _Deletes:
    """Has each read of a server see the deletes before it.

    Milvus 2.3 dates deletes at 0, so that a session does not wait for its own: the first read after
    a delete asks for all.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._made = self._seen = 0

    def note(self) -> None:
        """Note that something was deleted."""
        with self._lock:
            self._made += 1

    @contextmanager
    def seen_by_read(self, store: CLIPMilvusVectorStore) -> Iterator[str]:
        """Yield the consistency level of a read."""
        made = self._made
        is_behind = store._engine == Engine.OLD_SERVER and made > self._seen
        yield "Strong" if is_behind else store.consistency_level
        with self._lock:
            self._seen = max(self._seen, made)


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
    _has_node_types: bool = PrivateAttr(default=True)
    _created: int = PrivateAttr(default=0)
    _fresh: FreshRows | None = PrivateAttr(default=None)
    _deletes: _Deletes = PrivateAttr(default_factory=_Deletes)
    _has_told_unknown: bool = PrivateAttr(default=False)

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
        tls: TLSOptions | None = None,
    ) -> None:
        if consistency_level not in _CONSISTENCY_LEVELS:
            raise ValueError(
                f"consistency_level is {consistency_level!r}, expected one of "
                f"{', '.join(_CONSISTENCY_LEVELS)}"
            )
        check_analyzer(full_text)
        address, _ = split_credentials(os.fspath(uri))
        index = collection.index_config(address, index_type, similarity_metric)
        connection = Connection(uri, token, db_name, timeout=timeout, tls=tls)
        try:
            with collection.reported(connection.address):
                opened = collection.open_collection(
                    connection,
                    collection_name,
                    space,
                    index,
                    consistency_level=consistency_level,
                    full_text=full_text,
                    overwrite=overwrite,
                )
            fresh = None if connection.is_lite else FreshRows(connection, collection_name)
        except BaseException:
            connection.close()
            raise
        # Not by the constructor of MilvusVectorStore, which would reach the database once more, in
        # its own way; and without the token, which would be shown wherever the fields are.
        fields: dict[str, Any] = {
            "uri": connection.address,
            "collection_name": collection_name,
            "dim": space.dim,
            "similarity_metric": opened.metric,
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
        self._passport = opened.passport
        self._dim = space.dim
        self._has_hnsw = opened.has_hnsw
        self._db_name = db_name
        if not opened.passport:
            self._fields = collection.columns(opened.description)
            has_dynamic_fields = opened.description.get("enable_dynamic_field", False)
            self._has_node_types = has_dynamic_fields or NODE_TYPE in self._fields
        self._engine = opened.engine
        self._created = opened.created
        self._is_partitioned = opened.is_partitioned
        self._fresh = fresh
        if fresh and fresh.has_many:
            logger.warning(
                "%d rows of collection %r are not indexed yet, and searches may miss some of them; "
                "wait_for_index() waits",
                *(fresh.count, collection_name),
            )

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
    def full_text(self) -> str | None:  # Jupyter's completion fails on a Literal here.
        """Analyzer of the words that can be searched for; ``None`` if none can."""
        return self._passport.full_text if self._passport else None

    @property
    def client(self) -> MilvusClient:
        """The client, to be used by one thread at a time on an embedded file."""
        return self._connection.client

    def add(self, nodes: Sequence[BaseNode], *, force_flush: bool = False) -> list[str]:
        """Write nodes; a node whose id is there is replaced whole. All are checked before any is.

        On a server, what was written is flushed once it is so much that searches would miss some of
        it; until the server has indexed it, they may: see `wait_for_index`.

        Args:
            nodes: Nodes with unit-length embeddings. Of nodes with the same id, the last counts.
            force_flush: Flush in any case.

        Returns:
            The ids, one per node, in the order given.

        Raises:
            EmbeddingError: If an embedding is missing, not finite, not of unit length, or that of a
                text although the node is an image.
            DimensionMismatchError: If an embedding has another dimension.
            RowTooLargeError: If Milvus could not store a node.
            StoreUnavailableError: If a server did not answer in time; some of the nodes may be
                stored. Adding them again stores the others, and none twice.
            StoreError: If the disk of an embedded file is too full, or fails; or if a server
                refuses. What was stored before is safe; of these nodes a part may be stored.
        """
        nodes = _checked_nodes(nodes)
        self.write_rows([node_to_row(node, self._dim) for node in nodes])
        if force_flush:
            self.flush()
        elif self._fresh:
            self._tell_flushed(self._fresh.seal_if_many())
        return [node.node_id for node in nodes]

    def write_rows(self, rows: Iterable[Row]) -> None:
        """Write rows as `rows.node_to_row` makes them, and leave flushing to the caller.

        Args:
            rows: Of rows with the same id, the last counts.

        Raises:
            StoreError: As `add` does.
        """
        latest = {row["id"]: row for row in rows}
        if not latest:
            return
        self._warn_of_unknown(latest.values())
        self._upgrade_format()
        with self._connection.lock:
            for modality, partition in PARTITIONS.items():
                of_modality = [row for row in latest.values() if row["modality"] == modality]
                for batch in collection.batches(of_modality):
                    self._write(batch, partition if self._is_partitioned else "")
        if self._fresh:
            self._fresh.add(len(latest))

    def flush(self) -> None:
        """Have what was written put where searches are fast and exact.

        On a server, rows are sealed, and indexed then; servers allow this once in ten seconds. On
        Milvus Lite, they go from its log into its files.

        Raises:
            StoreError: If Milvus refuses it, or the disk of an embedded file is too full.
        """
        if self._fresh:
            self._fresh.seal()
            self._tell_flushed(True)
        else:
            lite.check_room(self._connection.address)
            self._flush_lite()

    def wait_for_index(
        self,
        *,
        timeout: float | None = None,
        show_progress: bool = False,
        stop: threading.Event | None = None,
    ) -> bool:
        """Wait until searches find every row that was written by its index, and miss none.

        A server searches rows that are not indexed yet by an approximate index; above some 5,000 of
        them, most rows that a filter matches are missed. On Milvus Lite there is nothing to wait
        for.

        Args:
            timeout: Seconds, at most; ``None`` for as long as the server makes progress.
            show_progress: Show a progress bar.
            stop: Once it is set, waiting ends.

        Returns:
            Whether every row is indexed; ``False`` after the timeout, and where a role may not ask.

        Raises:
            StoreError: If the server refuses to flush what was written.
        """
        if self._fresh is None:
            return True
        self._fresh.look()  # Others may have written, too.
        # Few rows are searched one by one: exactly, and without an index.
        if self._fresh.has_many:
            self._fresh.seal()
        return self._fresh.wait(timeout, stop, show_progress=show_progress)

    def settle(
        self, *, wait: bool, show_progress: bool = False, stop: threading.Event | None = None
    ) -> None:
        """Flush what a server would search inexactly, at the end of a run; wait for it or say so.

        Args:
            wait: Whether to wait until it is indexed.
            show_progress: Show a progress bar while waiting.
            stop: Once it is set, waiting ends.
        """
        if self._fresh is None or not self._fresh.seal_if_many(look=True):
            return
        if not wait:
            self._tell_flushed(True)
        elif not self._fresh.wait(None, stop, show_progress=show_progress):
            logger.warning(
                "collection %r is stored, but the server has not indexed all of it yet; until it "
                "has, searches may miss some rows: wait_for_index() waits",
                self.collection_name,
            )

    def query(
        self,
        query: VectorStoreQuery,
        *,
        modality: Modality | None = None,
        mmr_threshold: float | None = None,
        string_expr: str = "",
    ) -> VectorStoreQueryResult:
        """Find nodes by a query embedding, by the words of a query, or by both.

        Args:
            query: ``similarity_top_k``, filters, and a mode. ``DEFAULT``: nearest to the embedding,
                which is scaled to unit length here. ``MMR``: the same, less alike. ``TEXT_SEARCH``
                or ``SPARSE``: words in common with ``query_str``. ``HYBRID``: both, fused by
                reciprocal rank; or, with ``alpha``, by their scores scaled alike, where it is the
                embedding's weight (1) against the words' (0). ``sparse_top_k`` is how many hits by
                words take part, and ``hybrid_top_k`` how many are returned, of
                ``similarity_top_k`` by embedding. An empty list of ``doc_ids`` finds nothing; one
                of ``node_ids`` is no condition, because LlamaIndex's ``VectorStoreIndex`` always
                passes it.
            modality: Images only, or texts only; ``None`` mixes them in one list.
            mmr_threshold: For ``MMR``: from 0 (diverse) to 1 (similar to the query).
            string_expr: A condition in Milvus's own language, beside the filters.

        Returns:
            Nodes, scores and ids, best first. The score is the raw cosine; by words, that of BM25;
            for ``HYBRID`` the fused one, and each node's metadata holds the cosine as
            ``retrieval_similarity`` and that of the words as ``retrieval_bm25``, as far as it was
            found by them. Nodes come without embeddings.

        Raises:
            DimensionMismatchError: If the query embedding has another dimension.
            EmbeddingError: If it is zero or not finite.
            FilterError: If a filter or ``string_expr`` cannot be expressed.
            ValueError: If there is no embedding or text to search by, the collection has no full
                text, or ``similarity_top_k``, ``alpha`` or the mode is impossible.
        """
        threshold = query.mmr_threshold if mmr_threshold is None else mmr_threshold
        with self._searching(query, modality, string_expr) as scope:
            return search(scope, query, threshold)

    def query_many(
        self,
        query: VectorStoreQuery,
        embeddings: Sequence[Sequence[float]],
        *,
        modality: Modality | None = None,
        string_expr: str = "",
    ) -> list[VectorStoreQueryResult]:
        """Ask one query by each of several embeddings, in as few calls of Milvus as it takes.

        Args:
            query: As `query` takes it, in mode ``DEFAULT`` or ``MMR``; its own embedding is not
                used.
            embeddings: What to ask by, scaled to unit length here. Shape ``(n, dim)``.
            modality: Images only, or texts only; ``None`` mixes them in one list.
            string_expr: As `query` takes it.

        Returns:
            What `query` returns for each of them, in order.

        Raises:
            DimensionMismatchError: If an embedding has another dimension.
            EmbeddingError: If one is zero or not finite.
            FilterError: If a filter or ``string_expr`` cannot be expressed.
            ValueError: If ``similarity_top_k`` or the mode is impossible.
        """
        with self._searching(query, modality, string_expr) as scope:
            return search_many(scope, query, embeddings, query.mmr_threshold)

    def get_nodes(
        self,
        node_ids: Sequence[str] | None = None,
        filters: MetadataFilters | None = None,
    ) -> list[BaseNode]:
        """Return nodes with their embeddings, by id (in the order asked) or by filters (by id).

        Raises:
            FilterError: If a filter cannot be expressed.
            ValueError: If neither ids nor filters are given.
        """
        if node_ids is None and filters is None:
            raise ValueError("get_nodes needs node_ids or filters")
        node_ids = None if node_ids is None else check_ids("node_ids", node_ids)
        fields = [*self._output_fields, self.embedding_field]
        if self._passport:
            fields.append(PROVENANCE_FIELD)
        nodes = {}
        for row in self._select(node_ids, filters, fields, with_vectors=True):
            node = nodes[str(row["id"])] = row_to_node(row)
            if (tower := row.get(PROVENANCE_FIELD)) in ("image", "text"):
                remember([node.embedding], tower)  # So that it is known if it is written again.
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
        with self._naming(filters):
            found = pages(
                self._query,
                self._expression(filters, None, None, modality),
                [],
                self._engine,
                partitions=self._partition_names(modality),
            )
            return [str(row["id"]) for page in found for row in page]

    def check_filters(self, filters: MetadataFilters | None) -> None:
        """Refuse filters that this store could not answer.

        Raises:
            FilterError: If one cannot be expressed.
        """
        self._expression(filters)

    def get_hashes(self, node_ids: Sequence[str]) -> dict[str, str]:
        """Return the hash of each of these nodes that is stored, by id; see `rows.node_hash`."""
        rows = self._select(check_ids("node_ids", node_ids), None, ["node_hash"])
        return {str(row["id"]): row.get("node_hash") or "" for row in rows}

    def get_provenance(self, node_ids: Sequence[str]) -> dict[str, Provenance]:
        """Return which tower made the vector of each of these nodes that is stored, by id.

        It is ``"unknown"`` of vectors that were handed over without our having made them in that
        process, and of rows of collections of format 1.
        """
        rows = self._select(check_ids("node_ids", node_ids), None, [PROVENANCE_FIELD])
        return {str(row["id"]): row.get(PROVENANCE_FIELD) or UNKNOWN for row in rows}

    def iter_files(
        self,
        folder: str | os.PathLike[str],
        *,
        namespace: str = "",
        content_hashes: Sequence[str] | None = None,
    ) -> Iterator[list[StoredFile]]:
        """Yield what is stored of the images whose files lie below a folder, a page at a time.

        Args:
            folder: Its absolute path, without links.
            namespace: Of the rows' ids; empty for those without one.
            content_hashes: Only images of these contents.

        Raises:
            StoreError: If another program made the collection: it does not say.
        """
        if self._passport is None:
            raise StoreError(
                f"collection {self.collection_name!r} was not made by this package, and does not "
                "say what its rows are of"
            )
        expression = self._expression(_files_below(folder, namespace, content_hashes))
        for page in pages(self._query, expression, _FILE_FIELDS, self._engine):
            files = [_stored_file(row, namespace) for row in page]
            # Others than ingesting makes may be of another file than they name.
            by_hand = [file.id for file in files if file.is_by_hand]
            others = {
                str(row["id"])
                for row in self._select(by_hand, None, [*OUTPUT_FIELDS, "file_path"])
                if not _is_of(row_to_node(row), row["file_path"])
            }
            yield [file for file in files if file.id not in others]

    def get_files(self, folder: str | os.PathLike[str], *, namespace: str = "") -> list[StoredFile]:
        """Return all that `iter_files` yields."""
        return [file for page in self.iter_files(folder, namespace=namespace) for file in page]

    def get_files_by_id(self, node_ids: Sequence[str]) -> list[StoredFile]:
        """Return what is stored of the image files whose rows have these ids."""
        rows = self._select(check_ids("node_ids", node_ids), None, _FILE_FIELDS)
        return [_stored_file(row) for row in rows]

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
        passport = replace(self._passport, calibration=dict(statistics), format=FORMAT)
        self._call("alter_collection_properties", passport.to_properties())
        self._passport = passport

    def count(
        self, modality: Modality | None = None, filters: MetadataFilters | None = None
    ) -> int:
        """Count the rows that are there now: all, of one modality, that the filters match.

        Raises:
            FilterError: If a filter cannot be expressed.
        """
        parts = [self._expression(filters, None, None, modality)]
        if self._partition_names(modality) and modality:
            # By column: count(*) of a partition counts the whole collection on Milvus Lite.
            parts.append(ids_expression("modality", [modality]))
        expression = joined("and", [part for part in parts if part], self._engine)
        with self._naming(filters):
            return self._count(expression)

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

    def delete(self, ref_doc_id: str) -> int:
        """Delete the nodes of a document. A node without a source is its own document.

        Returns:
            How many there were.
        """
        return self._delete(
            ids_expression(self.doc_id_field, check_ids("ref_doc_id", [ref_doc_id]))
        )

    def delete_nodes(
        self,
        node_ids: Sequence[str] | None = None,
        filters: MetadataFilters | None = None,
    ) -> int:
        """Delete nodes by id, by filters, or those of the ids that the filters match.

        Returns:
            How many there were.

        Raises:
            FilterError: If a filter cannot be expressed.
            ValueError: If neither ids nor filters are given: that would delete everything.
        """
        if node_ids is None and not self._expression(filters):
            raise ValueError("delete_nodes needs node_ids or filters; clear() deletes everything")
        deleted = 0
        for ids in (
            [None] if node_ids is None else batched(check_ids("node_ids", node_ids), _MAX_IDS)
        ):
            with self._naming(filters):
                deleted += self._delete(self._expression(filters, ids))
        return deleted

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

    async def arun(self, function: Callable[[], T]) -> T:
        """Run a function that only reads this store in its threads, off the event loop.

        The store's ``timeout`` counts from now, also while the function waits for a thread.
        """
        with answer_within(self._connection.timeout):
            return await run_in(self._connection.executor, function)

    async def _arun_to_end(self, function: Callable[[], T]) -> T:
        """Run a function that writes in the store's threads; a cancel returns once it has ended."""
        begin = self._connection.begin_in_time(function)
        return await run_to_end(self._connection.executor, begin)

    async def async_add(self, nodes: Sequence[BaseNode], *, force_flush: bool = False) -> list[str]:
        """Do what `add` does, off the event loop."""
        return await self._arun_to_end(lambda: self.add(nodes, force_flush=force_flush))

    async def await_for_index(
        self, *, timeout: float | None = None, show_progress: bool = False
    ) -> bool:
        """Do what `wait_for_index` does, off the event loop; cancelled, it waits no longer."""
        stop = threading.Event()
        return await write_in_own_thread(
            lambda: self.wait_for_index(timeout=timeout, show_progress=show_progress, stop=stop),
            stop=stop.set,
        )

    async def aquery(
        self,
        query: VectorStoreQuery,
        *,
        modality: Modality | None = None,
        mmr_threshold: float | None = None,
        string_expr: str = "",
    ) -> VectorStoreQueryResult:
        """Do what `query` does, off the event loop."""
        return await self.arun(
            lambda: self.query(
                query, modality=modality, mmr_threshold=mmr_threshold, string_expr=string_expr
            )
        )

    async def aquery_many(
        self,
        query: VectorStoreQuery,
        embeddings: Sequence[Sequence[float]],
        *,
        modality: Modality | None = None,
        string_expr: str = "",
    ) -> list[VectorStoreQueryResult]:
        """Do what `query_many` does, off the event loop."""
        return await self.arun(
            lambda: self.query_many(query, embeddings, modality=modality, string_expr=string_expr)
        )

    async def aget_nodes(
        self,
        node_ids: Sequence[str] | None = None,
        filters: MetadataFilters | None = None,
    ) -> list[BaseNode]:
        """Do what `get_nodes` does, off the event loop."""
        return await self.arun(lambda: self.get_nodes(node_ids, filters))

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
        return await read_in_own_thread(
            lambda: self.recall_vs_exact(
                queries,
                k=k,
                embed_model=embed_model,
                modality=modality,
                filters=filters,
                n_sample=n_sample,
                seed=seed,
            )
        )

    async def acount(
        self, modality: Modality | None = None, filters: MetadataFilters | None = None
    ) -> int:
        """Do what `count` does, off the event loop."""
        return await self.arun(lambda: self.count(modality, filters))

    async def adelete(self, ref_doc_id: str) -> int:
        """Do what `delete` does, off the event loop."""
        return await self._arun_to_end(lambda: self.delete(ref_doc_id))

    async def adelete_nodes(
        self,
        node_ids: Sequence[str] | None = None,
        filters: MetadataFilters | None = None,
    ) -> int:
        """Do what `delete_nodes` does, off the event loop."""
        return await self._arun_to_end(lambda: self.delete_nodes(node_ids, filters))

    async def aclear(self) -> None:
        """Do what `clear` does, off the event loop."""
        await self._arun_to_end(self.clear)

    @property
    def _output_fields(self) -> list[str]:
        # Of a collection that another program made, everything: what it named its fields is open.
        return OUTPUT_FIELDS if self._passport else ["*"]

    @contextmanager
    def _searching(
        self, query: VectorStoreQuery, modality: Modality | None, string_expr: str
    ) -> Iterator[Scope]:
        """Yield what a query searches, after flushing what searches would miss or be slow at."""
        self._reload_if_recreated()
        if self._fresh:
            self._tell_flushed(self._fresh.seal_if_many())
        else:
            unflushed = self._connection.file_lock.unflushed[self.collection_name]
            # Where the disk is too full for it, the search is slower.
            if unflushed.rows >= lite.MAX_UNFLUSHED_ROWS and lite.has_room(
                self._connection.address
            ):
                self._flush_lite()
        with self._naming(query.filters, string_expr), self._deletes.seen_by_read(self) as level:
            yield Scope(
                connection=self._connection,
                collection_name=self.collection_name,
                dim=self._dim,
                has_hnsw=self._has_hnsw,
                full_text=self.full_text,
                expression=self._expression(
                    query.filters,
                    # LlamaIndex's VectorStoreIndex passes an empty list where it means all.
                    check_ids("node_ids", query.node_ids or ()) or None,
                    None if query.doc_ids is None else check_ids("doc_ids", query.doc_ids),
                    modality,
                    string_expr,
                ),
                partitions=self._partition_names(modality),
                output_fields=self._output_fields,
                consistency_level=level,
                engine=self._engine,
                is_inexact=self._fresh is not None and self._fresh.is_searched_inexactly(),
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
        rows = list(self._select(ids, None, [self.embedding_field]))
        vectors = np.array([row[self.embedding_field] for row in rows], dtype=np.float32)
        return [str(row["id"]) for row in rows], l2_normalize(vectors.reshape(-1, self._dim))

    def _expression(
        self,
        filters: MetadataFilters | None,
        node_ids: Sequence[str] | None = None,
        doc_ids: Sequence[str] | None = None,
        modality: Modality | None = None,
        string_expr: str = "",
    ) -> str:
        """Return a condition; the collection's partitions are not part of it."""
        parts = [
            filter_expression(filters, self._fields, engine=self._engine),
            check_whole(string_expr),
        ]
        guard = text_guard(filters, self._fields, self._engine)
        if guard and self._count(guard):
            asked = guarded_filters(filters, self._fields, self._engine)
            raise FilterError(
                f"filter {asked}: rows hold texts there, of which {self._engine.value} cannot ask "
                "for this part; keep lists and texts under different keys, or use a newer server"
            )
        if node_ids is not None:
            parts.append(ids_expression("id", node_ids))
        if doc_ids is not None:
            parts.append(ids_expression(self.doc_id_field, doc_ids) if doc_ids else NEVER)
        if modality and not self._is_partitioned:
            if self._has_node_types:
                parts.append(modality_expression(modality, self._fields, self._engine))
            elif modality == "text":
                parts.append(NEVER)  # Rows that say nothing of their nodes become images.
        return joined("and", [part for part in parts if part], self._engine)

    def _warn_of_unknown(self, rows: Iterable[Row]) -> None:
        """Say once that images are stored whose vectors nobody knows to be an image's."""
        unknown = next(
            (
                row["id"]
                for row in rows
                if row["modality"] == "image" and row[PROVENANCE_FIELD] == UNKNOWN
            ),
            None,
        )
        if unknown is not None and not self._has_told_unknown:
            self._has_told_unknown = True
            logger.warning(
                "image %r and perhaps others are stored with an embedding that this process did "
                "not see an image tower make; if it is not the image's, ingest_images(repair=True) "
                "or sync_images(checksum=True) embeds it again",
                unknown,
            )

    def _upgrade_format(self) -> None:
        """Put the current format into the properties of a collection of an older one."""
        if self._passport is None or self._passport.format >= FORMAT:
            return
        self.reload_passport()  # Another store may have calibrated it, or upgraded it, since.
        if self._passport.format >= FORMAT:
            return
        if self._connection.is_lite and self._is_partitioned:
            self._remove_stale_rows()
        passport = replace(self._passport, format=FORMAT)
        self._call("alter_collection_properties", passport.to_properties())
        self._passport = passport

    def _remove_stale_rows(self) -> None:
        """Remove the rows that code of format 1 left where a node was before its modality changed.

        Milvus Lite shows the newest row of an id, but finds each in the partition that it is in.
        """
        with self._connection.lock:
            ids = [
                {row["id"] for page in found for row in page}
                for found in (
                    pages(self._query, "", [], self._engine, partitions=[partition])
                    for partition in PARTITIONS.values()
                )
            ]
            for part in batched(sorted(set.intersection(*ids)), _MAX_IDS):
                same_ids = ids_expression("id", part)
                rows = self._query(filter=same_ids, output_fields=["*"])
                self._delete(same_ids)
                self._flush_lite()  # Else Milvus Lite forgets the delete.
                for modality, partition in PARTITIONS.items():
                    newest = [
                        {key: value for key, value in row.items() if key != SPARSE_FIELD}
                        for row in rows
                        if row["modality"] == modality
                    ]
                    if newest:
                        self._insert_lite(newest, partition)

    def _tell_flushed(self, is_flushed: bool) -> None:
        if is_flushed:
            logger.warning(
                "the server is indexing what was written to collection %r; until it has, searches "
                "may miss some rows: wait_for_index() waits",
                self.collection_name,
            )

    def _flush_lite(self) -> None:
        with self._connection.lock:
            shared = self._connection.file_lock
            with shared.updating_corpus(self.collection_name):
                self._call("flush")
            shared.unflushed[self.collection_name].clear()

    def _write(self, batch: list[Row], partition: str) -> None:
        if self._connection.is_lite:
            self._insert_lite(batch, partition)
            return
        if not self._is_partitioned:
            self._call("upsert", batch, partition_name=partition)
            return
        # A server's upsert looks into its own partition only: a node that was an image would stay
        # one. Deleted after it, so that a node killed in between is there twice, not gone.
        (other,) = set(PARTITIONS.values()) - {partition}
        same_ids = ids_expression("id", [row["id"] for row in batch])
        has_moved = self._query(filter=same_ids, partition_names=[other], output_fields=["id"])
        self._call("upsert", batch, partition_name=partition)
        if has_moved:
            self._call("delete", filter=same_ids, partition_name=other)
            self._deletes.note()

    def _insert_lite(self, batch: list[Row], partition: str) -> None:
        # Milvus Lite's upsert merges: metadata that the new row lacks would stay. Its insert
        # replaces a row of the same id whole, where a server's would keep both.
        lite.check_room(self._connection.address)
        shared = self._connection.file_lock
        if partition:
            self._leave_other_partition([row["id"] for row in batch], partition)
        with shared.updating_corpus(self.collection_name) as corpus:
            self._call("insert", batch, partition_name=partition)
            if corpus is not None and self.full_text:
                for row in batch:
                    corpus.put(row["id"], lite_terms(self.full_text, row["text"]))
        shared.unflushed[self.collection_name].rows += len(batch)

    def _leave_other_partition(self, ids: list[str], partition: str) -> None:
        """Have rows of these ids in the other partition gone before they are written to this one.

        Milvus Lite forgets a delete once its id is inserted again, unless the delete is in its
        files by then: the old row would be found again. A node whose modality changes is gone if
        the process is killed in between; what it came from adds it again.
        """
        ((modality, other),) = ((m, p) for m, p in PARTITIONS.items() if p != partition)
        stale = self._query(
            filter=ids_expression("id", ids), partition_names=[other], output_fields=["id"]
        )
        if stale:
            self._delete(ids_expression("id", [row["id"] for row in stale]))
        unflushed = self._connection.file_lock.unflushed[self.collection_name]
        if unflushed.has_deleted(ids, modality):
            self._flush_lite()

    def _select(
        self,
        node_ids: Sequence[str] | None,
        filters: MetadataFilters | None,
        fields: list[str],
        *,
        with_vectors: bool = False,
    ) -> Iterator[Row]:
        """Yield the rows of these ids, or all, that the filters match."""
        with self._naming(filters):
            if node_ids is None:
                expression = self._expression(filters)
                for page in pages(
                    self._query, expression, fields, self._engine, with_vectors=with_vectors
                ):
                    yield from page
                return
            for ids in batched(node_ids, _MAX_IDS):
                yield from in_parts(
                    lambda part: self._query(
                        filter=self._expression(filters, part),
                        output_fields=["id", *fields],
                    ),
                    ids,
                )

    def _delete(self, expression: str) -> int:
        """Delete what an expression matches; return how many rows that were."""
        if self._engine == Engine.OLD_SERVER:
            # Milvus 2.3 counts the rows itself, including the deletes before, unless the expression
            # is a list of ids only: then it counts the list.
            counted = joined("and", [expression, 'id >= ""'], self._engine)
            answer = self._call("delete", filter=counted)
            self._deletes.note()
            return int(answer.get("delete_count", 0))
        if not self._connection.is_lite:
            count = self._count(expression)
            self._call("delete", filter=expression)
            self._deletes.note()
            return count
        lite.check_room(self._connection.address)
        with self._connection.lock:
            fields = ["modality"] if self._is_partitioned else []
            rows = [
                row for page in pages(self._query, expression, fields, self._engine) for row in page
            ]
            if rows:
                shared = self._connection.file_lock
                with shared.updating_corpus(self.collection_name) as corpus:
                    self._call("delete", filter=expression)
                    if corpus is not None:
                        for row in rows:
                            corpus.remove(row["id"])
                shared.unflushed[self.collection_name].delete(
                    (row["id"], row.get("modality", "")) for row in rows
                )
        return len(rows)

    def _count(self, expression: str) -> int:
        return int(self._query(filter=expression, output_fields=["count(*)"])[0]["count(*)"])

    def reload_passport(self) -> None:
        """Read again what the collection says of its vectors: it may have been created anew.

        Of an embedded file this is done by itself, where another store of it has created it.

        Raises:
            DimensionMismatchError: If it was, for vectors of another dimension.
            EmbeddingSpaceMismatchError: If it was, for another model's.
        """
        with self._connection.lock:
            created = self._connection.created(self.collection_name)
            description = self._connection.call("describe_collection", self.collection_name)
            passport = Passport.from_properties(description["properties"], self.collection_name)
            if self._passport and passport:
                passport.check(self._passport.space, self.collection_name)
                self._passport = passport
            self._created = created

    def _reload_if_recreated(self) -> None:
        if self._connection.created(self.collection_name) != self._created:
            self.reload_passport()

    def _query(self, **kwargs: Any) -> list[Row]:
        # Without a level the server takes that which the collection was created with.
        with self._deletes.seen_by_read(self) as level:
            rows: list[Row] = self._call("query", consistency_level=level, **kwargs)
            return rows

    def _call(self, method: str, *args: Any, **kwargs: Any) -> Any:
        self._reload_if_recreated()
        return self._connection.call(method, self.collection_name, *args, **kwargs)

    @contextmanager
    def _naming(self, filters: MetadataFilters | None, string_expr: str = "") -> Iterator[None]:
        """Say by which filters an expression came about that Milvus does not read after all."""
        try:
            yield
        except StoreError as err:
            cause = err.__cause__
            if not (filters or string_expr) or not isinstance(cause, MilvusException):
                raise
            is_said = any(saying in str(cause.message) for saying in _BAD_EXPRESSION_SAID)
            if cause.code in _BAD_EXPRESSION or is_said:
                asked = string_expr or repr(filters)
                raise FilterError(f"Milvus refuses {asked}: {cause.message}") from cause
            raise


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


def _checked_nodes(nodes: Iterable[BaseNode]) -> list[BaseNode]:
    nodes = [nodes] if isinstance(nodes, BaseNode) else list(nodes)
    for node in nodes:
        if not isinstance(node, BaseNode):
            raise TypeError(f"nodes holds a {type(node).__name__}, expected LlamaIndex nodes")
    return nodes


def check_ids(name: str, ids: Iterable[str]) -> list[str]:
    """Return ids as a list, after refusing what is not a list of them.

    Raises:
        TypeError: If it is one text, or holds something else.
    """
    if isinstance(ids, (str, bytes)):
        raise TypeError(f"{name} is one {type(ids).__name__}, expected a list of ids")
    ids = list(ids)
    for one in ids:
        if not isinstance(one, str):
            raise TypeError(f"{name} holds {one!r}, expected str")
    return ids


def _stored_file(row: Row, namespace: str = "") -> StoredFile:
    path = row["file_path"]
    return StoredFile(
        row["id"],
        path,
        row["file_size"],
        row["last_modified_date"],
        row["content_hash"],
        row["node_hash"],
        row["text"],
        row.get(PROVENANCE_FIELD) or UNKNOWN,
        row["id"] != make_id(path_name(Path(path)), namespace),
    )


def _files_below(
    folder: str | os.PathLike[str], namespace: str, content_hashes: Sequence[str] | None
) -> MetadataFilters:
    """Return the filters of `CLIPMilvusVectorStore.iter_files`."""
    below = os.path.join(folder, "")
    # From "/photos/" to before "/photos0": by `like`, "_" and "%" would match others, too.
    after = below[:-1] + chr(ord(below[-1]) + 1)
    bounds: list[MetadataFilter | MetadataFilters] = [
        MetadataFilter(key="file_path", operator=FilterOperator.GTE, value=below),
        MetadataFilter(key="file_path", operator=FilterOperator.LT, value=after),
        MetadataFilter(key="modality", value="image"),
    ]
    if namespace:
        bounds.append(MetadataFilter(key=NAMESPACE_KEY, value=namespace))
    else:
        bounds.append(
            MetadataFilter(key=NAMESPACE_KEY, operator=FilterOperator.IS_EMPTY, value=None)
        )
    if content_hashes is not None:
        bounds.append(
            MetadataFilter(
                key="content_hash", operator=FilterOperator.IN, value=list(content_hashes)
            )
        )
    return MetadataFilters(filters=bounds)


def _is_of(node: BaseNode, file_path: str) -> bool:
    """Whether a node's image is the file that its metadata name: it may be a part of it."""
    path, url = image_address(node)
    if not path:
        return not url
    return os.path.realpath(os.path.expanduser(path)) == os.path.realpath(file_path)
