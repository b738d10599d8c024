"""The exceptions of this package.

ClipExtError(Exception)                      catch this to catch all of ours
├── UnknownModelError(ValueError)            the name is no alias, hub id or directory
├── ModelLoadError(OSError)                  files missing, offline, wrong family, bad weights
├── TextTooLongError(ValueError)             carries .index, .tokens and .context_length
├── ImageLoadError(ValueError)               carries .index and .source of the failing input
│   └── ImageNotFoundError(FileNotFoundError)
├── CaptionError(RuntimeError)               an LLM gave no caption; carries .source of the image
├── EmbeddingError(ValueError)               a vector that is zero, NaN, infinite or not unit length
├── QuantizationError(ValueError)            int8 is too far from float32; carries .report
├── DimensionMismatchError(ValueError)       carries .expected and .actual
├── EmbeddingSpaceMismatchError(ValueError)  the collection was written by another model
├── RowTooLargeError(ValueError)             a node that Milvus could not store
├── FilterError(ValueError)                  a metadata filter that Milvus could not answer
├── SyncError(RuntimeError)                  a folder that a collection must not be made equal to
│   └── SyncRunningError                     another sync of the collection runs; carries .pid
└── StoreError(OSError)                      Milvus cannot be opened, or refuses a call
    ├── StoreLockedError                     another process holds it; carries .path and .pid
    ├── CollectionNotFoundError              the collection was dropped or renamed
    ├── StoreUnavailableError                the server does not answer; carries .address
    └── AnswerTooLargeError                  an answer exceeds what one message of Milvus holds

Each also inherits the built-in exception that a caller would guess. `IngestInterrupted` is none of
them but a ``KeyboardInterrupt``: Ctrl-C, with the report of what was done until then.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .ingest import IngestReport
    from .int8 import Int8Report

# What moves a terminal's cursor, colours it, ends a line or turns the direction of writing, and the
# bytes of a file's name that are no UTF-8.
_NOT_FOR_PEOPLE = re.compile(
    "[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]"
)


def printable(text: str) -> str:
    r"""Return a text on one line for a person, what a terminal would obey as ``\n`` or ``\x1b``."""

    def escaped(match: re.Match[str]) -> str:
        code = ord(match[0])
        # A byte that is no UTF-8, as Python keeps it in a name.
        code = code - 0xDC00 if 0xDC80 <= code <= 0xDCFF else code
        return (
            f"\\x{code:02x}"
            if 0x80 <= code <= 0xFF
            else chr(code).encode("unicode_escape").decode()
        )

    return _NOT_FOR_PEOPLE.sub(escaped, text)


class ClipExtError(Exception):
    """Base of every error that this package raises on purpose."""


class UnknownModelError(ClipExtError, ValueError):
    """The model's name is neither an alias, a hub id, nor a directory."""


class ModelLoadError(ClipExtError, OSError):
    """A checkpoint cannot be found, read or trusted."""


class TextTooLongError(ClipExtError, ValueError):
    """A text has more tokens than the model's context, and truncation was not wanted.

    Attributes:
        index: Position of the text in the call.
        tokens: Tokens of the text, special tokens included.
        context_length: Tokens that the model reads.
    """

    def __init__(
        self, message: str, *, index: int = 0, tokens: int = 0, context_length: int = 0
    ) -> None:
        super().__init__(message)
        self.index = index
        self.tokens = tokens
        self.context_length = context_length


class ImageLoadError(ClipExtError, ValueError):
    """An image source could not be turned into a picture.

    Attributes:
        index: Position of the source in the call; ``None`` for a call with one image.
        source: What was passed in, described (a path, or a type and a size; never pixels).
        reason: Why it failed, without the source.

    Both are for people: control characters in them are escaped.
    """

    def __init__(self, reason: str, *, source: str = "", index: int | None = None) -> None:
        reason, source = printable(reason), printable(source)
        where = f"image {index}" if index is not None else "image"
        super().__init__(f"{where} ({source}): {reason}" if source else reason)
        self.reason = reason
        self.source = source
        self.index = index

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild_image_error, (type(self), self.reason, self.source, self.index)


class ImageNotFoundError(ImageLoadError, FileNotFoundError):
    """The image's path does not exist."""


def _rebuild_image_error(
    kind: type[ImageLoadError], reason: str, source: str, index: int | None
) -> ImageLoadError:
    return kind(reason, source=source, index=index)


class CaptionError(ClipExtError, RuntimeError):
    """An LLM gave no caption of an image.

    Attributes:
        source: Which image, for a person.
    """

    def __init__(self, message: str, *, source: str = "") -> None:
        super().__init__(message)
        self.source = source


class IngestInterrupted(KeyboardInterrupt):
    """Images were being stored when Ctrl-C was pressed; what was embedded by then is stored.

    Attributes:
        report: What was done until then.
    """

    def __init__(self, report: IngestReport) -> None:
        super().__init__("interrupted; the same call goes on where this one stopped")
        self.report = report


class SyncError(ClipExtError, RuntimeError):
    """A collection is not made equal to a folder, because that would not be what was meant."""


class SyncRunningError(SyncError):
    """Another sync of the same collection is running.

    Attributes:
        pid: The process that runs it; ``None`` where the system does not tell.
    """

    def __init__(self, message: str, *, pid: int | None = None) -> None:
        super().__init__(message)
        self.pid = pid


class EmbeddingError(ClipExtError, ValueError):
    """A vector is zero, not finite, or not of unit length."""


class QuantizationError(ClipExtError, ValueError):
    """The embeddings of int8 are too far from those of float32.

    Attributes:
        report: What was measured, an `Int8Report`.
    """

    def __init__(self, message: str, *, report: Int8Report | None = None) -> None:
        super().__init__(message)
        self.report = report


class DimensionMismatchError(ClipExtError, ValueError):
    """A vector, model or collection has another dimension than expected.

    Attributes:
        expected: The dimension that was expected.
        actual: The dimension that came.
    """

    def __init__(self, message: str, *, expected: int = 0, actual: int = 0) -> None:
        super().__init__(message)
        self.expected = expected
        self.actual = actual


class EmbeddingSpaceMismatchError(ClipExtError, ValueError):
    """A collection holds vectors of another model, revision or preprocessing."""


class RowTooLargeError(ClipExtError, ValueError):
    """A node's text or metadata exceeds what Milvus stores in one row."""


class FilterError(ClipExtError, ValueError):
    """A metadata filter that cannot be expressed exactly in Milvus."""


class StoreError(ClipExtError, OSError):
    """A Milvus database cannot be opened, or refuses a call; the cause is pymilvus's exception."""


class StoreLockedError(StoreError):
    """Another process holds the embedded database.

    Attributes:
        path: The database.
        pid: The process that holds it, where the operating system tells.
    """

    def __init__(self, message: str, *, path: str = "", pid: int | None = None) -> None:
        super().__init__(message)
        self.path = path
        self.pid = pid


class CollectionNotFoundError(StoreError):
    """The collection of a store does not exist: it was dropped or renamed since it was opened."""


class AnswerTooLargeError(StoreError):
    """One answer exceeds what a message of Milvus holds: 64 MiB of a server, 256 MiB of Lite."""


class StoreUnavailableError(StoreError):
    """A Milvus server did not answer in time, whatever was tried.

    Nothing that was acknowledged is lost. Once the server is back, the same objects work again,
    and what failed can be done again as it was.

    Attributes:
        address: The server's, without credentials.
    """

    def __init__(self, message: str, *, address: str = "") -> None:
        super().__init__(message)
        self.address = address
