"""LlamaIndex metadata filters as Milvus expressions, every literal escaped."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from llama_index.core.vector_stores.types import (
    FilterCondition,
    FilterOperator,
    MetadataFilter,
    MetadataFilters,
)

from .errors import FilterError

_COMPARISONS = {
    FilterOperator.EQ: "==",
    FilterOperator.NE: "!=",
    FilterOperator.GT: ">",
    FilterOperator.GTE: ">=",
    FilterOperator.LT: "<",
    FilterOperator.LTE: "<=",
}
_LISTS = {FilterOperator.IN: "in", FilterOperator.NIN: "not in"}
_ARRAYS = {
    FilterOperator.CONTAINS: "json_contains",
    FilterOperator.ANY: "json_contains_any",
    FilterOperator.ALL: "json_contains_all",
}
_ESCAPES = {"\\": "\\\\", '"': '\\"', "\n": "\\n", "\r": "\\r", "\t": "\\t"}
# Milvus Lite takes "in" and json_contains of a bare name only; these are no names there.
_LITE_KEYWORDS = frozenset(
    ("and", "exists", "false", "in", "interval", "is", "iso", "like", "not", "null", "or", "true")
)
# Quotes, backslashes and control characters in a key fail silently on a server.
_UNSAFE_KEY = re.compile(r'["\\/\x00-\x1f\x7f]')


def literal(value: Any) -> str:
    """Write a string, number, boolean or list of them as Milvus reads it.

    ``json.dumps`` will not do: Milvus Lite rejects its escapes of control characters, a server
    those of emoji.

    Raises:
        FilterError: If Milvus has no literal for the value.
    """
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int) or (isinstance(value, float) and math.isfinite(value)):
        return repr(value)
    if isinstance(value, str):
        return '"' + "".join(_ESCAPES.get(character, character) for character in value) + '"'
    if isinstance(value, Sequence):
        return f"[{', '.join(literal(item) for item in value)}]"
    raise FilterError(f"cannot filter by {value!r} of type {type(value).__name__}")


def ids_expression(field: str, ids: Sequence[str]) -> str:
    """Say that a field is one of these ids."""
    return f"{field} in {literal(list(ids))}"


def filter_expression(
    filters: MetadataFilters | None, columns: Mapping[str, str], *, is_lite: bool = False
) -> str:
    """Translate LlamaIndex's filters, nested ones included.

    A row that lacks the key matches no operator, as in LlamaIndex's own stores.

    Args:
        filters: AND, OR and NOT of filters; NOT means none of them.
        columns: Fields of the collection's schema, each with the literal that stands for a missing
            value (``""`` if none does); every other key is a dynamic field.
        is_lite: Whether Milvus Lite is to read it, whose grammar is narrower.

    Returns:
        The expression; empty if there is nothing to filter by.

    Raises:
        FilterError: If an operator, a key or a value has no exact equivalent.
    """
    if filters is None:
        return ""
    parts = []
    for item in filters.filters:
        if isinstance(item, MetadataFilters):
            part = filter_expression(item, columns, is_lite=is_lite)
        else:
            part = _one(item, columns, is_lite)
        if part:
            parts.append(f"({part})")
    if filters.condition == FilterCondition.NOT:
        return " and ".join(f"(not {part})" for part in parts)
    joint = " or " if filters.condition == FilterCondition.OR else " and "
    return joint.join(parts)


def _one(item: MetadataFilter, columns: Mapping[str, str], is_lite: bool) -> str:
    key = _key(item.key, columns, is_lite)
    condition = _condition(item, key)
    if item.key not in columns:
        return f"(exists {key}) and ({condition})"
    missing = columns[item.key]
    if not missing or item.operator in (FilterOperator.EQ, FilterOperator.IN):
        return condition
    return f"({key} != {missing}) and ({condition})"


def _condition(item: MetadataFilter, key: str) -> str:
    if item.operator in _COMPARISONS:
        if item.value is None:
            raise FilterError(f"filter on {item.key!r} has no value to compare with")
        return f"{key} {_COMPARISONS[item.operator]} {literal(item.value)}"
    if item.operator in _LISTS:
        values = _list(item)
        if key.startswith("$") and values:
            # Milvus Lite knows no "in" of such a key.
            any_of = " or ".join(f"{key} == {literal(value)}" for value in values)
            return any_of if item.operator == FilterOperator.IN else f"not ({any_of})"
        if not values:
            return "id in []" if item.operator == FilterOperator.IN else "not (id in [])"
        return f"{key} {_LISTS[item.operator]} {literal(values)}"
    if item.operator == FilterOperator.CONTAINS:
        return f"json_contains({key}, {literal(item.value)})"
    if item.operator in _ARRAYS:
        return f"{_ARRAYS[item.operator]}({key}, {literal(_list(item))})"
    if item.operator == FilterOperator.TEXT_MATCH and isinstance(item.value, str):
        if re.search(r"[%_\\]", item.value):
            raise FilterError(f"text_match for {item.value!r}: %, _ and \\ are Milvus's wildcards")
        return f"{key} like {literal(f'%{item.value}%')}"
    known = ", ".join(operator.value for operator in (*_COMPARISONS, *_LISTS, *_ARRAYS))
    raise FilterError(
        f"filter on {item.key!r}: operator {item.operator.value!r} is not supported; supported are "
        f"{known}, text_match"
    )


def _list(item: MetadataFilter) -> list[Any]:
    if not isinstance(item.value, list):
        raise FilterError(
            f"filter on {item.key!r}: {item.operator.value!r} needs a list, got {item.value!r}"
        )
    return item.value


def _key(key: str, columns: Mapping[str, str], is_lite: bool) -> str:
    if key in columns:
        return key
    if not key or _UNSAFE_KEY.search(key):
        raise FilterError(
            f"cannot filter by the key {key!r}: quotes, slashes and control characters"
        )
    if is_lite and key.isidentifier() and key.lower() not in _LITE_KEYWORDS:
        return key
    # $meta[...] holds for any key, where a bare one with a dash would be read as a subtraction.
    return f"$meta[{json.dumps(key, ensure_ascii=False)}]"
