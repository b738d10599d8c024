"""Image files become nodes with ids, hashes and metadata that a second reading repeats."""

from __future__ import annotations

import hashlib
import importlib
import os
import subprocess
import sys
import uuid
from datetime import datetime, timezone
from pathlib import Path

import pytest
from llama_index.core.schema import ImageNode, MetadataMode
from PIL import Image

from llama_index_clip_ext.errors import ImageLoadError, ImageNotFoundError
from llama_index_clip_ext.images import load_image
from llama_index_clip_ext.nodes import list_images, load_image_nodes, with_content_hash


@pytest.fixture
def tree(tmp_path) -> Path:
    """Make pictures/{b.png, c.JPG, a/{d.png, e/f.webp}} beside files that are no pictures."""
    root = tmp_path / "pictures"
    (root / "a" / "e").mkdir(parents=True)
    for index, name in enumerate(("b.png", "c.JPG", "a/d.png", "a/e/f.webp")):
        Image.new("RGB", (20 + index, 10), (index, 0, 0)).save(root / name)
    (root / "notes.md").write_text("no picture")
    (root / "a" / "table.csv").write_text("no,picture")
    (root / "a" / "folder.png").mkdir()
    return root


def names(nodes: list[ImageNode]) -> list[str]:
    return [node.metadata["file_name"] for node in nodes]


def ids(nodes: list[ImageNode]) -> list[str]:
    return [node.node_id for node in nodes]


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


# What is read.


def test_folder_is_read_in_the_order_of_paths(tree):
    assert names(load_image_nodes(tree)) == ["d.png", "f.webp", "b.png", "c.JPG"]
    assert names(load_image_nodes(str(tree))) == ["d.png", "f.webp", "b.png", "c.JPG"]


def test_folder_alone(tree):
    assert names(load_image_nodes(tree, recursive=False)) == ["b.png", "c.JPG"]


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("*.png", ["b.png"]),
        ("*.[jJ][pP][gG]", ["c.JPG"]),
        ("*/*.png", ["d.png"]),
        ("**/*.png", ["d.png", "b.png"]),
        ("a/**/*.webp", ["f.webp"]),
    ],
)
def test_pattern(pattern, expected, tree):
    assert names(load_image_nodes(str(tree / pattern))) == expected


def test_one_file(tree):
    assert names(load_image_nodes(tree / "b.png")) == ["b.png"]
    assert names(load_image_nodes(str(tree / "b.png"))) == ["b.png"]


def test_list_is_read_in_its_own_order(tree):
    files = [tree / "c.JPG", str(tree / "a/d.png"), tree / "b.png"]
    assert names(load_image_nodes(files)) == ["c.JPG", "d.png", "b.png"]
    assert names(load_image_nodes(file for file in files)) == ["c.JPG", "d.png", "b.png"]
    assert load_image_nodes([]) == []


def test_name_with_a_pattern_s_characters_is_a_name(tmp_path):
    file = tmp_path / "holiday [1]*.png"
    Image.new("RGB", (2, 2)).save(file)
    assert names(load_image_nodes(file)) == ["holiday [1]*.png"]
    folder = tmp_path / "all [2]"
    folder.mkdir()
    Image.new("RGB", (2, 2)).save(folder / "x.png")
    assert names(load_image_nodes(folder)) == ["x.png"]


@pytest.mark.parametrize("source", ["nowhere", "nowhere/*.png", "missing.png", "*.png"])
def test_nothing_matches(source):
    with pytest.raises(FileNotFoundError) as caught:
        load_image_nodes(source)
    assert str(caught.value) == f"no folder, file or pattern matches {source!r}"


def test_missing_file_of_a_list_is_named():
    with pytest.raises(ImageNotFoundError, match=r"missing\.png"):
        load_image_nodes(["missing.png"])


def test_links_to_folders_are_not_followed(tree):
    (tree / "a" / "up").symlink_to(tree)
    assert names(load_image_nodes(tree)) == ["d.png", "f.webp", "b.png", "c.JPG"]


def test_listing_is_lazy_and_passes_other_items_through():
    items = [Path("b.png"), ImageNode(), "a.png"]
    assert list(list_images(iter(items))) == items


# Ids.


def test_ids_and_order_repeat(tree):
    first, second = load_image_nodes(tree), load_image_nodes(tree)
    assert ids(first) == ids(second)
    assert len(set(ids(first))) == 4
    assert all(str(uuid.UUID(one)) == one for one in ids(first))
    assert [node.hash for node in first] == [node.hash for node in second]


