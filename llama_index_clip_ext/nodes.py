"""Images as LlamaIndex nodes: deterministic ids, content hashes, and a folder reader."""

from __future__ import annotations

import base64
import glob
import hashlib
import json
import logging
import os
import posixpath
import unicodedata
import uuid
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import suppress
from datetime import datetime, timezone
from pathlib import Path, PurePath
from typing import Any, Literal, TypeAlias, Union
from urllib.parse import unquote, urlsplit

from fsspec import AbstractFileSystem
from fsspec.core import OpenFile
from llama_index.core.bridge.pydantic import PrivateAttr
from llama_index.core.schema import BaseNode, ImageNode, TextNode

from .errors import ImageLoadError, ImageNotFoundError
from .filesystems import address, is_file, is_local, list_files, path_in
from .images import OnError, read_header, suffixes_of
from .metadata import checked_metadata
from .notes import exclude_from_models
from .scripts import is_unicode
from .sidecars import Caption, check_caption, read_caption
from .sources import describe_source, fetched, has_image, image_digest, is_url
from .urls import AllowUrls, Fetched

logger = logging.getLogger(__name__)

Captions: TypeAlias = Union[Literal["sidecar"], Callable[[Path], "str | None"], None]
ImageItem: TypeAlias = Union[str, "os.PathLike[str]", OpenFile, BaseNode]

# A namespace of our own (RFC 9562, section 5.5), so that no other tool makes the same ids.
_NAMESPACE = uuid.UUID("7a1f6f0e-3a55-5c5e-9d0b-6c2f1d8a4b11")

