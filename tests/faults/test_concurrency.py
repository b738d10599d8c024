"""Many threads and coroutines on one store: nothing lost, nothing that nobody wrote."""

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor

import mixed_work
import pytest
from by_hand import MODEL, image
from PIL import Image

from llama_index_clip_ext import CLIPEmbedding, create_retriever, create_vector_store, encoder

ASYNC = {
    "add": "async_add",
    "delete": "adelete",
    "delete_nodes": "adelete_nodes",
    "query": "aquery",
    "get_nodes": "aget_nodes",
    "count": "acount",
}


@pytest.fixture(params=["Milvus Lite", "server"])
def place(request, tmp_path):
    """Where to open a store: the name for the table, and what `create_vector_store` takes."""
    if request.param == "server":
        uri = request.getfixturevalue("server")
        return request.param, {"uri": uri, "collection_name": "mixed", "overwrite": True}
    return request.param, {"uri": tmp_path / "mixed.db"}


def work(store, worker, steps, barrier):
    barrier.wait()
    for method, args, take in worker.steps(steps):
        take(getattr(store, method)(*args))


async def work_async(store, worker, steps):
    for method, args, take in worker.steps(steps):
        take(await getattr(store, ASYNC[method])(*args))


def settle(what, store, workers, tally):
    """Count what came of it, and compare."""
    wrong, strange = mixed_work.compare(store, workers)
    tally(what, tried=sum(one.calls for one in workers), lost=len(wrong), let_in=len(strange))
    assert wrong == []
    assert strange == []
    n_images = sum(
        node.class_name() == "ImageNode" for one in workers for node in one.stored.values()
    )
    assert store.count("image") == n_images
    assert store.count("text") == sum(len(one.stored) for one in workers) - n_images


def test_32_threads_of_mixed_calls(place, tries, tally):
    name, options = place
    workers = [mixed_work.Worker(f"thread {number}") for number in range(32)]
    steps = tries(short=3, full=60)
    barrier = threading.Barrier(len(workers), timeout=60)
    with create_vector_store(MODEL, **options) as store:
        with ThreadPoolExecutor(len(workers)) as pool:
            list(pool.map(lambda one: work(store, one, steps, barrier), workers))
        settle(f"32 threads, {name}", store, workers, tally)


def test_50_coroutines_of_mixed_calls(place, tries, tally):
    name, options = place
    workers = [mixed_work.Worker(f"coroutine {number}") for number in range(50)]
    steps = tries(short=2, full=25)

    async def together(store):
        await asyncio.gather(*(work_async(store, one, steps) for one in workers))

    with create_vector_store(MODEL, **options) as store:
        asyncio.run(together(store))
        settle(f"50 coroutines, {name}", store, workers, tally)


def test_threads_of_two_stores_of_one_collection(place, tries, tally):
    """Each thread goes from one store to the other and must find there what it has just written."""
    name, options = place
    workers = [mixed_work.Worker(f"either {number}") for number in range(8)]
    steps = tries(short=3, full=60)

    def alternate(worker):
        for number, (method, args, take) in enumerate(worker.steps(steps)):
            take(getattr(stores[number % 2], method)(*args))

    with (
        create_vector_store(MODEL, **options) as one,
        create_vector_store(MODEL, **{**options, "overwrite": False}) as two,
        ThreadPoolExecutor(len(workers)) as pool,
    ):
        stores = (one, two)
        list(pool.map(alternate, workers))
        settle(f"two stores at once, {name}", two, workers, tally)


def test_first_use_and_all_others_of_one_model_by_16_threads(
    clip, clip_dir, store, monkeypatch, tries, tally
):
    """Each tower is loaded once, and every thread gets what one thread alone would."""
    loads = []
    load = encoder.load_tower
    monkeypatch.setattr(encoder, "load_tower", lambda *args: loads.append(args[1]) or load(*args))
    rounds, n_threads = tries(short=1, full=10), 16
    pictures = [Image.new("RGB", (30, 20), (12 * n, 255 - 12 * n, 60)) for n in range(20)]
    nodes = [image(str(n), clip.get_image_embedding(one)) for n, one in enumerate(pictures)]
    store.add(nodes)
    loads.clear()

    def use(model, barrier=None):
        retriever = create_retriever(model, store, similarity_top_k=5)
        calls = [
            lambda n: model.get_text_embedding(f"text {n}"),
            lambda n: model.get_query_embedding(f"query {n}"),
            lambda n: model.get_image_embedding(pictures[n]),
            lambda n: [hit.node.node_id for hit in retriever.retrieve(f"text {n}")],
            lambda n: [hit.node.node_id for hit in retriever.retrieve_image(pictures[n])],
        ]
        if barrier:
            barrier.wait()
        return [calls[n % 5](n % 20) for n in range(25)]

    expected = use(clip)
    wrong = 0
    for _ in range(rounds):
        loads.clear()
        model = CLIPEmbedding(clip_dir)
        barrier = threading.Barrier(n_threads, timeout=60)
        with ThreadPoolExecutor(n_threads) as pool:
            answers = [pool.submit(use, model, barrier) for _ in range(n_threads)]
        for answer in answers:
            for got, one in zip(answer.result(), expected, strict=True):
                wrong += got != (pytest.approx(one, abs=1e-5) if isinstance(one[0], float) else one)
        assert sorted(loads) == ["image", "text"]
    tally("16 threads, one model", tried=rounds * n_threads * 25, lost=wrong)
    assert wrong == 0
