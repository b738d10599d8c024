"""An image has the same id and hash however its path is spelt, and on every platform and version.

What stands here in figures stands in collections out there: a change of any would embed all of
them again, and leave what they have behind.
"""

import hashlib
import os
import unicodedata
from pathlib import Path, PurePosixPath, PureWindowsPath

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from llama_index.core.schema import ImageNode, NodeRelationship, RelatedNodeInfo, TextNode
from PIL import Image

from llama_index_clip_ext import load_image_nodes
from llama_index_clip_ext.errors import ImageLoadError
from llama_index_clip_ext.nodes import HashedImageNode, make_id, path_name
from llama_index_clip_ext.rows import node_hash
from llama_index_clip_ext.sources import image_digest

NFC, NFD = "caf\u00e9", "cafe\u0301"


def picture(path, colour="red"):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (2, 2), colour).save(path)
    return path


def id_of(path):
    (node,) = load_image_nodes([path])
    return node.node_id


# Figures.


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        (PurePosixPath("/photos/cat.png"), "ab16f218-e754-5a7e-90c7-f23a2dbd7cf7"),
        (PurePosixPath("/photos/猫 在沙发上/it's.jpg"), "e97cc8d0-3545-590b-8816-43714b187dfd"),
        (PurePosixPath(f"/{NFC}.png"), "676c15b1-708b-5ea4-b9ef-3df3177c1552"),
        (PurePosixPath(f"/{NFD}.png"), "676c15b1-708b-5ea4-b9ef-3df3177c1552"),
        # Ohm is omega; Hangul in syllables and in letters.
        (PurePosixPath("/\u2126/\uac00\u1100\u1161.png"), "5794ed08-2bb7-5f7f-878c-2cb1855a4cc3"),
        (PureWindowsPath("C:\\Photos\\cat.png"), "1a90e119-3a5a-5f23-95a9-ee3cffb1934b"),
        (PureWindowsPath("\\\\server\\share\\cat.png"), "acfead5a-6f1b-5e08-9e96-3d05b8bdb9ad"),
    ],
)
def test_ids_of_paths(path, expected):
    assert make_id(path_name(path)) == expected


def test_ids_of_contents():
    assert make_id(hashlib.sha256(b"").hexdigest()) == "9797cab7-1168-58a7-b33c-3262cd33c265"


PIXELS = np.arange(24, dtype=np.uint8).reshape(2, 4, 3)


def palette():
    image = Image.new("P", (2, 2), 1)
    image.putpalette([255, 0, 0, 0, 255, 0])
    return image


