"""The image tower in int8 on a CPU, by OpenVINO: made from pictures, kept beside the checkpoint."""

from __future__ import annotations

import hashlib
import json
import logging
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from importlib import import_module, metadata
from pathlib import Path
from typing import Any, TypeAlias
from unittest.mock import patch

import numpy as np
from numpy.typing import NDArray

from .checkpoint import Checkpoint
from .errors import ModelLoadError
from .fingerprint import files_sha256

# Of a batch. Shape (n, height, width, 3) before they are scaled, (n, dim) before they are
# normalised.
Pixels: TypeAlias = NDArray[np.uint8]
Features: TypeAlias = NDArray[np.float32]

_MODEL, _WEIGHTS, _REPORT = "model.xml", "model.bin", "report.json"

_INSTALL = "pip install nncf openvino (the extra 'int8' of this package)"

# How much of the spread of channels SmoothQuant moves from activations to weights.
_SMOOTHING = 0.6

# One batch at a time is what an encoder asks for. In bfloat16, where the CPU has it, what is not
# int8 is computed by OpenVINO's own default.
_COMPILED_FOR = {"PERFORMANCE_HINT": "LATENCY"}


@dataclass(frozen=True)
class Int8Report:
    """How near the embeddings of int8 are to those of float32, on pictures it was not made from.

    Attributes:
        n_calibration: Pictures that the ranges of int8 were taken from.
        n_checked: Other pictures, which the numbers are of.
        n_skipped: Pictures that could not be read.
        worst_cosine: Between the two embeddings of the picture that fares worst.
        mean_cosine: Between the two embeddings of a picture.
        top10_overlap: Share of the 10 nearest among the checked pictures that int8 finds, too; mean
            over each of them as the query.
        folder: Where the int8 tower is kept.
    """

    n_calibration: int
    n_checked: int
    n_skipped: int
    worst_cosine: float
    mean_cosine: float
    top10_overlap: float
    folder: Path

    def __str__(self) -> str:
        skipped = f", {self.n_skipped} skipped" if self.n_skipped else ""
        return (
            f"int8 against float32: cosine {self.worst_cosine:.4f} at worst, "
            f"{self.mean_cosine:.4f} on average, {self.top10_overlap:.1%} of the 10 nearest in "
            f"common\n({self.n_checked} pictures checked, {self.n_calibration} others calibrated "
            f"on{skipped}; {self.folder})"
        )


class Int8Tower:
    """An image tower that OpenVINO computes in int8. One thread at a time.

    Args:
        model: OpenVINO's, as `make_int8` returns it.
    """

    def __init__(self, model: Any) -> None:
        openvino = _import("openvino")
        self._compiled = openvino.Core().compile_model(model, "CPU", _COMPILED_FOR)
        self._dim = self._compiled.output(0).partial_shape[1].get_length()

    def __call__(self, pixels: Pixels) -> Features:
        """Compute a batch of any size.

        Args:
            pixels: Pictures as `Preprocessing.pixels` makes them. Shape ``(n, height, width, 3)``.

        Returns:
            Features, not normalised. Shape ``(n, dim)``.
        """
        if not len(pixels):
            return np.empty((0, self._dim), dtype=np.float32)
        # A copy: what OpenVINO hands out may be written over by the next batch.
        return np.array(self._compiled(np.ascontiguousarray(pixels))[0], dtype=np.float32)


def int8_folder(checkpoint: Checkpoint) -> Path:
    """Return the folder that a checkpoint's int8 tower is kept in, there or not."""
    return checkpoint.directory / "int8"


def int8_identity(checkpoint: Checkpoint) -> str:
    """Return what tells one int8 tower of a checkpoint from another; empty if there is none."""
    report = int8_folder(checkpoint) / _REPORT
    return hashlib.sha256(report.read_bytes()).hexdigest() if report.is_file() else ""


def check_can_make(checkpoint: Checkpoint) -> None:
    """Find out what would stop `make_int8` and `save_int8`, before minutes are spent.

    Raises:
        ModelLoadError: If OpenVINO or NNCF is missing, or the checkpoint's folder is read-only.
    """
    _import("openvino")
    with _quiet(show_progress=False), _scratch(checkpoint):
        pass


