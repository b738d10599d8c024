"""Relevance feedback: examples of what is wanted, and of what is not."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from typing import Any, TypeGuard

from llama_index.core.base.embeddings.base import Embedding
from llama_index.core.schema import BaseNode, ImageNode, NodeWithScore, QueryBundle

from .dual_encoder import DualEncoderEmbedding
from .nodes import is_image_node
from .provenance import remember
from .queries import rocchio
from .sources import (
    ImageSource,
    describe_source,
    image_digest,
    is_decoded,
    reusable,
)
from .store import CLIPMilvusVectorStore

# Of the query, of what is wanted and of what is not. Manning, Raghavan and Schütze 2008, section
# 9.1.1: "reasonable values".
ROCCHIO_WEIGHTS = (1.0, 0.75, 0.15)


def find_examples(
    items: Sequence[str | ImageSource],
    embed_model: DualEncoderEmbedding,
    vector_store: CLIPMilvusVectorStore,
) -> list[BaseNode]:
    """Return nodes with embeddings: those that are stored, and new ones for images.

    Raises:
        ImageLoadError: If an image does not load.
        ValueError: If an id is not in the collection.
    """
    if isinstance(items, (str, bytes, os.PathLike, BaseNode, NodeWithScore)):
        raise TypeError(f"expected a list of ids and images, got one {type(items).__name__}")
    known = [one if isinstance(one, str) else getattr(one, "node_id", None) for one in items]
    stored = {node.node_id: node for node in vector_store.get_nodes([one for one in known if one])}
    ids = [item.node_id if _is_stored(item, stored) else item for item in items]
    images = [reusable(item, embed_model.allow_urls) for item in ids if not isinstance(item, str)]
    made = iter(zip(images, embed_model.get_image_embedding_batch(images), strict=True))
    examples: list[BaseNode] = []
    for item in ids:
        if not isinstance(item, str):
            image, embedding = next(made)
            examples.append(ImageNode(embedding=embedding, metadata=_content_hash(image)))
        elif item in stored:
            examples.append(stored[item])
        else:
            raise ValueError(
                f"no node {item!r} in collection {vector_store.collection_name!r}; a "
                "string is an id, a file is named by a Path"
            )
    return examples


def _is_stored(item: Any, stored: Mapping[str, BaseNode]) -> TypeGuard[NodeWithScore | BaseNode]:
    """Whether an example is a node that goes by its id.

    A hit does, and a text, of which no image can be made; and an image that is stored, unless its
    content is known to be another.
    """
    if isinstance(item, NodeWithScore) or (isinstance(item, BaseNode) and not is_image_node(item)):
        return True
    if not isinstance(item, BaseNode) or item.node_id not in stored:
        return False
    contents = [node.metadata.get("content_hash") for node in (item, stored[item.node_id])]
    return None in contents or contents[0] == contents[1]


def like_bundle(
    query: str | None,
    embedding: Embedding | None,
    examples: list[list[BaseNode]],
    weights: Sequence[float],
) -> QueryBundle:
    """Make the query that leads to what is wanted.

    Args:
        query: The text that was asked with, if there was one.
        embedding: Its embedding.
        examples: Nodes like which the hits should be, and unlike which.
        weights: As `rocchio` takes them.

    Raises:
        EmbeddingError: If the examples cancel each other out.
        ValueError: If there are none.
    """
    more, less = ([node.embedding for node in nodes] for nodes in examples)
    if not more and not less:
        raise ValueError("retrieve_like needs examples: ids, retrieved nodes or images")
    if len(weights) != 3 or not all(math.isfinite(one) and one >= 0 for one in weights):
        raise ValueError(
            f"weights are {weights}, expected three numbers from 0 up: of the query, of what is "
            "wanted and of what is not"
        )
    row = rocchio(embedding, more, less, weights)
    # The name is for traces; that there is one tells what the scores are of.
    has_images = any(is_image_node(node) for node in (examples[0] or examples[1]))
    name = f"like {len(more)} and unlike {len(less)} examples" if has_images else None
    if not has_images:
        remember([row], "text")  # So is what is made of texts alone.
    return QueryBundle(query or "", image_path=name, embedding=row.tolist())


def identities(examples: list[list[BaseNode]]) -> tuple[list[str], list[str]]:
    """Return the content hashes and the ids of examples."""
    nodes = [node for group in examples for node in group]
    hashes = [node.metadata["content_hash"] for node in nodes if "content_hash" in node.metadata]
    return list(dict.fromkeys(hashes)), [node.node_id for node in nodes]


def _content_hash(image: ImageSource) -> dict[str, str]:
    return {} if is_decoded(image) else {"content_hash": image_digest(image)}


def file_hash(image: ImageSource) -> str:
    """Return what tells an image's file, and its copies, from others.

    Raises:
        ValueError: If it is decoded already, so that it is no file's.
    """
    if is_decoded(image):
        raise ValueError(
            f"exclude_self compares files, got a {describe_source(image)}: pass a path or bytes"
        )
    return image_digest(image)
