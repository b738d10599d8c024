"""Memory and time of `sync_images` over a folder of which a collection holds every image already.

    python benchmarks/sync_memory.py --uri http://127.0.0.1:19530 [--images 300000]
        [--caption-bytes 800] [--repeats 2] [--json FILE] [--work FOLDER]

The rows are written directly, each with the size and the time of an empty file of its name, so that
nothing is embedded; ``--uri images.db`` asks Milvus Lite. More is measured where answers do not fit
one message: all captions together take hundreds of megabytes. Each sync's memory is the peak over
what the process held before the first of them.
"""

from __future__ import annotations

import argparse
import gc
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import common
import numpy as np
from growth import forget_peak, peak, resident
from llama_index.core.schema import ImageNode

from llama_index_clip_ext import create_vector_store, load_embedding, sync_images
from llama_index_clip_ext.nodes import make_id, modified_date, path_name
from llama_index_clip_ext.rows import node_to_row
from llama_index_clip_ext.store import CLIPMilvusVectorStore

_PER_FOLDER = 1_000
_BATCH = 2_000
_WORDS = ("street", "night", "wet", "pavement", "and", "the", "lights", "of", "a", "tram")


def make_files(folder: Path, count: int) -> Iterator[Path]:
    """Make files that are pictures by name only; nobody reads one whose row is up to date."""
    for number in range(count):
        file = folder / f"{number // _PER_FOLDER:04d}" / f"IMG_{number:07d}.jpg"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
        yield file


def make_row(file: Path, number: int, vector: Any, caption_bytes: int) -> dict[str, Any]:
    """Return the row that ingesting a picture of this file would have written."""
    words = np.random.default_rng(number).choice(_WORDS, caption_bytes // 4)
    state = file.stat()
    node = ImageNode(
        id_=make_id(path_name(file)),
        image_path=str(file),
        text=" ".join(words)[:caption_bytes],
        embedding=vector.tolist(),
        metadata={
            "file_path": str(file),
            "file_name": file.name,
            "file_size": state.st_size,
            "last_modified_date": modified_date(state.st_mtime_ns),
            "content_hash": f"{number:064x}",
        },
    )
    return node_to_row(node, len(vector), provenance="image")


def fill(store: CLIPMilvusVectorStore, files: list[Path], caption_bytes: int) -> None:
    chance = np.random.default_rng(0)
    for start in range(0, len(files), _BATCH):
        batch = files[start : start + _BATCH]
        vectors = common.unit_rows(chance.normal(size=(len(batch), store.dim or 0)))
        store.write_rows(
            make_row(file, start + number, vectors[number], caption_bytes)
            for number, file in enumerate(batch)
        )
    store.flush()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--uri", required=True, help="a server's address, or a path ending in .db")
    parser.add_argument("--images", type=int, default=300_000)
    parser.add_argument("--caption-bytes", type=int, default=800)
    common.add_common_options(parser)
    options = parser.parse_args()
    common.print_machine()
    with common.workplace(options.work) as work:
        folder = work / "sync-memory"
        shutil.rmtree(folder, ignore_errors=True)
        files = list(make_files(folder, options.images))
        embed_model = load_embedding(common.checkpoint("tiny", work))
        with create_vector_store(
            embed_model, uri=options.uri, collection_name="sync_memory", overwrite=True
        ) as store:
            started = time.perf_counter()
            fill(store, files, options.caption_bytes)
            print(f"{len(files)} rows written in {time.perf_counter() - started:.0f} s", flush=True)
            del files
            gc.collect()
            before = resident()
            results = []
            for number in range(options.repeats):
                held = resident()
                forget_peak()
                started = time.perf_counter()
                report = sync_images(folder, embed_model=embed_model, vector_store=store)
                seconds = time.perf_counter() - started
                if report.unchanged != options.images:
                    raise RuntimeError(f"{options.images} images are in the folder, and: {report}")
                one = {
                    "seconds": seconds,
                    "megabytes_before": held,
                    "megabytes_over_first": peak() - before,
                    "megabytes_over_before": peak() - held,
                }
                results.append(one)
                print(
                    f"sync {number + 1}: {seconds:.1f} s, peak {peak():.0f} MB, "
                    f"{one['megabytes_over_before']:.1f} MB over what was held before it",
                    flush=True,
                )
        shutil.rmtree(folder)
    common.write_json(options.json, {"what": "sync_memory", "results": results})


if __name__ == "__main__":
    main()