@pytest.mark.parametrize(
    "spelling",
    ["pictures", "./pictures", "pictures/", "pictures/../pictures", "~/pictures", "link"],
)
def test_every_spelling_of_a_folder_gives_the_same_nodes(spelling, tree, monkeypatch):
    monkeypatch.setenv("HOME", str(tree.parent))
    monkeypatch.setenv("USERPROFILE", str(tree.parent))
    (tree.parent / "link").symlink_to(tree)
    expected, found = load_image_nodes(tree), load_image_nodes(spelling)
    assert ids(found) == ids(expected)
    assert [node.metadata for node in found] == [node.metadata for node in expected]


@pytest.mark.parametrize("spelling", ["~/pictures/b.png", "./pictures/b.png"])
def test_every_spelling_of_a_file_gives_the_same_node(spelling, tree, monkeypatch):
    monkeypatch.setenv("HOME", str(tree.parent))
    monkeypatch.setenv("USERPROFILE", str(tree.parent))
    expected = ids(load_image_nodes(tree / "b.png"))
    assert ids(load_image_nodes(spelling)) == ids(load_image_nodes([spelling])) == expected
    assert ids(load_image_nodes([Path(spelling)])) == expected


def test_accents_may_be_spelled_in_two_ways(tmp_path):
    composed, decomposed = tmp_path / "1" / "caf\u00e9.png", tmp_path / "1" / "cafe\u0301.png"
    composed.parent.mkdir()
    Image.new("RGB", (2, 2)).save(composed)
    first = ids(load_image_nodes(composed))
    composed.rename(decomposed)
    assert ids(load_image_nodes(decomposed)) == first


def test_changed_file_keeps_its_id_and_not_its_hash(tree):
    (before,) = load_image_nodes(tree / "b.png")
    Image.new("RGB", (20, 10), "blue").save(tree / "b.png")
    (after,) = load_image_nodes(tree / "b.png")
    assert after.node_id == before.node_id
    assert after.hash != before.hash


def test_by_path_copies_are_two_and_by_content_one(tree):
    copy = tree / "copy.png"
    copy.write_bytes((tree / "b.png").read_bytes())
    both = [tree / "b.png", copy]
    assert len(set(ids(load_image_nodes(both)))) == 2
    assert len(set(ids(load_image_nodes(both, id_by="content")))) == 1


def test_by_content_a_moved_file_keeps_its_id_and_a_changed_one_does_not(tree):
    before = ids(load_image_nodes(tree / "b.png", id_by="content"))
    (tree / "b.png").rename(tree / "moved.png")
    assert ids(load_image_nodes(tree / "moved.png", id_by="content")) == before
    Image.new("RGB", (20, 10), "blue").save(tree / "moved.png")
    assert ids(load_image_nodes(tree / "moved.png", id_by="content")) != before


def test_id_by_is_one_of_two_words(tree):
    with pytest.raises(ValueError, match=r"id_by is 'name', expected 'path' or 'content'"):
        load_image_nodes(tree, id_by="name")


# Hashes.


def test_content_hash_is_the_file_s_sha256(tree):
    (node,) = load_image_nodes(tree / "b.png")
    assert node.metadata["content_hash"] == sha256(tree / "b.png")


def copy_of(tree):
    (tree / "elsewhere").mkdir()
    (tree / "elsewhere" / "copy.png").write_bytes((tree / "b.png").read_bytes())
    return tree / "elsewhere" / "copy.png"


def test_hash_changes_with_the_metadata_and_not_when_a_file_is_touched(tree):
    (before,) = load_image_nodes(tree / "b.png")
    os.utime(tree / "b.png", (0, 0))
    (touched,) = load_image_nodes(tree / "b.png")
    assert touched.metadata["last_modified_date"] != before.metadata["last_modified_date"]
    assert touched.hash == before.hash
    touched.metadata["album"] = "summer"
    assert touched.hash != before.hash
    assert len({node.hash for node in load_image_nodes([tree / "b.png", copy_of(tree)])}) == 1
    touched.metadata = {}  # A user's own: then it is LlamaIndex's.
    assert touched.hash == ImageNode(**touched.model_dump()).hash


