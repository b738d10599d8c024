import asyncio
import contextvars
import shutil
import threading
import time

import numpy as np
import pytest
from llama_index.core.schema import ImageNode, MetadataMode, TextNode
from llama_index.core.vector_stores import FilterOperator, MetadataFilter, MetadataFilters
from PIL import Image

from llama_index_clip_ext import (
    CLIPEmbedding,
    ImageLoadError,
    ImageNotFoundError,
    aingest_images,
    create_retriever,
    ingest_images,
    load_image_nodes,
)
from llama_index_clip_ext.ingest import IngestOptions, ingest_items


def counts(report):
    return report.added, report.unchanged, report.replaced, len(report.failed)


def everything(store):
    return store.get_nodes(filters=MetadataFilters(filters=[]))


@pytest.fixture
def ingest(clip, store):
    def run(source, **options):
        return ingest_images(source, embed_model=clip, vector_store=store, **options)

    return run


def test_twice_adds_nothing_the_second_time(ingest, store, pictures, clip, monkeypatch):
    first = ingest(pictures)
    assert counts(first) == (5, 0, 0, 0)
    assert first.images_per_second > 0
    assert store.count("image") == store.count() == 5
    embedded = []
    monkeypatch.setattr(clip.encoder, "_rows", lambda *args: embedded.append(args))
    assert counts(ingest(pictures)) == (0, 5, 0, 0)
    assert embedded == []
    assert store.count() == 5


def test_a_changed_file_replaces_its_row(ingest, store, pictures, clip):
    ingest(pictures)
    path = pictures / "red.png"
    (node,) = load_image_nodes(path)
    before = store.get_nodes([node.node_id])[0].embedding
    Image.linear_gradient("L").save(path)
    assert counts(ingest(pictures)) == (0, 4, 1, 0)
    assert store.count() == 5
    after = store.get_nodes([node.node_id])[0]
    assert not np.allclose(before, after.embedding, atol=1e-3)
    np.testing.assert_allclose(after.embedding, clip.get_image_embedding(path), atol=1e-5)


def test_a_touched_file_is_unchanged_and_a_new_caption_is_not(ingest, store, pictures):
    ingest(pictures)
    (pictures / "red.png").touch()
    assert counts(ingest(pictures)) == (0, 5, 0, 0)
    (pictures / "red.txt").write_text("an important picture")
    assert counts(ingest(pictures)) == (0, 4, 1, 0)
    (node,) = load_image_nodes(pictures / "red.png")
    assert store.get_nodes([node.node_id])[0].text == "an important picture"


def test_bad_files_cost_a_line_each(ingest, store, pictures):
    (pictures / "broken.png").write_bytes((pictures / "red.png").read_bytes()[:60])
    (pictures / "empty.jpg").write_bytes(b"")
    (pictures / "page.jpg").write_text("<html></html>")
    report = ingest(pictures, batch_size=2)
    assert counts(report) == (5, 0, 0, 3)
    assert store.count() == 5
    reasons = {failure.source.rsplit("/", 1)[-1]: failure.reason for failure in report.failed}
    assert set(reasons) == {"broken.png", "empty.jpg", "page.jpg"}
    assert "0 bytes" in reasons["empty.jpg"]
    assert "not a picture" in reasons["page.jpg"]
    assert "broken.png" in str(report)
    order = sorted(path.name for path in pictures.iterdir())
    for failure in report.failed:
        assert failure.source.endswith(order[failure.index])


def test_raise_stops_and_keeps_what_was_stored(ingest, store, pictures):
    (pictures / "green_empty.png").write_bytes(b"")
    with pytest.raises(ImageLoadError, match=r"green_empty\.png") as caught:
        ingest(pictures, on_error="raise", batch_size=1)
    assert caught.value.index == 3  # black, blue, green, green_empty, red, white
    assert store.count() == 3
    assert counts(ingest(pictures)) == (2, 3, 0, 1)


def test_a_stream_is_read_as_it_is_needed(clip_dir, store, pictures):
    embed_model = CLIPEmbedding(clip_dir, embed_batch_size=4)
    ahead = []

    def stream():
        for number in range(300):
            ahead.append(number - store.count())
            yield ImageNode(id_=str(number), image_path=str(pictures / "red.png"))

    report = ingest_images(stream(), embed_model=embed_model, vector_store=store, batch_size=5)
    assert counts(report) == (300, 0, 0, 0)
    # Two batches being decoded, one computed, two on their way to the store; one looked up, and
    # one read ahead of that. A stream ten times as long has no more.
    assert max(ahead) <= 3 * 4 + 4 * 5


