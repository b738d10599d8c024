"""LlamaIndex's vector store index, with images embedded as images."""

from __future__ import annotations

import inspect
import logging
import threading
from collections.abc import Callable, Sequence
from typing import Any

from llama_index.core import StorageContext, VectorStoreIndex
from llama_index.core.base.base_query_engine import BaseQueryEngine
from llama_index.core.chat_engine import (
    CondensePlusContextChatEngine,
    CondenseQuestionChatEngine,
    ContextChatEngine,
    SimpleChatEngine,
)
from llama_index.core.chat_engine.multi_modal_condense_plus_context import (
    MultiModalCondensePlusContextChatEngine,
)
from llama_index.core.chat_engine.multi_modal_context import MultiModalContextChatEngine
from llama_index.core.chat_engine.types import BaseChatEngine, ChatMode
from llama_index.core.data_structs.data_structs import IndexDict
from llama_index.core.extractors import BaseExtractor
from llama_index.core.ingestion import run_transformations
from llama_index.core.llms.utils import LLMType, resolve_llm
from llama_index.core.node_parser import NodeParser
from llama_index.core.query_engine import RetrieverQueryEngine
from llama_index.core.schema import (
    BaseNode,
    Document,
    IndexNode,
    MetadataMode,
    TransformComponent,
)
from llama_index.core.utils import iter_batch
from llama_index.core.vector_stores.types import FilterOperator, MetadataFilter, MetadataFilters
from typing_extensions import Unpack

from .background import write_in_own_thread
from .collection import DEFAULT_URI
from .dual_encoder import DualEncoderEmbedding
from .index_struct import CLIPIndexDict
from .metadata import checked_metadata
from .nodes import is_image_node
from .retriever import CLIPRetriever, RetrieverOptions, create_retriever
from .signatures import show_options
from .store import CLIPMilvusVectorStore, check_pair, create_vector_store
from .transforms import ContextSplitter, TextsOnly

logger = logging.getLogger(__name__)

_BATCH = 500  # Documents that are embedded, written and noted together.
_RETRIEVER_OPTIONS = RetrieverOptions.__optional_keys__
_MULTIMODAL = "multimodal"

# The class that makes the engine of each mode, and the one that shows an LLM the images, too.
_CHAT_ENGINES: dict[ChatMode, tuple[Any, Any]] = {
    ChatMode.CONTEXT: (ContextChatEngine, MultiModalContextChatEngine),
    ChatMode.CONDENSE_PLUS_CONTEXT: (
        CondensePlusContextChatEngine,
        MultiModalCondensePlusContextChatEngine,
    ),
    ChatMode.BEST: (CondensePlusContextChatEngine, MultiModalCondensePlusContextChatEngine),
    # These two have the query engine's images, and none.
    ChatMode.CONDENSE_QUESTION: (CondenseQuestionChatEngine, CondenseQuestionChatEngine),
    ChatMode.SIMPLE: (SimpleChatEngine, None),
}


