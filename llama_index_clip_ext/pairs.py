"""Texts and the images they belong to, found in a collection."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Protocol, TypeAlias, Union, runtime_checkable

import numpy as np
from llama_index.core.vector_stores.types import FilterOperator, MetadataFilter, MetadataFilters

from .errors import ImageLoadError
from .images import ImageFailure, OnError
from .nodes import is_image_node
from .scripts import is_blank
from .sources import ImageSource, describe_source, image_digest, is_decoded
from .store import CLIPMilvusVectorStore
from .vectors import Rows

_COLUMNS = ("text", "image")

_BATCH = 500  # Images looked up at once: their vectors pass through lists of Python floats.


@runtime_checkable
class RetrievalDataset(Protocol):
    """LlamaIndex's retrieval dataset, such as ``EmbeddingQAFinetuneDataset``.

    Attributes:
        queries: Texts by id.
        relevant_docs: For each query's id, the ids of the image nodes that are right.
    """

    queries: dict[str, str]
    relevant_docs: dict[str, list[str]]


Pairs: TypeAlias = Union[Iterable["tuple[str, ImageSource]"], RetrievalDataset]


@dataclass(frozen=True)
class Pair:
    """A text and the key of its image: a node's id, or the hash of its content."""

    index: int
    text: str
    image: str
    source: str


@dataclass(frozen=True)
class StoredImage:
    """An image of the collection: all nodes that show it, and its vector."""

    node_ids: list[str]
    vector: Rows


def read_pairs(file: str | os.PathLike[str]) -> list[tuple[str, Path]]:
    """Read pairs from JSON lines or CSV with the columns ``text`` and ``image``.

    Returns:
        Texts and paths; a relative path is taken from the file's folder.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If a line is not a pair, or the file is neither ``.jsonl`` nor ``.csv``.
    """
    path = Path(file).expanduser()
    try:
        lines = path.read_bytes().decode("utf-8-sig")  # Line ends inside of quotes are kept.
    except UnicodeDecodeError as err:
        raise ValueError(f"{path}: expected a text in UTF-8 ({err})") from err
    if path.suffix.lower() == ".csv":
        records: Iterable[Any] = _csv_records(path, lines)
    elif path.suffix.lower() == ".jsonl":
        records = map(_from_json, filter(str.strip, lines.split("\n")))
    else:
        raise ValueError(f"{path}: expected a file ending in .jsonl or .csv")
    pairs = []
    for number, record in enumerate(records, 1):
        fields = [record.get(key) if isinstance(record, dict) else None for key in _COLUMNS]
        if not all(isinstance(field, str) and field for field in fields):
            raise ValueError(f"{path}, record {number}: expected a text and an image, got {record}")
        text, image = map(str, fields)
        pairs.append((text, path.parent / Path(image).expanduser()))
    return pairs


def _csv_records(path: Path, lines: str) -> Iterator[dict[str, Any]]:
    try:
        yield from csv.DictReader(io.StringIO(lines, newline=""), skipinitialspace=True)
    except csv.Error as err:
        raise ValueError(f"{path}: damaged, or no CSV ({err})") from err


def _from_json(line: str) -> Any:
    try:
        return json.loads(line)
    except json.JSONDecodeError:
        return line


def find_pairs(
    store: CLIPMilvusVectorStore, pairs: Pairs, on_missing: OnError
) -> tuple[list[Pair], dict[str, StoredImage], list[ImageFailure]]:
    """Return the pairs whose images are stored, these images by key, and the pairs left out."""
    skipped: list[ImageFailure] = []
    if isinstance(pairs, RetrievalDataset):
        wanted = _with_texts(_dataset_pairs(pairs), on_missing, skipped)
        images = _find_by_id(store, [pair.image for pair in wanted])
    else:
        wanted = list(_content_pairs(pairs, on_missing, skipped))
        wanted = _with_texts(wanted, on_missing, skipped)
        images = _find_by_content(store, [pair.image for pair in wanted])
    missing = [pair for pair in wanted if pair.image not in images]
    if missing and on_missing == "raise":
        raise ValueError(
            f"{len(missing)} of {len(wanted)} pairs have an image that is not in collection "
            f"{store.collection_name!r}: {_names(missing)}; index the "
            "images first, or leave such pairs out with on_missing='skip'"
        )
    reason = f"not among the images of collection {store.collection_name!r}"
    skipped += [ImageFailure(pair.index, pair.source, reason) for pair in missing]
    skipped.sort(key=lambda failure: failure.index)
    found = [pair for pair in wanted if pair.image in images]
    if not found and skipped:
        raise ValueError(f"all {len(skipped)} pairs were left out; the first: {skipped[0]}")
    if not found:
        raise ValueError("pairs is empty, expected (text, image) pairs or a dataset")
    return found, images, skipped


