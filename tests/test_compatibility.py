"""Collections that earlier versions wrote stay what they are: read, searched, and added to.

`data/make_collection.py` says which code wrote them.
"""

import base64
import hashlib
import json
import zipfile
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from by_hand import ask
from filter_oracle import group, one
from llama_index.core.schema import ImageNode, TextNode

from llama_index_clip_ext import (
    CLIPEmbedding,
    ScoreStatistics,
    StoreError,
    create_retriever,
    create_vector_store,
    ingest_images,
)
from llama_index_clip_ext.collection import read_passport
from llama_index_clip_ext.nodes import make_image_node
from llama_index_clip_ext.passport import FORMAT, PROPERTY, Passport
from llama_index_clip_ext.rows import node_hash

DATA = Path(__file__).parent / "data"
ARCHIVES = ["collection-1-first.zip", "collection-1.zip", "collection-2.zip"]
PICTURES = {"red.png": "A red square.", "猫 在沙发上.png": "沙发上的猫 🐈", "it's.png": ""}
INLINE = 'inline "猫"\n'


@pytest.fixture(scope="module")
def model():
    return CLIPEmbedding("demo-clip")


@pytest.fixture(params=ARCHIVES)
def folder(request, tmp_path):
    with zipfile.ZipFile(DATA / request.param) as packed:
        packed.extractall(tmp_path / "album")
    return tmp_path / "album"


@pytest.fixture
def expected(folder):
    return json.loads((folder / "expected.json").read_text(encoding="utf-8"))


@pytest.fixture
def old(folder, model):
    with create_vector_store(model, uri=folder / "photos.db", collection_name="photos") as store:
        yield store


def found(store, *conditions):
    """Return what a filter finds: ids that were given, and names of files."""
    nodes = store.get_nodes(filters=group(*conditions))
    ids = {node.metadata.get("file_name", node.node_id) for node in nodes}
    assert store.count(filters=group(*conditions)) == len(ids)
    return ids


def test_the_passport_is_read_as_it_was_written(old, expected, model):
    assert old.passport == Passport.from_properties({PROPERTY: expected["passport"]}, "photos")
    # Both hashes are made today as they were then.
    assert old.passport.space == model.space
    assert (old.passport.metric, old.passport.package) == ("IP", "0.1.0")


def test_its_rows_are_what_they_were(old, expected):
    assert old.count() == 5
    assert (old.count("image"), old.count("text")) == (4, 1)
    for node_id, row in expected["rows"].items():
        (node,) = old.get_nodes([node_id])
        assert node.class_name() == row["class"]
        assert node.text == row["text"]
        assert node.metadata == row["metadata"]
        assert node.ref_doc_id == row["document"]
        assert getattr(node, "image_path", None) == row["image_path"]
        assert node.embedding == row["embedding"]
        assert old.get_hashes([node_id]) == {node_id: row["hash"]}


def test_what_was_stored_is_what_was_meant_to_be(old):
    """Against the pictures and captions in `make_collection.py`, not what was read back then."""
    everything = old.get_nodes(filters=group())
    nodes = {node.metadata.get("file_name", node.node_id): node for node in everything}
    assert set(nodes) == {*PICTURES, INLINE, "note"}
    for name, caption in PICTURES.items():
        assert isinstance(nodes[name], ImageNode)
        assert nodes[name].text == caption
        assert nodes[name].image_path == f"/srv/album/pictures/{name}"
        assert (nodes[name].metadata["width"], nodes[name].metadata["height"]) == (40, 30)
    assert nodes[INLINE].metadata["nested"] == {"a": [1, None]}
    assert type(nodes["note"]) is TextNode
    assert nodes["note"].ref_doc_id == "album '1'"


def test_pictures_are_embedded_today_as_they_were(old, folder, model):
    retriever = create_retriever(model, old, similarity_top_k=1)
    for name in PICTURES:
        (hit,) = retriever.retrieve_image(folder / "pictures" / name)
        assert hit.score == pytest.approx(1, abs=1e-3)
        content = (folder / "pictures" / name).read_bytes()
        assert hit.metadata["content_hash"] == hashlib.sha256(content).hexdigest()


def test_filters_find_what_they_found(old):
    assert found(old, one("file_name", "==", "it's.png")) == {"it's.png"}
    assert found(old, one("width", ">=", 40)) == set(PICTURES)
    assert found(old, one("tags", "contains", 'b"\\')) == {INLINE}
    assert found(old, one("n", ">", 2), one("n", "<", 3)) == {"note"}
    assert found(old, one("n", "!=", 7)) == {*PICTURES, "note"}
    assert found(old, one("拍-摄", "==", "北京")) == {INLINE}
    assert found(old, one("flag", "==", 1)) == {"note"}
    assert found(old, one("doc_id", "==", "album '1'")) == {"note"}
    assert found(old, one("nested", "is_empty")) == {*PICTURES, "note"}
    assert old.query(ask(np.eye(64)[0], node_ids=[INLINE])).ids == [INLINE]
    assert old.query(ask(np.eye(64)[0], doc_ids=["album '1'"])).ids == ["note"]


def test_the_same_picture_again_is_unchanged(old, folder, model):
    inline = ImageNode(
        id_=INLINE,
        image=base64.b64encode((folder / "pictures" / "red.png").read_bytes()).decode(),
        text="held in memory",
        metadata={"tags": ["猫", 'b"\\'], "n": 7, "nested": {"a": [1, None]}, "拍-摄": "北京"},
    )
    report = ingest_images([inline], embed_model=model, vector_store=old)
    assert (report.unchanged, report.total) == (1, 1)


