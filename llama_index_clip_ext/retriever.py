"""Text and image queries -> scored nodes."""

from __future__ import annotations

from typing import TypeAlias

from llama_index.core.base.base_multi_modal_retriever import MultiModalRetriever
from llama_index.core.callbacks import CallbackManager
from llama_index.core.image_retriever import BaseImageRetriever
from llama_index.core.schema import NodeWithScore, QueryBundle, QueryType
from llama_index.core.vector_stores.types import (
    MetadataFilters,
    VectorStoreQuery,
    VectorStoreQueryResult,
)

from .dual_encoder import DualEncoderEmbedding
from .rows import Modality
from .sources import ImageSource, describe_source
from .store import CLIPMilvusVectorStore, check_pair

Vector: TypeAlias = "list[float]"


def create_retriever(
    embed_model: DualEncoderEmbedding,
    vector_store: CLIPMilvusVectorStore,
    *,
    similarity_top_k: int = 5,
    filters: MetadataFilters | None = None,
    modality: Modality = "image",
    similarity_cutoff: float | None = None,
    callback_manager: CallbackManager | None = None,
) -> CLIPRetriever:
    """Make a retriever over a store; an existing collection needs nothing more.

    Args:
        embed_model: The model that the store was made for.
        vector_store: The store, as `create_vector_store` returns it.
        similarity_top_k: Hits per query, at most.
        filters: Conditions on the metadata of hits.
        modality: What to find: ``"image"`` or ``"text"``.
        similarity_cutoff: Leave out hits below this cosine. A good text-to-image hit scores 0.2 to
            0.4 with CLIP, an image-to-image one far more: no one number suits both.
        callback_manager: LlamaIndex's.

    Raises:
        EmbeddingSpaceMismatchError: If the store holds vectors of another model.
        ValueError: If the modality or ``similarity_top_k`` is impossible.
    """
    return CLIPRetriever(
        embed_model,
        vector_store,
        similarity_top_k=similarity_top_k,
        filters=filters,
        modality=modality,
        similarity_cutoff=similarity_cutoff,
        callback_manager=callback_manager,
    )


