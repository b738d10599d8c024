"""LlamaIndex's vector store index, with images embedded as images."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from typing import Any

from llama_index.core import StorageContext, VectorStoreIndex
from llama_index.core.data_structs.data_structs import IndexDict
from llama_index.core.extractors import BaseExtractor
from llama_index.core.ingestion import run_transformations
from llama_index.core.node_parser import NodeParser
from llama_index.core.schema import (
    BaseNode,
    Document,
    IndexNode,
    MetadataMode,
    TransformComponent,
)
from llama_index.core.utils import iter_batch
from llama_index.core.vector_stores.types import FilterOperator, MetadataFilter, MetadataFilters

from .dual_encoder import DualEncoderEmbedding
from .nodes import is_image_node
from .retriever import CLIPRetriever, RetrieverOptions, create_retriever
from .store import CLIPMilvusVectorStore, check_pair
from .transforms import TextsOnly

logger = logging.getLogger(__name__)

_BATCH = 500  # Documents that are embedded, written and noted together.
# An engine that is given the other two has use for them itself.
_OF_ENGINES = {"node_postprocessors", "callback_manager"}
_RETRIEVER_OPTIONS = RetrieverOptions.__optional_keys__ - _OF_ENGINES


class CLIPVectorStoreIndex(VectorStoreIndex):
    """A ``VectorStoreIndex`` over images and texts that embeds each by its own tower.

    LlamaIndex's own embeds the text of every node, also of images, leaves out images without a
    text, and retrieves images and texts in one list by score. Here ``embed_model(nodes)`` embeds,
    the Milvus store holds everything, and `CLIPRetriever` retrieves. Nodes that have embeddings
    keep them. ``Settings`` is neither read nor set.

    A document takes the place of what was stored of it, whichever way it comes, and once it is
    there: if its image cannot be embedded, what was stored stays, and the docstore does not take it
    for done. Texts that were split from it before are deleted; images that name it as their source
    stay. (The chunks of a document that itself names a source are that one's, to LlamaIndex.)

    Args:
        nodes: Nodes of any kind, mixed. They are left as they are.
        embed_model: The model that the store was made for.
        storage_context: Holds the store; ``StorageContext.from_defaults(vector_store=...)``.
        objects: Index nodes whose objects are retrieved from in their turn.
        index_struct: Of an index that is loaded again.
        transformations: What documents go through, such as a ``SentenceSplitter``. Images pass node
            parsers and extractors by: those would make texts of them, or several copies of one
            picture. All else, such as an `ImageCaptioner`, is given images, too.
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
            objects=[node.model_copy() for node in objects] if objects is not None else None,
            index_struct=index_struct,
            # For no list, and for an empty one, LlamaIndex takes those of Settings.
            transformations=_around_images(transformations or ()) or [TextsOnly()],
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
        """Make an index of documents; see the class for the arguments."""
        index = cls(
            [],
            embed_model=embed_model,
            storage_context=storage_context,
            transformations=transformations,
            show_progress=show_progress,
        )
        index._store_documents(documents)
        return index

    def as_retriever(self, **kwargs: Any) -> CLIPRetriever:
        """Make a retriever; see `CLIPRetriever` for the arguments.

        Others are not used: LlamaIndex passes those of its query and chat engines along, among them
        the ``node_postprocessors`` that the engine applies.
        """
        options = {key: value for key, value in kwargs.items() if key in _RETRIEVER_OPTIONS}
        retriever = create_retriever(self._embed_model, self._vector_store, **options)
        retriever.object_map = self._object_map
        return retriever

    def build_index_from_nodes(self, nodes: Sequence[BaseNode], **insert_kwargs: Any) -> IndexDict:
        """Embed and store nodes, those without a text, too."""
        return self._build_index_from_nodes(nodes, **insert_kwargs)

    # LlamaIndex deletes first what an update may then fail to replace, takes for done what was left
    # out, embeds one document at a time, and keeps the rows of a document that was split anew.

    def insert(self, document: Document, **insert_kwargs: Any) -> None:
        """Embed and store a document, in place of what is stored of it.

        Args:
            document: An image or a text.
            **insert_kwargs: Passed on to the transformations.
        """
        with self._callback_manager.as_trace("insert"):
            self._store_documents([document], **insert_kwargs)

    async def ainsert(self, document: Document, **insert_kwargs: Any) -> None:
        """Do what `insert` does, off the event loop."""
        await asyncio.to_thread(self.insert, document, **insert_kwargs)

    def update_ref_doc(self, document: Document, **update_kwargs: Any) -> None:
        """Embed and store a document, in place of what is stored of it; no more is asked for."""
        with self._callback_manager.as_trace("update_ref_doc"):
            self._store_documents([document])

    async def aupdate_ref_doc(self, document: Document, **update_kwargs: Any) -> None:
        """Do what `update_ref_doc` does, off the event loop."""
        await asyncio.to_thread(self.update_ref_doc, document)

    def refresh_ref_docs(self, documents: Sequence[Document], **update_kwargs: Any) -> list[bool]:
        """Embed and store documents that are new, or have changed since the docstore saw them.

        Args:
            documents: Images and texts. Of those with the same id, the last counts.
            **update_kwargs: Not used.

        Returns:
            For each document whether it was stored now.
        """
        with self._callback_manager.as_trace("refresh_ref_docs"):
            latest = {document.id_: document for document in documents}
            stored = self._store_documents(
                [
                    document
                    for document in latest.values()
                    if document.hash != self.docstore.get_document_hash(document.id_)
                ]
            )
        return [document.id_ in stored for document in documents]

    async def arefresh_ref_docs(
        self, documents: Sequence[Document], **update_kwargs: Any
    ) -> list[bool]:
        """Do what `refresh_ref_docs` does, off the event loop."""
        return await asyncio.to_thread(self.refresh_ref_docs, documents)

    def delete_nodes(
        self, node_ids: list[str], delete_from_docstore: bool = False, **delete_kwargs: Any
    ) -> None:
        """Delete nodes, and documents of these ids from the docstore, too, if asked."""
        super().delete_nodes(node_ids, **delete_kwargs)
        for node_id in node_ids if delete_from_docstore else ():
            self._delete_from_docstore(node_id)

    async def adelete_nodes(
        self, node_ids: list[str], delete_from_docstore: bool = False, **delete_kwargs: Any
    ) -> None:
        """Do what `delete_nodes` does, off the event loop."""
        await super().adelete_nodes(node_ids, **delete_kwargs)
        for node_id in node_ids if delete_from_docstore else ():
            await self._adelete_from_docstore(node_id)

    def _store_documents(self, documents: Sequence[Document], **kwargs: Any) -> set[str]:
        """Store documents, each in place of what was stored of it; return the ids of those stored.

        One with an image that the model left out is not among them, and keeps its rows.
        """
        latest = {document.id_: document for document in documents}
        stored: set[str] = set()
        for batch in iter_batch(list(latest.values()), _BATCH):
            stored.update(self._store_batch({document.id_: document for document in batch}, kwargs))
        return stored

    def _store_batch(self, documents: dict[str, Document], kwargs: dict[str, Any]) -> list[str]:
        # Before the transformations, which may change a document.
        hashes = {id_: document.hash for id_, document in documents.items()}
        nodes = run_transformations(
            list(documents.values()),
            self._transformations,
            show_progress=self._show_progress,
            **kwargs,
        )

        def owner(node: BaseNode) -> str:
            # What is no part of another is its own document, whatever it names as its source.
            return node.node_id if node.node_id in documents else node.ref_doc_id or node.node_id

        embedded = self._get_node_with_embedding(nodes, self._show_progress)
        found = {node.node_id for node in embedded}
        lost = {owner(node) for node in nodes if is_image_node(node) and node.node_id not in found}
        # An embedding model among the transformations may have left it out already.
        whole = {owner(node) for node in nodes}
        lost |= {id_ for id_ in documents if id_ not in whole and is_image_node(documents[id_])}
        written = set(self._vector_store.add([n for n in embedded if owner(n) not in lost]))
        done = [id_ for id_ in documents if id_ not in lost]
        self._delete_stale(done, written)
        for id_ in done:
            self.docstore.set_document_hash(id_, hashes[id_])
        return done

    def _delete_stale(self, document_ids: list[str], written: set[str]) -> None:
        """Delete what earlier runs split from documents; images that point at them stay."""
        of_these = MetadataFilter(key="doc_id", value=document_ids, operator=FilterOperator.IN)
        rows = self._vector_store.get_ids(MetadataFilters(filters=[of_these]), "text")
        stale = [
            row
            for row in rows
            if row not in written
            and (row in document_ids or self.docstore.get_document_hash(row) is None)
        ]
        self._vector_store.delete_nodes(stale)

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
        copies = self._copies(nodes)
        self._embed_model(_new(copies), show_progress=show_progress)
        # What the model skipped, because its image does not load, still has none.
        return [node for node in copies if node.embedding is not None]

    async def _aget_node_with_embedding(
        self, nodes: Sequence[BaseNode], show_progress: bool = False
    ) -> list[BaseNode]:
        copies = self._copies(nodes)
        await self._embed_model.acall(_new(copies), show_progress=show_progress)
        return [node for node in copies if node.embedding is not None]

    def _copies(self, nodes: Sequence[BaseNode]) -> list[BaseNode]:
        """Copy nodes, so that the caller's stay as they are; objects of index nodes stay here."""
        copies = [node.model_copy() for node in _with_content(nodes)]
        super()._validate_serializable(copies)
        return copies

    def _validate_serializable(self, nodes: Sequence[BaseNode]) -> None:
        # It takes the objects from index nodes: from copies, above, rather than from the caller's.
        pass

    def _delete_from_docstore(self, ref_doc_id: str) -> None:
        # Its hash is all that is there; left, it would keep the document from being added again.
        self._docstore.delete_document(ref_doc_id, raise_error=False)

    async def _adelete_from_docstore(self, ref_doc_id: str) -> None:
        await self._docstore.adelete_document(ref_doc_id, raise_error=False)


def _around_images(
    transformations: Sequence[TransformComponent],
) -> list[TransformComponent]:
    """Lead what is for texts alone round images."""
    return [
        TextsOnly(one) if isinstance(one, (NodeParser, BaseExtractor)) else one
        for one in transformations
    ]


def _with_content(nodes: Sequence[BaseNode]) -> list[BaseNode]:
    """Leave out what there is nothing to embed of, as LlamaIndex does, and say so."""
    kept = [
        node
        for node in nodes
        if node.embedding is not None
        or is_image_node(node)
        or node.get_content(MetadataMode.EMBED).strip()
    ]
    if len(kept) < len(nodes):
        logger.warning("left out %d nodes without a text or an image", len(nodes) - len(kept))
    return kept


def _new(nodes: Sequence[BaseNode]) -> list[BaseNode]:
    return [node for node in nodes if node.embedding is None]
