"""LlamaIndex's vector store index, with images embedded as images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from llama_index.core import StorageContext, VectorStoreIndex
from llama_index.core.data_structs.data_structs import IndexDict
from llama_index.core.ingestion import arun_transformations, run_transformations
from llama_index.core.schema import BaseNode, Document, IndexNode, TransformComponent
from llama_index.core.utils import iter_batch
from llama_index.core.vector_stores.types import MetadataFilters, VectorStoreQueryMode

from .dual_encoder import DualEncoderEmbedding
from .nodes import is_image_node
from .retriever import CLIPRetriever, Wanted, create_retriever
from .store import CLIPMilvusVectorStore, check_pair


class CLIPVectorStoreIndex(VectorStoreIndex):
    """A ``VectorStoreIndex`` over images and texts that embeds each by its own tower.

    LlamaIndex's own embeds the text of every node, also of images, leaves out images without a
    text, and retrieves images and texts in one list by score. Here ``embed_model(nodes)`` embeds,
    the Milvus store holds everything, and `CLIPRetriever` retrieves. Nodes that have embeddings
    keep them. ``Settings`` is neither read nor set.

    Args:
        nodes: Nodes of any kind, mixed. They are left as they are.
        embed_model: The model that the store was made for.
        storage_context: Holds the store; ``StorageContext.from_defaults(vector_store=...)``.
        objects: Index nodes whose objects are retrieved from in their turn.
        index_struct: Of an index that is loaded again.
        transformations: What documents go through, such as a ``SentenceSplitter``. Images go round
            them whole: a splitter would make texts of them, or several copies of one picture.
        insert_batch_size: Nodes per write.
        use_async: LlamaIndex's.
        show_progress: Show a progress bar.

    Raises:
        TypeError: If the model or the store is not one of this package's.
        EmbeddingSpaceMismatchError: If the store holds vectors of another model.
        ImageLoadError: If an image does not load and the model's ``on_error`` is ``"raise"``.

    Example:
        ``CLIPVectorStoreIndex.from_vector_store(vector_store, embed_model=embed_model)``
    """

    _embed_model: DualEncoderEmbedding
    _vector_store: CLIPMilvusVectorStore

    def __init__(
        self,
        nodes: Sequence[BaseNode] | None = None,
        *,
        embed_model: DualEncoderEmbedding,
        storage_context: StorageContext,
        objects: Sequence[IndexNode] | None = None,
        index_struct: IndexDict | None = None,
        transformations: Sequence[TransformComponent] | None = None,
        insert_batch_size: int = 2048,
        use_async: bool = False,
        show_progress: bool = False,
    ) -> None:
        # Before anything is embedded.
        check_pair(embed_model, storage_context.vector_store)
        super().__init__(
            nodes=list(nodes) if nodes is not None else None,
            embed_model=embed_model,
            storage_context=storage_context,
            objects=list(objects) if objects is not None else None,
            index_struct=index_struct,
            # For no list, and for an empty one, LlamaIndex takes those of Settings.
            transformations=[_AroundImages(transformations=list(transformations or []))],
            insert_batch_size=insert_batch_size,
            use_async=use_async,
            show_progress=show_progress,
            callback_manager=embed_model.callback_manager,
        )

    @classmethod
    def from_vector_store(
        cls,
        vector_store: CLIPMilvusVectorStore,
        *,
        embed_model: DualEncoderEmbedding,
        transformations: Sequence[TransformComponent] | None = None,
    ) -> CLIPVectorStoreIndex:
        """Open the index of a store; what the store holds is found again."""
        return cls(
            [],
            embed_model=embed_model,
            storage_context=StorageContext.from_defaults(vector_store=vector_store),
            transformations=transformations,
        )

    @classmethod
    def from_documents(
        cls,
        documents: Sequence[Document],
        storage_context: StorageContext,
        *,
        embed_model: DualEncoderEmbedding,
        transformations: Sequence[TransformComponent] | None = None,
        show_progress: bool = False,
    ) -> CLIPVectorStoreIndex:
        """Make an index of documents; see the class for the arguments.

        The docstore learns of them once they are stored, so that a run that failed is not taken
        for done by ``refresh_ref_docs``.
        """
        index = cls(
            [],
            embed_model=embed_model,
            storage_context=storage_context,
            transformations=transformations,
            show_progress=show_progress,
        )
        nodes = run_transformations(documents, index._transformations, show_progress=show_progress)
        index.insert_nodes(nodes, show_progress=show_progress)
        for document in documents:
            index.docstore.set_document_hash(document.id_, document.hash)
        return index

    def as_retriever(
        self,
        *,
        similarity_top_k: int = 5,
        filters: MetadataFilters | None = None,
        modality: Wanted = "image",
        vector_store_query_mode: VectorStoreQueryMode | str = VectorStoreQueryMode.DEFAULT,
        alpha: float | None = None,
        similarity_cutoff: float | None = None,
        relative_cutoff: float | None = None,
        calibrated: bool = False,
        **kwargs: Any,
    ) -> CLIPRetriever:
        """Make a retriever; see `CLIPRetriever` for the arguments.

        Others are not used: LlamaIndex passes those of its query and chat engines along, among them
        the ``node_postprocessors`` that the engine applies.
        """
        retriever = create_retriever(
            self._embed_model,
            self._vector_store,
            similarity_top_k=similarity_top_k,
            filters=filters,
            modality=modality,
            vector_store_query_mode=vector_store_query_mode,
            alpha=alpha,
            similarity_cutoff=similarity_cutoff,
            relative_cutoff=relative_cutoff,
            calibrated=calibrated,
        )
        retriever.object_map.update(self._object_map)
        return retriever

    def build_index_from_nodes(self, nodes: Sequence[BaseNode], **insert_kwargs: Any) -> IndexDict:
        """Embed and store nodes, those without a text, too."""
        return self._build_index_from_nodes(nodes, **insert_kwargs)

    # LlamaIndex also keeps image nodes, with their pixels, in the docstore, and would then search
    # among those only. The store has all that is needed.

    def _add_nodes_to_index(
        self,
        index_struct: IndexDict,
        nodes: Sequence[BaseNode],
        show_progress: bool = False,
        **insert_kwargs: Any,
    ) -> None:
        for batch in iter_batch(nodes, self._insert_batch_size):
            self._vector_store.add(self._get_node_with_embedding(batch, show_progress))

    async def _async_add_nodes_to_index(
        self,
        index_struct: IndexDict,
        nodes: Sequence[BaseNode],
        show_progress: bool = False,
        **insert_kwargs: Any,
    ) -> None:
        for batch in iter_batch(nodes, self._insert_batch_size):
            embedded = await self._aget_node_with_embedding(batch, show_progress)
            await self._vector_store.async_add(embedded)

    def _get_node_with_embedding(
        self, nodes: Sequence[BaseNode], show_progress: bool = False
    ) -> list[BaseNode]:
        copies = [node.model_copy() for node in nodes]
        new = [node for node in copies if node.embedding is None]
        self._embed_model(new, show_progress=show_progress)
        # What the model skipped, because its image does not load, still has none.
        return [node for node in copies if node.embedding is not None]

    async def _aget_node_with_embedding(
        self, nodes: Sequence[BaseNode], show_progress: bool = False
    ) -> list[BaseNode]:
        copies = [node.model_copy() for node in nodes]
        new = [node for node in copies if node.embedding is None]
        await self._embed_model.acall(new, show_progress=show_progress)
        return [node for node in copies if node.embedding is not None]

    def _delete_from_docstore(self, ref_doc_id: str) -> None:
        # Its hash is all that is there; left, it would keep the document from being added again.
        self._docstore.delete_document(ref_doc_id, raise_error=False)

    async def _adelete_from_docstore(self, ref_doc_id: str) -> None:
        await self._docstore.adelete_document(ref_doc_id, raise_error=False)


class _AroundImages(TransformComponent):
    """Runs transformations on the texts among nodes; images stay whole, first, in order."""

    transformations: list[TransformComponent]

    def __call__(self, nodes: Sequence[BaseNode], **kwargs: Any) -> Sequence[BaseNode]:
        images = [node for node in nodes if is_image_node(node)]
        texts = [node for node in nodes if not is_image_node(node)]
        return [*images, *run_transformations(texts, self.transformations, **kwargs)]

    async def acall(self, nodes: Sequence[BaseNode], **kwargs: Any) -> Sequence[BaseNode]:
        images = [node for node in nodes if is_image_node(node)]
        texts = [node for node in nodes if not is_image_node(node)]
        return [*images, *await arun_transformations(texts, self.transformations, **kwargs)]
