"""A stream of images -> the store, with a report."""

from __future__ import annotations

import asyncio
import contextvars
import os
import threading
import time
from bisect import insort
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence, Sized
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, Literal, TypeAlias

from fsspec import AbstractFileSystem
from llama_index.core.schema import BaseNode
from tqdm.auto import tqdm

from .dual_encoder import DualEncoderEmbedding, ImageEmbeddings
from .errors import ImageLoadError, IngestInterrupted
from .filesystems import is_file
from .images import ImageFailure, OnError
from .interruption import stop_on_interrupt
from .nodes import (
    Captions,
    ImageItem,
    list_images,
    make_image_node,
    make_remote_node,
    modified_date,
    with_content_hash,
    with_pixels,
    without_pixels,
)
from .prefetch import batched, prefetch
from .rows import check_node, modality_of, node_hash
from .sources import describe_source, fetched, is_url
from .store import CLIPMilvusVectorStore, check_pair

# Threads that read and hash files: enough to keep a disk or a network drive busy.
READERS = 4

# Seconds. FAT, the coarsest of file systems, tells times two seconds apart.
_SETTLED_AFTER = 2.0

_CHANGED = "changed while it was being read; index it again"

Status: TypeAlias = Literal["added", "unchanged", "replaced", "moved", "removed", "failed"]
# Size in bytes, time of change in nanoseconds, and inode.
FileState: TypeAlias = tuple[int, int, int]


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
        """Images added or replaced per second, decoding included."""
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
    fs: AbstractFileSystem | None = None,
) -> IngestReport:
    """Embed images and store them; run again, it embeds only what is new or has changed.

    Args:
        source: A folder, a glob pattern, one file, or any iterable of paths, fsspec files, image
            nodes, and URLs that the model's ``allow_urls`` has (stored as they are, with their
            queries); it is read as it is needed.
        embed_model: The model that the store was made for.
        vector_store: The store, as `create_vector_store` returns it.
        batch_size: Images that are looked up, and stored, together. What is embedded together is
            the model's ``embed_batch_size``. What is fetched is held in memory until it is
            embedded: some two of these batches, and three of the model's.
        on_error: Report an image that cannot be used and go on, or raise.
        captions: As in `load_image_nodes`; a callable runs in a thread of its own, once at a time.
        recursive: Whether to look into the folder's folders.
        show_progress: Show a progress bar.
        fs: The fsspec file system that the paths are of, such as ``s3fs.S3FileSystem()``.

    Returns:
        The report. Every image it counts as added or replaced is in the store.

    Raises:
        FileNotFoundError: If the folder or pattern matches nothing that exists.
        ImageLoadError: If an image fails and ``on_error`` is ``"raise"``; what was stored before
            stays.
        EmbeddingSpaceMismatchError: If the store holds vectors of another model.
        IngestInterrupted: If Ctrl-C was pressed (once; again, it stops at once): what was embedded
            by then is stored, and the report says what was done.
        TypeError: If an item is neither a path nor an image node.
    """
    with stop_on_interrupt() as stop:
        return _ingest(
            source,
            embed_model=embed_model,
            vector_store=vector_store,
            batch_size=batch_size,
            on_error=on_error,
            captions=captions,
            recursive=recursive,
            show_progress=show_progress,
            fs=fs,
            stop=stop,
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
    stop: threading.Event,
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
        stop: Once it is set, what is embedded is stored, and nothing more is read.

    Raises:
        IngestInterrupted: If it was stopped.
    """
    if on_error not in ("raise", "skip"):
        raise ValueError(f"on_error is {on_error!r}, expected 'raise' or 'skip'")
    report = IngestReport()
    Ingest(
        embed_model, vector_store, batch_size, on_error, captions, on_progress, stop, report
    ).run(items)
    if stop.is_set():
        raise IngestInterrupted(report)
    return report


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
    fs: AbstractFileSystem | None = None,
) -> IngestReport:
    """Do what `ingest_images` does, off the event loop; cancelled, it stops as by Ctrl-C."""
    stop = threading.Event()
    try:
        return await asyncio.to_thread(
            _ingest,
            source,
            embed_model=embed_model,
            vector_store=vector_store,
            batch_size=batch_size,
            on_error=on_error,
            captions=captions,
            recursive=recursive,
            show_progress=show_progress,
            fs=fs,
            stop=stop,
        )
    finally:
        stop.set()


def _ingest(
    source: str | os.PathLike[str] | Iterable[ImageItem],
    *,
    embed_model: DualEncoderEmbedding,
    vector_store: CLIPMilvusVectorStore,
    batch_size: int,
    on_error: OnError,
    captions: Captions,
    recursive: bool,
    show_progress: bool,
    fs: AbstractFileSystem | None,
    stop: threading.Event,
) -> IngestReport:
    check_pair(embed_model, vector_store)
    items: Any = source
    if isinstance(source, (str, os.PathLike)):
        # Listed first, so that a folder that changes is not read twice and the bar has an end.
        formats = embed_model.image_formats
        source = items = list(
            list_images(source, recursive=recursive, fs=fs, image_formats=formats)
        )
    elif fs is not None:
        items = list_images(source, fs=fs)
    total = len(source) if isinstance(source, Sized) else None
    with tqdm(desc="Ingesting images", total=total, unit="img", disable=not show_progress) as bar:
        return ingest_items(
            items,
            embed_model=embed_model,
            vector_store=vector_store,
            batch_size=batch_size,
            on_error=on_error,
            captions=captions,
            on_progress=lambda report: bar.update(report.total - bar.n),
            stop=stop,
        )


@dataclass
class Read:
    """An item as a reading thread leaves it.

    Attributes:
        index: Its position among the items.
        source: What it is, for a person.
        node: Its node; ``None`` if there is nothing to do.
        state: The file's, before it was read.
        error: Why there is no node.
    """

    index: int
    source: str
    node: BaseNode | None = None
    state: FileState | None = None
    error: Exception | None = None


@dataclass
class Drawn:
    """An image on its way into the store.

    Attributes:
        index: Its position among the items.
        node: The node, later with its embedding.
        row_hash: What the store will know it by.
        state: The file's, before it was read.
        has_row: Whether the store has a row of its id, now or once it has arrived.
        before: Another of its id, which was on its way when it was drawn.
        status: What becomes of it, where that does not follow from ``has_row``.
        moved_from: Id of the row that it takes the place of.
        repeats: Items that came again while it was on its way; they share its fate.
    """

    index: int
    node: BaseNode
    row_hash: str
    state: FileState | None = None
    has_row: bool = False
    before: Drawn | None = None
    status: Status | None = None
    moved_from: str | None = None
    repeats: list[Read] = field(default_factory=list)


class Ingest:
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
        stop: threading.Event,
        report: IngestReport,
    ) -> None:
        check_pair(embed_model, vector_store)
        vector_store.reload_passport()
        self.embed_model = embed_model
        self.vector_store = vector_store
        self.batch_size = batch_size
        self.on_error = on_error
        self.captions = _one_at_a_time(captions) if callable(captions) else captions
        self.on_progress = on_progress
        self.stop = stop
        self.report = report
        self.started = time.perf_counter()
        self.error: Exception | None = None
        # Drawn and not embedded, in order; embedded and not stored; what is being stored.
        self.drawn: deque[Drawn] = deque()
        self.n_taken = 0
        self.embedded: list[Drawn] = []
        self.writing: tuple[list[Drawn], Future[set[int]]] | None = None
        self.writer = ThreadPoolExecutor(1, "clip-writer")
        # What was drawn last of an id, and is on its way; since the store was last asked, what is
        # stored by an id, and why what failed did.
        self.on_its_way: dict[str, Drawn] = {}
        self.stored: dict[str, str] = {}
        self.reasons: dict[tuple[str, str], str] = {}

    def run(self, items: Iterable[ImageItem]) -> None:
        """Do it all; an error is raised once everything that came before it is stored."""
        with ThreadPoolExecutor(READERS, "clip-reader") as readers, self.writer:
            changed = self._changed(items, readers)
            nodes = (drawn.node for drawn in changed)
            stream = self.embed_model.stream_images(nodes, on_error=self.on_error)
            # Closed in any case, so that what was read ahead is dropped, not waited for.
            with closing(changed), closing(nodes), closing(stream):
                try:
                    for batch in stream:
                        self._take(batch)
                        if self.stop.is_set():
                            break
                except ImageLoadError as err:
                    index = self.drawn[(err.index or 0) - self.n_taken].index
                    self._fail(err, index)
            self._write()
            self._finish_writing()
        self._tell()
        if self.error:
            raise self.error

    def _changed(
        self, items: Iterable[ImageItem], readers: Executor
    ) -> Generator[Drawn, None, None]:
        """Yield what the store lacks or has otherwise; what goes wrong ends it."""
        read = prefetch(readers, self._read, enumerate(items), ahead=self.batch_size)
        try:
            with closing(read):
                for batch in batched(read, self.batch_size):
                    found = list(self._readable(batch))
                    self.reasons.clear()
                    self.stored = self._look_up([node for _, node in found])
                    for one, node in found:
                        if drawn := self._draw(one, node):
                            yield drawn
                    self._tell()
                    if self.error or self.stop.is_set():
                        return
        except Exception as err:
            self.error = err

    def _read(self, numbered: tuple[int, Any]) -> Read:
        """Make the node of an item, its content hashed. Runs in a reader's thread."""
        index, item = numbered
        source = describe_source(item)
        try:
            state = _state_of(item)
            return Read(index, source, _dated(self._image_node(item), state), state)
        except Exception as err:
            return Read(index, source, error=err)

    def _image_node(self, item: Any) -> BaseNode:
        allow_urls, formats = self.embed_model.allow_urls, self.embed_model.image_formats
        if isinstance(item, BaseNode) and modality_of(item) == "image":
            return with_content_hash(item, allow_urls=allow_urls)
        if is_file(item) or is_url(item):
            # Held until it is embedded: what is asked for again may be another picture.
            content: Any = fetched(item, allow_urls)
            node = make_remote_node(item, content, captions=self.captions, image_formats=formats)
            return with_pixels(node, content)
        if isinstance(item, (str, os.PathLike)):
            return make_image_node(item, captions=self.captions, image_formats=formats)
        raise TypeError(
            f"{type(item).__name__} ({describe_source(item)}) is neither a path nor an image node; "
            "for pixels, make an ImageNode with an id"
        )

    def _readable(self, batch: Iterable[Read]) -> Iterator[tuple[Read, BaseNode]]:
        """Yield what has a node, up to the first error that is to be raised; note the rest."""
        for one in batch:
            if one.node is not None:
                yield one, one.node
            elif one.error is None:
                self._note("unchanged", one.index, one.source)
            elif not isinstance(one.error, ImageLoadError):
                self.error = one.error
                return
            elif self.on_error == "raise":
                self._fail(one.error, one.index)
                return
            else:
                self._note("failed", one.index, one.error.source, one.error.reason)

    def _look_up(self, nodes: Sequence[BaseNode]) -> dict[str, str]:
        """Return the hash of each node that is stored, by id."""
        return self.vector_store.get_hashes([node.node_id for node in nodes])

    def _draw(self, read: Read, node: BaseNode) -> Drawn | None:
        """Decide what is to be done with a node; return it if it is to be embedded."""
        row_hash = node_hash(node)
        before = self.on_its_way.get(node.node_id)
        reason = self.reasons.get((node.node_id, row_hash), "")
        if before and before.row_hash == row_hash:
            before.repeats.append(read)
        elif not before and (reason or self.stored.get(node.node_id) == row_hash):
            self._repeat([read], reason)
        elif refusal := refusal_of(node, self.on_error):
            self._note("failed", read.index, read.source, refusal)
        else:
            has_row = node.node_id in self.stored
            drawn = Drawn(read.index, node, row_hash, read.state, has_row, before)
            self.on_its_way[node.node_id] = drawn
            self.drawn.append(drawn)
            return drawn
        return None

    def _take(self, batch: ImageEmbeddings) -> None:
        """Take the embeddings of what was drawn first, and the failures among it."""
        rows = dict(zip(batch.kept, batch.embeddings.tolist(), strict=True))
        reasons = {failure.index: failure.reason for failure in batch.failures}
        for position in range(self.n_taken, self.n_taken + len(rows) + len(reasons)):
            drawn = self.drawn.popleft()
            if position in rows:
                node = without_pixels(drawn.node)
                drawn.node = node.model_copy(update={"embedding": rows[position]})
                self.embedded.append(drawn)
            else:
                self._settle(drawn, reasons[position])
            if len(self.embedded) >= self.batch_size:
                self._write()
        self.n_taken += len(rows) + len(reasons)

    def _write(self) -> None:
        """Hand over what is embedded, once what was handed over before is stored."""
        self._finish_writing()
        if self.embedded:
            self.writing = (self.embedded, self.writer.submit(self._store, self.embedded))
            self.embedded = []

    def _store(self, embedded: Sequence[Drawn]) -> set[int]:
        """Store what is still as it was read; return the positions of the rest.

        The hash is of one reading and the vector of another: a file that changed in between would
        be kept for ever with a vector of something else. Runs in the writer's thread.
        """
        changed = {
            drawn.index
            for drawn in embedded
            if drawn.state is not None and _state_of(drawn.node) != drawn.state
        }
        kept = [drawn for drawn in embedded if drawn.index not in changed]
        self.vector_store.add([drawn.node for drawn in kept])
        # After it, so that an image is there twice for a moment rather than not at all.
        if moved := [drawn.moved_from for drawn in kept if drawn.moved_from]:
            self.vector_store.delete_nodes(moved)
        return changed

    def _finish_writing(self) -> None:
        if self.writing:
            written, future = self.writing
            self.writing = None
            changed = future.result()
            for drawn in written:
                self._settle(drawn, _CHANGED if drawn.index in changed else "")
            self._tell()

    def _settle(self, drawn: Drawn, reason: str = "") -> None:
        """Count what is stored, or has failed for a reason, and what came again meanwhile."""
        node_id = drawn.node.node_id
        has_row = drawn.has_row or (drawn.before is not None and drawn.before.has_row)
        source = describe_source(drawn.node)
        if reason:
            self._note("failed", drawn.index, source, reason)
            self.reasons[node_id, drawn.row_hash] = reason
            if self.on_error == "raise":
                self._fail(ImageLoadError(reason, source=source), drawn.index)
        else:
            status = drawn.status or ("replaced" if has_row else "added")
            self._note(status, drawn.index, source)
            self.stored[node_id] = drawn.row_hash
        # A failure leaves the row that there was.
        drawn.has_row = has_row or not reason
        drawn.before = None
        self._repeat(drawn.repeats, reason)
        # Unless another node of this id came after it.
        if self.on_its_way.get(node_id) is drawn:
            del self.on_its_way[node_id]

    def _repeat(self, repeats: Sequence[Read], reason: str) -> None:
        for one in repeats:
            self._note("failed" if reason else "unchanged", one.index, one.source, reason)

    def _note(self, status: Status, index: int, source: str, reason: str = "") -> None:
        """Count what became of one image."""
        if status == "failed":
            insort(self.report.failed, ImageFailure(index, source, reason), key=_index_of)
        else:
            setattr(self.report, status, getattr(self.report, status) + 1)

    def _fail(self, error: ImageLoadError, index: int) -> None:
        """Let the first error be raised once all before it is stored."""
        if self.error is None:
            self.error = type(error)(error.reason, source=error.source, index=index)
            self.error.__cause__ = error

    def _tell(self) -> None:
        self.report.seconds = time.perf_counter() - self.started
        self.on_progress(self.report)


def _state_of(item: Any) -> FileState | None:
    """Return the state of the file that an item is read from; ``None`` if it is none."""
    path = item
    if isinstance(item, BaseNode):
        if getattr(item, "image", None):
            return None
        resource = getattr(item, "image_resource", None)
        path = getattr(item, "image_path", None) or getattr(resource, "path", None)
    if not isinstance(path, (str, os.PathLike)):
        return None
    try:
        state = os.stat(Path(path).expanduser())
    except (OSError, ValueError, RuntimeError):
        return None  # Said by who reads it.
    return state.st_size, state.st_mtime_ns, state.st_ino


def _dated(node: BaseNode, state: FileState | None) -> BaseNode:
    """Cut the date of a file that may change again without its date showing it.

    Such a date is that of no file, so that `sync_images` reads this one again.
    """
    if not state or time.time() - state[1] / 1e9 > _SETTLED_AFTER:
        return node
    date = modified_date(state[1])
    if not date or node.metadata.get("last_modified_date") != date:
        return node  # Not one of ours.
    seconds = datetime.fromisoformat(date).isoformat(timespec="seconds")
    return node.model_copy(update={"metadata": {**node.metadata, "last_modified_date": seconds}})


def _index_of(failure: ImageFailure) -> int:
    return failure.index


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


def refusal_of(node: BaseNode, on_error: OnError) -> str:
    """Say why Milvus could not store a node; empty if it could."""
    try:
        check_node(node)
    except (TypeError, ValueError) as err:
        if on_error == "raise":
            raise
        return str(err)
    return ""
