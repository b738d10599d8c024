"""What the harnesses share: how often they try, and the table of what came of it.

In full with the environment variable CLIP_EXT_FAULTS=full, as ``make faults`` has it; else in a
short form, as a part of all tests.
"""

from __future__ import annotations

import os
import random
import time
from collections import defaultdict

import pytest
from server_process import ServerProcess

IS_FULL = os.environ.get("CLIP_EXT_FAULTS", "") == "full"
_TALLY = pytest.StashKey()


@pytest.fixture
def tries():
    """Choose how often to try: ``tries(short=3, full=100)``."""
    return lambda *, short, full: full if IS_FULL else short


@pytest.fixture
def tally(request):
    """Count into the table: ``tally("killed, Milvus Lite", tried=1, lost=0, let_in=0)``.

    What is tried under one name is added up. Call it before asserting, so that what fails is seen.
    """

    def count(what, *, tried, lost=0, let_in=0):
        row = request.config.stash[_TALLY][what]
        for column, number in enumerate((tried, lost, let_in)):
            row[column] += number

    return count


@pytest.fixture
def rng():
    """A random generator; its seed is printed where a test fails, and can be given."""
    seed = int(os.environ.get("CLIP_EXT_FAULTS_SEED", time.time_ns() % 10**9))
    print(f"CLIP_EXT_FAULTS_SEED={seed}")  # noqa: T201
    return random.Random(seed)


@pytest.fixture
def own_server(tmp_path):
    """A real Milvus server for the test to kill, pause and start again."""
    folder = tmp_path / "milvus"
    folder.mkdir()
    process = ServerProcess(folder)
    process.start()
    yield process
    process.kill()


def pytest_configure(config):
    config.stash[_TALLY] = defaultdict(lambda: [0, 0, 0])


def pytest_terminal_summary(terminalreporter, config):
    rows = config.stash[_TALLY]
    if not rows:
        return
    form = "in full" if IS_FULL else "short form; in full: make faults"
    terminalreporter.section(f"faults ({form})")
    width = max(map(len, rows))
    terminalreporter.write_line(
        f"{'what was tried':{width}}  {'tried':>8} {'lost':>5} {'let in':>7}"
    )
    for what, (tried, lost, let_in) in sorted(rows.items()):
        terminalreporter.write_line(f"{what:{width}}  {tried:>8} {lost:>5} {let_in:>7}")
