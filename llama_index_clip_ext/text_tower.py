"""A text tower of its own beside another model's images, such as a multilingual one for CLIP."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from .errors import ModelLoadError
from .layout import weight_files
from .loading import read_model, read_tokenizer
from .text_checkpoint import TextCheckpoint
from .tokenization import TextTokenizer


class TextTower(nn.Module):
    """A sentence encoder, in a dual encoder's words.

    Args:
        transformer: Encodes tokens.
        dense: From the mean over tokens to the embedding; ``None`` if that is the embedding.
    """

    def __init__(self, transformer: Any, dense: nn.Linear | None) -> None:
        super().__init__()
        self.transformer = transformer
        self.dense = dense or nn.Identity()

    def get_text_features(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor
    ) -> torch.Tensor:
        """Embed texts by the mean over their tokens, not normalised. Shape ``(n, dim)``.

        Source:
            Reimers and Gurevych 2019, section 3 (MEAN strategy). arXiv:1908.10084
        """
        outputs = self.transformer(input_ids=input_ids, attention_mask=attention_mask)
        hidden = outputs.last_hidden_state
        weights = attention_mask.unsqueeze(-1).to(hidden.dtype)
        features: torch.Tensor = self.dense((hidden * weights).sum(1) / weights.sum(1))
        return features


def load_text_tokenizer(checkpoint: TextCheckpoint) -> TextTokenizer:
    """Load a text tower's tokenizer.

    Raises:
        ModelLoadError: If transformers cannot read it.
    """
    return TextTokenizer(
        read_tokenizer(checkpoint.name, checkpoint.directory),
        checkpoint.context_length,
        lower_case=checkpoint.lower_case,
    )


def load_text_tower(checkpoint: TextCheckpoint, dtype: torch.dtype) -> TextTower:
    """Load a text tower, on the CPU.

    Raises:
        ModelLoadError: If the weights cannot be read, or some are missing.
    """
    import transformers

    transformer = read_model(
        transformers.AutoModel, checkpoint.name, checkpoint.directory, dtype=dtype
    )
    return TextTower(transformer, _load_dense(checkpoint)).to(dtype).eval()


def _load_dense(checkpoint: TextCheckpoint) -> nn.Linear | None:
    if checkpoint.dense is None:
        return None
    file = weight_files(checkpoint.dense)[0]
    try:
        if file.suffix == ".safetensors":
            from safetensors.torch import load_file

            weights = load_file(file)
        else:
            weights = torch.load(file, map_location="cpu", weights_only=True)
        matrix = weights["linear.weight"]
        dense = nn.Linear(matrix.shape[1], matrix.shape[0], bias="linear.bias" in weights)
        dense.load_state_dict({key.removeprefix("linear."): weights[key] for key in weights})
    except Exception as err:
        raise ModelLoadError(
            f"cannot load the dense layer of {checkpoint.name!r} from {file}: {err}"
        ) from err
    if dense.out_features != checkpoint.dim:
        raise ModelLoadError(
            f"{checkpoint.name!r}: {file} makes {dense.out_features} components, its configuration "
            f"says {checkpoint.dim}"
        )
    return dense.float()
