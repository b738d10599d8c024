"""Captions of images, by any multimodal LLM of LlamaIndex's."""

from __future__ import annotations

import asyncio
import io
import logging
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeAlias

from llama_index.core.async_utils import run_jobs
from llama_index.core.base.llms.types import ChatMessage, ChatResponse, ImageBlock, TextBlock
from llama_index.core.bridge.pydantic import Field, PrivateAttr, SerializeAsAny
from llama_index.core.llms import LLM
from llama_index.core.schema import BaseNode, TransformComponent
from llama_index.core.utils import get_tqdm_iterable

from .errors import CaptionError, ImageLoadError
from .images import OnError, load_image
from .nodes import copy_node, is_image_node, node_text, set_caption
from .sources import describe_source, image_digest

logger = logging.getLogger(__name__)

DEFAULT_PROMPT = (
    "Describe this picture in one sentence that names its objects, their colours, the scene and "
    "any text that can be read in it. Answer with the sentence only."
)

# Enough for a sentence; services charge by size, and refuse pictures of some megabytes.
_MAX_SIDE = 1024
_MIMETYPE = "image/jpeg"
_PROGRESS = "Captioning images"

_Key: TypeAlias = tuple[int, str, str]  # The LLM, the prompt, and the hash of the content.


class ImageCaptioner(TransformComponent):
    """Asks a multimodal LLM for a caption of each image that has none: the node's text from then.

    That is stored, searched by words, and what an LLM reads of the image. Texts, and images that
    have a caption, pass as they are; of the others copies are returned, so that a docstore knows
    the node again that came. Captions of a call that failed are kept for the next one.

    Args:
        llm: Any ``LLM`` of LlamaIndex's that takes images in its messages. (Its older class
            ``MultiModalLLM`` does not run with the versions of LlamaIndex that are supported.)
        prompt: What is asked of each image, in the language that captions are to have.
        overwrite: Whether to ask for captions of images that have one, too.
        on_error: For an image that cannot be read or gets no caption: raise, asking for no more, or
            leave it without one, with a warning.
        num_workers: Requests at a time.
        image_formats: As in `load_image`.

    Example:
        ``IngestionPipeline(transformations=[ImageCaptioner(llm=llm), embed_model])``
    """

    llm: SerializeAsAny[LLM]
    prompt: str = DEFAULT_PROMPT
    overwrite: bool = False
    on_error: OnError = "raise"
    num_workers: int = Field(default=4, ge=1)
    image_formats: tuple[str, ...] = ()

    # Captions by what was asked, until a call that wants them succeeds: they may cost money.
    _kept: dict[_Key, str] = PrivateAttr(default_factory=dict)

    @classmethod
    def class_name(cls) -> str:
        """Return the name that LlamaIndex stores."""
        return "ImageCaptioner"

    def __call__(self, nodes: Sequence[BaseNode], **kwargs: Any) -> Sequence[BaseNode]:
        """Caption nodes.

        Args:
            nodes: Nodes of any kind.
            **kwargs: ``show_progress`` for a progress bar; others are not used.

        Returns:
            The nodes in order, in place of those without a caption copies with one.

        Raises:
            ImageLoadError: If an image cannot be read and ``on_error`` is ``"raise"``.
            CaptionError: If the LLM fails for one, or answers nothing.
        """
        failures: list[Exception] = []
        made: list[_Key] = []

        def ask(node: BaseNode) -> None:
            if failures and self.on_error == "raise":
                return
            try:
                key = self._key(node)
                caption = self._kept.get(key) or _answer(self.llm.chat(self._question(node)))
                self._write(node, caption, key)
                made.append(key)
            except Exception as err:
                failures.append(_named(err, node))

        nodes, wanting = self._copies(nodes)
        pool = ThreadPoolExecutor(self.num_workers)
        try:
            done = pool.map(ask, wanting)
            bar = get_tqdm_iterable(
                done, bool(kwargs.get("show_progress")), _PROGRESS, total=len(wanting)
            )
            for _ in bar:
                pass
        finally:
            pool.shutdown(cancel_futures=True)  # Ctrl-C waits for those under way only.
        self._report(failures, made)
        return nodes

    async def acall(self, nodes: Sequence[BaseNode], **kwargs: Any) -> Sequence[BaseNode]:
        """Do what calling it does, by the asynchronous calls of the LLM."""
        failures: list[Exception] = []
        made: list[_Key] = []

        async def ask(node: BaseNode) -> None:
            if failures and self.on_error == "raise":
                return
            try:
                key = await asyncio.to_thread(self._key, node)
                caption = self._kept.get(key)
                if caption is None:
                    question = await asyncio.to_thread(self._question, node)
                    caption = _answer(await self.llm.achat(question))
                self._write(node, caption, key)
                made.append(key)
            except Exception as err:
                failures.append(_named(err, node))

        nodes, wanting = self._copies(nodes)
        await run_jobs(
            [ask(node) for node in wanting],
            show_progress=bool(kwargs.get("show_progress")),
            workers=self.num_workers,
            desc=_PROGRESS,
        )
        self._report(failures, made)
        return nodes

    def _copies(self, nodes: Sequence[BaseNode]) -> tuple[list[BaseNode], list[BaseNode]]:
        """Return all nodes, and those to ask for, which are copies."""
        all_nodes = [copy_node(node) if self._is_wanting(node) else node for node in nodes]
        return all_nodes, [node for node in all_nodes if self._is_wanting(node)]

    def _is_wanting(self, node: BaseNode) -> bool:
        return is_image_node(node) and (self.overwrite or not node_text(node).strip())

    def _key(self, node: BaseNode) -> _Key:
        return id(self.llm), self.prompt, image_digest(node)

    def _write(self, node: BaseNode, caption: str, key: _Key) -> None:
        self._kept[key] = caption
        set_caption(node, caption)

    def _question(self, node: BaseNode) -> list[ChatMessage]:
        image = ImageBlock(image=_encoded(node, self.image_formats), image_mimetype=_MIMETYPE)
        return [ChatMessage(blocks=[TextBlock(text=self.prompt), image])]

    def _report(self, failures: list[Exception], made: list[_Key]) -> None:
        if failures and self.on_error == "raise":
            raise failures[0]
        for failure in failures:
            logger.warning("no caption: %s", failure)
        for key in made:
            self._kept.pop(key, None)


def _encoded(node: BaseNode, image_formats: tuple[str, ...]) -> bytes:
    """Encode a node's image as any LLM takes it: upright, RGB, JPEG, not too large."""
    image = load_image(node, image_formats=image_formats)
    image.thumbnail((_MAX_SIDE, _MAX_SIDE))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def _answer(response: ChatResponse) -> str:
    caption = (response.message.content or "").strip()
    if not caption:
        raise ValueError("its answer has no text")
    return caption


def _named(err: Exception, node: BaseNode) -> Exception:
    if isinstance(err, ImageLoadError):
        return err
    source = describe_source(node)
    failure = CaptionError(
        f"the LLM gave no caption of {source} ({type(err).__name__}: {err})", source=source
    )
    failure.__cause__ = err
    return failure
