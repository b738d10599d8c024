"""A stream of images -> the store, with a report."""

from __future__ import annotations

import contextvars
import os
import threading
import time
from bisect import insort
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence, Sized
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, Literal, TypeAlias

from fsspec import AbstractFileSystem
from llama_index.core.schema import BaseNode, ImageNode
from tqdm.auto import tqdm

from .background import write_in_own_thread
from .dual_encoder import DualEncoderEmbedding, ImageEmbeddings
from .errors import ImageLoadError, IngestInterrupted, StoreError
from .filesystems import is_file
from .images import ImageFailure, OnError
from .interruption import stop_on_interrupt
from .metadata import checked_metadata
from .nodes import (
    OF_FILE,
    Captions,
    ImageItem,
    copy_node,
    list_images,
    make_id,
    make_image_node,
    make_remote_node,
    modified_date,
    node_text,
    set_caption,
    with_content_hash,
    with_pixels,
    without_pixels,
)
from .notes import exclude_from_models
from .prefetch import batched, prefetch
from .provenance import UNKNOWN, Provenance
from .rows import check_node, modality_of, node_hash, node_to_row
from .sidecars import check_caption
from .sources import describe_source, fetched, is_url
from .store import CLIPMilvusVectorStore, check_pair

# Threads that read and hash files: enough to keep a disk or a network drive busy.
READERS = 4

# Seconds. FAT, the coarsest of file systems, tells times two seconds apart.
_SETTLED_AFTER = 2.0

_CHANGED = "changed while it was being read; index it again"

OldMetadata: TypeAlias = Literal["keep", "replace"]
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
        captions_skipped: Images that were used without the text beside them, because it cannot be a
            caption, each with its position, name and reason.
        seconds: How long it took, waiting for a server's index included.
    """

    added: int = 0
    unchanged: int = 0
    replaced: int = 0
    failed: list[ImageFailure] = field(default_factory=list)
    captions_skipped: list[ImageFailure] = field(default_factory=list)
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
        return "\n".join([*lines, *self._details()])

    def _details(self) -> list[str]:
        lines = [f"  failed: {failure}" for failure in self.failed]
        if self.captions_skipped:
            count = len(self.captions_skipped)
            lines.append(f"  without the text beside them: {count}, as {self.captions_skipped[0]}")
        return lines


@dataclass(frozen=True)
class IngestOptions:
    """What `ingest_images` and `sync_images` are told about each image; see there."""

    batch_size: int = 64
    on_error: OnError = "skip"
    captions: Captions = "sidecar"
    namespace: str = ""
    metadata: OldMetadata = "keep"
    repair: bool = False

    def __post_init__(self) -> None:
        if self.on_error not in ("raise", "skip"):
            raise ValueError(f"on_error is {self.on_error!r}, expected 'raise' or 'skip'")
        if self.metadata not in ("keep", "replace"):
            raise ValueError(f"metadata is {self.metadata!r}, expected 'keep' or 'replace'")
        make_id("", self.namespace)  # Refuses what is not a namespace.


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
    namespace: str = "",
    metadata: OldMetadata = "keep",
    repair: bool = False,
    wait_for_index: bool = True,
) -> IngestReport:
    """Embed images and store them; run again, it embeds only what is new or has changed.

    An image whose content is as it was keeps its vector, whatever changes beside it.

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
        namespace: As in `load_image_nodes`; nodes keep their own ids.
        metadata: What becomes of metadata and captions that were stored with an image and are not
            in its file or node now, such as tags: ``"keep"`` them, or ``"replace"`` the whole row.
        repair: Embed again the images whose stored vectors nobody knows to be an image tower's, as
            those that another program, or LlamaIndex's own index, may have written.
        wait_for_index: Wait until a server has indexed what was written, if it is so much that
            searches would miss some of it until then; else that is said in the log.

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
    options = IngestOptions(batch_size, on_error, captions, namespace, metadata, repair)
    with stop_on_interrupt() as stop:
        return _ingest(
            source,
            embed_model=embed_model,
            vector_store=vector_store,
            options=options,
            recursive=recursive,
            show_progress=show_progress,
            fs=fs,
            wait_for_index=wait_for_index,
            stop=stop,
        )


