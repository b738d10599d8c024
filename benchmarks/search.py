"""Milvus Lite searched by this package, by LlamaIndex's own store, and by pymilvus alone.

    python benchmarks/search.py [--rows 100000] [--repeats 10] [--queries 64] [--model DIRECTORY]

The same random unit vectors of 512 components go into three stores: ours as it is preset (IP), ours
with COSINE, and LlamaIndex's MilvusVectorStore with COSINE and all else preset. They take turns on
the same queries. Recall is against the exact answer of numpy. Without --model, a ViT-B/32 with
random weights embeds the texts: speed does not depend on their values. Filling takes a minute per
store of 100,000 rows; try --rows 2000.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from importlib import metadata
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

import checkpoints
import numpy as np
from llama_index.core.schema import ImageNode
from llama_index.core.vector_stores import MetadataFilter, MetadataFilters
from llama_index.core.vector_stores.types import VectorStoreQuery
from llama_index.vector_stores.milvus import MilvusVectorStore

from llama_index_clip_ext import create_retriever, create_vector_store, load_embedding
from llama_index_clip_ext.rows import OUTPUT_FIELDS

DIM = 512
TOP_K = 10
# One row in ten: by a key that our collections have a column for, and by one of the user's own.
FILTERS = {
    "none": None,
    "width (a column of ours)": ("width", 3),
    "album (one's own)": ("album", 3),
}


def unit_vectors(count: int, rng: np.random.Generator) -> np.ndarray:
    rows = rng.normal(size=(count, DIM)).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def node(number: int, vector: np.ndarray) -> ImageNode:
    """Make a node with the metadata that `load_image_nodes` gives, and one key of the user's."""
    name = f"{number:06}.jpg"
    facts = {"file_path": f"/photos/{name}", "file_name": name, "file_type": "image/jpeg"}
    facts |= {"file_size": 100_000 + number, "last_modified_date": "2024-05-01"}
    facts |= {"width": number % 10, "height": 480, "content_hash": f"{number:064x}"}
    return ImageNode(
        id_=str(number),
        text=f"photo {number}",
        image_path=f"/photos/{name}",
        embedding=vector.tolist(),
        metadata={**facts, "album": number % 10},
    )


def fill(store: MilvusVectorStore, vectors: np.ndarray) -> None:
    for start in range(0, len(vectors), 1000):
        batch = vectors[start : start + 1000]
        store.add([node(number, vector) for number, vector in enumerate(batch, start)])
    store.client.flush(store.collection_name)


def asked(vector: np.ndarray, wanted: tuple[str, int] | None) -> VectorStoreQuery:
    filters = None
    if wanted:
        filters = MetadataFilters(filters=[MetadataFilter(key=wanted[0], value=wanted[1])])
    return VectorStoreQuery(
        query_embedding=vector.tolist(), similarity_top_k=TOP_K, filters=filters
    )


def in_turn(calls: dict[str, Callable[[int], Any]], repeats: int) -> tuple[dict, dict]:
    """Return the median milliseconds of each, and its answers; the first call is not counted."""
    times, answers = {name: [] for name in calls}, {name: [] for name in calls}
    for repeat in range(-1, repeats):
        for name, call in calls.items():
            started = time.perf_counter()
            answer = call(max(repeat, 0))
            if repeat >= 0:
                times[name].append(1000 * (time.perf_counter() - started))
                answers[name].append(answer)
    return {name: statistics.median(values) for name, values in times.items()}, answers