def test_so_is_a_file_in_its_place(folder, expected):
    """Its hash is that of a file which lies where it lay then."""
    hashes = {
        row["metadata"]["file_name"]: row["hash"]
        for row in expected["rows"].values()
        if row["image_path"]
    }
    for name in PICTURES:
        node = make_image_node(folder / "pictures" / name)
        node.image_path = node.metadata["file_path"] = f"/srv/album/pictures/{name}"
        assert node_hash(node) == hashes[name]


def test_it_is_written_to_and_opened_again(folder, model):
    options = {"uri": folder / "photos.db", "collection_name": "photos"}
    with create_vector_store(model, **options) as store:
        report = ingest_images(folder / "pictures", embed_model=model, vector_store=store)
        assert report.added == 3  # They lie elsewhere now.
        store.delete("album '1'")
        store.add(model([TextNode(id_="new", text="新的", metadata={"text": "of its own"})]))
    with create_vector_store(model, **options) as store:
        assert store.count() == 8
        assert found(store, one("text", "==", "of its own")) == {"new"}
        assert found(store, one("n", "==", 7)) == {INLINE}


def test_only_a_write_upgrades_its_format_and_embeds_nothing_again(folder, model, expected):
    options = {"uri": folder / "photos.db", "collection_name": "photos"}
    was = json.loads(expected["passport"])["format"]
    old_rows = sorted(expected["rows"])
    with create_vector_store(model, **options) as store:
        assert store.passport.format == was
        assert store.count() == 5
        kept = {one: store.get_nodes([one])[0] for one in old_rows}
        provenance = store.get_provenance(old_rows)
    with create_vector_store(model, **options) as store:
        assert store.passport.format == was  # Reading has left it.
        store.add(model([TextNode(id_="new", text="new")]))
        assert store.passport.format == FORMAT
    if was < FORMAT:
        assert set(provenance.values()) == {"unknown"}
    with create_vector_store(model, **options) as store:
        assert store.passport.format == FORMAT
        assert store.passport.provenance == ("unknown" if was == 1 else "recorded")
        assert store.get_provenance([*old_rows, "new"]) == provenance | {"new": "text"}
        assert {one: store.get_nodes([one])[0] for one in old_rows} == kept
    assert read_passport(**options)[0].format == FORMAT


def test_what_is_unknown_is_repaired_when_asked(folder, model):
    options = {"uri": folder / "photos.db", "collection_name": "photos"}
    source = {
        "id_": INLINE,
        "image": base64.b64encode((folder / "pictures" / "red.png").read_bytes()).decode(),
        "text": "held in memory",
        "metadata": {"tags": ["猫", 'b"\\'], "n": 7, "nested": {"a": [1, None]}, "拍-摄": "北京"},
    }
    with create_vector_store(model, **options) as store:
        is_old = store.passport.format == 1
        ingest = partial(ingest_images, embed_model=model, vector_store=store)
        assert ingest([ImageNode(**source)]).unchanged == 1
        assert ingest([ImageNode(**source)], repair=True).replaced == is_old
        assert store.get_provenance([INLINE]) == {INLINE: "image"}
        assert ingest([ImageNode(**source)], repair=True).unchanged == 1


def test_full_text_is_only_where_it_was_made(folder, model, old):
    if old.full_text:
        assert old.full_text == "english"
        assert old.query(ask(query_str="orange", mode="text_search")).ids == ["note"]
    else:
        with pytest.raises(StoreError, match="made with no full text, full_text='english'"):
            create_vector_store(
                model, uri=folder / "photos.db", collection_name="photos", full_text="english"
            )


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"format": 3, "package": "9.9"}, "'photos' was made by .* 9.9 in format 3.*upgrade"),
        ({"format": 3, "model": None, "dim": "many"}, "in format 3.*upgrade"),
        ({"dim": "64"}, "'photos': its passport is damaged .*dim.*overwrite=True"),
        ({"metric": None}, "'photos': its passport is damaged"),
    ],
)
def test_what_cannot_be_read_is_a_clear_error_and_stays(change, said, folder, model, expected):
    options = {"uri": folder / "photos.db", "collection_name": "photos"}
    changed = json.dumps(json.loads(expected["passport"]) | change)
    with create_vector_store(model, **options) as store:
        store.client.alter_collection_properties("photos", {PROPERTY: changed})
    for _ in range(2):  # The file is let go of each time.
        with pytest.raises(StoreError, match=said):
            create_vector_store(model, **options)
        with pytest.raises(StoreError, match=said):
            read_passport(**options)
    with create_vector_store(model, overwrite=True, **options) as store:
        assert store.count() == 0


def test_an_upgrade_keeps_what_another_store_wrote_into_the_passport(old, model, folder):
    measured = {"text->image": ScoreStatistics(0.1, 0.2)}
    with create_vector_store(model, uri=folder / "photos.db", collection_name="photos") as other:
        other.save_calibration(measured)
    old.write_rows([])
    old.add(model([TextNode(text="soup", id_="soup")]))
    with create_vector_store(model, uri=folder / "photos.db", collection_name="photos") as again:
        assert again.passport.calibration == measured
        assert again.passport.format == FORMAT
