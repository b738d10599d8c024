"""A stream of images -> the store, with a report."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Iterable, Iterator, Sized
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from llama_index.core.schema import BaseNode
from tqdm.auto import tqdm

from .dual_encoder import DualEncoderEmbedding
from .errors import ImageLoadError
from .images import ImageFailure, OnError
from .nodes import Captions, ImageItem, list_images, make_image_node, with_content_hash
from .rows import check_node, modality_of, node_hash
from .sources import describe_source
from .store import CLIPMilvusVectorStore, check_pair


@dataclass
class IngestReport:
    """What became of each image.

    Attributes:
        added: Images that were not in the store.
        unchanged: Images that were, with the same content, caption and metadata.
        replaced: Images that were, and have changed.
        failed: Images that could not be used, each with its position, name and reason.
        seconds: How long it took.
    """

    added: int = 0
    unchanged: int = 0
    replaced: int = 0
    failed: list[ImageFailure] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def total(self) -> int:
        """Images that were looked at."""
        return self.added + self.unchanged + self.replaced + len(self.failed)

    @property
    def images_per_second(self) -> float:
        """Images embedded and stored per second, decoding included."""
        return (self.added + self.replaced) / self.seconds if self.seconds else 0.0

    def __str__(self) -> str:
        lines = [
            f"{self.added} added, {self.unchanged} unchanged, {self.replaced} replaced, "
            f"{len(self.failed)} failed in {self.seconds:.1f} s "
            f"({self.images_per_second:.1f} images/s)"
        ]
        return "\n".join([*lines, *(f"  failed: {failure}" for failure in self.failed)])


def ingest_images(
    source: str | os.PathLike[str] | Iterable[ImageItem],
    *,
    embed_model: DualEncoderEmbedding,
    vector_store: CLIPMilvusVectorStore,
    batch_size: int = 64,
    on_error: OnError = "skip",
    captions: Captions = "sidecar",
    recursive: bool = True,
    show_progress: bool = False,
) -> IngestReport:
    """Embed images and store them; run again, it embeds only what is new or has changed.

    Args:
        source: A folder, a glob pattern, one file, or any iterable of paths or image nodes, which
            is read as it is needed.
        embed_model: The model that the store was made for.
        vector_store: The store, as `create_vector_store` returns it.
        batch_size: Images that are looked up, embedded and stored together.
        on_error: Report an image that cannot be used and go on, or raise.
        captions: As in `load_image_nodes`.
        recursive: Whether to look into the folder's folders.
        show_progress: Show a progress bar.

    Returns:
        The report. Every image it counts as added or replaced is in the store.

    Raises:
        FileNotFoundError: If the folder or pattern matches nothing that exists.
        ImageLoadError: If an image fails and ``on_error`` is ``"raise"``; what was stored before
            stays.
        EmbeddingSpaceMismatchError: If the store holds vectors of another model.
        TypeError: If an item is neither a path nor an image node.
    """
    items: Any = source
    if isinstance(source, (str, os.PathLike)):
        # Listed first, so that a folder that changes is not read twice and the bar has an end.
        items = list(list_images(source, recursive=recursive))
    total = len(items) if isinstance(items, Sized) else None
    report = IngestReport()
    with tqdm(desc="Ingesting images", total=total, unit="img", disable=not show_progress) as bar:
        for report in iter_ingest(
            items,
            embed_model=embed_model,
            vector_store=vector_store,
            batch_size=batch_size,
            on_error=on_error,
            captions=captions,
        ):
            bar.update(report.total - bar.n)
    return report


def iter_ingest(
    items: Iterable[ImageItem],
    *,
    embed_model: DualEncoderEmbedding,
    vector_store: CLIPMilvusVectorStore,
    batch_size: int,
    on_error: OnError,
    captions: Captions,
) -> Iterator[IngestReport]:
    """Do the work of `ingest_images`, for callers that show progress in their own way.

    Yields:
        The one report, brought up to date, after each batch that is stored.
    """
    if on_error not in ("raise", "skip"):
        raise ValueError(f"on_error is {on_error!r}, expected 'raise' or 'skip'")
    if batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}, expected at least 1")
    check_pair(embed_model, vector_store)
    report = IngestReport()
    started = time.perf_counter()
    numbered = enumerate(items)
    while batch := list(islice(numbered, batch_size)):
        nodes = dict(_image_nodes(batch, captions, on_error, report))
        _store_batch(nodes, embed_model, vector_store, on_error, report)
        report.seconds = time.perf_counter() - started
        yield report


async def aingest_images(
    source: str | os.PathLike[str] | Iterable[ImageItem],
    *,
    embed_model: DualEncoderEmbedding,
    vector_store: CLIPMilvusVectorStore,
    batch_size: int = 64,
    on_error: OnError = "skip",
    captions: Captions = "sidecar",
    recursive: bool = True,
    show_progress: bool = False,
) -> IngestReport:
    """Do what `ingest_images` does, off the event loop."""
    return await asyncio.to_thread(
        ingest_images,
        source,
        embed_model=embed_model,
        vector_store=vector_store,
        batch_size=batch_size,
        on_error=on_error,
        captions=captions,
        recursive=recursive,
        show_progress=show_progress,
    )


def _image_nodes(
    batch: list[tuple[int, Any]], captions: Captions, on_error: OnError, report: IngestReport
) -> Iterator[tuple[int, BaseNode]]:
    """Yield the position and node of each item that can be read."""
    for index, item in batch:
        try:
            yield index, _image_node(item, captions)
        except ImageLoadError as err:
            if on_error == "raise":
                raise type(err)(err.reason, source=err.source, index=index) from err
            report.failed.append(ImageFailure(index, err.source, err.reason))


def _image_node(item: Any, captions: Captions) -> BaseNode:
    if isinstance(item, BaseNode) and modality_of(item) == "image":
        return with_content_hash(item)
    if isinstance(item, (str, os.PathLike)):
        return make_image_node(item, captions=captions)
    raise TypeError(
        f"{type(item).__name__} ({describe_source(item)}) is neither a path nor an image node; for "
        "pixels, make an ImageNode with an id"
    )


def _store_batch(
    nodes: dict[int, BaseNode],
    embed_model: DualEncoderEmbedding,
    vector_store: CLIPMilvusVectorStore,
    on_error: OnError,
    report: IngestReport,
) -> None:
    """Embed and store what the store lacks or has otherwise."""
    stored = vector_store.get_hashes([node.node_id for node in nodes.values()])
    known = dict(stored)
    changed: dict[int, BaseNode] = {}
    repeated: dict[int, BaseNode] = {}
    for index, node in nodes.items():
        row_hash = node_hash(node)
        if stored.get(node.node_id) == row_hash == known[node.node_id]:
            report.unchanged += 1
        elif known.get(node.node_id) == row_hash:
            repeated[index] = node
        elif reason := _refusal(node, on_error):
            report.failed.append(ImageFailure(index, describe_source(node), reason))
        else:
            changed[index] = node
            known[node.node_id] = row_hash
    embedded, failures = _embed(changed, embed_model, on_error)
    report.failed += failures
    vector_store.add(embedded)
    for node in embedded:
        if node.node_id in stored:
            report.replaced += 1
        else:
            report.added += 1
            stored[node.node_id] = ""
    # What came twice in this batch shares the fate of its first.
    reasons = {nodes[failure.index].node_id: failure.reason for failure in failures}
    for index, node in repeated.items():
        if node.node_id in reasons:
            reason = reasons[node.node_id]
            report.failed.append(ImageFailure(index, describe_source(node), reason))
        else:
            report.unchanged += 1


def _refusal(node: BaseNode, on_error: OnError) -> str:
    """Say why Milvus could not store a node; empty if it could."""
    try:
        check_node(node)
    except (TypeError, ValueError) as err:
        if on_error == "raise":
            raise
        return str(err)
    return ""


def _embed(
    nodes: dict[int, BaseNode],
    embed_model: DualEncoderEmbedding,
    on_error: OnError,
) -> tuple[list[BaseNode], list[ImageFailure]]:
    """Return copies of the nodes with their embeddings, and the nodes whose image fails."""
    positions = list(nodes)
    try:
        result = embed_model.embed_images(list(nodes.values()), on_error=on_error)
    except ImageLoadError as err:
        raise type(err)(err.reason, source=err.source, index=positions[err.index or 0]) from err
    failures = [
        ImageFailure(positions[failure.index], failure.source, failure.reason)
        for failure in result.failures
    ]
    embedded = [
        nodes[positions[position]].model_copy(update={"embedding": row})
        for position, row in zip(result.kept, result.embeddings.tolist(), strict=True)
    ]
    return embedded, failures
