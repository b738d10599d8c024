"""A disk that is full, fills up between a look and a write, or becomes read-only."""

import subprocess

import pytest
from zygote import Zygote

NAMESPACE = ["unshare", "--user", "--map-root-user", "--mount"]
SIZE = 160 * 2**20


@pytest.fixture(scope="module")
def zygote(tmp_path_factory):
    disk = tmp_path_factory.mktemp("disk")
    try:
        mount = [*NAMESPACE, "mount", "-t", "tmpfs", "tmpfs", disk]
        subprocess.run(mount, check=True, capture_output=True, timeout=10)
    except (OSError, subprocess.SubprocessError) as err:
        pytest.skip(f"no namespace for a disk of its own: {err}")
    process = Zygote("disk_jobs", prefix=NAMESPACE, disk=str(disk), size=SIZE)
    yield process
    process.close()


def lost(zygote, outcome, name):
    """Open the file in a new process; return what had been acknowledged and is not there."""
    found = zygote.run("ids", name=name).result
    assert len(set(found)) == len(found)
    return set(outcome["acknowledged"]) - set(found)


def test_a_disk_that_is_full_is_told_and_nothing_is_lost(zygote, tally):
    outcome = zygote.run("fail", name="a.db", how="full", free=65 * 2**20, goes_on=True).result
    missing = lost(zygote, outcome, "a.db")
    tally("full disk", tried=1, lost=len(missing))
    assert missing == set()
    (error,) = outcome["errors"]
    assert "a.db is full: " in error


@pytest.mark.parametrize("goes_on", [True, False])
def test_a_disk_that_fills_up_behind_our_back_loses_nothing(zygote, goes_on, rng, tries, tally):
    for number in range(tries(short=2, full=25)):
        # Room for a moment of everything: the log, the files, the index, the list of the files.
        closes = rng.random() < 0.5
        outcome = zygote.run(
            "fail",
            name=f"{number}.db",
            how="full",
            free=rng.randrange(3 * 2**20),
            is_seen=False,
            goes_on=goes_on,
            closes=closes,
            seed=rng.randrange(2**32),
        ).result
        missing = lost(zygote, outcome, f"{number}.db")
        tally("disk fills up during a write", tried=1, lost=len(missing))
        assert missing == set()
        (error,) = outcome["errors"]
        assert f"{number}.db could not be written (No space left on device) and was closed" in error


def test_a_collection_that_found_no_room_is_made_once_there_is_some(zygote):
    error, rows = zygote.run("make_on_a_full_disk", name="new.db").result
    assert "new.db could not be written (No space left on device)" in error
    assert rows == 50


@pytest.mark.parametrize(
    ("is_seen", "says"),
    [(True, "has become read-only"), (False, "could not be written (Read-only file system) and")],
)
def test_a_file_that_becomes_read_only_loses_nothing(is_seen, says, zygote, rng, tries, tally):
    for number in range(tries(short=1, full=10)):
        outcome = zygote.run(
            "fail",
            name=f"r{number}.db",
            how="read-only",
            is_seen=is_seen,
            goes_on=True,
            closes=rng.random() < 0.5,
            seed=rng.randrange(2**32),
        ).result
        missing = lost(zygote, outcome, f"r{number}.db")
        tally("becomes read-only", tried=1, lost=len(missing))
        assert missing == set()
        (error,) = outcome["errors"]
        assert f"r{number}.db {says}" in error


def test_a_read_only_file_system_is_named(zygote):
    errors = zygote.run("open_read_only", name="a.db").result
    assert len(errors) == 2
    for error, name in zip(errors, ["a.db", "new-a.db"], strict=True):
        assert f"{name} is on a read-only file system" in error
