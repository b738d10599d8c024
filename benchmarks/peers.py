"""The others: each embeds files as its documentation says, with the same weights.

A function ``make_...`` loads one of them and returns a function from files to rows; it raises
`UnavailableError` with the reason if that cannot be done here. To see which can:

    python benchmarks/peers.py [--model-kind clip-b32] [--infinity-python PYTHON]
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import os
import shutil
import subprocess
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import common
import numpy as np
import torch
import transformers
from PIL import Image
from pymilvus import MilvusClient

Embed = Callable[[list[Path]], np.ndarray]

# Files that are opened at once where a peer takes pictures: ten of its batches. More would only
# cost it memory, and in the end file handles.
_OPEN_AT_ONCE = 320
_BATCH_SIZE = 32


class UnavailableError(Exception):
    """A peer that cannot run here, and why."""


def make_sentence_transformers(directory: Path, work: Path) -> Embed:
    """sentence-transformers' recipe: ``encode(images, batch_size=32)``."""
    module = _import("sentence_transformers")
    model = _load(lambda: module.SentenceTransformer(str(directory), device="cpu"))

    def embed(files: list[Path]) -> np.ndarray:
        parts = []
        for start in range(0, len(files), _OPEN_AT_ONCE):
            images = [Image.open(file) for file in files[start : start + _OPEN_AT_ONCE]]
            parts.append(
                model.encode(
                    images,
                    batch_size=_BATCH_SIZE,
                    normalize_embeddings=True,
                    show_progress_bar=False,
                )
            )
        return np.concatenate(parts)

    return embed


def make_transformers(directory: Path, work: Path) -> Embed:
    """A loop over transformers' own processor and model, in float32: also the reference."""
    processor = transformers.AutoImageProcessor.from_pretrained(directory)
    tower = common.ImageTower(directory)

    def embed(files: list[Path]) -> np.ndarray:
        parts = []
        for start in range(0, len(files), _BATCH_SIZE):
            images = [
                Image.open(file).convert("RGB") for file in files[start : start + _BATCH_SIZE]
            ]
            pixels = processor(images=images, return_tensors="pt")["pixel_values"]
            with torch.inference_mode():
                rows = tower(pixels)
                parts.append(torch.nn.functional.normalize(rows, dim=-1).numpy())
        return np.concatenate(parts)

    return embed


def make_llama_index_huggingface(directory: Path, work: Path) -> Embed:
    """llama-index-embeddings-huggingface as it comes: ten images at a time, lists of floats."""
    module = _import("llama_index.embeddings.huggingface")
    model = _load(lambda: module.HuggingFaceEmbedding(model_name=str(directory), device="cpu"))

    def embed(files: list[Path]) -> np.ndarray:
        # As strings: it hands them on to sentence-transformers, which refuses a Path.
        return common.unit_rows(model.get_image_embedding_batch([str(file) for file in files]))

    return embed


def make_llama_index_clip(directory: Path, work: Path) -> Embed:
    """llama-index-embeddings-clip as it comes: one image per forward pass.

    It imports OpenAI's package ``clip``, which no registry has and which needs torchvision. In its
    place stands a module with the same two things: the model, here transformers' with the same
    weights and shapes, and the same preprocessing written with Pillow and torch.
    """
    module = _import("llama_index.embeddings.clip")
    if json.loads((directory / "config.json").read_text())["model_type"] != "clip":
        raise UnavailableError("it loads OpenAI's CLIP only")
    with _clip_module(directory):
        model = module.ClipEmbedding(model_name="ViT-B/32")

    def embed(files: list[Path]) -> np.ndarray:
        paths = [str(file) for file in files]
        return common.unit_rows(model.get_image_embedding_batch(paths))

    return embed


@contextlib.contextmanager
def _clip_module(directory: Path):
    """Put a stand-in for OpenAI's ``clip`` among the modules while the peer loads it."""
    tower = common.ImageTower(directory)
    stand_in = types.ModuleType("clip")
    model = types.SimpleNamespace(encode_image=tower)
    stand_in.load = lambda name, device: (model, _openai_preprocess)  # type: ignore[attr-defined]
    before = sys.modules.get("clip")
    sys.modules["clip"] = stand_in
    try:
        yield
    finally:
        del sys.modules["clip"]
        if before is not None:
            sys.modules["clip"] = before


def _openai_preprocess(image: Image.Image) -> torch.Tensor:
    """Do what clip.clip._transform does: resize, crop, RGB, tensor, normalise."""
    width, height = image.size
    scale = 224 / min(width, height)
    size = (max(224, int(width * scale)), max(224, int(height * scale)))
    image = image.resize(size, Image.Resampling.BICUBIC)
    left, top = round((size[0] - 224) / 2), round((size[1] - 224) / 2)
    image = image.crop((left, top, left + 224, top + 224)).convert("RGB")
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous().float().div(255)
    mean = torch.tensor([0.48145466, 0.4578275, 0.40821073])
    deviation = torch.tensor([0.26862954, 0.26130258, 0.27577711])
    return (pixels - mean[:, None, None]) / deviation[:, None, None]


