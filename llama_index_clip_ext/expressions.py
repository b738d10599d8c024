"""What Milvus reads: literals, and tests of dynamic fields that hold on each of its engines."""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from enum import Enum
from typing import Any, TypeAlias

from .errors import FilterError
from .scripts import is_unicode

Value: TypeAlias = str | int | float

NEVER = "id in []"
MAX_INT = 2**63 - 1
_MAX_EXACT = 2**53  # Below, every integer is one float64, and no other integer is.
_CHAIN = 8
_ESCAPES = {"\\": "\\\\", '"': '\\"', "\n": "\\n", "\r": "\\r", "\t": "\\t"}
# A server finds no key that JSON must write with \u.
_UNSAFE_KEY = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f]")
# What Milvus Lite does not read as the name of a field, being keywords or its own.
_LITE_RESERVED = frozenset(
    (
        *("and", "exists", "false", "in", "interval", "is", "iso", "like", "not", "null", "or"),
        *("true", "_partition", "_seq"),
    )
)
# Milvus's patterns read these otherwise, and Milvus Lite has no escape for them.
_WILDCARD = re.compile(r"[%_\\]")
_SIGNS: dict[str, Callable[[Any, Any], bool]] = {
    "==": operator.eq,
    ">": operator.gt,
    ">=": operator.ge,
    "<": operator.lt,
    "<=": operator.le,
}


class Engine(Enum):
    """Who reads an expression: their grammars differ, and some of their answers."""

    LITE = "Milvus Lite"
    SERVER = "Milvus"
    OLD_SERVER = "Milvus before 2.4"


def literal(value: Any) -> str:
    """Write a string, number, boolean or list of them as Milvus reads it.

    ``json.dumps`` will not do: Milvus Lite rejects its escapes of control characters, a server
    those of emoji.

    Raises:
        FilterError: If Milvus has no literal for the value.
    """
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int) and abs(value) <= MAX_INT:
        return repr(value)
    if isinstance(value, float) and math.isfinite(value):
        return repr(value)
    if isinstance(value, str) and is_unicode(value):
        return '"' + "".join(_ESCAPES.get(character, character) for character in value) + '"'
    if isinstance(value, Sequence) and not isinstance(value, str):
        return f"[{', '.join(literal(item) for item in value)}]"
    raise FilterError(
        f"cannot filter by {value!r} of type {type(value).__name__}, expected Unicode text, a "
        "finite number, or an integer of at most 64 bits"
    )


def ids_expression(field: str, ids: Sequence[Value]) -> str:
    """Say that a column is one of these ids, or of these values of its type."""
    return f"{field} in {literal(list(ids))}"


def compared(field: str, sign: str, value: Value) -> str:
    """Compare a column with a value of its type."""
    return f"{field} {sign} {literal(value)}"


def holding(field: str, part: str, engine: Engine) -> str:
    """Say that a column's text holds another.

    Raises:
        FilterError: If the engine has no such pattern.
    """
    return f"{field} like {pattern(part, engine)}"


def lite_list(key: str, *, is_bare: bool, has_content: bool) -> str:
    """Return what Milvus Lite's list functions take for a key of the metadata.

    Args:
        key: The key.
        is_bare: Whether there is a dynamic field of its name.
        has_content: Whether the collection has the whole node as JSON, in a column.

    Returns:
        A bare name, or a path from one; empty if there is neither.
    """
    if is_bare and is_lite_name(key):
        return key
    return f'_node_content["metadata"][{literal(key)}]' if has_content else ""


def negated(test: str) -> str:
    """Say the opposite."""
    return f"not ({test})"


