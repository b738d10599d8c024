"""Texts as the tokens that a text tower reads: cut to its context, or cut into windows of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any


@dataclass(frozen=True)
class TextTokenizer:
    """A checkpoint's own tokenizer, with the lengths that its text tower was trained on.

    Attributes:
        tokenizer: transformers' tokenizer.
        context_length: Tokens that the text tower reads, special tokens included.
        pads_to_context: Whether it was trained on texts padded to the context, reading the padding.
        lower_case: Whether it was trained on lower-cased texts. Not every tokenizer sees to that:
            SigLIP 2's has ``do_lower_case`` in its file and a class that ignores it
            (huggingface/transformers#43054).
    """

    tokenizer: Any
    context_length: int
    pads_to_context: bool = False
    lower_case: bool = False

    def __post_init__(self) -> None:
        # Each of these towers was trained with the padding after the text; the class of some
        # tokenizers puts it before, unless the checkpoint says otherwise.
        self.tokenizer.padding_side = "right"
        # transformers 4 says once that padding apart from tokenizing is slower; it is no choice
        # here, where texts are cut in between.
        getattr(self.tokenizer, "deprecation_warnings", {})["Asking-to-pad-a-fast-tokenizer"] = True

    @cached_property
    def _marks(self) -> tuple[int, int]:
        """How many special tokens begin and end a text, such as CLS and SEP, or EOS alone."""
        mask = self.tokenizer("a", return_special_tokens_mask=True)["special_tokens_mask"]
        return mask.index(0), mask[::-1].index(0)

    def tokenize(self, texts: Sequence[str]) -> list[list[int]]:
        """Return each text's tokens with its special ones, however many there are."""
        if self.lower_case:
            texts = [text.lower() for text in texts]
        rows: list[list[int]] = self.tokenizer(list(texts), truncation=False, verbose=False)[
            "input_ids"
        ]
        return rows

    @property
    def room(self) -> int:
        """Tokens of a text that the context has room for, beside the special ones."""
        return self.context_length - sum(self._marks)

    def body(self, text: str) -> list[int]:
        """Return a text's tokens without special ones, however many there are."""
        n_start, n_end = self._marks
        (row,) = self.tokenize([text])
        return row[n_start : len(row) - n_end]

    def windows(self, row: list[int]) -> list[list[int]]:
        """Cut tokens into pieces that fit the context, each with special tokens of its own.

        Args:
            row: From `tokenize`.

        Returns:
            One or more rows; a row that fits comes back as it is.
        """
        if len(row) <= self.context_length:
            return [row]
        n_start, n_end = self._marks
        start, body, end = row[:n_start], row[n_start : len(row) - n_end], row[len(row) - n_end :]
        room = self.room
        return [start + body[at : at + room] + end for at in range(0, len(body), room)]

    def pad(self, rows: list[list[int]]) -> dict[str, Any]:
        """Make a batch of rows of one length.

        Returns:
            The text tower's inputs, each an array of shape ``(n, tokens)``.
        """
        if not self.pads_to_context:
            return dict(self.tokenizer.pad({"input_ids": rows}, return_tensors="np"))
        batch = self.tokenizer.pad(
            {"input_ids": rows},
            padding="max_length",
            max_length=self.context_length,
            return_attention_mask=False,
            return_tensors="np",
        )
        return {"input_ids": batch["input_ids"]}
