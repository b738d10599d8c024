"""What may follow a retriever: hits that show nearly the same made one."""

from __future__ import annotations

import numpy as np
from llama_index.core.bridge.pydantic import Field
from llama_index.core.postprocessor.types import BaseNodePostprocessor
from llama_index.core.schema import NodeWithScore, QueryBundle
from pydantic import SkipValidation

from .notes import NEAR_DUPLICATES_KEY, note
from .store import CLIPMilvusVectorStore


class NearDuplicatePostprocessor(BaseNodePostprocessor):
    """Keeps the best of hits that are nearly the same, such as one photo in two sizes.

    Each hit that stays lists the ids of those that it stands for in its metadata, under
    ``retrieval_near_duplicates``. There may be fewer hits than were retrieved: ask for more.

    Args:
        vector_store: Where the hits come from; their embeddings are read there.
        threshold: The cosine from which two hits count as the same, from -1 to 1.

    Example:
        ``create_retriever(..., node_postprocessors=[NearDuplicatePostprocessor(vector_store=s)])``
    """

    vector_store: SkipValidation[CLIPMilvusVectorStore] = Field(exclude=True)
    threshold: float = Field(default=0.99, ge=-1, le=1)

    @classmethod
    def class_name(cls) -> str:
        """Return the name that LlamaIndex stores."""
        return "NearDuplicatePostprocessor"

    def _postprocess_nodes(
        self, nodes: list[NodeWithScore], query_bundle: QueryBundle | None = None
    ) -> list[NodeWithScore]:
        if not nodes:
            return []
        stored = self.vector_store.get_nodes([hit.node.node_id for hit in nodes])
        rows = {node.node_id: np.array(node.embedding, dtype=np.float32) for node in stored}
        kept: list[NodeWithScore] = []
        for hit in nodes:
            row = rows.get(hit.node.node_id)
            # A hit of another store has no embedding here, and is left as it is.
            same = (
                one
                for one in kept
                if row is not None
                and one.node.node_id in rows
                and rows[one.node.node_id] @ row >= self.threshold
            )
            if first := next(same, None):
                _remember(first, hit)
            else:
                kept.append(hit)
        return kept


def _remember(hit: NodeWithScore, duplicate: NodeWithScore) -> None:
    # Either may stand for others already, by an earlier pass.
    known, more = (one.node.metadata.get(NEAR_DUPLICATES_KEY, []) for one in (hit, duplicate))
    ids = dict.fromkeys([*known, duplicate.node.node_id, *more])
    note(hit.node, {NEAR_DUPLICATES_KEY: list(ids)})
