import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import uuid
from contextlib import nullcontext
from types import SimpleNamespace

import numpy as np
import pytest
from llama_index.core.schema import ImageDocument, ImageNode, TextNode
from llama_index.core.vector_stores import MetadataFilter, MetadataFilters
from PIL import Image

from llama_index_clip_ext import (
    IngestInterrupted,
    StoreError,
    SyncError,
    SyncRunningError,
    aingest_images,
    async_images,
    create_vector_store,
    ingest_images,
    load_image_nodes,
    sync_images,
)
from llama_index_clip_ext import ingest as ingest_module
from llama_index_clip_ext import nodes as nodes_module
from llama_index_clip_ext import sync as sync_module
from llama_index_clip_ext.cli import main
from llama_index_clip_ext.sources import describe_source

pytestmark = pytest.mark.usefixtures("interruptible")

COUNTS = ("added", "unchanged", "replaced", "moved", "removed", "missing")


@pytest.fixture
def settled(monkeypatch):
    """Let files count as settled at once, as those of an hour ago do."""
    monkeypatch.setattr(ingest_module, "_SETTLED_AFTER", -60)


@pytest.fixture
def embedded(clip, monkeypatch):
    """The names of the files that were embedded, in order."""
    names = []
    prepare = type(clip)._prepare

    def noted(self, numbered, **options):
        names.append(os.path.basename(describe_source(numbered[1])))
        return prepare(self, numbered, **options)

    monkeypatch.setattr(type(clip), "_prepare", noted)
    return names


@pytest.fixture
def sync(clip, store, tmp_path, settled, embedded):
    """Sync, check the counts, what was embedded, and that the report has a line for each."""

    def run(folder, *, embeds=(), failed=0, **options):
        expected = {name: options.pop(name, 0) for name in COUNTS}
        embedded.clear()
        lines = tmp_path / "report.jsonl"
        report = sync_images(
            folder, embed_model=clip, vector_store=store, report_path=lines, **options
        )
        assert {name: getattr(report, name) for name in COUNTS} == expected
        assert len(report.failed) == failed
        assert sorted(embedded) == sorted(embeds)
        said = [json.loads(line) for line in lines.read_text().splitlines()]
        counted = dict.fromkeys((*COUNTS, "failed"), 0)
        for line in said:
            counted["added" if line["status"] == "ok" else line["status"]] += 1
        assert counted == {**expected, "failed": failed}
        run.lines = said
        return report

    return run


def repaint(file, colour):
    """Change a picture, but not the size or date of its file."""
    state = file.stat()
    Image.new("RGB", (40, 30), colour).save(file, "BMP")
    assert file.stat().st_size == state.st_size
    os.utime(file, ns=(state.st_atime_ns, state.st_mtime_ns))


def stored(store):
    """What the collection holds: name and vector by id."""
    nodes = store.get_nodes(store.get_ids(modality="image"))
    return {node.node_id: (node.metadata["file_name"], node.embedding) for node in nodes}


def assert_equal(store, clip, folder):
    """The collection holds each picture of the folder once, with its own vector."""
    files = sorted(folder.rglob("*.png"))
    nodes = store.get_nodes(store.get_ids(modality="image"))
    assert sorted(node.metadata["file_path"] for node in nodes) == [str(file) for file in files]
    for node in nodes:
        by_hand = clip.get_image_embedding(node.metadata["file_path"])
        np.testing.assert_allclose(node.embedding, by_hand, atol=1e-5)
        assert node.image_path == node.metadata["file_path"]


def test_new_changed_renamed_and_deleted(sync, store, clip, pictures):
    sync(pictures, added=5, embeds=["black.png", "blue.png", "green.png", "red.png", "white.png"])
    sync(pictures, unchanged=5)

    Image.linear_gradient("L").save(pictures / "red.png")
    (pictures / "sub").mkdir()
    (pictures / "blue.png").rename(pictures / "sub" / "sea.png")
    (pictures / "white.png").unlink()
    Image.radial_gradient("L").save(pictures / "new.png")

    sync(
        pictures,
        delete=True,
        added=1,
        unchanged=2,
        replaced=1,
        moved=1,
        removed=1,
        embeds=["new.png", "red.png"],
    )
    assert_equal(store, clip, pictures)
    (moved,) = [line for line in sync.lines if line["status"] == "moved"]
    assert moved["path"] == str(pictures / "sub" / "sea.png")
    assert moved["moved_from"] == str(pictures / "blue.png")
    assert {"status": "removed", "path": str(pictures / "white.png")} in sync.lines
    assert {"status": "ok", "path": str(pictures / "new.png")} in sync.lines


def test_an_unchanged_file_is_not_read(sync, pictures, monkeypatch):
    sync(pictures, added=5, embeds=[file.name for file in pictures.iterdir()])

    def fail(source):
        raise AssertionError(f"{source} was read")

    monkeypatch.setattr(nodes_module, "image_digest", fail)
    sync(pictures, unchanged=5)