class CLIPVectorStoreIndex(VectorStoreIndex):
    """A ``VectorStoreIndex`` over images and texts that embeds each by its own tower.

    LlamaIndex's own embeds the text of every node, also of images, leaves out images without a
    text, and retrieves images and texts in one list by score. Here ``embed_model(nodes)`` embeds,
    the Milvus store holds everything, and `CLIPRetriever` retrieves: images and texts, fused by
    rank, unless ``modality`` says otherwise. Nodes that have embeddings keep them. ``Settings`` is
    neither read nor set.

    ``load_index_from_storage(storage_context, embed_model=...)`` brings it back, in a process that
    has imported this package before.

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
        transformations: What documents go through, such as a ``SentenceSplitter``; ``None`` splits
            texts that are longer than the model reads, and an empty list splits none. Images pass
            node parsers and extractors by: those would make texts of them, or several copies of
            one image. All else, such as an `ImageCaptioner`, is given images, too.
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

    index_struct_cls = CLIPIndexDict

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
        if transformations is None:
            transformations = [TextsOnly(ContextSplitter(embed_model))]
        # Before anything is embedded.
        check_pair(embed_model, _store_of(storage_context))
        super().__init__(
            nodes=list(nodes) if nodes is not None else None,
            embed_model=embed_model,
            storage_context=storage_context,
            objects=[node.model_copy() for node in objects] if objects is not None else None,
            index_struct=index_struct,
            # For no list, and for an empty one, LlamaIndex takes those of Settings.
            transformations=_around_images(transformations) or [TextsOnly()],
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
        storage_context: StorageContext | None = None,
        *,
        embed_model: DualEncoderEmbedding,
        transformations: Sequence[TransformComponent] | None = None,
        show_progress: bool = False,
    ) -> CLIPVectorStoreIndex:
        """Make an index of documents; see the class for the arguments.

        Without a storage context, they go into the default collection of Milvus Lite in the current
        folder; what it holds already stays, and is found, too.
        """
        if storage_context is None:
            store = create_vector_store(embed_model, uri=DEFAULT_URI)
            logger.info("storing in %s, collection %r", store.uri, store.collection_name)
            storage_context = StorageContext.from_defaults(vector_store=store)
        index = cls(
            [],
            embed_model=embed_model,
            storage_context=storage_context,
            transformations=transformations,
            show_progress=show_progress,
        )
        index._store_documents(documents)
        return index

    def as_retriever(self, **options: Unpack[RetrieverOptions]) -> CLIPRetriever:
        """Make a retriever of images and texts, fused by rank.

        Args:
            **options: Those of `CLIPRetriever`; ``modality`` is ``"both"`` where it is left out.

        Raises:
            TypeError: If there is no such option.
        """
        options.setdefault("modality", "both")
        retriever = create_retriever(self._embed_model, self._vector_store, **options)
        retriever.object_map = self._object_map
        return retriever

    # LlamaIndex hands all keywords of its engines to as_retriever, too, which would have to pass
    # over what it does not know.

    def as_query_engine(self, llm: LLMType | None = None, **kwargs: Any) -> BaseQueryEngine:
        """Make a query engine; ``multimodal=True`` shows the LLM the images.

        Args:
            llm: LlamaIndex's.
            **kwargs: Options of `CLIPRetriever` and of ``RetrieverQueryEngine.from_args``.

        Raises:
            TypeError: If neither has an option of that name.
        """
        of_retriever, of_engine = _split(kwargs, RetrieverQueryEngine.from_args)
        if llm is not None:
            of_engine["llm"] = resolve_llm(llm, callback_manager=self._callback_manager)
        return RetrieverQueryEngine.from_args(self.as_retriever(**of_retriever), **of_engine)

    def as_chat_engine(
        self, chat_mode: ChatMode = ChatMode.BEST, llm: LLMType | None = None, **kwargs: Any
    ) -> BaseChatEngine:
        """Make a chat engine; ``multimodal=True`` shows the LLM the images.

        Args:
            chat_mode: LlamaIndex's.
            llm: LlamaIndex's.
            **kwargs: Options of `CLIPRetriever`, and of the engine of that mode.

        Raises:
            TypeError: If neither has an option of that name.
            ValueError: If there is no such mode, or it shows no images though they are wanted.
        """
        if chat_mode not in _CHAT_ENGINES:
            known = ", ".join(repr(mode.value) for mode in _CHAT_ENGINES)
            raise ValueError(f"chat_mode is {chat_mode!r}, expected one of {known}")
        is_multimodal = bool(kwargs.pop(_MULTIMODAL, False))
        engine = _CHAT_ENGINES[ChatMode(chat_mode)][is_multimodal]
        if engine is None:
            raise ValueError(f"chat_mode={chat_mode!r} retrieves nothing, so that it has no images")
        name = "multi_modal_llm" if "multi_modal_llm" in _names(engine.from_defaults) else "llm"
        llm = None if llm is None else resolve_llm(llm, callback_manager=self._callback_manager)
        if engine is CondenseQuestionChatEngine:
            of_chat = {key: kwargs.pop(key) for key in _names(engine.from_defaults) & set(kwargs)}
            asked = self.as_query_engine(llm=llm, multimodal=is_multimodal, **kwargs)
            return CondenseQuestionChatEngine.from_defaults(query_engine=asked, llm=llm, **of_chat)
        of_retriever, of_engine = _split(kwargs, engine.from_defaults)
        if llm is not None:
            of_engine[name] = llm
        if engine is SimpleChatEngine:
            if of_retriever:
                option = next(iter(of_retriever))
                raise TypeError(f"{option} is a retriever's, and chat_mode={chat_mode!r} has none")
            return SimpleChatEngine.from_defaults(**of_engine)
        made: BaseChatEngine = engine.from_defaults(
            retriever=self.as_retriever(**of_retriever), **of_engine
        )
        return made

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
        """Do what `insert` does, off the event loop; a cancel returns once it has ended."""
        await write_in_own_thread(lambda: self.insert(document, **insert_kwargs))

    def update_ref_doc(self, document: Document, **update_kwargs: Any) -> None:
        """Embed and store a document, in place of what is stored of it.

        Args:
            document: An image or a text.
            **update_kwargs: LlamaIndex's ``insert_kwargs``, which are passed on to the
                transformations, and ``delete_kwargs``, which have no use here.

        Raises:
            TypeError: If it is another.
        """
        insert_kwargs = _insert_kwargs(update_kwargs)
        with self._callback_manager.as_trace("update_ref_doc"):
            self._store_documents([document], **insert_kwargs)

    async def aupdate_ref_doc(self, document: Document, **update_kwargs: Any) -> None:
        """Do what `update_ref_doc` does, off the event loop; a cancel returns once it has ended."""
        await write_in_own_thread(lambda: self.update_ref_doc(document, **update_kwargs))

    def refresh_ref_docs(self, documents: Sequence[Document], **update_kwargs: Any) -> list[bool]:
        """Embed and store documents that are new, or have changed since the docstore saw them.

        Args:
            documents: Images and texts. Of those with the same id, the last counts.
            **update_kwargs: LlamaIndex's ``insert_kwargs``, which are passed on to the
                transformations, and ``update_kwargs``, which have no use here.

        Returns:
            For each document whether it was stored now.

        Raises:
            TypeError: If it is another keyword.
        """
        return self._refresh(documents, threading.Event(), **_insert_kwargs(update_kwargs))

    def _refresh(
        self, documents: Sequence[Document], stop: threading.Event, **insert_kwargs: Any
    ) -> list[bool]:
        with self._callback_manager.as_trace("refresh_ref_docs"):
            latest = {document.id_: document for document in documents}
            stored = self._store_documents(
                [
                    document
                    for document in latest.values()
                    if _hash_of(document) != self.docstore.get_document_hash(document.id_)
                ],
                stop,
                **insert_kwargs,
            )
        return [document.id_ in stored for document in documents]

    async def arefresh_ref_docs(
        self, documents: Sequence[Document], **update_kwargs: Any
    ) -> list[bool]:
        """Do what `refresh_ref_docs` does, off the event loop.

        Cancelled, it stops after a batch of documents, and has stopped when the cancel returns.
        """
        stop = threading.Event()
        insert_kwargs = _insert_kwargs(update_kwargs)
        return await write_in_own_thread(
            lambda: self._refresh(documents, stop, **insert_kwargs), stop=stop.set
        )

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

    def _store_documents(
        self, documents: Sequence[Document], stop: threading.Event | None = None, **kwargs: Any
    ) -> set[str]:
        """Store documents, each in place of what was stored of it; return the ids of those stored.

        One with an image that the model left out is not among them, and keeps its rows.
        """
        latest = {document.id_: document for document in documents}
        stored: set[str] = set()
        for batch in iter_batch(list(latest.values()), _BATCH):
            if stop and stop.is_set():
                break
            stored.update(self._store_batch({document.id_: document for document in batch}, kwargs))
        return stored

    def _store_batch(self, documents: dict[str, Document], kwargs: dict[str, Any]) -> list[str]:
        # Before the transformations, which may change a document.
        hashes = {id_: _hash_of(document) for id_, document in documents.items()}
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
            embedded = self._get_node_with_embedding(batch, show_progress)
            self._vector_store.add(embedded, **insert_kwargs)

    async def _async_add_nodes_to_index(
        self,
        index_struct: IndexDict,
        nodes: Sequence[BaseNode],
        show_progress: bool = False,
        **insert_kwargs: Any,
    ) -> None:
        for batch in iter_batch(nodes, self._insert_batch_size):
            embedded = await self._aget_node_with_embedding(batch, show_progress)
            await self._vector_store.async_add(embedded, **insert_kwargs)

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


show_options(CLIPVectorStoreIndex.as_retriever, CLIPRetriever, modality="both")


def _names(function: Callable[..., Any]) -> set[str]:
    """Return the options that a function names."""
    parameters = inspect.signature(function).parameters.values()
    return {one.name for one in parameters if one.kind is not inspect.Parameter.VAR_KEYWORD}


def _insert_kwargs(kwargs: dict[str, Any]) -> dict[str, Any]:
    """Return what of an update's keywords is for inserting, as LlamaIndex nests them.

    Raises:
        TypeError: If there is a keyword that LlamaIndex does not have.
    """
    unknown = sorted(set(kwargs) - {"insert_kwargs", "delete_kwargs", "update_kwargs"})
    if unknown:
        raise TypeError(f"unexpected keyword argument {unknown[0]!r}")
    return dict(kwargs.get("insert_kwargs") or {})


def _split(
    kwargs: dict[str, Any], engine: Callable[..., Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Split keywords into those of a retriever and of an engine; what both have is the engine's.

    Raises:
        TypeError: If neither names one.
    """
    of_engine = {key: value for key, value in kwargs.items() if key in _names(engine)}
    rest = {key: value for key, value in kwargs.items() if key not in of_engine}
    unknown = sorted(set(rest) - _RETRIEVER_OPTIONS)
    if unknown:
        known = ", ".join(sorted(_RETRIEVER_OPTIONS | _names(engine)))
        raise TypeError(f"unexpected keyword argument {unknown[0]!r}, expected one of {known}")
    return rest, of_engine


def _around_images(
    transformations: Sequence[TransformComponent],
) -> list[TransformComponent]:
    """Lead what is for texts alone round images."""
    return [
        TextsOnly(one) if isinstance(one, (NodeParser, BaseExtractor)) else one
        for one in transformations
    ]


def _store_of(storage_context: StorageContext) -> Any:
    """Return the vector store of a storage context.

    Raises:
        ValueError: If it has none, as one that was made of a folder alone.
    """
    try:
        return storage_context.vector_store
    except KeyError as err:
        raise ValueError(
            "the storage context has no vector store, because Milvus keeps its vectors itself: "
            "StorageContext.from_defaults(persist_dir=..., "
            "vector_store=create_vector_store(embed_model, uri=...))"
        ) from err


def _hash_of(document: BaseNode) -> str:
    """Return LlamaIndex's hash of a document, of the metadata as they are stored.

    Of a set, say, it would be another in each process.
    """
    metadata = checked_metadata(document.metadata)
    return document.model_copy(update={"metadata": metadata}).hash


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
