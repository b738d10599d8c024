"""Files in, vectors in Milvus Lite out: this package and sentence-transformers, in one run.

    python benchmarks/throughput.py [--images 48] [--repeats 5] [--model DIRECTORY]

Without --model, a ViT-B/32 with random weights stands in: speed does not depend on their values.
The two take turns on the same files and weights; medians and their ratio are printed.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

import checkpoints
import numpy as np
import sentence_transformers
import torch
import transformers
from PIL import Image
from pymilvus import MilvusClient

from llama_index_clip_ext import create_vector_store, ingest_images, load_embedding


def write_photos(folder: Path, count: int) -> list[Path]:
    """Write 640x480 JPEGs with the smooth and rough parts of a photograph."""
    rng = np.random.default_rng(0)
    for number in range(count):
        coarse = Image.fromarray(rng.integers(0, 256, (12, 16, 3), dtype=np.uint8))
        pixels = np.asarray(coarse.resize((640, 480), Image.Resampling.BICUBIC), dtype=np.int16)
        pixels = np.clip(pixels + rng.normal(0, 12, pixels.shape), 0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{number:05}.jpg", quality=88)
    return sorted(folder.iterdir())


def run_ours(files: list[Path], embed_model, uri: Path) -> float:
    with create_vector_store(embed_model, uri=uri) as store:
        started = time.perf_counter()
        report = ingest_images(files, embed_model=embed_model, vector_store=store)
        seconds = time.perf_counter() - started
    assert report.added == len(files)
    return len(files) / seconds


def run_peer(files: list[Path], model, client: MilvusClient, name: str) -> float:
    client.create_collection(name, dimension=512, metric_type="COSINE")
    started = time.perf_counter()
    images = [Image.open(file) for file in files]
    rows = model.encode(images, batch_size=32, normalize_embeddings=True)
    client.insert(name, [{"id": i, "vector": row.tolist()} for i, row in enumerate(rows)])
    return len(files) / (time.perf_counter() - started)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=48)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--model", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        work = Path(scratch)
        (work / "photos").mkdir()
        files = write_photos(work / "photos", options.images)
        directory = options.model or checkpoints.make_clip(work / "vit-b-32")
        embed_model = load_embedding(directory)
        peer = sentence_transformers.SentenceTransformer(str(directory), device=None)
        client = MilvusClient(str(work / "peer.db"))
        run_ours(files[:4], embed_model, work / "warm.db")
        run_peer(files[:4], peer, client, "warm")
        ours, theirs = [], []
        for repeat in range(options.repeats):
            ours.append(run_ours(files, embed_model, work / f"{repeat}.db"))
            theirs.append(run_peer(files, peer, client, f"run_{repeat}"))
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores; ", end="")
    print(f"torch {torch.__version__}, transformers {transformers.__version__}, ", end="")
    print(f"sentence-transformers {sentence_transformers.__version__}; ", end="")
    print(f"{options.images} JPEGs of 640x480, {options.repeats} repeats, images/s (median, range)")
    for name, rates in (("this package", ours), ("sentence-transformers", theirs)):
        print(f"{name:24} {statistics.median(rates):6.1f}  ({min(rates):.1f} to {max(rates):.1f})")
    print(f"{'ratio':24} {statistics.median(ours) / statistics.median(theirs):6.2f}")


if __name__ == "__main__":
    main()