def _with_texts(pairs: list[Pair], on_missing: OnError, skipped: list[ImageFailure]) -> list[Pair]:
    """Refuse or leave out pairs without a text: they would all be one query, which all answer."""
    blank = [pair for pair in pairs if is_blank(pair.text)]
    if blank and on_missing == "raise":
        raise ValueError(
            f"{len(blank)} of {len(pairs)} pairs have an empty text: {_names(blank)}; give each "
            "image a caption, or leave such pairs out with on_missing='skip'"
        )
    skipped += [ImageFailure(pair.index, pair.source, "its text is empty") for pair in blank]
    return [pair for pair in pairs if not is_blank(pair.text)]


def _names(pairs: list[Pair]) -> str:
    first = ", ".join(f"pair {pair.index} ({pair.source})" for pair in pairs[:3])
    return first + (", ..." if len(pairs) > 3 else "")


def _dataset_pairs(dataset: RetrievalDataset) -> list[Pair]:
    pairs: list[Pair] = []
    for query_id, text in dataset.queries.items():
        node_ids = dataset.relevant_docs.get(query_id)
        if not node_ids:
            raise ValueError(f"query {query_id!r} has no relevant_docs: no answer would be right")
        for node_id in node_ids:
            source = f"node {node_id!r} of query {query_id!r}"
            pairs.append(Pair(len(pairs), text, node_id, source))
    return pairs


def _content_pairs(
    pairs: Iterable[Any], on_missing: OnError, skipped: list[ImageFailure]
) -> Iterator[Pair]:
    for index, pair in enumerate(pairs):
        if not isinstance(pair, (tuple, list)) or len(pair) != 2 or not isinstance(pair[0], str):
            kinds = [type(item).__name__ for item in pair] if isinstance(pair, tuple) else ""
            raise TypeError(
                f"pair {index} is a {type(pair).__name__}{kinds}, expected (text, image)"
            )
        text, image = pair
        if is_decoded(image):
            raise TypeError(
                f"the image of pair {index} is a {describe_source(image)}: pixels do not tell "
                "which file they are of; give its path or bytes"
            )
        try:
            yield Pair(index, text, image_digest(image), describe_source(image))
        except ImageLoadError as err:
            if on_missing == "raise":
                raise type(err)(err.reason, source=err.source, index=index) from err
            skipped.append(ImageFailure(index, err.source, err.reason))


def _find_by_id(store: CLIPMilvusVectorStore, node_ids: list[str]) -> dict[str, StoredImage]:
    nodes = (node for batch in _batches(node_ids) for node in store.get_nodes(batch))
    return {
        node.node_id: StoredImage([node.node_id], np.array(node.embedding, dtype=np.float32))
        for node in nodes
        if is_image_node(node)
    }


def _find_by_content(store: CLIPMilvusVectorStore, digests: list[str]) -> dict[str, StoredImage]:
    found: dict[str, StoredImage] = {}
    for batch in _batches(digests):
        same = MetadataFilter(key="content_hash", value=batch, operator=FilterOperator.IN)
        for node in store.get_nodes(filters=MetadataFilters(filters=[same])):
            digest = node.metadata.get("content_hash")
            if digest is None or not is_image_node(node):
                continue
            vector = np.array(node.embedding, dtype=np.float32)
            found.setdefault(digest, StoredImage([], vector)).node_ids.append(node.node_id)
    return found


def _batches(keys: list[str]) -> Iterator[list[str]]:
    unique = iter(dict.fromkeys(keys))
    while batch := list(islice(unique, _BATCH)):
        yield batch