def test_a_touched_file_is_read_once_and_not_embedded(sync, store, pictures):
    sync(pictures, added=5, embeds=[file.name for file in pictures.iterdir()])
    before = stored(store)
    os.utime(pictures / "red.png", (1_700_000_000, 1_700_000_000))

    sync(pictures, unchanged=5)

    assert stored(store) == before
    (node,) = load_image_nodes(pictures / "red.png")
    row = store.get_nodes([node.node_id])[0]
    assert row.metadata["last_modified_date"] == "2023-11-14T22:13:20.000000+00:00"


def test_a_change_of_the_same_size_within_a_moment_is_found(
    clip, store, pictures, embedded, monkeypatch
):
    """A file that was changed a moment ago may change again without its date showing it."""
    monkeypatch.setattr(ingest_module, "_SETTLED_AFTER", 60)
    run = {"embed_model": clip, "vector_store": store}
    file = pictures / "red.png"
    Image.new("RGB", (40, 30), "red").save(file, "BMP")
    sync_images(pictures, **run)
    repaint(file, "yellow")

    for _ in range(2):
        embedded.clear()
        assert sync_images(pictures, **run).replaced == 1
        assert embedded == ["red.png"]
        repaint(file, "orange")


def test_checksum_finds_what_size_and_date_hide(sync, store, clip, pictures):
    Image.new("RGB", (40, 30), "red").save(pictures / "red.png", "BMP")
    sync(pictures, added=5, embeds=[file.name for file in pictures.iterdir()])
    repaint(pictures / "red.png", "yellow")

    sync(pictures, unchanged=5)
    sync(pictures, checksum=True, unchanged=4, replaced=1, embeds=["red.png"])
    assert_equal(store, clip, pictures)


def test_a_new_caption_needs_no_embedding(sync, store, pictures):
    sync(pictures, added=5, embeds=[file.name for file in pictures.iterdir()])
    (pictures / "red.txt").write_text("a red picture")
    sync(pictures, unchanged=4, replaced=1)
    (node,) = load_image_nodes(pictures / "red.png")
    assert store.get_nodes([node.node_id])[0].text == "a red picture"
    sync(pictures, unchanged=5)


def test_metadata_of_ones_own_survive_a_move(sync, clip, store, pictures):
    nodes = load_image_nodes(pictures)
    for node in nodes:
        node.metadata["album"] = "summer"
    nodes[0].set_content("captioned by hand")
    ingest_images(nodes, embed_model=clip, vector_store=store)
    (pictures / "black.png").rename(pictures / "night.png")
    os.utime(pictures / "blue.png", (1_700_000_000, 1_700_000_000))

    sync(pictures, unchanged=4, moved=1)

    rows = store.get_nodes(store.get_ids())
    assert {row.metadata["album"] for row in rows} == {"summer"}
    (moved,) = [row for row in rows if row.metadata["file_name"] == "night.png"]
    assert moved.text == "captioned by hand"
    sync(pictures, unchanged=5)


def test_a_file_that_takes_the_place_of_another(sync, store, clip, pictures):
    sync(pictures, added=5, embeds=[file.name for file in pictures.iterdir()])
    (pictures / "red.png").replace(pictures / "blue.png")
    sync(pictures, unchanged=3, moved=1)
    assert_equal(store, clip, pictures)


def test_two_that_swap_names(sync, store, clip, pictures):
    sync(pictures, added=5, embeds=[file.name for file in pictures.iterdir()])
    (pictures / "red.png").rename(pictures / "x")
    (pictures / "blue.png").rename(pictures / "red.png")
    (pictures / "x").rename(pictures / "blue.png")
    for name in ("red.png", "blue.png"):
        os.utime(pictures / name, (1_700_000_000, 1_700_000_000))
    sync(pictures, unchanged=3, replaced=2, embeds=["red.png", "blue.png"])
    assert_equal(store, clip, pictures)


def test_what_is_gone_is_kept_unless_asked(sync, store, pictures):
    sync(pictures, added=5, embeds=[file.name for file in pictures.iterdir()])
    (pictures / "red.png").unlink()
    report = sync(pictures, unchanged=4, missing=1)
    assert "still found: 1; delete=True" in str(report)
    assert store.count() == 5


@pytest.mark.parametrize("how", ["missing", "empty", "a file", "nothing named"])
def test_nothing_is_removed_for_a_folder_that_is_not_there(sync, clip, store, pictures, how):
    sync(pictures, added=5, embeds=[file.name for file in pictures.iterdir()])
    shutil.rmtree(pictures)
    if how == "empty":
        pictures.mkdir()
    if how == "a file":
        pictures.write_bytes(b"")
    folder = "" if how == "nothing named" else pictures
    with pytest.raises(SyncError) as caught:
        sync_images(folder, embed_model=clip, vector_store=store, delete=True)
    assert str(folder) in str(caught.value)
    assert store.count() == 5