@pytest.mark.parametrize("batch_size", [1, 2, 64])
def test_an_error_of_the_stream_keeps_what_came_before_it(ingest, store, pictures, batch_size):
    def stream():
        yield from sorted(pictures.iterdir())
        raise OSError("the share is gone")

    with pytest.raises(OSError, match="the share is gone"):
        ingest(stream(), batch_size=batch_size)
    assert store.count() == 5


@pytest.mark.parametrize("batch_size", [1, 2, 64])
def test_an_item_that_is_none_keeps_what_came_before_it(ingest, store, pictures, batch_size):
    first, second, third, *_ = sorted(pictures.iterdir())
    with pytest.raises(TypeError, match="int .*neither a path nor an image node"):
        ingest([first, second, 3, third], batch_size=batch_size)
    assert store.count() == 2
    with pytest.raises(ImageNotFoundError, match="gone") as caught:
        ingest([third, first, "gone.png", second], batch_size=batch_size, on_error="raise")
    assert caught.value.index == 2
    assert store.count() == 3


def test_an_error_of_the_store_is_raised(ingest, store, pictures, monkeypatch):
    def full(rows):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(type(store), "write_rows", lambda self, rows: full(rows))
    with pytest.raises(OSError, match="No space left"):
        ingest(pictures, batch_size=1)


def test_what_comes_again_shares_the_fate_of_its_first(ingest, store, pictures):
    """Near each other, so that one is on its way; and far apart, so that it has arrived."""
    good, bad = pictures / "red.png", pictures / "bad.png"
    bad.write_bytes(b"no picture")
    for apart in (1, 200):
        others = [
            ImageNode(id_=f"{apart}-{number}", image_path=str(good)) for number in range(apart)
        ]
        report = ingest([good, bad, *others, good, bad], batch_size=1000)
        assert len(report.failed) == 2
        assert {failure.reason for failure in report.failed} == {report.failed[0].reason}
        assert (report.added, report.unchanged) == (apart + (apart == 1), 1 + (apart == 200))
        assert report.total == apart + 4


@pytest.mark.parametrize("apart", [0, 100], ids=["on its way", "arrived"])
def test_a_failure_leaves_the_row_that_there_was(ingest, store, pictures, apart):
    """Of nodes with one id, where the first is no picture."""
    bad = pictures / "bad.png"
    bad.write_bytes(b"no picture")

    def of(name):
        return ImageNode(id_="one", image_path=str(pictures / name))

    others = [
        ImageNode(id_=f"other {number}", image_path=str(pictures / "blue.png"))
        for number in range(apart)
    ]
    report = ingest([of("bad.png"), *others, of("red.png")], batch_size=1000)
    assert counts(report) == (apart + 1, 0, 0, 1)
    report = ingest([of("bad.png"), *others, of("green.png")], batch_size=1000)
    assert counts(report) == (0, apart, 1, 1)
    report = ingest([of("bad.png"), *others, of("green.png")], batch_size=1000)
    # Embedded again, because the other one is still on its way.
    assert counts(report) == (0, apart, 1, 1)
    assert store.count() == apart + 1


def test_the_last_of_nodes_with_one_id_counts(ingest, store, pictures):
    nodes = [
        ImageNode(id_="one", image_path=str(pictures / "red.png"), metadata={"number": number})
        for number in range(100)
    ]
    report = ingest(nodes, batch_size=7)
    assert counts(report) == (1, 0, 99, 0)
    assert store.get_nodes(["one"])[0].metadata["number"] == 99


def test_a_caption_function_runs_once_at_a_time_in_the_callers_context(ingest, pictures):
    running = threading.Lock()
    trace = contextvars.ContextVar("trace", default=None)
    trace.set("mine")

    def caption(path):
        assert trace.get() == "mine"
        assert running.acquire(blocking=False)
        time.sleep(0.01)
        running.release()
        return path.stem

    assert ingest(pictures, captions=caption).added == 5


def test_a_caption_function_that_raises_costs_a_line(ingest, pictures):
    def caption(path):
        if path.stem == "red":
            raise RuntimeError("rate limited")
        return path.stem

    report = ingest(pictures, captions=caption)
    assert counts(report) == (4, 0, 0, 1)
    assert report.failed[0].source.endswith("red.png")
    assert report.failed[0].reason == "captions raised RuntimeError: rate limited"


