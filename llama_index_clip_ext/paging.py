"""Answers of any size, in parts that one message of Milvus holds."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeAlias, TypeVar

from .errors import AnswerTooLargeError
from .expressions import Engine, compared, joined

T = TypeVar("T")
R = TypeVar("R")

Row: TypeAlias = dict[str, Any]

# Rows of an answer, at most: a page of Milvus Lite costs a look at every row.
_PAGE = 4_000
_LITE_PAGE = 20_000
_VECTOR_PAGE = 1_000  # As Python's floats a vector takes 16 times its bytes.


def pages(
    query: Callable[..., list[Row]],
    expression: str,
    fields: Sequence[str],
    engine: Engine,
    *,
    with_vectors: bool = False,
    partitions: Sequence[str] | None = None,
) -> Iterator[list[Row]]:
    """Read all rows that an expression matches, in the order of their ids.

    As pymilvus's query iterator, which puts ids into its expressions unescaped: each page begins
    behind the last id. Milvus Lite, and servers from 2.4, keep the order for an iterator's requests
    only; those see what a session wrote once another read has waited for it.

    Args:
        query: The client's ``query``, bound to the collection.
        expression: The condition; empty for none.
        fields: What is read of each row, beside its id.
        engine: Who reads the expression.
        with_vectors: Whether vectors are among the fields.
        partitions: Those to look into; ``None`` for all.

    Raises:
        AnswerTooLargeError: If one row exceeds what a message holds.
    """
    size = _VECTOR_PAGE if with_vectors else _LITE_PAGE if engine == Engine.LITE else _PAGE
    if engine == Engine.SERVER:
        query(filter=compared("id", "!=", ""), output_fields=["id"], limit=1)
    # A page ends with the rows of whichever segment is read first, rather than leave out what lies
    # between.
    ordered = {"iterator": "True", "reduce_stop_for_best": "True"}
    options = {} if engine == Engine.OLD_SERVER else ordered
    last = ""
    while True:
        behind = compared("id", ">", last)
        try:
            page = query(
                filter=joined("and", [part for part in (behind, expression) if part], engine),
                output_fields=["id", *fields],
                partition_names=partitions,
                limit=size,
                **options,
            )
        except AnswerTooLargeError:
            if size == 1:
                raise
            size = max(1, size // 2)
            continue
        if not page:
            return
        last = page[-1]["id"]
        yield page


def in_parts(ask: Callable[[Sequence[T]], Sequence[R]], items: Sequence[T]) -> Iterator[R]:
    """Ask about items together, or where the answer is too large, about each half.

    Args:
        ask: Returns any number of results.
        items: What to ask about.

    Raises:
        AnswerTooLargeError: If the answer about one item is too large.
    """
    try:
        answers = ask(items)
    except AnswerTooLargeError:
        if len(items) <= 1:
            raise
        middle = len(items) // 2
        yield from in_parts(ask, items[:middle])
        yield from in_parts(ask, items[middle:])
    else:
        yield from answers