def test_nothing_is_removed_for_what_is_an_image_by_its_name(sync, store, pictures):
    sync(pictures, added=5, embeds=[file.name for file in pictures.iterdir()])
    for file in pictures.iterdir():
        file.unlink()
    (pictures / "placeholder.png").write_text("no picture")
    for options in ({}, {"dry_run": True}):
        with pytest.raises(SyncError, match="none was removed"):
            sync(pictures, delete=True, **options)
    assert store.count() == 5
    Image.linear_gradient("L").save(pictures / "new.png")
    sync(pictures, delete=True, added=1, failed=1, removed=5, embeds=["new.png", "placeholder.png"])


@pytest.mark.parametrize(
    ("report", "said"),
    [
        ("red.png", "a picture's name"),
        ("lost/report.jsonl", "No such file"),
        (".", "Is a directory"),
    ],
)
def test_a_report_that_cannot_be_written_is_said_first(clip, store, pictures, report, said):
    with pytest.raises(SyncError, match=said):
        sync_images(pictures, embed_model=clip, vector_store=store, report_path=pictures / report)
    assert store.count() == 0
    with Image.open(pictures / "red.png") as image:
        assert image.size == (40, 30)


def test_nothing_is_removed_of_a_folder_that_cannot_be_read(
    sync, clip, store, pictures, monkeypatch
):
    sub = pictures / "sub"
    sub.mkdir()
    (pictures / "red.png").rename(sub / "red.png")
    sync(pictures, added=5, embeds=["black.png", "blue.png", "green.png", "red.png", "white.png"])
    scandir, lstat = os.scandir, os.lstat

    def locked(function):
        def refuse(path, *args):
            if os.fspath(path).startswith(str(refuse.folder)):
                raise PermissionError(13, "Permission denied", path)
            return function(path, *args)

        refuse.folder = sub
        return refuse

    for name, function in (("scandir", scandir), ("lstat", lstat)):
        monkeypatch.setattr(os, name, locked(function))
    sync(pictures, delete=True, unchanged=4, failed=1)
    assert store.count() == 5

    os.scandir.folder = pictures
    with pytest.raises(SyncError, match="Permission denied"):
        sync_images(pictures, embed_model=clip, vector_store=store, delete=True)
    assert store.count() == 5


def test_a_drive_that_goes_while_it_is_read(sync, clip, store, pictures):
    sync(pictures, added=5, embeds=[file.name for file in pictures.iterdir()])
    (pictures / "red.png").unlink()
    Image.radial_gradient("L").save(pictures / "new.png")

    def caption(path):
        shutil.rmtree(pictures)

    with pytest.raises(SyncError, match="none was removed"):
        sync_images(pictures, embed_model=clip, vector_store=store, delete=True, captions=caption)
    assert store.count() == 5


def test_a_dry_run_says_what_would_be_done_and_does_nothing(sync, store, pictures):
    sync(pictures, added=5, embeds=[file.name for file in pictures.iterdir()])
    before = stored(store)
    Image.linear_gradient("L").save(pictures / "red.png")
    (pictures / "blue.png").rename(pictures / "sea.png")
    (pictures / "white.png").unlink()
    Image.radial_gradient("L").save(pictures / "new.png")
    expected = {"added": 1, "unchanged": 2, "replaced": 1, "moved": 1, "removed": 1}

    report = sync(pictures, delete=True, dry_run=True, **expected)

    assert str(report).startswith("would be: 1 added")
    assert stored(store) == before
    sync(pictures, delete=True, embeds=["new.png", "red.png"], **expected)


def test_other_rows_are_left_alone(sync, clip, store, pictures, tmp_path):
    """Those of other folders, one of them of a like name, texts, and files that are not listed."""
    other = tmp_path / "pictures0"
    shutil.copytree(pictures, other)
    ingest_images(other, embed_model=clip, vector_store=store)
    ingest_images([pictures / "red.png"], embed_model=clip, vector_store=store)
    (pictures / "red.png").rename(pictures / ".red.png")
    hidden = load_image_nodes([pictures / ".red.png"])
    ingest_images(hidden, embed_model=clip, vector_store=store)
    notes = TextNode(text="notes", metadata={"file_path": str(pictures / "gone.txt")})
    store.add(clip([notes]))
    shutil.rmtree(other)

    sync(
        pictures,
        delete=True,
        added=4,
        removed=1,
        embeds=["black.png", "blue.png", "green.png", "white.png"],
    )
    assert store.count("text") == 1
    assert store.count("image") == 5 + 4 + 1


def test_without_recursion_the_folders_rows_stay(sync, store, pictures):
    (pictures / "sub").mkdir()
    (pictures / "red.png").rename(pictures / "sub" / "red.png")
    sync(pictures, added=5, embeds=["black.png", "blue.png", "green.png", "red.png", "white.png"])
    sync(pictures, recursive=False, delete=True, unchanged=4)
    assert store.count() == 5