def test_an_interruption_drops_what_was_read_ahead(clip, store, pictures):
    """Here between two batches, where it comes from the one who shows progress."""
    captioned = []

    def interrupt(report):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ingest_items(
            [pictures / "red.png"] * 1000,
            embed_model=clip,
            vector_store=store,
            options=IngestOptions(
                batch_size=100,
                captions=lambda path: captioned.append(path) or time.sleep(0.01),
            ),
            on_progress=interrupt,
            wait_for_index=True,
            show_progress=False,
            stop=threading.Event(),
        )
    assert len(captioned) < 250


def test_nodes_of_ones_own(ingest, store, pictures, clip):
    path = pictures / "red.png"
    nodes = [
        ImageNode(id_="own", image_path=str(path), metadata={"album": "summer"}),
        *load_image_nodes(pictures / "blue.png"),
    ]
    assert counts(ingest(nodes)) == (2, 0, 0, 0)
    assert "content_hash" not in nodes[0].metadata
    assert nodes[0].embedding is None
    assert counts(ingest(nodes)) == (0, 2, 0, 0)
    stored = store.get_nodes(["own"])[0]
    assert stored.metadata["album"] == "summer"
    filters = MetadataFilters(filters=[MetadataFilter(key="album", value="summer")])
    hits = create_retriever(clip, store, filters=filters).retrieve("anything")
    assert [hit.node.node_id for hit in hits] == ["own"]
    nodes[0].metadata["album"] = "winter"
    assert counts(ingest(nodes)) == (0, 1, 1, 0)


def test_the_same_id_twice_is_one_row(ingest, store, pictures):
    files = [pictures / "red.png", pictures / "red.png"]
    assert counts(ingest(files)) == (1, 1, 0, 0)
    assert store.count() == 1


def test_copies_by_path_are_two_rows_and_by_content_one(ingest, store, pictures):
    shutil.copy(pictures / "red.png", pictures / "red-again.png")
    report = ingest(load_image_nodes(pictures, id_by="content"))
    assert report.added == 5
    assert store.count() == 5
    store.clear()
    assert ingest(pictures).added == 6


def test_what_is_no_image_is_refused(ingest):
    with pytest.raises(TypeError, match="TextNode .*neither a path nor an image node"):
        ingest([TextNode(text="a")])


SIDECARS = {
    "too long": ("文" * 30_000, "red.txt has more than 65535 bytes"),
    "yolo": ("0 0.5 0.5 0.2 0.3\n16 0.25 0.75 0.1 0.1\n", "holds numbers"),
    "yolo segments": ("0 0.1 0.2 0.3 0.4 0.5 0.6\n", "holds numbers"),
    "dota": (
        "imagesource:GoogleEarth\ngsd:0.1\n1 2 3 4 5 6 7 8 small-vehicle 0\n",
        "holds numbers",
    ),
    "kitti": ("Car 0.00 0 1.85 387.63 181.54 423.81 203.12 1.67 1.87 3.69\n", "holds numbers"),
    "json": ('{"shapes": [{"label": "cat"}]}', "holds numbers or markup"),
    "json lines": ('{"a": 1}\n{"a": 2}', "markup"),
    "json, cut short": ('{"shapes": [{"lab', "markup"),
    "yolo by name": ("traffic light 0.5 0.5 0.2 0.3", "holds numbers"),
    "yolo with nan": ("0 nan 0.5 0.2 0.3", "holds numbers"),
    "yolo with notes": ("# class x y w h\n0 0.5 0.5 0.2 0.3", "holds numbers"),
    "csv": ("class,x,y,w,h\n0,0.5,0.5,0.2,0.1", "holds numbers"),
    "boxes in pixels": ("0 10 20 30 40\n1 5 6 7 8", "holds numbers"),
    "icdar": ("10,20,30,40,50,60,70,80,what it says", "holds numbers"),
    "landmarks": ("version: 1\nn_points: 3\n{\n1.0 2.0\n2.5 3.5\n4 5\n}", "holds numbers"),
    "svg": ('<svg width="1"><g/></svg>', "markup"),
    "control characters": ("PK\x03\x04abc", "binary"),
    "xml": ("<annotation><object/></annotation>", "markup"),
    "too long to be read": ("word " * 300_000, "red.txt has more than 1000000 bytes"),
    "binary": (b"GIF89a\0\0", "holds binary data"),
}


