"""Rows: nodes as Milvus keeps them, and back."""

import base64
import hashlib
import io
import math

import pytest
from by_hand import X, image, text
from llama_index.core.schema import (
    Document,
    ImageDocument,
    ImageNode,
    IndexNode,
    MediaResource,
    MetadataMode,
    Node,
    NodeRelationship,
    RelatedNodeInfo,
    TextNode,
)
from PIL import Image

from llama_index_clip_ext.errors import DimensionMismatchError, EmbeddingError, RowTooLargeError
from llama_index_clip_ext.rows import (
    COLUMNS,
    check_node,
    modality_of,
    node_hash,
    node_to_row,
    row_to_node,
)

METADATA = {
    "camera": "徕卡 \"M3\" \\ 'x'\n",
    "place": {"city": "北京", "at": [39.9, 116.4], "deep": {"er": None}},
    "none": None,
    "yes": True,
    "no": False,
    "half": 0.5,
    "tags": ["猫", "🐈"],
    "file_path": "/图片/猫 1.png",
    "width": 40,
}
SOURCE = {NodeRelationship.SOURCE: RelatedNodeInfo(node_id="album-1")}


def png():
    stream = io.BytesIO()
    Image.new("RGB", (8, 8), "red").save(stream, "PNG")
    return stream.getvalue()


def round_trip(node):
    return row_to_node(check_node(node))


def test_an_image_node_comes_back():
    node = ImageNode(
        id_="a",
        text="一只猫",
        image_path="/图片/猫 1.png",
        image_url="https://example.com/cat.png?a=1&b=2",
        image_mimetype="image/png",
        metadata=METADATA,
        excluded_embed_metadata_keys=["camera"],
        relationships=SOURCE,
    )

    back = round_trip(node)

    assert type(back) is ImageNode
    assert back == node
    assert back.ref_doc_id == "album-1"


@pytest.mark.parametrize(
    "node",
    [
        TextNode(id_="a", text="一只猫\n在沙发上", metadata=METADATA, relationships=SOURCE),
        Document(id_="a", text="一只猫", metadata=METADATA),
        IndexNode(id_="a", text="一只猫", index_id="b", metadata=METADATA, relationships=SOURCE),
        Node(id_="a", text_resource=MediaResource(text="一只猫"), metadata=METADATA),
        Node(
            id_="a",
            text_resource=MediaResource(text="一只猫"),
            image_resource=MediaResource(url="https://example.com/a.png", mimetype="image/png"),
            relationships=SOURCE,
        ),
    ],
    ids=lambda node: type(node).__name__,
)
def test_every_class_of_node_comes_back(node):
    back = round_trip(node)

    assert type(back) is type(node)
    assert back == node
    assert back.ref_doc_id == node.ref_doc_id


def test_a_path_in_an_image_resource_comes_back(tmp_path):
    path = tmp_path / "猫 1.png"
    path.write_bytes(png())

    node = Node(id_="a", image_resource=MediaResource(path=path, mimetype="image/png"))
    document = ImageDocument(id_="a", text="cat", image_path=str(path))

    assert round_trip(node).image_resource.path == path
    assert round_trip(document).image_path == str(path)
    assert round_trip(document).text == "cat"


def test_a_node_without_text_comes_back_without_text():
    assert round_trip(ImageNode(id_="a", image_path="a.png")).text == ""
    assert check_node(Node(id_="a", image_resource=MediaResource(path="a.png")))["text"] == ""


def test_the_embedding_comes_back_where_it_was_asked_for():
    row = node_to_row(image("a"), 4)

    assert row["embedding"] == X
    assert row_to_node(row).embedding == X
    assert row_to_node(check_node(image("a"))).embedding is None


@pytest.mark.parametrize(
    "node",
    [
        ImageNode(id_="a", image=base64.b64encode(png()).decode(), image_mimetype="image/png"),
        Node(id_="a", image_resource=MediaResource(data=png(), mimetype="image/png")),
        ImageDocument(id_="a", image=base64.b64encode(png()).decode()),
    ],
    ids=lambda node: type(node).__name__,
)
def test_pixels_are_not_stored_and_their_hash_is(node):
    before = node.model_dump()
    row = check_node(node)

    assert row["modality"] == "image"
    assert row["content_hash"] == hashlib.sha256(png()).hexdigest()
    assert base64.b64encode(png()).decode()[:40] not in str(row)
    assert node.model_dump() == before


def test_columns_hold_what_is_filtered_by_often():
    row = check_node(
        ImageNode(id_="a", image_path="/a.png", text="cat", metadata=METADATA, relationships=SOURCE)
    )

    assert row["id"] == "a"
    assert row["doc_id"] == "album-1"
    assert row["text"] == "cat"
    assert row["modality"] == "image"
    assert row["file_path"] == "/图片/猫 1.png"
    assert row["width"] == 40
    assert (row["file_name"], row["height"]) == ("", -1)  # Milvus 2.3 has no nullable columns.
    assert row["camera"] == METADATA["camera"]
    assert row["place"] == [METADATA["place"]]


