"""The caption in ``NAME.txt`` beside ``NAME.jpg``, or why that file holds none."""

from __future__ import annotations

import json
import posixpath
import re
from collections import Counter
from contextlib import suppress
from functools import partial
from itertools import takewhile
from pathlib import Path
from typing import NamedTuple

from fsspec.core import OpenFile

from .errors import ImageLoadError
from .filesystems import read_up_to
from .sources import describe_source, open_file

# What Milvus stores of a text.
MAX_CAPTION_BYTES = 65_535
# What is read of a text beside an image, and what of one in another file system.
_MOST_READ = 1_000_000
_MOST_FETCHED = 2**20

_SEPARATORS = re.compile(r"[\s,;|%()\[\]{}\"']+")
_NUMBER = re.compile(r"[+-]?((\d+\.?\d*|\.\d+)(e[+-]?\d+)?|nan|inf)", re.IGNORECASE)
# But for the escape character, by which a text may be coloured.
_CONTROL = re.compile(r"[\0-\x08\x0e-\x1a\x1c-\x1f]")
_XML = re.compile(r"<(\?xml|!doctype)\b|<([a-z][\w.-]*)(\s[^<>]*)?(/>|>.*</\2>)", re.I | re.DOTALL)
_JSON_BEGINNING = re.compile(r'[{\[\s]*\{\s*"[^"]*"\s*:|\[\s*\[\s*[-\d.]')
_MOST_NAMES = 3  # Words of a class, as of "traffic light".


class Caption(NamedTuple):
    """A caption, and why there is none though there is a file for it.

    Attributes:
        text: The caption; empty if there is none.
        problem: Why a text was left out; empty if none was.
        is_unread: Whether that is because its file is too large to be read.
    """

    text: str
    problem: str = ""
    is_unread: bool = False


def read_caption(image: Path | OpenFile) -> Caption:
    """Read the text beside an image; what cannot be its caption costs the caption alone.

    Args:
        image: The image's file, local or of an fsspec file system.

    Raises:
        ImageLoadError: If it cannot be read.
    """
    if isinstance(image, OpenFile):
        most, path = _MOST_FETCHED, posixpath.splitext(image.path)[0] + ".txt"
        open_it = partial(image.fs.open, path, "rb")
    else:
        most, path = _MOST_READ, image.with_suffix(".txt").as_posix()
        # By the same door as images: a pipe of that name would keep us waiting.
        open_it = partial(open_file, Path(path))
    shown = posixpath.basename(path)
    try:
        with open_it() as stream:
            content = read_up_to(stream, most + 1)
        if len(content) > most:
            return Caption("", f"{shown} has more than {most} bytes", is_unread=True)
        text = content.decode("utf-8-sig")
    except FileNotFoundError:
        return Caption("")
    except Exception as err:  # The libraries of file systems raise errors of many kinds.
        reason = f"its caption {shown} cannot be read ({err}); save it as UTF-8"
        raise ImageLoadError(reason, source=describe_source(image)) from err
    return check_caption(text.replace("\r\n", "\n").replace("\r", "\n").strip(), shown)


def check_caption(text: str, source: str) -> Caption:
    """Return a caption, or why a text cannot be one.

    Args:
        text: The text.
        source: Where it is from, for the reason.
    """
    if len(text.encode("utf-8", "surrogatepass")) > MAX_CAPTION_BYTES:
        reason = f"{source} has more than {MAX_CAPTION_BYTES} bytes, which Milvus stores"
        return Caption("", reason)
    if _CONTROL.search(text):
        return Caption("", f"{source} holds binary data, not a caption")
    if _is_markup(text) or _holds_labels(text):
        return Caption("", f"{source} holds numbers or markup as label files do, not a caption")
    return Caption(text)


def _is_markup(text: str) -> bool:
    """Whether a text is JSON, also a line of it or its beginning, or XML."""
    if _XML.match(text) or _JSON_BEGINNING.match(text):
        return True
    if not text.startswith(("{", "[")):
        return False
    with suppress(ValueError, RecursionError):
        # A list of texts may be a caption, as of tags.
        content = json.loads(text)
        texts = isinstance(content, list) and all(isinstance(one, str) for one in content)
        return isinstance(content, (dict, list)) and not texts
    return False


def _holds_labels(text: str) -> bool:
    """Whether a text is an annotation such as YOLO's, DOTA's, ICDAR's or KITTI's, or landmarks."""
    lines = [line.strip() for line in text.splitlines()]
    rows = [_tokens(line) for line in lines if line and not line.startswith("#")]
    kinds = [_kind_of(tokens) for tokens in rows]
    if len(rows) > 1 and kinds[0] == "words" and len(rows[0]) == len(rows[1]):
        del kinds[0]  # The names of the columns.
    if "words" in kinds:
        return False
    # A lone line of whole numbers may be of lottery numbers, years or a telephone's.
    counts = Counter(kinds)
    return counts["box"] >= 1 or counts["whole box"] >= 2 or counts["point"] >= 3


def _kind_of(tokens: list[str]) -> str:
    """Say what a line of a label file may be; else it is of words."""
    is_number = [_NUMBER.fullmatch(token) is not None for token in tokens]
    n_names = is_number.index(True) if True in is_number else len(tokens)
    n_numbers = sum(1 for _ in takewhile(bool, is_number[n_names:]))
    is_all = n_names + n_numbers == len(tokens)
    if is_all and n_numbers >= 4 and n_names <= _MOST_NAMES:
        is_fraction = any("." in token or "e" in token.lower() for token in tokens[n_names:])
        return "box" if is_fraction else "whole box"
    if n_names == 0 and n_numbers >= 8:
        return "box"  # Four corners, and what they are of.
    if is_all and n_names == 0 and n_numbers in (2, 3):
        return "point"
    # As "gsd:0.146" of DOTA's files, and brackets.
    return "head" if len(tokens) <= 2 and (not tokens or ":" in tokens[0]) else "words"


def _tokens(line: str) -> list[str]:
    return [token for token in _SEPARATORS.split(line) if token]