def test_a_link_is_its_file(sync, store, pictures, tmp_path):
    (pictures / "again.png").symlink_to(pictures / "red.png")
    sync(
        pictures,
        added=5,
        unchanged=1,
        embeds=["black.png", "blue.png", "green.png", "red.png", "white.png"],
    )
    folder = tmp_path / "link"
    folder.symlink_to(pictures)
    sync(folder, unchanged=6)
    assert store.count() == 5


def test_bad_files_are_reported_and_tried_again(sync, store, pictures):
    (pictures / "empty.jpg").write_bytes(b"")
    (pictures / "lost.png").symlink_to(pictures / "nowhere.png")
    good = ["black.png", "blue.png", "green.png", "red.png", "white.png"]
    sync(pictures, added=5, failed=2, embeds=[*good, "empty.jpg"])
    reasons = {os.path.basename(line["path"]): line.get("reason") for line in sync.lines}
    assert "0 bytes" in reasons["empty.jpg"]
    assert "no such file" in reasons["lost.png"]
    sync(pictures, unchanged=5, failed=2, embeds=["empty.jpg"])


def test_a_name_that_is_no_unicode_is_a_line_of_json(sync, pictures):
    os.rename(pictures / "red.png", os.fsencode(pictures) + b"/\xff\n.png")
    sync(pictures, added=4, failed=1, embeds=["black.png", "blue.png", "green.png", "white.png"])
    (failed,) = [line for line in sync.lines if line["status"] == "failed"]
    assert os.fsencode(failed["path"]) == os.fsencode(pictures) + b"/\xff\n.png"


def test_a_move_that_was_cut_short_is_finished(sync, clip, store, pictures, monkeypatch):
    sync(pictures, added=5, embeds=[file.name for file in pictures.iterdir()])
    (pictures / "red.png").rename(pictures / "scarlet.png")

    def killed(self, *args, **kwargs):
        raise SystemExit("killed")

    with monkeypatch.context() as patch:
        patch.setattr(type(store), "delete_nodes", killed)
        with pytest.raises(SystemExit):
            sync_images(pictures, embed_model=clip, vector_store=store)
    assert store.count() == 6

    sync(pictures, unchanged=5, missing=1)
    sync(pictures, unchanged=5, removed=1, delete=True)
    assert_equal(store, clip, pictures)


def test_a_second_sync_says_so_and_stops(clip, store, pictures):
    def caption(path):
        with pytest.raises(SyncRunningError, match="this process") as caught:
            sync_images(pictures, embed_model=clip, vector_store=store)
        refused.append(caught.value.pid)

    refused = []
    sync_images(pictures, embed_model=clip, vector_store=store, captions=caption)
    assert refused == [os.getpid()] * 5
    assert store.count() == 5
    assert sync_images(pictures, embed_model=clip, vector_store=store).unchanged == 5


def test_twice_at_once(clip, store, pictures):
    """One of them runs, the other says so; whichever is first."""
    start = threading.Barrier(4)
    outcomes = []

    def run():
        start.wait()
        try:
            outcomes.append(sync_images(pictures, embed_model=clip, vector_store=store).added)
        except SyncRunningError:
            outcomes.append(None)

    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(added or 0 for added in outcomes) == 5
    assert store.count() == 5


def test_a_file_that_changes_while_it_is_read(sync, clip, store, pictures, monkeypatch):
    """Its hash is of one reading, its vector of another: neither is stored."""
    prepare = type(clip)._prepare

    def changed(self, numbered, **options):
        path = numbered[1].image_path
        if path.endswith("red.png"):
            Image.linear_gradient("L").save(path)
        return prepare(self, numbered, **options)

    with monkeypatch.context() as patch:
        patch.setattr(type(clip), "_prepare", changed)
        report = sync_images(pictures, embed_model=clip, vector_store=store)
    assert report.added == 4
    assert report.failed[0].reason.startswith("changed while it was being read")
    sync(pictures, added=1, unchanged=4, embeds=["red.png"])
    assert_equal(store, clip, pictures)


def test_a_file_that_vanishes_while_it_is_read(sync, clip, store, pictures, monkeypatch):
    prepare = type(clip)._prepare

    def vanished(self, numbered, **options):
        if numbered[1].image_path.endswith("red.png"):
            os.unlink(numbered[1].image_path)
        return prepare(self, numbered, **options)

    with monkeypatch.context() as patch:
        patch.setattr(type(clip), "_prepare", vanished)
        report = sync_images(pictures, embed_model=clip, vector_store=store)
    assert (report.added, len(report.failed)) == (4, 1)
    assert "no such file" in report.failed[0].reason
    sync(pictures, unchanged=4)


def test_another_program_s_collection_is_refused(clip, pictures, tmp_path):
    from pymilvus import MilvusClient

    uri = str(tmp_path / "theirs.db")
    client = MilvusClient(uri)
    client.create_collection(
        "clip_ext",
        dimension=clip.dim,
        id_type="string",
        max_length=100,
        vector_field_name="embedding",
        metric_type="COSINE",
    )
    client.close()
    with (
        create_vector_store(clip, uri=uri) as store,
        pytest.raises(StoreError, match="not made by this package"),
    ):
        sync_images(pictures, embed_model=clip, vector_store=store)


