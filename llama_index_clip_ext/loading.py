"""What transformers reads from a checkpoint's folder: tokenizer, image processor, model."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, TypeAlias

from .checkpoint import Checkpoint
from .errors import ModelLoadError
from .layout import weight_files
from .tokenization import TextTokenizer

logger = logging.getLogger(__name__)

Tower: TypeAlias = Literal["text", "image"]

# transformers' names of the two towers, in its models and in their configurations.
_NAMES: dict[Tower, str] = {"text": "text", "image": "vision"}

# transformers' bars and warnings are the process's, not a call's.
_QUIET_LOCK = threading.Lock()


def load_tokenizer(checkpoint: Checkpoint) -> TextTokenizer:
    """Load a dual encoder's tokenizer.

    Raises:
        ModelLoadError: If transformers cannot read it.
    """
    tokenizer = read_tokenizer(checkpoint.name, checkpoint.directory)
    architecture = checkpoint.architecture
    return TextTokenizer(
        tokenizer,
        checkpoint.context_length,
        pads_to_context=architecture.pads_to_context,
        lower_case=architecture.lower_case and tokenizer.init_kwargs.get("do_lower_case", True),
    )


def read_tokenizer(name: str, directory: Path) -> Any:
    """Load transformers' tokenizer from a folder.

    Raises:
        ModelLoadError: If transformers cannot read it.
    """
    import transformers

    with _explained(f"cannot load the tokenizer of {name!r}"):
        return transformers.AutoTokenizer.from_pretrained(directory, trust_remote_code=False)


def read_config(checkpoint: Checkpoint) -> Any:
    """Read transformers' configuration of a dual encoder.

    Raises:
        ModelLoadError: If transformers cannot read it.
    """
    import transformers

    with _explained(f"cannot load {checkpoint.name!r}"):
        return transformers.AutoConfig.from_pretrained(
            checkpoint.directory, trust_remote_code=False
        )


def load_image_processor(checkpoint: Checkpoint) -> Any:
    """Load the image processor, the one that resizes with Pillow.

    Raises:
        ModelLoadError: If transformers cannot read it.
    """
    import transformers

    name = checkpoint.architecture.image_processor_class
    # transformers 5 keeps Pillow's variant under a name of its own and prefers torchvision's, whose
    # resizing differs; in transformers 4 the plain name is Pillow's.
    processor_class = getattr(transformers, f"{name}Pil", None) or getattr(transformers, name)
    with _explained(f"cannot load the image processor of {checkpoint.name!r}"):
        return processor_class.from_pretrained(checkpoint.directory)


def load_tower(checkpoint: Checkpoint, tower: Tower, dtype: Any) -> Any:
    """Load one tower of a dual encoder, on the CPU: transformers' model without the other one.

    Args:
        checkpoint: The files.
        tower: The one that is wanted.
        dtype: torch's type of the weights.

    Returns:
        The model, which answers for this tower alone.

    Raises:
        ModelLoadError: If the weights cannot be read, or some are missing.
    """
    import torch
    import transformers

    model_class = getattr(transformers, checkpoint.architecture.model_class)
    other: Tower = "image" if tower == "text" else "text"
    config = read_config(checkpoint)
    # No layers, so that their weights are not read.
    getattr(config, f"{_NAMES[other]}_config").num_hidden_layers = 0
    # In float32 where weights are rescaled, so that they are rounded once.
    model = read_model(
        model_class,
        checkpoint.name,
        checkpoint.directory,
        dtype=torch.float32 if tower == "image" else dtype,
        config=config,
        unread=f"{_NAMES[other]}_model.",
    )
    # What is left of it, of which the embeddings of a large vocabulary are much.
    setattr(model, f"{_NAMES[other]}_model", torch.nn.Identity())
    if tower == "image":
        _fuse_quick_gelu(model)
    return model.to(dtype)


def _fuse_quick_gelu(model: Any) -> None:
    """Compute CLIP's activation in one pass over memory, where transformers takes three.

    ``x * sigmoid(a * x)`` is ``silu(a * x) / a``: the layers before and after it are scaled by a
    and 1 / a, and torch's own SiLU is left between them. An eighth faster in bfloat16, by
    benchmarks/RESULTS.md.

    Source:
        Hendrycks and Gimpel 2016, section 2 (the sigmoid approximation). arXiv:1606.08415
    """
    import torch
    from transformers.activations import QuickGELUActivation

    scale = 1.702  # As QuickGELUActivation has it.
    with torch.no_grad():
        for mlp in model.modules():
            if isinstance(getattr(mlp, "activation_fn", None), QuickGELUActivation):
                mlp.fc1.weight.mul_(scale)
                mlp.fc1.bias.mul_(scale)
                mlp.fc2.weight.div_(scale)
                mlp.activation_fn = torch.nn.SiLU(inplace=True)


def read_model(
    model_class: Any,
    name: str,
    directory: Path,
    *,
    dtype: Any,
    config: Any = None,
    unread: str | None = None,
) -> Any:
    """Load a model of transformers from a folder, on the CPU.

    Args:
        model_class: transformers' class.
        name: What the user calls the model, for messages.
        directory: The folder of its weights.
        dtype: torch's type of the weights.
        config: Its configuration; ``None`` reads the folder's.
        unread: What the names of weights begin with that are left in the file on purpose; ``None``
            says nothing of any that the model has no place for.

    Raises:
        ModelLoadError: If the weights cannot be read, or some are missing: transformers would fill
            them with random numbers.
    """
    with _quiet_transformers(), _explained(f"cannot load {name!r}"):
        model, info = model_class.from_pretrained(
            directory,
            config=config,
            dtype=dtype,
            # Unless told, transformers asks on the terminal whether to run a checkpoint's code.
            trust_remote_code=False,
            weights_only=True,
            use_safetensors=weight_files(directory)[0].suffix == ".safetensors",
            # Reported below, with a name, instead of by a table in the log.
            ignore_mismatched_sizes=True,
            output_loading_info=True,
        )
    # Of a mismatch transformers 5 gives the key and both shapes, 4 the key.
    mismatched = [key if isinstance(key, str) else key[0] for key in info["mismatched_keys"]]
    missing = [*info["missing_keys"], *mismatched]
    if missing:
        raise ModelLoadError(
            f"{name!r}: {len(missing)} weights are missing or of another shape in {directory}, "
            f"such as {missing[0]!r}: the answers would be random"
        )
    known = (unread or "", "text_model.embeddings.position_ids")
    extra = [key for key in info["unexpected_keys"] if not key.startswith(known)]
    if extra and unread:
        logger.warning(
            "%r: %d weights in %s have no place in the model that its config.json describes, such "
            "as %r: is that the right one?",
            name,
            len(extra),
            directory,
            sorted(extra)[0],
        )
    return model.eval()


def read_logits(checkpoint: Checkpoint) -> tuple[float, float | None]:
    """Read logit_scale, before the exponential, and logit_bias if there is one, as they are stored.

    Raises:
        ModelLoadError: If the weights cannot be read, or have no scale.
    """
    found: dict[str, float] = {}
    for file in weight_files(checkpoint.directory):
        with _explained(f"cannot read {file}"):
            for name, value in _scalars(file).items():
                found[name] = float(value)
    if "logit_scale" not in found:
        raise ModelLoadError(f"{checkpoint.name!r}: {checkpoint.directory} has no logit_scale")
    return found["logit_scale"], found.get("logit_bias")


def _scalars(file: Path) -> dict[str, Any]:
    names = ("logit_scale", "logit_bias")
    if file.suffix == ".safetensors":
        from safetensors import safe_open

        with safe_open(file, "pt") as weights:
            kept = set(weights.keys())
            return {name: weights.get_tensor(name) for name in names if name in kept}
    import torch

    weights = torch.load(file, map_location="cpu", weights_only=True)
    return {name: weights[name] for name in names if name in weights}


@contextmanager
def _quiet_transformers() -> Iterator[None]:
    """Keep transformers' progress bars and warnings from a load; one load at a time.

    A bar over a second or two would cross the caller's own, and the weights of the tower that is
    not wanted are no news.
    """
    import transformers

    logging_of = transformers.utils.logging
    with _QUIET_LOCK:
        shows_bars, verbosity = logging_of.is_progress_bar_enabled(), logging_of.get_verbosity()
        logging_of.disable_progress_bar()
        logging_of.set_verbosity_error()
        try:
            yield
        finally:
            logging_of.set_verbosity(verbosity)
            if shows_bars:
                logging_of.enable_progress_bar()


@contextmanager
def _explained(what: str) -> Iterator[None]:
    """Turn whatever transformers, tokenizers, safetensors or pickle raise into one error."""
    try:
        yield
    except ImportError as err:
        # SiglipTokenizer needs sentencepiece, which no other of the supported ones does.
        is_missing = "sentencepiece" in str(err).lower()
        hint = "; pip install sentencepiece (the extra 'siglip' of this package)"
        hint = hint if is_missing else ""
        raise ModelLoadError(f"{what}: {err}{hint}") from err
    except Exception as err:
        raise ModelLoadError(f"{what}: {err}") from err
