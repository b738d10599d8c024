"""A Milvus collection: made with the presets, and checked before it is used."""

from __future__ import annotations

import logging
import os
import re
import time
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlparse

from pymilvus import DataType, MilvusClient
from pymilvus.exceptions import MilvusException

from . import lite
from .connection import Connection, TLSOptions, refusal, split_credentials
from .errors import CollectionNotFoundError, DimensionMismatchError, StoreError
from .expressions import Engine
from .full_text import (
    INDEX,
    SPARSE_FIELD,
    FullText,
    add_bm25,
    check_support,
    no_jieba,
    text_options,
)
from .models import EmbeddingSpace
from .passport import Passport
from .rows import Field, Modality, add_fields

logger = logging.getLogger(__name__)

DEFAULT_URI = "./clip_ext.db"
DEFAULT_COLLECTION = "clip_ext"

# Milvus compares a query with images only, or with texts only: CLIP scores text to text far above
# text to image, so that one mixed list would bury every image.
PARTITIONS: Mapping[Modality, str] = {"image": "images", "text": "texts"}

# M and efConstruction: Milvus's own advice for high recall, since text queries against image
# vectors need more of it than image queries do (the modality gap).
_HNSW = {"index_type": "HNSW", "M": 32, "efConstruction": 360}

_TYPES: Mapping[DataType, type] = {
    DataType.VARCHAR: str,
    **dict.fromkeys((DataType.INT8, DataType.INT16, DataType.INT32, DataType.INT64), int),
    DataType.DOUBLE: float,
}

# Endpoints of Zilliz Cloud, dedicated and serverless, whose only index is AUTOINDEX.
_ZILLIZ_CLOUD = (".zillizcloud.com", ".zillizcloud.com.cn", ".zilliz.com", ".zilliz.com.cn")

# What a server says to one of several clients that create a collection at once.
_CREATED_BY_ANOTHER = ("create duplicate collection", "already exist")
_RETRY_AFTER = 0.2

_WAYS_OUT = (
    "use another collection_name (--collection); overwrite=True (--overwrite) would drop the "
    "collection with all its data"
)

_MAX_BATCH_BYTES = 16 * 2**20  # Well below the 64 MiB that a server's gRPC takes at once.
_MAX_BATCH_ROWS = 1_000


def read_passport(
    *,
    uri: str | os.PathLike[str] = DEFAULT_URI,
    token: str = "",
    db_name: str = "",
    collection_name: str = DEFAULT_COLLECTION,
    tls: TLSOptions | None = None,
) -> tuple[Passport | None, int]:
    """Read a collection's passport and count its rows, without a model.

    Raises:
        StoreError: If the database cannot be opened or has no such collection.
    """
    with _opened(uri, token, db_name, collection_name, tls) as (connection, passport):
        with reported(connection.address):
            connection.load(collection_name)
            rows = connection.call("query", collection_name, filter="", output_fields=["count(*)"])
        return passport, int(rows[0]["count(*)"])


@contextmanager
def passport_of(uri: str, token: str, collection_name: str) -> Iterator[Passport | None]:
    """Read a collection's passport, to choose the model that its store is opened with inside.

    An embedded file stays open meanwhile, so that the store need not read it again.

    Raises:
        StoreError: If the database cannot be opened or has no such collection.
    """
    with _opened(uri, token, "", collection_name, None) as (_, passport):
        yield passport


@contextmanager
def _opened(
    uri: str | os.PathLike[str],
    token: str,
    db_name: str,
    collection_name: str,
    tls: TLSOptions | None,
) -> Iterator[tuple[Connection, Passport | None]]:
    address, _ = split_credentials(os.fspath(uri))
    if lite.is_lite(address) and not os.path.exists(lite.lite_path(address, make=False)):
        raise StoreError(
            f"{address} does not exist; `clip-ext index FOLDER --uri {address}`, or sync, makes it"
        )
    with closing(Connection(uri, token, db_name, tls=tls)) as connection:
        with reported(connection.address):
            if not connection.call("has_collection", collection_name):
                raise StoreError(
                    f"no collection {collection_name!r} in {connection.address}; there are: "
                    f"{', '.join(sorted(connection.call('list_collections'))) or 'none'} "
                    "(collection_name=, --collection)"
                )
            properties = connection.call("describe_collection", collection_name)["properties"]
        yield connection, Passport.from_properties(properties, collection_name)


def engine(connection: Connection) -> Engine:
    """Say who reads the expressions of a database."""
    if connection.is_lite:
        return Engine.LITE
    version = re.match(r"v?(\d+)\.(\d+)", connection.call("get_server_version"))
    is_old = version and (int(version[1]), int(version[2])) < (2, 4)
    return Engine.OLD_SERVER if is_old else Engine.SERVER


def columns(description: Mapping[str, Any]) -> dict[str, Field]:
    """Return the columns of a collection that another program made."""
    return {
        field["name"]: Field(field["name"], _TYPES.get(field["type"], object))
        for field in description["fields"]
    }


