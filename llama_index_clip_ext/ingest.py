"""A stream of images -> the store, with a report."""

from __future__ import annotations

import asyncio
import contextvars
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sized
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llama_index.core.schema import BaseNode
from tqdm.auto import tqdm

from .dual_encoder import DualEncoderEmbedding, ImageEmbeddings
from .errors import ImageLoadError
from .images import ImageFailure, OnError
from .nodes import Captions, ImageItem, list_images, make_image_node, with_content_hash
from .prefetch import batched, prefetch
from .rows import check_node, modality_of, node_hash
from .sources import describe_source
from .store import CLIPMilvusVectorStore, check_pair

# Threads that read and hash files: enough to keep a disk or a network drive busy.
READERS = 4


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
        batch_size: Images that are looked up, and stored, together. What is embedded together is
            the model's ``embed_batch_size``.
        on_error: Report an image that cannot be used and go on, or raise.
        captions: As in `load_image_nodes`; a callable runs in a thread of its own, once at a time.
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
    with tqdm(desc="Ingesting images", total=total, unit="img", disable=not show_progress) as bar:
        return ingest_items(
            items,
            embed_model=embed_model,
            vector_store=vector_store,
            batch_size=batch_size,
            on_error=on_error,
            captions=captions,
            on_progress=lambda report: bar.update(report.total - bar.n),
        )


def ingest_items(
    items: Iterable[ImageItem],
    *,
    embed_model: DualEncoderEmbedding,
    vector_store: CLIPMilvusVectorStore,
    batch_size: int,
    on_error: OnError,
    captions: Captions,
    on_progress: Callable[[IngestReport], None],
) -> IngestReport:
    """Do the work of `ingest_images`, for callers that show progress in their own way.

    Args:
        items: Paths or image nodes.
        embed_model: As in `ingest_images`.
        vector_store: As in `ingest_images`.
        batch_size: As in `ingest_images`.
        on_error: As in `ingest_images`.
        captions: As in `load_image_nodes`.
        on_progress: Called with the report so far whenever it has grown.
    """
    if on_error not in ("raise", "skip"):
        raise ValueError(f"on_error is {on_error!r}, expected 'raise' or 'skip'")
    check_pair(embed_model, vector_store)
    if callable(captions):
        captions = _one_at_a_time(captions)
    ingest = _Ingest(embed_model, vector_store, batch_size, on_error, captions, on_progress)
    return ingest.run(items)


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


@dataclass
class _Drawn:
    """An image on its way into the store.

    Attributes:
        index: Its position among the items.
        node: The node, later with its embedding.
        row_hash: What the store will know it by.
        has_row: Whether the store has a row of its id, now or once it has arrived.
        before: Another of its id, which was on its way when it was drawn.
        repeats: Items that came again while it was on its way; they share its fate.
    """

    index: int
    node: BaseNode
    row_hash: str
    has_row: bool
    before: _Drawn | None
    repeats: list[tuple[int, BaseNode]] = field(default_factory=list)


