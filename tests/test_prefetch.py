import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from llama_index_clip_ext.prefetch import batched, prefetch


@pytest.fixture
def executor():
    with ThreadPoolExecutor(4) as executor:
        yield executor


def test_results_come_in_order_from_threads_that_run_side_by_side(executor):
    barrier = threading.Barrier(4, timeout=10)

    def slower_first(number):
        if number < 4:
            barrier.wait()  # Four of them are at it at once, or none gets on.
        time.sleep(0.01 * (number % 4 == 0))
        return number * 10

    assert list(prefetch(executor, slower_first, range(20), ahead=8)) == list(range(0, 200, 10))


@pytest.mark.parametrize("ahead", [0, 1, 5])
def test_no_more_is_drawn_than_is_asked_for(executor, ahead):
    drawn = []

    def items():
        for number in range(100):
            drawn.append(number)
            yield number

    results = prefetch(executor, str, items(), ahead=ahead)
    assert drawn == []
    for taken in range(1, 20):
        next(results)
        assert len(drawn) == taken + ahead


def test_items_are_drawn_by_the_thread_that_takes_the_results(executor):
    def items():
        for _ in range(3):
            yield threading.get_ident()

    drawn_in = list(prefetch(executor, lambda thread: thread, items(), ahead=2))
    assert set(drawn_in) == {threading.get_ident()}


def test_an_exception_is_raised_in_its_place(executor):
    results = prefetch(executor, lambda number: 1 // (2 - number), range(5), ahead=4)
    assert [next(results), next(results)] == [0, 1]
    with pytest.raises(ZeroDivisionError):
        next(results)


def test_an_exception_of_the_items_waits_for_those_before_it(executor):
    def items():
        yield from range(7)
        raise OSError("gone")

    batches = batched(prefetch(executor, lambda n: n * 10, items(), ahead=5), 3)
    assert [next(batches) for _ in range(3)] == [[0, 10, 20], [30, 40, 50], [60]]
    with pytest.raises(OSError, match="gone"):
        next(batches)


def test_what_was_not_begun_is_dropped_when_nobody_wants_it(executor):
    begun = []
    go_on = threading.Event()

    def work(number):
        begun.append(number)
        return number == 0 or go_on.wait(10)

    results = prefetch(executor, work, range(100), ahead=50)
    assert next(results)
    results.close()
    go_on.set()
    executor.shutdown()
    assert len(begun) <= 5


def test_batches():
    assert list(batched(iter(range(7)), 3)) == [[0, 1, 2], [3, 4, 5], [6]]
    assert list(batched([], 3)) == []
    with pytest.raises(ValueError, match="batch_size is 0, expected at least 1"):
        list(batched([1], 0))
