"""The store under a public suite: LangChain's tests of what any vector store has to do."""

import numpy as np
import pytest
from by_hand import MODEL, ask
from llama_index.core.schema import MetadataMode, TextNode

pytest.importorskip("langchain_tests", reason="no public suite: pip install langchain-tests")

from langchain_core.documents import Document
from langchain_core.vectorstores import VectorStore
from langchain_tests.integration_tests.vectorstores import (
    EMBEDDING_SIZE,
    VectorStoreIntegrationTests,
)

from llama_index_clip_ext import create_vector_store


class Adapter(VectorStore):
    """LangChain's words for what our store does."""

    def __init__(self, store, embedding):
        self.store, self.embedding = store, embedding

    @property
    def embeddings(self):
        return self.embedding

    def _unit(self, text):
        row = np.array(self.embedding.embed_query(text))
        return (row / np.linalg.norm(row)).tolist()

    def add_texts(self, texts, metadatas=None, *, ids=None, **kwargs):
        nodes = [TextNode(text=text, embedding=self._unit(text)) for text in texts]
        for node, metadata, node_id in zip(
            nodes, metadatas or [{}] * len(nodes), ids or [None] * len(nodes), strict=True
        ):
            node.metadata = metadata or {}
            node.id_ = node_id or node.id_
        return self.store.add(nodes)

    def similarity_search(self, query, k=4, **kwargs):
        return list(map(_document, self.store.query(ask(self._unit(query), k)).nodes))

    def get_by_ids(self, ids, /):
        return list(map(_document, self.store.get_nodes(ids)))

    def delete(self, ids=None, **kwargs):
        return self.store.delete_nodes(ids) is not None

    @classmethod
    def from_texts(cls, texts, embedding, metadatas=None, **kwargs):
        raise NotImplementedError


def _document(node):
    text = node.get_content(MetadataMode.NONE)
    return Document(page_content=text, metadata=node.metadata, id=node.node_id)


class TestOnMilvusLite(VectorStoreIntegrationTests):
    @pytest.fixture
    def vectorstore(self, tmp_path):
        with create_vector_store(MODEL.but(dim=EMBEDDING_SIZE), uri=tmp_path / "a.db") as store:
            yield Adapter(store, self.get_embeddings())


@pytest.mark.long
class TestOnAServer(VectorStoreIntegrationTests):
    @pytest.fixture
    def vectorstore(self, server):
        model = MODEL.but(dim=EMBEDDING_SIZE)
        with create_vector_store(model, uri=server, collection_name="langchain") as store:
            store.clear()
            yield Adapter(store, self.get_embeddings())