def make_int8(
    checkpoint: Checkpoint,
    model: Any,
    pixels: Pixels,
    factor: Sequence[float],
    offset: Sequence[float],
    *,
    show_progress: bool = False,
) -> Any:
    """Make an int8 image tower, its ranges taken from pictures.

    Args:
        checkpoint: The files of the model, for messages.
        model: transformers' dual encoder, in float32 on the CPU.
        pixels: The pictures. Shape ``(n, height, width, 3)``.
        factor: By channel, what a pixel is multiplied with.
        offset: By channel, what is then added.
        show_progress: Show NNCF's progress bars.

    Returns:
        OpenVINO's model, which takes uint8 pixels as they are; in memory only.

    Raises:
        ModelLoadError: If OpenVINO or NNCF is missing, or cannot do it.

    Source:
        Xiao et al. 2023, SmoothQuant, section 4, which NNCF applies to transformers.
        arXiv:2211.10438
    """
    with _quiet(show_progress):
        nncf = _import("nncf")
        try:
            traced = trace_tower(model, pixels[:2], factor, offset)
            return nncf.quantize(
                traced,
                nncf.Dataset(pixels[:, None]),
                subset_size=len(pixels),
                model_type=nncf.ModelType.TRANSFORMER,
                advanced_parameters=_settings(nncf),
            )
        # OpenVINO and NNCF have errors of many kinds.
        except Exception as err:
            raise ModelLoadError(
                f"cannot make an int8 tower of {checkpoint.name!r}: {type(err).__name__}: {err}"
            ) from err


def trace_tower(
    model: Any, pixels: Pixels, factor: Sequence[float], offset: Sequence[float]
) -> Any:
    """Return OpenVINO's model of an image tower in float32, which takes uint8 pixels as they are.

    Args:
        model: As for `make_int8`.
        pixels: An example of a batch.
        factor: As for `make_int8`.
        offset: As for `make_int8`.

    Raises:
        ModelLoadError: If OpenVINO is missing.
    """
    import torch

    openvino = _import("openvino")
    with warnings.catch_warnings(), _unreported():
        warnings.simplefilter("ignore")  # Of torch.jit and transformers, to no use of anyone's.
        return openvino.convert_model(
            _with_scaling(model, factor, offset),
            example_input=torch.as_tensor(pixels),
            input=[openvino.PartialShape([-1, *pixels.shape[1:]])],
        )


def image_features(model: Any, values: Any) -> Any:
    """Run the image tower of transformers' dual encoder.

    Args:
        model: The dual encoder.
        values: The torch tensor that its image processor makes. Shape ``(n, 3, height, width)``.

    Returns:
        Features as a torch tensor, not normalised. Shape ``(n, dim)``.
    """
    import torch

    outputs = model.get_image_features(pixel_values=values)
    # transformers 4 returns the projected features, 5 an object that holds them.
    return outputs if isinstance(outputs, torch.Tensor) else outputs.pooler_output


def save_int8(checkpoint: Checkpoint, model: Any, report: Int8Report) -> None:
    """Keep an int8 tower beside its checkpoint, in place of an older one.

    Args:
        checkpoint: The files that it was made from.
        model: As `make_int8` returns it.
        report: What was measured of it.

    Raises:
        ModelLoadError: If it cannot be written. What was there before is there then.
    """
    openvino, folder = _import("openvino"), int8_folder(checkpoint)
    with _scratch(checkpoint) as scratch:
        new, old = scratch / "new", scratch / "old"
        try:
            new.mkdir()
            openvino.save_model(model, new / _MODEL, compress_to_fp16=False)
            facts = {**_identity(checkpoint), **_facts(new), **asdict(report)}
            del facts["folder"]  # It moves with the checkpoint.
            (new / _REPORT).write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
            if folder.exists():
                folder.replace(old)
            new.replace(folder)
        except (OSError, RuntimeError) as err:
            if old.exists():
                old.replace(folder)
            raise _not_writable(checkpoint, err) from err


def load_int8(checkpoint: Checkpoint) -> Int8Tower:
    """Load the int8 tower that is kept beside a checkpoint.

    Raises:
        ModelLoadError: If there is none, it is another checkpoint's or damaged, or OpenVINO is
            missing.
    """
    folder = int8_folder(checkpoint)
    if not folder.is_dir():
        raise ModelLoadError(
            f"{checkpoint.name!r} has no int8 image tower yet. {_make_again(checkpoint)} (it takes "
            f"{_INSTALL}), or use dtype='auto'"
        )
    _check_files(checkpoint, folder)
    openvino = _import("openvino")
    try:
        return Int8Tower(openvino.Core().read_model(folder / _MODEL))
    except RuntimeError as err:
        raise ModelLoadError(
            f"OpenVINO {metadata.version('openvino')} cannot read {folder / _MODEL}: {err}. "
            f"{_make_again(checkpoint)}"
        ) from err


def _check_files(checkpoint: Checkpoint, folder: Path) -> None:
    """Refuse an int8 tower that is damaged, or was made from other weights.

    Raises:
        ModelLoadError: Says what differs, and what to do.
    """
    try:
        facts = json.loads((folder / _REPORT).read_text(encoding="utf-8"))
        is_whole = facts["files"] == files_sha256([folder / _MODEL, folder / _WEIGHTS])
        found = {key: facts[key] for key in _identity(checkpoint)}
    except (OSError, ValueError, TypeError, KeyError) as err:
        raise ModelLoadError(
            f"the int8 tower in {folder} is damaged ({type(err).__name__}: {err}). "
            f"{_make_again(checkpoint)}"
        ) from err
    for key, expected in _identity(checkpoint).items():
        if found[key] != expected:
            raise ModelLoadError(
                f"the int8 tower in {folder} was made for other {key} than those of "
                f"{checkpoint.name!r} (SHA-256 {found[key]}, expected {expected}). "
                f"{_make_again(checkpoint)}"
            )
    if not is_whole:
        raise ModelLoadError(
            f"the int8 tower in {folder} is damaged: its files are not those that were written. "
            f"{_make_again(checkpoint)}"
        )