async def test_async_twin(clip, store, pictures):
    report = await async_images(pictures, embed_model=clip, vector_store=store)
    assert report.added == 5


@pytest.fixture
def many(tmp_path):
    """A folder of 200 pictures, and a captioner that is slow and says when it was first asked."""
    folder = tmp_path / "many"
    folder.mkdir()
    for number in range(200):
        Image.new("RGB", (8, 8), (number, 0, 0)).save(folder / f"{number:03}.png")
    asked = threading.Event()

    def caption(path):
        asked.set()
        time.sleep(0.02)

    return folder, asked, caption


@pytest.mark.parametrize("run", [async_images, aingest_images])
async def test_a_cancelled_twin_has_stopped_when_the_cancel_returns(clip, store, many, run):
    folder, asked, caption = many
    options = {"embed_model": clip, "vector_store": store, "batch_size": 4}
    threads = set(threading.enumerate())
    task = asyncio.create_task(run(folder, captions=caption, **options))
    while not asked.is_set():
        await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task

    left = {one.name for one in set(threading.enumerate()) - threads if one.is_alive()}
    assert not [name for name in left if name.startswith(("clip-reader", "clip-writer"))]
    count = store.count()
    assert count < 200
    await store.aclear()
    # No other sync is still at it, and nobody writes behind the clearing.
    report = await async_images(folder, captions=None, **options)
    assert report.added == 200
    await asyncio.sleep(0.3)
    assert store.count() == 200


async def test_a_twin_that_ran_out_of_time_can_be_run_again_at_once(clip, store, many):
    folder, _, caption = many
    options = {"embed_model": clip, "vector_store": store, "batch_size": 4}
    for _ in range(3):
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(async_images(folder, captions=caption, **options), 0.3)
    report = await async_images(folder, captions=None, **options)
    assert report.total == 200


INTERRUPTED = """
import signal, sys, threading, os, time
# A shell's jobs in the background ignore it.
signal.signal(signal.SIGINT, signal.default_int_handler)
from llama_index_clip_ext.cli import main

def interrupt():
    while not os.path.exists(sys.argv[0] + ".go"):
        time.sleep(0.01)
    os.kill(os.getpid(), signal.SIGINT)

sys.argv = [{script!r}, {command!r}, {folder!r}, "--model", {model!r}, "--uri", {uri!r},
            "--batch-size", "4"]
from llama_index_clip_ext import ingest
store = ingest.Ingest._store

def slow(self, embedded):
    result = store(self, embedded)
    open(sys.argv[0] + ".go", "w").close()
    time.sleep(0.3)
    return result

ingest.Ingest._store = slow
threading.Thread(target=interrupt, daemon=True).start()
main()
"""


@pytest.mark.parametrize("command", ["index", "sync"])
def test_ctrl_c_stores_what_is_embedded_and_reports(clip, clip_dir, tmp_path, command):
    folder = tmp_path / "many"
    folder.mkdir()
    for number in range(120):
        Image.new("RGB", (8, 8), (number, 0, 0)).save(folder / f"{number:03}.png")
    uri = str(tmp_path / "x.db")
    script = INTERRUPTED.format(
        script=str(tmp_path / "x"),
        command=command,
        folder=str(folder),
        model=str(clip_dir),
        uri=uri,
    )
    process = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=120
    )
    assert process.returncode == 130, process.stderr
    assert "interrupted; the same call goes on" in process.stderr
    assert "Traceback" not in process.stderr
    added = int(process.stdout.split(" added")[0])
    assert 4 <= added < 120
    with create_vector_store(clip, uri=uri) as store:
        assert store.count() == added
        report = sync_images(folder, embed_model=clip, vector_store=store)
        assert (report.added, report.unchanged) == (120 - added, added)


def test_ctrl_c_twice_stops_at_once(clip, store, pictures):
    pressed = []

    def caption(path):
        while len(pressed) < 2:
            pressed.append(path)
            # To the process, as a terminal sends it: the main thread waits, and wakes up.
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.2)

    with pytest.raises(KeyboardInterrupt) as caught:
        sync_images(pictures, embed_model=clip, vector_store=store, captions=caption)
    assert not isinstance(caught.value, IngestInterrupted)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_program_s_own_handler_is_left_alone(clip, store, pictures):
    caught = []
    before = signal.signal(signal.SIGINT, lambda *args: caught.append(args))
    try:
        report = sync_images(
            pictures,
            embed_model=clip,
            vector_store=store,
            captions=lambda path: signal.raise_signal(signal.SIGINT),
        )
    finally:
        signal.signal(signal.SIGINT, before)
    assert report.added == 5
    assert caught


