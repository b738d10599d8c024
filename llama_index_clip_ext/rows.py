"""LlamaIndex nodes as rows of the Milvus collection, and back."""

from __future__ import annotations

import hashlib
import json
import reprlib
from collections.abc import Mapping
from contextlib import suppress
from types import MappingProxyType
from typing import Any, Literal, NamedTuple, TypeAlias

from llama_index.core.schema import (
    BaseNode,
    Document,
    ImageDocument,
    ImageNode,
    IndexNode,
    Node,
    TextNode,
)
from llama_index.core.vector_stores.utils import node_to_metadata_dict
from pymilvus import CollectionSchema, DataType

from .errors import EmbeddingError, ImageLoadError, RowTooLargeError
from .full_text import SPARSE_FIELD
from .metadata import checked_metadata
from .nodes import VOLATILE_METADATA, is_image_node, node_text, with_content_hash, without_pixels
from .notes import without_notes
from .provenance import UNKNOWN, Provenance, tower_of
from .scripts import is_unicode
from .vectors import check_vector

Modality: TypeAlias = Literal["image", "text"]

# Milvus's limits, in bytes of UTF-8 and of JSON. A server refuses what exceeds them; Milvus Lite
# stores it, so that moving to a server would fail later. milvus.io: "Use JSON Fields", "String".
MAX_VARCHAR_BYTES = 65_535
MAX_DYNAMIC_BYTES = 65_536

# What of a node's metadata gets a real column, because it is filtered by often; the others are
# dynamic fields. Milvus 2.3 has no nullable columns: "" and -1 stand for a value that is missing.
_TEXT_COLUMNS = ("file_path", "file_name", "file_type", "last_modified_date", "content_hash")
_NUMBER_COLUMNS = ("file_size", "width", "height")
_OWN_COLUMNS = ("id", "doc_id", "text", "modality", "node_hash", "_node_content", "_node_type")
COLUMNS = frozenset((*_OWN_COLUMNS, *_TEXT_COLUMNS, *_NUMBER_COLUMNS))

# Which tower made the vector: a dynamic field, because collections of format 1 lack the column.
PROVENANCE_FIELD = "_provenance"

# Metadata under the name of a column of ours is kept under another, so that it can be filtered by.
# Not "doc_id", which for LlamaIndex is the document, nor "modality", by which its own retrievers
# can be kept to images: those are the columns, whatever the metadata say.
_OPEN_COLUMNS = ("doc_id", "modality")
_SHADOWED = {
    key: f"${key}"
    for key in (*_OWN_COLUMNS, "embedding", SPARSE_FIELD, PROVENANCE_FIELD)
    if key not in _OPEN_COLUMNS
}
_RESERVED_KEYS = frozenset(("$meta", *_SHADOWED.values()))

# What a hit needs to become a node again; never the vector.
OUTPUT_FIELDS = ["text", "_node_content", "_node_type"]

_NODE_CLASSES: dict[str, type[BaseNode]] = {
    node_class.class_name(): node_class
    for node_class in (Document, ImageDocument, ImageNode, IndexNode, Node, TextNode)
}


class Field(NamedTuple):
    """Where the values of a metadata key are kept.

    Attributes:
        name: The column's or dynamic field's.
        type: Of a column: ``str``, ``int`` or ``float``; ``object`` if it is another. ``None`` for
            a dynamic field, which holds any JSON.
        missing: What stands in a column for a missing value.
    """

    name: str
    type: type | None = None
    missing: str | int | None = None


def add_fields(
    schema: CollectionSchema, dim: int, text_options: Mapping[str, Any] = MappingProxyType({})
) -> CollectionSchema:
    """Add the columns of our collections to a schema; the options are the text's."""
    schema.add_field("id", DataType.VARCHAR, max_length=MAX_VARCHAR_BYTES, is_primary=True)
    schema.add_field("embedding", DataType.FLOAT_VECTOR, dim=dim)
    for name in (*_OWN_COLUMNS[1:], *_TEXT_COLUMNS):
        options = text_options if name == "text" else {}
        schema.add_field(name, DataType.VARCHAR, max_length=MAX_VARCHAR_BYTES, **options)
    for name in _NUMBER_COLUMNS:
        schema.add_field(name, DataType.INT64)
    return schema


