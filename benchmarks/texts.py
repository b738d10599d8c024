"""Short texts to rows: this package and sentence-transformers, in one run.

    python benchmarks/texts.py [--texts 10000] [--repeats 5] [--model-kind clip-b32] [--json FILE]

The texts are captions of 4 to 12 words, no two alike. Both embed the same ones with the same
weights and take turns; their rows are compared, item by item, with those of transformers' own
tokenizer and model in float32.
"""

from __future__ import annotations

import argparse
import itertools
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import common
import numpy as np
import sentence_transformers
import torch
import transformers

from llama_index_clip_ext import load_embedding

OURS = "this package"
BASELINE = "sentence-transformers"
_CHECKED = 512
_WARM_UP = 64

_HOW = [
    "small",
    "large",
    "old",
    "new",
    "bright",
    "dark",
    "wooden",
    "quiet",
    "crowded",
    "empty",
    "wet",
    "colourful",
]
_WHAT = [
    "dog",
    "cat",
    "horse",
    "boat",
    "bicycle",
    "house",
    "bridge",
    "child",
    "market",
    "kitchen",
    "train",
    "garden",
]
_DOES = ["standing", "waiting", "resting", "shining", "moving", "seen"]
_WHERE = ["river", "street", "table", "hill", "window", "beach", "station", "field", "wall", "tree"]
_WHEN = ["at night", "in the morning", "in the rain", "under a clear blue sky", "before a storm"]


def captions(count: int) -> list[str]:
    """Return that many captions, no two alike, in an order that mixes their lengths."""
    short = (f"a {how} {what}, {word}" for how, what, word in itertools.product(_HOW, _WHAT, _DOES))
    parts = itertools.product(_HOW, _WHAT, _DOES, _WHERE, ("", *_WHEN))
    long = (
        f"a {how} {what} {does} by the {where} {when}".rstrip()
        for how, what, does, where, when in parts
    )
    everything = [*short, *long]
    random.Random(0).shuffle(everything)
    if count > len(everything):
        raise ValueError(f"{count} texts are wanted, there are {len(everything)}")
    return everything[:count]


def reference_rows(directory: Path, texts: list[str]) -> np.ndarray:
    """Embed texts by transformers, one at a time, so that no padding is in play."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(directory)
    model = transformers.AutoModel.from_pretrained(directory, dtype=torch.float32).eval()
    rows = []
    with torch.inference_mode():
        for text in texts:
            outputs = model.get_text_features(**tokenizer([text], return_tensors="pt"))
            row = outputs if isinstance(outputs, torch.Tensor) else outputs.pooler_output
            rows.append(row[0].numpy())
    return np.stack(rows)


def measure(options: argparse.Namespace, work: Path) -> dict[str, Any]:
    texts = captions(options.texts)
    directory = common.checkpoint(options.model_kind, work)
    embed_model = load_embedding(directory, dtype=options.dtype)
    peer = sentence_transformers.SentenceTransformer(str(directory), device="cpu")
    runs: dict[str, Callable[[list[str]], Any]] = {
        OURS: embed_model.get_text_embedding_batch,
        BASELINE: lambda some: peer.encode(
            some, batch_size=32, normalize_embeddings=True, show_progress_bar=False
        ),
    }
    rows: dict[str, Any] = {}

    def task(name: str) -> Callable[[int], float]:
        def rate(number: int) -> float:
            started = time.perf_counter()
            rows[name] = runs[name](texts)
            return len(texts) / (time.perf_counter() - started)

        return rate

    for run in runs.values():
        run(texts[:_WARM_UP])
    rates = common.take_turns({name: task(name) for name in runs}, options.repeats)
    step = max(1, -(-len(texts) // _CHECKED))
    reference = reference_rows(directory, texts[::step])
    results = {}
    for name, values in rates.items():
        some = np.asarray(rows[name], dtype=np.float32)[::step]
        results[name] = common.summary(values) | common.worst_cosines(some, reference)
    between = common.worst_cosines(np.asarray(rows[OURS]), np.asarray(rows[BASELINE]))
    return {
        "what": "texts",
        "texts": len(texts),
        "model_kind": options.model_kind,
        "dtype": options.dtype,
        "results": results,
        "worst_cosine_between": between["cosine"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--texts", type=int, default=10_000)
    parser.add_argument("--model-kind", choices=common.MODEL_KINDS, default="clip-b32")
    parser.add_argument("--dtype", default="auto", help="passed on to load_embedding")
    common.add_common_options(parser)
    options = parser.parse_args()
    common.print_machine()
    with common.workplace(options.work) as work:
        figures = measure(options, work)
    print(f"{figures['texts']} texts, {figures['model_kind']}, our dtype {figures['dtype']}")
    results = figures["results"]
    for name, one in results.items():
        spread = f"{one['min']:.0f} to {one['max']:.0f}"
        ratio = one["median"] / results[BASELINE]["median"]
        print(f"{name:24} {one['median']:8.0f} texts/s  ({spread})  x {ratio:.2f}", end="")
        print(f"  cosine {one['cosine']:.5f}, centred {one.get('centred_cosine', 1):.4f}")
    print(f"between the two: cosine at least {figures['worst_cosine_between']:.5f}")
    common.write_json(options.json, figures)


if __name__ == "__main__":
    main()