def _identity(checkpoint: Checkpoint) -> dict[str, str]:
    return {
        "weights": checkpoint.space.weights,
        "preprocessing": checkpoint.space.preprocessing,
    }


def _facts(folder: Path) -> dict[str, Any]:
    packages = ("openvino", "nncf", "torch", "transformers")
    return {
        "files": files_sha256([folder / _MODEL, folder / _WEIGHTS]),
        "made": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "versions": {name: metadata.version(name) for name in packages},
    }


def _make_again(checkpoint: Checkpoint) -> str:
    return (
        "Make one by quantize_images(embed_model, 'PHOTOS'), or by clip-ext quantize PHOTOS "
        f"--model {checkpoint.name}"
    )


def _settings(nncf: Any) -> Any:
    """Return what brought embeddings nearest to float32, of what NNCF can be told."""
    ranges = import_module("nncf.quantization.range_estimator").RangeEstimatorParametersSet
    smoothing = import_module("nncf.quantization.advanced_parameters").AdvancedSmoothQuantParameters
    return nncf.AdvancedQuantizationParameters(
        # Seven bits for weights: with eight, a CPU without VNNI overflows where it adds products up
        # (AVX2, median cosine 0.98), and a model that another CPU made would be wrong there.
        overflow_fix=nncf.OverflowFix.ENABLE,
        # By default the mean of the pictures' extremes, which cuts those of half of them off.
        activations_range_estimator_params=ranges.MINMAX,
        # By default 0.95, which leaves the weights too coarse.
        smooth_quant_alphas=smoothing(matmul=_SMOOTHING),
    )


def _with_scaling(model: Any, factor: Sequence[float], offset: Sequence[float]) -> Any:
    """Return a torch module that takes uint8 pixels as an image file has them."""
    import torch

    class Tower(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model
            self.register_buffer("factor", torch.tensor(factor, dtype=torch.float32))
            self.register_buffer("offset", torch.tensor(offset, dtype=torch.float32))

        def forward(self, pixels: Any) -> Any:
            values = pixels.float() * self.factor + self.offset
            return image_features(self.model, values.permute(0, 3, 1, 2))

    return Tower().eval()


@contextmanager
def _scratch(checkpoint: Checkpoint) -> Iterator[Path]:
    """Make a folder on the checkpoint's own disk, so that its content can be moved in one step."""
    try:
        folder = tempfile.TemporaryDirectory(
            prefix=".int8-", dir=checkpoint.directory, ignore_cleanup_errors=True
        )
    except OSError as err:
        raise _not_writable(checkpoint, err) from err
    with folder as name:
        yield Path(name)


def _not_writable(checkpoint: Checkpoint, err: Exception) -> ModelLoadError:
    return ModelLoadError(
        f"cannot write the int8 tower to {int8_folder(checkpoint)}: {err}. It is kept beside the "
        "checkpoint: copy that to a folder that you may write to, such as by clip-ext download "
        "MODEL --local-dir DIR, and pass DIR as the model"
    )


def _import(name: str) -> Any:
    with _unreported():
        try:
            return import_module(name)
        except ImportError as err:
            raise ModelLoadError(f"int8 needs {name} ({err}): {_INSTALL}") from err


@contextmanager
def _unreported() -> Iterator[None]:
    """Decline that OpenVINO and NNCF send usage data to Intel, which importing them does already.

    They send it unless a file in the home folder says that they must not. Where it is declined they
    write nothing there, either.
    """
    try:
        consent = import_module("openvino_telemetry.utils.opt_in_checker")
        declined = consent.ConsentCheckResult.DECLINED
        declining = patch.object(consent.OptInChecker, "check", lambda *_, **__: declined)
    except (ImportError, AttributeError):
        yield  # Without this package they send nothing.
        return
    with declining:
        yield


@contextmanager
def _quiet(show_progress: bool) -> Iterator[None]:
    """Keep from the user what NNCF has to say, and its progress bars from the output."""
    with warnings.catch_warnings(), _unreported():
        warnings.simplefilter("ignore")
        nncf = _import("nncf")
        bars = import_module("nncf.common.logging.track_progress")
        own = bars.Progress

        def progress(*columns: Any, **options: Any) -> Any:
            shown = show_progress and not options["disable"]
            return own(*columns, **options | {"console": _error_stream(), "disable": not shown})

        with (
            patch.object(bars, "Progress", progress),
            patch.object(logging.getLogger(nncf.__name__), "disabled", True),
        ):
            yield


def _error_stream() -> Any:
    from rich.console import Console

    return Console(stderr=True)
