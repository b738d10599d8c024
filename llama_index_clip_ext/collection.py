"""A Milvus collection: made with the presets, and checked before it is used."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from typing import Any
from urllib.parse import urlparse

from pymilvus import DataType, MilvusClient
from pymilvus.exceptions import MilvusException

from . import lite
from .connection import Connection, split_credentials
from .errors import DimensionMismatchError, StoreError
from .expressions import Engine
from .full_text import INDEX, SPARSE_FIELD, FullText, add_bm25, no_jieba, text_options
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

_MAX_BATCH_BYTES = 16 * 2**20  # Well below the 64 MiB that a server's gRPC takes at once.
_MAX_BATCH_ROWS = 1_000


def read_passport(
    *,
    uri: str | os.PathLike[str] = DEFAULT_URI,
    token: str = "",
    db_name: str = "",
    collection_name: str = DEFAULT_COLLECTION,
) -> tuple[Passport | None, int]:
    """Read a collection's passport and count its rows, without a model.

    Raises:
        StoreError: If the database cannot be opened or has no such collection.
    """
    with _opened(uri, token, db_name, collection_name) as (connection, passport):
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
    with _opened(uri, token, "", collection_name) as (_, passport):
        yield passport


@contextmanager
def _opened(
    uri: str | os.PathLike[str], token: str, db_name: str, collection_name: str
) -> Iterator[tuple[Connection, Passport | None]]:
    address, _ = split_credentials(os.fspath(uri))
    if lite.is_lite(address) and not os.path.exists(lite.lite_path(address, make=False)):
        raise StoreError(
            f"{address} does not exist; `clip-ext index FOLDER --uri {address}`, or sync, makes it"
        )
    with closing(Connection(uri, token, db_name)) as connection:
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
        host = urlparse(address).hostname or ""
        index = "AUTOINDEX" if host.endswith((".zillizcloud.com", ".zilliz.com.cn")) else "HNSW"
    if index not in ("HNSW", "AUTOINDEX", "FLAT"):
        raise ValueError(
            f"index_type is {index_type!r}, expected 'HNSW', 'AUTOINDEX', 'FLAT' or 'auto': "
            "quantised indexes lose text-to-image hits"
        )
    config = dict(_HNSW) if index == "HNSW" else {"index_type": index}
    return {**config, "metric_type": "COSINE" if metric == "AUTO" else metric}


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
                f"{passport.metric}; drop the index, or index again with overwrite=True"
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
            "type VARCHAR, or no FLOAT_VECTOR 'embedding'; use another collection_name, or "
            "overwrite=True"
        )
    dim = int(fields["embedding"]["params"]["dim"])
    if dim != space.dim:
        raise DimensionMismatchError(
            f"collection {name!r} holds {dim}-dim vectors in its field 'embedding', model "
            f"{space.model!r} makes {space.dim}; use another collection_name, or overwrite=True",
            expected=dim,
            actual=space.dim,
        )
    for index in connection.call("list_indexes", name, field_name="embedding"):
        metric = connection.call("describe_index", name, index)["metric_type"]
        if metric not in ("COSINE", "IP"):
            raise StoreError(
                f"collection {name!r} was not made by this package, and its index compares by "
                f"{metric}, not by COSINE or IP; use another collection_name, or overwrite=True"
            )
    if full_text is not None:
        raise StoreError(
            f"collection {name!r} was not made by this package, so its texts are not prepared for "
            f"full_text={full_text!r}; use another collection_name, or overwrite=True"
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
    """Raise what Milvus says while a database is opened as a `StoreError` that names it.

    Where Milvus Lite lacks jieba, one Chinese collection shuts its whole file.
    """
    try:
        yield
    except MilvusException as err:
        if "jieba" in str(err):
            raise no_jieba() from err
        raise StoreError(f"{address} could not be opened: {err.message}") from err


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
