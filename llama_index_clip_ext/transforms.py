"""Transformations of texts, which images pass by, and chunks that a text tower reads whole."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from llama_index.core.bridge.pydantic import PrivateAttr, SerializeAsAny
from llama_index.core.ingestion import arun_transformations, run_transformations
from llama_index.core.node_parser import SentenceSplitter
from llama_index.core.schema import BaseNode, Document, MetadataMode, Node, TransformComponent

from .dual_encoder import DualEncoderEmbedding
from .nodes import is_image_node
from .tokenization import TextTokenizer

logger = logging.getLogger(__name__)

_OVERLAP = 1 / 8  # Of a chunk's tokens.
_SEPARATORS = 2  # Tokens that LlamaIndex may put between metadata and text.


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


class ContextSplitter(TransformComponent):
    """Splits texts into chunks that a model reads whole, as LlamaIndex's ``SentenceSplitter`` does.

    A text that the model reads whole stays the node that it is.

    LlamaIndex embeds a text's metadata before the text. Where they would take more than half of
    what the model reads, they are left out of the embedding, with a warning; they stay metadata.

    Args:
        embed_model: The model; its tokenizer is read with the first text.
    """

    _embed_model: DualEncoderEmbedding = PrivateAttr()
    _has_told: bool = PrivateAttr(default=False)

    def __init__(self, embed_model: DualEncoderEmbedding) -> None:
        super().__init__()
        self._embed_model = embed_model

    @classmethod
    def class_name(cls) -> str:
        """Return the name that LlamaIndex stores."""
        return "ContextSplitter"

    def __call__(self, nodes: Sequence[BaseNode], **kwargs: Any) -> Sequence[BaseNode]:
        """Split texts."""
        if not nodes:
            return []
        tokenizer = self._embed_model.encoder.text_tokenizer
        return [chunk for node in nodes for chunk in self._split(node, tokenizer)]

    def _split(self, node: BaseNode, tokenizer: TextTokenizer) -> Sequence[BaseNode]:
        if len(tokenizer.body(node.get_content(MetadataMode.EMBED))) <= tokenizer.room:
            return [node]
        if type(node) is Node:  # LlamaIndex splits its subclasses only.
            node = Document(**{name: getattr(node, name) for name in Node.model_fields})
        metadata = node.get_metadata_str(MetadataMode.EMBED)
        room = tokenizer.room - (len(tokenizer.body(metadata)) + _SEPARATORS if metadata else 0)
        if room < tokenizer.room // 2:
            room = tokenizer.room
            node = node.model_copy(update={"excluded_embed_metadata_keys": list(node.metadata)})
            if not self._has_told:
                self._has_told = True
                logger.warning(
                    "the metadata of node %r, and perhaps of others, take more than half of the %d "
                    "tokens that the model reads; they are not embedded with its chunks",
                    *(node.node_id, tokenizer.room),
                )
        overlap = int(room * _OVERLAP)
        splitter = _Splitter(  # type: ignore[call-arg]
            chunk_size=room, chunk_overlap=overlap, tokenizer=tokenizer.body
        )
        return splitter([node])


class _Splitter(SentenceSplitter):
    """LlamaIndex's, whose chunk size leaves room for the metadata already."""

    def split_text_metadata_aware(self, text: str, metadata_str: str) -> list[str]:
        return self.split_text(text)