# What a folder is searched for; a list of files is taken as it is.
IMAGE_SUFFIXES = frozenset(
    (".jpg", ".jpeg", ".jfif", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff")
)

# What changes when a file is touched, though the picture does not.
VOLATILE_METADATA = frozenset(("last_modified_date", "last_accessed_date"))
# What a copy may have otherwise, or follows from the content.
OF_FILE = VOLATILE_METADATA.union(
    ("file_path", "file_name", "file_type", "file_size", "width", "height")
)
# Under which metadata keep the namespace of an id.
NAMESPACE_KEY = "clip_namespace"


class HashedImageNode(ImageNode):
    """An image node whose hash follows the file's content, where LlamaIndex's follows its path.

    It is stored, and comes back, as a plain ``ImageNode``.
    """

    _image_file: OpenFile | None = PrivateAttr(default=None)
    _caption: Caption = PrivateAttr(default=Caption(""))

    @property
    def image_file(self) -> OpenFile | None:
        """The fsspec file that the image is read from, if it is in another file system."""
        return self._image_file

    @property
    def caption_problem(self) -> str:
        """Why the text file beside the image is not its caption; empty if nothing was left out."""
        return self._caption.problem

    @property
    def is_caption_unread(self) -> bool:
        """Whether that is because the file is too large to be read."""
        return self._caption.is_unread

    @property
    def hash(self) -> str:
        """SHA-256 of the image's content, caption and metadata, but for where and when it is."""
        if "content_hash" not in self.metadata:
            return super().hash
        own = {key: value for key, value in self.metadata.items() if key not in OF_FILE}
        content = json.dumps([self.text, checked_metadata(own)], sort_keys=True)
        return hashlib.sha256(content.encode()).hexdigest()


def load_image_nodes(
    source: str | os.PathLike[str] | Iterable[ImageItem],
    *,
    recursive: bool = True,
    captions: Captions = "sidecar",
    id_by: Literal["path", "content"] = "path",
    on_error: OnError = "raise",
    fs: AbstractFileSystem | None = None,
    image_formats: Collection[str] = (),
    namespace: str = "",
) -> list[ImageNode]:
    """Make a node of each image file, without decoding or embedding it.

    Args:
        source: A folder, a glob pattern, one file, or an iterable of files.
        recursive: Whether to look into the folder's folders.
        captions: ``"sidecar"`` takes the text of ``NAME.txt`` beside ``NAME.jpg`` where there is
            one; a callable is given the path and returns the caption; ``None`` leaves it empty.
            Text that cannot be a caption, such as label files of YOLO's kind, or that is too long,
            is left out with a warning.
        id_by: What an id is made of. By path, a changed file replaces its row and copies are kept
            apart; by content, copies are one row and a moved file keeps its id.
        on_error: For a file that cannot be read: raise, or leave it out with a warning. Whether it
            holds a picture is found out when it is decoded.
        fs: The fsspec file system that the paths are of, such as ``s3fs.S3FileSystem()``. Its files
            are read for their hashes, and again when they are embedded; `ingest_images` does both
            at once.
        image_formats: Formats beside the usual ones, as in `load_image`; files with their suffixes
            are found in folders, too.
        namespace: Part of each id, so that two computers with different files at one path can
            share a collection; kept in the metadata as ``clip_namespace``. Without one, ids are
            made of paths alone.

    Returns:
        Nodes sorted by path for a folder or pattern, else in the order given. Their metadata holds
        ``file_path`` (absolute), ``file_name``, ``file_type`` (mime), ``file_size`` (bytes),
        ``last_modified_date`` (ISO 8601, UTC), ``width`` and ``height`` (pixels, as stored), and
        ``content_hash`` (SHA-256 of the file). Of another file system, ``file_path`` is the address
        with its protocol, and there is no date.

    Raises:
        FileNotFoundError: If the folder or pattern matches nothing that exists.
        ImageLoadError: If a file, or the text beside it, cannot be read and ``on_error`` is
            ``"raise"``.
    """
    if on_error not in ("raise", "skip"):
        raise ValueError(f"on_error is {on_error!r}, expected 'raise' or 'skip'")
    nodes: list[ImageNode] = []
    for path in list_images(source, recursive=recursive, fs=fs, image_formats=image_formats):
        try:
            node = make_image_node(
                path,
                captions=captions,
                id_by=id_by,
                image_formats=image_formats,
                namespace=namespace,
            )
            if node.is_caption_unread and on_error == "raise":
                raise ImageLoadError(node.caption_problem, source=describe_source(node))
            nodes.append(node)
            if node.caption_problem:
                logger.warning(
                    "left out the caption of %s: %s", describe_source(node), node.caption_problem
                )
        except ImageLoadError as err:
            if on_error == "raise":
                raise
            logger.warning("left out %s", err)
    return nodes


def list_images(
    source: str | os.PathLike[str] | Iterable[Any],
    *,
    recursive: bool = True,
    fs: AbstractFileSystem | None = None,
    image_formats: Collection[str] = (),
) -> Iterator[Any]:
    """Yield the image files of a folder or pattern in order; pass any other iterable through.

    Args:
        source: As in `load_image_nodes`.
        recursive: As in `load_image_nodes`.
        fs: The file system; its paths are yielded as its files, those of an iterable, too.
        image_formats: As in `load_image_nodes`.

    Raises:
        FileNotFoundError: If the folder or pattern matches nothing that exists.
    """
    if not isinstance(source, (str, os.PathLike)):
        yield from source if fs is None else (_in_file_system(item, fs) for item in source)
        return
    suffixes = IMAGE_SUFFIXES | suffixes_of(image_formats)
    if fs is not None and not is_local(fs):
        yield from list_files(source, fs, recursive=recursive, suffixes=suffixes)
        return
    if fs is not None:
        source = path_in(fs, source)
    if not os.fspath(source):
        raise FileNotFoundError("the folder is an empty string; for this one, say '.'")
    if is_url(source):
        yield source  # Refused, or fetched, by who makes a node of it.
        return
    path = Path(source).expanduser()
    if path.is_dir():
        yield from _walk(path, recursive, suffixes)
    elif path.is_file():
        yield path
    elif matches := sorted(glob.glob(str(path), recursive=recursive)):
        # Sidecars are captions, whatever the pattern.
        files = (Path(match) for match in matches if os.path.isfile(match))
        yield from (file for file in files if file.suffix.lower() != ".txt")
    else:
        raise FileNotFoundError(f"no folder, file or pattern matches {os.fspath(source)!r}")


def no_images(where: str | os.PathLike[str]) -> FileNotFoundError:
    """Say that there is nothing to index, and what was looked for.

    Args:
        where: Where it was looked for; empty if that has no name.
    """
    place = f" in {os.fspath(where)}" if where else ""
    suffixes = ", ".join(sorted(IMAGE_SUFFIXES))
    return FileNotFoundError(f"no images{place} (looked for {suffixes})")


def _in_file_system(item: Any, fs: AbstractFileSystem) -> Any:
    """Return a path as a file of its file system, and any other item as it is."""
    if not isinstance(item, (str, os.PathLike)):
        return item
    path = path_in(fs, item)
    # One on this machine has one id and one row, whichever way it is named.
    return path if is_local(fs) else OpenFile(fs, path)


def _walk(folder: Path, recursive: bool, suffixes: Collection[str]) -> Iterator[Path]:
    # No recursion: folders may be nested deeper than Python's calls.
    waiting = [(folder, True)]
    while waiting:
        path, is_folder = waiting.pop()
        if not is_folder:
            yield path
            continue
        try:
            with os.scandir(path) as found:
                entries = sorted(found, key=lambda entry: entry.name, reverse=True)
        except OSError:
            yield path  # Reported as what cannot be read, where a file would be.
            continue
        for entry in entries:
            if entry.name.startswith("."):
                continue  # Hidden, such as the ._NAME.jpg that macOS leaves beside NAME.jpg.
            # Links to folders are not followed: they may lead back up.
            if _is_folder(entry):
                if recursive and not entry.is_symlink():
                    waiting.append((Path(entry.path), True))
            elif Path(entry.name).suffix.lower() in suffixes:
                waiting.append((Path(entry.path), False))


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:
        return False  # Such as a link to itself, which is reported as a file that cannot be read.


def make_image_node(
    path: str | os.PathLike[str] | OpenFile,
    *,
    captions: Captions = "sidecar",
    id_by: Literal["path", "content"] = "path",
    image_formats: Collection[str] = (),
    namespace: str = "",
) -> HashedImageNode:
    """Make the node of one image file; see `load_image_nodes`.

    Raises:
        ImageNotFoundError: If the file does not exist.
        ImageLoadError: If it cannot be read.
    """
    if id_by not in ("path", "content"):
        raise ValueError(f"id_by is {id_by!r}, expected 'path' or 'content'")
    if is_file(path):
        content: Any = fetched(path, False)
        node = make_remote_node(
            path,
            content,
            captions=captions,
            id_by=id_by,
            image_formats=image_formats,
            namespace=namespace,
        )
        node._image_file = path
        return node
    if is_url(path):
        raise ImageLoadError(
            "a URL is no path: for s3:// and the like, pass fs=; for https://, make an "
            "ImageNode(image_url=...), or pass it to ingest_images with a model that allows it",
            source=describe_source(path),
        )
    try:
        # Links are followed, so that a file has one id and one row whichever way it is reached.
        file = Path(os.path.realpath(Path(path).expanduser()))
    except (ValueError, RuntimeError) as err:
        raise ImageLoadError(f"no path ({err})", source=os.fspath(path)) from err
    given = os.fsencode(path).decode("utf-8", "backslashreplace")
    if not is_unicode(str(file)):
        reason = "its name is no Unicode text, as of another encoding; rename it"
        raise ImageLoadError(reason, source=given)
    try:
        # Before the content is read: if the file changes in between, the date is too old, and the
        # next look at it finds the change; the other way round it would find nothing.
        facts = _file_facts(file, image_formats)
        content_hash = image_digest(file)
    except ImageLoadError as err:
        raise type(err)(err.reason, source=given) from err
    metadata: dict[str, Any] = {
        "file_path": str(file),
        "file_name": file.name,
        **facts,
        "content_hash": content_hash,
    }
    name = path_name(file) if id_by == "path" else content_hash
    caption = _caption(file, file, captions)
    return _assemble(make_id(name, namespace), metadata, caption, namespace, image_path=str(file))


def make_remote_node(
    place: str | OpenFile,
    content: Fetched,
    *,
    captions: Captions = None,
    id_by: Literal["path", "content"] = "path",
    image_formats: Collection[str] = (),
    namespace: str = "",
) -> HashedImageNode:
    """Make the node of an image that was read from a URL or another file system.

    Args:
        place: The URL, or the file.
        content: What `fetched` returned for it.
        captions: As in `load_image_nodes`; for a URL, there is none beside it.
        id_by: As in `load_image_nodes`.
        image_formats: As in `load_image_nodes`.
        namespace: As in `load_image_nodes`.
    """
    metadata: dict[str, Any] = {
        "file_size": len(content),
        **_picture_facts(content, image_formats),
        "content_hash": image_digest(content),
    }
    caption = Caption("")
    if isinstance(place, str):
        path, url = unquote(urlsplit(place).path), place
    else:
        path, url = place.path, address(place)
        metadata["file_path"] = url
        caption = _caption(place, Path(path), captions)
    metadata["file_name"] = posixpath.basename(path)
    name = content.url if id_by == "path" else metadata["content_hash"]
    return _assemble(make_id(name, namespace), metadata, caption, namespace, image_url=url)


def _assemble(
    node_id: str,
    metadata: dict[str, Any],
    caption: Caption,
    namespace: str,
    *,
    image_path: str | None = None,
    image_url: str | None = None,
) -> HashedImageNode:
    """Make a node of what is known of an image."""
    if namespace:
        metadata[NAMESPACE_KEY] = namespace
    node = HashedImageNode(  # type: ignore[call-arg]
        id_=node_id,
        image_mimetype=metadata["file_type"] or None,
        metadata=metadata,
        # The caption is what another model should read of an image. Without one the name is left,
        # because LlamaIndex's indexes pass over nodes whose text to embed is empty.
        excluded_embed_metadata_keys=[key for key in metadata if key != "file_name"],
        excluded_llm_metadata_keys=[key for key in metadata if key != "file_name"],
        image_path=image_path,
        image_url=image_url,
    )
    # Not its text, which the node has: nodes that are alike are equal.
    node._caption = caption._replace(text="")
    if caption.text:
        set_caption(node, caption.text)
    return node


def make_id(name: str, namespace: str = "") -> str:
    """Return the id of an image that is told apart by this name: its path, or its content hash.

    Args:
        name: The name.
        namespace: Where the name means this image; empty for ids that are made of names alone.
    """
    if not isinstance(namespace, str) or not is_unicode(namespace):
        raise TypeError(f"namespace is {namespace!r}, expected a text such as 'host-a'")
    space = uuid.uuid5(_NAMESPACE, namespace) if namespace else _NAMESPACE
    return str(uuid.uuid5(space, name))


def path_name(file: PurePath) -> str:
    """Return a file's path with slashes, in one spelling of its accents.

    In NFC, so that one name has one id whichever way the file system spells it. A file or folder
    beside which there is another of the composed name, as there may be on Linux, keeps its own.
    """
    if unicodedata.is_normalized("NFC", file.as_posix()):
        return file.as_posix()
    names = []
    for path in (*reversed(file.parents), file):
        composed = unicodedata.normalize("NFC", path.name)
        with suppress(OSError):  # There is none.
            if composed != path.name and not os.path.samefile(path, path.with_name(composed)):
                composed = path.name
        names.append(composed)
    return type(file)(file.anchor, *names).as_posix()


def with_pixels(node: BaseNode, content: bytes) -> BaseNode:
    """Return a copy that holds its image by value, so that it is not fetched once more."""
    data = base64.b64encode(content)
    if resource := getattr(node, "image_resource", None):
        return node.model_copy(
            update={"image_resource": resource.model_copy(update={"data": data})}
        )
    return node.model_copy(update={"image": data.decode()})


def without_pixels(node: BaseNode) -> BaseNode:
    """Return the node without an image that it holds by value, as it is stored."""
    if isinstance(node, ImageNode):
        return node.model_copy(update={"image": None}) if node.image else node
    resource = getattr(node, "image_resource", None)
    # One that is nowhere else would no longer be an image's.
    if resource and resource.data and (resource.path or resource.url):
        resource = resource.model_copy(update={"data": None})
        return node.model_copy(update={"image_resource": resource})
    return node


def with_content_hash(node: BaseNode, *, allow_urls: AllowUrls = False) -> BaseNode:
    """Return the node with its image's ``content_hash`` of now; a copy, unless it has it already.

    An image that is fetched stays in the copy, so that what is embedded is what was hashed.

    Raises:
        ImageLoadError: If the node's image cannot be read.
    """
    content = fetched(node, allow_urls)
    if isinstance(content, bytes):
        node = with_pixels(node, content)
    content_hash = image_digest(content)
    if node.metadata.get("content_hash") == content_hash:
        return node
    copy = copy_node(node)
    copy.metadata["content_hash"] = content_hash
    exclude_from_models(copy, ["content_hash"])
    return copy


def is_image_node(node: BaseNode) -> bool:
    """Whether a node is an image to embed, rather than a text."""
    return isinstance(node, ImageNode) or has_image(node)


def node_text(node: BaseNode) -> str:
    """Return a node's own text, an image's caption; empty if it has none."""
    if isinstance(node, TextNode):
        return node.text or ""
    resource = getattr(node, "text_resource", None)
    return (resource.text or "") if resource else ""


def copy_node(node: BaseNode) -> BaseNode:
    """Return a copy whose metadata can be written to without changing the node's."""
    return node.model_copy(update={"metadata": dict(node.metadata)})


def set_caption(node: BaseNode, caption: str) -> None:
    """Give an image a caption, which stands for it where its file's name did; empty for none."""
    node.set_content(caption)
    if not caption:
        keys = node.excluded_embed_metadata_keys
        node.excluded_embed_metadata_keys = [key for key in keys if key != "file_name"]
    elif set(node.metadata) - set(node.excluded_embed_metadata_keys) == {"file_name"}:
        node.excluded_embed_metadata_keys = list(node.metadata)


def modified_date(nanoseconds: int) -> str:
    """Return when a file was changed, from its ``st_mtime_ns``: ISO 8601, UTC, in microseconds."""
    try:
        modified = datetime.fromtimestamp(nanoseconds // 1000 / 1e6, tz=timezone.utc)
    except (OverflowError, ValueError, OSError):
        return ""  # After the year 9999, as a file system may say of any file.
    return modified.isoformat(timespec="microseconds")


def _file_facts(file: Path, image_formats: Collection[str]) -> dict[str, Any]:
    """Read what the file system and the picture's header tell; what they do not is left out."""
    try:
        state = file.stat()
    except FileNotFoundError as err:
        raise ImageNotFoundError("no such file", source=str(file)) from err
    except OSError as err:
        raise ImageLoadError(f"unreadable ({err.strerror})", source=str(file)) from err
    facts: dict[str, Any] = {
        "file_size": state.st_size,
        "last_modified_date": modified_date(state.st_mtime_ns),
    }
    return facts | _picture_facts(file, image_formats)


def _picture_facts(picture: Path | bytes, image_formats: Collection[str]) -> dict[str, Any]:
    """Read what a picture's header tells."""
    # What is no picture is found, and reported with its reason, where it is decoded.
    with suppress(ImageLoadError):
        mimetype, width, height = read_header(picture, image_formats=image_formats)
        return {"file_type": mimetype, "width": width, "height": height}
    return {"file_type": ""}


def _caption(file: Path | OpenFile, path: Path, captions: Captions) -> Caption:
    """Return the caption of a file, by the text beside it or by the caller's function."""
    if captions is None:
        return Caption("")
    if callable(captions):
        text = captions(path) or ""
        if not isinstance(text, str):
            reason = f"captions returned a {type(text).__name__}, expected a text or None"
            raise ImageLoadError(reason, source=describe_source(file))
        return check_caption(text, "the caption of captions=")
    if captions != "sidecar":
        raise ValueError(f"captions is {captions!r}, expected 'sidecar', a callable or None")
    return read_caption(file)
