"""The image tower's forward pass under different engines and precisions.

    python benchmarks/backends.py [--model-kind clip-b32] [--batch 32] [--repeats 5]
        [--backends torch-float32,openvino-int8] [--work FOLDER] [--json FILE]

The same weights and the same pixels, photo-like pictures through the checkpoint's own processor.
Printed are images/s (medians), the worst cosine to float32, and the seconds until a backend is
ready: converting, compiling and the first pass. What is not installed is skipped with its reason.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import common
import corpus
import numpy as np
import peers
import torch
import transformers
from PIL import Image

# Pixels in, rows out.
Forward = Callable[[np.ndarray], Any]
_CALIBRATION = 32


def torch_forward(model: torch.nn.Module, dtype: torch.dtype) -> Forward:
    def forward(pixels: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            return model(torch.from_numpy(pixels).to(dtype)).float().numpy()

    return forward


def torch_eager(dtype: torch.dtype) -> Callable[..., Forward]:
    return lambda directory, calibration, work: torch_forward(
        common.ImageTower(directory, dtype), dtype
    )


def torch_compiled(*, freezing: bool) -> Callable[..., Forward]:
    def make(directory: Path, calibration: np.ndarray, work: Path) -> Forward:
        import torch._inductor.config

        # Looked at while it compiles, which is in the first pass: the same pixels come later.
        tower = common.ImageTower(directory, torch.bfloat16)
        torch._dynamo.reset()
        compiled = torch.compile(tower, dynamic=False, options={"freezing": freezing})
        return torch_forward(compiled, torch.bfloat16)

    return make


def torchao_int8(*, compiled: bool) -> Callable[..., Forward]:
    """Weights in int8 per channel, activations in int8 as they come."""

    def make(directory: Path, calibration: np.ndarray, work: Path) -> Forward:
        from torchao.quantization import Int8DynamicActivationInt8WeightConfig, quantize_

        tower = common.ImageTower(directory, torch.bfloat16)
        quantize_(tower.model.vision_model, Int8DynamicActivationInt8WeightConfig())
        model: Any = tower
        if compiled:
            torch._dynamo.reset()
            model = torch.compile(tower, dynamic=False, options={"freezing": True})
        return torch_forward(model, torch.bfloat16)

    return make


def onnx_float32(directory: Path, calibration: np.ndarray, work: Path) -> Forward:
    return _onnx_session(peers.export_onnx(directory, work))


def onnx_int8(directory: Path, calibration: np.ndarray, work: Path) -> Forward:
    """ONNX Runtime's dynamic quantisation of the matrix products, weights per channel."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    file = peers.export_onnx(directory, work)
    quantized = file.with_name(f"{file.stem}-int8.onnx")
    quantize_dynamic(
        file,
        quantized,
        per_channel=True,
        weight_type=QuantType.QInt8,
        op_types_to_quantize=["MatMul", "Gemm"],
    )
    return _onnx_session(quantized)


def _onnx_session(file: Path) -> Forward:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    return lambda pixels: session.run(None, {"pixel_values": pixels})[0]


def openvino(precision: str) -> Callable[..., Forward]:
    def make(directory: Path, calibration: np.ndarray, work: Path) -> Forward:
        return _openvino_request(_openvino_model(directory), precision)

    return make


def openvino_int8(directory: Path, calibration: np.ndarray, work: Path) -> Forward:
    """NNCF's static quantisation with its preset for transformers, calibrated on pictures."""
    import nncf

    batches = [calibration[start : start + 8] for start in range(0, len(calibration), 8)]
    model = nncf.quantize(
        _openvino_model(directory),
        nncf.Dataset(batches),
        model_type=nncf.ModelType.TRANSFORMER,
        subset_size=len(batches),
    )
    return _openvino_request(model, "bf16")


def _openvino_model(directory: Path) -> Any:
    import openvino

    tower = common.ImageTower(directory)
    model = openvino.convert_model(tower, example_input=torch.zeros(2, 3, 224, 224))
    model.reshape([-1, 3, 224, 224])
    return model