def make_fastembed(directory: Path, work: Path) -> Embed:
    """fastembed's own class over the same weights in ONNX, with its own batches of 16.

    It cannot download its checkpoint here, so it is given a folder by ``specific_model_path``: the
    image tower exported by torch, and the preprocessing in the words that it reads.
    """
    module = _import("fastembed.image.onnx_embedding")
    folder = work / "fastembed" / directory.name
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copy(export_onnx(directory, work), folder / "model.onnx")
    settings = json.loads((directory / "preprocessor_config.json").read_text())
    settings["image_processor_type"] = "CLIPImageProcessor"
    if isinstance(settings["size"], int):
        settings["size"] = {"shortest_edge": settings["size"]}
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    model = _load(
        lambda: module.OnnxImageEmbedding(
            "Qdrant/clip-ViT-B-32-vision", specific_model_path=str(folder)
        )
    )
    return lambda files: np.stack(list(model.embed([str(file) for file in files])))


def export_onnx(directory: Path, work: Path) -> Path:
    """Write a checkpoint's image tower as ONNX, once."""
    file = work / "onnx" / f"{directory.name}.onnx"
    if not file.exists():
        _import("onnx")
        file.parent.mkdir(parents=True, exist_ok=True)
        unfinished = file.with_suffix(f".{os.getpid()}")
        torch.onnx.export(
            common.ImageTower(directory),
            (torch.zeros(2, 3, 224, 224),),
            str(unfinished),
            input_names=["pixel_values"],
            output_names=["rows"],
            dynamic_axes={"pixel_values": {0: "images"}, "rows": {0: "images"}},
            # The newer exporter needs onnxscript and gives the same products of matrices.
            dynamo=False,
        )
        unfinished.rename(file)
    return file


def make_infinity(directory: Path, work: Path) -> Embed:
    """infinity's engine, in a Python of its own: it needs older packages than the others do.

    The environment variable INFINITY_PYTHON names that Python.
    """
    python = os.environ.get("INFINITY_PYTHON", sys.executable)
    worker = Path(__file__).with_name("infinity_worker.py")
    process = subprocess.Popen(
        [python, str(worker), str(directory)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    ready = _reply(process)
    if "error" in ready:
        hint = "; INFINITY_PYTHON may name a Python that has infinity_emb"
        raise UnavailableError(ready["error"] + hint)
    output = work / f"infinity-{os.getpid()}.npy"

    def embed(files: list[Path]) -> np.ndarray:
        request = {"files": [str(file) for file in files], "output": str(output)}
        process.stdin.write(json.dumps(request) + "\n")
        process.stdin.flush()
        reply = _reply(process)
        if "error" in reply:
            raise RuntimeError(reply["error"])
        return np.load(output)

    return embed


def _reply(process: subprocess.Popen) -> dict[str, Any]:
    line = process.stdout.readline()
    return json.loads(line) if line else {"error": f"it ended with {process.wait()}"}


PEERS: dict[str, Callable[[Path, Path], Embed]] = {
    "sentence-transformers": make_sentence_transformers,
    "transformers": make_transformers,
    "llama-index-huggingface": make_llama_index_huggingface,
    "llama-index-clip": make_llama_index_clip,
    "fastembed": make_fastembed,
    "infinity": make_infinity,
}


def load_peers(
    names: list[str], directory: Path, work: Path
) -> tuple[dict[str, Embed], dict[str, str]]:
    """Load peers by name; return those that work here, and why the others do not."""
    loaded, skipped = {}, {}
    for name in names:
        try:
            loaded[name] = PEERS[name](directory, work)
        except UnavailableError as err:
            skipped[name] = str(err)
            print(f"skipped {name}: {err}", flush=True)
    return loaded, skipped


def write_rows(client: MilvusClient, collection: str, files: list[Path], rows: np.ndarray) -> None:
    """Insert rows as a reader of pymilvus's documentation does, each with its path."""
    data = [
        {"id": number, "vector": row.tolist(), "file_path": str(file)}
        for number, (file, row) in enumerate(zip(files, rows, strict=True))
    ]
    # As much as one message may hold, with room to spare.
    for start in range(0, len(data), 5000):
        client.insert(collection, data[start : start + 5000])


def _import(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as err:
        raise UnavailableError(f"{name} cannot be imported: {err}") from err


def _load(make: Callable[[], Any]) -> Any:
    """Load a peer's model; whatever it raises is the reason why it is not here."""
    try:
        return make()
    except Exception as err:
        raise UnavailableError(f"{type(err).__name__}: {err}") from err


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model-kind", choices=common.MODEL_KINDS, default="clip-b32")
    parser.add_argument("--work", type=Path, help="folder for pictures and checkpoints, kept")
    options = parser.parse_args()
    import corpus

    with common.workplace(options.work) as work:
        directory = common.checkpoint(options.model_kind, work)
        files = corpus.make_corpus("jpeg-640", 8, work)
        reference = make_transformers(directory, work)(files)
        loaded, _ = load_peers(list(PEERS), directory, work)
        for name, embed in loaded.items():
            print(name, common.worst_cosines(embed(files), reference), flush=True)


if __name__ == "__main__":
    main()