def index_config(address: str, index_type: str, similarity_metric: str) -> dict[str, Any]:
    """Choose the index and its metric for a database, or refuse what would lose hits there.

    Raises:
        ValueError: If the index or the metric is not one that works there.
    """
    metric = similarity_metric.upper()
    if metric not in ("AUTO", "COSINE", "IP"):
        raise ValueError(
            f"similarity_metric is {similarity_metric!r}, expected 'COSINE', 'IP' or 'auto': "
            "scores are cosines of unit vectors"
        )
    index = index_type.upper()
    if lite.is_lite(address):
        if index not in ("AUTO", "FLAT"):
            raise ValueError(
                f"index_type is {index_type!r}, expected 'FLAT' or 'auto': on Milvus Lite every "
                "other index loses hits of filtered searches after it is reopened"
            )
        # On unit vectors the same ranking as COSINE, which Milvus Lite computes 3.5 times slower.
        return {"index_type": "FLAT", "metric_type": "IP" if metric == "AUTO" else metric}
    if index == "AUTO":
        host = (urlparse(address).hostname or "").rstrip(".")
        index = "AUTOINDEX" if host.endswith(_ZILLIZ_CLOUD) else "HNSW"
    if index not in ("HNSW", "AUTOINDEX", "FLAT"):
        raise ValueError(
            f"index_type is {index_type!r}, expected 'HNSW', 'AUTOINDEX', 'FLAT' or 'auto': "
            "quantised indexes lose text-to-image hits"
        )
    config = dict(_HNSW) if index == "HNSW" else {"index_type": index}
    return {**config, "metric_type": "COSINE" if metric == "AUTO" else metric}


@dataclass(frozen=True)
class Opened:
    """A collection that was checked, and what its store needs to know.

    Attributes:
        passport: What it says of its vectors; ``None`` if another program created it.
        description: Milvus's.
        metric: What its index compares by.
        has_hnsw: Whether its index is HNSW, whatever was asked for now.
        is_partitioned: Whether images and texts are kept apart.
        engine: Who reads the expressions.
        created: How often the collection of an embedded file had been created by then.
    """

    passport: Passport | None
    description: Mapping[str, Any]
    metric: str
    has_hnsw: bool
    is_partitioned: bool
    engine: Engine
    created: int


def open_collection(
    connection: Connection,
    name: str,
    space: EmbeddingSpace,
    index: dict[str, Any],
    *,
    consistency_level: str,
    full_text: FullText | None,
    overwrite: bool,
) -> Opened:
    """Open a collection, or create it; several clients may do so at once, also with overwrite.

    Args:
        connection: To the database.
        name: The collection's.
        space: The model's.
        index: What `index_config` returns.
        consistency_level: Of a collection that is created.
        full_text: Analyzer of its texts.
        overwrite: Whether to drop it first, with all that it holds.

    Raises:
        DimensionMismatchError: If the collection's vectors have another dimension.
        EmbeddingSpaceMismatchError: If another model wrote the collection.
        StoreError: If it cannot be opened.
    """
    deadline = time.monotonic() + connection.timeout
    if full_text:
        version = None if connection.is_lite else connection.call("get_server_version")
        check_support(version, full_text)
    must_drop = overwrite
    while True:
        try:
            with connection.lock:
                if must_drop and connection.call("has_collection", name):
                    connection.call("drop_collection", name)
                must_drop = False  # Once: another client may have opened what was made since.
                if not connection.call("has_collection", name):
                    if connection.is_lite:
                        lite.remove_remains(connection.address, name, overwrite=overwrite)
                    new = Passport(space, index["metric_type"], full_text=full_text)
                    create(connection, name, new, index, consistency_level)
                return _check_and_load(connection, name, space, index, full_text)
        except CollectionNotFoundError:
            # Another client has dropped it, to create it again.
            if connection.is_lite or time.monotonic() > deadline:
                raise
        except StoreError as err:
            is_race = any(said in str(err) for said in _CREATED_BY_ANOTHER)
            if not is_race or connection.is_lite or time.monotonic() > deadline:
                raise
        time.sleep(_RETRY_AFTER)


def _check_and_load(
    connection: Connection,
    name: str,
    space: EmbeddingSpace,
    index: dict[str, Any],
    full_text: FullText | None,
) -> Opened:
    description = connection.call("describe_collection", name)
    passport = check(connection, description, space, index, full_text)
    # Serially and before any thread searches: after reopening, Milvus Lite's collections are
    # released, and a first access by several threads loses rows.
    connection.load(name)
    if not connection.is_lite:
        # A session waits for its own writes only: for those of others until now, once.
        connection.call(
            "query",
            name,
            filter="",
            output_fields=["count(*)"],
            consistency_level="Strong",
        )
    partitions = connection.call("list_partitions", name)
    made = connection.call("describe_index", name, "embedding") or {}
    return Opened(
        passport=passport,
        description=description,
        metric=passport.metric if passport else made.get("metric_type", index["metric_type"]),
        has_hnsw=made.get("index_type") == "HNSW",
        is_partitioned=set(PARTITIONS.values()) <= set(partitions),
        engine=engine(connection),
        created=connection.created(name),
    )


