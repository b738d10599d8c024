"""Any dual encoder as an embedding: the encoder in LlamaIndex's words."""

from __future__ import annotations

import asyncio
import contextvars
import hashlib
import logging
import os
import pickle
import threading
from collections.abc import Callable, Collection, Generator, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, TypeVar, get_args

import numpy as np
from llama_index.core.base.embeddings.base import Embedding
from llama_index.core.bridge.pydantic import PrivateAttr
from llama_index.core.callbacks import CallbackManager, CBEventType, EventPayload
from llama_index.core.embeddings import MultiModalEmbedding
from llama_index.core.instrumentation import get_dispatcher  # type: ignore[attr-defined]
from llama_index.core.instrumentation.events.embedding import (
    EmbeddingEndEvent,
    EmbeddingStartEvent,
)
from llama_index.core.schema import BaseNode, MetadataMode, QueryBundle
from llama_index.core.utils import get_tqdm_iterable
from PIL import Image, ImageColor
from typing_extensions import TypedDict

from . import nvjpeg
from .background import read_in_own_thread
from .checkpoint import Checkpoint, find_checkpoint, find_text_checkpoint
from .devices import Dtype
from .encoder import Encoder, ImageInputs, OnLongText, Preprocess, check_texts
from .errors import EmbeddingError, ImageLoadError, ModelLoadError
from .images import ImageFailure, OnError, check_formats, load_image
from .int8 import int8_identity
from .models import EmbeddingSpace, Family, resolve_model
from .nodes import is_image_node
from .prefetch import batched, prefetch
from .provenance import remember
from .queries import compose_query
from .sources import (
    ImageSource,
    describe_source,
    exclusive,
    held,
    image_digest,
    opened,
    reusable,
)
from .text_checkpoint import TextCheckpoint, check_pair, text_only_message
from .urls import AllowUrls, check_hosts
from .vectors import Rows

logger = logging.getLogger(__name__)
dispatcher = get_dispatcher(__name__)

T = TypeVar("T")

# In the cache beside LlamaIndex's own collection "embeddings", whose keys are the texts themselves,
# whatever the model: entries of it are neither read nor written.
_CACHE_COLLECTION = "image_embeddings"
_TEXT_CACHE_COLLECTION = "text_embeddings"

# Other people's objects, some of which hold locks.
_NOT_ALWAYS_PICKLED = ("callback_manager", "embeddings_cache", "rate_limiter")

# A cache is asked by the threads that decode, for which not every one is made.
_CACHE_LOCK = threading.Lock()

# Batches that may be decoded, or be at it, while one is computed.
_BATCHES_AHEAD = 2

# LlamaIndex's field has to hold a number; the one that suits the device is found on first use.
_UNSETTLED_BATCH_SIZE = 32

# Guards the making of encoders: an embedding cannot hold a lock, because locks do not pickle.
_ENCODER_LOCK = threading.RLock()


@dataclass(frozen=True)
class ImageEmbeddings:
    """The images of one call that could be embedded, and those that could not.

    Attributes:
        embeddings: Unit-length rows. Shape ``(len(kept), dim)``.
        kept: For each row, the position of its image in the call; ascending.
        failures: The other images, each with its position and the reason.
    """

    embeddings: Rows
    kept: list[int]
    failures: list[ImageFailure]


@dataclass(frozen=True)
class _Prepared:
    """One image on its way: decoded, found in the cache, or failed."""

    index: int
    name: str
    key: str | None = None
    inputs: ImageInputs | None = None
    row: list[float] | None = None
    error: ImageLoadError | None = None


class EmbeddingOptions(TypedDict, total=False):
    """The options of `DualEncoderEmbedding`, for those who pass them on."""

    device: str
    dtype: Dtype
    preprocess: Preprocess
    embed_batch_size: int | None
    on_long_text: OnLongText
    on_error: OnError
    background: str
    allow_urls: AllowUrls
    image_formats: Collection[str]
    text_model_name: str | Path | None
    cache_folder: str | Path | None
    revision: str | None
    local_files_only: bool
    endpoint: str | None
    callback_manager: CallbackManager | None
    num_workers: int | None
    embeddings_cache: Any | None
    rate_limiter: Any | None


