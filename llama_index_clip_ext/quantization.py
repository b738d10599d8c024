"""The image tower in int8: calibrated on a user's own pictures, refused if it is too far off."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm.auto import tqdm

from .background import write_in_own_thread
from .checkpoint import Checkpoint
from .dual_encoder import DualEncoderEmbedding
from .encoder import Encoder
from .errors import ImageLoadError, ModelLoadError, QuantizationError
from .images import load_image
from .int8 import (
    Int8Report,
    Int8Tower,
    Pixels,
    check_can_make,
    image_features,
    int8_folder,
    make_int8,
    save_int8,
)
from .loading import load_tower
from .metrics import neighbour_overlap
from .nodes import list_images
from .preprocessing import Preprocessing
from .sources import ImageSource, reusable
from .vectors import Rows, l2_normalize

logger = logging.getLogger(__name__)

# With half of these checked, 10 neighbours are still a choice.
_MIN_IMAGES = 40

_NEIGHBOURS = 10

_BATCH = 16


@dataclass
class _Pictures:
    """What is calibrated on, and what is checked: by int8's own preprocessing, and in full."""

    calibration: list[Pixels] = field(default_factory=list)
    checked: list[Pixels] = field(default_factory=list)
    values: list[NDArray[np.float32]] = field(default_factory=list)
    n_skipped: int = 0

    def __len__(self) -> int:
        return len(self.calibration) + len(self.checked)


def quantize_images(
    embed_model: DualEncoderEmbedding,
    images: str | os.PathLike[str] | Iterable[ImageSource],
    *,
    n_images: int = 300,
    min_cosine: float = 0.999,
    min_top10_overlap: float = 0.95,
    seed: int = 0,
    show_progress: bool = False,
) -> Int8Report:
    """Make an int8 image tower from pictures of one's own, for ``dtype="int8"`` on a CPU.

    It is kept beside the checkpoint, in place of an older one. Half of the pictures, drawn by
    chance, give the ranges; on the other half, embeddings are compared with those of float32 and
    the checkpoint's own image processor. Texts are not quantised.

    Args:
        embed_model: The model; its images alone are concerned.
        images: A folder, a pattern, or image sources, such as those that will be searched.
        n_images: How many of them to use, at most, copies counted once.
        min_cosine: What the embedding of each checked picture must have to that of float32.
        min_top10_overlap: Mean share of the 10 nearest pictures that int8 must find, too.
        seed: Which pictures; the same seed takes the same.
        show_progress: Show progress bars.

    Returns:
        How near int8 is to float32.

    Raises:
        QuantizationError: If it is not as near as that; nothing is written then.
        ModelLoadError: If OpenVINO or NNCF is missing, the checkpoint's folder is read-only, or
            its images take more than resizing and scaling.
        ValueError: If too few pictures can be read.

    Example:
        ``quantize_images(embed_model, "./photos")``, then ``CLIPEmbedding(name, dtype="int8")``
    """
    if n_images < _MIN_IMAGES:
        raise ValueError(f"n_images is {n_images}, expected at least {_MIN_IMAGES}")
    checkpoint = embed_model.encoder.checkpoint
    preprocessing = _preprocessing(embed_model)
    check_can_make(checkpoint)
    if isinstance(images, bytes):
        raise TypeError("images is one bytes, expected a folder, a pattern or a list of images")
    found = list_images(images, image_formats=embed_model.image_formats)
    with tqdm(total=n_images, desc="Reading pictures", disable=not show_progress) as progress:
        pictures = _read(embed_model, preprocessing, _shuffled(found, seed), n_images, progress)
    model = _load_float32(checkpoint)
    int8 = make_int8(
        checkpoint,
        model,
        np.stack(pictures.calibration),
        preprocessing.factor,
        preprocessing.offset,
        show_progress=show_progress,
    )
    report = _compare(checkpoint, model, Int8Tower(int8), pictures)
    _check(checkpoint, report, min_cosine, min_top10_overlap)
    save_int8(checkpoint, int8, report)
    return report


async def aquantize_images(
    embed_model: DualEncoderEmbedding,
    images: str | os.PathLike[str] | Iterable[ImageSource],
    *,
    n_images: int = 300,
    min_cosine: float = 0.999,
    min_top10_overlap: float = 0.95,
    seed: int = 0,
    show_progress: bool = False,
) -> Int8Report:
    """Do what `quantize_images` does, off the event loop."""
    return await write_in_own_thread(
        lambda: quantize_images(
            embed_model,
            images,
            n_images=n_images,
            min_cosine=min_cosine,
            min_top10_overlap=min_top10_overlap,
            seed=seed,
            show_progress=show_progress,
        )
    )


