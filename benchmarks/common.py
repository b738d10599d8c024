"""What the benchmarks share: checkpoints, taking turns, summaries, cosines, the machine."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

# Before anything imports huggingface_hub: no benchmark downloads anything.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

import checkpoints
import numpy as np
import torch
import transformers

transformers.utils.logging.disable_progress_bar()

MODEL_KINDS = ("clip-b32", "clip-b16", "clip-l14", "chinese-clip-b16", "tiny")
PACKAGES = (
    "torch",
    "transformers",
    "sentence-transformers",
    "pymilvus",
    "milvus-lite",
    "pillow",
    "numpy",
    "onnxruntime",
    "openvino",
    "fastembed",
    "llama-index-core",
)


def checkpoint(kind: str, work: Path) -> Path:
    """Return a folder with a checkpoint of this kind, made if need be.

    The weights are random and of the real shapes: speed does not depend on their values. The
    vocabularies are the real ones.
    """
    directory = work / "checkpoints" / kind
    if not directory.exists():
        unfinished = directory.with_name(f"{kind}.{os.getpid()}")
        unfinished.mkdir(parents=True)
        _write_checkpoint(kind, unfinished)
        unfinished.rename(directory)
    return directory


def _write_checkpoint(kind: str, directory: Path) -> None:
    if kind == "clip-b32":
        checkpoints.make_clip(directory)
    elif kind == "tiny":
        checkpoints.make_clip(directory, tiny=True)
    elif kind == "chinese-clip-b16":
        checkpoints.make_chinese_clip(directory)
    elif kind in ("clip-b16", "clip-l14"):
        _write_larger_clip(kind, directory)
    else:
        raise ValueError(f"kind is {kind!r}, expected one of {', '.join(MODEL_KINDS)}")


def _write_larger_clip(kind: str, directory: Path) -> None:
    """Write the shapes of openai/clip-vit-base-patch16 or openai/clip-vit-large-patch14."""
    text: dict[str, Any] = {"eos_token_id": 49407, "bos_token_id": 49406}
    vision: dict[str, Any] = {"patch_size": 16}
    dim = 512
    if kind == "clip-l14":
        dim = 768
        text |= {"hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12}
        vision = {"patch_size": 14, "hidden_size": 1024, "intermediate_size": 4096}
        vision |= {"num_hidden_layers": 24, "num_attention_heads": 16}
    torch.manual_seed(0)
    config = transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=dim)
    transformers.CLIPModel(config).save_pretrained(directory)
    checkpoints.write_clip_tokenizer(directory)
    preprocessor = json.dumps(checkpoints.CLIP_PREPROCESSOR)
    (directory / "preprocessor_config.json").write_text(preprocessor)


class ImageTower(torch.nn.Module):
    """The image half of a model of transformers: pixels in, projected features out."""

    def __init__(self, directory: Path, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.model = transformers.AutoModel.from_pretrained(directory, dtype=dtype).eval()

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        outputs = self.model.get_image_features(pixel_values=pixel_values)
        # transformers 4 returns the features, 5 an object that holds them.
        return outputs if isinstance(outputs, torch.Tensor) else outputs.pooler_output


def take_turns(tasks: dict[str, Callable[[int], float]], repeats: int) -> dict[str, list[float]]:
    """Run each task once per round, so that a busy minute of the machine meets all of them.

    Args:
        tasks: Each takes the round's number and returns what it measured.
        repeats: Rounds.

    Returns:
        The measurements of each task, in the order of the rounds.
    """
    measured: dict[str, list[float]] = {name: [] for name in tasks}
    names = list(tasks)
    for number in range(repeats):
        # Another one goes first each time, so that none always follows the same neighbour.
        start = number % len(names)
        for name in names[start:] + names[:start]:
            measured[name].append(tasks[name](number))
    return measured


def timed(run: Callable[[], Any]) -> Callable[[int], float]:
    """Make a task for `take_turns` that returns the seconds a call takes."""

    def seconds(_: int) -> float:
        started = time.perf_counter()
        run()
        return time.perf_counter() - started

    return seconds


def summary(values: list[float]) -> dict[str, Any]:
    """Return the median and the range of measurements, and the measurements."""
    return {
        "median": statistics.median(values),
        "min": min(values),
        "max": max(values),
        "values": values,
    }


def unit_rows(rows: Any) -> np.ndarray:
    """Return rows in float32, each scaled to unit length."""
    rows = np.asarray(rows, dtype=np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def worst_cosines(rows: np.ndarray, reference: np.ndarray) -> dict[str, float]:
    """Compare rows, item by item, with the reference's.

    With random weights, the embeddings of all pictures lie close together, so that even the wrong
    picture has a cosine near 1. Therefore the same is also said of what is left when the
    reference's mean is taken away, and in how many cases the nearest reference is the right one.
    """
    rows, reference = unit_rows(rows), unit_rows(reference)
    if rows.shape != reference.shape:
        raise ValueError(f"rows have the shape {rows.shape}, the reference {reference.shape}")
    mean = reference.mean(axis=0)
    nearest = (rows @ reference.T).argmax(axis=1)
    result = {"cosine": float((rows * reference).sum(axis=1).min())}
    if len(rows) > 1:
        centred = unit_rows(rows - mean) * unit_rows(reference - mean)
        result["centred_cosine"] = float(centred.sum(axis=1).min())
        result["nearest_is_itself"] = float((nearest == np.arange(len(rows))).mean())
    return result


def machine() -> dict[str, Any]:
    """Say what the figures were measured on, and with which versions."""
    versions = {}
    for package in PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[package] = metadata.version(package)
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "load_average": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        "python": platform.python_version(),
        "versions": versions,
    }


def _processor() -> str:
    """Name the processor, and what of it decides how fast low precision is."""
    if not sys.platform.startswith("linux"):
        return platform.processor() or platform.machine()
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    facts = dict(line.split(":", 1) for line in lines if ":" in line)
    facts = {key.strip(): value.strip() for key, value in facts.items()}
    known = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16", "amx_int8")
    flags = [flag for flag in known if flag in facts.get("flags", "").split()]
    return f"{facts.get('model name', platform.machine())} ({' '.join(flags)})"


def print_machine() -> None:
    """Print the machine and the versions in two lines."""
    facts = machine()
    print(f"{facts['processor']}, {facts['cores']} cores, load average {facts['load_average']:.1f}")
    versions = ", ".join(f"{name} {version}" for name, version in facts["versions"].items())
    print(f"Python {facts['python']}, {versions}")


def add_common_options(parser: argparse.ArgumentParser) -> None:
    """Add --work, --repeats and --json."""
    parser.add_argument("--work", type=Path, help="folder for pictures and checkpoints, kept")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", type=Path, help="write the figures to this file")


@contextlib.contextmanager
def workplace(work: Path | None) -> Iterator[Path]:
    """Yield the folder that was asked for, or a temporary one."""
    if work is not None:
        work.mkdir(parents=True, exist_ok=True)
        yield work.resolve()
    else:
        with tempfile.TemporaryDirectory(prefix="clip-bench-") as scratch:
            yield Path(scratch)


def write_json(path: Path | None, figures: dict[str, Any]) -> None:
    """Write figures and the machine that they are from, if a file was asked for."""
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({**figures, "machine": machine()}, indent=1) + "\n")