def modality_of(node: BaseNode) -> Modality:
    """Say by which tower a node was embedded: the image's, if it holds one."""
    return "image" if is_image_node(node) else "text"


def node_hash(node: BaseNode) -> str:
    """Return the SHA-256 of all that a row is made of: image content, caption and metadata.

    It is of the JSON that is stored, so that a set, say, has the same hash in every process.

    Raises:
        TypeError: If a metadata value cannot be written as JSON.
        ValueError: Likewise.
    """
    node = without_notes(node)
    own = {key: value for key, value in node.metadata.items() if key not in VOLATILE_METADATA}
    content = [node_text(node), checked_metadata(own), node.ref_doc_id, image_address(node)]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def node_to_row(
    node: BaseNode, dim: int, *, provenance: Provenance | None = None
) -> dict[str, Any]:
    """Make the row of a node. Pixels are not stored: the path or URL and the content's hash are.

    Args:
        node: A node with its embedding.
        dim: Components that the embedding must have.
        provenance: The tower that made the embedding; ``None`` for what this process remembers.

    Returns:
        A value for each column, and the rest of the metadata as dynamic fields.

    Raises:
        EmbeddingError: If the embedding is missing, not finite, not of unit length, or that of a
            text although the node is an image.
        DimensionMismatchError: If it has another dimension.
        RowTooLargeError: If Milvus could not store the row.
        TypeError: If a metadata value is not of its column's type.
    """
    if node.embedding is None:
        raise EmbeddingError(
            f"{_name(node)} has no embedding; pass nodes through embed_model(nodes) first"
        )
    vector = check_vector(node.embedding, dim, _name(node))
    provenance = provenance or tower_of(vector) or UNKNOWN
    if provenance == "text" and is_image_node(node):
        raise EmbeddingError(
            f"{_name(node)} is an image, and its embedding is that of a text: LlamaIndex's "
            "VectorStoreIndex, and MultiModalVectorStoreIndex for images with a text, embed an "
            "image's text. Use ingest_images or CLIPVectorStoreIndex, or call embed_model(nodes) "
            "and vector_store.add(nodes)"
        )
    return {**check_node(node), "embedding": vector, PROVENANCE_FIELD: provenance}


def check_node(node: BaseNode) -> dict[str, Any]:
    """Return a node's row without its vector, after refusing what Milvus could not store.

    Raises:
        RowTooLargeError: If Milvus could not store the row.
        TypeError: If a metadata value is not of its column's type.
    """
    name = _name(node)
    if not node.node_id:
        raise ValueError("a node has an empty id; give it one, or leave the id to LlamaIndex")
    texts = {"id": node.node_id, "document": node.ref_doc_id or "", "text": node_text(node)}
    for what, text in texts.items():
        if not is_unicode(text):
            raise ValueError(f"{name}: its {what} is no Unicode text, which Milvus cannot store")
    node = without_notes(node)
    if is_image_node(node) and not node.metadata.get("content_hash"):
        with suppress(ImageLoadError):  # Embedded by somebody else, and gone or a URL.
            node = with_content_hash(node)
    bare = without_pixels(node)
    if isinstance(bare, ImageNode) and bare.text_embedding:
        bare = bare.model_copy(update={"text_embedding": None})
    bare = bare.model_copy(update={"metadata": _checked_metadata(bare.metadata, name)})
    flat = node_to_metadata_dict(bare, remove_text=True, text_field="text")
    row = _dynamic_fields(bare.metadata)
    row |= _columns(bare.metadata, name)
    row |= {
        "id": node.node_id,
        # A node without a source is its own document, as LlamaIndex's pipelines have it.
        "doc_id": node.ref_doc_id or node.node_id,
        "text": node_text(node),
        "modality": modality_of(node),
        "node_hash": node_hash(node),
        "_node_content": flat["_node_content"],
        "_node_type": flat["_node_type"],
    }
    _check_size(row, name)
    return row


