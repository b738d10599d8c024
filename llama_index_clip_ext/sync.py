"""A collection made equal to a folder of images."""

from __future__ import annotations

import hashlib
import json
import os
import stat
import threading
import unicodedata
from array import array
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any, TextIO
from urllib.parse import urlsplit

from filelock import FileLock, Timeout
from huggingface_hub import cached_assets_path
from llama_index.core.schema import BaseNode
from tqdm.auto import tqdm

from .background import write_in_own_thread
from .dual_encoder import DualEncoderEmbedding
from .errors import ImageLoadError, IngestInterrupted, SyncError, SyncRunningError
from .images import read_header
from .ingest import Drawn, Ingest, IngestOptions, IngestReport, Read, Status, settled
from .interruption import stop_on_interrupt
from .lite import lock_holder
from .nodes import (
    IMAGE_SUFFIXES,
    Captions,
    list_images,
    make_id,
    node_text,
    path_name,
)
from .provenance import UNKNOWN
from .scripts import is_unicode
from .sidecars import read_caption
from .sources import describe_source, error_detail
from .store import CLIPMilvusVectorStore, StoredFile, check_pair

_EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)
_NO_ROW = -2  # In place of a size; -1 is a row that has none.


@dataclass
class SyncReport(IngestReport):
    """What became of each image of a folder, and of what the collection had of it.

    Attributes:
        moved: Images that were found under another name, and keep their vectors.
        removed: Images whose files are gone, and whose rows therefore are.
        missing: Images whose files are gone, and whose rows are kept.
        dry_run: Whether this is only what would have been done.
    """

    moved: int = 0
    removed: int = 0
    missing: int = 0
    dry_run: bool = False

    @property
    def total(self) -> int:
        """Images of the folder that were looked at."""
        return super().total + self.moved

    def __str__(self) -> str:
        counts = ("added", "unchanged", "replaced", "moved", "removed")
        first = ", ".join(f"{getattr(self, name)} {name}" for name in counts)
        lines = [
            f"{'would be: ' if self.dry_run else ''}{first}, {len(self.failed)} failed "
            f"in {self.seconds:.1f} s",
            *self._details(),
        ]
        if self.missing:
            lines.append(
                f"  gone from the folder, and still found: {self.missing}; delete=True (--delete) "
                "removes them"
            )
        return "\n".join(lines)


