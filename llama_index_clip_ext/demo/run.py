"""The demo: drawn pictures, indexed into Milvus Lite and found by words and by pictures."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from llama_index.core.schema import NodeWithScore
from PIL import Image

from llama_index_clip_ext.demo.drawing import Drawing, draw_digits, draw_shapes
from llama_index_clip_ext.demo.heldout import HELDOUT_DIGITS
from llama_index_clip_ext.embedding import load_embedding
from llama_index_clip_ext.ingest import ingest_images
from llama_index_clip_ext.retriever import create_retriever
from llama_index_clip_ext.sheet import Tile, draw_contact_sheet
from llama_index_clip_ext.store import create_vector_store

_SEED = 20_261  # Neither a training seed nor a held-out one.
_SHAPES = 128
_DIGITS = 40
_TOP_K = 5

_NOTE = (
    "The demo's two encoders are tiny, and know only drawn shapes, colours, backgrounds and "
    "handwritten digits."
)
_LEGEND = (
    "Green: what was asked for. Of each shape and colour there are two pictures in the folder."
)
# What is asked, and the label of what should come first.
_TEXTS = {
    "demo-clip": [
        ("a red circle", "red circle"),
        ("a blue star", "blue star"),
        ("the handwritten digit seven", "seven"),
    ],
    "demo-chinese-clip": [
        ("绿色三角形", "green triangle"),
        ("粉色心形", "pink heart"),
        ("手写数字三", "three"),
    ],
}


@dataclass(frozen=True)
class DemoSearch:
    """One search of the demo.

    Attributes:
        title: What was asked, of which model.
        expected: Label of the pictures that are right.
        hits: What was found, best first.
        query: The picture that was asked with, if it was one.
    """

    title: str
    expected: str
    hits: list[NodeWithScore]
    query: Image.Image | None = None

    @property
    def is_right(self) -> bool:
        """Whether the first hit is what was asked for."""
        return bool(self.hits) and _label(self.hits[0]) == self.expected


@dataclass(frozen=True)
class DemoResult:
    """What the demo did.

    Attributes:
        searches: Each search and what it found.
        contact_sheet: The searches as one picture.
        pictures: The folder of drawn pictures.
        note: What the demo's encoders know, and what not.
    """

    searches: list[DemoSearch]
    contact_sheet: Path
    pictures: Path
    note: str = _NOTE

    @property
    def correct(self) -> int:
        """How many searches found the right picture first."""
        return sum(search.is_right for search in self.searches)


def run_demo(output: Path) -> DemoResult:
    """Draw pictures, index them with both demo models, and search in three ways.

    Args:
        output: Folder for the pictures, the database and the contact sheet; made if need be.

    Returns:
        The searches, and where the contact sheet is.
    """
    pictures = output / "pictures"
    draw_pictures(pictures)
    searches = []
    for model, questions in _TEXTS.items():
        embed_model = load_embedding(model)
        with create_vector_store(
            embed_model,
            uri=output / "demo.db",
            collection_name=model.replace("-", "_"),
            overwrite=True,
        ) as vector_store:
            ingest_images(pictures, embed_model=embed_model, vector_store=vector_store)
            retriever = create_retriever(embed_model, vector_store, similarity_top_k=_TOP_K)
            for text, label in questions:
                title = f"{text}   ({label}; {model})"
                searches.append(DemoSearch(title, label, retriever.retrieve(text)))
            for drawing in _query_drawings(model):
                title = f"like this picture   ({drawing.label_en}; {model})"
                hits = retriever.retrieve_image(drawing.image)
                searches.append(DemoSearch(title, drawing.label_en, hits, drawing.image))
    contact_sheet = output / "contact-sheet.png"
    rows = [(search.title, _tiles(search)) for search in searches]
    draw_contact_sheet(rows, legend=_LEGEND).save(contact_sheet)
    return DemoResult(searches, contact_sheet, pictures)


def draw_pictures(folder: Path) -> None:
    """Draw the demo's pictures, each with its caption in a text file beside it.

    Args:
        folder: Made if need be; the pictures of an earlier run in it are replaced.
    """
    folder.mkdir(parents=True, exist_ok=True)
    shapes = draw_shapes(_SHAPES, seed=_SEED)
    digits = draw_digits(HELDOUT_DIGITS[:_DIGITS], seed=_SEED)
    for number, drawing in enumerate((*shapes, *digits)):
        file = folder / f"{number:03}-{drawing.label_en.replace(' ', '-')}.png"
        drawing.image.save(file)
        file.with_suffix(".txt").write_text(drawing.caption_en, encoding="utf-8")


def _query_drawings(model: str) -> list[Drawing]:
    """Draw what no picture of the folder shows in the same way."""
    if model == "demo-clip":
        return list(draw_shapes(1, seed=_SEED + 1))
    return list(draw_digits(HELDOUT_DIGITS[-1:], seed=_SEED + 1))


def _label(hit: NodeWithScore) -> str:
    name = Path(hit.node.metadata["file_name"]).stem
    return name.partition("-")[2].replace("-", " ")


def _tiles(search: DemoSearch) -> list[Tile]:
    tiles = [Tile(search.query, "asked with")] if search.query else []
    for hit in search.hits:
        with Image.open(hit.node.metadata["file_path"]) as image:
            label = f"{hit.score:.2f} {_label(hit)}"
            tiles.append(Tile(image.copy(), label, _label(hit) == search.expected))
    return tiles