def ingest_items(
    items: Iterable[ImageItem],
    *,
    embed_model: DualEncoderEmbedding,
    vector_store: CLIPMilvusVectorStore,
    options: IngestOptions,
    on_progress: Callable[[IngestReport], None],
    wait_for_index: bool,
    show_progress: bool,
    stop: threading.Event,
) -> IngestReport:
    """Do the work of `ingest_images`, for callers that show progress in their own way.

    Args:
        items: Paths or image nodes.
        embed_model: As in `ingest_images`.
        vector_store: As in `ingest_images`.
        options: As in `ingest_images`.
        on_progress: Called with the report so far whenever it has grown.
        wait_for_index: As in `ingest_images`.
        show_progress: Show a progress bar while waiting for the index.
        stop: Once it is set, what is embedded is stored, and nothing more is read.

    Raises:
        IngestInterrupted: If it was stopped.
    """
    report = IngestReport()
    ingest = Ingest(embed_model, vector_store, options, on_progress, stop, report)
    with settled(vector_store, wait=wait_for_index, show_progress=show_progress, stop=stop):
        ingest.run(items)
    report.seconds = time.perf_counter() - ingest.started
    if stop.is_set():
        raise IngestInterrupted(report)
    return report


@contextmanager
def settled(
    vector_store: CLIPMilvusVectorStore, *, wait: bool, show_progress: bool, stop: threading.Event
) -> Iterator[None]:
    """Have what was written inside indexed on a server, also where the run has failed."""
    try:
        yield
    except StoreError:
        raise  # The server would not flush, either.
    except Exception:
        vector_store.settle(wait=False)
        raise
    vector_store.settle(wait=wait and not stop.is_set(), show_progress=show_progress, stop=stop)


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
    namespace: str = "",
    metadata: OldMetadata = "keep",
    repair: bool = False,
    wait_for_index: bool = True,
) -> IngestReport:
    """Do what `ingest_images` does, off the event loop.

    Cancelled, it stops as by Ctrl-C, and has stopped when the cancel returns.
    """
    options = IngestOptions(batch_size, on_error, captions, namespace, metadata, repair)
    stop = threading.Event()
    return await write_in_own_thread(
        lambda: _ingest(
            source,
            embed_model=embed_model,
            vector_store=vector_store,
            options=options,
            recursive=recursive,
            show_progress=show_progress,
            fs=fs,
            wait_for_index=wait_for_index,
            stop=stop,
        ),
        stop=stop.set,
    )


def _ingest(
    source: str | os.PathLike[str] | Iterable[ImageItem],
    *,
    embed_model: DualEncoderEmbedding,
    vector_store: CLIPMilvusVectorStore,
    options: IngestOptions,
    recursive: bool,
    show_progress: bool,
    fs: AbstractFileSystem | None,
    wait_for_index: bool,
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
            options=options,
            on_progress=lambda report: bar.update(report.total - bar.n),
            wait_for_index=wait_for_index,
            show_progress=show_progress,
            stop=stop,
        )


