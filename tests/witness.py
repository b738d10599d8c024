"""A stand-in for a multimodal LLM that notes what it is given and answers by a script."""

from __future__ import annotations

from collections.abc import Iterable

from llama_index.core.base.llms.types import ChatMessage, ImageBlock, TextBlock
from llama_index.core.llms.mock import MockFunctionCallingLLM


class Witness:
    """Holds an ``llm``, and what it saw.

    Args:
        script: Its answers in order; ``"seen"`` after the last.
    """

    def __init__(self, script: Iterable[ChatMessage] = ()) -> None:
        self._script = list(script)
        self.messages: list[ChatMessage] = []
        self.llm = MockFunctionCallingLLM(response_generator=self._answer, is_chat_model=True)

    @property
    def images(self) -> list[bytes]:
        """The content of the pictures it was given."""
        blocks = [block for message in self.messages for block in message.blocks]
        return [block.resolve_image().read() for block in blocks if isinstance(block, ImageBlock)]

    @property
    def text(self) -> str:
        """All texts that it was given."""
        blocks = [block for message in self.messages for block in message.blocks]
        return "\n".join(block.text for block in blocks if isinstance(block, TextBlock))

    def _answer(self, messages, **kwargs):
        self.messages += messages
        return (
            self._script.pop(0) if self._script else ChatMessage(role="assistant", content="seen")
        )
