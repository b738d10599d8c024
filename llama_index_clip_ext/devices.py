"""What runs the forward pass: the device, the arithmetic that is fast and safe there, the batch."""

from __future__ import annotations

from typing import Any, Literal, TypeAlias

from .checkpoint import Checkpoint
from .errors import ModelLoadError

Dtype: TypeAlias = Literal["auto", "float32", "float16", "bfloat16", "int8"]

# Below this a model is so small that lower precision saves nothing: the demo's have 3 MB.
_SMALL_BYTES = 64 * 2**20

# By benchmarks/RESULTS.md, more than this per forward pass gains nothing on a CPU.
_CPU_BATCH = 32
_MOST_CUDA_BATCH = 256
# Share of the free memory that a batch may take, and how many buffers as large as the widest
# activation, that between the two layers of an MLP, a layer has alive at a time.
_MEMORY_SHARE = 0.25
_LIVE_BUFFERS = 4


def resolve_device(device: str) -> str:
    """Return the device that ``"auto"`` means here; any other as it is."""
    import torch

    if device != "auto":
        return device
    return "cuda" if torch.cuda.is_available() else "cpu"


def resolve_dtype(dtype: Dtype, device: str, checkpoint: Checkpoint) -> Any:
    """Return torch's type for the arithmetic of the text tower, and of the images' but for int8.

    Args:
        dtype: As the user named it.
        device: As `resolve_device` returns it.
        checkpoint: The model: a small one gains nothing by lower precision.

    Raises:
        ModelLoadError: If int8 is asked for on another device than the CPU.
    """
    import torch

    if dtype == "int8" and device != "cpu":
        raise ModelLoadError(
            f"dtype='int8' runs on the CPU, the device is {device!r}; use device='cpu', or "
            "dtype='auto'"
        )
    if dtype not in ("auto", "int8"):
        return getattr(torch, dtype)
    if sum(file.stat().st_size for file in checkpoint.weight_files) < _SMALL_BYTES:
        return torch.float32
    if device.startswith("cuda"):
        return torch.float16
    return torch.bfloat16 if device == "cpu" and has_native_bfloat16() else torch.float32


def has_native_bfloat16() -> bool:
    """Whether this CPU multiplies bfloat16 matrices itself, by AVX512-BF16 or AMX."""
    import torch

    # torch has no public question for it; "supported" elsewhere may mean emulated, and slow.
    names = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(getattr(torch.cpu, name, lambda: False)() for name in names)


def default_batch_size(device: str, config: Any, itemsize: int) -> int:
    """Return images per forward pass: on CUDA, as many as a quarter of the free memory takes.

    Args:
        device: As `resolve_device` returns it.
        config: The image tower's, as transformers reads it.
        itemsize: Bytes of a number.

    Raises:
        ModelLoadError: If there is no such CUDA device.
    """
    import torch

    if not device.startswith("cuda"):
        return _CPU_BATCH
    # NaFlex, which has no image size, has a number of patches.
    size = getattr(config, "image_size", None)
    tokens = 1 + (int(size) // int(config.patch_size)) ** 2 if size else int(config.num_patches)
    per_image = tokens * int(config.intermediate_size) * itemsize * _LIVE_BUFFERS
    try:
        free, _ = torch.cuda.mem_get_info(device)
    except (AssertionError, RuntimeError) as err:
        said = str(err).splitlines()[0]
        raise ModelLoadError(f"cannot use device {device!r}: {said}; device='cpu' works") from err
    fitting = max(1, int(free * _MEMORY_SHARE) // per_image)
    return min(_MOST_CUDA_BATCH, 1 << (fitting.bit_length() - 1))


def is_out_of_memory(err: RuntimeError) -> bool:
    """Whether an error of torch says that memory ran out: CUDA's by its class, others' by words."""
    import torch

    said = ("can't allocate memory", "not enough memory", "out of memory")
    return isinstance(err, torch.OutOfMemoryError) or any(words in str(err) for words in said)