@pytest.mark.parametrize("kind", SIDECARS)
def test_what_is_no_caption_costs_the_caption_and_not_the_image(ingest, store, pictures, kind):
    content, reason = SIDECARS[kind]
    content = content if isinstance(content, bytes) else content.encode()
    (pictures / "red.txt").write_bytes(content)
    (pictures / "blue.txt").write_text("A blue square.")

    report = ingest(pictures)

    assert counts(report) == (5, 0, 0, 0)
    (skipped,) = report.captions_skipped
    assert "red.png" in skipped.source
    assert reason in skipped.reason
    assert "without the text beside them: 1, as /" in str(report)
    texts = {node.metadata["file_name"]: node.text for node in everything(store)}
    assert texts == dict.fromkeys(texts, "") | {"blue.png": "A blue square."}


@pytest.mark.parametrize(
    ("content", "reason"),
    [(b"\xff\xfe\x00", "invalid start byte"), ("红色的船".encode("gb18030"), "save it as UTF-8")],
)
def test_a_caption_that_cannot_be_read_is_said(ingest, store, pictures, content, reason):
    (pictures / "red.txt").write_bytes(content)

    report = ingest(pictures)

    assert counts(report) == (4, 0, 0, 1)
    assert "its caption red.txt cannot be read" in report.failed[0].reason
    assert reason in report.failed[0].reason


@pytest.mark.parametrize(
    "caption",
    [
        *("7", "2024-05-01", "Route 66", "1 2 3", "call 0800 123 456 789", "a [b] {c}", "{x", "<3"),
        *(
            "Lotto 4 8 15 16 23 42",
            "1999 2000 2001 2002",
            "<annotation of the king>",
            "Title: a dog",
        ),
        *(
            '["red circle", "blue"]',
            "Apollo\n1 2 3 4 5",
            "A dog.\nIt is 3 years old.",
            "f2.8 ISO 100",
        ),
    ],
)
def test_captions_with_numbers_and_brackets_are_captions(ingest, store, pictures, caption):
    (pictures / "red.txt").write_text(caption)

    assert ingest(pictures).captions_skipped == []
    assert caption in {node.text for node in everything(store)}


def test_a_caption_of_a_function_that_is_too_long_is_left_out(ingest, store, pictures):
    report = ingest(pictures / "red.png", captions=lambda path: "文" * 30_000)

    assert counts(report) == (1, 0, 0, 0)
    assert "the caption of captions= has more than" in report.captions_skipped[0].reason


def test_options_are_checked(ingest, pictures):
    with pytest.raises(ValueError, match="batch_size is 0"):
        ingest(pictures, batch_size=0)
    with pytest.raises(ValueError, match="on_error is 'ignore'"):
        ingest(pictures, on_error="ignore")
    with pytest.raises(FileNotFoundError, match="nowhere"):
        ingest("nowhere")


def test_progress_is_shown_when_asked_for(ingest, pictures, capsys):
    ingest(pictures, show_progress=True)
    assert "Ingesting images: 100%" in capsys.readouterr().err
    ingest(pictures)
    assert capsys.readouterr().err == ""


def test_async_twin(clip, store, pictures):
    report = asyncio.run(aingest_images(pictures, embed_model=clip, vector_store=store))
    assert counts(report) == (5, 0, 0, 0)


def test_a_name_that_is_no_unicode_costs_a_line(ingest, store, pictures):
    name = "中文.png".encode("gbk")
    try:
        with open(bytes(pictures) + b"/" + name, "wb") as file:
            file.write((pictures / "red.png").read_bytes())
    except OSError as err:
        pytest.skip(f"the file system takes no such name: {err}")
    report = ingest(pictures)
    assert counts(report) == (5, 0, 0, 1)
    assert "no Unicode text" in report.failed[0].reason
    str(report).encode()


def test_the_same_bad_file_twice_is_two_failures(ingest, pictures):
    (pictures / "bad.png").write_bytes(b"not a picture")
    report = ingest([pictures / "bad.png", pictures / "bad.png", pictures / "red.png"])
    assert counts(report) == (1, 0, 0, 2)
    assert sorted(failure.index for failure in report.failed) == [0, 1]


def test_a_bad_copy_does_not_cost_the_good_one(ingest, store, pictures):
    good, bad = pictures / "red.png", pictures / "bad.png"
    bad.write_bytes(b"not a picture")
    nodes = [ImageNode(id_="d", image_path=str(path)) for path in (good, bad)]
    assert counts(ingest(nodes)) == (1, 0, 0, 1)
    assert store.get_nodes(["d"])[0].image_path == str(good)