def turned():
    image = Image.fromarray(PIXELS)
    image.getexif()[0x0112] = 6
    return image


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        (b"abc", "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"),  # FIPS 180-4.
        (bytearray(b"abc"), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"),
        ("data:;base64,YWJj", "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"),
        (PIXELS, "345b8cde7e9a1f6f6bd86aa5f1bc8893a750e2645f7ebeb87e875b163d58873f"),
        (
            np.asfortranarray(PIXELS),
            "345b8cde7e9a1f6f6bd86aa5f1bc8893a750e2645f7ebeb87e875b163d58873f",
        ),
        (
            PIXELS.astype(np.float32),
            "cf0f766ac5baaa94583e5a61e1aec4fe9d4b1bc023d0d90d8d11c0e4516653ad",
        ),
        (PIXELS[:, :, 0] > 3, "9f0a40b847c87777392b10499a6142858ce69fe093927fb85416cf0c6a5eb469"),
        (
            Image.fromarray(PIXELS),
            "4b717352357545394a5d6e3156b51278d11f3ab744b7ee92106475a54ab4213d",
        ),
        (
            Image.fromarray(PIXELS).convert("L"),
            "8cc2d52b34e91314de0c91e5d0b8b82e513a3b5ec773e10ab2124a7e39bed46e",
        ),
        (
            Image.fromarray(PIXELS).convert("RGBA"),
            "d6d14353dc5ab288e74d709a41ebf566c0c4460d342f77bb7099883cff648d43",
        ),
        (palette(), "3b604c66d7e2b31178a84af21f93b42c0f267b8123573b69c63351906377d672"),
        (turned(), "6a9f33f69d407b0d57fc44a80507c28455f23d5f539175febdf79a037050f297"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_digests_of_contents(source, expected):
    assert image_digest(source) == expected


METADATA = {
    "file_path": "/photos/猫.png",
    "file_name": "猫.png",
    "file_type": "image/png",
    "file_size": 99,
    "last_modified_date": "2024-05-01T00:00:00+00:00",
    "width": 40,
    "height": 30,
    "content_hash": "4b400fdda67db55b0c157080fcd5c815456a4a9cceb8e87d3a26ff3124123095",
    "tags": ["猫", 'b"\\', None],
    "n": 0.1,
    "nested": {"b": 1e300, "a": [True]},
}


def of_class(node_class, **fields):
    node = node_class(id_="a", text="沙发上的猫 🐈", metadata=METADATA, **fields)
    node.relationships[NodeRelationship.SOURCE] = RelatedNodeInfo(node_id="album '1'")
    return node


@pytest.mark.parametrize(
    ("node", "expected"),
    [
        (of_class(TextNode), "922db40161199bd21c28c6e6e188b6d2644f7d814ad87242c867c06a55942bc5"),
        (
            of_class(ImageNode, image_path="/photos/猫.png"),
            "e853805e6c9ab5e680b5e981a50eee401e4ecd45529ece4869ee8dcb66a06e77",
        ),
        (
            of_class(ImageNode, image_url="https://example.org/a.png"),
            "1fb21785a461dcb719d1a6d088358d71152a8c62bf865521e89596ddfdd0e835",
        ),
    ],
    ids=["text", "image", "url"],
)
def test_hashes_of_rows(node, expected):
    assert node_hash(node) == expected
    node.metadata = {**METADATA, "last_modified_date": "2024-05-01T00:00:00.000001+00:00"}
    assert node_hash(node) == expected
    node.metadata = dict(reversed(METADATA.items()))
    assert node_hash(node) == expected


def test_hashes_for_a_docstore():
    assert (
        of_class(HashedImageNode, image_path="/photos/猫.png").hash
        == "fea04f7f53a804d3a3c33803a16b556ac319ef255133ea81590a3b5d66ebb395"
    )


# Spellings.


@pytest.fixture
def cat(tmp_path, monkeypatch):
    """The file tmp/photos/more/cat.png, reached by links, too; tmp is the home folder."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    file = picture(tmp_path / "photos" / "more" / "cat.png")
    (tmp_path / "linked").symlink_to("photos")
    (tmp_path / "photos" / "self").symlink_to(tmp_path / "photos")
    (tmp_path / "photos" / "more" / "twin.png").symlink_to("cat.png")
    return file


# Each leads from a folder back to itself, given what is in the folder.
DETOURS = st.lists(st.sampled_from(["./", ".//", "more/../", "self/", "self/more/../"]), max_size=4)


@settings(
    max_examples=200,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    st.sampled_from(["", "./", "~/", "ABSOLUTE/", "ABSOLUTE//", "photos/../"]),
    st.sampled_from(["photos/", "linked/", "photos//", "linked/."]),
    DETOURS,
    st.sampled_from(["cat.png", "./cat.png", "twin.png", "../more/cat.png", "cat.png/"]),
    st.sampled_from([str, Path]),
)
def test_every_spelling_of_a_path_is_one_id(cat, start, folder, detours, name, kind):
    start = start.replace("ABSOLUTE", str(cat.parents[2]))
    spelling = start + folder + "/" * folder.endswith(".") + "".join(detours) + "more/" + name
    assert id_of(kind(spelling)) == make_id(cat.resolve().as_posix())


def test_a_folder_by_any_name_gives_the_same_ids(cat):
    expected = [node.node_id for node in load_image_nodes(cat.parents[1])]
    assert len(set(expected)) == 1  # The link beside it is the same file.
    for spelling in ("photos", "photos/", "./linked", "~/photos", "photos/self/", Path("linked")):
        assert [node.node_id for node in load_image_nodes(spelling)] == expected


def test_a_copy_and_a_hard_link_are_images_of_their_own(cat):
    os.link(cat, cat.with_name("hard.png"))
    assert id_of(cat.with_name("hard.png")) != id_of(cat)


def test_bytes_are_no_path(cat):
    class OfBytes:
        def __fspath__(self):
            return os.fsencode(cat)

    for path in (os.fsencode(cat), OfBytes()):
        with pytest.raises(TypeError):
            load_image_nodes([path])


def test_a_name_with_a_null_is_no_path():
    with pytest.raises(ImageLoadError, match="no path"):
        load_image_nodes(["a\0b.png"])


def test_two_spellings_of_an_accent_are_one_name_and_two_files_stay_two(tmp_path):
    """Files of both spellings were one id once, and the second took the first's row."""
    composed, decomposed = (tmp_path / f"{name}.png" for name in (NFC, NFD))
    alone = id_of(picture(decomposed))
    assert alone == make_id(composed.resolve().as_posix())

    picture(composed, "blue")
    if os.path.samefile(composed, decomposed):
        pytest.skip("this file system has one file of both spellings")
    ids = [node.node_id for node in load_image_nodes(tmp_path)]
    assert len(set(ids)) == 2
    assert id_of(composed) == alone


def test_so_are_folders(tmp_path):
    files = [picture(tmp_path / folder / f"{NFD}.png") for folder in (NFD, NFC)]
    if os.path.samefile(*files):
        pytest.skip("this file system has one folder of both spellings")
    assert len({id_of(file) for file in files}) == 2


@settings(max_examples=300, deadline=None, derandomize=True, database=None)
@given(st.text(st.characters(codec="utf-8", exclude_characters="\0/"), min_size=1, max_size=8))
def test_of_names_that_are_not_there_every_form_is_one(name):
    spellings = {unicodedata.normalize(form, name) for form in ("NFC", "NFD")}
    names = {path_name(PurePosixPath("/nowhere") / spelling) for spelling in spellings}
    assert len(names) == 1


def test_case_tells_files_apart_where_the_file_system_does(tmp_path):
    files = [picture(tmp_path / "a.png"), picture(tmp_path / "A.png", "blue")]
    if os.path.samefile(*files):
        pytest.skip("this file system does not mind case")
    assert len({node.node_id for node in load_image_nodes(files)}) == 2
