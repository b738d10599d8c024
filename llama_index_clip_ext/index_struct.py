"""The type under which LlamaIndex keeps a `CLIPVectorStoreIndex`, and finds it again.

Importing this module teaches LlamaIndex the type. Any name of the package that needs LlamaIndex
imports it; the type's name is what a process reads that did not import the package.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

from llama_index.core.data_structs.data_structs import IndexDict
from llama_index.core.data_structs.registry import INDEX_STRUCT_TYPE_TO_INDEX_STRUCT_CLASS
from llama_index.core.indices.registry import INDEX_STRUCT_TYPE_TO_INDEX_CLASS

# LlamaIndex looks the type up in a dictionary, so that this is all of its KeyError.
INDEX_TYPE = (
    "CLIPVectorStoreIndex (import llama_index_clip_ext before this index is loaded: "
    "from llama_index_clip_ext import CLIPVectorStoreIndex)"
)


class CLIPIndexDict(IndexDict):
    """What LlamaIndex stores of a `CLIPVectorStoreIndex`."""

    @classmethod
    def get_type(cls) -> Any:
        """Return the name of the type."""
        return INDEX_TYPE


def _make_index(**kwargs: Any) -> Any:
    """Make the index, whose module is above this one."""
    return import_module(f"{__package__}.index").CLIPVectorStoreIndex(**kwargs)


INDEX_STRUCT_TYPE_TO_INDEX_STRUCT_CLASS[INDEX_TYPE] = CLIPIndexDict  # type: ignore[index]
INDEX_STRUCT_TYPE_TO_INDEX_CLASS[INDEX_TYPE] = _make_index  # type: ignore[index,assignment]
