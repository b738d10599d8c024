"""Text, image and composed queries -> scored nodes."""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Literal, TypeAlias, Union

from llama_index.core.base.base_multi_modal_retriever import MultiModalRetriever
from llama_index.core.base.embeddings.base import Embedding, mean_agg
from llama_index.core.callbacks import CallbackManager
from llama_index.core.image_retriever import BaseImageRetriever
from llama_index.core.postprocessor import SimilarityPostprocessor
from llama_index.core.postprocessor.types import BaseNodePostprocessor
from llama_index.core.schema import NodeWithScore, QueryBundle, QueryType
from llama_index.core.vector_stores.types import (
    FilterOperator,
    MetadataFilter,
    MetadataFilters,
    VectorStoreQuery,
    VectorStoreQueryMode,
    VectorStoreQueryResult,
)
from tqdm.auto import tqdm
from typing_extensions import TypedDict, Unpack

from .background import read_in_own_thread
from .dual_encoder import DualEncoderEmbedding
from .errors import ImageLoadError
from .feedback import (
    ROCCHIO_WEIGHTS,
    file_hash,
    find_examples,
    identities,
    like_bundle,
)
from .fusion import FIRST_RANK_SCORE, reciprocal_rank_fusion
from .queries import AskedBy, asked_by
from .rows import Modality
from .scores import annotate, calibrate, check_cutoffs, cut_off
from .search import (
    BY_COSINE,
    BY_WORDS,
    MAX_TOP_K,
    check_alpha,
    check_full_text,
    check_mmr_threshold,
    check_mode,
    check_top_k,
)
from .signatures import show_options
from .sources import ImageSource, describe_source, reusable
from .store import CLIPMilvusVectorStore, check_ids, check_pair

logger = logging.getLogger(__name__)

Wanted: TypeAlias = Union[Modality, Literal["both"]]

# A cosine that a text and an image hardly ever reach: CLIP's good hits score 0.2 to 0.4.
_HIGH_COSINE = 0.5

_BATCH = 256  # Queries that are embedded and searched with together; a progress bar's step.


class RetrieverOptions(TypedDict, total=False):
    """The options of `create_retriever`, for those who pass them on."""

    similarity_top_k: int
    filters: MetadataFilters | None
    node_ids: Sequence[str] | None
    doc_ids: Sequence[str] | None
    modality: Wanted
    vector_store_query_mode: VectorStoreQueryMode | str
    alpha: float | None
    mmr_threshold: float | None
    similarity_cutoff: float | None
    relative_cutoff: float | None
    calibrated: bool
    node_postprocessors: Sequence[BaseNodePostprocessor]
    callback_manager: CallbackManager | None


def create_retriever(
    embed_model: DualEncoderEmbedding,
    vector_store: CLIPMilvusVectorStore,
    **options: Unpack[RetrieverOptions],
) -> CLIPRetriever:
    """Make a retriever over a store; an existing collection needs nothing more.

    Args:
        embed_model: The model that the store was made for.
        vector_store: The store, as `create_vector_store` returns it.
        **options: Those of `CLIPRetriever`.

    Raises:
        EmbeddingSpaceMismatchError: If the store holds vectors of another model.
        ValueError: If an option is impossible.

    Example:
        ``create_retriever(embed_model, vector_store, similarity_top_k=3).retrieve("a red circle")``
    """
    return CLIPRetriever(embed_model, vector_store, **options)