def test_hash_changes_with_the_caption_and_the_content_hash_does_not(tree):
    (plain,) = load_image_nodes(tree / "b.png")
    (tree / "b.txt").write_text("a boat")
    (boat,) = load_image_nodes(tree / "b.png")
    (tree / "b.txt").write_text("a bird")
    (bird,) = load_image_nodes(tree / "b.png")
    assert len({plain.hash, boat.hash, bird.hash}) == 3
    assert len({node.metadata["content_hash"] for node in (plain, boat, bird)}) == 1
    assert plain.node_id == boat.node_id == bird.node_id


def test_other_nodes_get_a_content_hash(tree):
    node = ImageNode(image_path=str(tree / "b.png"), metadata={"album": "1"})
    assert with_content_hash(node).metadata == {
        "album": "1",
        "content_hash": sha256(tree / "b.png"),
    }
    assert node.metadata == {"album": "1"}
    (own,) = load_image_nodes(tree / "b.png")
    assert with_content_hash(own) is own


# Metadata.


def test_metadata(tree):
    file = tree / "a" / "e" / "f.webp"
    os.utime(file, (1_700_000_000, 1_700_000_000))
    (node,) = load_image_nodes(file)
    assert node.metadata == {
        "file_path": str(file.resolve()),
        "file_name": "f.webp",
        "file_type": "image/webp",
        "file_size": file.stat().st_size,
        "last_modified_date": "2023-11-14T22:13:20.000000+00:00",
        "width": 23,
        "height": 10,
        "content_hash": sha256(file),
    }
    assert {key: type(value) for key, value in node.metadata.items()} == {
        **dict.fromkeys(("file_path", "file_name", "file_type", "last_modified_date"), str),
        **dict.fromkeys(("file_size", "width", "height"), int),
        "content_hash": str,
    }
    modified = datetime.fromisoformat(node.metadata["last_modified_date"])
    assert modified == datetime.fromtimestamp(1_700_000_000, tz=timezone.utc)
    assert (node.image_path, node.image_mimetype) == (str(file.resolve()), "image/webp")
    assert node.image is None


def test_type_is_the_content_s(tree):
    (node,) = load_image_nodes(tree / "c.JPG")
    assert node.metadata["file_type"] == node.image_mimetype == "image/jpeg"
    (tree / "b.png").rename(tree / "b.jpg")
    (node,) = load_image_nodes(tree / "b.jpg")
    assert node.metadata["file_type"] == node.image_mimetype == "image/png"


def test_only_the_caption_is_read_by_a_text_tower(tree):
    (tree / "b.txt").write_text("a boat")
    (node,) = load_image_nodes(tree / "b.png")
    assert node.get_content(MetadataMode.EMBED) == "a boat"
    assert node.get_content(MetadataMode.LLM) == "file_name: b.png\n\na boat"


# Captions.


@pytest.mark.parametrize(
    "content",
    [
        b"\xe4\xb8\x80\xe5\x8f\xaa\xe7\x8c\xab\r\n",
        b"\xef\xbb\xbf\xe4\xb8\x80\xe5\x8f\xaa\xe7\x8c\xab",
    ],
    ids=["utf-8", "utf-8 as Windows' Notepad writes it"],
)
def test_sidecar_caption(content, tree):
    (tree / "b.txt").write_bytes(content)
    boat, picture = load_image_nodes([tree / "b.png", tree / "c.JPG"])
    assert boat.text == "一只猫"
    assert picture.text == ""


def test_sidecar_of_another_encoding_is_an_error(tree):
    (tree / "b.txt").write_bytes("红色的船".encode("gb18030"))
    with pytest.raises(ImageLoadError, match=r"b\.png\): its caption b\.txt cannot be read"):
        load_image_nodes(tree / "b.png")


def test_caption_of_a_callable(tree):
    asked = []

    def caption(path: Path) -> str | None:
        asked.append(path)
        return "a boat" if path.name == "b.png" else None

    nodes = load_image_nodes([tree / "b.png", tree / "c.JPG"], captions=caption)
    assert [node.text for node in nodes] == ["a boat", ""]
    assert asked == [(tree / "b.png").resolve(), (tree / "c.JPG").resolve()]


def test_no_captions(tree):
    (tree / "b.txt").write_text("a boat")
    (node,) = load_image_nodes(tree / "b.png", captions=None)
    assert node.text == ""


def test_captions_is_one_of_three(tree):
    with pytest.raises(ValueError, match="captions is 'exif', expected 'sidecar', a callable or"):
        load_image_nodes(tree / "b.png", captions="exif")


