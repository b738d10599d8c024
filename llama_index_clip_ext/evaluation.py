"""How good is it? Recall and MRR of a retriever, both ways, with confidence intervals."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from llama_index.core.evaluation import MRR, HitRate
from llama_index.core.schema import QueryBundle
from tqdm.auto import tqdm

from .background import read_in_own_thread
from .images import ImageFailure, OnError
from .metrics import Estimate, bootstrap_means, nearest
from .pairs import Pairs, find_pairs
from .retriever import CLIPRetriever

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_BATCH = 256  # Queries whose hits are held at a time.


@dataclass(frozen=True)
class RetrievalEvaluation:
    """How well texts find images and images find texts.

    Attributes:
        text_to_image: ``recall@k`` for each k, and ``mrr@K`` for the largest.
        image_to_text: The same, the other way.
        n_texts: Queries of text_to_image; what image_to_text chooses from.
        n_images: Queries of image_to_text.
        n_collection: Images in the collection; what text_to_image chooses from.
        confidence: Of the intervals.
        skipped: Pairs that were left out, each with its position and the reason.
    """

    text_to_image: Mapping[str, Estimate]
    image_to_text: Mapping[str, Estimate]
    n_texts: int
    n_images: int
    n_collection: int
    confidence: float
    skipped: list[ImageFailure]

    def __str__(self) -> str:
        rows: list[list[object]] = [
            ["", "text -> image", "image -> text"],
            ["queries", self.n_texts, self.n_images],
            ["among", f"{self.n_collection} images", f"{self.n_texts} texts"],
        ]
        rows += [
            [name, self.text_to_image[name], self.image_to_text[name]]
            for name in self.text_to_image
        ]
        cells = [[str(cell) for cell in row] for row in rows]
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        lines = [
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
            for row in cells
        ]
        lines.append(f"[in brackets: {self.confidence:.0%} bootstrap intervals over the queries]")
        return "\n".join([*lines, *(f"skipped: {failure}" for failure in self.skipped)])

    def to_dict(self) -> dict[str, Any]:
        """Return plain dicts, lists and numbers, which ``json.dumps`` takes."""
        return asdict(self)

    def plot(self) -> Figure:
        """Draw the metrics as bars, with their intervals.

        Returns:
            A figure that a notebook shows; ``.savefig("retrieval.png")`` keeps it.

        Raises:
            ImportError: If matplotlib is not installed.
        """
        try:
            import matplotlib.pyplot as plt
        except ImportError as err:
            raise ImportError(
                "plot() draws with matplotlib, which is not installed: pip install matplotlib (the "
                "extra 'plot' of this package)"
            ) from err
        figure, axes = plt.subplots(figsize=(8, 4), layout="constrained")
        directions = {
            f"text to image ({self.n_texts} queries)": self.text_to_image,
            f"image to text ({self.n_images} queries)": self.image_to_text,
        }
        for offset, (name, metrics) in zip((-0.2, 0.2), directions.items(), strict=True):
            values = np.array([[e.value, e.low, e.high] for e in metrics.values()]).T
            spread = [values[0] - values[1], values[2] - values[0]]
            places = np.arange(len(metrics)) + offset
            bars = axes.bar(
                places, values[0], 0.38, yerr=np.maximum(spread, 0), capsize=3, label=name
            )
            axes.bar_label(bars, fmt="%.2f", label_type="center", color="white")
        axes.set_xticks(range(len(self.text_to_image)), list(self.text_to_image))
        axes.set_ylim(0, 1.05)
        axes.set_title(f"Retrieval, with {self.confidence:.0%} bootstrap intervals")
        figure.legend(loc="outside lower center", ncols=2)
        # A notebook shows what is returned; left open, it would show the figure a second time.
        plt.close(figure)
        return figure


def evaluate_retrieval(
    retriever: CLIPRetriever,
    pairs: Pairs,
    *,
    ks: Sequence[int] = (1, 5, 10),
    on_missing: OnError = "raise",
    confidence: float = 0.95,
    n_resamples: int = 1000,
    seed: int = 0,
    show_progress: bool = False,
) -> RetrievalEvaluation:
    """Measure how often texts find their images, and images their texts, with which certainty.

    ``recall@k`` is the share of queries with at least one right answer among the first k, as on
    Flickr30k and COCO (LlamaIndex's ``HitRate``); ``mrr@K`` the mean of 1 / rank of the first right
    answer, 0 where the first K hold none.

    Text to image asks the retriever, with its filters and cutoff, over the whole collection. Image
    to text is the Flickr30k and COCO protocol: each image of the pairs, by its stored vector,
    against all texts of the pairs, exactly. A collection that holds more than the pairs' images
    makes the first the harder of the two.

    Args:
        retriever: What `create_retriever` returns; it is left as it is, and asked for as many hits
            as the largest k needs.
        pairs: ``(text, image)`` pairs, the images as paths, bytes, nodes or whatever else the
            package takes but pixels, matched to the collection by the content of their files, so
            that copies and moved files count. Or LlamaIndex's dataset of ``queries`` and
            ``relevant_docs``, whose ids are those of nodes. A text may come with several images:
            each is right; and an image with several texts.
        ks: Numbers of hits.
        on_missing: For a pair whose image is not in the collection, or cannot be read, or whose
            text is empty: raise, or leave the pair out and list it in ``skipped``.
        confidence: Of the intervals, such as 0.95. They are percentile bootstraps over queries,
            taken as independent: several texts of each image make them somewhat too narrow.
        n_resamples: Bootstrap resamples.
        seed: Same seed, same intervals.
        show_progress: Show progress bars.

    Raises:
        ImageLoadError: If an image cannot be read and ``on_missing`` is ``"raise"``; carries the
            pair's index.
        ValueError: If images are not in the collection, or texts are empty, and ``on_missing`` is
            ``"raise"``; if there are no pairs, or none is left; if ``ks``, ``confidence`` or the
            retriever's modality is impossible.
        TypeError: If a pair is not a text and an image.

    Source:
        Karpathy and Fei-Fei 2015, section 4 (recall@k both ways). arXiv:1412.2306
    """
    _check_options(retriever, ks, on_missing, confidence, n_resamples)
    ks = sorted(set(ks))
    found, images, skipped = find_pairs(retriever.vector_store, pairs, on_missing)
    images_of: dict[str, set[str]] = {}
    texts_of: dict[str, set[str]] = {}
    for pair in found:
        images_of.setdefault(pair.text, set()).update(images[pair.image].node_ids)
        texts_of.setdefault(pair.image, set()).add(pair.text)
    texts = list(images_of)
    embeddings = retriever.embed_model.get_text_embedding_batch(texts, show_progress=show_progress)
    text_rows = np.array(embeddings, dtype=np.float32)
    image_rows = np.stack([images[image].vector for image in texts_of])
    retrieved = _retrieve(retriever, texts, embeddings, ks[-1], show_progress)
    ranked = ([texts[place] for place in row] for row in nearest(image_rows, text_rows, ks[-1]))
    text_to_image = _score(zip(images_of.values(), retrieved, strict=True), ks)
    image_to_text = _score(zip(texts_of.values(), ranked, strict=True), ks)
    options: dict[str, Any] = {"confidence": confidence, "n_resamples": n_resamples, "seed": seed}
    return RetrievalEvaluation(
        text_to_image=bootstrap_means(text_to_image, **options),
        image_to_text=bootstrap_means(image_to_text, **options),
        n_texts=len(images_of),
        n_images=len(texts_of),
        n_collection=retriever.vector_store.count("image"),
        confidence=confidence,
        skipped=skipped,
    )


async def aevaluate_retrieval(
    retriever: CLIPRetriever,
    pairs: Pairs,
    *,
    ks: Sequence[int] = (1, 5, 10),
    on_missing: OnError = "raise",
    confidence: float = 0.95,
    n_resamples: int = 1000,
    seed: int = 0,
    show_progress: bool = False,
) -> RetrievalEvaluation:
    """Do what `evaluate_retrieval` does, off the event loop."""
    return await read_in_own_thread(
        lambda: evaluate_retrieval(
            retriever,
            pairs,
            ks=ks,
            on_missing=on_missing,
            confidence=confidence,
            n_resamples=n_resamples,
            seed=seed,
            show_progress=show_progress,
        )
    )


def _check_options(
    retriever: object,
    ks: Sequence[int],
    on_missing: str,
    confidence: float,
    n_resamples: int,
) -> None:
    if not isinstance(retriever, CLIPRetriever):
        raise TypeError(
            f"retriever is a {type(retriever).__name__}, expected what create_retriever returns"
        )
    if retriever.modality != "image":
        raise ValueError(f"the retriever's modality is {retriever.modality!r}, expected 'image'")
    if not ks or min(ks) < 1:
        raise ValueError(f"ks is {ks!r}, expected numbers of hits, each at least 1")
    if on_missing not in ("raise", "skip"):
        raise ValueError(f"on_missing is {on_missing!r}, expected 'raise' or 'skip'")
    if not 0 < confidence < 1:
        raise ValueError(f"confidence is {confidence}, expected a share such as 0.95")
    if n_resamples < 1:
        raise ValueError(f"n_resamples is {n_resamples}, expected at least 1")


def _retrieve(
    retriever: CLIPRetriever,
    texts: list[str],
    embeddings: list[list[float]],
    depth: int,
    show_progress: bool,
) -> Iterator[list[str]]:
    """Yield the ids of each text's hits, best first."""
    asked = copy.copy(retriever)  # The caller's keeps its own number of hits.
    asked.similarity_top_k = depth
    queries = [
        QueryBundle(text, embedding=embedding)
        for text, embedding in zip(texts, embeddings, strict=True)
    ]
    with tqdm(
        desc="Retrieving", total=len(queries), unit="query", disable=not show_progress
    ) as bar:
        # In parts, because of many thousands of queries all hits at once take gigabytes.
        for start in range(0, len(queries), _BATCH):
            answers = asked.retrieve_many(queries[start : start + _BATCH])
            yield from ([hit.node.node_id for hit in hits] for hits in answers)
            bar.update(len(answers))


def _score(
    answers: Iterable[tuple[set[str], list[str]]], ks: Sequence[int]
) -> dict[str, list[float]]:
    """Score each query's ranking by LlamaIndex's metrics.

    Not by its ``RetrieverEvaluator``: that one would retrieve again for each k, embed one text at a
    time, and block on a loop of its own, which a notebook does not allow.
    """
    depth = f"mrr@{ks[-1]}"
    scores: dict[str, list[float]] = {**{f"recall@{k}": [] for k in ks}, depth: []}
    hit_rate, mrr = HitRate(), MRR()
    for right, ranking in answers:
        expected = list(right)
        for k in ks:
            # The metrics refuse a ranking without hits, which a filter or a cutoff may leave.
            hit = ranking and hit_rate.compute(expected_ids=expected, retrieved_ids=ranking[:k])
            scores[f"recall@{k}"].append(float(hit.score if hit else 0))
        rank = ranking and mrr.compute(expected_ids=expected, retrieved_ids=ranking[: ks[-1]])
        scores[depth].append(float(rank.score if rank else 0))
    return scores