def joined(word: str, tests: Sequence[str], engine: Engine) -> str:
    """Join tests by ``and`` or ``or``; for a server, many as a balanced tree.

    It nests a chain, one level per test, and searches by none of 48 (though it counts by it).
    Milvus Lite takes any chain, and few parentheses in each other.
    """
    if len(tests) <= _CHAIN or engine == Engine.LITE:
        return f" {word} ".join(f"({test})" for test in tests)
    halves = tests[: len(tests) // 2], tests[len(tests) // 2 :]
    return f" {word} ".join(f"({joined(word, half, engine)})" for half in halves)


def check_whole(expression: str) -> str:
    """Return an expression of the user's own, which cannot end what it is put into.

    Raises:
        FilterError: If its parentheses or quotes do not pair.
    """
    depth, quote, is_escaped = 0, "", False
    for character in expression:
        if quote:
            quote = "" if character == quote and not is_escaped else quote
            is_escaped = character == "\\" and not is_escaped
        elif character in "'\"":
            quote = character
        depth += 0 if quote else {"(": 1, ")": -1}.get(character, 0)
        if depth < 0:
            break
    if depth or quote:
        raise FilterError(f"string_expr {expression!r} has a parenthesis or quote without its twin")
    return expression


def pattern(part: str, engine: Engine) -> str:
    """Write what ``like`` matches texts by that hold a part.

    Raises:
        FilterError: If the engine has no such pattern.
    """
    if not part:
        return '"%"'
    if engine == Engine.OLD_SERVER:
        raise FilterError(
            "before 2.4, Milvus matches the beginning of a text only; ask for that by >= and <, "
            "for the whole by == or in, or upgrade the server"
        )
    if engine == Engine.LITE and (wildcard := _WILDCARD.search(part)):
        raise FilterError(
            f"Milvus Lite has no escape for {wildcard[0]!r} in {part!r}; ask for a part without "
            "it, for the whole text by == or in, or use a Milvus server"
        )
    return literal("%" + re.sub(r"([%_\\])", r"\\\1", part) + "%")


def has_pattern(part: str, engine: Engine) -> bool:
    """Whether the engine can match texts that hold a part."""
    if engine == Engine.LITE:
        return not _WILDCARD.search(part)
    return not part or engine != Engine.OLD_SERVER


class DynamicField:
    """Tests of a dynamic field, each true or false of a row whatever is, or is not, there.

    On Milvus Lite a comparison with a missing value, or of two types, is neither, nor is its
    ``not``. On a server booleans are no numbers, where to Python and Milvus Lite ``True`` is 1.

    Args:
        name: The field's name.
        lite_lists: What Milvus Lite calls it where a function wants a list; empty if nothing.
        engine: Who reads the tests.

    Raises:
        FilterError: If Milvus finds no field of that name.
    """

    def __init__(self, name: str, lite_lists: str, engine: Engine) -> None:
        if not name or name == "$meta" or _UNSAFE_KEY.search(name):
            raise FilterError(
                "Milvus finds no key that is empty, '$meta', or of control characters"
            )
        # $meta[...] holds for any key; a bare one with a dash would be read as a subtraction.
        self._field = f"$meta[{literal(name)}]"
        self._engine = engine
        self._is_lite = engine == Engine.LITE
        self._lite_lists = lite_lists
        # Milvus Lite takes "in" of a bare name only.
        self._members = (name if is_lite_name(name) else "") if self._is_lite else self._field

    def is_empty(self) -> str:
        """Test for a missing value or an empty text; empty lists are not stored."""
        return f'not ((exists {self._field}) and {self._field} != "")'

    def has_part(self, part: str) -> str:
        """Test for a text that holds another."""
        return f"(exists {self._field}) and {self._field} like {pattern(part, self._engine)}"

    def is_in(self, values: Sequence[Value]) -> str:
        """Test for one of these values."""
        tests = [self._is_one_of(alike) for alike in _by_type(values)]
        return self._any([*tests, *self._booleans("==", values)])

    def compares(self, sign: str, value: Value) -> str:
        """Test for a value of the same type that is greater or less."""
        test = f"{self._field} {sign} {literal(value)}"
        if self._is_lite:
            test = f"{self._is_like_typed(value)} and {test}"
        return self._any([test, *self._booleans(sign, [value])])

    def contains_any(self, values: Sequence[Value]) -> str:
        """Test for a list that holds one of these values, or a text that holds one as a part.

        Parts for which the engine has no pattern are looked for in lists only; see `may_hold`.
        """
        texts = [value for value in values if isinstance(value, str)]
        parts = [
            f"{self._field} like {pattern(text, self._engine)}"
            for text in texts
            if has_pattern(text, self._engine)
        ]
        return self._any([*self._lists_with(values), *parts])

    def may_hold(self, part: str) -> str:
        """Test for a text that may hold a part for which the engine has no pattern."""
        if self._is_lite:
            # Any one character, in place of each that cannot be asked for.
            return self._any(
                [f"{self._field} like {literal('%' + _WILDCARD.sub('_', part) + '%')}"]
            )
        return self._any([f'{self._field} like "%"'])

    def _lists_with(self, values: Sequence[Value]) -> list[str]:
        """Test for a list that holds one of these values."""
        if self._is_lite:
            if not self._lite_lists:
                raise FilterError("Milvus Lite finds lists under plain names only; rename the key")
            # It would look into a text that reads as a list.
            no_text = f'not ({self._field} like "%")'
            return [
                f"{no_text} and json_contains_any({self._lite_lists}, {literal(alike)})"
                for alike in _by_type(values)
            ]
        # A server finds an integer among floats by a float only.
        inexact = [value for value in values if isinstance(value, int) and abs(value) >= _MAX_EXACT]
        rest = [
            float(value) if isinstance(value, int) else value
            for value in values
            if value not in inexact
        ]
        flags = [flag for flag in (False, True) if flag in values]
        return [
            f"json_contains_any({self._field}, {literal(alike)})"
            for alike in (*_by_type(rest), inexact, flags)
            if alike
        ]

    def _any(self, tests: Iterable[str]) -> str:
        return f"(exists {self._field}) and ({joined('or', list(tests), self._engine) or NEVER})"

    def _is_like_typed(self, value: Value) -> str:
        # Times zero, a text is "" to Milvus Lite, and a list [].
        return f'{self._field} like "%"' if isinstance(value, str) else f"{self._field} * 0 == 0"

    def _is_one_of(self, alike: Sequence[Value]) -> str:
        if len(alike) == 1:
            return f"{self._field} == {literal(alike[0])}"
        if not self._members:
            tests = [f"{self._field} == {literal(value)}" for value in alike]
            return joined("or", tests, self._engine)
        test = f"{self._members} in {literal(alike)}"
        # Of a list, Milvus Lite's "in" fails.
        return f"{self._is_like_typed(alike[0])} and {test}" if self._is_lite else test

    def _booleans(self, sign: str, values: Sequence[Value]) -> Iterator[str]:
        """Say which booleans compare so with a number, to a server."""
        numbers = [value for value in values if not isinstance(value, str)]
        for flag in () if self._is_lite else (False, True):
            if any(_SIGNS[sign](flag, number) for number in numbers):
                yield f"{self._field} == {literal(flag)}"


def is_lite_name(name: str) -> bool:
    """Whether Milvus Lite reads this as the name of a field."""
    # A first letter, as Python has them: "¼" is a digit to some of it, and none to the rest.
    is_word = all(character.isalnum() or character == "_" for character in name)
    is_word = is_word and (name[:1].isalpha() or name[:1] == "_")
    return is_word and name.lower() not in _LITE_RESERVED


def _by_type(values: Sequence[Value]) -> list[list[Value]]:
    """Group values: a list that Milvus is to read holds one type."""
    groups: dict[type, list[Value]] = {}
    for value in values:
        groups.setdefault(type(value), []).append(value)
    return list(groups.values())