def row_to_node(row: Mapping[str, Any]) -> BaseNode:
    """Make the node of a row, of the class that was stored."""
    content = row.get("_node_content")
    if content is None:
        # Written by another program: what it named file_path is the best there is.
        own = {*_OWN_COLUMNS, "embedding", PROVENANCE_FIELD}
        metadata = {key: value for key, value in row.items() if key not in own}
        node: BaseNode = ImageNode(
            text=row.get("text") or "",
            image_path=row.get("file_path") or None,
            metadata=metadata,
            id_=str(row["id"]) if "id" in row else "",
        )
    else:
        node_class = _NODE_CLASSES.get(row.get("_node_type") or "", TextNode)
        node = node_class.from_json(content)
        if row.get("text"):
            node.set_content(row["text"])
    if (vector := row.get("embedding")) is not None:
        node.embedding = [float(component) for component in vector]
    return node


def metadata_fields() -> dict[str, Field]:
    """Return where each metadata key is kept that is not a dynamic field of its own name."""
    return {
        **{key: Field(name) for key, name in _SHADOWED.items()},
        **{key: Field(key, str) for key in _OPEN_COLUMNS},
        **{key: Field(key, str, "") for key in _TEXT_COLUMNS},
        **{key: Field(key, int, -1) for key in _NUMBER_COLUMNS},
    }


def _name(node: BaseNode) -> str:
    return f"node {reprlib.repr(node.node_id)}"


def image_address(node: BaseNode) -> list[str]:
    """Return the path and the URL of a node's image, each empty if it has none."""
    names = ("image_path", "image_url") if isinstance(node, ImageNode) else ("path", "url")
    holder = node if isinstance(node, ImageNode) else getattr(node, "image_resource", None)
    return [str(getattr(holder, name, None) or "") for name in names]


def _checked_metadata(metadata: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Return metadata as JSON, after refusing what pymilvus would fail on between two batches."""
    for key in metadata:
        if key in _RESERVED_KEYS:
            raise ValueError(f"{name}: the store keeps the metadata key {key!r} for itself")
    try:
        return checked_metadata(metadata)
    except (TypeError, ValueError) as err:
        raise type(err)(f"{name}: {err}") from err


def _dynamic_fields(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the metadata are filtered by; the node itself keeps them as they are."""
    fields = {}
    for key, value in metadata.items():
        # Servers and Milvus Lite do not agree on what exists, and no filter can tell an empty list
        # from a missing one; Milvus Lite cannot negate a comparison with a dictionary.
        if key != "doc_id" and value is not None and value != []:
            fields[_SHADOWED.get(key, key)] = [value] if isinstance(value, dict) else value
    return fields


def _columns(metadata: Mapping[str, Any], name: str) -> dict[str, Any]:
    columns: dict[str, Any] = {}
    for keys, expected, missing in ((_TEXT_COLUMNS, str, ""), (_NUMBER_COLUMNS, int, -1)):
        for key in keys:
            value = metadata.get(key)
            if value is not None and (not isinstance(value, expected) or isinstance(value, bool)):
                raise TypeError(
                    f"{name}: metadata {key!r} is {value!r}, expected {expected.__name__}: the "
                    "collection has a column of that name; use another key"
                )
            columns[key] = missing if value is None else value
    return columns


def _check_size(row: Mapping[str, Any], name: str) -> None:
    for key in (*_OWN_COLUMNS, *_TEXT_COLUMNS):
        if (size := len(row[key].encode())) > MAX_VARCHAR_BYTES:
            raise RowTooLargeError(
                f"{name}: {key} takes {size} bytes, Milvus stores {MAX_VARCHAR_BYTES}; "
                + (
                    f"the largest metadata is {_largest(row)}"
                    if key == "_node_content"
                    else "shorten it"
                )
            )
    dynamic = {key: value for key, value in row.items() if key not in COLUMNS}
    if (size := _json_size(dynamic)) > MAX_DYNAMIC_BYTES:
        raise RowTooLargeError(
            f"{name}: its metadata takes {size} bytes, Milvus stores {MAX_DYNAMIC_BYTES}; the "
            f"largest is {_largest(row)}"
        )


def _largest(row: Mapping[str, Any]) -> str:
    sizes = {key: _json_size(value) for key, value in row.items() if key not in _OWN_COLUMNS}
    key = max(sizes, key=lambda name: sizes[name], default="")
    return f"{key!r} ({sizes.get(key, 0)} bytes)"


def _json_size(value: Any) -> int:
    return len(json.dumps(value, ensure_ascii=False).encode())
