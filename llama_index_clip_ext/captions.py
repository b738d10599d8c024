"""Captions of images, by any multimodal LLM of LlamaIndex's."""

from __future__ import annotations

import asyncio
import io
import logging
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from llama_index.core.async_utils import run_jobs
from llama_index.core.base.llms.types import ChatMessage, ChatResponse, ImageBlock, TextBlock
from llama_index.core.bridge.pydantic import Field, SerializeAsAny
from llama_index.core.llms import LLM
from llama_index.core.schema import BaseNode, TransformComponent
from llama_index.core.utils import get_tqdm_iterable

from .errors import CaptionError, ImageLoadError
from .images import OnError, load_image
from .nodes import is_image_node, node_text, set_caption
from .sources import describe_source

logger = logging.getLogger(__name__)

DEFAULT_PROMPT = (
    "Describe this picture in one sentence that names its objects, their colours, the scene and "
    "any text that can be read in it. Answer with the sentence only."
)

# Enough for a sentence; services charge by size, and refuse pictures of some megabytes.
_MAX_SIDE = 1024
_MIMETYPE = "image/jpeg"
_PROGRESS = "Captioning images"


class ImageCaptioner(TransformComponent):
    """Asks a multimodal LLM for a caption of each image that has none, and writes it into the node.

    The caption becomes the node's text: it is stored, searched by words, and what an LLM reads of
    the image. Nodes are changed in place, so that after a failure the captions that were made are
    kept and another call asks for the others only. Texts, and images that have a caption, pass
    unchanged.

    Args:
        llm: Any ``LLM`` of LlamaIndex's that takes images in its messages. (Its older class
            ``MultiModalLLM`` does not run with the versions of LlamaIndex that are supported.)
        prompt: What is asked of each image, in the language that captions are to have.
        overwrite: Whether to ask for captions of images that have one, too.
        on_error: For an image that cannot be read or gets no caption: raise, asking for no more, or
            leave it without one, with a warning.
        num_workers: Requests at a time.

    Example:
        ``IngestionPipeline(transformations=[ImageCaptioner(llm=llm), embed_model])``
    """

    llm: SerializeAsAny[LLM]
    prompt: str = DEFAULT_PROMPT
    overwrite: bool = False
    on_error: OnError = "raise"
    num_workers: int = Field(default=4, ge=1)

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
            The same nodes.

        Raises:
            ImageLoadError: If an image cannot be read and ``on_error`` is ``"raise"``.
            CaptionError: If the LLM fails for one, or answers nothing.
        """
        failures: list[Exception] = []

        def caption(node: BaseNode) -> None:
            if failures and self.on_error == "raise":
                return
            try:
                set_caption(node, _answer(self.llm.chat(self._question(node))))
            except Exception as err:
                failures.append(_named(err, node))

        wanting = self._wanting(nodes)
        pool = ThreadPoolExecutor(self.num_workers)
        try:
            done = pool.map(caption, wanting)
            bar = get_tqdm_iterable(
                done, bool(kwargs.get("show_progress")), _PROGRESS, total=len(wanting)
            )
            for _ in bar:
                pass
        finally:
            pool.shutdown(cancel_futures=True)  # Ctrl-C waits for those under way only.
        self._report(failures)
        return nodes

    async def acall(self, nodes: Sequence[BaseNode], **kwargs: Any) -> Sequence[BaseNode]:
        """Do what calling it does, by the asynchronous calls of the LLM."""
        failures: list[Exception] = []

        async def caption(node: BaseNode) -> None:
            if failures and self.on_error == "raise":
                return
            try:
                question = await asyncio.to_thread(self._question, node)
                set_caption(node, _answer(await self.llm.achat(question)))
            except Exception as err:
                failures.append(_named(err, node))

        await run_jobs(
            [caption(node) for node in self._wanting(nodes)],
            show_progress=bool(kwargs.get("show_progress")),
            workers=self.num_workers,
            desc=_PROGRESS,
        )
        self._report(failures)
        return nodes

    def _wanting(self, nodes: Sequence[BaseNode]) -> list[BaseNode]:
        return [
            node
            for node in nodes
            if is_image_node(node) and (self.overwrite or not node_text(node).strip())
        ]

    def _question(self, node: BaseNode) -> list[ChatMessage]:
        image = ImageBlock(image=_encoded(node), image_mimetype=_MIMETYPE)
        return [ChatMessage(blocks=[TextBlock(text=self.prompt), image])]

    def _report(self, failures: list[Exception]) -> None:
        if failures and self.on_error == "raise":
            raise failures[0]
        for failure in failures:
            logger.warning("no caption: %s", failure)


def _encoded(node: BaseNode) -> bytes:
    """Encode a node's image as any LLM takes it: upright, RGB, JPEG, not too large."""
    image = load_image(node)
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
