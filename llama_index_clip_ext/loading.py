"""What transformers reads from a checkpoint's folder: tokenizer, image processor, model."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .checkpoint import Checkpoint
from .errors import ModelLoadError
from .layout import weight_files
from .tokenization import TextTokenizer


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
        return transformers.AutoTokenizer.from_pretrained(directory)


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


def load_model(checkpoint: Checkpoint) -> Any:
    """Load both towers, in float32 on the CPU.

    Raises:
        ModelLoadError: If the weights cannot be read, or some are missing.
    """
    import transformers

    model_class = getattr(transformers, checkpoint.architecture.model_class)
    return read_model(model_class, checkpoint.name, checkpoint.directory)


def read_model(model_class: Any, name: str, directory: Path) -> Any:
    """Load a model of transformers from a folder, in float32 on the CPU.

    Args:
        model_class: transformers' class.
        name: What the user calls the model, for messages.
        directory: The folder of its configuration and weights.

    Raises:
        ModelLoadError: If the weights cannot be read, or some are missing: transformers would fill
            them with random numbers.
    """
    import torch
    import transformers

    # A bar over a load of a second or two would cross the caller's own.
    shows_bars = transformers.utils.logging.is_progress_bar_enabled()
    transformers.utils.logging.disable_progress_bar()
    try:
        with _explained(f"cannot load {name!r}"):
            model, info = model_class.from_pretrained(
                directory,
                dtype=torch.float32,
                use_safetensors=weight_files(directory)[0].suffix == ".safetensors",
                # Reported below, with a name, instead of by a table in the log.
                ignore_mismatched_sizes=True,
                output_loading_info=True,
            )
    finally:
        if shows_bars:
            transformers.utils.logging.enable_progress_bar()
    # Of a mismatch transformers 5 gives the key and both shapes, 4 the key.
    mismatched = [key if isinstance(key, str) else key[0] for key in info["mismatched_keys"]]
    missing = [*info["missing_keys"], *mismatched]
    if missing:
        raise ModelLoadError(
            f"{name!r}: {len(missing)} weights are missing or of another shape in {directory}, "
            f"such as {missing[0]!r}: the answers would be random"
        )
    return model.eval()


@contextmanager
def _explained(what: str) -> Iterator[None]:
    """Turn whatever transformers, tokenizers, safetensors or pickle raise into one error."""
    try:
        yield
    except ImportError as err:
        # SiglipTokenizer needs sentencepiece, which no other of the supported ones does.
        hint = "; pip install sentencepiece" if "sentencepiece" in str(err).lower() else ""
        raise ModelLoadError(f"{what}: {err}{hint}") from err
    except Exception as err:
        raise ModelLoadError(f"{what}: {err}") from err
