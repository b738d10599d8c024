"""Blocking work off the event loop: in threads of its own, and ended before a cancel returns."""

import asyncio
import contextvars
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from by_hand import MODEL, ask, image

from llama_index_clip_ext import StoreError, create_vector_store
from llama_index_clip_ext.background import (
    read_in_own_thread,
    run_in,
    run_to_end,
    write_in_own_thread,
)

WHO = contextvars.ContextVar("who", default="nobody")


@pytest.fixture
def executor():
    with ThreadPoolExecutor(1) as made:
        yield made


class Work:
    """A function that runs until it is stopped, and says how far it is."""

    def __init__(self):
        self.begun = threading.Event()
        self.stop = threading.Event()
        self.ended = threading.Event()

    def __call__(self):
        self.begun.set()
        self.stop.wait(30)
        time.sleep(0.05)  # What is at hand is finished.
        self.ended.set()
        return "done"


@pytest.mark.parametrize("run", [run_in, run_to_end])
async def test_results_errors_and_the_callers_context_pass(executor, run):
    WHO.set("me")

    def fail():
        raise LookupError("not there")

    assert await run(executor, WHO.get) == "me"
    with pytest.raises(LookupError, match="not there"):
        await run(executor, fail)
    assert await run(executor, lambda: threading.current_thread().name) != "MainThread"


@pytest.mark.parametrize("run", [read_in_own_thread, write_in_own_thread])
async def test_a_thread_of_its_own_waits_for_no_other(run):
    loop = asyncio.get_running_loop()
    work = [Work() for _ in range(8)]
    # LlamaIndex, DNS and others share the loop's own threads, which these fill.
    with ThreadPoolExecutor(1) as shared:
        loop.set_default_executor(shared)
        blocked = loop.run_in_executor(None, work[0])
        others = [asyncio.create_task(run(one)) for one in work[1:]]
        for one in work[1:]:
            while not one.begun.is_set():
                await asyncio.sleep(0.01)
        for one in work:
            one.stop.set()
        assert await asyncio.gather(blocked, *others) == ["done"] * 8


async def test_a_cancelled_read_returns_at_once(executor):
    work = Work()
    task = asyncio.create_task(run_in(executor, work))
    while not work.begun.is_set():
        await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not work.ended.is_set()
    work.stop.set()


@pytest.mark.parametrize("times", [1, 3])
async def test_a_cancelled_write_has_ended_when_the_cancel_returns(times):
    work = Work()
    task = asyncio.create_task(write_in_own_thread(work, stop=work.stop.set))
    while not work.begun.is_set():
        await asyncio.sleep(0.01)
    for _ in range(times):
        task.cancel()
        await asyncio.sleep(0)
    with pytest.raises(asyncio.CancelledError):
        await task
    assert work.ended.is_set()


async def test_so_it_has_by_a_time_limit():
    work = Work()
    with pytest.raises(asyncio.TimeoutError):
        await asyncio.wait_for(write_in_own_thread(work, stop=work.stop.set), 0.2)
    assert work.ended.is_set()


async def test_a_write_that_has_not_begun_never_does(executor):
    first, second = Work(), Work()
    running = asyncio.create_task(run_to_end(executor, first))
    waiting = asyncio.create_task(run_to_end(executor, second))
    while not first.begun.is_set():
        await asyncio.sleep(0.01)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    first.stop.set()
    assert await running == "done"
    assert not second.begun.is_set()


async def test_an_error_after_a_cancel_is_not_logged_as_forgotten(caplog):
    begun, stop = threading.Event(), threading.Event()

    def fail():
        begun.set()
        stop.wait(30)
        raise LookupError("too late")

    task = asyncio.create_task(write_in_own_thread(fail, stop=stop.set))
    while not begun.is_set():
        await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert "never retrieved" not in caplog.text


async def test_asynchronous_calls_of_a_closed_store_say_so(tmp_path):
    store = create_vector_store(MODEL, uri=tmp_path / "closed.db")
    store.close()
    for call in (
        store.aquery(ask()),
        store.aget_nodes(["a"]),
        store.acount(),
        store.async_add([image("a")]),
        store.adelete("a"),
        store.adelete_nodes(["a"]),
        store.aclear(),
    ):
        with pytest.raises(StoreError, match="is closed; open it again"):
            await call
