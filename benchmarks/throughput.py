"""Files in, vectors in Milvus Lite out: this package and the others, in one run.

    python benchmarks/throughput.py [--corpus jpeg-640] [--images 64] [--repeats 5]
        [--model-kind clip-b32] [--dtype auto] [--peers sentence-transformers,fastembed]
        [--to store] [--json FILE] [--work FOLDER]

All embed the same files with the same weights and take turns; medians, ranges and ratios are
printed. Each one's rows, as they arrived in the store, are compared with those of transformers'
own processor and model in float32. The peers write through raw pymilvus; with ``--to rows``
nothing is stored by anybody.
"""

from __future__ import annotations

import argparse
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import common
import corpus
import numpy as np
import peers
from pymilvus import MilvusClient

from llama_index_clip_ext import create_vector_store, ingest_images, load_embedding

OURS = "this package"
BASELINE = "sentence-transformers"
# What each one must hold per item to be compared at all.
MIN_COSINE = 0.999
_CHECKED = 256
_WARM_UP = 32

# Takes files and a fresh folder for a database; returns seconds and rows.
Run = Callable[[list[Path], Path], tuple[float, np.ndarray]]


def ours_to_store(embed_model: Any) -> Run:
    def run(files: list[Path], folder: Path) -> tuple[float, np.ndarray]:
        with create_vector_store(embed_model, uri=folder / "images.db") as store:
            started = time.perf_counter()
            report = ingest_images(files, embed_model=embed_model, vector_store=store)
            seconds = time.perf_counter() - started
            if report.added != len(files):
                raise RuntimeError(f"{len(files)} files went in, and: {report}")
            rows = read_rows(store.client, store.collection_name, "embedding", files)
        return seconds, rows

    return run


def ours_to_rows(embed_model: Any) -> Run:
    def run(files: list[Path], folder: Path) -> tuple[float, np.ndarray]:
        started = time.perf_counter()
        rows = embed_model.embed_images(files).embeddings
        return time.perf_counter() - started, rows

    return run


def peer_to_store(embed: peers.Embed) -> Run:
    def run(files: list[Path], folder: Path) -> tuple[float, np.ndarray]:
        client = MilvusClient(str(folder / "images.db"))
        try:
            dim = embed(files[:1]).shape[1]
            client.create_collection("images", dimension=dim, metric_type="COSINE")
            started = time.perf_counter()
            peers.write_rows(client, "images", files, embed(files))
            seconds = time.perf_counter() - started
            rows = read_rows(client, "images", "vector", files)
        finally:
            client.close()
        return seconds, rows

    return run


def peer_to_rows(embed: peers.Embed) -> Run:
    def run(files: list[Path], folder: Path) -> tuple[float, np.ndarray]:
        started = time.perf_counter()
        rows = embed(files)
        return time.perf_counter() - started, rows

    return run


def read_rows(
    client: MilvusClient, collection: str, vector_field: str, files: list[Path]
) -> np.ndarray:
    """Read the vectors of some of the files back, in the order of `checked`."""
    wanted = [str(file) for file in checked(files)]
    found = client.query(
        collection, filter=f"file_path in {wanted!r}", output_fields=["file_path", vector_field]
    )
    by_path = {row["file_path"]: row[vector_field] for row in found}
    return np.array([by_path[path] for path in wanted], dtype=np.float32)


def checked(items: Any) -> Any:
    """Return all of a few items, or evenly spaced ones of many: the reference is slow."""
    return items[:: max(1, -(-len(items) // _CHECKED))]


def measure(options: argparse.Namespace, work: Path) -> dict[str, Any]:
    files = corpus.make_corpus(options.corpus, options.images, work)
    directory = common.checkpoint(options.model_kind, work)
    names = [name for name in options.peers.split(",") if name]
    loaded, skipped = peers.load_peers(names, directory, work)
    embed_model = load_embedding(directory, dtype=options.dtype)
    to_store = options.to == "store"
    runs = {OURS: ours_to_store(embed_model) if to_store else ours_to_rows(embed_model)}
    for name, embed in loaded.items():
        runs[name] = peer_to_store(embed) if to_store else peer_to_rows(embed)
    rows: dict[str, np.ndarray] = {}

    def task(name: str) -> Callable[[int], float]:
        def rate(number: int) -> float:
            folder = work / "databases" / f"{name.replace(' ', '-')}-{number}"
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            seconds, read = runs[name](files, folder)
            shutil.rmtree(folder, ignore_errors=True)
            rows[name] = read if to_store else checked(read)
            return len(files) / seconds

        return rate

    for name, run in runs.items():
        folder = work / "databases" / f"warm-{name.replace(' ', '-')}"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        run(files[:_WARM_UP], folder)
        shutil.rmtree(folder, ignore_errors=True)
    rates = common.take_turns({name: task(name) for name in runs}, options.repeats)
    reference = peers.make_transformers(directory, work)(checked(files))
    results = {}
    for name, values in rates.items():
        results[name] = common.summary(values) | common.worst_cosines(rows[name], reference)
    return {
        "what": "throughput",
        "corpus": options.corpus,
        "images": options.images,
        "megabytes": sum(file.stat().st_size for file in files) / 1e6,
        "model_kind": options.model_kind,
        "dtype": options.dtype,
        "to": options.to,
        "results": results,
        "skipped": skipped,
    }


def print_results(figures: dict[str, Any]) -> None:
    each = 1000 * figures["megabytes"] / figures["images"]
    print(f"{figures['images']} x {figures['corpus']} ({each:.0f} KB each), ", end="")
    print(f"{figures['model_kind']}, our dtype {figures['dtype']}, to {figures['to']}")
    results = figures["results"]
    for base in (BASELINE, "transformers"):
        if base in results:
            break
    else:
        base = OURS
    heads = ("images/s", "range", f"x {base}", "cosine", "centred", "nearest")
    print(f"{'':24} {heads[0]:>8}  {heads[1]:^16} {heads[2]:>23} {heads[3]:>8} ", end="")
    print(f"{heads[4]:>8} {heads[5]:>8}")
    for name, one in results.items():
        spread = f"{one['min']:.1f} to {one['max']:.1f}"
        ratio = one["median"] / results[base]["median"]
        print(f"{name:24} {one['median']:8.1f}  {spread:^16} {ratio:23.2f} ", end="")
        print(f"{one['cosine']:8.5f} {one.get('centred_cosine', 1):8.4f} ", end="")
        print(f"{one.get('nearest_is_itself', 1):8.3f}", end="")
        print("  BELOW 0.999" if one["cosine"] < MIN_COSINE else "")
    for name, reason in figures["skipped"].items():
        print(f"{name:24} skipped: {reason}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--corpus", choices=corpus.KINDS, default="jpeg-640")
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--model-kind", choices=common.MODEL_KINDS, default="clip-b32")
    parser.add_argument("--dtype", default="auto", help="passed on to load_embedding")
    parser.add_argument("--peers", default=",".join(peers.PEERS), help="names with commas between")
    parser.add_argument("--to", choices=("store", "rows"), default="store")
    common.add_common_options(parser)
    options = parser.parse_args()
    unknown = set(filter(None, options.peers.split(","))) - set(peers.PEERS)
    if unknown:
        parser.error(
            f"no peer is called {', '.join(sorted(unknown))}; {', '.join(peers.PEERS)} are"
        )
    common.print_machine()
    with common.workplace(options.work) as work:
        figures = measure(options, work)
    print_results(figures)
    common.write_json(options.json, figures)


if __name__ == "__main__":
    main()
