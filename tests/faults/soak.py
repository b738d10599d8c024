"""An hour of an interactive service, in a few minutes, and what it leaves behind.

A minute of it is 60 queries, one a second, and what happens besides: pictures come, change and
go, one of them broken; queries fail; event loops start and end; a second store opens and closes.
Run as ``python soak.py ADDRESS MODEL FOLDER MINUTES``; prints a line of JSON after every minute.
"""

import asyncio
import contextlib
import gc
import json
import os
import sys
import threading
from pathlib import Path

import psutil
from filter_oracle import group, one
from PIL import Image

from llama_index_clip_ext import (
    CLIPEmbedding,
    FilterError,
    ImageLoadError,
    create_retriever,
    create_vector_store,
    ingest_images,
)

PICTURES = 40  # That there are at any time; some of them change, or go and come back.
NAME = "soak"


def draw(folder, number, minute):
    Image.new("RGB", (32, 24), (6 * number, minute % 256, 90)).save(folder / f"{number}.png")


def pictures_change(model, store, folder, minute):
    """Four pictures change, one goes and comes back, and one is broken."""
    for number in range(4):
        draw(folder, (minute * 4 + number) % PICTURES, minute)
    report = ingest_images(folder, embed_model=model, vector_store=store)
    assert (report.total, len(report.failed)) == (PICTURES + 1, 1), report
    (gone,) = store.get_nodes(filters=group(one("file_name", "==", f"{minute % PICTURES}.png")))
    store.delete_nodes([gone.node_id])
    assert store.count() == PICTURES - 1
    assert ingest_images(folder, embed_model=model, vector_store=store).added == 1


def queries(model, store, minute):
    """By text, by picture, some that fail, and some in an event loop of their own."""
    retriever = create_retriever(model, store, similarity_top_k=5)
    for second in range(40):
        assert len(retriever.retrieve(f"picture {second} of minute {minute}")) == 5
    for number in range(5):
        picture = Image.new("RGB", (20, 20), (number, minute % 256, 0))
        assert len(retriever.retrieve_image(picture)) == 5
        with contextlib.suppress(ImageLoadError):
            retriever.retrieve_image(b"no picture")
            raise AssertionError("no picture was embedded")
    for bad in (None, group(one("width", "text_match", "a"))):
        with contextlib.suppress(FilterError, ValueError):
            broken = create_retriever(model, store, filters=bad, similarity_top_k=20_000)
            broken.retrieve("too many")
            raise AssertionError("a query that must fail did not")

    async def together():
        return await asyncio.gather(*(retriever.aretrieve(f"loop {n}") for n in range(10)))

    assert [len(hits) for hits in asyncio.run(together())] == [5] * 10


def levels():
    gc.collect()
    process = psutil.Process()
    return {
        "rss": process.memory_info().rss,
        "python threads": threading.active_count(),
        "threads": process.num_threads(),
        "files": process.num_fds(),
    }


def main(address, model_dir, folder, minutes):
    folder = Path(folder)
    model = CLIPEmbedding(model_dir)
    for number in range(PICTURES):
        draw(folder, number, 0)
    (folder / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")

    def opened():
        return create_vector_store(model, uri=address, collection_name=NAME)

    store = opened()
    for minute in range(minutes):
        pictures_change(model, store, folder, minute)
        queries(model, store, minute)
        with opened() as second:  # As a notebook does that runs a cell again.
            assert second.count() == PICTURES
        if minute % 5 == 4:
            store.close()
            store = opened()
        print(json.dumps(levels()), flush=True)  # noqa: T201
    store.close()


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    main(*sys.argv[1:4], int(sys.argv[4]))
