"""A collection made equal to a folder of images."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import stat
import threading
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO
from urllib.parse import urlsplit

from filelock import FileLock, Timeout
from huggingface_hub import cached_assets_path
from llama_index.core.schema import BaseNode, ImageNode
from tqdm.auto import tqdm

from .dual_encoder import DualEncoderEmbedding
from .errors import ImageLoadError, IngestInterrupted, SyncError, SyncRunningError
from .images import read_header
from .ingest import Drawn, Ingest, IngestReport, Read, Status, refusal_of
from .interruption import stop_on_interrupt
from .lite import lock_holder
from .nodes import (
    IMAGE_SUFFIXES,
    Captions,
    file_caption,
    list_images,
    make_id,
    modified_date,
    node_text,
    path_name,
    set_caption,
)
from .prefetch import batched
from .rows import node_hash
from .scripts import is_unicode
from .sources import describe_source, error_detail
from .store import CLIPMilvusVectorStore, StoredFile, check_pair

_BATCH = 1_000  # Rows that are removed together.


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
            *(f"  failed: {failure}" for failure in self.failed),
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
) -> SyncReport:
    """Make what a collection holds of a folder equal to the folder, by as little work as it takes.

    New images are embedded, changed ones embedded again. A file counts as unchanged by its size and
    time of change, without being read; where these differ, its content decides. A renamed one keeps
    its vector, and with it the metadata that were added since. Rows of other folders, texts, and
    rows whose files exist but are not listed (hidden ones, or those of subfolders without
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
        checksum: Read every file, for changes that leave size and time as they were.
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
    with stop_on_interrupt() as stop:
        return _sync(
            folder,
            embed_model=embed_model,
            vector_store=vector_store,
            delete=delete,
            dry_run=dry_run,
            checksum=checksum,
            report_path=report_path,
            batch_size=batch_size,
            captions=captions,
            recursive=recursive,
            show_progress=show_progress,
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
) -> SyncReport:
    """Do what `sync_images` does, off the event loop; cancelled, it stops as by Ctrl-C."""
    stop = threading.Event()
    try:
        return await asyncio.to_thread(
            _sync,
            folder,
            embed_model=embed_model,
            vector_store=vector_store,
            delete=delete,
            dry_run=dry_run,
            checksum=checksum,
            report_path=report_path,
            batch_size=batch_size,
            captions=captions,
            recursive=recursive,
            show_progress=show_progress,
            stop=stop,
        )
    finally:
        stop.set()


def _sync(
    folder: str | os.PathLike[str],
    *,
    embed_model: DualEncoderEmbedding,
    vector_store: CLIPMilvusVectorStore,
    delete: bool,
    dry_run: bool,
    checksum: bool,
    report_path: str | os.PathLike[str] | None,
    batch_size: int,
    captions: Captions,
    recursive: bool,
    show_progress: bool,
    stop: threading.Event,
) -> SyncReport:
    check_pair(embed_model, vector_store)
    root = resolve_folder(folder)
    files = list(list_images(root, recursive=recursive, image_formats=embed_model.image_formats))
    with (
        nullcontext() if dry_run else _only_one(vector_store),
        _lines(report_path) as lines,
        tqdm(desc="Syncing images", total=len(files), unit="img", disable=not show_progress) as bar,
    ):
        report = SyncReport(dry_run=dry_run)
        sync = _Sync(
            embed_model=embed_model,
            vector_store=vector_store,
            batch_size=batch_size,
            on_error="skip",
            captions=captions,
            on_progress=lambda report: bar.update(report.total - bar.n),
            stop=stop,
            report=report,
        )
        sync.compare(root, files, checksum=checksum, lines=lines)
        if delete:
            sync.check_not_empty(any(map(os.path.isfile, files)))
        sync.run(files)
        sync.settle_aliases()
        if stop.is_set():
            raise IngestInterrupted(report)
        sync.settle_missing(delete=delete)
        if stop.is_set():
            raise IngestInterrupted(report)
        return report


class _Sync(Ingest):
    """An ingest that knows what is stored of the folder, and reads only what may have changed."""

    report: SyncReport

    def compare(
        self, root: Path, files: Sequence[Path], *, checksum: bool, lines: TextIO | None
    ) -> None:
        """Take down what is there, and what is stored of it, before anything is done."""
        self.root = root
        self.files = files
        self.checksum = checksum
        self.lines = lines
        # By where a link leads: two names of one file are one image.
        self.paths = [os.path.realpath(file) for file in files]
        self.first: dict[str, int] = {}
        for index, path in enumerate(self.paths):
            self.first.setdefault(path, index)
        stored = self.vector_store.get_files(root)
        named = filter(is_unicode, self.first)  # Others cannot be stored.
        path_of = {make_id(path_name(Path(path))): path for path in named}
        # A file has one row; where there is another by hand, the one that ingesting makes counts;
        # and none whose id another file has now, as one may whose name is spelled in another way.
        stored.sort(key=lambda row: row.id in path_of)
        self.rows = {
            row.path: row
            for row in stored
            if row.path in self.first and path_of.get(row.id, row.path) == row.path
        }
        # Ids that a file has, and writes its row by, whosever that was.
        self.taken = {
            node_id: path
            for node_id, path in path_of.items()
            if path not in self.rows or self.rows[path].id == node_id
        }
        self.missing = {
            row.id: row for row in stored if row.path not in self.first and _is_gone(row.path)
        }
        self.by_content = defaultdict(list)
        for row in self.missing.values():
            self.by_content[row.content_hash].append(row)
        # Of the batch at hand: whose vector each node takes, by id, and its node.
        self.sources: dict[str, StoredFile] = {}
        self.old: dict[str, BaseNode] = {}
        self.moved_from: dict[int, str] = {}
        # Positions of further names of a file, and why those failed that did.
        self.aliases: list[int] = []
        self.failures: dict[int, str] = {}

    def _read(self, numbered: tuple[int, Any]) -> Read:
        """Leave unread what is known; see `Ingest`."""
        index, _ = numbered
        path = self.paths[index]
        row = self.rows.get(path)
        if self.first[path] != index:
            return Read(index, path)
        try:
            if row and not self.checksum and self._is_as_stored(row):
                return Read(index, path)
        except (OSError, ImageLoadError):
            pass  # Said by who reads it.
        return super()._read(numbered)

    def _is_as_stored(self, row: StoredFile) -> bool:
        state = os.stat(row.path)
        modified = modified_date(state.st_mtime_ns)
        if not modified or (state.st_size, modified) != (row.size, row.modified):
            return False
        return self.captions != "sidecar" or file_caption(Path(row.path)) in ("", row.text)

    def _look_up(self, nodes: Sequence[BaseNode]) -> dict[str, str]:
        """Find what is stored of each node, and what has its vector."""
        hashes: dict[str, str] = {}
        elsewhere: list[str] = []
        self.sources.clear()
        for node in nodes:
            path, content = node.metadata["file_path"], _content(node)
            row = self.rows.get(path)
            if row:
                node.id_ = row.id
                hashes[row.id] = row.node_hash
            if row and row.content_hash == content:
                self.sources[node.node_id] = row
            elif moved := self._moved(content):
                self.sources[node.node_id] = self.rows[path] = moved
            elif not row and not Path(path).is_relative_to(self.root):
                elsewhere.append(node.node_id)  # Where a link leads.
        ids = [] if self.report.dry_run else [row.id for row in self.sources.values()]
        self.old = {node.node_id: node for node in self.vector_store.get_nodes(ids)} if ids else {}
        return hashes | (self.vector_store.get_hashes(elsewhere) if elsewhere else {})

    def _moved(self, content: str) -> StoredFile | None:
        """Take a row of the same content whose file is gone."""
        while rows := self.by_content[content]:
            row = self.missing.pop(rows.pop().id)
            if _is_gone(row.path):  # Still: a drive may have come back.
                return row
        return None

    def _draw(self, read: Read, node: BaseNode) -> Drawn | None:
        """Let what has a vector already pass the model by."""
        source = self.sources.get(node.node_id)
        status = self._status(node, source)
        old = self.old.get(source.id) if source else None
        if source and status == "moved":
            self.moved_from[read.index] = source.path
        if self.report.dry_run:
            reason = "" if source else self._header_fault(node)
            self._note("failed" if reason else status, read.index, read.source, reason)
        elif source is None or old is None or _content(old) != _content(node):
            self.moved_from.pop(read.index, None)  # It was written over or deleted meanwhile.
            return super()._draw(read, node)
        elif refusal := refusal_of(node := _renewed(old, node), self.on_error):
            self._note("failed", read.index, read.source, refusal)
        else:
            drawn = Drawn(read.index, node, node_hash(node), read.state, status=status)
            # A row whose id is taken is written over.
            if status == "moved" and source.id not in self.taken:
                drawn.moved_from = source.id
            self.embedded.append(drawn)
            if len(self.embedded) >= self.batch_size:
                self._write()
        return None

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
            stored = self.stored.get(node.node_id)
            if stored == node_hash(node):
                return "unchanged"
            return "replaced" if stored else "added"
        if source.path != node.metadata["file_path"]:
            return "moved"
        return "unchanged" if node_text(node) in ("", source.text) else "replaced"

    def _note(self, status: Status, index: int, source: str, reason: str = "") -> None:
        if status == "unchanged" and self.first[self.paths[index]] != index:
            self.aliases.append(index)  # Said once it is known what became of the file.
            return
        if status == "failed":
            self.failures[index] = reason
        super()._note(status, index, source, reason)
        path = os.fspath(self.files[index])
        self._line(status, path, reason=reason, moved_from=self.moved_from.get(index, ""))

    def settle_aliases(self) -> None:
        """Say of further names of a file what became of it."""
        for index in self.aliases:
            path = self.paths[index]
            reason = self.failures.get(self.first[path], "")
            super()._note("failed" if reason else "unchanged", index, path, reason)
            self._line(
                "failed" if reason else "unchanged", os.fspath(self.files[index]), reason=reason
            )

    def _line(self, status: str, path: str, **more: str) -> None:
        if self.lines:
            line: dict[str, Any] = {"status": "ok" if status == "added" else status, "path": path}
            line |= {key: value for key, value in more.items() if value}
            line |= {"dry_run": True} if self.report.dry_run else {}
            print(json.dumps(line, ensure_ascii=False), file=self.lines, flush=True)

    def settle_missing(self, *, delete: bool) -> None:
        """Count the rows whose files are gone, and remove those that are to be."""
        failed = {self.paths[index] for index in self.failures}
        written = {node_id for node_id, path in self.taken.items() if path not in failed}
        # Looked for again: a drive may have come back.
        gone = [
            row for row in self.missing.values() if _is_gone(row.path) and row.id not in written
        ]
        if delete and gone:
            # Or have gone since; and a file may be called an image, and be none.
            n_usable = self.report.total - len(self.report.failed)
            self.check_not_empty(n_usable > 0 and any(map(os.path.isfile, self.files)))
        for rows in batched(gone, _BATCH):
            if self.stop.is_set():
                break
            if delete and not self.report.dry_run:
                self.vector_store.delete_nodes([row.id for row in rows])
            self.report.removed += len(rows) if delete else 0
            self.report.missing += 0 if delete else len(rows)
            for row in rows:
                self._line("removed" if delete else "missing", row.path)
        self._tell()

    def check_not_empty(self, holds_images: bool) -> None:
        """Refuse to take a drive that is not there for one whose images were all deleted.

        Raises:
            SyncError: If the folder holds no image, though the collection does of it.
        """
        if self.missing and not holds_images:
            raise SyncError(
                f"{self.root} holds no image that can be used, and the collection has "
                f"{len(self.missing)} whose files are gone: none was removed. Is it the right "
                "folder, and its drive there? If it is really empty, remove its rows by "
                "vector_store.delete_nodes(filters=...) on their file_path"
            )


def _renewed(old: BaseNode, new: BaseNode) -> BaseNode:
    """Return a stored image with where, when and what its file is now; it keeps all else."""
    path, mimetype = new.metadata["file_path"], new.metadata["file_type"] or None
    node = old.model_copy(update={"id_": new.node_id, "metadata": {**old.metadata, **new.metadata}})
    if isinstance(node, ImageNode):
        node.image_path, node.image_mimetype = path, mimetype
    elif resource := getattr(node, "image_resource", None):
        place = resource.model_copy(update={"path": Path(path), "mimetype": mimetype})
        node = node.model_copy(update={"image_resource": place})
    if node_text(new) not in ("", node_text(old)):
        set_caption(node, node_text(new))
    return node


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
