"""The kinds of nodes that LlamaIndex has for a picture or a text, one of each."""

from __future__ import annotations

import base64
import random
from pathlib import Path

from llama_index.core.schema import (
    BaseNode,
    Document,
    ImageDocument,
    ImageNode,
    IndexNode,
    MediaResource,
    Node,
    TextNode,
)

from llama_index_clip_ext import load_image_nodes
from llama_index_clip_ext.demo.captions import Scene
from llama_index_clip_ext.demo.drawing import draw_shape

ALBUM = {"album": "summer"}

# What each shows or says, and what an earlier node of the same kind did.
KINDS = {
    "ImageNode": ("red circle", "black ring"),
    "ImageNode base64": ("blue star", "black moon"),
    "load_image_nodes": ("green triangle", "black heart"),
    "ImageDocument": ("pink heart", "black cross"),
    "ImageDocument base64": ("orange moon", "black star"),
    "Node(image)": ("purple cross", "black triangle"),
    "ImageNode captioned": ("green square", "purple star"),
    "TextNode": ("yellow square", "black square"),
    "IndexNode": ("yellow ring", "black circle"),
    "Document": ("yellow moon", "red square"),
    "Node(text)": ("yellow heart", "red moon"),
}
IMAGE_KINDS = tuple(KINDS)[:7]
TEXT_KINDS = tuple(KINDS)[7:]
# Of these, nothing is left to show: pixels are not stored.
PIXEL_KINDS = ("ImageNode base64", "ImageDocument base64")

CLASSES = {
    "ImageNode": ImageNode,
    "ImageNode base64": ImageNode,
    "load_image_nodes": ImageNode,  # A HashedImageNode is stored as what it is a kind of.
    "ImageDocument": ImageDocument,
    "ImageDocument base64": ImageDocument,
    "Node(image)": Node,
    "ImageNode captioned": ImageNode,
    "TextNode": TextNode,
    "IndexNode": IndexNode,
    "Document": Document,
    "Node(text)": Node,
}


def words(kind: str, *, earlier: bool = False) -> str:
    """What a node of a kind shows or says."""
    return f"a {KINDS[kind][earlier]}"


def picture(kind: str, folder: Path, *, earlier: bool = False) -> Path:
    """Draw what a node of a kind shows; the file, which may be there already."""
    colour, shape = KINDS[kind][earlier].split()
    file = folder / f"{colour}-{shape}.png"
    if not file.exists():
        scene = Scene(colour=colour, shape=shape, background="white")
        draw_shape(scene, random.Random(7)).image.save(file)
    return file


def make_node(kind: str, folder: Path, *, earlier: bool = False) -> BaseNode:
    """Make a node of a kind, without an embedding; its id is the kind's name."""
    id_ = f"earlier {kind}" if earlier else kind
    if kind in TEXT_KINDS:
        text = words(kind, earlier=earlier)
        # As a text to be embedded it has no metadata in front.
        own = {"id_": id_, "metadata": dict(ALBUM), "excluded_embed_metadata_keys": ["album"]}
        return {
            "TextNode": lambda: TextNode(text=text, **own),
            "IndexNode": lambda: IndexNode(text=text, index_id="shelf", **own),
            "Document": lambda: Document(text=text, **own),
            "Node(text)": lambda: Node(text_resource=MediaResource(text=text), **own),
        }[kind]()
    file = picture(kind, folder, earlier=earlier)
    content = base64.b64encode(file.read_bytes()).decode()
    own = {"id_": id_, "metadata": dict(ALBUM)}
    if kind == "load_image_nodes":
        (node,) = load_image_nodes(file)
        node.metadata |= ALBUM
        node.id_ = id_
        return node
    return {
        "ImageNode": lambda: ImageNode(image_path=str(file), **own),
        "ImageNode captioned": lambda: ImageNode(
            image_path=str(file), text=words(kind, earlier=earlier), **own
        ),
        "ImageNode base64": lambda: ImageNode(image=content, **own),
        "ImageDocument": lambda: ImageDocument(image_path=str(file), **own),
        "ImageDocument base64": lambda: ImageDocument(image=content, **own),
        "Node(image)": lambda: Node(image_resource=MediaResource(path=file), **own),
    }[kind]()


def image_path(node: BaseNode) -> str | None:
    """The path of a node's picture, whichever class it is of."""
    if isinstance(node, Node) and node.image_resource and node.image_resource.path:
        return str(node.image_resource.path)
    return getattr(node, "image_path", None)


def expected_embedding(embed_model, kind: str, folder: Path) -> list[float]:
    """What the right tower makes of a node."""
    if kind in TEXT_KINDS:
        return embed_model.get_text_embedding(words(kind))
    return embed_model.get_image_embedding(picture(kind, folder))