def test_command_line(clip, clip_dir, pictures, tmp_path, monkeypatch, capsys):
    uri = str(tmp_path / "x.db")

    def run(*arguments, folder=pictures):
        monkeypatch.setattr(
            sys, "argv", ["clip-ext", "sync", str(folder), "--uri", uri, *arguments]
        )
        with pytest.raises(SystemExit) as caught:
            main()
        return caught.value.code, capsys.readouterr()

    code, out = run("--model", str(clip_dir), "--dry-run")
    assert code == 1
    assert "does not exist" in out.err
    assert not (tmp_path / "x.db").exists()
    # Nor by what is refused.
    for folder, said in ((tmp_path / "lost", "no folder that"), (pictures / "red.png", "index")):
        code, out = run("--model", str(clip_dir), folder=folder)
        assert code == 1
        assert said in out.err
    assert not (tmp_path / "x.db").exists()
    code, out = run("--model", str(clip_dir))
    assert code == 0
    assert out.out.startswith("5 added, 0 unchanged, 0 replaced, 0 moved, 0 removed, 0 failed")
    (pictures / "red.png").unlink()
    code, out = run("--json", "--delete", "--dry-run")
    done = json.loads(out.out.splitlines()[-1])
    assert (done["status"], done["unchanged"], done["removed"]) == ("done", 4, 1)
    assert done["dry_run"] is True
    code, out = run("--delete", "--report", str(tmp_path / "report.jsonl"))
    assert "1 removed" in out.out
    lines = [json.loads(line) for line in (tmp_path / "report.jsonl").read_text().splitlines()]
    assert len(lines) == 5
    (tmp_path / "empty").mkdir()
    code, out = run(folder=tmp_path / "empty")
    assert code == 1
    assert "no images in" in out.err
    shutil.rmtree(pictures)
    code, out = run("--delete")
    assert code == 1
    assert out.err.strip().splitlines()[-1].startswith(f"clip-ext: {pictures} is no folder")


def test_a_copy_that_is_gone_is_no_rename(sync, store, pictures):
    """It has the content and date of a file that is there, and is kept all the same."""
    shutil.copy2(pictures / "red.png", pictures / "red2.png")
    names = [file.name for file in pictures.iterdir()]
    sync(pictures, added=6, embeds=names)
    (pictures / "red2.png").unlink()
    sync(pictures, unchanged=5, missing=1)
    assert store.count() == 6


def test_documents_keep_their_metadata(sync, clip, store, pictures):
    documents = [
        ImageDocument(image_path=str(file), metadata={"file_path": str(file), "album": "summer"})
        for file in sorted(pictures.iterdir())
    ]
    store.add(clip(documents))
    (pictures / "red.png").rename(pictures / "rose.png")
    sync(pictures, dry_run=True, unchanged=4, moved=1)
    sync(pictures, delete=True, unchanged=4, moved=1)
    rows = store.get_nodes(store.get_ids())
    assert {row.metadata["album"] for row in rows} == {"summer"}
    assert {row.metadata["file_path"] for row in rows} == {str(file) for file in pictures.iterdir()}
    sync(pictures, delete=True, unchanged=5)


def test_a_link_to_a_file_elsewhere_is_embedded_once(sync, pictures, tmp_path):
    (pictures / "red.png").rename(tmp_path / "red.png")
    (pictures / "red.png").symlink_to(tmp_path / "red.png")
    sync(pictures, added=5, embeds=["black.png", "blue.png", "green.png", "red.png", "white.png"])
    sync(pictures, dry_run=True, unchanged=5)
    sync(pictures, unchanged=5)


def test_a_link_in_the_place_of_a_file_is_not_that_file(sync, store, pictures):
    sync(pictures, added=5, embeds=[file.name for file in pictures.iterdir()])
    (pictures / "red.png").unlink()
    (pictures / "red.png").symlink_to("blue.png")
    sync(pictures, unchanged=5, missing=1)
    sync(pictures, delete=True, unchanged=5, removed=1)
    assert "red.png" not in {name for name, _ in stored(store).values()}


def test_a_file_that_was_moved_away_and_linked_keeps_its_vector(sync, store, pictures, tmp_path):
    sync(pictures, added=5, embeds=[file.name for file in pictures.iterdir()])
    (pictures / "red.png").rename(tmp_path / "red.png")
    (pictures / "red.png").symlink_to(tmp_path / "red.png")
    sync(pictures, delete=True, unchanged=4, moved=1)
    sync(pictures, delete=True, unchanged=5)
    assert store.count() == 5


def test_a_link_that_leads_nowhere_now_is_not_a_deleted_file(sync, store, pictures, tmp_path):
    sync(pictures, added=5, embeds=[file.name for file in pictures.iterdir()])
    (pictures / "red.png").unlink()
    (pictures / "red.png").symlink_to(tmp_path / "drive" / "red.png")
    sync(pictures, delete=True, unchanged=4, failed=1)
    assert store.count() == 5


