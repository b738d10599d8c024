"""Transformations that images go round."""

import asyncio
import pickle

import pytest
from llama_index.core.node_parser import SentenceSplitter
from llama_index.core.schema import Document, ImageDocument, ImageNode, Node, TransformComponent

from llama_index_clip_ext import TextsOnly


class Upper(TransformComponent):
    """Says it loudly, and whether it was awaited."""

    mark: str = ""

    def __call__(self, nodes, **kwargs):
        return [Document(text=node.text.upper() + self.mark) for node in nodes]

    async def acall(self, nodes, **kwargs):
        return [Document(text=node.text.upper() + self.mark + "?") for node in nodes]


def texts(nodes):
    return [node.text for node in nodes]


def test_images_stay_whole_and_come_first_in_order(pictures):
    image = str(pictures / "red.png")
    nodes = [
        Document(text="a"),
        ImageNode(image_path=image, text="a caption"),
        Document(text="b"),
        ImageDocument(image_path=image),
        Node(image_resource={"path": image}),
    ]
    for made, end in (
        (TextsOnly(Upper(), Upper(mark="!"))(nodes), "!"),
        (asyncio.run(TextsOnly(Upper(), Upper(mark="!")).acall(nodes)), "?!?"),
    ):
        assert [id(one) for one in made[:3]] == [id(nodes[index]) for index in (1, 3, 4)]
        assert texts(made[3:]) == [f"A{end}", f"B{end}"]


def test_none_are_none():
    assert TextsOnly()([]) == []
    assert TextsOnly(Upper())([]) == []


@pytest.mark.parametrize(
    "again",
    [
        lambda one: pickle.loads(pickle.dumps(one)),
        lambda one: TextsOnly(transformations=one.transformations),
    ],
)
def test_it_is_made_again_from_what_it_was_made_of(again):
    one = TextsOnly(TextsOnly(), TextsOnly())
    assert len(again(one).transformations) == 2


def test_a_cache_tells_its_options_apart():
    short, long = (TextsOnly(SentenceSplitter(chunk_size=n, chunk_overlap=0)) for n in (20, 90))
    assert short.to_dict() != long.to_dict()