class DualEncoderEmbedding(MultiModalEmbedding):
    """Images and texts in one space, by any dual encoder.

    Takes CLIP (OpenAI's, OpenCLIP's in transformers' format, fine-tuned), Chinese-CLIP, SigLIP,
    SigLIP 2, AltCLIP and MetaCLIP 2. Each keeps its own pooling, padding and context.

    Args:
        model_name: Alias, hub id, or local directory.
        device: ``"auto"`` (CUDA if there is one, else the CPU) or a torch device's name.
        dtype: Arithmetic of the forward pass; ``"auto"`` is float16 on CUDA, bfloat16 on a CPU that
            multiplies it natively (AVX512-BF16 or AMX), and float32 elsewhere and for small models.
            ``"int8"``, on a CPU, is of the images alone; `quantize_images` makes it once.
            Embeddings are normalised in float32 in any case.
        preprocess: ``"fast"`` decodes JPEGs at a fraction of their size where that is enough, and
            resizes only what is not cropped: within cosine 0.999 of ``"reference"``, which is the
            checkpoint's own processor over the whole picture.
        embed_batch_size: Texts or images per forward pass; ``None`` for what suits the device and
            the model. Where memory runs out, it is halved and tried again.
        on_long_text: Cut a text that exceeds the model's context, refuse it, or embed windows of it
            and take their mean.
        on_error: For nodes whose image does not load: raise, or leave them out with a warning.
        background: Colour under transparent pixels, as Pillow names colours.
        allow_urls: Whether images are fetched from http and https URLs, or the only hosts that they
            may be of, such as ``["example.com", "*.example.org"]``. Only from public addresses, at
            most 64 MiB. A text is a text, whatever it looks like.
        image_formats: Formats to read beside BMP, GIF, JPEG, PNG, TIFF and WebP, as Pillow names
            them, such as ``("AVIF",)``.
        text_model_name: A text tower to embed texts by, in place of the model's own: one that was
            trained for this model's images. The images' vectors stay what they are.
        cache_folder: Where the hub's files are cached.
        revision: Branch, tag or commit on the hub; of the model, not of a text tower.
        local_files_only: Open no socket to find the model.
        endpoint: Address of a mirror of the hub.
        callback_manager: LlamaIndex's.
        num_workers: LlamaIndex's.
        embeddings_cache: LlamaIndex's key-value store. Texts and images are kept in it by content
            and weights, so that models may share one.
        rate_limiter: LlamaIndex's; asked once per batch, of texts and of images.

    Raises:
        UnknownModelError: If the name is no model's.
        ModelLoadError: If the class is for another family, or the model or text tower is known not
            to be one, or they are known not to belong together.
        DimensionMismatchError: If the text tower is known to have another dimension.

    Example:
        ``DualEncoderEmbedding("google/siglip-base-patch16-224")``
    """

    family: ClassVar[Family | None] = None

    device: str
    dtype: str
    preprocess: str
    on_long_text: str
    on_error: str
    background: str
    allow_urls: bool | list[str]
    image_formats: tuple[str, ...]
    text_model_name: str | None
    cache_folder: str | None
    revision: str | None
    local_files_only: bool
    endpoint: str | None

    _encoder: Encoder | None = PrivateAttr(default=None)
    _encoder_settings: tuple[Any, ...] = PrivateAttr(default=())
    _is_batch_size_settled: bool = PrivateAttr(default=True)

    def __init__(
        self,
        model_name: str | Path,
        *,
        device: str = "auto",
        dtype: Dtype = "auto",
        preprocess: Preprocess = "fast",
        embed_batch_size: int | None = None,
        on_long_text: OnLongText = "truncate",
        on_error: OnError = "raise",
        background: str = "white",
        allow_urls: AllowUrls = False,
        image_formats: Collection[str] = (),
        text_model_name: str | Path | None = None,
        cache_folder: str | Path | None = None,
        revision: str | None = None,
        local_files_only: bool = False,
        endpoint: str | None = None,
        callback_manager: CallbackManager | None = None,
        num_workers: int | None = None,
        embeddings_cache: Any | None = None,
        rate_limiter: Any | None = None,
    ) -> None:
        _check_choice("dtype", dtype, get_args(Dtype))
        _check_choice("preprocess", preprocess, get_args(Preprocess))
        _check_choice("on_long_text", on_long_text, get_args(OnLongText))
        _check_choice("on_error", on_error, get_args(OnError))
        # Here, not at the first picture.
        try:
            ImageColor.getrgb(background)
        except ValueError as err:
            raise ValueError(f"background is {background!r}, expected a colour: {err}") from err
        check_formats(image_formats)
        name = str(model_name)
        self._check_family(name, resolve_model(name).family)
        if text_model_name is not None:
            check_pair(name, str(text_model_name))
        super().__init__(  # type: ignore[call-arg]
            model_name=name,
            embed_batch_size=(
                _UNSETTLED_BATCH_SIZE if embed_batch_size is None else embed_batch_size
            ),
            callback_manager=callback_manager or CallbackManager([]),
            num_workers=num_workers,
            embeddings_cache=embeddings_cache,
            rate_limiter=rate_limiter,
            device=device,
            dtype=dtype,
            preprocess=preprocess,
            on_long_text=on_long_text,
            on_error=on_error,
            background=background,
            allow_urls=check_hosts(allow_urls),
            image_formats=tuple(image_formats),
            text_model_name=str(text_model_name) if text_model_name is not None else None,
            cache_folder=str(cache_folder) if cache_folder else None,
            revision=revision,
            local_files_only=local_files_only,
            endpoint=endpoint,
        )
        self._is_batch_size_settled = embed_batch_size is not None

    @property
    def encoder(self) -> Encoder:
        """The encoder; its files are looked up on first use, its weights read on first encoding."""
        settings = (
            *(self.model_name, self.revision, self.cache_folder, self.endpoint),
            *(self.device, self.dtype, self.preprocess, self.on_long_text, self.text_model_name),
        )
        # Asked for the settings, too: a copy with another model_name must not keep the weights.
        encoder = self._encoder
        if encoder is not None and self._encoder_settings == settings:
            return encoder
        with _ENCODER_LOCK:
            if self._encoder is None or self._encoder_settings != settings:
                self._encoder = Encoder(
                    self._find_checkpoint(),
                    device=self.device,
                    dtype=self.dtype,  # type: ignore[arg-type]
                    preprocess=self.preprocess,  # type: ignore[arg-type]
                    on_long_text=self.on_long_text,  # type: ignore[arg-type]
                    text_checkpoint=self._find_text_checkpoint(),
                )
                self._encoder_settings = settings
            return self._encoder

    @property
    def dim(self) -> int:
        """Components of an embedding."""
        return resolve_model(self.model_name).dim or self.encoder.checkpoint.dim

    @property
    def space(self) -> EmbeddingSpace:
        """What this model's embeddings can be compared with. Hashes the weights on first use."""
        return self.encoder.checkpoint.space

    def embed_images(
        self,
        sources: Sequence[ImageSource],
        *,
        on_error: OnError = "raise",
        show_progress: bool = False,
    ) -> ImageEmbeddings:
        """Embed images of any kind, keeping track of which ones they are.

        Args:
            sources: Paths, bytes, streams, fsspec files, PIL images, arrays, data URIs, base64,
                URLs where ``allow_urls`` has them, or nodes.
            on_error: Stop at an image that fails, or go on and report it.
            show_progress: Show a progress bar.

        Returns:
            The embeddings in the order of the sources, and the failures.

        Raises:
            ImageLoadError: If an image fails and ``on_error`` is ``"raise"``; carries its index.
        """
        _check_sources(sources, on_error)
        self._settle_batch_size()
        batches = [ImageEmbeddings(np.empty((0, self.dim), dtype=np.float32), [], [])]
        batches += get_tqdm_iterable(
            self.stream_images(sources, on_error=on_error),
            show_progress,
            "Generating image embeddings",
            total=-(-len(sources) // self.embed_batch_size),
        )
        return ImageEmbeddings(
            np.concatenate([batch.embeddings for batch in batches]),
            [position for batch in batches for position in batch.kept],
            [failure for batch in batches for failure in batch.failures],
        )

    def stream_images(
        self, sources: Iterable[ImageSource], *, on_error: OnError = "raise"
    ) -> Generator[ImageEmbeddings, None, None]:
        """Embed a stream of images, however long: it is drawn a few batches ahead, and no further.

        The next batches are read and decoded by threads while one is computed.

        Args:
            sources: As `embed_images` takes them; drawn by the thread that takes the results.
            on_error: As in `embed_images`.

        Yields:
            The embeddings and failures of each batch, in order; positions are those in the stream.

        Raises:
            ImageLoadError: If an image fails and ``on_error`` is ``"raise"``, after all before it
                were yielded; carries its index.
        """
        _check_sources(sources, on_error)
        self._settle_batch_size()
        if not isinstance(sources, Sequence):
            sources = map(held, sources)
        prepared = prefetch(
            self.encoder.decoders,
            self._preparing(),
            enumerate(sources),
            ahead=_BATCHES_AHEAD * self.embed_batch_size,
        )
        with closing(prepared):
            for batch in batched(prepared, self.embed_batch_size):
                batch = self._decoded(batch)
                whole, error = (batch, None) if on_error == "skip" else _until_error(batch)
                if whole:
                    with self._image_events([one.name for one in whole]) as embeddings:
                        result = self._embed_batch(whole)
                        embeddings.extend(result.embeddings.tolist())
                    yield result
                if error:
                    raise error

    async def aembed_images(
        self,
        sources: Sequence[ImageSource],
        *,
        on_error: OnError = "raise",
        show_progress: bool = False,
    ) -> ImageEmbeddings:
        """Do what `embed_images` does, off the event loop."""
        return await self._run(
            lambda: self.embed_images(sources, on_error=on_error, show_progress=show_progress)
        )

    def get_text_embedding_batch(
        self, texts: Sequence[str], show_progress: bool = False, **kwargs: Any
    ) -> list[Embedding]:
        """Embed texts, in order. Texts of like length share a batch, which is padded the less."""
        self._settle_batch_size()
        order = self._by_length(texts)
        rows = super().get_text_embedding_batch([texts[i] for i in order], show_progress, **kwargs)
        return _reordered(rows, order)

    async def aget_text_embedding_batch(
        self, texts: Sequence[str], show_progress: bool = False, **kwargs: Any
    ) -> list[Embedding]:
        """Do what `get_text_embedding_batch` does, off the event loop."""
        await self._run(self._settle_batch_size)
        order = self._by_length(texts)
        rows = await super().aget_text_embedding_batch(
            [texts[i] for i in order], show_progress, **kwargs
        )
        return _reordered(rows, order)

    def _by_length(self, texts: Sequence[str]) -> list[int]:
        check_texts(texts)
        order = list(range(len(texts)))
        # An error about a text gives its position in its batch: better that of the caller's order.
        return order if self.on_long_text == "error" else sorted(order, key=lambda i: len(texts[i]))

    # With a cache, one text goes the way of a batch: LlamaIndex looks single ones up by the text
    # alone, and would hand out the vectors of whatever model wrote them.

    def get_query_embedding(self, query: str) -> Embedding:
        """Embed one query. Shape ``(dim,)``, unit length."""
        if self.embeddings_cache is None:
            return super().get_query_embedding(query)
        return self.get_text_embedding_batch([query])[0]

    def get_agg_embedding_from_queries(
        self, queries: list[str], agg_fn: Callable[..., Embedding] | None = None
    ) -> Embedding:
        """Embed texts, and return LlamaIndex's mean of them, or what ``agg_fn`` makes of them."""
        embedding = super().get_agg_embedding_from_queries(queries, agg_fn)
        remember([embedding], "text")
        return embedding

    async def aget_agg_embedding_from_queries(
        self, queries: list[str], agg_fn: Callable[..., Embedding] | None = None
    ) -> Embedding:
        """Do what `get_agg_embedding_from_queries` does, off the event loop."""
        embedding = await super().aget_agg_embedding_from_queries(queries, agg_fn)
        remember([embedding], "text")
        return embedding

    async def aget_query_embedding(self, query: str) -> Embedding:
        """Do what `get_query_embedding` does, off the event loop."""
        if self.embeddings_cache is None:
            return await super().aget_query_embedding(query)
        return (await self.aget_text_embedding_batch([query]))[0]

    def get_text_embedding(self, text: str) -> Embedding:
        """Embed one text. Shape ``(dim,)``, unit length."""
        if self.embeddings_cache is None:
            return super().get_text_embedding(text)
        return self.get_text_embedding_batch([text])[0]

    async def aget_text_embedding(self, text: str) -> Embedding:
        """Do what `get_text_embedding` does, off the event loop."""
        if self.embeddings_cache is None:
            return await super().aget_text_embedding(text)
        return (await self.aget_text_embedding_batch([text]))[0]

    def get_image_embedding(self, img_file_path: ImageSource) -> Embedding:
        """Embed one image of any kind. Shape ``(dim,)``, unit length."""
        try:
            return self.get_image_embedding_batch([img_file_path])[0]
        except ImageLoadError as err:
            # One image has no position.
            raise type(err)(err.reason, source=err.source) from err.__cause__

    async def aget_image_embedding(self, img_file_path: ImageSource) -> Embedding:
        """Do what `get_image_embedding` does, off the event loop."""
        return await self._run(lambda: self.get_image_embedding(img_file_path))

    def get_image_embedding_batch(
        self, img_file_paths: Sequence[ImageSource], show_progress: bool = False
    ) -> list[Embedding]:
        """Embed images of any kind, in order; raises at the first that does not load."""
        embeddings = self.embed_images(img_file_paths, show_progress=show_progress).embeddings
        return list(embeddings.tolist())

    async def aget_image_embedding_batch(
        self, img_file_paths: Sequence[ImageSource], show_progress: bool = False
    ) -> list[Embedding]:
        """Do what `get_image_embedding_batch` does, off the event loop."""
        return await self._run(
            lambda: self.get_image_embedding_batch(img_file_paths, show_progress)
        )

    def compose_query(
        self,
        *,
        text: str | Sequence[str] | None = None,
        image: ImageSource | Sequence[ImageSource] | None = None,
        weights: Sequence[float] | None = None,
        minus: Sequence[str | ImageSource] = (),
        minus_weight: float = 1.0,
    ) -> QueryBundle:
        """Make one query of texts and images: like this picture, but red, and not a heart.

        Args:
            text: A text, or several.
            image: An image of any kind, or a list of them.
            weights: One per text, then one per image; ``None`` counts all alike. The embeddings are
                added up with their weights and the sum is scaled to unit length, so that only the
                weights' proportions matter.
            minus: What the hits should not be like. A string is a text: name a file by a ``Path``.
            minus_weight: How much each of these counts.

        Returns:
            A query that any LlamaIndex retriever over this model's collection takes, because it
            carries its embedding.

        Raises:
            EmbeddingError: If the parts cancel each other out.
            ImageLoadError: If an image does not load.
            ValueError: If nothing is asked for, or the weights do not fit.

        Example:
            ``embed_model.compose_query(image="shoe.jpg", text="red", minus=["blue"])``
        """
        return compose_query(
            self, text=text, image=image, weights=weights, minus=minus, minus_weight=minus_weight
        )

    async def acompose_query(
        self,
        *,
        text: str | Sequence[str] | None = None,
        image: ImageSource | Sequence[ImageSource] | None = None,
        weights: Sequence[float] | None = None,
        minus: Sequence[str | ImageSource] = (),
        minus_weight: float = 1.0,
    ) -> QueryBundle:
        """Do what `compose_query` does, off the event loop."""
        return await self._run(
            lambda: self.compose_query(
                text=text, image=image, weights=weights, minus=minus, minus_weight=minus_weight
            )
        )

    def __call__(self, nodes: Sequence[BaseNode], **kwargs: Any) -> Sequence[BaseNode]:
        """Embed nodes in place: images by the image tower, all others by the text tower.

        Args:
            nodes: Nodes of any kind, mixed.
            **kwargs: LlamaIndex's, such as ``show_progress``.

        Returns:
            The nodes in order; if ``on_error`` is ``"skip"``, without those that did not load.

        Raises:
            ImageLoadError: If an image does not load and ``on_error`` is ``"raise"``.
        """
        images = [index for index, node in enumerate(nodes) if is_image_node(node)]
        texts = sorted(set(range(len(nodes))) - set(images))
        contents = [nodes[index].get_content(MetadataMode.EMBED) for index in texts]
        for index, row in zip(
            texts, self.get_text_embedding_batch(contents, **kwargs), strict=True
        ):
            nodes[index].embedding = row
        result = self.embed_images(
            [nodes[index] for index in images],
            on_error=self.on_error,  # type: ignore[arg-type]
            show_progress=bool(kwargs.get("show_progress")),
        )
        for position, row in zip(result.kept, result.embeddings.tolist(), strict=True):
            nodes[images[position]].embedding = row
        for failure in result.failures:
            logger.warning("left out node %s: %s", nodes[images[failure.index]].node_id, failure)
        lost = {images[failure.index] for failure in result.failures}
        return [node for index, node in enumerate(nodes) if index not in lost]

    async def acall(self, nodes: Sequence[BaseNode], **kwargs: Any) -> Sequence[BaseNode]:
        """Do what calling the model does, off the event loop."""
        return await self._run(lambda: self(nodes, **kwargs))

    def __getstate__(self) -> dict[str, Any]:
        # LlamaIndex's takes what does not pickle out of the model itself, which goes on being used;
        # and a worker's copy needs all its fields.
        lost = [name for name in _NOT_ALWAYS_PICKLED if not _pickles(getattr(self, name))]
        if lost:
            logger.warning("%s do not pickle; a worker's copy goes without", ", ".join(lost))
        left = {name: CallbackManager([]) if name == "callback_manager" else None for name in lost}
        return super(DualEncoderEmbedding, self.model_copy(update=left)).__getstate__()

    def _find_checkpoint(self) -> Checkpoint:
        checkpoint = find_checkpoint(
            self.model_name,
            cache_folder=self.cache_folder,
            revision=self.revision,
            local_files_only=self.local_files_only,
            endpoint=self.endpoint,
        )
        self._check_family(self.model_name, checkpoint.family)
        return checkpoint

    def _find_text_checkpoint(self) -> TextCheckpoint | None:
        if self.text_model_name is None:
            return None
        return find_text_checkpoint(
            self.text_model_name,
            cache_folder=self.cache_folder,
            local_files_only=self.local_files_only,
            endpoint=self.endpoint,
        )

    @classmethod
    def _check_family(cls, name: str, family: Family | None) -> None:
        """Refuse a checkpoint that is not one of this class's; ``None`` is not known yet."""
        if family == "text-only":
            raise ModelLoadError(text_only_message(name))
        if family is not None and cls.family not in (None, family):
            known = {"clip": "CLIPEmbedding", "chinese-clip": "ChineseCLIPEmbedding"}
            raise ModelLoadError(
                f"{name!r} is a {family} checkpoint, {cls.__name__} cannot load it; use "
                f"{known.get(family, 'DualEncoderEmbedding')} or load_embedding"
            )

    @classmethod
    def class_name(cls) -> str:
        """Return the name that LlamaIndex stores."""
        return cls.__name__

    def _settle_batch_size(self) -> None:
        """Choose the batch size for the device and the model, if the user has not."""
        if not self._is_batch_size_settled:
            # Unless it was assigned, or a copy was made with another, since.
            if self.embed_batch_size == _UNSETTLED_BATCH_SIZE:
                self.embed_batch_size = self.encoder.batch_size
            self._is_batch_size_settled = True

    @contextmanager
    def _image_events(self, names: list[str]) -> Iterator[list[Embedding]]:
        """Tell LlamaIndex's observers of one batch; the caller fills in the embeddings.

        Args:
            names: The images as text, because observers count the tokens of what they are told.
        """
        embeddings: list[Embedding] = []
        payload = self.to_payload()
        dispatcher.event(EmbeddingStartEvent(model_dict=payload))
        with self.callback_manager.event(
            CBEventType.EMBEDDING, payload={EventPayload.SERIALIZED: payload}
        ) as event:
            yield embeddings
            event.on_end(payload={EventPayload.CHUNKS: names, EventPayload.EMBEDDINGS: embeddings})
        dispatcher.event(EmbeddingEndEvent(chunks=names, embeddings=embeddings))

    def _preparing(self) -> Callable[[tuple[int, ImageSource]], _Prepared]:
        """Return `_prepare`, with what is the same for all images of a call."""
        encoder = self.encoder
        # The weights are hashed here, once, and not by each of the threads.
        scope = "" if self.embeddings_cache is None else self._cache_scope()
        return partial(
            self._prepare,
            least_side=encoder.least_side,
            on_device=encoder.decodes_on_device,
            scope=scope,
        )

    def _prepare(
        self,
        numbered: tuple[int, ImageSource],
        *,
        least_side: int | None,
        on_device: bool,
        scope: str,
    ) -> _Prepared:
        """Read one image and decode it, unless the cache has its embedding. Runs in any thread."""
        index, source = numbered
        name = describe_source(source)
        key = None
        try:
            source = reusable(source, self.allow_urls)  # It may be read twice.
            if self.embeddings_cache is not None:
                key = f"{scope}:{image_digest(source)}"
                if (row := self._cached(key)) is not None:
                    return _Prepared(index, name, key, row=row)
            if on_device and (inputs := self._encoded_jpeg(source)):
                return _Prepared(index, name, key, inputs=inputs)
            image = load_image(
                source,
                background=self.background,
                least_side=least_side,
                image_formats=self.image_formats,
            )
            return _Prepared(index, name, key, inputs=self.encoder.prepare(image))
        except ImageLoadError as err:
            error = type(err)(err.reason, source=name, index=index)
            error.__cause__ = err.__cause__
            return _Prepared(index, name, error=error)
        except MemoryError as err:
            error = ImageLoadError("memory ran out over it", source=name, index=index)
            error.__cause__ = err
            return _Prepared(index, name, error=error)

    def _encoded_jpeg(self, source: ImageSource) -> ImageInputs | None:
        """Return a JPEG as it is, for nvJPEG; ``None`` if the source is something else."""
        try:
            with exclusive(source), opened(source) as file:
                if isinstance(file, (Image.Image, np.ndarray)):
                    return None
                content = nvjpeg.read_jpeg(file)
        except (ImageLoadError, OSError):
            return None  # Said by who decodes it.
        return self.encoder.prepare_jpeg(content) if content else None

    def _decoded(self, batch: list[_Prepared]) -> list[_Prepared]:
        """Decode on the device what was left for it, which may fail only now."""
        if not self.encoder.decodes_on_device:
            return batch
        positions = [number for number, one in enumerate(batch) if one.inputs is not None]
        inputs = [one.inputs for one in batch if one.inputs is not None]
        batch = list(batch)
        for number, result in zip(positions, self.encoder.decode_jpegs(inputs), strict=True):
            one = batch[number]
            if isinstance(result, ImageLoadError):
                error = type(result)(result.reason, source=one.name, index=one.index)
                batch[number] = replace(one, inputs=None, error=error)
            else:
                batch[number] = replace(one, inputs=result)
        return batch

    def _embed_batch(self, batch: list[_Prepared]) -> ImageEmbeddings:
        """Encode those of a batch that are decoded, each picture once if there is a cache."""
        failures = [
            ImageFailure(one.index, one.error.source, one.error.reason)
            for one in batch
            if one.error
        ]
        usable = [one for one in batch if not one.error]
        rows: dict[str | int, Any] = {}
        fresh: dict[str | int, ImageInputs] = {}
        for one in usable:
            # Asked again where it was not there: the batch before may have put it there since.
            row = one.row if one.inputs is None else self._cached(one.key)
            if row is not None:
                rows[one.key or one.index] = row
            elif one.inputs is not None:
                fresh.setdefault(one.key or one.index, one.inputs)
        if fresh:
            if self.rate_limiter is not None:
                # The asynchronous twins are on the model's own thread here: no loop waits.
                self.rate_limiter.acquire()
            try:
                encoded = self.encoder.encode_prepared(list(fresh.values()))
            except EmbeddingError as err:
                names = ", ".join(one.name for one in usable)
                raise EmbeddingError(f"{err}; among the images {names}") from err
            for key, row in zip(fresh, encoded, strict=True):
                rows[key] = row
                self._cache(key, row)
        found = np.array([rows[one.key or one.index] for one in usable], dtype=np.float32)
        found = found.reshape(-1, self.dim)
        remember(found, "image")
        return ImageEmbeddings(found, [one.index for one in usable], failures)

    def _cache_scope(self) -> str:
        """Return what the embeddings of images depend on but for the image."""
        space, how = self.space, f"{self.dtype}:{self.preprocess}:{self.background}"
        made = int8_identity(self.encoder.checkpoint) if self.dtype == "int8" else ""
        return f"{space.weights}:{space.preprocessing}:{how}:{made}"

    def _cached(self, key: str | None) -> list[float] | None:
        if key is None or self.embeddings_cache is None:
            return None
        with _CACHE_LOCK:
            entry = self.embeddings_cache.get(key=key, collection=_CACHE_COLLECTION)
        return entry["embedding"] if entry else None

    def _cache(self, key: str | int, row: Rows) -> None:
        if isinstance(key, str) and self.embeddings_cache is not None:
            entry = {"embedding": row.tolist()}
            with _CACHE_LOCK:
                self.embeddings_cache.put(key=key, val=entry, collection=_CACHE_COLLECTION)

    def _get_text_embeddings_cached(self, texts: list[str]) -> list[Embedding]:
        """Embed texts, from the cache where there is one, by text and weights."""
        cache: Any = self.embeddings_cache
        check_texts(texts)
        keys = [self._text_cache_key(text) for text in texts]
        entries = {key: cache.get(key=key, collection=_TEXT_CACHE_COLLECTION) for key in set(keys)}
        found = {key: entry["embedding"] for key, entry in entries.items() if entry}
        missing = {key: text for key, text in zip(keys, texts, strict=True) if key not in found}
        if missing:
            rows = self._get_text_embeddings(list(missing.values()))
            for key, row in zip(missing, rows, strict=True):
                found[key] = row
                cache.put(key=key, val={"embedding": row}, collection=_TEXT_CACHE_COLLECTION)
        remember(found.values(), "text")
        return [found[key] for key in keys]

    async def _aget_text_embeddings_cached(self, texts: list[str]) -> list[Embedding]:
        if self.rate_limiter is not None:
            # LlamaIndex asks it before a cached batch on the synchronous road, and forgets it here.
            await self.rate_limiter.async_acquire()
        return await self._run(lambda: self._get_text_embeddings_cached(texts))

    def _text_cache_key(self, text: str) -> str:
        digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
        tower = self.encoder.text_checkpoint
        model = tower.weights if tower else f"{self.space.weights}:{self.space.preprocessing}"
        return f"{model}:{self.dtype}:{self.on_long_text}:{digest}"

    async def _run(self, function: Callable[[], T]) -> T:
        """Run on the model's own thread, in the caller's context, so that its traces are kept."""
        loop = asyncio.get_running_loop()
        # The first time, finding the files may take a download: not on the loop either.
        encoder = await read_in_own_thread(lambda: self.encoder)
        context = contextvars.copy_context()
        return await loop.run_in_executor(encoder.executor, context.run, function)

    def _get_text_embeddings(self, texts: list[str]) -> list[Embedding]:
        rows = self.encoder.encode_texts(texts, batch_size=self.embed_batch_size)
        remember(rows, "text")
        return list(rows.tolist())

    def _get_text_embedding(self, text: str) -> Embedding:
        return self._get_text_embeddings([text])[0]

    def _get_query_embedding(self, query: str) -> Embedding:
        row = self.encoder.encode_query(query)
        remember([row], "text")
        return list(row.tolist())

    def _get_image_embeddings(self, img_file_paths: list[ImageSource]) -> list[Embedding]:
        batch = [*map(self._preparing(), enumerate(img_file_paths))]
        whole, error = _until_error(self._decoded(batch))
        if error:
            raise error
        return list(self._embed_batch(whole).embeddings.tolist())

    def _get_image_embedding(self, img_file_path: ImageSource) -> Embedding:
        return self._get_image_embeddings([img_file_path])[0]

    async def _aget_text_embeddings(self, texts: list[str]) -> list[Embedding]:
        return await self._run(lambda: self._get_text_embeddings(texts))

    async def _aget_text_embedding(self, text: str) -> Embedding:
        return await self._run(lambda: self._get_text_embedding(text))

    async def _aget_query_embedding(self, query: str) -> Embedding:
        return await self._run(lambda: self._get_query_embedding(query))

    async def _aget_image_embeddings(self, img_file_paths: list[ImageSource]) -> list[Embedding]:
        return await self._run(lambda: self._get_image_embeddings(img_file_paths))

    async def _aget_image_embedding(self, img_file_path: ImageSource) -> Embedding:
        return await self._run(lambda: self._get_image_embedding(img_file_path))


def _pickles(value: object) -> bool:
    try:
        pickle.dumps(value)
    except Exception:  # Whatever it raises: there is no rule.
        return False
    return True


def _check_sources(sources: object, on_error: str) -> None:
    _check_choice("on_error", on_error, ("raise", "skip"))
    if isinstance(sources, (str, bytes, os.PathLike)):
        raise TypeError(f"sources is one {type(sources).__name__}, expected a list of images")


def _until_error(batch: list[_Prepared]) -> tuple[list[_Prepared], ImageLoadError | None]:
    """Return what comes before the first failure of a batch, and the failure."""
    for number, one in enumerate(batch):
        if one.error:
            return batch[:number], one.error
    return batch, None


def _reordered(rows: Sequence[Embedding], order: Sequence[int]) -> list[Embedding]:
    """Put rows that were computed in an order back into the caller's."""
    row_of = dict(zip(order, rows, strict=True))
    return [row_of[index] for index in range(len(rows))]


def _check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{name} is {value!r}, expected one of {', '.join(map(repr, choices))}")
