"""Which tower made a vector, remembered for the vectors that were made in this process.

LlamaIndex hands embeddings on as plain lists, and its `VectorStoreIndex` embeds the text of images.
A list cannot say whether it is an image's; what our towers returned can be recognised.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable
from typing import Any, Literal, TypeAlias

import numpy as np

Tower: TypeAlias = Literal["image", "text"]
Provenance: TypeAlias = Literal["image", "text", "unknown"]

UNKNOWN: Provenance = "unknown"

# Vectors that are remembered, at least; some 100 bytes each, and twice as many at most.
_REMEMBERED = 100_000


class _Memory:
    """The towers of the latest vectors, by a hash of the vector in float32."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._latest: dict[int, Tower] = {}
        self._earlier: dict[int, Tower] = {}

    def remember(self, keys: Iterable[int], tower: Tower) -> None:
        with self._lock:
            for key in keys:
                if len(self._latest) >= _REMEMBERED:
                    self._earlier, self._latest = self._latest, {}
                self._latest[key] = tower

    def find(self, key: int) -> Tower | None:
        with self._lock:
            return self._latest.get(key) or self._earlier.get(key)


_MEMORY = _Memory()


def remember(rows: Any, tower: Tower) -> None:
    """Remember that a tower made these vectors.

    Args:
        rows: The embeddings as they are handed out, as lists or float32 rows. Shape ``(n, dim)``.
        tower: The tower.
    """
    _MEMORY.remember([_key(row) for row in rows], tower)


def tower_of(vector: Any) -> Tower | None:
    """Return the tower that made a vector in this process; ``None`` if that is not known.

    Args:
        vector: The embedding as it was handed out. Shape ``(dim,)``.
    """
    return _MEMORY.find(_key(vector))


def _key(vector: Any) -> int:
    # Python's hash of bytes has 64 bits and differs by process, so that nobody can forge one.
    return hash(np.asarray(vector, dtype=np.float32).tobytes())
