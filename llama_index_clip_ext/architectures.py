"""What differs between the architectures that are supported, in one table."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .models import CHINESE_CLIP_CONTEXT_LENGTH, CLIP_CONTEXT_LENGTH, Family


@dataclass(frozen=True)
class Architecture:
    """How transformers loads a dual encoder, and what its text tower was trained on.

    Attributes:
        family: What this package calls it.
        model_class: transformers' name of the model.
        image_processor_class: transformers' name of the image processor, without its backend.
        tokenizer_files: Where its vocabulary is published, for messages; or in tokenizer.json.
        default_dim: Components of an embedding, where config.json does not say.
        default_positions: Tokens that the text tower has positions for, where config.json does not
            say.
        trained_length: Tokens that it was trained on, where it has positions for more.
        english_vocabulary: Size of the vocabulary that is published for English alone.
        pads_to_context: Whether it was trained on texts padded to the context, reading the padding.
        lower_case: Whether it was trained on lower-cased texts.
    """

    family: Family
    model_class: str
    image_processor_class: str
    tokenizer_files: str
    default_dim: int = 512
    default_positions: int = CLIP_CONTEXT_LENGTH
    trained_length: int | None = None
    english_vocabulary: int | None = None
    pads_to_context: bool = False
    lower_case: bool = False

    def dim(self, config: Mapping[str, Any]) -> int:
        """Return the components of an embedding, from the content of config.json."""
        text = config.get("text_config") or {}
        if self.pads_to_context:
            # SigLIP has no projection beside its text tower's head.
            return int(text.get("projection_size") or text.get("hidden_size") or self.default_dim)
        return int(config.get("projection_dim", self.default_dim))

    def context_length(self, config: Mapping[str, Any]) -> int:
        """Return the tokens that the text tower reads, special tokens included."""
        text = config.get("text_config") or {}
        positions = int(text.get("max_position_embeddings") or self.default_positions)
        return min(positions, self.trained_length or positions)

    def reads_english_only(self, config: Mapping[str, Any]) -> bool:
        """Whether the vocabulary is the English one, or too small for another script's."""
        if self.english_vocabulary is None:
            return False
        text = config.get("text_config") or {}
        size = text.get("vocab_size", self.english_vocabulary)
        return bool(size == self.english_vocabulary or size < _CHINESE_CHARACTERS)


# Those of GB 2312's first level, which are in everyday use.
_CHINESE_CHARACTERS = 3_755

# By model_type in config.json. The defaults are those of transformers' configuration classes, which
# published files leave out.
ARCHITECTURES: dict[str, Architecture] = {
    # OpenAI's, OpenCLIP's in transformers' format, and what was fine-tuned from either.
    "clip": Architecture(
        family="clip",
        model_class="CLIPModel",
        image_processor_class="CLIPImageProcessor",
        tokenizer_files="vocab.json and merges.txt",
        english_vocabulary=49_408,
    ),
    "chinese_clip": Architecture(
        family="chinese-clip",
        model_class="ChineseCLIPModel",
        image_processor_class="ChineseCLIPImageProcessor",
        tokenizer_files="vocab.txt",
        default_positions=512,
        trained_length=CHINESE_CLIP_CONTEXT_LENGTH,
    ),
    # SigLIP, and the checkpoints of SigLIP 2 that have one resolution. Both were trained on
    # lower-cased texts of full length, whose padding is attended to and whose last token, often
    # padding, is read (Zhai et al. 2023, arXiv:2303.15343; google-research/big_vision). Its English
    # vocabulary is C4's; the multilingual checkpoints have 250,000 tokens and more.
    "siglip": Architecture(
        family="siglip",
        model_class="SiglipModel",
        image_processor_class="SiglipImageProcessor",
        tokenizer_files="spiece.model",
        default_dim=768,
        default_positions=64,
        english_vocabulary=32_000,
        pads_to_context=True,
        lower_case=True,
    ),
    # The NaFlex checkpoints of SigLIP 2, which keep a picture's aspect ratio (Tschannen et al.
    # 2025, arXiv:2502.14786).
    "siglip2": Architecture(
        family="siglip2",
        model_class="Siglip2Model",
        image_processor_class="Siglip2ImageProcessor",
        tokenizer_files="tokenizer.json",
        default_dim=768,
        default_positions=64,
        pads_to_context=True,
        lower_case=True,
    ),
    # XLM-R has 514 positions; its authors tokenise to 77 (FlagAI, examples/AltCLIP).
    "altclip": Architecture(
        family="altclip",
        model_class="AltCLIPModel",
        image_processor_class="CLIPImageProcessor",
        tokenizer_files="sentencepiece.bpe.model",
        default_dim=768,
        default_positions=514,
        trained_length=CLIP_CONTEXT_LENGTH,
    ),
    "metaclip_2": Architecture(
        family="metaclip-2",
        model_class="MetaClip2Model",
        image_processor_class="CLIPImageProcessor",
        tokenizer_files="sentencepiece.bpe.model",
    ),
}