class CLIPRetriever(MultiModalRetriever):
    """Finds images, texts, or both, by a text, an image, or a mix; `create_retriever` makes one.

    A query is a text, or a ``QueryBundle`` with a text, an ``image_path``, both (then they count
    alike), or an ``embedding``, such as `DualEncoderEmbedding.compose_query` makes; it is left as
    it is. Scores are raw cosines, unless it is said otherwise below; higher is better. Each node's
    metadata holds its ``retrieval_modality`` and, where it was found by vectors and the score is
    another, the raw cosine as ``retrieval_similarity``.

    Args:
        embed_model: The model that the store was made for.
        vector_store: The store, as `create_vector_store` returns it.
        similarity_top_k: Hits per query, at most.
        filters: Conditions on the metadata of hits.
        node_ids: Find these nodes only; of an empty list, nothing.
        doc_ids: Find nodes of these documents only, likewise.
        modality: What to find: ``"image"``, ``"text"``, or ``"both"``. CLIP scores text to text far
            above text to image, so both are searched apart and fused by rank: the score is that of
            the fusion.
        vector_store_query_mode: As LlamaIndex names them: ``"default"`` by vectors, ``"mmr"`` for
            less alike hits, ``"text_search"`` by the words of captions (the query's, whatever else
            its embedding was composed of), ``"hybrid"`` by both. The latter two need a store made
            with ``full_text``.
        alpha: How ``"hybrid"`` fuses: ``None`` by rank; a number by the scores, scaled alike, with
            this weight of the vectors, from 0 (words only) to 1. By scores, a caption that alone
            has a rare word comes first; by rank, what both lists have.
        mmr_threshold: What ``"mmr"`` weighs by, from 0 (diverse) to 1 (similar to the query);
            ``None`` is LlamaIndex's.
        similarity_cutoff: Leave out hits that score less. A good text-to-image hit scores 0.2 to
            0.4 with CLIP, an image-to-image one far more: no one number suits both, unless scores
            are calibrated. Where images and texts are fused, this is done before.
        relative_cutoff: Leave out hits that score less than this share of the best, from 0 to 1;
            before a fusion, likewise.
        calibrated: Score by standard deviations above what unrelated pairs of this collection
            score, as `calibrate_scores` has measured; then one cutoff means the same whatever is
            asked by.
        node_postprocessors: LlamaIndex's, applied to the hits in order.
        callback_manager: LlamaIndex's.

    Raises:
        EmbeddingSpaceMismatchError: If the store holds vectors of another model.
        ValueError: If an option is impossible.
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
        similarity_top_k: int = 5,
        filters: MetadataFilters | None = None,
        node_ids: Sequence[str] | None = None,
        doc_ids: Sequence[str] | None = None,
        modality: Wanted = "image",
        vector_store_query_mode: VectorStoreQueryMode | str = VectorStoreQueryMode.DEFAULT,
        alpha: float | None = None,
        mmr_threshold: float | None = None,
        similarity_cutoff: float | None = None,
        relative_cutoff: float | None = None,
        calibrated: bool = False,
        node_postprocessors: Sequence[BaseNodePostprocessor] = (),
        callback_manager: CallbackManager | None = None,
    ) -> None:
        if modality not in ("image", "text", "both"):
            raise ValueError(f"modality is {modality!r}, expected 'image', 'text' or 'both'")
        check_pair(embed_model, vector_store)
        similarity_top_k = check_top_k("similarity_top_k", similarity_top_k)
        mode = check_mode(vector_store_query_mode)
        check_alpha(alpha)
        check_mmr_threshold(mmr_threshold)
        _check_of_mode("alpha", alpha, mode, VectorStoreQueryMode.HYBRID)
        _check_of_mode("mmr_threshold", mmr_threshold, mode, VectorStoreQueryMode.MMR)
        check_cutoffs(similarity_cutoff, relative_cutoff, calibrated, mode in BY_COSINE)
        if mode not in BY_COSINE:
            check_full_text(vector_store.full_text, vector_store.collection_name)
        vector_store.check_filters(filters)
        node_ids, doc_ids = (
            None if ids is None else check_ids(name, ids)
            for name, ids in (("node_ids", node_ids), ("doc_ids", doc_ids))
        )
        if calibrated and not (vector_store.passport and vector_store.passport.calibration):
            raise ValueError(
                f"the scores of collection {vector_store.collection_name!r} are not calibrated: "
                "call calibrate_scores(embed_model, vector_store) once"
            )
        if isinstance(node_postprocessors, BaseNodePostprocessor):
            raise TypeError("node_postprocessors is one postprocessor, expected a list of them")
        by_cosine = mode in BY_COSINE
        _warn_of_high_cutoff(
            node_postprocessors,
            highest_rank_score=_highest_rank_score(modality, mode, alpha),
            has_low_cosines=by_cosine and modality == "image" and not calibrated,
        )
        super().__init__(callback_manager=callback_manager or embed_model.callback_manager)
        self.embed_model = embed_model
        self.vector_store = vector_store
        self.similarity_top_k = similarity_top_k
        self.filters = filters
        self.node_ids = node_ids
        self.doc_ids = doc_ids
        self.modality: Wanted = modality
        self.vector_store_query_mode = mode
        self.alpha = alpha
        self.mmr_threshold = mmr_threshold
        self.similarity_cutoff = similarity_cutoff
        self.relative_cutoff = relative_cutoff
        self.calibrated = calibrated
        self.node_postprocessors = list(node_postprocessors)
        self._excluded_ids: frozenset[str] = frozenset()
        self._found: list[VectorStoreQueryResult] | None = None

    def retrieve_many(
        self, queries: Sequence[QueryType], *, show_progress: bool = False
    ) -> list[list[NodeWithScore]]:
        """Answer many queries as `retrieve` answers each, several times faster.

        Texts are embedded in batches and so are images, and Milvus is asked by all of them in one
        call, or in as few as its limits allow. One by one go queries of a text and an image, which
        are composed first, and all queries by words (``"text_search"``, ``"hybrid"``). LlamaIndex's
        observers are told of each query by itself, after what was embedded for all.

        Args:
            queries: Texts and bundles, as `retrieve` takes them.
            show_progress: Show a progress bar.

        Returns:
            The hits of each query, in order.

        Raises:
            ImageLoadError: If an image does not load; carries the query's index.
            TypeError: If ``queries`` is one query.
            ValueError: If a query is empty.
        """
        if isinstance(queries, (str, QueryBundle)):
            raise TypeError(f"queries is one {type(queries).__name__}, expected a list of queries")
        answers: list[list[NodeWithScore]] = []
        with tqdm(
            desc="Retrieving", total=len(queries), unit="query", disable=not show_progress
        ) as bar:
            for start in range(0, len(queries), _BATCH):
                batch = queries[start : start + _BATCH]
                if self.vector_store_query_mode in BY_COSINE:
                    answers += self._retrieve_together(batch, start)
                else:
                    answers += map(self.retrieve, batch)
                bar.update(len(batch))
        return answers

    async def aretrieve_many(
        self, queries: Sequence[QueryType], *, show_progress: bool = False
    ) -> list[list[NodeWithScore]]:
        """Do what `retrieve_many` does, off the event loop."""
        return await read_in_own_thread(
            lambda: self.retrieve_many(queries, show_progress=show_progress)
        )

    def retrieve_image(
        self, image: ImageSource, *, exclude_self: bool = False
    ) -> list[NodeWithScore]:
        """Find what is like an image.

        Args:
            image: A path, bytes, stream, fsspec file, PIL image, array, data URI, base64 text, a
                URL that the model's ``allow_urls`` has, or a node.
            exclude_self: Leave out the image itself, and its copies, by the hash of their content.
                That is the file's: a decoded picture no longer tells.

        Raises:
            ImageNotFoundError: If the path does not exist.
            ImageLoadError: If it is no picture.
            ValueError: If ``exclude_self`` is asked for of a decoded picture.
        """
        image = reusable(image, self.embed_model.allow_urls)
        retriever = self._excluding([file_hash(image)]) if exclude_self else self
        embedding = self.embed_model.get_image_embedding(image)
        return retriever.retrieve(_image_bundle(image, embedding))

    async def aretrieve_image(
        self, image: ImageSource, *, exclude_self: bool = False
    ) -> list[NodeWithScore]:
        """Do what `retrieve_image` does, off the event loop."""
        image = await read_in_own_thread(partial(reusable, image, self.embed_model.allow_urls))
        retriever = self
        if exclude_self:
            retriever = self._excluding([await read_in_own_thread(partial(file_hash, image))])
        embedding = await self.embed_model.aget_image_embedding(image)
        return await retriever.aretrieve(_image_bundle(image, embedding))

    def retrieve_like(
        self,
        more: Sequence[str | ImageSource] = (),
        less: Sequence[str | ImageSource] = (),
        *,
        query: str | None = None,
        weights: tuple[float, float, float] = ROCCHIO_WEIGHTS,
    ) -> list[NodeWithScore]:
        """Find more of what was good in a result, and less of what was not.

        The examples themselves are left out: those that are stored, and files by their content.

        Args:
            more: What the hits should be like: ids of stored nodes, nodes as they were retrieved,
                or images. A string is an id: name a file by a ``Path``.
            less: What they should not be like.
            query: The text that was asked with, to stay near it.
            weights: Of the query, of the mean of ``more`` and of the mean of ``less``: Rocchio's
                alpha, beta and gamma.

        Raises:
            EmbeddingError: If the examples cancel each other out.
            ImageLoadError: If an image does not load.
            ValueError: If there are no examples, or an id is not in the collection.
        """
        self._refuse_words_alone()
        examples = [
            find_examples(items, self.embed_model, self.vector_store) for items in (more, less)
        ]
        embedding = self._embed_text(QueryBundle(query)) if query else None
        bundle = like_bundle(query, embedding, examples, weights)
        return self._excluding(*identities(examples)).retrieve(bundle)

    async def aretrieve_like(
        self,
        more: Sequence[str | ImageSource] = (),
        less: Sequence[str | ImageSource] = (),
        *,
        query: str | None = None,
        weights: tuple[float, float, float] = ROCCHIO_WEIGHTS,
    ) -> list[NodeWithScore]:
        """Do what `retrieve_like` does, off the event loop."""
        self._refuse_words_alone()
        examples = [
            await read_in_own_thread(
                partial(find_examples, items, self.embed_model, self.vector_store)
            )
            for items in (more, less)
        ]
        embedding = await self._aembed_text(QueryBundle(query)) if query else None
        bundle = like_bundle(query, embedding, examples, weights)
        return await self._excluding(*identities(examples)).aretrieve(bundle)

    def text_retrieve(self, str_or_query_bundle: QueryType) -> list[NodeWithScore]:
        """Find texts by a text; by an image, or an embedding, if the query is that."""
        bundle = _text_bundle(str_or_query_bundle)
        return self._search(self._embed(bundle), bundle, "text")

    async def atext_retrieve(self, str_or_query_bundle: QueryType) -> list[NodeWithScore]:
        """Do what `text_retrieve` does, off the event loop."""
        bundle = _text_bundle(str_or_query_bundle)
        return await self._asearch(await self._aembed(bundle), bundle, "text")

    def _text_to_image_retrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        bundle = _words_of(query_bundle)
        return self._search(self._embed(bundle), bundle, "image")

    async def _atext_to_image_retrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        bundle = _words_of(query_bundle)
        return await self._asearch(await self._aembed(bundle), bundle, "image")

    def _image_to_image_retrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        bundle = _picture_of(query_bundle)
        return self._search(self._embed(bundle), bundle, "image")

    async def _aimage_to_image_retrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        bundle = _picture_of(query_bundle)
        return await self._asearch(await self._aembed(bundle), bundle, "image")

    def _retrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        if self._found is not None:
            return self._fuse(self._found, query_bundle, self.modality)
        return self._search(self._embed(query_bundle), query_bundle, self.modality)

    async def _aretrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        embedding = await self._aembed(query_bundle)
        return await self._asearch(embedding, query_bundle, self.modality)

    def _retrieve_together(
        self, queries: Sequence[QueryType], start: int
    ) -> list[list[NodeWithScore]]:
        """Embed and search with queries together, then go on with each as `retrieve` does."""
        bundles = [QueryBundle(one) if isinstance(one, str) else one for one in queries]
        embeddings = self._embed_many(bundles, start)
        found = [self._query_many(embeddings, one) for one in _modalities(self.modality)]
        answered = copy.copy(self)
        answers = []
        for query, *results in zip(queries, *found, strict=True):
            answered._found = results
            answers.append(answered.retrieve(query))
        return answers

    def _embed_many(self, bundles: Sequence[QueryBundle], start: int) -> list[Embedding]:
        """Embed queries as `_embed` does each; the first is number ``start`` of all."""
        rows = [bundle.embedding for bundle in bundles]
        bare = [place for place, row in enumerate(rows) if row is None]
        texts = {p: _embedding_texts(bundles[p]) for p in bare if not bundles[p].image_path}
        images = [p for p in bare if p not in texts and not bundles[p].query_str.strip()]
        if texts:
            flat = [text for parts in texts.values() for text in parts]
            embedded = iter(self.embed_model.get_text_embedding_batch(flat))
            for place, parts in texts.items():
                rows[place] = mean_agg([next(embedded) for _ in parts])
        if images:
            paths: list[ImageSource] = [str(bundles[place].image_path) for place in images]
            with _numbered([start + place for place in images]):
                pictures = self.embed_model.get_image_embedding_batch(paths)
            for place, picture in zip(images, pictures, strict=True):
                rows[place] = picture
        for place in bare:
            if rows[place] is None:
                with _numbered([start + place]):
                    rows[place] = self._embed(bundles[place])
        return [row for row in rows if row is not None]

    def _embed(self, bundle: QueryBundle) -> Embedding | None:
        if self._is_by_words(bundle) or bundle.embedding is not None:
            return bundle.embedding
        if not bundle.image_path:
            return self._embed_text(bundle)
        if not bundle.query_str.strip():
            return self.embed_model.get_image_embedding(bundle.image_path)
        return self.embed_model.compose_query(
            text=bundle.embedding_strs, image=bundle.image_path
        ).embedding

    async def _aembed(self, bundle: QueryBundle) -> Embedding | None:
        if self._is_by_words(bundle) or bundle.embedding is not None:
            return bundle.embedding
        if not bundle.image_path:
            return await self._aembed_text(bundle)
        if not bundle.query_str.strip():
            return await self.embed_model.aget_image_embedding(bundle.image_path)
        composed = await self.embed_model.acompose_query(
            text=bundle.embedding_strs, image=bundle.image_path
        )
        return composed.embedding

    def _embed_text(self, bundle: QueryBundle) -> Embedding:
        return self.embed_model.get_agg_embedding_from_queries(_embedding_texts(bundle))

    async def _aembed_text(self, bundle: QueryBundle) -> Embedding:
        return await self.embed_model.aget_agg_embedding_from_queries(_embedding_texts(bundle))

    def _refuse_words_alone(self) -> None:
        if self.vector_store_query_mode in BY_WORDS:
            raise ValueError("retrieve_like goes by vectors: use 'hybrid' or 'default'")

    def _is_by_words(self, bundle: QueryBundle) -> bool:
        """Whether a query needs no embedding, because only captions' words are searched.

        Raises:
            ValueError: If there is more than words to it, which would be passed over.
        """
        if self.vector_store_query_mode not in BY_WORDS:
            return False
        # An embedding beside a text may be one that LlamaIndex's own retriever has left there.
        if bundle.image_path or not bundle.query_str:
            raise ValueError(
                f"{self.vector_store_query_mode.value!r} asks for words alone; an image, examples, "
                "or an embedding needs 'hybrid' or 'default'"
            )
        return True

    def _search(
        self, embedding: Embedding | None, bundle: QueryBundle, wanted: Wanted
    ) -> list[NodeWithScore]:
        found = [self._query(embedding, bundle, one) for one in _modalities(wanted)]
        return self._fuse(found, bundle, wanted)

    async def _asearch(
        self, embedding: Embedding | None, bundle: QueryBundle, wanted: Wanted
    ) -> list[NodeWithScore]:
        return await self.vector_store.arun(lambda: self._search(embedding, bundle, wanted))

    def _fuse(
        self, found: Sequence[VectorStoreQueryResult], bundle: QueryBundle, wanted: Wanted
    ) -> list[NodeWithScore]:
        """Make one list of hits of what was found, by modality."""
        rankings = [
            self._rank(result, bundle, modality, is_fused=wanted == "both")
            for result, modality in zip(found, _modalities(wanted), strict=True)
        ]
        hits = rankings[0]
        if wanted == "both":
            fused = reciprocal_rank_fusion(rankings, key=lambda hit: hit.node.node_id)
            hits = [NodeWithScore(node=hit.node, score=score) for hit, score in fused]
        hits = hits[: self.similarity_top_k]
        for postprocessor in self.node_postprocessors:
            hits = postprocessor.postprocess_nodes(hits, query_bundle=bundle)
        return hits

    def _query(
        self, embedding: Embedding | None, bundle: QueryBundle, modality: Modality
    ) -> VectorStoreQueryResult:
        if self._finds_nothing():
            return _nothing()
        query = self._store_query(self._mode(bundle))
        query.query_embedding, query.query_str = embedding, bundle.query_str
        return self.vector_store.query(query, modality=modality)

    def _query_many(
        self, embeddings: Sequence[Embedding], modality: Modality
    ) -> list[VectorStoreQueryResult]:
        if self._finds_nothing():
            return [_nothing() for _ in embeddings]
        query = self._store_query(self.vector_store_query_mode)
        return self.vector_store.query_many(query, embeddings, modality=modality)

    def _finds_nothing(self) -> bool:
        # To the store an empty list of node_ids is no condition.
        return [] in (self.node_ids, self.doc_ids)

    def _mode(self, bundle: QueryBundle) -> VectorStoreQueryMode:
        if self.vector_store_query_mode == VectorStoreQueryMode.HYBRID and not bundle.query_str:
            return VectorStoreQueryMode.DEFAULT  # A picture has no words to search for.
        return self.vector_store_query_mode

    def _store_query(self, mode: VectorStoreQueryMode) -> VectorStoreQuery:
        return VectorStoreQuery(
            # Milvus has no more; the examples themselves are then among them.
            similarity_top_k=min(self.similarity_top_k + len(self._excluded_ids), MAX_TOP_K),
            filters=self.filters,
            node_ids=self.node_ids,
            doc_ids=self.doc_ids,
            mode=mode,
            alpha=self.alpha,
            mmr_threshold=self.mmr_threshold,
        )

    def _rank(
        self,
        result: VectorStoreQueryResult,
        bundle: QueryBundle,
        modality: Modality,
        *,
        is_fused: bool,
    ) -> list[NodeWithScore]:
        """Return the hits of one modality with their scores, none below the cutoffs."""
        pairs = zip(result.nodes or [], result.similarities or [], strict=True)
        hits = [
            NodeWithScore(node=node, score=score)
            for node, score in pairs
            if node.node_id not in self._excluded_ids
        ]
        # Only where the score is another: LlamaIndex's fusion tells texts apart by their metadata.
        has_other_scores = is_fused or self.calibrated
        has_cosines = has_other_scores and self._mode(bundle) in BY_COSINE
        annotate(hits, modality, has_cosines=has_cosines)
        if self.calibrated and self.vector_store.passport:
            statistics = self.vector_store.passport.calibration
            hits = calibrate(hits, statistics, _asked_by(bundle), modality)
        return cut_off(hits, self.similarity_cutoff, self.relative_cutoff)

    def _excluding(self, hashes: Sequence[str], ids: Sequence[str] = ()) -> CLIPRetriever:
        """Return a retriever that leaves out these contents and nodes."""
        retriever = copy.copy(self)
        retriever._excluded_ids = frozenset(ids)
        if hashes:
            others = MetadataFilter(
                key="content_hash", value=list(hashes), operator=FilterOperator.NIN
            )
            given = [self.filters] if self.filters else []
            retriever.filters = MetadataFilters(filters=[*given, others])
        return retriever


show_options(create_retriever, CLIPRetriever)


def _check_of_mode(
    name: str, value: float | None, mode: VectorStoreQueryMode, wanted: VectorStoreQueryMode
) -> None:
    """Refuse an option that another query mode would ignore."""
    if value is not None and mode != wanted:
        raise ValueError(
            f"{name} is for vector_store_query_mode={wanted.value!r}, and it is {mode.value!r}; "
            "leave it out, or change the mode"
        )


def _asked_by(bundle: QueryBundle) -> AskedBy:
    """Say what a query is made of, which decides what its scores are compared with.

    Raises:
        ValueError: If it is an embedding of which that is not known.
    """
    asked = asked_by(bundle)
    if asked is None:
        raise ValueError(
            "calibrated=True needs to know what the query is, and the QueryBundle holds only an "
            "embedding that this process did not make; give it image_path= or query_str=, too"
        )
    return asked


def _image_bundle(image: ImageSource, embedding: Embedding) -> QueryBundle:
    # The description is for traces; the embedding is what is searched with.
    return QueryBundle("", image_path=describe_source(image), embedding=embedding)


def _modalities(wanted: Wanted) -> list[Modality]:
    return ["image", "text"] if wanted == "both" else [wanted]


@contextmanager
def _numbered(numbers: Sequence[int]) -> Iterator[None]:
    """Number an image that does not load by its query."""
    try:
        yield
    except ImageLoadError as err:
        number = numbers[err.index or 0]
        raise type(err)(err.reason, source=err.source, index=number) from err.__cause__


def _nothing() -> VectorStoreQueryResult:
    return VectorStoreQueryResult(nodes=[], similarities=[], ids=[])


def _text_bundle(query: QueryType) -> QueryBundle:
    bundle = QueryBundle(query) if isinstance(query, str) else query
    return _words_of(bundle) if bundle.query_str else bundle


def _words_of(bundle: QueryBundle) -> QueryBundle:
    """Leave out the image, unless the whole is embedded already."""
    if bundle.embedding is not None or not bundle.image_path:
        return bundle
    return QueryBundle(bundle.query_str, custom_embedding_strs=bundle.custom_embedding_strs)


def _picture_of(bundle: QueryBundle) -> QueryBundle:
    """Leave out the text, unless the whole is embedded already."""
    if bundle.embedding is not None:
        return bundle
    if not bundle.image_path:
        raise ValueError("the QueryBundle has no image_path")
    return QueryBundle("", image_path=bundle.image_path)


def _embedding_texts(bundle: QueryBundle) -> list[str]:
    if not any(text.strip() for text in bundle.embedding_strs):
        raise ValueError("the query is empty: expected a text, an image_path or an embedding")
    return bundle.embedding_strs


def _highest_rank_score(
    wanted: Wanted, mode: VectorStoreQueryMode, alpha: float | None
) -> float | None:
    """Return the best that a fusion by rank can score: first in each ranking that may list it."""
    if wanted == "both":
        return FIRST_RANK_SCORE  # A node is an image or a text.
    if mode == VectorStoreQueryMode.HYBRID and alpha is None:
        return 2 * FIRST_RANK_SCORE
    return None


def _warn_of_high_cutoff(
    postprocessors: Sequence[BaseNodePostprocessor],
    *,
    highest_rank_score: float | None,
    has_low_cosines: bool,
) -> None:
    """Say where LlamaIndex's cutoff would leave nothing, whatever is asked."""
    if highest_rank_score:
        highest = highest_rank_score
        advice = f"ranks are fused, and score {highest:.3f} at most; leave it out"
    elif has_low_cosines:
        highest = _HIGH_COSINE
        advice = (
            "good text-to-image hits have a cosine of 0.2 to 0.4; calibrate the scores, or use "
            "relative_cutoff"
        )
    else:
        return
    for one in postprocessors:
        if isinstance(one, SimilarityPostprocessor) and one.similarity_cutoff >= highest:
            logger.warning(
                "SimilarityPostprocessor(similarity_cutoff=%s) drops every hit: %s",
                one.similarity_cutoff,
                advice,
            )
