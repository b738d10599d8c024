"""Time and memory for 1,000, 10,000 and 100,000 paths through `ingest_images`.

    python benchmarks/growth.py [--counts 1000,10000,100000] [--sinks milvus-lite,none]
        [--json FILE] [--work FOLDER]

Each measurement is a process of its own. The model is tiny and the pictures are small, because
what a path costs is looked at here, not what a pixel does; the paths come from an iterator. The
memory is the peak over what the process held with the model loaded and used once. Milvus Lite
holds its rows in memory by its nature, so the same is measured with a store that counts and drops
what it is given: what is left is this package's own.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import common
import corpus

from llama_index_clip_ext import create_vector_store, ingest_images, load_embedding
from llama_index_clip_ext.store import CLIPMilvusVectorStore

SINKS = ("milvus-lite", "none")
_BASE_PICTURES = 200


class CountingStore(CLIPMilvusVectorStore):
    """A store that counts what it is given, keeps nothing, and therefore knows nothing."""

    def write_rows(self, rows: Iterable[Any]) -> None:
        for _ in rows:
            pass

    def get_hashes(self, node_ids: Sequence[str]) -> dict[str, str]:
        return {}


def resident() -> float:
    """Return the process's memory in MB."""
    if sys.platform.startswith("linux"):
        return _status("VmRSS")
    return peak()


def peak() -> float:
    """Return the most memory that the process has held, in MB."""
    if sys.platform.startswith("linux"):
        return _status("VmHWM")
    # macOS counts bytes.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6


def forget_peak() -> None:
    """Let the peak start from what is held now, where the system can."""
    if sys.platform.startswith("linux"):
        Path("/proc/self/clear_refs").write_text("5")


def _status(key: str) -> float:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(key + ":"):
            return int(line.split()[1]) * 1024 / 1e6
    raise KeyError(key)


def measure_here(count: int, sink: str, work: Path) -> dict[str, Any]:
    """Ingest that many paths in this process."""
    folder = work / "growth" / f"{sink}-{count}-{os.getpid()}"
    folder.mkdir(parents=True)
    files = corpus.make_corpus("jpeg-tiny", _BASE_PICTURES, work)
    embed_model = load_embedding(common.checkpoint("tiny", work))
    try:
        with make_store(sink, embed_model, folder / "images.db") as store:
            # A whole run once, so that what is loaded or made on first use is there.
            ingest_images(
                corpus.link_files(files, folder / "first", 256),
                embed_model=embed_model,
                vector_store=store,
            )
            gc.collect()
            forget_peak()
            before = resident()
            started = time.perf_counter()
            report = ingest_images(
                corpus.link_files(files, folder / "paths", count),
                embed_model=embed_model,
                vector_store=store,
            )
            seconds = time.perf_counter() - started
            after = peak()
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    if report.added != count:
        raise RuntimeError(f"{count} paths went in, and: {report}")
    return {
        "count": count,
        "sink": sink,
        "seconds": seconds,
        "images_per_second": count / seconds,
        "model_megabytes": before,
        "megabytes_over_model": after - before,
    }


def make_store(sink: str, embed_model: Any, uri: Path) -> CLIPMilvusVectorStore:
    if sink == "milvus-lite":
        return create_vector_store(embed_model, uri=uri)
    return CountingStore(
        space=embed_model.space,
        uri=uri,
        token="",
        db_name="",
        collection_name="images",
        overwrite=False,
        index_type="auto",
        similarity_metric="auto",
        consistency_level="Session",
    )


def measure_apart(count: int, sink: str, work: Path) -> dict[str, Any]:
    """Ingest that many paths in a process of its own."""
    command = [sys.executable, __file__, "--one", sink, "--counts", str(count), "--work", str(work)]
    finished = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(finished.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--counts", default="1000,10000,100000")
    parser.add_argument("--sinks", default=",".join(SINKS))
    parser.add_argument("--one", choices=SINKS, help=argparse.SUPPRESS)
    parser.add_argument("--work", type=Path, help="folder for pictures and checkpoints, kept")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    options = parser.parse_args()
    counts = [int(count) for count in options.counts.split(",")]
    if options.one:
        print(json.dumps(measure_here(counts[0], options.one, options.work)))
        return
    common.print_machine()
    results = []
    with common.workplace(options.work) as work:
        # Made here, so that no child counts the making.
        common.checkpoint("tiny", work)
        corpus.make_corpus("jpeg-tiny", _BASE_PICTURES, work)
        for sink in options.sinks.split(","):
            for count in counts:
                one = measure_apart(count, sink, work)
                print(f"{sink:12} {count:7} paths {one['seconds']:8.1f} s", end="")
                print(f" {one['images_per_second']:7.0f}/s", end="")
                print(f"  peak over the model's {one['model_megabytes']:.0f} MB:", end="")
                print(f" {one['megabytes_over_model']:7.1f} MB", flush=True)
                results.append(one)
    common.write_json(options.json, {"what": "growth", "results": results})


if __name__ == "__main__":
    main()