def _preprocessing(embed_model: DualEncoderEmbedding) -> Preprocessing:
    preprocessing: Preprocessing | None = embed_model.encoder.preprocessing
    if preprocessing is None:
        raise ModelLoadError(
            f"{embed_model.model_name!r} has no int8: its image processor does more than resize, "
            "crop and scale, as that of SigLIP 2 NaFlex; use dtype='auto'"
        )
    return preprocessing


def _load_float32(checkpoint: Checkpoint) -> Any:
    import torch

    return load_tower(checkpoint, "image", torch.float32)


def _shuffled(images: Iterable[ImageSource], seed: int) -> Iterator[ImageSource]:
    """Yield image sources by chance: the first of a folder may all show one afternoon."""
    sources = list(images)
    for index in np.random.default_rng(seed).permutation(len(sources)):
        yield sources[index]


def _read(
    embed_model: DualEncoderEmbedding,
    preprocessing: Preprocessing,
    sources: Iterable[ImageSource],
    n_images: int,
    progress: Any,
) -> _Pictures:
    """Read pictures until there are enough, by turns to calibrate and to check.

    Raises:
        ValueError: If there are too few.
    """
    reference = Encoder(embed_model.encoder.checkpoint, preprocess="reference")
    pictures = _Pictures()
    seen: set[bytes] = set()
    for source in sources:
        try:
            source = reusable(source, embed_model.allow_urls)  # Read twice.
            pixels = preprocessing.pixels(_load(embed_model, source, preprocessing.least_side))
            # A copy on the other side would be no check.
            if (content := pixels.tobytes()) in seen:
                continue
            if len(pictures.calibration) == len(pictures.checked):
                pictures.calibration.append(pixels)
            else:
                whole = reference.prepare(_load(embed_model, source, None))
                pictures.values.append(whole["pixel_values"])
                pictures.checked.append(pixels)
        except ImageLoadError as err:
            logger.warning("left out %s", err)
            pictures.n_skipped += 1
            continue
        seen.add(content)
        progress.update()
        if len(pictures) == n_images:
            break
    if len(pictures) < _MIN_IMAGES:
        raise ValueError(
            f"{len(pictures)} different pictures came ({pictures.n_skipped} could not be read), at "
            f"least {_MIN_IMAGES} are needed to make and check int8; some hundreds are better"
        )
    return pictures


def _load(embed_model: DualEncoderEmbedding, source: ImageSource, least_side: int | None) -> Any:
    return load_image(
        source,
        background=embed_model.background,
        image_formats=embed_model.image_formats,
        least_side=least_side,
    )


def _compare(
    checkpoint: Checkpoint, model: Any, tower: Int8Tower, pictures: _Pictures
) -> Int8Report:
    exact = _in_batches(pictures.values, lambda values: _float32_features(model, values))
    approximate = _in_batches(pictures.checked, tower)
    cosines = (exact * approximate).sum(axis=1)
    return Int8Report(
        n_calibration=len(pictures.calibration),
        n_checked=len(pictures.checked),
        n_skipped=pictures.n_skipped,
        worst_cosine=float(cosines.min()),
        mean_cosine=float(cosines.mean()),
        top10_overlap=neighbour_overlap(exact, approximate, _NEIGHBOURS),
        folder=int8_folder(checkpoint),
    )


def _in_batches(items: list[Any], compute: Any) -> Rows:
    batches = (np.stack(items[start : start + _BATCH]) for start in range(0, len(items), _BATCH))
    return l2_normalize(np.concatenate([compute(batch) for batch in batches]))


def _float32_features(model: Any, values: NDArray[np.float32]) -> NDArray[np.float32]:
    import torch

    with torch.inference_mode():
        features: NDArray[np.float32] = image_features(model, torch.as_tensor(values)).numpy()
    return features


def _check(
    checkpoint: Checkpoint, report: Int8Report, min_cosine: float, min_top10_overlap: float
) -> None:
    """Refuse an int8 tower below one of the bounds.

    Raises:
        QuantizationError: With the numbers, and what to do.
    """
    # NaN is below any bound.
    if report.worst_cosine >= min_cosine and report.top10_overlap >= min_top10_overlap:
        return
    raise QuantizationError(
        f"int8 is too far from float32 for {checkpoint.name!r}, on {report.n_checked} pictures: "
        f"cosine {report.worst_cosine:.4f} at worst ({report.mean_cosine:.4f} on average), at "
        f"least {min_cosine} wanted; {report.top10_overlap:.1%} of the 10 nearest in common, at "
        f"least {min_top10_overlap:.1%} wanted. Nothing was kept. Calibrate on more pictures than "
        f"{report.n_calibration}, use dtype='bfloat16', or lower min_cosine and min_top10_overlap "
        "if that is near enough for you",
        report=report,
    )