def test_a_node_without_source_is_its_own_document():
    assert check_node(image("a"))["doc_id"] == "a"


def test_metadata_named_like_a_column_stays_in_the_node_and_out_of_the_column():
    metadata = {
        "id": "evil",
        "doc_id": "evil",
        "text": "evil",
        "modality": "text",
        "node_hash": "evil",
        "embedding": "evil",
        "_node_content": "evil",
        "_node_type": "evil",
        "document_id": "mine",
    }
    node = ImageNode(id_="a", text="cat", image_path="a.png", embedding=X, metadata=metadata)

    row = node_to_row(node, 4)

    assert (row["id"], row["doc_id"], row["text"], row["modality"]) == ("a", "a", "cat", "image")
    assert row["embedding"] == X
    assert row["document_id"] == "mine"
    assert row_to_node(row).metadata == metadata
    # To be filtered by, under names of their own; doc_id and modality are always the columns'.
    open_columns = ("doc_id", "modality", "document_id")
    own = {key: value for key, value in metadata.items() if key not in open_columns}
    assert {key: row[f"${key}"] for key in own} == own


def test_what_filters_cannot_tell_apart_is_kept_in_the_node_alone():
    metadata = {"none": None, "empty": [], "nested": {"a": 1}, "blank": "", "no": False}

    row = check_node(image("a", **metadata))

    assert not {"none", "empty"} & set(row)
    assert (row["nested"], row["blank"], row["no"]) == ([{"a": 1}], "", False)
    assert row_to_node(row).metadata == metadata


@pytest.mark.parametrize("key", ["$meta", "$id", "$_node_content", "$embedding"])
def test_keys_that_the_store_needs_are_refused(key):
    with pytest.raises(ValueError, match="the store keeps the metadata key"):
        check_node(image("a", **{key: 1}))


@pytest.mark.parametrize(
    ("metadata", "expected"),
    [
        ({"file_name": 7}, "metadata 'file_name' is 7, expected str"),
        ({"width": "40"}, "metadata 'width' is '40', expected int"),
        ({"width": 40.5}, "metadata 'width' is 40.5, expected int"),
        ({"file_size": True}, "metadata 'file_size' is True, expected int"),
        ({"content_hash": ["a"]}, r"metadata 'content_hash' is \['a'\], expected str"),
    ],
)
def test_metadata_of_another_type_than_its_column_is_refused(metadata, expected):
    with pytest.raises(TypeError, match=f"^node 'a': {expected}: the collection has a column of"):
        check_node(image("a", **metadata))


def test_metadata_that_no_integer_column_holds_is_refused():
    with pytest.raises(ValueError, match="node 'a': .*'file_size'"):
        check_node(image("a", file_size=2**63))


@pytest.mark.parametrize(
    ("metadata", "key"),
    [
        ({"$meta": 1}, r"\$meta"),
        ({"n": 2**70}, "n"),
        ({"n": [2**63]}, "n"),
        ({"n": {"of": {"camera": -(2**63) - 1}}}, "n"),
        ({"n": object()}, "n"),
    ],
)
def test_metadata_that_milvus_would_choke_on_is_refused_with_its_node(metadata, key):
    with pytest.raises((TypeError, ValueError), match=f"node 'a': .*'{key}'"):
        check_node(image("a", **metadata))


def test_integers_of_64_bits_are_taken_however_deep():
    row = check_node(image("a", n={"of": [2**63 - 1, -(2**63)]}, digits=f"{2**70}"))
    assert row["n"] == [{"of": [2**63 - 1, -(2**63)]}]


def test_a_key_named_like_the_words_of_full_text_is_kept_apart():
    assert check_node(text("a", sparse_embedding=1))["$sparse_embedding"] == 1


def test_a_node_without_an_id_is_refused():
    with pytest.raises(ValueError, match="empty id"):
        check_node(TextNode(id_="", text="a"))


def test_an_image_that_can_be_read_is_known_by_its_content(tmp_path):
    file = tmp_path / "a.png"
    file.write_bytes(b"content")
    expected = hashlib.sha256(b"content").hexdigest()
    encoded = base64.b64encode(b"content").decode()
    for node in (
        ImageNode(image_path=str(file)),
        ImageNode(image=encoded),
        Node(image_resource=MediaResource(path=file)),
    ):
        row = check_node(node)
        assert row["content_hash"] == expected
        again = row_to_node(row)
        assert again.metadata == {"content_hash": expected}
        assert expected not in again.get_content(MetadataMode.LLM)
        assert expected not in again.get_content(MetadataMode.EMBED)
        assert node_hash(again) == row["node_hash"]
        assert node.metadata == {}
    unknown = ImageNode(image_path=str(file), metadata={"content_hash": None})
    assert check_node(unknown)["content_hash"] == expected
    assert check_node(ImageNode(image_path="/gone.png"))["content_hash"] == ""


