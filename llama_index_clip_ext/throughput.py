"""Where the time of indexing goes, measured on the user's own pictures."""

from __future__ import annotations

import os
import tempfile
import time
import uuid
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from .devices import resolve_device
from .dual_encoder import DualEncoderEmbedding
from .errors import ImageLoadError
from .images import load_image
from .ingest import READERS, ingest_images
from .nodes import list_images, make_image_node, no_images
from .prefetch import batched, usable_cores
from .sources import read_source
from .store import CLIPMilvusVectorStore, create_vector_store
from .vectors import Rows


@dataclass(frozen=True)
class ThroughputReport:
    """What each step of indexing takes by itself, and what all of them together reach.

    Attributes:
        images: Pictures that were measured.
        setup: Model, device, arithmetic, batch size and threads, in words.
        seconds: Per image, by step: ``read`` and ``decode`` (and resize) by one thread,
            ``transfer`` to the device, ``forward``, and ``insert``.
        threads: By step, how many work at it at once.
        images_per_second: Of a whole run, in which the steps overlap.
        bound: The step that bounds it.
        advice: What would make it faster.
    """

    images: int
    setup: str
    seconds: dict[str, float]
    threads: dict[str, int]
    images_per_second: float
    bound: str
    advice: str

    def __str__(self) -> str:
        lines = [
            f"{self.images} images; {self.setup}",
            f"{'step':10}{'ms/image':>10}{'threads':>10}{'images/s':>10}",
        ]
        for step, seconds in self.seconds.items():
            threads = self.threads[step]
            rate = threads / seconds if seconds else float("inf")
            lines.append(f"{step:10}{1000 * seconds:10.2f}{threads:10}{rate:10.0f}")
        lines.append(f"{'together':30}{self.images_per_second:10.0f}")
        return "\n".join([*lines, f"{self.bound} bounds it: {self.advice}"])


def measure_throughput(
    source: str | os.PathLike[str] | Iterable[str | os.PathLike[str]],
    *,
    embed_model: DualEncoderEmbedding,
    uri: str | os.PathLike[str] | None = None,
    token: str = "",
    n_images: int = 256,
) -> ThroughputReport:
    """Time the steps of indexing on pictures of one's own, and say what bounds it.

    Args:
        source: A folder, a glob pattern, one file, or an iterable of files.
        embed_model: The model to index with.
        uri: Where to store the pictures meanwhile, in a collection of its own that is dropped
            afterwards; ``None`` is an embedded file that is removed.
        token: Of the server.
        n_images: Pictures to measure by, the first of the source.

    Raises:
        FileNotFoundError: If there are no pictures.
        ImageLoadError: If none of them can be read.
    """
    found = list_images(source, image_formats=embed_model.image_formats)
    paths = [Path(path) for path in islice(found, n_images)]
    if not paths:
        raise no_images(source if isinstance(source, (str, os.PathLike)) else "")
    read = _time_read(paths)  # First, while the files may still be on their disk alone.
    # Loads the model, chooses the batch size, and leaves out what is no picture.
    warm = embed_model.embed_images(paths, on_error="skip")
    if not warm.kept:
        raise ImageLoadError(warm.failures[0].reason, source=warm.failures[0].source)
    paths = [paths[index] for index in warm.kept]
    seconds = {"read": read, **_time_model(paths, embed_model)}
    with tempfile.TemporaryDirectory() as scratch:
        name = f"clip_ext_bench_{uuid.uuid4().hex}"
        address = Path(scratch) / "bench.db" if uri is None else uri
        with create_vector_store(
            embed_model, uri=address, token=token, collection_name=name
        ) as store:
            try:
                report = ingest_images(paths, embed_model=embed_model, vector_store=store)
                seconds["insert"] = _time_insert(paths, warm.embeddings, store)
            finally:
                store.client.drop_collection(name)
    return _report(embed_model, seconds, len(paths), report.images_per_second)


def _time_read(paths: Sequence[Path]) -> float:
    started = time.perf_counter()
    for path in paths:
        # What cannot be read is left out, and said, by who decodes it.
        with suppress(OSError, ImageLoadError):
            read_source(path)
    return (time.perf_counter() - started) / len(paths)


def _time_model(paths: Sequence[Path], embed_model: DualEncoderEmbedding) -> dict[str, float]:
    """Time the steps from a file to its embedding, one after the other, each by one thread."""
    encoder = embed_model.encoder
    least_side = encoder.least_side
    seconds = dict.fromkeys(("decode", "transfer", "forward"), 0.0)

    @contextmanager
    def timed(step: str) -> Iterator[None]:
        started = time.perf_counter()
        yield
        seconds[step] += (time.perf_counter() - started) / len(paths)

    for batch in batched(paths, embed_model.embed_batch_size):
        contents = [read_source(path) for path in batch]
        with timed("decode"):
            pictures = (
                load_image(
                    one,
                    background=embed_model.background,
                    least_side=least_side,
                    image_formats=embed_model.image_formats,
                )
                for one in contents
            )
            inputs = [encoder.prepare(picture) for picture in pictures]
        with timed("transfer"):
            tensors = encoder.transfer(inputs)
        with timed("forward"):
            encoder.encode_transferred(tensors)
    return seconds


def _time_insert(paths: Sequence[Path], rows: Rows, store: CLIPMilvusVectorStore) -> float:
    nodes: list[Any] = [
        make_image_node(path).model_copy(update={"embedding": row})
        for path, row in zip(paths, rows.tolist(), strict=True)
    ]
    started = time.perf_counter()
    store.add(nodes)
    return (time.perf_counter() - started) / len(paths)


def _report(
    embed_model: DualEncoderEmbedding, seconds: dict[str, float], images: int, rate: float
) -> ThroughputReport:
    encoder = embed_model.encoder
    device = resolve_device(encoder.device)
    threads = dict.fromkeys(seconds, 1) | {"read": READERS, "decode": encoder.n_decoders}
    bound = max(seconds, key=lambda step: seconds[step] / threads[step])
    setup = (
        f"{encoder.checkpoint.name} on {device} in {encoder.arithmetic}, "
        f"{embed_model.embed_batch_size} per forward pass, {usable_cores()} cores"
    )
    advice = _ADVICE[bound]
    if bound == "decode" and encoder.preprocess == "reference":
        advice = "preprocess='fast' decodes and resizes no more than it takes"
    if bound == "forward":
        advice = _ADVICE["forward on cuda" if device.startswith("cuda") else "forward"]
        if encoder.arithmetic == "float32" and encoder.dtype != "auto":
            advice = "dtype='auto' computes in a faster type where the device has one"
    return ThroughputReport(images, setup, seconds, threads, rate, bound, advice)


_ADVICE = {
    "read": "copy the pictures to a faster disk",
    "decode": "more cores, or pictures that are stored no larger than they are needed",
    "transfer": "a GPU with a faster bus, or more images per forward pass (embed_batch_size)",
    "forward": "a GPU, a smaller model, or int8: clip-ext quantize FOLDER, then dtype='int8'",
    "forward on cuda": "a smaller model, a faster GPU, or another one beside it",
    "insert": "a Milvus server takes rows faster than an embedded file",
}