def sync_images(
    folder: str | os.PathLike[str],
    *,
    embed_model: DualEncoderEmbedding,
    vector_store: CLIPMilvusVectorStore,
    delete: bool = False,
    dry_run: bool = False,
    checksum: bool = False,
    report_path: str | os.PathLike[str] | None = None,
    batch_size: int = 64,
    captions: Captions = "sidecar",
    recursive: bool = True,
    show_progress: bool = False,
    namespace: str = "",
    wait_for_index: bool = True,
) -> SyncReport:
    """Make what a collection holds of a folder equal to the folder, by as little work as it takes.

    New images are embedded, changed ones embedded again. A file counts as unchanged by its size and
    time of change, without being read; where these differ, its content decides. A renamed one keeps
    its vector. Metadata that were added since are kept in any case. Rows of other folders, texts,
    and rows whose files exist but are not listed (hidden ones, or those of subfolders without
    ``recursive``) are left alone. Interrupted at any moment, the same call goes on.

    Args:
        folder: The folder. Links to files are followed, and an image goes by where they lead, so
            that it stays when its link is removed; links to folders are not followed.
        embed_model: The model that the store was made for.
        vector_store: The store, as `create_vector_store` returns it.
        delete: Remove the rows of files that are gone. Not one is removed if the folder is missing,
            cannot be read, or holds no image that can be used.
        dry_run: Only report what would be done. What has changed is read, nothing is embedded or
            written, so that a picture that is damaged behind its header does not show yet.
        checksum: Read every file, for changes that leave size and time as they were; and embed
            again the images whose stored vectors nobody knows to be an image tower's.
        report_path: Where to write a line of JSON per image as it is settled: ``status`` (``ok``
            for one that was added, ``unchanged``, ``replaced``, ``moved``, ``removed``, ``missing``
            or ``failed``), ``path``, and where there is one, ``reason`` or ``moved_from``; of a dry
            run, ``dry_run``, too. What was there is replaced.
        batch_size: As in `ingest_images`.
        captions: As in `load_image_nodes`. A text that has appeared beside a picture, or is another
            one, replaces the caption; one that is gone, or an unchanged picture without one, leaves
            it. A callable is asked about pictures that are new or have changed.
        recursive: Whether to look into the folder's folders.
        show_progress: Show a progress bar.
        namespace: As in `load_image_nodes`. Only rows of this namespace are compared with the
            folder, and removed: computers that share a collection, and have different files at one
            path, each need their own.
        wait_for_index: As in `ingest_images`.

    Returns:
        The report.

    Raises:
        SyncError: If there is no such folder, it cannot be read, or with ``delete`` it holds no
            image although the collection does; or if the report cannot be written.
        SyncRunningError: If another sync of the collection runs on this computer.
        IngestInterrupted: If Ctrl-C was pressed; see `ingest_images`.
        EmbeddingSpaceMismatchError: If the store holds vectors of another model.
        StoreError: If another program made the collection.
    """
    options = _options(batch_size, captions, namespace, checksum)
    with stop_on_interrupt() as stop:
        return _sync(
            folder,
            embed_model=embed_model,
            vector_store=vector_store,
            options=options,
            delete=delete,
            dry_run=dry_run,
            report_path=report_path,
            recursive=recursive,
            show_progress=show_progress,
            wait_for_index=wait_for_index,
            stop=stop,
        )


async def async_images(
    folder: str | os.PathLike[str],
    *,
    embed_model: DualEncoderEmbedding,
    vector_store: CLIPMilvusVectorStore,
    delete: bool = False,
    dry_run: bool = False,
    checksum: bool = False,
    report_path: str | os.PathLike[str] | None = None,
    batch_size: int = 64,
    captions: Captions = "sidecar",
    recursive: bool = True,
    show_progress: bool = False,
    namespace: str = "",
    wait_for_index: bool = True,
) -> SyncReport:
    """Do what `sync_images` does, off the event loop.

    Cancelled, it stops as by Ctrl-C, and has stopped when the cancel returns.
    """
    options = _options(batch_size, captions, namespace, checksum)
    stop = threading.Event()
    return await write_in_own_thread(
        lambda: _sync(
            folder,
            embed_model=embed_model,
            vector_store=vector_store,
            options=options,
            delete=delete,
            dry_run=dry_run,
            report_path=report_path,
            recursive=recursive,
            show_progress=show_progress,
            wait_for_index=wait_for_index,
            stop=stop,
        ),
        stop=stop.set,
    )


def _options(batch_size: int, captions: Captions, namespace: str, checksum: bool) -> IngestOptions:
    return IngestOptions(batch_size, "skip", captions, namespace, "keep", repair=checksum)


def _sync(
    folder: str | os.PathLike[str],
    *,
    embed_model: DualEncoderEmbedding,
    vector_store: CLIPMilvusVectorStore,
    options: IngestOptions,
    delete: bool,
    dry_run: bool,
    report_path: str | os.PathLike[str] | None,
    recursive: bool,
    show_progress: bool,
    wait_for_index: bool,
    stop: threading.Event,
) -> SyncReport:
    check_pair(embed_model, vector_store)
    root = resolve_folder(folder)
    found = list_images(root, recursive=recursive, image_formats=embed_model.image_formats)
    files = [os.fspath(file) for file in found]
    with (
        nullcontext() if dry_run else _only_one(vector_store),
        _lines(report_path) as lines,
        tqdm(desc="Syncing images", total=len(files), unit="img", disable=not show_progress) as bar,
    ):
        report = SyncReport(dry_run=dry_run)
        sync = _Sync(
            embed_model=embed_model,
            vector_store=vector_store,
            options=options,
            on_progress=lambda report: bar.update(report.total - bar.n),
            stop=stop,
            report=report,
        )
        sync.compare(root, files, lines=lines)
        if delete:
            sync.check_not_empty(any(map(os.path.isfile, files)))
        with settled(vector_store, wait=wait_for_index, show_progress=show_progress, stop=stop):
            sync.run(files)
            sync.settle_aliases()
            if stop.is_set():
                raise IngestInterrupted(report)
            sync.settle_missing(delete=delete)
        if stop.is_set():
            raise IngestInterrupted(report)
        return report


