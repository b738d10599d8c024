"""Runs the notebooks from top to bottom and keeps nothing of it but their figures.

``python notebooks/refresh.py`` runs all, ``python notebooks/refresh.py 02 06`` some. A figure stays
if its cell is tagged ``keep-figure``: few and small ones, for those who read without running.
"""

import base64
import io
import sys
import tempfile
from pathlib import Path

import nbclient
import nbformat
from nbformat import NotebookNode
from PIL import Image

FOLDER = Path(__file__).parent
KEEP = "keep-figure"
PNG = "image/png"


def run(notebook: NotebookNode, folder: Path) -> None:
    """Run a notebook in a folder; its cells get their outputs."""
    nbclient.NotebookClient(
        notebook,
        timeout=300,
        kernel_name="python3",
        resources={"metadata": {"path": str(folder)}},
    ).execute()


def strip(notebook: NotebookNode) -> None:
    """Leave of a notebook that ran what a person wrote, and the figures that are to be kept."""
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    notebook.metadata = NotebookNode(kernelspec=kernel, language_info={"name": "python"})
    for cell in notebook.cells:
        tags = cell.metadata.get("tags")
        cell.metadata = NotebookNode({"tags": tags} if tags else {})
        if cell.cell_type == "code":
            cell.execution_count = None
            cell.outputs = figures(cell) if KEEP in (tags or ()) else []


def figures(cell: NotebookNode) -> list[NotebookNode]:
    """Return the pictures among the outputs of a cell, and nothing of the texts beside them."""
    return [
        nbformat.v4.new_output("display_data", {PNG: shrink(output.data[PNG])})
        for output in cell.outputs
        if PNG in output.get("data", {})
    ]


def shrink(figure: str) -> str:
    """Reduce a PNG in base64 to 256 colours, unless it was."""
    image = Image.open(io.BytesIO(base64.b64decode(figure)))
    if image.mode == "P":
        return figure
    buffer = io.BytesIO()
    image.convert("RGB").quantize(256).save(buffer, "PNG", optimize=True)
    return base64.b64encode(buffer.getvalue()).decode()


def main(names: list[str]) -> None:
    for path in sorted(FOLDER.glob("*.ipynb")):
        if names and not path.name.startswith(tuple(names)):
            continue
        notebook = nbformat.read(path, as_version=4)
        with tempfile.TemporaryDirectory() as folder:
            run(notebook, Path(folder))
        strip(notebook)
        nbformat.write(notebook, path)
        print(f"{path.name}: {path.stat().st_size / 1024:.0f} kB")


if __name__ == "__main__":
    main(sys.argv[1:])