# LlamaIndex.


def test_llamaindex_s_readers_are_not_needed(tree, monkeypatch):
    monkeypatch.setitem(sys.modules, "llama_index.readers", None)
    monkeypatch.setitem(sys.modules, "llama_index.readers.file", None)  # Where another test had it.
    with pytest.raises(ImportError):
        importlib.import_module("llama_index.readers.file")
    assert names(load_image_nodes(tree / "b.png")) == ["b.png"]


def test_nodes_are_image_nodes_and_stay_so(tree):
    (tree / "b.txt").write_text("a boat")
    (node,) = load_image_nodes(tree / "b.png")
    assert isinstance(node, ImageNode)
    assert node.class_name() == "ImageNode"
    for copy in (ImageNode.from_dict(node.to_dict()), ImageNode.from_json(node.to_json())):
        assert type(copy) is ImageNode
        assert (copy.node_id, copy.text, copy.metadata) == (node.node_id, "a boat", node.metadata)
        assert copy.image_path == node.image_path
        assert copy.image_mimetype == "image/png"


# Files that are no pictures.


@pytest.mark.parametrize(
    "content", [b"<html>404</html>", b"", b"\x89PNG\r\n\x1a\n"], ids=["html", "empty", "cut"]
)
def test_unreadable_file_is_a_node_and_fails_where_it_is_decoded(content, tmp_path):
    file = tmp_path / "error.jpg"
    file.write_bytes(content)
    (node,) = load_image_nodes(tmp_path)
    assert node.metadata["file_type"] == ""
    assert node.metadata["file_size"] == len(content)
    assert node.metadata["content_hash"] == sha256(file)
    assert "width" not in node.metadata
    with pytest.raises(ImageLoadError, match=r"error\.jpg"):
        load_image(node)


def test_truncated_file_is_a_node_with_what_its_header_tells(tmp_path):
    file = tmp_path / "half.png"
    Image.effect_noise((64, 64), 50).save(file)
    file.write_bytes(file.read_bytes()[:1000])
    (node,) = load_image_nodes(file)
    assert (node.metadata["file_type"], node.metadata["width"]) == ("image/png", 64)
    with pytest.raises(ImageLoadError, match="damaged"):
        load_image(node)


def test_a_link_to_itself_costs_no_folder(tree):
    """It is listed, and reported as what cannot be read; the rest is found."""
    (tree / "loop.png").symlink_to(tree / "loop.png")
    assert "loop.png" in [path.name for path in list_images(tree)]
    assert names(load_image_nodes(tree, on_error="skip")) == ["d.png", "f.webp", "b.png", "c.JPG"]
    with pytest.raises(ImageLoadError, match=r"loop\.png"):
        load_image_nodes(tree)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
def test_a_caption_is_a_file_of_some_size(tree):
    """A pipe would keep us waiting, and a device has no end."""
    os.mkfifo(tree / "b.txt")
    with pytest.raises(ImageLoadError, match=r"b\.txt cannot be read \(a named pipe, not a file\)"):
        load_image_nodes(tree / "b.png")
    (tree / "b.txt").unlink()
    (tree / "b.txt").write_bytes(b"a" * 1_000_001)
    with pytest.raises(ImageLoadError, match=r"more than 1000000 bytes"):
        load_image_nodes(tree / "b.png")


def test_formats_that_are_added_are_found_and_described(tree):
    Image.new("RGB", (5, 4)).save(tree / "z.ppm")
    assert "z.ppm" not in names(load_image_nodes(tree))
    node = load_image_nodes(tree, image_formats=["ppm"])[-1]
    assert (node.metadata["file_name"], node.metadata["width"]) == ("z.ppm", 5)
    # What is not read is not described.
    assert load_image_nodes([tree / "z.ppm"])[0].metadata["file_type"] == ""


def test_folders_nested_deeper_than_pythons_calls(tmp_path):
    here = os.getcwd()
    os.chdir(tmp_path)
    try:
        for _ in range(1_200):  # By steps: no system takes so long a path at once.
            os.mkdir("d")
            os.chdir("d")
        # Beyond the longest path, a folder is reported as what cannot be read.
        assert all(path.name == "d" for path in list_images(tmp_path))
    finally:
        os.chdir(here)
        subprocess.run(["rm", "-rf", str(tmp_path / "d")], check=True)