class CLIPRetriever(MultiModalRetriever):
    """Finds images, or texts, by a text or by an image; `create_retriever` makes one.

    A query is a text, or a ``QueryBundle`` with a text, an ``image_path`` or an ``embedding``; it
    is left as it is. Scores are raw cosines, higher is better.
    """

    # MultiModalRetriever declares these abstract again, over BaseImageRetriever's own.
    text_to_image_retrieve = BaseImageRetriever.text_to_image_retrieve
    atext_to_image_retrieve = BaseImageRetriever.atext_to_image_retrieve
    image_to_image_retrieve = BaseImageRetriever.image_to_image_retrieve
    aimage_to_image_retrieve = BaseImageRetriever.aimage_to_image_retrieve

    def __init__(
        self,
        embed_model: DualEncoderEmbedding,
        vector_store: CLIPMilvusVectorStore,
        *,
        similarity_top_k: int,
        filters: MetadataFilters | None,
        modality: Modality,
        similarity_cutoff: float | None,
        callback_manager: CallbackManager | None,
    ) -> None:
        if modality not in ("image", "text"):
            raise ValueError(f"modality is {modality!r}, expected 'image' or 'text'")
        check_pair(embed_model, vector_store)
        if similarity_top_k < 1:
            raise ValueError(f"similarity_top_k is {similarity_top_k}, expected at least 1")
        super().__init__(callback_manager=callback_manager or embed_model.callback_manager)
        self.embed_model = embed_model
        self.vector_store = vector_store
        self.similarity_top_k = similarity_top_k
        self.filters = filters
        self.modality: Modality = modality
        self.similarity_cutoff = similarity_cutoff

    def retrieve_image(self, image: ImageSource) -> list[NodeWithScore]:
        """Find what is like an image.

        Args:
            image: A path, bytes, stream, PIL image, array, data URI, base64 text, or node.

        Raises:
            ImageNotFoundError: If the path does not exist.
            ImageLoadError: If it is no picture.
        """
        return self.retrieve(self._image_bundle(image, self.embed_model.get_image_embedding(image)))

    async def aretrieve_image(self, image: ImageSource) -> list[NodeWithScore]:
        """Do what `retrieve_image` does, off the event loop."""
        embedding = await self.embed_model.aget_image_embedding(image)
        return await self.aretrieve(self._image_bundle(image, embedding))

    def text_retrieve(self, str_or_query_bundle: QueryType) -> list[NodeWithScore]:
        """Find texts by a text."""
        bundle = _text_bundle(str_or_query_bundle)
        return self._search(self._embed_text(bundle), "text")

    async def atext_retrieve(self, str_or_query_bundle: QueryType) -> list[NodeWithScore]:
        """Do what `text_retrieve` does, off the event loop."""
        bundle = _text_bundle(str_or_query_bundle)
        return await self._asearch(await self._aembed_text(bundle), "text")

    def _text_to_image_retrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        return self._search(query_bundle.embedding or self._embed_text(query_bundle), "image")

    async def _atext_to_image_retrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        embedding = query_bundle.embedding or await self._aembed_text(query_bundle)
        return await self._asearch(embedding, "image")

    def _image_to_image_retrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        embedding = self.embed_model.get_image_embedding(_image_path(query_bundle))
        return self._search(embedding, "image")

    async def _aimage_to_image_retrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        path = _image_path(query_bundle)
        return await self._asearch(await self.embed_model.aget_image_embedding(path), "image")

    def _retrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        embedding = query_bundle.embedding
        if embedding is None and _is_image_query(query_bundle):
            embedding = self.embed_model.get_image_embedding(_image_path(query_bundle))
        return self._search(embedding or self._embed_text(query_bundle), self.modality)

    async def _aretrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        embedding = query_bundle.embedding
        if embedding is None and _is_image_query(query_bundle):
            embedding = await self.embed_model.aget_image_embedding(_image_path(query_bundle))
        return await self._asearch(
            embedding or await self._aembed_text(query_bundle), self.modality
        )

    def _embed_text(self, bundle: QueryBundle) -> Vector:
        return self.embed_model.get_agg_embedding_from_queries(_embedding_texts(bundle))

    async def _aembed_text(self, bundle: QueryBundle) -> Vector:
        return await self.embed_model.aget_agg_embedding_from_queries(_embedding_texts(bundle))

    def _search(self, embedding: Vector, modality: Modality) -> list[NodeWithScore]:
        result = self.vector_store.query(self._store_query(embedding), modality=modality)
        return self._scored(result)

    async def _asearch(self, embedding: Vector, modality: Modality) -> list[NodeWithScore]:
        result = await self.vector_store.aquery(self._store_query(embedding), modality=modality)
        return self._scored(result)

    def _store_query(self, embedding: Vector) -> VectorStoreQuery:
        return VectorStoreQuery(
            query_embedding=embedding,
            similarity_top_k=self.similarity_top_k,
            filters=self.filters,
        )

    def _scored(self, result: VectorStoreQueryResult) -> list[NodeWithScore]:
        pairs = zip(result.nodes or [], result.similarities or [], strict=True)
        return [
            NodeWithScore(node=node, score=score)
            for node, score in pairs
            if self.similarity_cutoff is None or score >= self.similarity_cutoff
        ]

    def _image_bundle(self, image: ImageSource, embedding: Vector) -> QueryBundle:
        # The description is for traces; the embedding is what is searched with.
        return QueryBundle("", image_path=describe_source(image), embedding=embedding)


def _text_bundle(query: QueryType) -> QueryBundle:
    return QueryBundle(query) if isinstance(query, str) else query


def _is_image_query(bundle: QueryBundle) -> bool:
    if bundle.image_path and bundle.query_str:
        raise ValueError(
            "the QueryBundle has both a text and an image_path; ask by one of them, or by "
            "text_to_image_retrieve or image_to_image_retrieve, which say which"
        )
    return bool(bundle.image_path)


def _image_path(bundle: QueryBundle) -> str:
    if not bundle.image_path:
        raise ValueError("the QueryBundle has no image_path")
    return bundle.image_path


def _embedding_texts(bundle: QueryBundle) -> list[str]:
    if not bundle.embedding_strs:
        raise ValueError("the query is empty: expected a text, an image_path or an embedding")
    return bundle.embedding_strs