@dataclass
class Read:
    """An item as a reading thread leaves it.

    Attributes:
        index: Its position among the items.
        source: What it is, for a person.
        node: Its node; ``None`` if there is nothing to do.
        row_hash: The hash of the row that it would have.
        state: The file's, before it was read.
        is_given: Whether the item is a node, rather than the name of a file.
        error: Why there is no node, or it cannot be stored.
    """

    index: int
    source: str
    node: BaseNode | None = None
    row_hash: str = ""
    state: FileState | None = None
    is_given: bool = False
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
        provenance: Which tower made its embedding.
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
    provenance: Provenance = "image"
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
        options: IngestOptions,
        on_progress: Callable[[IngestReport], None],
        stop: threading.Event,
        report: IngestReport,
    ) -> None:
        check_pair(embed_model, vector_store)
        vector_store.reload_passport()
        self.embed_model = embed_model
        self.vector_store = vector_store
        self.options = options
        self.batch_size = options.batch_size
        self.on_error = options.on_error
        captions = options.captions
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
        # What was drawn last of an id, and is on its way; since the store was last asked, the hash
        # of what is stored by an id, the node where that differs, where its vector is from, and why
        # what failed did.
        self.on_its_way: dict[str, Drawn] = {}
        self.stored: dict[str, str] = {}
        self.old: dict[str, BaseNode] = {}
        self.provenance: dict[str, Provenance] = {}
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
                    self._look_up(found)
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
        is_given = isinstance(item, BaseNode)
        try:
            state = _state_of(item)
            node = _dated(self._image_node(item), state)
        except Exception as err:
            return Read(index, source, error=err)
        try:
            if is_given:  # As it will be read back, to be compared with what is stored.
                metadata = checked_metadata(node.metadata)
                node = node.model_copy(update={"metadata": metadata})
            return Read(index, source, node, node_hash(node), state, is_given)
        except (TypeError, ValueError) as err:
            return Read(index, source, node, error=err)

    def _image_node(self, item: Any) -> BaseNode:
        allow_urls = self.embed_model.allow_urls
        options: dict[str, Any] = {
            "captions": self.captions,
            "image_formats": self.embed_model.image_formats,
            "namespace": self.options.namespace,
        }
        if isinstance(item, BaseNode) and modality_of(item) == "image":
            return with_content_hash(item, allow_urls=allow_urls)
        if is_file(item) or is_url(item):
            # Held until it is embedded: what is asked for again may be another picture.
            content: Any = fetched(item, allow_urls)
            return with_pixels(make_remote_node(item, content, **options), content)
        if isinstance(item, (str, os.PathLike)):
            return make_image_node(item, **options)
        raise TypeError(
            f"{type(item).__name__} ({describe_source(item)}) is neither a path nor an image node; "
            "for pixels, make an ImageNode with an id"
        )

    def _readable(self, batch: Iterable[Read]) -> Iterator[tuple[Read, BaseNode]]:
        """Yield what has a node, up to the first error that is to be raised; note the rest."""
        for one in batch:
            if one.node is not None and one.error is None:
                if problem := getattr(one.node, "caption_problem", ""):
                    failure = ImageFailure(one.index, one.source, problem)
                    self.report.captions_skipped.append(failure)
                yield one, one.node
            elif one.error is None:
                self._note("unchanged", one.index, one.source)
            elif isinstance(one.error, ImageLoadError) and self.on_error == "raise":
                self._fail(one.error, one.index)
                return
            elif isinstance(one.error, ImageLoadError):
                self._note("failed", one.index, one.error.source, one.error.reason)
            elif one.node is not None and self.on_error == "skip":
                self._note("failed", one.index, one.source, str(one.error))
            else:
                self.error = one.error
                return

    def _look_up(self, found: Sequence[tuple[Read, BaseNode]]) -> None:
        """Find the hash of each node that is stored, and where it differs, what is stored."""
        hashes = {node.node_id: read.row_hash for read, node in found}
        self.stored = self.vector_store.get_hashes(list(hashes))
        self._look_up_old([id_ for id_, one in self.stored.items() if one != hashes[id_]])

    def _look_up_old(self, ids: Sequence[str]) -> None:
        """Read the nodes of these ids as they are stored, and the provenance of their vectors."""
        asked = list(self.stored) if self.options.repair else ids
        self.provenance = self.vector_store.get_provenance(asked) if asked else {}
        self.old = {node.node_id: node for node in self.vector_store.get_nodes(ids)} if ids else {}

    def _old_of(self, node: BaseNode) -> BaseNode | None:
        """Return what is stored of a node, where that is not the same."""
        return self.old.get(node.node_id)

    def _needs_repair(self, node: BaseNode) -> bool:
        """Whether its vector is to be made again, because nobody knows which tower made it."""
        return self.options.repair and self.provenance.get(node.node_id) == UNKNOWN

    def _is_current(self, node: BaseNode, row_hash: str) -> bool:
        """Whether a node is stored as it is."""
        return self.stored.get(node.node_id) == row_hash and not self._needs_repair(node)

    def _draw(self, read: Read, node: BaseNode) -> Drawn | None:
        """Decide what is to be done with a node; return it if it is to be embedded."""
        old, row_hash = self._old_of(node), read.row_hash
        if old is not None and self.options.metadata == "keep":
            node = kept(old, node) if read.is_given else renewed(old, node)
            row_hash = node_hash(node)
        before = self.on_its_way.get(node.node_id)
        reason = self.reasons.get((node.node_id, row_hash), "")
        if before and before.row_hash == row_hash:
            before.repeats.append(read)
        elif not before and (reason or self._is_current(node, row_hash)):
            self._repeat([read], reason)
        elif refusal := refusal_of(node, self.on_error):
            self._note("failed", read.index, read.source, refusal)
        else:
            has_row = node.node_id in self.stored
            drawn = Drawn(read.index, node, row_hash, read.state, has_row, before)
            self.on_its_way[node.node_id] = drawn
            if before or old is None or not self._has_vector(old, node):
                self.drawn.append(drawn)
                return drawn
            self._reuse(drawn, old)
        return None

    def _has_vector(self, old: BaseNode, node: BaseNode) -> bool:
        """Whether what is stored has the vector of a node's image."""
        content = node.metadata.get("content_hash")
        is_same = content is not None and old.metadata.get("content_hash") == content
        return is_same and old.embedding is not None and not self._needs_repair(node)

    def _reuse(self, drawn: Drawn, old: BaseNode) -> None:
        """Have a node stored with the vector of what is stored."""
        drawn.provenance = self.provenance.get(old.node_id, UNKNOWN)
        update = {"embedding": old.embedding}
        drawn.node = without_pixels(drawn.node).model_copy(update=update)
        self.embedded.append(drawn)
        if len(self.embedded) >= self.batch_size:
            self._write()

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
        to_store = [drawn for drawn in embedded if drawn.index not in changed]
        dim = self.vector_store.dim or 0
        self.vector_store.write_rows(
            [node_to_row(drawn.node, dim, provenance=drawn.provenance) for drawn in to_store]
        )
        # After it, so that an image is there twice for a moment rather than not at all.
        if moved := [drawn.moved_from for drawn in to_store if drawn.moved_from]:
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


