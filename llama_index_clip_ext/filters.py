"""LlamaIndex's metadata filters as expressions of Milvus."""

from __future__ import annotations

import math
import os
import reprlib
from collections.abc import Iterator, Mapping
from contextlib import suppress

from llama_index.core.schema import ImageDocument, ImageNode
from llama_index.core.vector_stores.types import (
    FilterCondition,
    FilterOperator,
    MetadataFilter,
    MetadataFilters,
)

from .errors import FilterError
from .expressions import (
    MAX_INT,
    NEVER,
    DynamicField,
    Engine,
    Value,
    compared,
    has_pattern,
    holding,
    ids_expression,
    joined,
    lite_list,
    literal,
    negated,
)
from .rows import Field, Modality

_NEGATED = {FilterOperator.NE: FilterOperator.EQ, FilterOperator.NIN: FilterOperator.IN}
_OF_LISTS = (FilterOperator.CONTAINS, FilterOperator.ANY, FilterOperator.ALL)
_WITH_LISTS = (FilterOperator.IN, FilterOperator.NIN, FilterOperator.ANY, FilterOperator.ALL)
NODE_TYPE = "_node_type"
_IMAGE_TYPES = [ImageNode.class_name(), ImageDocument.class_name()]
_MAX_DEPTH = 32  # Milvus Lite's parser recurses, and gives up before 60.


def filter_expression(
    filters: MetadataFilters | None,
    fields: Mapping[str, Field],
    *,
    engine: Engine = Engine.SERVER,
) -> str:
    """Translate LlamaIndex's filters, nested ones included, exactly or not at all.

    They mean what they mean to LlamaIndex's `SimpleVectorStore`: a row without the key is matched
    by ``!=``, ``nin`` and ``is_empty`` alone; ``True`` is 1, so that a boolean is asked by 1 or 0;
    ``is_empty`` is a missing key, ``None``, ``""`` or ``[]``. Where it differs:

    * Values that Python cannot compare do not match, where it raises ``TypeError``.
    * ``contains``, ``any`` and ``all`` ask for members of a list and parts of a text, and not for
      keys of a mapping. Where the engine cannot ask for a part, `text_guard` tells if it matters.
    * In a column of the collection (``file_name``, ``width``...), ``""`` and -1 are missing values.
    * A ``file_path`` may be relative, begin with ``~`` or lead over links: a row matches ``==`` and
      ``in`` by the path as given or by that which `ingest_images` stores.
    * ``doc_id`` is the document that a node comes from, ``modality`` is ``image`` or ``text``;
      every other key is of the node's metadata.
    * A server rounds integers beyond 2**53 to compare them with floats.

    Dates are compared as text: ISO 8601 in one time zone orders rightly, so that
    ``last_modified_date`` (UTC) is ``>=`` ``"2024-05-01"`` and ``<`` ``"2024-06"`` in May 2024.

    Args:
        filters: AND, OR and NOT of filters; NOT means none of them. An empty group says nothing.
        fields: Where keys are kept; every other key is a dynamic field of its own name.
        engine: Who is to read the expression.

    Returns:
        The expression, exact for rows that this package wrote; empty if there is nothing to filter
        by.

    Raises:
        FilterError: If an operator, a key or a value has no exact equivalent, or groups nest too
            deep.
    """
    if filters is None:
        return ""
    if not isinstance(filters, MetadataFilters):
        raise FilterError(
            f"filters is a {type(filters).__name__}, expected MetadataFilters(filters=[...])"
        )
    return _group(filters, fields, engine, 1)


def text_guard(filters: MetadataFilters | None, fields: Mapping[str, Field], engine: Engine) -> str:
    """Return a condition that no row may meet, if an expression of these filters is to be exact.

    Milvus Lite has no pattern for parts with wildcards in them, and Milvus before 2.4 for none:
    ``contains`` then finds lists, and is right only if no row has a text under that key. It is
    empty where the engine can express all of them.
    """
    tests = [
        DynamicField(field.name, "", engine).may_hold(part)
        for _, field, part in _guarded(filters, fields, engine)
    ]
    return joined("or", tests, engine)