def test_a_name_that_is_no_unicode_is_refused_with_its_node():
    # What os.listdir gives for a file name in GBK.
    with pytest.raises(ValueError, match="node 'a'.*file_path"):
        check_node(image("a", file_path=b"/\xc3\xa8.png".decode("ascii", "surrogateescape")))


@pytest.mark.parametrize(
    ("node", "message"),
    [
        (image("a", small="x", big="x" * 70_000), "largest metadata is 'big' .70002 bytes"),
        (image("a", small="x", big={"of": ["x"] * 20_000}), "largest metadata is 'big'"),
        (image("a", **{f"key{n}": "x" * 7_000 for n in range(10)}), "largest metadata is 'key"),
        (image("a", file_path="x" * 70_000), "largest metadata is 'file_path' .70002 bytes"),
        (TextNode(id_="a", text="x" * 70_000), "text takes 70000 bytes, Milvus stores 65535"),
        (TextNode(id_="a", text="猫" * 30_000), "text takes 90000 bytes, Milvus stores 65535"),
        (ImageNode(id_="a", text="猫" * 30_000), "text takes 90000 bytes"),
        (
            Node(id_="a", text_resource=MediaResource(text="猫" * 30_000)),
            "text takes 90000 bytes",
        ),
        (image("a", big="猫" * 30_000), "largest metadata is 'big' .90002 bytes"),
    ],
)
def test_a_row_that_milvus_could_not_store_is_refused(node, message):
    with pytest.raises(RowTooLargeError, match=f"^node 'a': .*{message}"):
        check_node(node)


def test_an_id_that_milvus_could_not_store_is_refused():
    with pytest.raises(RowTooLargeError, match="id takes 70000 bytes"):
        check_node(TextNode(id_="x" * 70_000, text=""))


def test_a_row_that_just_fits_is_accepted():
    assert len(check_node(TextNode(id_="a", text="x" * 65_535))["text"]) == 65_535
    assert check_node(image("a", big="猫" * 20_000))["big"] == "猫" * 20_000  # 60,000 bytes.


@pytest.mark.parametrize(
    ("embedding", "error", "message"),
    [
        (None, EmbeddingError, "node 'a' has no embedding; pass nodes through embed_model"),
        ([math.nan, 0.0, 0.0, 0.0], EmbeddingError, "node 'a': .* contains NaN"),
        ([0.0] * 4, EmbeddingError, "node 'a': the embedding has length 0"),
        ([0.0, 2.0, 0.0, 0.0], EmbeddingError, "node 'a': the embedding has length 2"),
        ([1.0, 0.0], DimensionMismatchError, "node 'a': .* the collection expects"),
    ],
)
def test_an_embedding_that_would_poison_the_collection_is_refused(embedding, error, message):
    with pytest.raises(error, match=message):
        node_to_row(image("a", embedding), 4)


def test_modality_is_by_tower():
    assert modality_of(ImageNode(id_="a", text="only a caption")) == "image"
    assert modality_of(Node(image_resource=MediaResource(url="https://e.com/a.png"))) == "image"
    assert modality_of(Node(text_resource=MediaResource(text="a"))) == "text"
    assert modality_of(TextNode(text="/a/path.png")) == "text"


def test_the_hash_follows_content_and_not_dates():
    node = image("a", content_hash="1", last_modified_date="2024")

    assert node_hash(node) == node_hash(image("a", content_hash="1", last_modified_date="2025"))
    assert node_hash(node) != node_hash(image("a", content_hash="2", last_modified_date="2024"))
    assert node_hash(text("a")) != node_hash(text("b"))


def test_a_row_of_another_program_becomes_an_image_node():
    node = row_to_node({"id": 7, "file_path": "/a.png", "label": "cat", "embedding": X})

    assert type(node) is ImageNode
    assert node.node_id == "7"
    assert node.image_path == "/a.png"
    assert node.metadata == {"file_path": "/a.png", "label": "cat"}
    assert node.embedding == X


def test_every_row_has_every_column():
    assert check_node(TextNode(text="a")).keys() >= COLUMNS


@pytest.mark.parametrize("value", [math.nan, math.inf, {"deep": [math.nan]}])
def test_what_json_does_not_have_is_refused(value):
    """It would come back as nothing."""
    with pytest.raises(TypeError, match="metadata 'k' cannot be written as JSON"):
        check_node(image("a", k=value))


def test_a_long_id_is_cut_where_it_is_named():
    with pytest.raises(RowTooLargeError) as caught:
        check_node(image("a" * 70_000))
    assert len(str(caught.value)) < 300
