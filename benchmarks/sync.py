"""A folder of which nothing has changed, synced, indexed again, and by LlamaIndex's pipeline.

    python benchmarks/sync.py [--images 10000] [--repeats 5] [--json FILE] [--work FOLDER]

The files are links to 200 JPEGs of 640x480, so that they are read from memory; a disk or a network
would make more of what is not read. The model is tiny: nothing is embedded but once, at first. They
take turns; LlamaIndex's IngestionPipeline has its docstore in memory. Last, one in a hundred is
renamed and one in a hundred written anew.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path
from typing import Any

import common
import corpus
from llama_index.core.ingestion import DocstoreStrategy, IngestionPipeline
from llama_index.core.storage.docstore import SimpleDocumentStore

from llama_index_clip_ext import (
    create_vector_store,
    ingest_images,
    load_embedding,
    load_image_nodes,
    sync_images,
)

_BASE_PICTURES = 200


def change(folder: Path) -> None:
    """Rename one file in a hundred, and write another one anew."""
    files = sorted(folder.rglob("*.jpg"))
    for number, file in enumerate(files):
        if number % 100 == 0:
            file.rename(file.with_name(f"new-{file.name}"))
        elif number % 100 == 50:
            content = files[(number + 1) % len(files)].read_bytes()
            file.unlink()  # Not through the link.
            file.write_bytes(content)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=10_000)
    common.add_common_options(parser)
    options = parser.parse_args()
    common.print_machine()
    with common.workplace(options.work) as work:
        files = corpus.make_corpus("jpeg-640", _BASE_PICTURES, work)
        folder = work / "sync"
        shutil.rmtree(folder, ignore_errors=True)
        pictures = folder / "pictures"
        list(corpus.link_files(files, pictures, options.images))
        embed_model = load_embedding(common.checkpoint("tiny", work))
        pipeline = IngestionPipeline(
            transformations=[embed_model],
            docstore=SimpleDocumentStore(),
            docstore_strategy=DocstoreStrategy.DUPLICATES_ONLY,
        )
        with create_vector_store(embed_model, uri=folder / "images.db") as store:
            both: dict[str, Any] = {"embed_model": embed_model, "vector_store": store}
            first = common.timed(lambda: sync_images(pictures, **both))(0)
            pipeline.run(nodes=load_image_nodes(pictures))
            tasks = {
                "sync_images": lambda: sync_images(pictures, **both),
                "ingest_images": lambda: ingest_images(pictures, **both),
                "IngestionPipeline": lambda: pipeline.run(nodes=load_image_nodes(pictures)),
            }
            timed = {name: common.timed(run) for name, run in tasks.items()}
            seconds = common.take_turns(timed, options.repeats)
            change(pictures)
            report = sync_images(pictures, **both)
        shutil.rmtree(folder)
    figures = {name: common.summary(values) for name, values in seconds.items()}
    print(f"\n{options.images} images; the first sync: {first:.1f} s")
    for name, figure in figures.items():
        ratio = figure["median"] / figures["sync_images"]["median"]
        print(f"{name:20}{figure['median']:8.2f} s{ratio:8.1f} x")
    print(f"after changes: {report}")
    common.write_json(options.json, {"images": options.images, "first": first, **figures})


if __name__ == "__main__":
    main()
