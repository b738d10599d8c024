import io
import json
import logging
import os
import subprocess
import sys
import time
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from unittest.mock import patch

import pytest
from PIL import Image

from llama_index_clip_ext import CLIPEmbedding, __version__, create_vector_store, list_models
from llama_index_clip_ext.cli import main
from llama_index_clip_ext.demo.run import draw_pictures


def run(*arguments, check=True, **options):
    command = [sys.executable, "-m", "llama_index_clip_ext", *map(str, arguments)]
    result = subprocess.run(command, capture_output=True, text=True, **options)
    if check:
        assert result.returncode == 0, result.stderr
    return result


def call(*arguments, check=True, cwd=None):
    """Do what `run` does in this process: another one takes seconds to start."""
    if cwd:
        os.chdir(cwd)  # Undone with the test's own folder.
    out, err = io.StringIO(), io.StringIO()
    loggers = [logging.getLogger(name) for name in ("pymilvus", "milvus_lite")]
    before = [(logger.level, list(logger.filters)) for logger in loggers]
    code = 0
    try:
        with redirect_stdout(out), redirect_stderr(err), patch("sys.argv", ["clip-ext"]):
            sys.argv += map(str, arguments)
            main()
    except SystemExit as end:
        code = end.code or 0
    finally:
        for logger, (level, filters) in zip(loggers, before, strict=True):
            logger.level, logger.filters = level, filters
    if check:
        assert code == 0, err.getvalue()
    return subprocess.CompletedProcess(arguments, code, out.getvalue(), err.getvalue())


@pytest.fixture
def indexed(clip_dir, pictures, tmp_path):
    uri = tmp_path / "photos.db"
    call("index", pictures, "--model", clip_dir, "--uri", uri)
    return uri


@pytest.mark.parametrize(
    "command",
    [
        [],
        ["index"],
        ["search"],
        ["info"],
        ["models"],
        ["download"],
        ["demo"],
        ["eval"],
        ["quantize"],
    ],
)
def test_help_has_an_example(command):
    assert "clip-ext " + " ".join(command) in run(*command, "--help").stdout


