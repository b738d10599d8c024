import base64
import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("nbclient")
nbformat = pytest.importorskip("nbformat")
import refresh  # noqa: E402

NOTEBOOKS = sorted(refresh.FOLDER.glob("*.ipynb"))
each_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)

NO_NETWORK = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
import loopback
no_network = loopback.only_loopback()
no_network.__enter__()
"""


def kept(notebook):
    return [cell for cell in notebook.cells if refresh.KEEP in cell.metadata.get("tags", ())]


def pixels(output):
    picture = base64.b64decode(output.data[refresh.PNG])
    return np.asarray(Image.open(io.BytesIO(picture)).convert("RGB"), dtype=float)


def test_there_are_notebooks():
    assert [path.stem for path in NOTEBOOKS] == [
        "01_quickstart",
        "02_chinese_clip",
        "03_llamaindex_roads",
        "04_composed_queries",
        "05_multimodal_rag",
        "06_evaluation",
    ]


@each_notebook
def test_it_is_stored_without_outputs_but_figures(path):
    stored = nbformat.read(path, as_version=4)
    stripped = nbformat.read(path, as_version=4)
    refresh.strip(stripped)
    assert stored == stripped
    for cell in stored.cells:
        for output in cell.get("outputs", ()):
            assert cell in kept(stored)
            assert set(output.data) == {"image/png"}
            assert len(output.data["image/png"]) * 3 / 4 < 60_000
    assert 1 <= sum(len(cell.outputs) for cell in kept(stored)) <= 2


@each_notebook
def test_it_runs_top_to_bottom_without_network_and_shows_its_figures(path, tmp_path):
    stored = nbformat.read(path, as_version=4)
    ran = nbformat.read(path, as_version=4)
    ran.cells.insert(0, nbformat.v4.new_code_cell(NO_NETWORK))

    refresh.run(ran, tmp_path)

    for before, after in zip(kept(stored), kept(ran), strict=True):
        for old, new in zip(before.outputs, refresh.figures(after), strict=True):
            assert pixels(old).shape == pixels(new).shape
            # Another picture in one tile of ten would differ by more, another last digit by less.
            assert np.abs(pixels(old) - pixels(new)).mean() < 2
