"""Blocking work off the event loop, in threads of our own, and stopped before a cancel returns."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Callable
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import suppress
from typing import TypeVar

T = TypeVar("T")


async def run_in(executor: Executor, function: Callable[[], T]) -> T:
    """Run a function that only reads in an executor's thread, in the caller's context.

    A cancelled call leaves the function running; its result is dropped.
    """
    return await asyncio.wrap_future(_submit(executor, function))


async def run_to_end(
    executor: Executor, function: Callable[[], T], *, stop: Callable[[], object] | None = None
) -> T:
    """Run a function that writes in an executor's thread; a cancel returns once it has ended.

    Args:
        executor: Where the function runs.
        function: Runs in the caller's context.
        stop: Called when the call is cancelled, so that a long function can end early.

    Raises:
        asyncio.CancelledError: If the call was cancelled, after the function has ended.
    """
    future = _submit(executor, function)
    wrapped = asyncio.wrap_future(future)
    try:
        return await asyncio.shield(wrapped)
    except asyncio.CancelledError:
        if stop:
            stop()
        future.cancel()  # Where it has not begun.
        while not wrapped.done():  # A second cancel must not leave it running, either.
            with suppress(asyncio.CancelledError):
                await asyncio.wait([wrapped])
        if not wrapped.cancelled():
            wrapped.exception()  # Asyncio would log an error that nobody asked for.
        raise


async def read_in_own_thread(function: Callable[[], T]) -> T:
    """Do what `run_in` does, in a thread that no other call waits for."""
    executor = ThreadPoolExecutor(1, "clip-job")
    try:
        return await run_in(executor, function)
    finally:
        executor.shutdown(wait=False)


async def write_in_own_thread(
    function: Callable[[], T], *, stop: Callable[[], object] | None = None
) -> T:
    """Do what `run_to_end` does, in a thread that no other call waits for."""
    executor = ThreadPoolExecutor(1, "clip-job")
    try:
        return await run_to_end(executor, function, stop=stop)
    finally:
        executor.shutdown(wait=False)


def _submit(executor: Executor, function: Callable[[], T]) -> Future[T]:
    return executor.submit(contextvars.copy_context().run, function)
