"""Rows that a Milvus server has not indexed yet: flushed, waited for, and looked out for.

What Milvus 2.3.5 was measured to do:

* Rows that were written are in a growing segment, which is searched row by row until it holds 4,992
  rows: 39 for each of the 128 lists of an interim IVF index, of which a search then looks into 16.
  Most rows that a filter matches are missed there. (milvus: queryNode.segcore.interimIndex and
  faiss's min_points_per_centroid.)
* A flush seals them. The sealed segment is loaded with an interim index, too, until its own is
  built: some 20 seconds for 6,000 rows.
* A sealed segment of fewer than 1,024 rows gets no index of its own (rootCoord.
  minSegmentSizeToEnableIndex), but an interim one from some 640 rows on.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

from tqdm.auto import tqdm

from .connection import Connection
from .errors import CollectionNotFoundError, StoreError, StoreUnavailableError

logger = logging.getLogger(__name__)

MAX_GROWING_ROWS = 4_000
_MIN_INDEXED_ROWS = 1_024
_MIN_INTERIM_ROWS = 600

# Seconds. Servers allow a flush of a collection each ten seconds: quotaAndLimits.flushRate.
_FLUSH_INTERVAL = 10.0
_LOOK_INTERVAL = 10.0
_POLL = 0.5
# Without progress: while indexes are built, of which a large one takes minutes, and once they are.
_STALLED_BUILDING = 300.0
_STALLED_LOADING = 60.0

_SEALED = "Sealed"
_FLUSHED = "Flushed"


class IndexState(NamedTuple):
    """How far a server is with the rows that were flushed.

    Attributes:
        stored: Rows that are sealed.
        searched: Rows of them that are loaded with all the index that they will get.
        pending: Rows whose index is being built.
    """

    stored: int
    searched: int
    pending: int

    @property
    def is_complete(self) -> bool:
        """Whether there is nothing left to wait for."""
        return self.pending == 0 and self.searched >= self.stored


class FreshRows:
    """Knows, for one store, which rows of a server's collection are not in its index."""

    def __init__(self, connection: Connection, collection_name: str) -> None:
        self._connection = connection
        self._name = collection_name
        self._lock = threading.Lock()
        self._flushed_at = -_FLUSH_INTERVAL
        self._written = 0  # By this store, since it flushed.
        self._has_interim_index = False
        self._growing = 0  # By the server, when it was last asked.
        self._looked_at = 0.0
        self.look()

    @property
    def count(self) -> int:
        """Rows that are growing, at least, as far as this store knows."""
        return max(self._written, self._growing)

    @property
    def has_many(self) -> bool:
        """Whether there are so many that searches may miss some."""
        return self.count > MAX_GROWING_ROWS

    def is_searched_inexactly(self) -> bool:
        """Whether searches may go through an interim index; looks again from time to time."""
        if time.monotonic() - self._looked_at > _LOOK_INTERVAL:
            self.look()
        return self._has_interim_index or self.count >= MAX_GROWING_ROWS

    def look(self) -> None:
        """Ask the server for its segments; where a role may not, nothing is known of them."""
        self._looked_at = time.monotonic()
        try:
            counted = self._connection.call(
                "query", self._name, filter="", output_fields=["count(*)"]
            )
            sealed = self._segments("list_loaded_segments", _SEALED)
        except (StoreUnavailableError, CollectionNotFoundError):
            raise
        except StoreError as err:
            logger.debug("the server does not tell of its segments: %s", err)
            return
        self._has_interim_index = any(
            not one.index_id and one.num_rows > _MIN_INTERIM_ROWS for one in sealed
        )
        # Deleted rows are not counted: these are the fewest that there may be.
        self._growing = max(0, int(counted[0]["count(*)"]) - _rows(sealed))

    def add(self, count: int) -> None:
        """Count rows that were written."""
        with self._lock:
            self._written += count

    def seal_if_many(self, *, look: bool = False) -> bool:
        """Flush if there are so many that searches miss some; say so if it cannot be done now.

        Args:
            look: Whether to count what other clients wrote, too.

        Returns:
            Whether the rows were flushed.
        """
        if look:
            self.look()
        is_early = time.monotonic() - self._flushed_at < _FLUSH_INTERVAL
        if not self.has_many or (is_early and not look):
            return False  # If it is early, the next write or search does it.
        try:
            self.seal()
        except StoreError as err:
            logger.warning(
                "%d rows of collection %r are stored, but could not be flushed (%s): until the "
                "server seals them by itself, searches may miss some",
                *(self.count, self._name, err),
            )
            return False
        return True

    def seal(self) -> None:
        """Flush what was written.

        Raises:
            StoreError: If the server refuses it.
        """
        with self._lock:
            # First, so that a server that refuses is not asked again by each search.
            self._flushed_at = time.monotonic()
            written = self._written
        self._connection.call("flush", self._name)
        with self._lock:
            self._written -= written
            self._growing = 0
            self._has_interim_index = True  # Until it is looked at again.

    def state(self) -> IndexState | None:
        """Ask how far the server is with what was flushed; ``None`` where it does not tell."""
        try:
            index = self._connection.call("describe_index", self._name, "embedding") or {}
            stored = self._segments("list_persistent_segments", _FLUSHED)
            loaded = self._segments("list_loaded_segments", _SEALED)
        except (StoreUnavailableError, CollectionNotFoundError):
            raise
        except StoreError as err:
            logger.debug("the server does not tell of its segments: %s", err)
            return None
        ready = [one for one in loaded if one.index_id or one.num_rows < _MIN_INDEXED_ROWS]
        return IndexState(_rows(stored), _rows(ready), int(index.get("pending_index_rows", 0)))

    def wait(
        self, timeout: float | None, stop: threading.Event | None, *, show_progress: bool
    ) -> bool:
        """Wait until everything that was flushed is indexed.

        Args:
            timeout: Seconds, at most; ``None`` for as long as the server makes progress.
            stop: Once it is set, waiting ends.
            show_progress: Show a progress bar.

        Returns:
            Whether it is; ``False`` after the timeout, and where the server does not tell.
        """
        started = moved = time.monotonic()
        last: IndexState | None = None
        with tqdm(desc="Indexing on the server", unit="row", disable=not show_progress) as bar:
            while (state := self.state()) is not None:
                bar.total, bar.n = state.stored, min(state.searched, state.stored)
                bar.refresh()
                if state.is_complete:
                    self.look()
                    return True
                now = time.monotonic()
                if state != last:
                    last, moved = state, now
                patience = _STALLED_BUILDING if state.pending else _STALLED_LOADING
                is_stuck = timeout is None and now - moved >= patience
                is_late = timeout is not None and now - started >= timeout
                if is_late or is_stuck or (stop and stop.is_set()):
                    return False
                time.sleep(_POLL)
        return False

    def _segments(self, method: str, state: str) -> list[Any]:
        """Return the collection's segments of a state, each once though replicas list their own."""
        found = {one.segment_id: one for one in self._connection.call(method, self._name)}
        # Level 0 holds deletes.
        return [one for one in found.values() if one.state_name == state and one.level_name != "L0"]


def _rows(segments: Sequence[Any]) -> int:
    return sum(one.num_rows for one in segments)
