"""Metadata as the JSON that is stored, so that what is hashed is what is read back."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from enum import Enum
from numbers import Rational
from typing import Any

from pydantic import BaseModel
from pydantic_core import to_jsonable_python

_INT64 = (-(2**63), 2**63 - 1)


def to_json(value: Any) -> Any:
    """Return a metadata value as JSON has it; equal values come out equal in every process.

    Sets become sorted lists; numpy's, pandas' and torch's values Python numbers and lists; EXIF's
    rationals floats; dates ISO 8601; paths and UUIDs texts; dataclasses and pydantic's models
    objects; and all else what pydantic makes of it.

    Raises:
        TypeError: If JSON has nothing for the value.
        ValueError: If two keys of a mapping are one in JSON.
    """
    if value is None or type(value) in (str, bool, int, float):
        return value
    if isinstance(value, Enum):
        return to_json(value.value)
    if isinstance(value, str):
        return str.__str__(value)
    if callable(getattr(value, "tolist", None)):
        return to_json(_listed(value))
    if isinstance(value, (set, frozenset)):
        return sorted(map(to_json, value), key=lambda item: json.dumps(item, sort_keys=True))
    if isinstance(value, (list, tuple)):
        return [to_json(item) for item in value]
    if isinstance(value, Mapping):
        content = {_key(key): to_json(item) for key, item in value.items()}
        if len(content) < len(value):
            raise ValueError(f"keys {[*value]} are not different in JSON, where all are texts")
        return content
    if isinstance(value, Rational) and not isinstance(value, int):
        return float(value)
    if isinstance(value, os.PathLike):
        return to_json(os.fspath(value))
    if isinstance(value, Iterator):
        raise TypeError("an iterator can be read only once; make it a list")
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: to_json(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, BaseModel):
        return to_json(value.model_dump())
    try:
        return to_jsonable_python(value)
    except ValueError as err:
        raise TypeError(str(err)) from err


def _listed(value: Any) -> Any:
    """Return what numpy and its like hold as Python's numbers, texts and dates."""
    kind = getattr(getattr(value, "dtype", None), "kind", "")
    if kind in ("M", "m"):
        # Of nanoseconds numpy makes plain numbers; Python's dates have microseconds.
        value = value.astype(f"{'datetime' if kind == 'M' else 'timedelta'}64[us]")
    listed = value.tolist()
    # Python has no number of a long double's precision.
    return float(value) if type(listed) is type(value) else listed


def checked_json(key: str, value: Any) -> Any:
    """Return a metadata value as JSON, after refusing what Milvus could not store.

    Raises:
        TypeError: If JSON has nothing for the value.
        ValueError: If it holds text that is not Unicode, or an integer beyond 64 bits.
    """
    try:
        converted = to_json(value)
        content = json.dumps({key: converted}, ensure_ascii=False, allow_nan=False)
        content.encode()
        outside = [one for one in _integers(content) if not _INT64[0] <= one <= _INT64[1]]
    except UnicodeEncodeError as err:
        raise ValueError(
            f"metadata {key!r} is not Unicode text, as a file name in another encoding is not; "
            "rename the file"
        ) from err
    except (TypeError, ValueError, RecursionError) as err:
        raise TypeError(
            f"metadata {key!r} cannot be written as JSON ({type(value).__name__}: {err}); convert "
            "it, for example by str(), and leave out NaN and infinity"
        ) from err
    if outside:
        raise ValueError(f"metadata {key!r} holds {outside[0]}, more than 64 bits; store a text")
    return converted


def checked_metadata(metadata: Mapping[Any, Any]) -> dict[str, Any]:
    """Return metadata as JSON, their keys as texts; see `checked_json`.

    Raises:
        TypeError: If JSON has nothing for a value.
        ValueError: If Milvus could not store one, or two keys are one in JSON.
    """
    content = {_key(key): checked_json(_key(key), value) for key, value in metadata.items()}
    if len(content) < len(metadata):
        raise ValueError(f"metadata keys {[*metadata]} are not different as texts")
    return content


def _key(key: Any) -> str:
    return str(to_json(key))


def _integers(content: str) -> list[int]:
    """Return the integers in a JSON text, however deep."""
    found: list[int] = []
    json.loads(content, parse_int=lambda digits: found.append(int(digits)))
    return found
