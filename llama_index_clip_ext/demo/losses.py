"""What the demo's training pulls together and pushes apart, when many captions are true at once."""

from __future__ import annotations

import random
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from llama_index_clip_ext.demo.captions import BACKGROUNDS, COLOURS, DIGIT, SHAPES, Scene

EDIT_WORDS = (*COLOURS, *SHAPES)
"""The words that may be added to and taken from a picture, in the order of their rows."""

_COLOURS, _SHAPES, _BACKGROUNDS = list(COLOURS), [*SHAPES, DIGIT], list(BACKGROUNDS)
_UNSAID = -1


def encode_scenes(scenes: Sequence[Scene]) -> Tensor:
    """Number what scenes say; -1 where a field is None.

    Returns:
        Colour, shape, background, digit. Shape ``(len(scenes), 4)``.
    """
    rows = [
        (
            _COLOURS.index(scene.colour) if scene.colour else _UNSAID,
            _SHAPES.index(scene.shape) if scene.shape else _UNSAID,
            _BACKGROUNDS.index(scene.background) if scene.background else _UNSAID,
            _UNSAID if scene.digit is None else scene.digit,
        )
        for scene in scenes
    ]
    return torch.tensor(rows)


def caption_loss(
    images: Tensor, texts: Tensor, shown: Tensor, said: Tensor, scale: Tensor
) -> Tensor:
    """CLIP's contrastive loss, where every caption that is true of a picture is a positive.

    Args:
        images: Unit rows. Shape ``(pictures, dim)``.
        texts: Unit rows. Shape ``(captions, dim)``.
        shown: Scenes of the pictures, of :func:`encode_scenes`.
        said: Scenes of the captions.
        scale: One over the temperature.
    """
    unsaid = said[None] == _UNSAID
    true = (unsaid | (said[None] == shown[:, None])).all(dim=-1)
    logits = scale * images @ texts.T
    return (_cross_entropy(logits, true) + _cross_entropy(logits.T, true.T)) / 2


def same_class_loss(images: Tensor, shown: Tensor, scale: Tensor) -> Tensor:
    """Pull together pictures of one colour and shape, or of one digit, whatever else they show.

    Source:
        Khosla et al. 2020, Supervised Contrastive Learning. arXiv:2004.11362
    """
    same = _same_class(shown, shown)
    itself = torch.eye(len(images), dtype=torch.bool)
    logits = (scale * images @ images.T).masked_fill(itself, -1e4)
    return _cross_entropy(logits, same & ~itself)


def edit_loss(
    images: Tensor, words: Tensor, shown: Tensor, scale: Tensor, rng: random.Random
) -> Tensor:
    """Make ``picture + "red" - "blue"`` point at pictures that are red instead of blue.

    Args:
        images: Unit rows. Shape ``(pictures, dim)``.
        words: Unit rows of :data:`EDIT_WORDS`. Shape ``(16, dim)``.
        shown: Scenes of the pictures, of :func:`encode_scenes`.
        scale: One over the temperature.
        rng: Chooses what to change.
    """
    shapes = (shown[:, 3] == _UNSAID).nonzero().flatten()
    wanted = shown[shapes].clone()
    column = torch.tensor([rng.randrange(2) for _ in shapes])
    new = torch.tensor([rng.randrange(8) for _ in shapes])
    old = wanted[torch.arange(len(shapes)), column]
    wanted[torch.arange(len(shapes)), column] = new
    queries = images[shapes] + words[new + 8 * column] - words[old + 8 * column]
    right = _same_class(wanted, shown)
    return _cross_entropy(scale * F.normalize(queries, dim=-1) @ images.T, right)


def _same_class(left: Tensor, right: Tensor) -> Tensor:
    colour = left[:, None, 0] == right[None, :, 0]
    shape_and_digit = (left[:, None, [1, 3]] == right[None, :, [1, 3]]).all(dim=-1)
    is_digit = left[:, None, 3] != _UNSAID  # The ink is not part of a digit's class.
    return shape_and_digit & (colour | is_digit)


def _cross_entropy(logits: Tensor, right: Tensor) -> Tensor:
    """Against equal shares for all that is right; rows with nothing right do not count."""
    rows = right.any(dim=1)
    target = right[rows].float()
    return F.cross_entropy(logits[rows], target / target.sum(dim=1, keepdim=True))