def test_a_node_that_moved_or_has_a_new_source_is_replaced(ingest, store, pictures):
    copy = shutil.copy(pictures / "red.png", pictures / "copy.png")
    assert ingest([ImageNode(id_="d", image_path=str(pictures / "red.png"))]).added == 1
    assert ingest([ImageNode(id_="d", image_path=str(copy))]).replaced == 1
    assert store.get_nodes(["d"])[0].image_path == str(copy)


def test_nodes_loaded_before_the_file_changed_are_read_again(ingest, store, pictures, clip):
    nodes = load_image_nodes(pictures / "red.png")
    ingest(nodes)
    Image.linear_gradient("L").save(pictures / "red.png")
    assert ingest(nodes).replaced == 1
    stored = store.get_nodes([nodes[0].node_id])[0].embedding
    expected = clip.get_image_embedding(pictures / "red.png")
    np.testing.assert_allclose(stored, expected, atol=1e-5)


def test_another_model_is_refused(store, pictures, other_clip_dir):
    from llama_index_clip_ext import CLIPEmbedding, EmbeddingSpaceMismatchError

    other = CLIPEmbedding(other_clip_dir)
    with pytest.raises(EmbeddingSpaceMismatchError):
        ingest_images(pictures, embed_model=other, vector_store=store)
    with pytest.raises(EmbeddingSpaceMismatchError):
        create_retriever(other, store)
    assert store.count() == 0


def test_what_is_no_model_or_no_store_is_named(clip, store, pictures):
    with pytest.raises(TypeError, match="embed_model is a str, expected CLIPEmbedding"):
        ingest_images(pictures, embed_model="demo-clip", vector_store=store)
    with pytest.raises(TypeError, match="vector_store is a str, expected what create_vector_store"):
        ingest_images(pictures, embed_model=clip, vector_store="photos.db")
    with pytest.raises(TypeError, match="expected what create_vector_store"):
        create_retriever(store, clip)


def test_hidden_files_are_left_alone_and_an_unreadable_folder_is_a_line(ingest, pictures):
    shutil.copy(pictures / "red.png", pictures / "._red.png")
    (pictures / ".hidden").mkdir()
    shutil.copy(pictures / "red.png", pictures / ".hidden" / "red.png")
    assert counts(ingest(pictures)) == (5, 0, 0, 0)


def test_impossible_paths_cost_a_line(ingest, pictures):
    report = ingest(["a\0b.jpg", "~nosuchuser/x.jpg", pictures / "red.png"])
    assert counts(report) == (1, 0, 0, 2)


def named(operator, value):
    given = MetadataFilter(key="file_path", operator=FilterOperator(operator), value=value)
    return MetadataFilters(filters=[given])


def test_deleting_by_a_path_as_it_was_ingested(ingest, store, pictures, monkeypatch, tmp_path):
    """However the file is named, as ingest_images takes it, and how many there were is said."""
    (tmp_path / "link").symlink_to(pictures)
    monkeypatch.setenv("HOME", str(tmp_path))
    names = ["pictures/red.png", "./pictures/../pictures/green.png", "~/pictures/blue.png"]
    names.append(str(tmp_path / "link" / "black.png"))
    for name in names:
        ingest(pictures)
        by_name = named("==", name)
        assert len(store.get_nodes(filters=by_name)) == store.count(filters=by_name) == 1
        assert store.delete_nodes(filters=by_name) == 1
        assert store.delete_nodes(filters=by_name) == 0
        assert store.count() == 4
    ingest(pictures)
    both = named("in", ["pictures/red.png", "pictures/green.png"])
    assert store.delete_nodes(filters=both) == 2
    assert sorted(node.metadata["file_name"] for node in everything(store)) == [
        *("black.png", "blue.png", "white.png")
    ]


def tag(store, name, **metadata):
    """Do what a user does by hand: read a node, write into its metadata, put it back."""
    (node,) = store.get_nodes(filters=named("==", name))
    node.metadata |= metadata
    store.add([node])