def test_a_folder_in_the_place_of_a_file_is_not_that_file(sync, pictures):
    sync(pictures, added=5, embeds=[file.name for file in pictures.iterdir()])
    (pictures / "red.png").unlink()
    (pictures / "red.png").mkdir()
    sync(pictures, delete=True, unchanged=4, removed=1)


def test_a_row_of_a_part_of_a_file_is_left_alone(sync, clip, store, pictures, tmp_path):
    """It names the file, and is not the file's."""
    Image.new("RGB", (9, 9), "red").save(tmp_path / "crop.png")
    facts = {"file_path": str(pictures / "red.png"), "crop": "1,2,3,4"}
    crop = ImageNode(id_="crop", image_path=str(tmp_path / "crop.png"), metadata=facts)
    ingest_images([crop], embed_model=clip, vector_store=store)
    sync(pictures, added=5, embeds=[file.name for file in pictures.iterdir()])
    (pictures / "red.png").unlink()
    sync(pictures, delete=True, unchanged=4, removed=1)
    (kept,) = store.get_nodes(["crop"])
    assert (kept.image_path, kept.metadata["crop"]) == (crop.image_path, "1,2,3,4")


def test_files_of_subfolders_that_are_not_looked_into_are_not_gone(sync, store, pictures):
    sync(pictures.parent, added=5, embeds=[file.name for file in pictures.iterdir()])
    sync(pictures.parent, recursive=False, delete=True)
    assert store.count() == 5


def test_a_row_is_removed_though_the_file_that_would_replace_it_is_bad(sync, store, tmp_path):
    """A name in another spelling of its accents would take over the row."""
    folder = tmp_path / "accents"
    folder.mkdir()
    Image.new("RGB", (9, 9), "red").save(folder / "\xe9.png")
    Image.new("RGB", (9, 9), "blue").save(folder / "b.png")
    if (folder / "e\u0301.png").exists():
        pytest.skip("this file system takes both spellings for one")
    sync(folder, added=2, embeds=["\xe9.png", "b.png"])
    (folder / "\xe9.png").unlink()
    (folder / "e\u0301.png").write_bytes(b"broken")
    sync(folder, delete=True, unchanged=1, failed=1, removed=1, embeds=["e\u0301.png"])
    assert store.count() == 1


@pytest.mark.parametrize(
    ("address", "other", "is_same"),
    [
        ("http://h:19530", "http://H:19530/", True),
        ("http://h:19530", "http://h", True),
        ("http://h:19530", "http://h:19531", False),
        ("http://h:19530", "http://g:19530", False),
    ],
)
def test_a_server_is_known_by_other_spellings_of_its_address(address, other, is_same):
    stores = [
        SimpleNamespace(uri=uri, db_name="", collection_name="spelled") for uri in (address, other)
    ]
    with sync_module._only_one(stores[0]):
        refused = pytest.raises(SyncRunningError) if is_same else nullcontext()
        with refused, sync_module._only_one(stores[1]):
            pass


def test_a_second_name_of_a_bad_file_fails_with_it(sync, pictures):
    (pictures / "a.png").write_bytes(b"")
    (pictures / "b.png").symlink_to(pictures / "a.png")
    sync(
        pictures,
        added=5,
        failed=2,
        embeds=["a.png", "black.png", "blue.png", "green.png", "red.png", "white.png"],
    )


def test_a_folder_whose_name_is_no_unicode_says_so(clip, store, tmp_path):
    folder = os.fsdecode(os.fsencode(tmp_path) + b"/\xff")
    os.mkdir(folder)
    with pytest.raises(SyncError, match="no Unicode text; rename it"):
        sync_images(folder, embed_model=clip, vector_store=store)


def test_a_folder_that_is_not_there_costs_no_report(clip, store, tmp_path):
    report = tmp_path / "report.jsonl"
    report.write_text("the last one")
    with pytest.raises(SyncError):
        sync_images(tmp_path / "x", embed_model=clip, vector_store=store, report_path=report)
    assert report.read_text() == "the last one"


def test_ctrl_c_while_rows_are_removed_is_told(sync, clip, store, pictures, monkeypatch):
    sync(pictures, added=5, embeds=[file.name for file in pictures.iterdir()])
    (pictures / "red.png").unlink()
    delete = type(store).delete_nodes

    def interrupted(self, *args, **kwargs):
        signal.raise_signal(signal.SIGINT)
        delete(self, *args, **kwargs)

    monkeypatch.setattr(type(store), "delete_nodes", interrupted)
    with pytest.raises(IngestInterrupted) as caught:
        sync_images(pictures, embed_model=clip, vector_store=store, delete=True)
    assert caught.value.report.removed == 1