def test_help_loads_nothing_heavy():
    code = (
        "import sys; sys.argv = ['clip-ext', '--help']\n"
        "from llama_index_clip_ext.cli import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'transformers', 'llama_index', 'pymilvus', 'numpy'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.rstrip().endswith("[]")


def test_version():
    assert run("--version").stdout == f"{__version__}\n"


def test_models(tmp_path):
    shown = run("models").stdout
    for spec in list_models():
        assert spec.name in shown
    lines = [json.loads(line) for line in run("models", "--json").stdout.splitlines()]
    assert [line["name"] for line in lines[:6]] == [spec.name for spec in list_models()]
    assert lines[0]["dim"] == 512


def test_index_search_info(indexed, pictures, clip_dir):
    again = run("index", pictures, "--model", clip_dir, "--uri", indexed)
    assert "0 added, 5 unchanged, 0 replaced, 0 failed" in again.stdout

    lines = run(
        "search", "--image", pictures / "red.png", "--uri", indexed, "-k", 2, "--json"
    ).stdout
    hits = [json.loads(line) for line in lines.splitlines()]
    assert [hit["rank"] for hit in hits] == [1, 2]
    assert hits[0]["path"].endswith("red.png")
    assert hits[0]["score"] == pytest.approx(1, abs=1e-3)

    table = run("search", "a red thing", "--uri", indexed).stdout
    assert table.count(".png") == 5

    facts = json.loads(run("info", "--uri", indexed, "--json").stdout)
    assert (facts["rows"], facts["dim"], facts["model"]) == (5, 16, str(clip_dir))
    assert facts["package"] == __version__
    assert "IP" in run("info", "--uri", indexed).stdout


@pytest.mark.parametrize("suffix", [".jsonl", ".csv"])
def test_eval(indexed, pictures, tmp_path, suffix):
    names = ("red", "green", "blue")
    rows = [{"text": f"a {name} thing", "image": f"pictures/{name}.png"} for name in names]
    lines = {
        ".jsonl": [json.dumps(row) for row in rows],
        ".csv": ["image,text", *(f"{row['image']},{row['text']}" for row in rows), ""],
    }
    file = tmp_path / f"pairs{suffix}"
    file.write_text("\n".join(lines[suffix]), encoding="utf-8-sig")

    table = call("eval", file, "--uri", indexed, "-k", 5, "-k", 1).stdout
    facts = json.loads(call("eval", file, "--uri", indexed, "--json").stdout)

    assert [line.split()[0] for line in table.splitlines()[3:6]] == [
        "recall@1",
        "recall@5",
        "mrr@5",
    ]
    assert "recall@5  1.000 [1.000, 1.000]" in table
    assert facts["text_to_image"]["recall@5"]["value"] == 1
    assert (facts["n_texts"], facts["n_images"], facts["n_collection"]) == (3, 3, 5)

    Image.new("RGB", (9, 9), "pink").save(pictures / "red.png")
    missing = call("eval", file, "--uri", indexed, check=False)
    assert (missing.returncode, "1 of 3 pairs" in missing.stderr) == (1, True)
    skipped = call("eval", file, "--uri", indexed, "--skip-missing").stdout
    assert "red.png: not among the images of collection 'clip_ext'" in skipped


def test_index_json_reports_failures(clip_dir, pictures, tmp_path):
    (pictures / "empty [red].jpg").write_bytes(b"")
    out = call("index", pictures, "--model", clip_dir, "--uri", tmp_path / "a.db", "--json").stdout
    failed, done = (json.loads(line) for line in out.splitlines())
    assert failed["status"] == "failed"
    assert failed["source"].endswith("empty [red].jpg")
    assert (done["status"], done["added"], done["failed"]) == ("done", 5, 1)


def test_index_of_nothing_but_bad_files_fails(clip_dir, tmp_path):
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "a.jpg").write_text("<html>")
    result = call("index", tmp_path / "bad", "--model", clip_dir, "--uri", "a.db", check=False)
    assert result.returncode == 1
    assert "not a picture" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["search", "x", "--uri", "none.db"], "none.db does not exist"),
        (["info", "--uri", "photos"], "ends in .db"),
        (["index", "nowhere"], "no folder, file or pattern matches 'nowhere'"),
        (["index", "."], "no images in . (looked for .bmp, .gif, .jfif, .jpeg,"),
        (["index", ""], "the folder is an empty string"),
        (["index", ".", "--collection", "a-b", "--model", "demo-clip"], "no images in"),
        (["eval", "none.jsonl"], "none.jsonl"),
        (["download", "clip-vit-b32"], "Did you mean 'clip-ViT-B-32'?"),
        (["download", "clip-ViT-B-32"], "is not in the cache"),
    ],
)
def test_errors_are_one_line_and_exit_1(arguments, message, tmp_path):
    result = call(*arguments, check=False, cwd=tmp_path)
    assert result.returncode == 1
    assert result.stdout == ""
    assert result.stderr.startswith("clip-ext: ")
    assert message in result.stderr
    assert result.stderr.count("\n") == 1


def test_search_by_both_without_and_by_words(tmp_path):
    folder = tmp_path / "drawn"
    draw_pictures(folder)
    uri = tmp_path / "drawn.db"
    call("index", folder, "--model", "demo-clip", "--uri", uri, "--full-text", "english")
    blue_star = next(folder.glob("*-blue-star.png"))

    def best(*arguments):
        lines = call("search", *arguments, "--uri", uri, "-k", 1, "--json").stdout
        return Path(json.loads(lines)["path"]).stem.partition("-")[2]

    assert best("red", "--image", blue_star, "--minus", "blue") == "red-star"
    assert best("--image", blue_star, "--minus", "blue") != "blue-star"
    assert best("a red circle", "--mode", "hybrid") == "red-circle"
    assert best("Heart, purple!", "--mode", "text_search") == "purple-heart"
    bad = call("search", "x", "--mode", "guess", "--uri", uri, check=False)
    assert (bad.returncode, "'text_search'" in bad.stderr) == (2, True)

    table = call("search", "a red circle", "--mode", "hybrid", "--alpha", 0.5, "--uri", uri).stdout
    assert table.split()[:4] == ["score", "cosine", "image", "caption"]
    assert "1.000" in table.splitlines()[2]
    line = call("search", "a red circle", "--mode", "hybrid", "--uri", uri, "--json").stdout
    assert json.loads(line.splitlines()[0])["cosine"] > 0.2
    plain = call("search", "a red circle", "--uri", uri).stdout
    assert plain.split()[:3] == ["score", "image", "caption"]
    nothing = call("search", "zebra", "--mode", "text_search", "--uri", uri)
    assert nothing.stdout == "Nothing was found.\n"