@pytest.mark.parametrize("changed", [False, True])
def test_metadata_of_ones_own_stay_when_it_is_run_again(ingest, store, pictures, changed):
    ingest(pictures)
    tag(store, "pictures/red.png", album="spring", rating=5, tags=["a", "b"])
    if changed:
        Image.new("RGB", (50, 20), "orange").save(pictures / "red.png")

    report = ingest(pictures)

    assert counts(report) == (0, 4, 1, 0) if changed else (0, 5, 0, 0)
    (node,) = store.get_nodes(filters=named("==", "pictures/red.png"))
    assert (node.metadata["album"], node.metadata["rating"]) == ("spring", 5)
    assert node.metadata["tags"] == ["a", "b"]
    assert node.metadata["width"] == (50 if changed else 40)
    by_album = MetadataFilters(filters=[MetadataFilter(key="album", value="spring")])
    assert store.get_ids(by_album) == [node.node_id]
    assert counts(ingest(pictures)) == (0, 5, 0, 0)


def test_metadata_are_replaced_where_that_is_asked_for(ingest, store, pictures):
    ingest(pictures)
    tag(store, "pictures/red.png", album="spring")

    assert counts(ingest(pictures, metadata="replace")) == (0, 4, 1, 0)

    (node,) = store.get_nodes(filters=named("==", "pictures/red.png"))
    assert "album" not in node.metadata
    assert counts(ingest(pictures, metadata="replace")) == (0, 5, 0, 0)
    with pytest.raises(ValueError, match="metadata is 'drop', expected 'keep' or 'replace'"):
        ingest(pictures, metadata="drop")


def test_what_a_node_says_now_goes_before_what_was_stored(ingest, store, pictures):
    (node,) = load_image_nodes(pictures / "red.png")
    first = node.model_copy(update={"metadata": {**node.metadata, "album": "a", "kept": 1}})
    ingest([first])
    second = node.model_copy(update={"metadata": {**node.metadata, "album": "b"}})

    assert counts(ingest([second])) == (0, 0, 1, 0)

    (stored,) = everything(store)
    assert (stored.metadata["album"], stored.metadata["kept"]) == ("b", 1)


def test_a_caption_that_was_stored_stays_and_one_beside_the_image_replaces_it(
    ingest, store, pictures
):
    ingest(pictures / "red.png", captions=lambda path: "by hand")
    assert counts(ingest(pictures / "red.png")) == (0, 1, 0, 0)
    assert everything(store)[0].text == "by hand"
    (pictures / "red.txt").write_text("beside it")
    assert counts(ingest(pictures / "red.png")) == (0, 0, 1, 0)
    assert everything(store)[0].text == "beside it"
    (pictures / "red.txt").unlink()
    ingest(pictures / "red.png", metadata="replace")
    assert everything(store)[0].text == ""


def test_metadata_stay_with_a_vector_that_is_not_made_again(ingest, clip, store, pictures):
    ingest(pictures)
    tag(store, "pictures/red.png", album="spring")
    clip_rows, calls = clip.encoder._rows, []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(clip.encoder, "_rows", lambda *a, **k: calls.append(1) or clip_rows(*a, **k))
        ingest(pictures)
        ingest(pictures, metadata="replace")
    assert calls == []


def test_another_picture_in_a_file_has_not_the_caption_of_the_one_before(ingest, store, pictures):
    ingest(pictures / "red.png", captions=lambda path: "a red square")
    tag(store, "pictures/red.png", album="spring")
    Image.new("RGB", (50, 20), "blue").save(pictures / "red.png")

    assert counts(ingest(pictures / "red.png")) == (0, 0, 1, 0)

    (node,) = everything(store)
    assert (node.text, node.metadata["album"]) == ("", "spring")
    assert "red.png" in node.get_content(MetadataMode.EMBED)  # The name stands for it again.


def test_labels_that_were_stored_as_a_caption_go(ingest, store, pictures):
    """As an earlier version stored them."""
    ingest(pictures / "red.png")
    (node,) = everything(store)
    node.set_content("0 0.5 0.5 0.2 0.3")
    store.add([node])
    (pictures / "red.txt").write_text("0 0.5 0.5 0.2 0.3")

    assert len(ingest(pictures / "red.png").captions_skipped) == 1
    assert everything(store)[0].text == ""
    assert counts(ingest(pictures / "red.png")) == (0, 1, 0, 0)


@pytest.mark.parametrize("caption", [7, b"a", ["a"]])
def test_a_caption_of_a_function_is_a_text(ingest, store, pictures, caption):
    report = ingest(pictures / "red.png", captions=lambda path: caption)
    assert counts(report) == (0, 0, 0, 1)
    assert "captions returned a" in report.failed[0].reason