def host(folder, *colours):
    """Mount a host's folder in the place of the other's."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for colour in colours:
        Image.new("RGB", (40, 30), colour).save(folder / f"{colour}.png")


def by_namespace(store):
    nodes = store.get_nodes(store.get_ids(modality="image"))
    return sorted(
        (node.metadata.get("clip_namespace", ""), node.metadata["file_name"]) for node in nodes
    )


def test_two_hosts_with_one_path_keep_their_own_rows(sync, store, tmp_path):
    folder = tmp_path / "photos"
    host(folder, "red", "green")
    sync(folder, namespace="one", added=2, embeds=["green.png", "red.png"])
    host(folder, "red", "blue")
    sync(folder, namespace="two", added=2, embeds=["blue.png", "red.png"], delete=True)
    one = [("one", "green.png"), ("one", "red.png")]
    assert by_namespace(store) == [*one, ("two", "blue.png"), ("two", "red.png")]

    # Each sees its own changes only: what is gone, moved and new.
    (folder / "red.png").unlink()
    (folder / "blue.png").rename(folder / "sky.png")
    sync(folder, namespace="two", removed=1, moved=1, delete=True)
    assert by_namespace(store) == [*one, ("two", "sky.png")]
    host(folder, "red", "green")
    sync(folder, namespace="one", unchanged=2, delete=True)
    host(folder, "red", "green")
    sync(folder, added=2, embeds=["green.png", "red.png"], delete=True)
    assert by_namespace(store) == [("", "green.png"), ("", "red.png"), *one, ("two", "sky.png")]
    host(folder, "red")
    sync(folder, unchanged=1, removed=1, delete=True)
    assert by_namespace(store) == [("", "red.png"), *one, ("two", "sky.png")]


def test_ids_without_a_namespace_stay_what_they_were(pictures):
    plain = [node.node_id for node in load_image_nodes(pictures)]
    assert [node.node_id for node in load_image_nodes(pictures, namespace="")] == plain
    named = [node.node_id for node in load_image_nodes(pictures, namespace="one")]
    other = [node.node_id for node in load_image_nodes(pictures, namespace="two")]
    assert len({*plain, *named, *other}) == 3 * len(plain)
    by_content = {
        node.node_id
        for namespace in ("", "one", "two")
        for node in load_image_nodes(pictures, namespace=namespace, id_by="content")
    }
    assert len(by_content) == 3 * len(plain)
    # As format 1 made them: a UUID of the path, under the package's own namespace.
    ours = uuid.UUID("7a1f6f0e-3a55-5c5e-9d0b-6c2f1d8a4b11")
    assert plain[0] == str(uuid.uuid5(ours, str(sorted(pictures.iterdir())[0])))


def test_ingest_sync_and_the_command_line_have_the_same_namespace(
    sync, clip, clip_dir, store, pictures, monkeypatch, capsys
):
    ingest_images(pictures, embed_model=clip, vector_store=store, namespace="one")
    sync(pictures, namespace="one", unchanged=5)
    names = [("one", f"{colour}.png") for colour in ("black", "blue", "green", "red", "white")]
    assert by_namespace(store) == names
    found = store.get_ids(
        MetadataFilters(filters=[MetadataFilter(key="clip_namespace", value="one")])
    )
    assert len(found) == 5
    store.close()
    for command in ("index", "sync"):
        options = ("--uri", store.uri, "--model", str(clip_dir), "--namespace", "one")
        monkeypatch.setattr(sys, "argv", ["clip-ext", command, str(pictures), *options])
        with pytest.raises(SystemExit) as caught:
            main()
        assert caught.value.code == 0
        assert capsys.readouterr().out.startswith("0 added, 5 unchanged")


@pytest.mark.parametrize("namespace", ["\ud800", 7, None])
def test_what_is_no_namespace_is_refused(clip, store, pictures, namespace):
    for run in (ingest_images, sync_images):
        with pytest.raises((TypeError, ValueError), match="namespace"):
            run(pictures, embed_model=clip, vector_store=store, namespace=namespace)
    assert store.count() == 0


@pytest.mark.parametrize("delete", [True, False])
def test_a_moved_image_of_unknown_provenance_is_repaired_in_its_new_place(
    sync, clip, store, pictures, monkeypatch, delete
):
    own = np.eye(16)[0].tolist()
    (node,) = load_image_nodes(pictures / "red.png")
    store.add([node.model_copy(update={"embedding": own})])
    (pictures / "red.png").rename(pictures / "moved.png")
    rest = {"checksum": True, "delete": delete, "added": 4, "moved": 1}
    sync(pictures, dry_run=True, **rest)
    names = ["black.png", "blue.png", "green.png", "moved.png", "white.png"]
    sync(pictures, embeds=names, **rest)
    assert_equal(store, clip, pictures)
    sync(pictures, unchanged=5, checksum=True)


def test_metadata_that_are_called_namespace_are_the_users_own(sync, store, clip, pictures):
    nodes = load_image_nodes(pictures)
    for node in nodes:
        node.metadata["namespace"] = "holiday"
    ingest_images(nodes, embed_model=clip, vector_store=store)
    (pictures / "red.png").unlink()
    sync(pictures, unchanged=4, removed=1, delete=True)
    (pictures / "blue.png").rename(pictures / "sky.png")
    sync(pictures, unchanged=3, moved=1, delete=True)
