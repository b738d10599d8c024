"""Images in fsspec's file systems, such as s3:// and gs://: listed, read, and their captions.

Who passes a file system, or a file of one, has chosen what it reaches: `remote` checks none of it.
"""

from __future__ import annotations

import copy
import os
import posixpath
from collections.abc import Collection, Iterator
from typing import Any, TypeGuard

from fsspec import AbstractFileSystem
from fsspec.core import OpenFile
from fsspec.implementations.local import LocalFileSystem

from .errors import ImageLoadError
from .urls import MAX_BYTES, Fetched

# A caption is read no further, by far more than Milvus stores of a text.


def list_files(
    source: str | os.PathLike[str],
    fs: AbstractFileSystem,
    *,
    recursive: bool,
    suffixes: Collection[str],
) -> Iterator[OpenFile]:
    """Yield the files of a folder or pattern, or one file, in the order of their paths.

    Args:
        source: With or without the protocol.
        fs: The file system that it is of.
        recursive: Whether to look into the folder's folders.
        suffixes: Those of the files of a folder that are wanted; hidden ones never are.

    Raises:
        FileNotFoundError: If the folder or pattern matches nothing that exists.
    """
    if not os.fspath(source):
        raise FileNotFoundError("the folder is an empty string; for all there is, say '/'")
    path = path_in(fs, source)
    if fs.isfile(path):
        files = [path]
    elif fs.isdir(path):
        found = fs.find(path, maxdepth=None if recursive else 1)
        files = [file for file in found if _is_wanted(file[len(path) :], suffixes)]
    elif found := fs.glob(path, detail=True):
        # Sidecars are captions, whatever the pattern.
        files = [file for file in found if posixpath.splitext(file)[1].lower() != ".txt"]
        files = [file for file in files if found[file]["type"] == "file"]
    else:
        name = type(fs).__name__
        raise FileNotFoundError(
            f"no folder, file or pattern of {name} matches {os.fspath(source)!r}"
        )
    yield from (OpenFile(fs, file) for file in sorted(files))


def path_in(fs: AbstractFileSystem, path: str | os.PathLike[str]) -> str:
    """Return a path as its file system spells it, without the protocol."""
    return str(fs._strip_protocol(os.fspath(path)))


def is_local(fs: AbstractFileSystem) -> bool:
    """Whether the files of a file system have paths, by which they are known already."""
    return isinstance(fs, LocalFileSystem)


def is_file(source: Any) -> TypeGuard[OpenFile]:
    """Whether a source is a file of a file system, as ``fsspec.open`` returns it."""
    return isinstance(source, OpenFile)


def address(file: OpenFile) -> str:
    """Return where a file is, with its protocol."""
    return str(file.full_name)


def read_file(file: OpenFile) -> Fetched:
    """Read a file.

    Raises:
        ImageLoadError: If it is opened as text, or larger than any picture.
        Exception: Whatever its file system raises.
    """
    # A copy, because one that is open notes so in itself, and may be open in another thread.
    with copy.copy(file) as stream:
        content = read_up_to(stream, MAX_BYTES + 1)
    if len(content) > MAX_BYTES:
        raise ImageLoadError(f"more than {MAX_BYTES} bytes, the most that is read of a picture")
    return Fetched(content, address(file))


def read_up_to(stream: Any, most: int) -> bytes:
    """Read a stream to its end, or that far: some give less at a time than they were asked for."""
    content = bytearray()
    while len(content) < most and (block := stream.read(most - len(content))):
        if not isinstance(block, bytes):
            raise ImageLoadError("the fsspec file gives text; open it in mode 'rb'")
        content += block
    return bytes(content)


def _is_wanted(path: str, suffixes: Collection[str]) -> bool:
    """Whether a path below a folder ends as an image's does, and no part of it is hidden."""
    is_hidden = any(part.startswith(".") for part in path.split("/"))
    return not is_hidden and posixpath.splitext(path)[1].lower() in suffixes
