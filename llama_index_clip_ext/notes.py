"""What a query notes in the metadata of the nodes that it finds."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from llama_index.core.schema import BaseNode

# Names that no user's metadata have: a note takes the place of what is there, and is not stored.
SIMILARITY_KEY = "retrieval_similarity"
BM25_KEY = "retrieval_bm25"
MODALITY_KEY = "retrieval_modality"
NEAR_DUPLICATES_KEY = "retrieval_near_duplicates"
_KEYS = (SIMILARITY_KEY, BM25_KEY, MODALITY_KEY, NEAR_DUPLICATES_KEY)


def note(node: BaseNode, facts: Mapping[str, Any]) -> None:
    """Write facts about a hit into its metadata, for programs and not for models."""
    node.metadata.update(facts)
    exclude_from_models(node, facts)


def exclude_from_models(node: BaseNode, keys: Iterable[str]) -> None:
    """Keep metadata from what is embedded and from what an LLM is shown."""
    for name in ("excluded_embed_metadata_keys", "excluded_llm_metadata_keys"):
        excluded = getattr(node, name)
        setattr(node, name, [*excluded, *(key for key in keys if key not in excluded)])


def without_notes(node: BaseNode) -> BaseNode:
    """Return a node as it was before a query found it, so that a hit stored again is no other node.

    A user's own metadata of such a name stays: only what models are kept from is a note.
    """
    embed, llm = node.excluded_embed_metadata_keys, node.excluded_llm_metadata_keys
    notes = {key for key in _KEYS if key in node.metadata and key in embed and key in llm}
    if not notes:
        return node
    return node.model_copy(
        update={
            "metadata": {key: value for key, value in node.metadata.items() if key not in notes},
            "excluded_embed_metadata_keys": [key for key in embed if key not in notes],
            "excluded_llm_metadata_keys": [key for key in llm if key not in notes],
        }
    )