class _Sync(Ingest):
    """An ingest that knows what is stored of the folder, and reads only what may have changed.

    What is stored is read page by page, twice: before, for the size, date and caption of each file
    that is there, some 60 bytes each; and afterwards, for the rows whose files are gone.
    """

    report: SyncReport

    def compare(self, root: Path, files: Sequence[str], *, lines: TextIO | None) -> None:
        """Take down what is there, and what is stored of it, before anything is done."""
        self.root = root
        self.files = files
        self.lines = lines
        # By where a link leads: two names of one file are one image.
        self.paths = [_same(os.path.realpath(file), file) for file in files]
        self.first: dict[str, int] = {}
        for index, path in enumerate(self.paths):
            self.first.setdefault(path, index)
        # Of each file's row, by the file's position.
        self.sizes = array("q", [_NO_ROW]) * len(files)
        self.modified = array("q", [-1]) * len(files)
        self.captions_seen = array("q", [0]) * len(files)
        # Files whose row was made by hand, under another id than ingesting gives it; and by id,
        # files whose name is spelled in another way than their id.
        self.by_hand: dict[str, str] = {}
        self.respelled = {
            make_id(path_name(Path(path)), self.options.namespace): path
            for path in self.first
            if is_unicode(path) and not unicodedata.is_normalized("NFC", path)
        }
        self.n_missing = 0
        for page in self._stored_files():
            for row in page:
                self._take_down(row)
        # Ids of rows that were found to be a file's under its new name.
        self.claimed: set[str] = set()
        # Of the batch at hand: what has the vector of each node, by the node's id.
        self.sources: dict[str, StoredFile] = {}
        self.moved_from: dict[int, str] = {}
        # Positions of further names of a file, and why those failed that did.
        self.aliases: list[int] = []
        self.failures: dict[int, str] = {}

    def _stored_files(
        self, content_hashes: Sequence[str] | None = None
    ) -> Iterator[list[StoredFile]]:
        return self.vector_store.iter_files(
            self.root, namespace=self.options.namespace, content_hashes=content_hashes
        )

    def _take_down(self, row: StoredFile) -> None:
        """Note what is stored of a file, or that its file is gone."""
        index = self.first.get(row.path)
        if index is None:
            self.n_missing += _is_gone(row.path)
            return
        # A file has one row; where there is another by hand, the one that ingesting makes counts;
        # and none whose id another file has now, as one may whose name is spelled in another way.
        if self.respelled.get(row.id, row.path) != row.path:
            return
        if row.is_by_hand and self.sizes[index] != _NO_ROW and row.path not in self.by_hand:
            return
        if row.is_by_hand:
            self.by_hand[row.path] = row.id
        else:
            self.by_hand.pop(row.path, None)
        self.sizes[index] = row.size
        self.modified[index] = _microseconds(row.modified)
        self.captions_seen[index] = hash(row.text)

    def _writer_of(self, row: StoredFile) -> str | None:
        """Return the file that is there and writes its row by this id, whosever it was."""
        path = self.respelled.get(row.id)
        if path is None and not unicodedata.is_normalized("NFC", row.path):
            path = unicodedata.normalize("NFC", row.path)
            if path in self.first and row.id != make_id(path, self.options.namespace):
                return None
        path = path or row.path
        if path not in self.first or self.by_hand.get(path, row.id) != row.id:
            return None
        return path

    def _read(self, numbered: tuple[int, Any]) -> Read:
        """Leave unread what is known; see `Ingest`."""
        index, file = numbered
        path = self.paths[index]
        if self.first[path] != index:
            return Read(index, path)
        try:
            if not self.options.repair and self._is_as_stored(index, path):
                return Read(index, path)
        except (ImageLoadError, OSError):
            pass  # The reader reports this error.
        return super()._read((index, Path(file)))

    def _is_as_stored(self, index: int, path: str) -> bool:
        if self.sizes[index] == _NO_ROW:
            return False
        state = os.stat(path)
        if (state.st_size, state.st_mtime_ns // 1000) != (self.sizes[index], self.modified[index]):
            return False
        if self.captions != "sidecar":
            return True
        caption = read_caption(Path(path)).text
        return caption == "" or hash(caption) == self.captions_seen[index]

    def _look_up(self, found: Sequence[tuple[Read, BaseNode]]) -> None:
        """Find what is stored of each node, and what has its vector."""
        nodes = [node for _, node in found]
        for node in nodes:
            node.id_ = self.by_hand.get(node.metadata["file_path"], node.node_id)
        own = {row.id: row for row in self.vector_store.get_files_by_id([n.node_id for n in nodes])}
        self.stored = {id_: row.node_hash for id_, row in own.items()}
        self.sources = {}
        rest = []
        for node in nodes:
            row = own.get(node.node_id)
            is_own = row is not None and row.path == node.metadata["file_path"]
            if row and is_own and row.content_hash == _content(node):
                self.sources[node.node_id] = row
            else:
                rest.append(node)
        self.sources |= self._moved(rest)
        ids = {row.id for row in self.sources.values()} | set(own)
        self._look_up_old([] if self.report.dry_run else list(ids))
        self.provenance |= {row.id: row.provenance for row in self.sources.values()}

    def _moved(self, nodes: Sequence[BaseNode]) -> dict[str, StoredFile]:
        """Find, for each node, a row of the same content whose file is gone."""
        contents = {_content(node) for node in nodes}
        if not contents or self.n_missing <= len(self.claimed):
            return {}
        rows = defaultdict(list)
        for page in self._stored_files(sorted(contents)):
            for row in page:
                # A drive may have come back.
                if row.id not in self.claimed and row.path not in self.first and _is_gone(row.path):
                    rows[row.content_hash].append(row)
        moved = {}
        for node in nodes:
            if found := rows[_content(node)]:
                moved[node.node_id] = found.pop()
                self.claimed.add(moved[node.node_id].id)
        return moved

    def _old_of(self, node: BaseNode) -> BaseNode | None:
        source = self.sources.get(node.node_id)
        return self.old.get(source.id if source else node.node_id)

    def _needs_repair(self, node: BaseNode) -> bool:
        source = self.sources.get(node.node_id)
        return self.options.repair and source is not None and source.provenance == UNKNOWN

    def _is_current(self, node: BaseNode, row_hash: str) -> bool:
        # A file that was touched gets its new date, so that it need not be read again.
        source = self.sources.get(node.node_id)
        date = node.metadata.get("last_modified_date") or ""
        is_dated = source is None or (source.id == node.node_id and source.modified == date)
        return is_dated and super()._is_current(node, row_hash)

    def _draw(self, read: Read, node: BaseNode) -> Drawn | None:
        """Let what has a vector already pass the model by."""
        source = self.sources.get(node.node_id)
        if self.report.dry_run:
            status = self._status(node, source)
            reason = "" if source else self._header_fault(node)
            if source and status == "moved":
                self.moved_from[read.index] = source.path
            self._note("failed" if reason else status, read.index, read.source, reason)
            return None
        drawn = super()._draw(read, node)
        if drawn and source:  # Embedded again, for a repair.
            self._take_place(drawn, source)
        return drawn

    def _reuse(self, drawn: Drawn, old: BaseNode) -> None:
        source = self.sources.get(drawn.node.node_id)
        drawn.status = self._status(drawn.node, source)
        if source:
            self._take_place(drawn, source)
        super()._reuse(drawn, old)

    def _take_place(self, drawn: Drawn, source: StoredFile) -> None:
        """Have a node take the place of the row that has its picture, if that is another's."""
        if source.path != drawn.node.metadata["file_path"]:
            drawn.status = "moved"
            self.moved_from[drawn.index] = source.path
            # A row whose id another file has is written over.
            if self._writer_of(source) is None:
                drawn.moved_from = source.id

    def _header_fault(self, node: BaseNode) -> str:
        """Say why a file is no picture, if its header tells."""
        if "width" in node.metadata:
            return ""
        file, formats = Path(node.metadata["file_path"]), self.embed_model.image_formats
        try:
            read_header(file, image_formats=formats)
        except ImageLoadError as err:
            return err.reason
        return ""

    def _status(self, node: BaseNode, source: StoredFile | None) -> Status:
        if source is None:
            return "replaced" if node.node_id in self.stored else "added"
        if source.path != node.metadata["file_path"]:
            return "moved"
        if self._needs_repair(node):
            return "replaced"
        return "unchanged" if node_text(node) in ("", source.text) else "replaced"

    def _note(self, status: Status, index: int, source: str, reason: str = "") -> None:
        if status == "unchanged" and self.first[self.paths[index]] != index:
            self.aliases.append(index)  # Said once it is known what became of the file.
            return
        if status == "failed":
            self.failures[index] = reason
        super()._note(status, index, source, reason)
        self._line(
            status, self.files[index], reason=reason, moved_from=self.moved_from.get(index, "")
        )

    def settle_aliases(self) -> None:
        """Say of further names of a file what became of it."""
        for index in self.aliases:
            path = self.paths[index]
            reason = self.failures.get(self.first[path], "")
            super()._note("failed" if reason else "unchanged", index, path, reason)
            self._line("failed" if reason else "unchanged", self.files[index], reason=reason)

    def _line(self, status: str, path: str, **more: str) -> None:
        if self.lines:
            line: dict[str, Any] = {"status": "ok" if status == "added" else status, "path": path}
            line |= {key: value for key, value in more.items() if value}
            line |= {"dry_run": True} if self.report.dry_run else {}
            print(json.dumps(line, ensure_ascii=False), file=self.lines, flush=True)

    def settle_missing(self, *, delete: bool) -> None:
        """Count the rows whose files are gone, and remove those that are to be."""
        failed = {self.paths[index] for index in self.failures}
        is_checked = False
        for page in self._stored_files() if self.n_missing else ():
            if self.stop.is_set():
                break
            # Looked for again: a drive may have come back.
            gone = [row for row in page if self._has_gone(row, failed)]
            if delete and gone and not is_checked:
                # Or have gone since; and a file may be called an image, and be none.
                n_usable = self.report.total - len(self.report.failed)
                self.check_not_empty(n_usable > 0 and any(map(os.path.isfile, self.files)))
                is_checked = True
            if delete and gone and not self.report.dry_run:
                self.vector_store.delete_nodes([row.id for row in gone])
            self.report.removed += len(gone) if delete else 0
            self.report.missing += 0 if delete else len(gone)
            for row in gone:
                self._line("removed" if delete else "missing", row.path)
        self._tell()

    def _has_gone(self, row: StoredFile, failed: set[str]) -> bool:
        """Whether a row's file is gone, and no other file has taken its place."""
        if row.path in self.first or row.id in self.claimed or not _is_gone(row.path):
            return False
        writer = self._writer_of(row)
        return writer is None or writer in failed

    def check_not_empty(self, holds_images: bool) -> None:
        """Refuse to take a drive that is not there for one whose images were all deleted.

        Raises:
            SyncError: If the folder holds no image, though the collection does of it.
        """
        if self.n_missing and not holds_images:
            raise SyncError(
                f"{self.root} holds no image that can be used, and the collection has "
                f"{self.n_missing} whose files are gone: none was removed. Is it the right "
                "folder, and its drive there? If it is really empty, remove its rows by "
                "vector_store.delete_nodes(filters=...) on their file_path"
            )


def _same(value: str, other: str) -> str:
    """Return the other of two equal texts, so that one of them is kept."""
    return other if value == other else value


def _microseconds(date: str) -> int:
    """Return a date that `modified_date` made as a number; -1 for one that is of no file."""
    if "." not in date:
        return -1
    try:
        return (datetime.fromisoformat(date) - _EPOCH) // timedelta(microseconds=1)
    except (TypeError, ValueError):
        return -1


def _content(node: BaseNode) -> str:
    return str(node.metadata.get("content_hash"))


def _is_gone(path: str) -> bool:
    """Whether a file is known not to be there; not so if that cannot be told.

    A link in its place is another name of what it leads to, which has its own row.
    """
    try:
        mode = os.lstat(path).st_mode
    except (FileNotFoundError, NotADirectoryError):
        return True
    except OSError:
        return False
    return stat.S_ISDIR(mode) or (stat.S_ISLNK(mode) and os.path.isfile(path))


def resolve_folder(folder: str | os.PathLike[str]) -> Path:
    """Return a folder as its rows name it.

    Raises:
        SyncError: If there is no such folder, or it cannot be read.
    """
    if not os.fspath(folder):
        raise SyncError("the folder is an empty string; for this one, say '.'")
    try:
        root = Path(folder).expanduser().resolve(strict=True)
        os.scandir(root).close()
    except NotADirectoryError as err:
        raise SyncError(
            f"{os.fspath(folder)} is no folder; for files and patterns: ingest_images (clip-ext "
            "index)"
        ) from err
    except (OSError, RuntimeError, ValueError) as err:
        raise SyncError(
            f"{os.fspath(folder)} is no folder that can be read ({error_detail(err)}); nothing was "
            "changed"
        ) from err
    if not is_unicode(str(root)):
        raise SyncError(f"{describe_source(root)}: its name is no Unicode text; rename it")
    return root


@contextmanager
def _only_one(vector_store: CLIPMilvusVectorStore) -> Iterator[None]:
    """Keep a second sync of a collection from running meanwhile, in whatever process."""
    name = "\n".join([_place(vector_store), vector_store.db_name, vector_store.collection_name])
    try:
        folder = cached_assets_path("llama_index_clip_ext", "sync", "locks")
        path = folder / hashlib.sha256(name.encode()).hexdigest()
        lock = FileLock(path)
        lock.acquire(blocking=False)
    except Timeout as err:
        pid = lock_holder(path)
        holder = f"process {pid}" if pid else "another process"
        holder = "this process, in another thread" if pid == os.getpid() else holder
        raise SyncRunningError(
            f"{vector_store!r} is being synced by {holder}; nothing was changed. Wait for it, or "
            "end it",
            pid=pid,
        ) from err
    except OSError as err:
        raise SyncError(
            f"cannot keep a lock in the cache folder ({err}); set HF_ASSETS_CACHE to one that can "
            "be written to"
        ) from err
    try:
        yield
    finally:
        lock.release()  # As the system does when a process is killed.


def _place(vector_store: CLIPMilvusVectorStore) -> str:
    """Return where a store is, the same however a server's address is spelled."""
    url = urlsplit(vector_store.uri)
    return f"{url.hostname}:{url.port or 19530}" if url.hostname else vector_store.uri


@contextmanager
def _lines(path: str | os.PathLike[str] | None) -> Iterator[TextIO | None]:
    """Open the report; a name that is no Unicode text is escaped as JSON has it."""
    if path is None:
        yield None
        return
    if Path(path).suffix.lower() in IMAGE_SUFFIXES:
        raise SyncError(f"the report would be written over {os.fspath(path)}, a picture's name")
    try:
        lines = open(path, "w", encoding="utf-8", errors="backslashreplace")  # noqa: SIM115
    except OSError as err:
        raise SyncError(
            f"cannot write the report {os.fspath(path)!r} ({error_detail(err)}); nothing was "
            "changed"
        ) from err
    with lines:
        yield lines