class _Ingest:
    """One run: images are read, decoded, embedded and stored, all at the same time.

    The thread that calls `run` draws the items, asks the store what it has, and computes; others
    read ahead of it, and one writes behind it. What lies between them is a few batches at most.
    """

    def __init__(
        self,
        embed_model: DualEncoderEmbedding,
        vector_store: CLIPMilvusVectorStore,
        batch_size: int,
        on_error: OnError,
        captions: Captions,
        on_progress: Callable[[IngestReport], None],
    ) -> None:
        self.embed_model = embed_model
        self.vector_store = vector_store
        self.batch_size = batch_size
        self.on_error = on_error
        self.captions = captions
        self.on_progress = on_progress
        self.report = IngestReport()
        self.started = time.perf_counter()
        self.error: Exception | None = None
        # Drawn and not embedded, in order; embedded and not stored; what is being stored.
        self.drawn: deque[_Drawn] = deque()
        self.n_taken = 0
        self.embedded: list[_Drawn] = []
        self.writing: tuple[list[_Drawn], Future[list[str]]] | None = None
        # What was drawn last of an id, and is on its way; since the store was last asked, what is
        # stored by an id, and why what failed did.
        self.on_its_way: dict[str, _Drawn] = {}
        self.stored: dict[str, str] = {}
        self.reasons: dict[tuple[str, str], str] = {}

    def run(self, items: Iterable[ImageItem]) -> IngestReport:
        """Do it all; an error is raised once everything that came before it is stored."""
        with (
            ThreadPoolExecutor(READERS, "clip-reader") as readers,
            ThreadPoolExecutor(1, "clip-writer") as writer,
        ):
            changed = self._changed(items, readers)
            nodes = (drawn.node for drawn in changed)
            stream = self.embed_model.stream_images(nodes, on_error=self.on_error)
            # Closed in any case, so that what was read ahead is dropped, not waited for.
            with closing(changed), closing(nodes), closing(stream):
                try:
                    for batch in stream:
                        self._take(batch, writer)
                except ImageLoadError as err:
                    index = self.drawn[(err.index or 0) - self.n_taken].index
                    self.error = type(err)(err.reason, source=err.source, index=index)
                    self.error.__cause__ = err
            self._write(writer)
            self._finish_writing()
        self.report.failed.sort(key=lambda failure: failure.index)
        self._tell()
        if self.error:
            raise self.error
        return self.report

    def _changed(
        self, items: Iterable[ImageItem], readers: Executor
    ) -> Generator[_Drawn, None, None]:
        """Yield what the store lacks or has otherwise; what goes wrong ends it."""
        read = prefetch(readers, self._read, enumerate(items), ahead=self.batch_size)
        try:
            with closing(read):
                for batch in batched(read, self.batch_size):
                    nodes = list(self._readable(batch))
                    self.stored.clear()
                    self.reasons.clear()
                    self.stored |= self.vector_store.get_hashes([one.node_id for _, one in nodes])
                    for index, node in nodes:
                        if drawn := self._draw(index, node):
                            yield drawn
                    self._tell()
                    if self.error:
                        return
        except Exception as err:
            self.error = err

    def _read(self, numbered: tuple[int, Any]) -> tuple[int, BaseNode | Exception]:
        index, item = numbered
        try:
            return index, _image_node(item, self.captions)
        except Exception as err:
            return index, err

    def _readable(
        self, batch: Iterable[tuple[int, BaseNode | Exception]]
    ) -> Iterator[tuple[int, BaseNode]]:
        """Yield the nodes up to the first error that is to be raised; note the others."""
        for index, node in batch:
            if not isinstance(node, Exception):
                yield index, node
            elif not isinstance(node, ImageLoadError):
                self.error = node
                return
            elif self.on_error == "raise":
                self.error = type(node)(node.reason, source=node.source, index=index)
                self.error.__cause__ = node
                return
            else:
                self.report.failed.append(ImageFailure(index, node.source, node.reason))

    def _draw(self, index: int, node: BaseNode) -> _Drawn | None:
        """Decide what is to be done with a node; return it if it is to be embedded."""
        row_hash = node_hash(node)
        before = self.on_its_way.get(node.node_id)
        reason = self.reasons.get((node.node_id, row_hash), "")
        if before and before.row_hash == row_hash:
            before.repeats.append((index, node))
        elif not before and (reason or self.stored.get(node.node_id) == row_hash):
            self._repeat([(index, node)], reason)
        elif refusal := _refusal(node, self.on_error):
            self.report.failed.append(ImageFailure(index, describe_source(node), refusal))
        else:
            drawn = _Drawn(index, node, row_hash, node.node_id in self.stored, before)
            self.on_its_way[node.node_id] = drawn
            self.drawn.append(drawn)
            return drawn
        return None

    def _take(self, batch: ImageEmbeddings, writer: Executor) -> None:
        """Take the embeddings of what was drawn first, and the failures among it."""
        rows = dict(zip(batch.kept, batch.embeddings.tolist(), strict=True))
        reasons = {failure.index: failure.reason for failure in batch.failures}
        for position in range(self.n_taken, self.n_taken + len(rows) + len(reasons)):
            drawn = self.drawn.popleft()
            if position in rows:
                drawn.node = drawn.node.model_copy(update={"embedding": rows[position]})
                self.embedded.append(drawn)
            else:
                self._settle(drawn, reasons[position])
            if len(self.embedded) == self.batch_size:
                self._write(writer)
        self.n_taken += len(rows) + len(reasons)

    def _write(self, writer: Executor) -> None:
        """Hand over what is embedded, once what was handed over before is stored."""
        self._finish_writing()
        if self.embedded:
            nodes = [drawn.node for drawn in self.embedded]
            self.writing = (self.embedded, writer.submit(self.vector_store.add, nodes))
            self.embedded = []

    def _finish_writing(self) -> None:
        if self.writing:
            written, future = self.writing
            self.writing = None
            future.result()
            for drawn in written:
                self._settle(drawn)
            self._tell()

    def _settle(self, drawn: _Drawn, reason: str = "") -> None:
        """Count what is stored, or has failed for a reason, and what came again meanwhile."""
        node_id = drawn.node.node_id
        has_row = drawn.has_row or (drawn.before is not None and drawn.before.has_row)
        if reason:
            failure = ImageFailure(drawn.index, describe_source(drawn.node), reason)
            self.report.failed.append(failure)
            self.reasons[node_id, drawn.row_hash] = reason
        else:
            self.report.replaced += has_row
            self.report.added += not has_row
            self.stored[node_id] = drawn.row_hash
        # A failure leaves the row that there was.
        drawn.has_row = has_row or not reason
        drawn.before = None
        self._repeat(drawn.repeats, reason)
        # Unless another node of this id came after it.
        if self.on_its_way.get(node_id) is drawn:
            del self.on_its_way[node_id]

    def _repeat(self, repeats: list[tuple[int, BaseNode]], reason: str) -> None:
        for index, node in repeats:
            if reason:
                self.report.failed.append(ImageFailure(index, describe_source(node), reason))
            else:
                self.report.unchanged += 1

    def _tell(self) -> None:
        self.report.seconds = time.perf_counter() - self.started
        self.on_progress(self.report)


def _one_at_a_time(captions: Callable[[Path], str | None]) -> Callable[[Path], str | None]:
    """Keep a caller's function from running in several threads, for which it may not be made.

    It runs in the caller's context, so that its traces are kept.
    """
    lock = threading.Lock()
    context = contextvars.copy_context()

    def caption(path: Path) -> str | None:
        try:
            with lock:
                return context.run(captions, path)
        except Exception as err:
            reason = f"captions raised {type(err).__name__}: {err}"
            raise ImageLoadError(reason, source=str(path)) from err

    return caption


def _image_node(item: Any, captions: Captions) -> BaseNode:
    if isinstance(item, BaseNode) and modality_of(item) == "image":
        return with_content_hash(item)
    if isinstance(item, (str, os.PathLike)):
        return make_image_node(item, captions=captions)
    raise TypeError(
        f"{type(item).__name__} ({describe_source(item)}) is neither a path nor an image node; for "
        "pixels, make an ImageNode with an id"
    )


def _refusal(node: BaseNode, on_error: OnError) -> str:
    """Say why Milvus could not store a node; empty if it could."""
    try:
        check_node(node)
    except (TypeError, ValueError) as err:
        if on_error == "raise":
            raise
        return str(err)
    return ""
