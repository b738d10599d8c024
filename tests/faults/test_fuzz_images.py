"""The fuzz target of `fuzz_images.py`, with bytes that hypothesis makes."""

from __future__ import annotations

import hostile_files
from conftest import IS_FULL
from fuzz_images import load
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

SEEDS = hostile_files.seeds()
MAGIC = [
    b"\xff\xd8\xff",
    b"\x89PNG\r\n\x1a\n",
    b"GIF89a",
    b"RIFF\xff\0\0\0WEBPVP8X",
    b"BM",
    b"II*\0",
]

FUZZ = settings(
    max_examples=3000 if IS_FULL else 60,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)


@FUZZ
@given(st.sampled_from(MAGIC), st.binary(max_size=400))
def test_any_bytes_behind_a_header(magic, content):
    load(magic + content)


@FUZZ
@given(
    st.sampled_from(sorted(SEEDS)),
    st.lists(st.tuples(st.floats(0, 1), st.binary(min_size=1, max_size=8)), max_size=6),
    st.floats(0.01, 1),
)
def test_any_bytes_in_a_sound_file(name, changes, share):
    content = bytearray(SEEDS[name])
    for place, change in changes:
        at = int(place * (len(content) - 1))
        content[at : at + len(change)] = change
    load(bytes(content[: int(share * len(content))]))
