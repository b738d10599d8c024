"""Work on items ahead of whoever takes the results: in threads, in order, and not too far."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Executor, Future
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")


def prefetch(
    executor: Executor, function: Callable[[T], R], items: Iterable[T], *, ahead: int
) -> Generator[R, None, None]:
    """Map a function over items in an executor's threads, in order.

    The items are drawn by the thread that takes the results, so that they may come from a generator
    that no other thread may run.

    Args:
        executor: Where the function runs.
        function: Called with one item.
        items: Drawn as they are needed.
        ahead: How many items may be drawn, and their results wait, before they are taken: the most
            that is ever held of a stream of any length.

    Yields:
        The results, in the order of the items. An exception is raised where its result would be;
        one of the items' own, after the results of those before it.
    """
    waiting: deque[Future[R]] = deque()
    error: Exception | None = None
    iterator = iter(items)
    try:
        while True:
            try:
                item = next(iterator)
            except StopIteration:
                break
            except Exception as err:
                error = err
                break
            waiting.append(executor.submit(function, item))
            if len(waiting) > ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
        if error:
            raise error
    finally:
        for future in waiting:
            future.cancel()


def batched(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """Yield lists of ``size`` items, the last one shorter.

    Raises:
        ValueError: If the size is below 1.
        Exception: Of the items, after those before it were yielded.
    """
    if size < 1:
        raise ValueError(f"batch_size is {size}, expected at least 1")
    batch: list[T] = []
    try:
        for item in items:
            batch.append(item)
            if len(batch) == size:
                yield batch
                batch = []
    except Exception:
        if batch:
            yield batch
        raise
    if batch:
        yield batch


def usable_cores() -> int:
    """Return how many cores this process may run on; a container's share of time is not seen."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
