"""The image encoder's forward pass alone, as a share of what torch's products of matrices reach.

    python benchmarks/forward.py [--model-kinds clip-b32,clip-b16,clip-l14]
        [--dtypes bfloat16,float32] [--batch 32] [--repeats 5] [--profile] [--json FILE]

The tower's linear layers and its patch embedding are matrix products; their shapes are read from
the model, and torch multiplies matrices of the same shapes in the same run, taking turns with the
encoder. The share is (FLOPs of these products / seconds of the forward pass) over (the same FLOPs
/ seconds of the products alone). The two products of attention count as time and not as work, so
that the share is, if anything, too low.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import common
import numpy as np
import torch
from PIL import Image

from llama_index_clip_ext import load_embedding

# Rows, inputs and outputs of a product, and whether a bias is added.
Shape = tuple[int, int, int, bool]


def matrix_shapes(directory: Path, batch: int) -> Counter[Shape]:
    """Run the image tower once and note the products that it consists of."""
    tower = common.ImageTower(directory)
    shapes: Counter[Shape] = Counter()

    def note(layer: torch.nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor):
        if isinstance(layer, torch.nn.Linear):
            rows = inputs[0].numel() // layer.in_features
            shapes[rows, layer.in_features, layer.out_features, layer.bias is not None] += 1
        else:
            patches = output.numel() // output.shape[1]
            width = layer.weight[0].numel()
            shapes[patches, width, output.shape[1], layer.bias is not None] += 1

    for layer in tower.modules():
        if isinstance(layer, (torch.nn.Linear, torch.nn.Conv2d)):
            layer.register_forward_hook(note)
    with torch.inference_mode():
        tower(torch.zeros(batch, 3, 224, 224))
    return shapes


def flops(shapes: Counter[Shape]) -> float:
    """Count a multiplication and an addition as two."""
    return sum(2.0 * m * k * n * times for (m, k, n, _), times in shapes.items())


def matrix_task(shapes: Counter[Shape], dtype: torch.dtype) -> Callable[[], None]:
    """Return a function that multiplies matrices of all these shapes, as often as the tower does.

    Each product has weights of its own, as the tower's layers do: one that stays in the cache
    would be faster than any model can be.
    """
    operands = []
    for (m, k, n, has_bias), times in shapes.items():
        inputs = torch.randn(m, k).to(dtype)
        for _ in range(times):
            bias = torch.randn(n).to(dtype) if has_bias else None
            operands.append((inputs, torch.randn(n, k).to(dtype), bias))

    def run() -> None:
        with torch.inference_mode():
            for inputs, weight, bias in operands:
                torch.nn.functional.linear(inputs, weight, bias)

    return run


def measure(
    kind: str, dtype: str, batch: int, repeats: int, profile: bool, work: Path
) -> dict[str, Any]:
    directory = common.checkpoint(kind, work)
    shapes = matrix_shapes(directory, batch)
    embed_model = load_embedding(directory, dtype=dtype, embed_batch_size=batch)
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (batch, 224, 224, 3), dtype=np.uint8)
    encoder = embed_model.encoder
    inputs = encoder.transfer([encoder.prepare(Image.fromarray(picture)) for picture in pixels])
    matrices = matrix_task(shapes, getattr(torch, dtype))

    def encode() -> np.ndarray:
        return encoder.encode_transferred(inputs)

    for _ in range(2):
        encode()
        matrices()
    tasks = {"encoder": common.timed(encode), "matrices": common.timed(matrices)}
    seconds = {
        name: common.summary(values) for name, values in common.take_turns(tasks, repeats).items()
    }
    if profile:
        print_profile(encode)
    total = flops(shapes)
    encoder, alone = (seconds[name]["median"] for name in ("encoder", "matrices"))
    return {
        "model_kind": kind,
        "dtype": dtype,
        "images_per_second": batch / encoder,
        "encoder_gflops": total / encoder / 1e9,
        "matrices_gflops": total / alone / 1e9,
        "share": alone / encoder,
        "seconds": seconds,
    }


def print_profile(encode: Callable[[], Any]) -> None:
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities) as profiler:
        encode()
    print(profiler.key_averages().table(sort_by="self_cpu_time_total", row_limit=25))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model-kinds", default="clip-b32,clip-b16,clip-l14")
    parser.add_argument("--dtypes", default="bfloat16,float32")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--profile", action="store_true", help="print where the time goes")
    common.add_common_options(parser)
    options = parser.parse_args()
    common.print_machine()
    results = []
    with common.workplace(options.work) as work:
        for kind in options.model_kinds.split(","):
            for dtype in options.dtypes.split(","):
                one = measure(kind, dtype, options.batch, options.repeats, options.profile, work)
                print(f"{kind:18} {dtype:9} {one['images_per_second']:7.1f} images/s", end="")
                print(f"  encoder {one['encoder_gflops']:7.0f} GFLOP/s", end="")
                print(f"  matrices {one['matrices_gflops']:7.0f}", end="")
                print(f"  share {one['share']:.1%}", flush=True)
                results.append(one)
    figures = {"what": "forward", "batch": options.batch, "results": results}
    common.write_json(options.json, figures)


if __name__ == "__main__":
    main()
