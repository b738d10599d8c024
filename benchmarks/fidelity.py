"""How far an embedding moves when its picture is decoded to fewer pixels, and what that saves.

    python benchmarks/fidelity.py [--images 16] [--repeats 5] [--work DIR] [--json FILE]

JPEGs of three sizes are decoded by Pillow's draft(), to no fewer pixels than some multiple of the
model's input, and compared with the checkpoint's own processor over the whole picture; all in
float32. With random weights all pictures are alike, so that the cosine says little and the centred
one, without what all of them have in common, says more.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path
from typing import Any

import common
import corpus

from llama_index_clip_ext import load_embedding, load_image

CORPORA = ("jpeg-640", "jpeg-2mp", "jpeg-12mp")
MULTIPLES = (1.0, 1.5, 2.0, 3.0)


def measure(kind: str, directory: Path, images: int, repeats: int, work: Path) -> dict[str, Any]:
    files = corpus.make_corpus(kind, images, work)
    reference = load_embedding(directory, dtype="float32", preprocess="reference")
    encoder = load_embedding(directory, dtype="float32").encoder
    expected = reference.embed_images(files).embeddings
    figures: dict[str, Any] = {}
    for name, prepare in (
        ("reference", lambda file: reference.encoder.prepare(load_image(file))),
        *((f"{multiple}", _decoder(encoder, multiple)) for multiple in MULTIPLES),
    ):
        inputs = [prepare(file) for file in files]
        seconds = []
        for _ in range(repeats):
            started = time.perf_counter()
            for file in files:
                prepare(file)
            seconds.append((time.perf_counter() - started) / len(files))
        model = reference.encoder if name == "reference" else encoder
        figures[name] = {
            "ms": 1000 * statistics.median(seconds),
            **common.worst_cosines(model.encode_prepared(inputs), expected),
        }
    return figures


def _decoder(encoder: Any, multiple: float) -> Any:
    least_side = round(multiple * encoder.preprocessing.height)
    return lambda file: encoder.prepare(load_image(file, least_side=least_side))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=16)
    common.add_common_options(parser)
    options = parser.parse_args()
    common.print_machine()
    with common.workplace(options.work) as work:
        directory = common.checkpoint("clip-b32", work)
        figures = {
            kind: measure(kind, directory, options.images, options.repeats, work)
            for kind in CORPORA
        }
    print(f"{'corpus':10} {'decoded to':>10} {'ms, one thread':>15} {'cosine':>9} {'centred':>9}")
    for kind, rows in figures.items():
        for name, row in rows.items():
            print(
                f"{kind:10} {name:>10} {row['ms']:15.2f} {row['cosine']:9.5f} "
                f"{row['centred_cosine']:9.5f}"
            )
    common.write_json(options.json, {"fidelity": figures})


if __name__ == "__main__":
    main()
