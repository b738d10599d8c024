"""The matrix: roads through LlamaIndex x kinds of nodes x sync and async."""

from __future__ import annotations

import asyncio
from collections import defaultdict

import pytest
from node_kinds import KINDS

MODES = ("sync", "async")


def call(mode, function, twin, *args, **kwargs):
    """Call a method, or run its asynchronous twin on an event loop of its own."""
    if mode == "sync":
        return function(*args, **kwargs)

    async def run():
        return await twin(*args, **kwargs)

    return asyncio.run(run())


def assert_complete(request, roads):
    """Each road is in the matrix with each kind, in both modes."""
    found = {
        value[0]
        for item in request.session.items
        for key, value in item.user_properties
        if key == "road" and item.path == request.path
    }
    if len(found) < 2 * len(roads) * len(KINDS):
        pytest.skip("not all of the matrix was asked for")
    assert found == {(road, kind, mode) for road in roads for kind in KINDS for mode in MODES}


def table(reports):
    """Lines with a row per road and a column per kind, in each cell sync and async.

    A cell is ``ok``, ``FAIL``, or the letter of a hole, whose reason is given below.

    Args:
        reports: Pairs of an outcome and pytest's report.
    """
    cells: dict[tuple[str, str, str], str] = {}
    letters: dict[str, str] = {}
    for outcome, report in reports:
        # A file that could not be collected has none.
        properties = getattr(report, "user_properties", ())
        for cell, hole in (value for key, value in properties if key == "road"):
            skipped = report.longrepr[2].removeprefix("Skipped: ") if outcome == "skipped" else ""
            if outcome in ("failed", "error"):
                cells[cell] = "FAIL"
            elif reason := skipped or hole:
                cells[cell] = letters.setdefault(reason, chr(ord("a") + len(letters)))
            else:
                cells[cell] = "ok"
    rows: dict[str, dict[str, dict[str, str]]] = defaultdict(lambda: defaultdict(dict))
    for (road, kind, mode), mark in cells.items():
        rows[road][kind][mode] = mark
    if not rows:
        return []
    order = [*KINDS, "any"]
    columns = sorted({kind for _, kind, _ in cells}, key=order.index)
    width = max(map(len, rows))
    padded = [kind.ljust(len("FAIL/FAIL")) for kind in columns]
    lines = [f"{' ' * width}  {'  '.join(padded)}".rstrip()]
    for road, by_kind in rows.items():
        marks = [
            "/".join(by_kind[kind].get(mode, "-") for mode in MODES) if kind in by_kind else ""
            for kind in columns
        ]
        fitted = (mark.ljust(len(kind)) for kind, mark in zip(padded, marks, strict=True))
        lines.append(f"{road.ljust(width)}  {'  '.join(fitted)}".rstrip())
    return lines + [f"{letter}: {reason}" for reason, letter in letters.items()]
