"""One retriever over two collections of the same pictures: CLIP's and Chinese-CLIP's."""

from __future__ import annotations

import asyncio
import logging
import os
from functools import partial
from typing import Literal, TypeAlias

from llama_index.core.base.base_retriever import BaseRetriever
from llama_index.core.schema import NodeWithScore, QueryBundle
from typing_extensions import Unpack

from .background import read_in_own_thread
from .collection import DEFAULT_URI
from .dual_encoder import DualEncoderEmbedding
from .fusion import reciprocal_rank_fusion
from .retriever import CLIPRetriever, RetrieverOptions, create_retriever
from .scores import annotate
from .scripts import cjk_share
from .search import BY_COSINE
from .signatures import show_options
from .sources import ImageSource, reusable
from .store import create_vector_store

logger = logging.getLogger(__name__)

Routing: TypeAlias = Literal["script", "both"]

_COLLECTION_NAMES = ("clip_ext_en", "clip_ext_zh")


def create_bilingual_retriever(
    english: DualEncoderEmbedding,
    chinese: DualEncoderEmbedding,
    *,
    uri: str | os.PathLike[str] = DEFAULT_URI,
    token: str = "",
    db_name: str = "",
    collection_names: tuple[str, str] = _COLLECTION_NAMES,
    routing: Routing = "script",
    **options: Unpack[RetrieverOptions],
) -> BilingualRetriever:
    """Open, or make, a collection of each model in one database, and a retriever over both.

    Args:
        english: The model for English, such as ``CLIPEmbedding("clip-ViT-B-32")``.
        chinese: The model for Chinese, such as ``ChineseCLIPEmbedding("Chinese-CLIP-ViT-L")``.
        uri: As in `create_vector_store`, like ``token`` and ``db_name``.
        token: As there.
        db_name: As there.
        collection_names: Of the English and of the Chinese collection. Both are to be filled with
            the same pictures, by `ingest_images`.
        routing: As in `BilingualRetriever`.
        **options: Those of `CLIPRetriever`, for both.

    Returns:
        The retriever; close it, or use it in a ``with`` statement.

    Raises:
        EmbeddingSpaceMismatchError: If a collection holds vectors of another model.
        StoreError: If the database cannot be opened.
        ValueError: If both are to be one collection, or an option is impossible.

    Example:
        ``create_bilingual_retriever(clip, chinese_clip, uri="photos.db").retrieve("红色圆形")``
    """
    if collection_names[0] == collection_names[1]:
        raise ValueError(f"collection_names are {collection_names}, expected two different names")
    stores = []
    try:
        retrievers = []
        for embed_model, name in zip((english, chinese), collection_names, strict=True):
            store = create_vector_store(
                embed_model, uri=uri, token=token, db_name=db_name, collection_name=name
            )
            stores.append(store)
            retrievers.append(create_retriever(embed_model, store, **options))
        return BilingualRetriever(retrievers[0], retrievers[1], routing=routing)
    except BaseException:
        for store in stores:
            store.close()
        raise


class BilingualRetriever(BaseRetriever):
    """Asks CLIP in English and Chinese-CLIP in Chinese; `create_bilingual_retriever` makes one.

    Args:
        english: Over the English model's collection; answers for pictures, too.
        chinese: Over the Chinese model's collection of the same pictures.
        routing: ``"script"`` sends a text with any Chinese, Japanese or Korean character to the
            Chinese model, which has read English words among Chinese ones, and all else to the
            English model, which has read no Chinese. ``"both"`` asks both models, but for a Chinese
            text not one that reads English only, and fuses the two results by rank: a node's score
            is then that of the fusion (where one model is asked alone, its own), and its metadata
            holds the ``retrieval_similarity`` (the raw cosine) to the first model that found it.
    """

    def __init__(
        self, english: CLIPRetriever, chinese: CLIPRetriever, *, routing: Routing = "script"
    ) -> None:
        if routing not in ("script", "both"):
            raise ValueError(f"routing is {routing!r}, expected 'script' or 'both'")
        super().__init__(callback_manager=english.callback_manager)
        self.english = english
        self.chinese = chinese
        self.routing = routing

    def retrieve_image(
        self, image: ImageSource, *, exclude_self: bool = False
    ) -> list[NodeWithScore]:
        """Find what is like an image; see `CLIPRetriever.retrieve_image`."""
        asked = self._asked("")
        image = reusable(image, self.english.embed_model.allow_urls)
        return self._fuse(
            asked, [one.retrieve_image(image, exclude_self=exclude_self) for one in asked]
        )

    async def aretrieve_image(
        self, image: ImageSource, *, exclude_self: bool = False
    ) -> list[NodeWithScore]:
        """Do what `retrieve_image` does, off the event loop."""
        asked = self._asked("")
        image = await read_in_own_thread(
            partial(reusable, image, self.english.embed_model.allow_urls)
        )
        answers = [one.aretrieve_image(image, exclude_self=exclude_self) for one in asked]
        rankings = await asyncio.gather(*answers)
        return await read_in_own_thread(partial(self._fuse, asked, rankings))

    def close(self) -> None:
        """Close both stores."""
        self.english.vector_store.close()
        self.chinese.vector_store.close()

    def __enter__(self) -> BilingualRetriever:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def _retrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        _refuse_embedding(query_bundle)
        asked = self._asked(query_bundle.query_str)
        return self._fuse(asked, [one.retrieve(query_bundle) for one in asked])

    async def _aretrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        _refuse_embedding(query_bundle)
        asked = self._asked(query_bundle.query_str)
        rankings = await asyncio.gather(*(one.aretrieve(query_bundle) for one in asked))
        return await read_in_own_thread(partial(self._fuse, asked, rankings))

    def _asked(self, text: str) -> list[CLIPRetriever]:
        first, second = self.english, self.chinese
        if cjk_share(text):
            first, second = second, first
        if self.routing == "both" and second.embed_model.encoder.reads(text):
            return [first, second]
        return [first]

    def _fuse(
        self, asked: list[CLIPRetriever], rankings: list[list[NodeWithScore]]
    ) -> list[NodeWithScore]:
        for one, ranking in zip(asked, rankings, strict=True):
            if not ranking and not one.vector_store.count():
                logger.warning(
                    "collection %r is empty: ingest the pictures by its model, too",
                    one.vector_store.collection_name,
                )
        if len(rankings) == 1:
            return rankings[0]
        for one, ranking in zip(asked, rankings, strict=True):
            if one.modality != "both":  # That has fused, and noted them, already.
                by_cosine = one.vector_store_query_mode in BY_COSINE and not one.calibrated
                annotate(ranking, one.modality, has_cosines=by_cosine)
        # An image has the same id in both collections, because ids are made of paths.
        fused = reciprocal_rank_fusion(rankings, key=lambda hit: hit.node.node_id)
        hits = [NodeWithScore(node=hit.node, score=score) for hit, score in fused]
        return hits[: self.english.similarity_top_k]


def _refuse_embedding(bundle: QueryBundle) -> None:
    if bundle.embedding is not None:
        raise ValueError(
            "the QueryBundle carries an embedding, which is one model's: ask .english or .chinese "
            "with it, or this retriever with the text or image"
        )


show_options(create_bilingual_retriever, CLIPRetriever)
