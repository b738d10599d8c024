"""A model, vectors and nodes whose scores can be worked out on paper."""

from dataclasses import dataclass, replace

from llama_index.core.schema import ImageNode, TextNode
from llama_index.core.vector_stores.types import VectorStoreQuery

from llama_index_clip_ext import EmbeddingSpace

X = [1.0, 0.0, 0.0, 0.0]
Y = [0.0, 1.0, 0.0, 0.0]
Z = [0.0, 0.0, 1.0, 0.0]
NEAR_X = [0.6, 0.8, 0.0, 0.0]  # 3-4-5: its cosine with X is 0.6, with Y 0.8.


@dataclass(frozen=True)
class Model:
    """What a store asks of a model: the space of its embeddings."""

    space: EmbeddingSpace

    def but(self, **changes):
        """Return the same model, with some of its space changed."""
        return Model(replace(self.space, **changes))


MODEL = Model(EmbeddingSpace("model-a", "", "a" * 64, "b" * 64, dim=4))


def image(node_id, embedding=X, **metadata):
    return ImageNode(
        id_=node_id, image_path=f"/pictures/{node_id}.png", embedding=embedding, metadata=metadata
    )


def text(node_id, embedding=X, **metadata):
    return TextNode(id_=node_id, text=f"text of {node_id}", embedding=embedding, metadata=metadata)


def ask(embedding=X, top_k=10, **kwargs):
    return VectorStoreQuery(query_embedding=embedding, similarity_top_k=top_k, **kwargs)