def compare_stores(
    stores: dict[str, Callable], vectors: np.ndarray, queries: np.ndarray, repeats: int
) -> None:
    """Print each store's time and recall, and how many times faster the first is than the last."""
    print(f"\nsearch, {len(vectors)} x {DIM}, {TOP_K} hits{'ms':>31}  recall")
    for title, wanted in FILTERS.items():
        matches = np.arange(len(vectors)) % 10 == wanted[1] if wanted else slice(None)
        ids = np.arange(len(vectors))[matches]
        best = [ids[np.argsort(-(vectors[matches] @ query))[:TOP_K]] for query in queries]
        medians, answers = in_turn(
            {
                name: lambda n, ask=ask, wanted=wanted: ask(asked(queries[n], wanted))
                for name, ask in stores.items()
            },
            repeats,
        )
        for name, median in medians.items():
            found = [
                len({str(i) for i in best[n]} & set(answers[name][n].ids)) / TOP_K
                for n in range(repeats)
            ]
            print(f"{title:26}{name:26}{median:8.1f}  {np.mean(found):.3f}")
        first, *_, last = medians.values()
        print(f"{title:26}{'last / first (bar: 3)':26}{last / first:8.2f}")


def compare_roads(embed_model, store, repeats: int, count: int) -> None:
    """Print what our retriever takes beyond encoding and pymilvus's search; one by one and many."""
    retriever = create_retriever(embed_model, store, similarity_top_k=TOP_K)

    def raw(number: int) -> object:
        vector = embed_model.encoder.encode_texts([f"photo number {number} of a cat"], batch_size=1)
        return store.client.search(
            store.collection_name,
            data=vector.tolist(),
            anns_field="embedding",
            limit=TOP_K,
            output_fields=OUTPUT_FIELDS,
            partition_names=["images"],
        )

    medians, _ = in_turn(
        {
            "encode, pymilvus search": raw,
            "retrieve": lambda n: retriever.retrieve(f"photo number {n} of a cat"),
        },
        max(repeats, 40),
    )
    print(f"\n{'a text, warm':52}{'ms':>8}")
    for name, median in medians.items():
        print(f"{'':26}{name:26}{median:8.1f}")
    alone, ours = medians.values()
    print(f"{'':26}{'more (bar: 10 %)':26}{100 * (ours / alone - 1):6.1f} %")
    texts = [f"photo number {number} of a cat" for number in range(count)]
    medians, _ = in_turn(
        {
            "retrieve, one by one": lambda _: [retriever.retrieve(text) for text in texts],
            "retrieve_many": lambda _: retriever.retrieve_many(texts),
        },
        1,
    )
    print(f"\n{f'{count} texts':52}{'ms':>8}")
    for name, median in medians.items():
        print(f"{'':26}{name:26}{median:8.1f}")
    alone, together = medians.values()
    print(f"{'':26}{'times as fast':26}{alone / together:8.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--queries", type=int, default=64)
    parser.add_argument("--model", type=Path)
    options = parser.parse_args()
    rng = np.random.default_rng(0)
    vectors, queries = unit_vectors(options.rows, rng), unit_vectors(options.repeats, rng)
    with tempfile.TemporaryDirectory() as scratch, ExitStack() as stack:
        work = Path(scratch)
        embed_model = load_embedding(options.model or checkpoints.make_clip(work / "vit-b-32"))
        ours, cosine = (
            stack.enter_context(
                create_vector_store(
                    embed_model, uri=work / f"{metric}.db", similarity_metric=metric
                )
            )
            for metric in ("IP", "COSINE")
        )
        theirs = MilvusVectorStore(uri=str(work / "theirs.db"), dim=DIM, similarity_metric="COSINE")
        for store in (ours, cosine, theirs):
            fill(store, vectors)
        print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores; ", end="")
        packages = ("torch", "pymilvus", "milvus-lite", "llama-index-vector-stores-milvus")
        print(", ".join(f"{name} {metadata.version(name)}" for name in packages))
        stores = {
            "ours (IP)": lambda query: ours.query(query, modality="image"),
            "ours (COSINE)": lambda query: cosine.query(query, modality="image"),
            "MilvusVectorStore (COSINE)": theirs.query,
        }
        compare_stores(stores, vectors, queries, options.repeats)
        compare_roads(embed_model, ours, options.repeats, options.queries)


if __name__ == "__main__":
    main()
