"""An hour's worth of operations leaves memory, threads and file descriptors as they were."""

import json
from statistics import median

import children
import pytest

# What `soak.py` does in a minute: 66 queries, 4 pictures changed, 1 deleted, 2 ingests, 1 opening.
CALLS_PER_MINUTE = 74

RUN = """
    import sys, soak
    soak.main(*sys.argv[1:4], int(sys.argv[4]))
"""

# By how much the second half of the hour may differ from the first. What is lost once a minute
# makes 20 there.
MOST = {"python threads": 3, "threads": 4, "files": 3, "rss": 24 * 2**20}


@pytest.mark.parametrize("place", ["Milvus Lite", "server"])
def test_an_hour_leaves_nothing_behind(place, request, clip_dir, tmp_path, tries, tally):
    is_lite = place == "Milvus Lite"
    minutes = tries(short=5 if is_lite else 4, full=60)
    address = tmp_path / "soak.db" if is_lite else request.getfixturevalue("server")
    (folder := tmp_path / "pictures").mkdir()

    said = children.run(tmp_path, RUN, address, clip_dir, folder, minutes, within=300)

    # The first third warms up: libraries, caches of bounded size, Milvus Lite's threads.
    levels = [json.loads(line) for line in said][minutes // 3 :]
    early, late = levels[: len(levels) // 2], levels[len(levels) // 2 :]
    grown = {
        key: median(one[key] for one in late) - median(one[key] for one in early) for key in MOST
    }
    tally(f"soak, calls, {place}", tried=minutes * CALLS_PER_MINUTE)
    assert len(said) == minutes
    assert all(grown[key] <= MOST[key] for key in MOST), (grown, levels)