def renewed(old: BaseNode, new: BaseNode) -> BaseNode:
    """Return a stored image with where, when and what its file is now; it keeps all else.

    Args:
        old: What is stored.
        new: The node of the file, as `make_image_node` makes it.
    """
    if not isinstance(new, ImageNode):
        return kept(old, new)
    update: dict[str, Any] = {"id_": new.node_id, "metadata": _merged(old, new), "embedding": None}
    node = old.model_copy(update=update)
    if isinstance(node, ImageNode):
        node.image_path, node.image_url = new.image_path, new.image_url
        node.image_mimetype, node.image = new.image_mimetype, new.image
    elif new.image_path and (resource := getattr(node, "image_resource", None)):
        place = {"path": Path(new.image_path), "mimetype": new.image_mimetype}
        node = node.model_copy(update={"image_resource": resource.model_copy(update=place)})
    else:
        return kept(old, new)
    if (caption := _caption_now(old, new)) != node_text(old):
        set_caption(node, caption)
    return node


def kept(old: BaseNode, new: BaseNode) -> BaseNode:
    """Return a node with the metadata and the caption that were stored with it and it lacks now."""
    node = copy_node(new)
    node.metadata = _merged(old, new)
    added = [key for key in node.metadata if key not in new.metadata]
    hidden = (old.excluded_embed_metadata_keys, old.excluded_llm_metadata_keys)
    exclude_from_models(node, [key for key in added if all(key in keys for keys in hidden)])
    if (caption := _caption_now(old, new)) != node_text(new):
        set_caption(node, caption)
    return node


def _caption_now(old: BaseNode, new: BaseNode) -> str:
    """Return a node's caption, or that which was stored with it, if it is still of this picture."""
    content, was_stored = old.metadata.get("content_hash"), node_text(old)
    is_same_picture = not content or content == new.metadata.get("content_hash")
    # What was stored may be the label file that is left out now.
    is_refused = getattr(new, "caption_problem", "") and check_caption(was_stored, "").problem
    return node_text(new) or (was_stored if is_same_picture and not is_refused else "")


def _merged(old: BaseNode, new: BaseNode) -> dict[str, Any]:
    # What follows from the file is the new one's, also where that lacks it.
    of_file = {*OF_FILE, "content_hash"}
    own = {key: value for key, value in old.metadata.items() if key not in of_file}
    return {**own, **new.metadata}


def refusal_of(node: BaseNode, on_error: OnError) -> str:
    """Say why Milvus could not store a node; empty if it could."""
    try:
        check_node(node)
    except (TypeError, ValueError) as err:
        if on_error == "raise":
            raise
        return str(err)
    return ""