def test_index_takes_the_model_that_the_collection_has(indexed, pictures, clip_dir):
    (pictures / "new.png").write_bytes((pictures / "red.png").read_bytes())
    assert "1 added, 5 unchanged" in call("index", pictures, "--uri", indexed).stdout
    with create_vector_store(CLIPEmbedding(clip_dir), uri=indexed):
        held = run("index", pictures, "--uri", indexed, check=False)
    assert (held.returncode, str(os.getpid()) in held.stderr) == (1, True)
    # Of a new collection it is the default, which is not to be had here.
    new = call("index", pictures, "--uri", indexed, "--overwrite", check=False)
    assert "model 'clip-ViT-B-32'" in new.stderr


def test_bad_query_image(indexed, tmp_path):
    result = call("search", "--image", "gone.jpg", "--uri", indexed, check=False)
    assert (result.returncode, "gone.jpg" in result.stderr) == (1, True)


def test_usage_errors_exit_2(indexed):
    assert call("search", "--uri", indexed, check=False).returncode == 2
    assert call("index", check=False).returncode == 2


def test_names_are_printed_as_they_are(clip_dir, tmp_path):
    folder = tmp_path / "odd"
    folder.mkdir()
    Image.new("RGB", (9, 9)).save(folder / "[bold]图片.png")
    call("index", folder, "--model", clip_dir, "--uri", "a.db", cwd=tmp_path)
    shown = call("search", "x", "--uri", "a.db", cwd=tmp_path).stdout
    assert "[bold]图片.png" in shown.replace("\n", "").replace(" ", "")


def test_help_is_quick():
    """Not a benchmark: a slow import shows as seconds, and the bound is an issue's promise."""
    run("--help")  # Byte code is written once.
    durations = []
    for _ in range(5):
        started = time.perf_counter()
        run("--help")
        durations.append(time.perf_counter() - started)
    assert min(durations) < 0.5


def test_a_search_reads_an_embedded_file_once(indexed, monkeypatch):
    from milvus_lite.adapter.grpc import server

    opened = []
    start = server.start_server_in_thread
    monkeypatch.setattr(
        server, "start_server_in_thread", lambda **kw: opened.append(kw["data_dir"]) or start(**kw)
    )
    call("search", "red", "--uri", indexed)
    assert opened == [str(indexed)]


def test_a_name_forges_no_line_and_steers_no_terminal(clip_dir, tmp_path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    Image.new("RGB", (9, 9)).save(folder / "good\x1b[2J\n9 added.png")
    (folder / "bad\x1b[2J\n9 added.png").write_bytes(b"")
    (folder / "good\x1b[2J\n9 added.txt").write_text("two\nlines\x1b[31m")
    uri = ("--uri", tmp_path / "a.db")
    report = call("index", folder, "--model", clip_dir, *uri).stdout
    assert [line.split(":")[0].strip() for line in report.splitlines()][1:] == ["failed"]
    found = call("search", "black", *uri).stdout
    missing = call("search", "--image", "no\x1b[2J.png", *uri, check=False).stderr
    for printed in (report, found, missing):
        assert "\x1b" not in printed
        assert r"\x1b[2J" in printed
    assert r"good\x1b[2J\n9 added.png" in found