def create(
    connection: Connection,
    collection_name: str,
    passport: Passport,
    index: dict[str, Any],
    consistency_level: str,
) -> None:
    """Make a collection with our columns, its index and its passport."""
    schema = MilvusClient.create_schema(auto_id=False, enable_dynamic_field=True)
    add_fields(schema, passport.space.dim, text_options(passport.full_text))
    if passport.full_text:
        add_bm25(schema)
    connection.call(
        "create_collection",
        collection_name,
        schema=schema,
        consistency_level=consistency_level,
        properties=passport.to_properties(),
    )
    _add_index(connection, collection_name, "embedding", index)
    if passport.full_text:
        _add_index(connection, collection_name, SPARSE_FIELD, INDEX)


def _add_index(
    connection: Connection, collection_name: str, field: str, index: Mapping[str, Any]
) -> None:
    params = {key: index[key] for key in index if key not in ("index_type", "metric_type")}
    index_params = MilvusClient.prepare_index_params()
    index_params.add_index(
        field_name=field,
        index_name=field,
        index_type=index["index_type"],
        metric_type=index["metric_type"],
        params=params,
    )
    connection.call("create_index", collection_name, index_params)


def check(
    connection: Connection,
    description: Mapping[str, Any],
    space: EmbeddingSpace,
    index: dict[str, Any],
    full_text: FullText | None = None,
) -> Passport | None:
    """Refuse a collection that is not what is wanted; complete one that was cut short."""
    name = description["collection_name"]
    passport = Passport.from_properties(description.get("properties") or {}, name)
    if passport:
        passport.check(space, name)
        passport.check_full_text(full_text, name)
        if not connection.call("list_indexes", name, field_name="embedding"):
            _add_index(connection, name, "embedding", {**index, "metric_type": passport.metric})
        if passport.full_text and not connection.call(
            "list_indexes", name, field_name=SPARSE_FIELD
        ):
            _add_index(connection, name, SPARSE_FIELD, INDEX)
        metric = connection.call("describe_index", name, "embedding")["metric_type"]
        if metric != passport.metric:
            raise StoreError(
                f"collection {name!r}: its index compares by {metric}, its passport says "
                f"{passport.metric}; drop the index, or index again with overwrite=True, which "
                "drops the collection with all its data"
            )
        existing = connection.call("list_partitions", name)
        for partition in PARTITIONS.values():
            if partition not in existing:
                connection.call("create_partition", name, partition)
        return passport
    fields = {field["name"]: field for field in description["fields"]}
    types = {key: field["type"] for key, field in fields.items()}
    has_id = types.get("id") == DataType.VARCHAR and fields["id"].get("is_primary")
    if not has_id or types.get("embedding") != DataType.FLOAT_VECTOR:
        raise StoreError(
            f"collection {name!r} was not made by this package, and has no primary key 'id' of "
            f"type VARCHAR, or no FLOAT_VECTOR 'embedding'; {_WAYS_OUT}"
        )
    dim = int(fields["embedding"]["params"]["dim"])
    if dim != space.dim:
        raise DimensionMismatchError(
            f"collection {name!r} holds {dim}-dim vectors in its field 'embedding', model "
            f"{space.model!r} makes {space.dim}; {_WAYS_OUT}",
            expected=dim,
            actual=space.dim,
        )
    for index in connection.call("list_indexes", name, field_name="embedding"):
        metric = connection.call("describe_index", name, index)["metric_type"]
        if metric not in ("COSINE", "IP"):
            raise StoreError(
                f"collection {name!r} was not made by this package, and its index compares by "
                f"{metric}, not by COSINE or IP; {_WAYS_OUT}"
            )
    if full_text is not None:
        raise StoreError(
            f"collection {name!r} was not made by this package, so its texts are not prepared for "
            f"full_text={full_text!r}; {_WAYS_OUT}"
        )
    logger.warning(
        "collection %r was not made by this package and does not say which model wrote it; only "
        "its dimension fits %r",
        name,
        space.model,
    )
    return None


@contextmanager
def reported(address: str) -> Iterator[None]:
    """Name the database in what Milvus says while it is opened.

    Where Milvus Lite lacks jieba, one Chinese collection shuts its whole file.
    """
    try:
        yield
    except StoreError as err:
        cause = err.__cause__
        # Errors of their own kind, and of a file that was closed, say all that there is to say.
        if type(err) is not StoreError or not isinstance(cause, MilvusException):
            raise
        if not str(err).startswith(refusal(address)):
            raise
        if "jieba" in str(cause):
            raise no_jieba() from cause
        raise StoreError(f"{address} could not be opened: {cause.message}") from cause


def batches(rows: list[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    """Split rows so that no insert exceeds what Milvus takes at once."""
    batch: list[dict[str, Any]] = []
    size = 0
    for row in rows:
        # Eight bytes for a float32 and its share of the framing; text as it is sent.
        row_size = 8 * len(row["embedding"]) + sum(
            len(value.encode()) if isinstance(value, str) else 64 for value in row.values()
        )
        if batch and (size + row_size > _MAX_BATCH_BYTES or len(batch) == _MAX_BATCH_ROWS):
            yield batch
            batch, size = [], 0
        batch.append(row)
        size += row_size
    if batch:
        yield batch
