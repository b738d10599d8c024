"""The README's code is run, on the demo encoders and the pictures of the demo."""

from __future__ import annotations

import ast
import asyncio
import inspect
import re
import shlex
import shutil
from importlib.util import find_spec
from pathlib import Path

import pytest

from llama_index_clip_ext import list_models, resolve_model

README = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")
BLOCKS = dict(re.findall(r"<!-- test: (\S+) -->\n```python\n(.*?)```", README, re.DOTALL))
DEMO = {"clip-ViT-B-32": "demo-clip", "Chinese-CLIP-ViT-L": "demo-chinese-clip"}


@pytest.fixture
def on_demo(tmp_path):
    """Replace models by copies of the demo's, beside which int8 may be written."""
    copies = {}
    for model, demo in DEMO.items():
        copy = tmp_path / "models" / demo
        copies[model] = str(shutil.copytree(resolve_model(demo).checkpoint, copy))

    def replace(text):
        for model, copy in copies.items():
            text = text.replace(model, copy)
        return text

    return replace


@pytest.fixture
def photos(tmp_path):
    from llama_index_clip_ext.demo.run import draw_pictures

    draw_pictures(tmp_path / "photos")
    shutil.copy(next(iter(sorted((tmp_path / "photos").glob("*.png")))), tmp_path / "query.jpg")
    return tmp_path / "photos"


def test_every_python_block_is_run():
    assert README.count("```python") == len(BLOCKS)
    assert {"quickstart", "more", "composed", "bilingual", "llamaindex"} <= set(BLOCKS)


def test_the_blocks_run_in_order_and_print_what_is_shown(photos, on_demo, capsys):
    names: dict = {}
    printed = {}
    for name, code in BLOCKS.items():
        if name == "int8" and not (find_spec("openvino") and find_spec("nncf")):
            continue  # An extra, which the oldest packages are tested without.
        compiled = compile(
            on_demo(code), f"README.md:{name}", "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT
        )
        result = eval(compiled, names)
        if inspect.iscoroutine(result):
            asyncio.run(result)
        printed[name] = capsys.readouterr().out
    for name in ("vector_store", "captioned", "bilingual"):
        names[name].close()
    shown = dict(re.findall(r"<!-- output: (\S+) -->\n```text\n(.*?)```", README, re.DOTALL))
    assert set(shown) == {"quickstart", "evaluate"}
    seconds = re.compile(r"in [\d.]+ s \([\d.]+ images/s\)")
    for name, text in shown.items():
        assert seconds.sub("", printed[name]) == seconds.sub("", text)


def test_the_command_lines_run(photos, on_demo, capsys):
    from typer.testing import CliRunner

    from llama_index_clip_ext.cli import app

    (block,) = re.findall(r"```bash\n(clip-ext index.*?)```", README, re.DOTALL)
    lines = block.strip().splitlines()
    assert len(lines) == 4
    for line in lines:
        result = CliRunner().invoke(app, shlex.split(on_demo(line))[1:])
        assert result.exit_code == 0, result.output


def test_the_model_table_is_the_packages():
    rows = re.findall(r"^\| `(\S+)` \| `(\S+)` \| (\d+) \| (\d+) \| (.+) \|$", README, re.MULTILINE)
    assert rows == [
        (spec.name, spec.checkpoint, str(spec.dim), str(spec.context_length), spec.advice)
        for spec in list_models()
    ]
