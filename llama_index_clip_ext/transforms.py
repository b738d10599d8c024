"""Transformations that pass images by."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from llama_index.core.bridge.pydantic import SerializeAsAny
from llama_index.core.ingestion import arun_transformations, run_transformations
from llama_index.core.schema import BaseNode, TransformComponent

from .nodes import is_image_node


class TextsOnly(TransformComponent):
    """Runs transformations, such as a ``SentenceSplitter``, on the texts among nodes only.

    A splitter makes texts of images, or several copies of one picture, or nothing at all. Here
    images stay whole, and come first; the order of each kind is kept.

    Args:
        *given: What texts go through, in order.
        transformations: The same, as one list.

    Example:
        ``IngestionPipeline(transformations=[TextsOnly(SentenceSplitter()), embed_model])``
    """

    transformations: list[SerializeAsAny[TransformComponent]]

    def __init__(
        self, *given: TransformComponent, transformations: Sequence[TransformComponent] = ()
    ) -> None:
        # By name, too, as LlamaIndex makes it again from its fields.
        super().__init__(transformations=[*given, *transformations])  # type: ignore[call-arg]

    @classmethod
    def class_name(cls) -> str:
        """Return the name that LlamaIndex stores."""
        return "TextsOnly"

    def __call__(self, nodes: Sequence[BaseNode], **kwargs: Any) -> Sequence[BaseNode]:
        """Transform the texts among nodes of any kind, mixed."""
        images, texts = _apart(nodes)
        return [*images, *run_transformations(texts, self.transformations, **kwargs)]

    async def acall(self, nodes: Sequence[BaseNode], **kwargs: Any) -> Sequence[BaseNode]:
        """Do what calling it does, by the transformations' asynchronous calls."""
        images, texts = _apart(nodes)
        return [*images, *await arun_transformations(texts, self.transformations, **kwargs)]


def _apart(nodes: Sequence[BaseNode]) -> tuple[list[BaseNode], list[BaseNode]]:
    images = [node for node in nodes if is_image_node(node)]
    return images, [node for node in nodes if not is_image_node(node)]