def guarded_filters(
    filters: MetadataFilters | None, fields: Mapping[str, Field], engine: Engine
) -> str:
    """Name the filters that `text_guard` is for."""
    return ", ".join(
        f"{item.key!r} {item.operator.value} {reprlib.repr(part)}"
        for item, _, part in _guarded(filters, fields, engine)
    )


def _guarded(
    filters: MetadataFilters | None, fields: Mapping[str, Field], engine: Engine
) -> Iterator[tuple[MetadataFilter, Field, str]]:
    for item in _leaves(filters):
        field = fields.get(item.key) or Field(item.key)
        if item.operator not in _OF_LISTS or field.type:
            continue
        for part in item.value if isinstance(item.value, list) else [item.value]:
            if isinstance(part, str) and not has_pattern(part, engine):
                yield item, field, part


def _leaves(filters: MetadataFilters | None) -> Iterator[MetadataFilter]:
    for item in filters.filters if filters else ():
        if isinstance(item, MetadataFilters):
            yield from _leaves(item)
        else:
            yield item


def modality_expression(modality: Modality, fields: Mapping[str, Field], engine: Engine) -> str:
    """Say that a row of a collection that another program made is an image, or a text.

    LlamaIndex's stores keep the class of the node under ``_node_type``; a row without it becomes an
    image.
    """
    if column := fields.get(NODE_TYPE):
        image = ids_expression(column.name, [*_IMAGE_TYPES, ""])
    else:
        field = DynamicField(NODE_TYPE, NODE_TYPE, engine)
        image = joined("or", [field.is_empty(), field.is_in(_IMAGE_TYPES)], engine)
    return image if modality == "image" else negated(image)


def _group(group: MetadataFilters, fields: Mapping[str, Field], engine: Engine, depth: int) -> str:
    if depth > _MAX_DEPTH:
        raise FilterError(f"filters are nested deeper than {_MAX_DEPTH} groups; flatten them")
    parts = []
    for item in group.filters:
        if isinstance(item, MetadataFilters):
            part = _group(item, fields, engine, depth + 1)
        else:
            part = _one(item, fields, engine)
        if part:
            parts.append(part)
    if group.condition == FilterCondition.NOT and parts:
        return negated(joined("or", parts, engine))
    return joined("or" if group.condition == FilterCondition.OR else "and", parts, engine)


def _one(item: MetadataFilter, fields: Mapping[str, Field], engine: Engine) -> str:
    try:
        field = fields.get(item.key) or Field(item.key)
        operator, values = _NEGATED.get(item.operator, item.operator), _values(item)
        if item.key == "file_path" and operator in (FilterOperator.EQ, FilterOperator.IN):
            operator, values = FilterOperator.IN, _as_stored(values)
        elif item.key == "file_path" and any(map(_is_relative, values)):
            raise FilterError("paths are stored whole; begin with '/', or compare by '==' or 'in'")
        if field.type:
            test = _of_column(operator, field, field.type, values, engine)
        else:
            lists = lite_list(
                item.key, is_bare=field.name == item.key, has_content="_node_content" in fields
            )
            test = _of_dynamic_field(
                operator, DynamicField(field.name, lists, engine), values, engine
            )
    except FilterError as err:
        wanted = f"{item.key!r} {item.operator.value} {reprlib.repr(item.value)}"
        raise FilterError(f"filter {wanted}: {err}") from err
    return negated(test) if item.operator in _NEGATED else test