def _openvino_request(model: Any, precision: str) -> Forward:
    import openvino

    settings = {
        "INFERENCE_PRECISION_HINT": precision,
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
    }
    request = openvino.Core().compile_model(model, "CPU", settings).create_infer_request()
    # Copied, because the request gives out its own memory and writes there again.
    return lambda pixels: request.infer([pixels])[0].copy()


BACKENDS: dict[str, Callable[[Path, np.ndarray, Path], Forward]] = {
    "torch-float32": torch_eager(torch.float32),
    "torch-bfloat16": torch_eager(torch.bfloat16),
    "torch-bfloat16-compiled": torch_compiled(freezing=False),
    "torch-bfloat16-compiled-frozen": torch_compiled(freezing=True),
    "torchao-int8": torchao_int8(compiled=False),
    "torchao-int8-compiled": torchao_int8(compiled=True),
    "onnxruntime-float32": onnx_float32,
    "onnxruntime-int8": onnx_int8,
    "openvino-float32": openvino("f32"),
    "openvino-bfloat16": openvino("bf16"),
    "openvino-int8": openvino_int8,
}


def pictures_as_pixels(directory: Path, count: int, work: Path) -> np.ndarray:
    files = corpus.make_corpus("jpeg-640", count, work)
    processor = transformers.AutoImageProcessor.from_pretrained(directory)
    images = [Image.open(file).convert("RGB") for file in files]
    return np.ascontiguousarray(processor(images=images, return_tensors="np")["pixel_values"])


def measure(options: argparse.Namespace, work: Path) -> dict[str, Any]:
    directory = common.checkpoint(options.model_kind, work)
    everything = pictures_as_pixels(directory, options.batch + _CALIBRATION, work)
    # What calibrates is not what is measured.
    pixels, calibration = everything[: options.batch], everything[options.batch :]
    reference = torch_forward(common.ImageTower(directory), torch.float32)(pixels)
    forwards: dict[str, Forward] = {}
    facts: dict[str, dict[str, Any]] = {}
    skipped: dict[str, str] = {}
    for name in options.backends.split(","):
        started = time.perf_counter()
        # Whatever a backend raises is the reason why it has no figure; the others go on.
        try:
            forward = BACKENDS[name](directory, calibration, work)
            rows = forward(pixels)
        except Exception as err:
            skipped[name] = f"{type(err).__name__}: {str(err).splitlines()[0][:300]}"
            print(f"skipped {name}: {skipped[name]}", flush=True)
            continue
        ready = {"seconds_to_ready": time.perf_counter() - started}
        facts[name] = ready | common.worst_cosines(rows, reference)
        forwards[name] = forward
        print(f"{name} is ready after {ready['seconds_to_ready']:.1f} s", flush=True)

    def task(forward: Forward) -> Callable[[int], float]:
        def rate(number: int) -> float:
            started = time.perf_counter()
            forward(pixels)
            return len(pixels) / (time.perf_counter() - started)

        return rate

    for forward in forwards.values():
        forward(pixels)
    tasks = {name: task(forward) for name, forward in forwards.items()}
    rates = common.take_turns(tasks, options.repeats) if tasks else {}
    return {
        "what": "backends",
        "model_kind": options.model_kind,
        "batch": options.batch,
        "results": {name: common.summary(rates[name]) | facts[name] for name in rates},
        "skipped": skipped,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model-kind", choices=common.MODEL_KINDS, default="clip-b32")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--backends", default=",".join(BACKENDS))
    common.add_common_options(parser)
    options = parser.parse_args()
    common.print_machine()
    with common.workplace(options.work) as work:
        figures = measure(options, work)
    print(f"{figures['model_kind']}, batches of {figures['batch']}; forward pass only")
    for name, one in figures["results"].items():
        spread = f"({one['min']:.1f} to {one['max']:.1f})"
        print(f"{name:32} {one['median']:7.1f} images/s {spread:18}", end="")
        print(f" cosine {one['cosine']:.5f}, centred {one.get('centred_cosine', 1):.4f}", end="")
        print(f", ready after {one['seconds_to_ready']:.1f} s")
    for name, reason in figures["skipped"].items():
        print(f"{name:32} skipped: {reason}")
    common.write_json(options.json, figures)


if __name__ == "__main__":
    main()
