"""Metadata are hashed as the JSON that is stored, alike in every process."""

import datetime
import json
import os
import pathlib
import subprocess
import sys
import uuid
from collections import OrderedDict
from dataclasses import dataclass
from decimal import Decimal
from enum import Enum
from fractions import Fraction

import numpy as np
import pytest
import torch
from by_hand import image
from hypothesis import given
from hypothesis import strategies as st
from llama_index.core.schema import ImageNode
from PIL import Image
from PIL.TiffImagePlugin import IFDRational
from pydantic import BaseModel

from llama_index_clip_ext import create_vector_store, ingest_images
from llama_index_clip_ext.metadata import to_json
from llama_index_clip_ext.rows import node_hash

pd = pytest.importorskip("pandas", reason="pip install pandas")


class Colour(Enum):
    RED = "red"


class Size(str, Enum):
    LARGE = "large"


@dataclass
class Shelf:
    tags: set[str]


class Box(BaseModel):
    tags: set[str]


NOON = datetime.datetime(2024, 5, 1, 12, tzinfo=datetime.timezone.utc)
VALUES = [
    (np.int64(3), 3),
    (np.uint8(255), 255),
    (np.float32(0.5), 0.5),
    (np.float64(1.5), 1.5),
    (np.bool_(True), True),
    (np.str_("猫"), "猫"),
    (np.arange(2), [0, 1]),
    (np.ones((2, 2)), [[1.0, 1.0], [1.0, 1.0]]),
    (np.array(7), 7),
    (torch.tensor([1, 2]), [1, 2]),
    (pd.Series([1, 2]), [1, 2]),
    (pd.Timestamp(NOON), "2024-05-01T12:00:00Z"),
    (IFDRational(1, 2), 0.5),
    (Fraction(1, 4), 0.25),
    ((IFDRational(1, 2), 3), [0.5, 3]),
    (NOON, "2024-05-01T12:00:00Z"),
    (datetime.date(2024, 5, 1), "2024-05-01"),
    (pathlib.PurePosixPath("/a/b"), "/a/b"),
    (uuid.UUID(int=1), "00000000-0000-0000-0000-000000000001"),
    (Decimal("1.10"), "1.10"),
    (Colour.RED, "red"),
    ({"b", "a"}, ["a", "b"]),
    (frozenset([3, 1]), [1, 3]),
    ({("b", 1), ("a", 2)}, [["a", 2], ["b", 1]]),
    (("a", "b"), ["a", "b"]),
    (OrderedDict(b=1, a={"x"}), {"b": 1, "a": ["x"]}),
    ({1: "one", None: 2}, {"1": "one", "None": 2}),
    ({np.str_("a"): 1, Size.LARGE: 2}, {"a": 1, "large": 2}),
    (Size.LARGE, "large"),
    (np.longdouble(1.5), 1.5),
    (np.array([1.5], dtype=np.longdouble), [1.5]),
    (np.datetime64("2024-05-01T12:00:00.5", "ns"), "2024-05-01T12:00:00.500000"),
    (np.array(["2024-05-01"], dtype="M8[ns]"), ["2024-05-01T00:00:00"]),
    (Shelf({"b", "a"}), {"tags": ["a", "b"]}),
    (Box(tags={"b", "a"}), {"tags": ["a", "b"]}),
    (b"text", "text"),
    (np.array([1 + 2j]), ["1+2j"]),
    ([], []),
    (None, None),
]


def nodes_with(values, path):
    return [
        ImageNode(id_=f"n{at}", image_path=str(path), metadata={"k": value})
        for at, value in enumerate(values)
    ]


def test_what_is_stored_is_read_back_and_known_again(clip, store, pictures):
    given = [value for value, _ in VALUES]
    ids = [f"n{at}" for at in range(len(VALUES))]

    def ingest():
        nodes = nodes_with(given, pictures / "red.png")
        report = ingest_images(nodes, embed_model=clip, vector_store=store)
        return report.added, report.unchanged, report.replaced, len(report.failed)

    assert ingest() == (len(VALUES), 0, 0, 0)
    read = {node.node_id: node.metadata["k"] for node in store.get_nodes(ids)}
    for id_, (value, expected) in zip(ids, VALUES, strict=True):
        assert (read[id_], type(read[id_])) == (expected, type(expected)), value
        # And what was read back is the same again.
        assert node_hash(image("n", k=value)) == node_hash(image("n", k=read[id_])), value
    assert ingest() == (0, len(VALUES), 0, 0)


PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text() | st.floats(width=32),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@given(PLAIN)
def test_what_json_has_is_left_as_it_is(value):
    def same(one, other):
        return json.dumps(one) == json.dumps(other)

    assert same(to_json(value), value)
    assert same(to_json(to_json(value)), to_json(value))


@given(st.sets(st.text() | st.integers() | st.tuples(st.text(), st.integers())))
def test_a_set_is_a_list_in_an_order_of_its_own(value):
    assert to_json(value) == to_json({*reversed([*value])})


CIRCLE: list = []
CIRCLE.append(CIRCLE)

REFUSED = [
    (float("nan"), "leave out NaN"),
    (np.float32("inf"), "leave out NaN and infinity"),
    ([1, {"a": float("nan")}], "leave out NaN"),
    (IFDRational(0, 0), "leave out NaN"),
    (b"\xff\xd8", "convert it, for example by str"),
    (object(), "convert it"),
    ({1: "a", "1": "b"}, "not different in JSON"),
    ({"a": lambda: 1}, "convert it"),
    (2**64, "more than 64 bits; store a text"),
    (CIRCLE, "recursion"),
    (iter([1]), "an iterator can be read only once; make it a list"),
    (map(str, [1]), "make it a list"),
]


def test_what_cannot_be_stored_says_how_before_anything_is(clip, store, pictures):
    nodes = nodes_with([value for value, _ in REFUSED], pictures / "red.png")

    report = ingest_images(nodes, embed_model=clip, vector_store=store)
    assert (report.total, len(report.failed)) == (len(REFUSED), len(REFUSED))
    for failure in report.failed:
        value, said = REFUSED[failure.index]
        assert said in failure.reason
        assert "'k'" in failure.reason
        with pytest.raises((TypeError, ValueError), match=said):
            store.add([image("n", [0.25] * 16, k=value)])
    assert store.count() == 0


RUN = """
import sys
from dataclasses import dataclass
from llama_index.core.schema import Document, ImageNode
from llama_index_clip_ext.index import _hash_of
from llama_index_clip_ext.rows import node_hash
@dataclass
class Shelf:
    tags: set

tags = {"cat", "dog", "bird", "fish", "cow"}
metadata = {"tags": tags, "deep": [{"of": tags}], "shelf": Shelf(tags)}
print(_hash_of(Document(text="a", metadata=metadata)))
print(node_hash(ImageNode(id_="n", image_path=sys.argv[1], metadata=metadata)))
"""


def test_a_set_has_one_hash_whatever_process_looks(pictures):
    """The order of a set of texts differs by process."""
    hashes = [
        subprocess.run(
            [sys.executable, "-c", RUN, str(pictures / "red.png")],
            env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": os.pathsep.join(sys.path)},
            stdout=subprocess.PIPE,
            text=True,
            timeout=120,
            check=True,
        ).stdout
        for seed in ("1", "2")
    ]
    assert hashes[0] == hashes[1] != ""


def test_keys_that_are_no_texts_are_texts(clip, store, pictures):
    """As Pillow has EXIF's, which are merged into the metadata of a node."""
    node = ImageNode(id_="n", image_path=str(pictures / "red.png"))
    node.metadata.update({271: "Camera", Size.LARGE: 1, np.str_("a"): 2})
    assert ingest_images([node], embed_model=clip, vector_store=store).added == 1
    stored = store.get_nodes(["n"])[0].metadata
    assert (stored["271"], stored["large"], stored["a"]) == ("Camera", 1, 2)
    assert ingest_images([node], embed_model=clip, vector_store=store).unchanged == 1
    node.metadata["271"] = "another"
    (failure,) = ingest_images([node], embed_model=clip, vector_store=store).failed
    assert "not different as texts" in failure.reason


def test_exif_as_pillow_reads_it_can_be_metadata(clip, tmp_path, pictures):
    path = tmp_path / "photo.jpg"
    exif = Image.Exif()
    exif[271], exif[282] = "Camera", IFDRational(72, 1)
    Image.new("RGB", (32, 32), "red").save(path, exif=exif)
    with Image.open(path) as photo:
        facts = dict(photo.getexif())
    node = ImageNode(id_="n", image_path=str(path), metadata={"exif": facts, "x": facts[282]})
    with create_vector_store(clip, uri=tmp_path / "exif.db") as store:
        assert ingest_images([node], embed_model=clip, vector_store=store).added == 1
        assert store.get_nodes(["n"])[0].metadata["exif"]["271"] == "Camera"
        assert store.get_nodes(["n"])[0].metadata["x"] == 72.0