def _values(item: MetadataFilter) -> list[Value]:
    """Return what a filter compares with, numbers as integers where they are whole."""
    value = item.value
    if item.operator == FilterOperator.IS_EMPTY:
        return []
    if item.operator == FilterOperator.TEXT_MATCH_INSENSITIVE:
        raise FilterError(
            "Milvus minds the case; keep the text in lower case under another key as well, and use "
            "'text_match'"
        )
    if value is None:
        raise FilterError("there is no value; rows without one are asked for by 'is_empty'")
    if isinstance(value, list) != (item.operator in _WITH_LISTS):
        expected = "a list" if item.operator in _WITH_LISTS else "one value"
        raise FilterError(f"{item.operator.value!r} needs {expected}")
    values: list[Value] = [*value] if isinstance(value, list) else [value]
    for each in values:
        literal(each)
    if item.operator == FilterOperator.TEXT_MATCH and not isinstance(value, str):
        raise FilterError("'text_match' needs a text")
    return [each if isinstance(each, str) else _number(each) for each in values]


def _is_relative(path: Value) -> bool:
    """Whether a text can only be the beginning of a path that is not stored so."""
    return isinstance(path, str) and path.startswith(("./", "../", "~/"))


def _as_stored(paths: list[Value]) -> list[Value]:
    """Return paths, and what ingesting makes of each: absolute, without links."""
    found = dict.fromkeys(paths)
    for path in paths:
        if isinstance(path, str) and path and "://" not in path:
            with suppress(OSError, ValueError):
                found[os.path.realpath(os.path.expanduser(path))] = None
    return list(found)


def _number(value: float) -> int | float:
    # A server compares integers exactly with integers only.
    is_whole = isinstance(value, int) or (value.is_integer() and abs(value) <= MAX_INT)
    return int(value) if is_whole else value


def _of_column(
    operator: FilterOperator, field: Field, kind: type, values: list[Value], engine: Engine
) -> str:
    name, missing = field.name, field.missing
    if kind not in (str, int, float):
        raise FilterError("the collection has a column of that name whose type cannot be filtered")
    if operator in _OF_LISTS and kind is not str:
        raise FilterError(f"a column of {kind.__name__} holds no lists; use '==' or 'in'")
    for value in values:
        if isinstance(value, str) != (kind is str):
            raise FilterError(f"{value!r} compared with a column of {kind.__name__}")
    if operator == FilterOperator.IS_EMPTY:
        blank = "" if kind is str else missing
        return NEVER if blank is None else compared(name, "==", blank)
    if operator in (FilterOperator.EQ, FilterOperator.IN):
        if missing in values:
            raise FilterError(f"{missing!r} stands for a missing value here; use 'is_empty'")
        wanted = [value for value in values if kind is not int or isinstance(value, int)]
        if operator == FilterOperator.EQ and wanted:
            return compared(name, "==", wanted[0])
        return ids_expression(name, wanted)
    if operator == FilterOperator.TEXT_MATCH:
        test = holding(name, str(values[0]), engine)
    elif operator in _OF_LISTS:
        if operator == FilterOperator.ALL and not values:
            raise FilterError("'all' needs at least one value")
        word = "and" if operator == FilterOperator.ALL else "or"
        parts = [holding(name, str(value), engine) for value in values]
        test = joined(word, parts, engine) or NEVER
    else:
        sign, value = operator.value, values[0]
        if kind is int and isinstance(value, float):
            # Of integers, those below 2.5 are those up to 2.
            sign, value = (">" if sign in (">", ">=") else "<="), math.floor(value)
        test = compared(name, sign, value)
    return test if missing is None else joined("and", [compared(name, "!=", missing), test], engine)


def _of_dynamic_field(
    operator: FilterOperator, field: DynamicField, values: list[Value], engine: Engine
) -> str:
    if operator == FilterOperator.IS_EMPTY:
        return field.is_empty()
    if operator == FilterOperator.TEXT_MATCH:
        return field.has_part(str(values[0]))
    if operator in (FilterOperator.EQ, FilterOperator.IN):
        return field.is_in(values)
    if operator not in _OF_LISTS:
        return field.compares(operator.value, values[0])
    if operator != FilterOperator.ALL:
        return field.contains_any(values)
    if not values:
        raise FilterError("'all' needs at least one value")
    return joined("and", [field.contains_any([value]) for value in values], engine)
