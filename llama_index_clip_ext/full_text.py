"""Milvus's full text: captions split into words, weighed by BM25."""

from __future__ import annotations

import re
import string
from collections import Counter
from functools import lru_cache
from importlib.util import find_spec
from typing import Any, Literal, TypeAlias, get_args

from pymilvus import CollectionSchema, DataType, Function, FunctionType

from .errors import StoreError

FullText: TypeAlias = Literal["standard", "english", "chinese"]

# The name that LlamaIndex's own Milvus store gives the column.
SPARSE_FIELD = "sparse_embedding"
INDEX = {"index_type": "SPARSE_INVERTED_INDEX", "metric_type": "BM25"}

_NEEDS = (2, 5)  # Milvus's first release with the BM25 function.

# Lucene's English stop words, which are Milvus's "_english_": written out, because Milvus Lite
# knows no names of lists.
_ENGLISH_STOP_WORDS = "a an and are as at be but by for if in into is it no not of on or such that "
_ENGLISH_STOP_WORDS += "the their then there these they this to was will with"
# Milvus Lite's jieba keeps punctuation, which a server's cnalphanumonly drops.
_PUNCTUATION = string.punctuation + "，。、；：？！“”‘’（）《》〈〉【】「」『』…—～·"

# Milvus's built-in analyzers in parts, since Milvus Lite knows only the parts; what it knows not
# of these, the stemmer and the filters of characters, it passes over. milvus.io: "english",
# "chinese", "standard". Collections were made with these: another list is another name.
_ANALYZERS: dict[str, dict[str, Any]] = {
    "standard": {"tokenizer": "standard", "filter": ["lowercase"]},
    "english": {
        "tokenizer": "standard",
        "filter": [
            "lowercase",
            {"type": "stop", "stop_words": _ENGLISH_STOP_WORDS.split()},
            {"type": "stemmer", "language": "english"},
        ],
    },
    "chinese": {
        "tokenizer": "jieba",
        "filter": [
            "cnalphanumonly",
            "lowercase",
            {"type": "stop", "stop_words": list(_PUNCTUATION)},
        ],
    },
}


def check_analyzer(full_text: str | None) -> None:
    """Refuse what is no analyzer.

    Raises:
        ValueError: If it is none of those of `FullText`, nor ``None``.
    """
    if full_text is not None and full_text not in _ANALYZERS:
        known = ", ".join(repr(name) for name in get_args(FullText))
        raise ValueError(f"full_text is {full_text!r}, expected {known} or None")


def check_support(version: str | None, full_text: FullText) -> None:
    """Refuse a Milvus that could not keep such a collection, before anything is made or dropped.

    Args:
        version: A server's; ``None`` for Milvus Lite.
        full_text: The analyzer that is wanted.

    Raises:
        StoreError: If it has no BM25, or no tokenizer for the language.
    """
    if version is None:
        if full_text == "chinese" and find_spec("jieba") is None:
            raise no_jieba()
        return
    number = re.search(r"(\d+)\.(\d+)", version)
    # A build without a number is taken to be a new one.
    if number and tuple(map(int, number.groups())) < _NEEDS:
        raise StoreError(
            f"full_text={full_text!r} needs Milvus {'.'.join(map(str, _NEEDS))} or newer, this "
            f"server is {version}; upgrade it, use Milvus Lite, or leave full_text out"
        )


def no_jieba() -> StoreError:
    """Say what Milvus Lite lacks for Chinese."""
    return StoreError(
        "full_text='chinese' on Milvus Lite needs the package jieba, for the whole file and as "
        "long as the collection is in it: pip install jieba (the extra 'chinese' of this package)"
    )


def text_options(full_text: FullText | None) -> dict[str, Any]:
    """Return the options of the text's column."""
    if full_text is None:
        return {}
    return {"enable_analyzer": True, "analyzer_params": _ANALYZERS[full_text]}


def add_bm25(schema: CollectionSchema) -> None:
    """Have Milvus fill a column with the words of the text's."""
    schema.add_field(SPARSE_FIELD, DataType.SPARSE_FLOAT_VECTOR)
    schema.add_function(
        Function(
            name="bm25",
            function_type=FunctionType.BM25,
            input_field_names=["text"],
            output_field_names=[SPARSE_FIELD],
        )
    )


def lite_terms(full_text: str, text: str) -> dict[int, float]:
    """Count the words of a text as Milvus Lite numbers them."""
    return dict(Counter(_lite_analyzer(full_text).analyze(text)))


@lru_cache
def _lite_analyzer(full_text: str) -> Any:
    from milvus_lite.analyzer import create_analyzer

    return create_analyzer(_ANALYZERS[full_text])


def searchable(text: str) -> str:
    """Return a query as Milvus takes it; empty if there is no word in it.

    BM25 knows no operators: quotes, ``AND`` and the like are words and punctuation.
    """
    text = text.encode("utf-8", "ignore").decode()
    return text if any(character.isalnum() for character in text) else ""
