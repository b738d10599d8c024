"""Makes the two checkpoints of the demo: ``python -m llama_index_clip_ext.demo.train``."""

from __future__ import annotations

import argparse
import logging
import math
import random
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from llama_index_clip_ext.demo import layouts
from llama_index_clip_ext.demo.captions import (
    COLOURS,
    SHAPES,
    Language,
    random_caption,
)
from llama_index_clip_ext.demo.drawing import draw_digits, draw_shapes
from llama_index_clip_ext.demo.heldout import TRAINING_DIGITS, heldout_accuracy
from llama_index_clip_ext.demo.losses import (
    EDIT_WORDS,
    caption_loss,
    edit_loss,
    encode_scenes,
    same_class_loss,
)
from llama_index_clip_ext.demo.training_set import TrainingSet, augment, draw_training_set

Family: TypeAlias = Literal["clip", "chinese-clip"]
logger = logging.getLogger(__name__)

LANGUAGES: dict[Family, tuple[Language, ...]] = {"clip": ("en",), "chinese-clip": ("zh", "en")}

STEPS = 3000
BATCH_SIZE = 128
LEARNING_RATE = 1.5e-3
WARMUP_STEPS = 150


def train(family: Family, path: Path, *, seed: int) -> list[str]:
    """Draw the pictures, make the tokenizer, train the towers and save them all.

    Args:
        family: Which of the two checkpoints.
        path: Its directory.
        seed: Same seed and library versions, same checkpoint.

    Returns:
        Lines that tell the held-out accuracy.
    """
    torch.manual_seed(seed)
    rng = random.Random(seed)
    languages = LANGUAGES[family]
    some = draw_shapes(640, seed=seed), draw_digits(TRAINING_DIGITS[:640], seed=seed)
    samples = [
        random_caption(drawing.scene, language, rng).text
        for drawings in some
        for drawing in drawings
        for language in languages
        for _ in range(8)
    ]
    model, processor, folder = _create(family, path, samples)
    data = draw_training_set(processor.image_processor, seed=seed)
    _fit(model, processor.tokenizer, data, languages, rng)
    model.save_pretrained(folder)
    return list(_heldout_report(model, processor, languages))


def _create(family: Family, path: Path, captions: list[str]) -> tuple[Any, Any, Path]:
    """The untrained model and its processor, read back from the files a user will read."""
    if family == "clip":
        from transformers import CLIPConfig, CLIPModel, CLIPProcessor

        folder, fields = layouts.write_clip(path, captions)
        return CLIPModel(CLIPConfig(**fields)), CLIPProcessor.from_pretrained(folder), folder
    from transformers import ChineseCLIPConfig, ChineseCLIPModel, ChineseCLIPProcessor

    folder, fields = layouts.write_chinese_clip(path, captions)
    model = ChineseCLIPModel(ChineseCLIPConfig(**fields))
    return model, ChineseCLIPProcessor.from_pretrained(folder), folder


def _fit(
    model: Any, tokenizer: Any, data: TrainingSet, languages: Sequence[Language], rng: random.Random
) -> None:
    decayed = [weight for weight in model.parameters() if weight.ndim > 1]
    others = [weight for weight in model.parameters() if weight.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": 0.05}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=LEARNING_RATE, betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, _warm_up_then_cosine)
    shown = encode_scenes(data.scenes)
    model.train()
    for step, batch in enumerate(_batches(len(data.scenes), rng)):
        captions = [random_caption(data.scenes[i], lang, rng) for i in batch for lang in languages]
        words = _edit_words(rng.choice(languages))
        texts = _embed_texts(model, tokenizer, [*(text for text, _ in captions), *words])
        images = _embed_pixels(model, augment(data.pixels[batch]))
        said = encode_scenes([scene for _, scene in captions])
        scale = model.logit_scale.exp()
        loss = caption_loss(images, texts[: len(captions)], shown[batch], said, scale)
        loss = loss + 0.5 * same_class_loss(images, shown[batch], scale)
        loss = loss + 0.5 * edit_loss(images, texts[len(captions) :], shown[batch], scale, rng)
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        with torch.no_grad():
            model.logit_scale.clamp_(max=math.log(100))  # As CLIP's own training does.
        if step % 100 == 0:
            logger.info("step %d of %d: loss %.3f", step, STEPS, loss.item())
    model.eval()


def _warm_up_then_cosine(step: int) -> float:
    if step < WARMUP_STEPS:
        return (step + 1) / WARMUP_STEPS
    return 0.5 * (1 + math.cos(math.pi * (step - WARMUP_STEPS) / (STEPS - WARMUP_STEPS)))


def _batches(count: int, rng: random.Random) -> Iterator[list[int]]:
    order: list[int] = []
    for _ in range(STEPS):
        if len(order) < BATCH_SIZE:
            order = list(range(count))
            rng.shuffle(order)
        yield [order.pop() for _ in range(BATCH_SIZE)]


def _edit_words(language: Language) -> list[str]:
    words = {**COLOURS, **SHAPES}
    return [words[name].usual(language) for name in EDIT_WORDS]


def _embed_texts(model: Any, tokenizer: Any, texts: list[str]) -> Tensor:
    inputs = tokenizer(texts, padding=True, return_tensors="pt")
    return _unit_rows(model.get_text_features(**inputs))


def _embed_pixels(model: Any, pixel_values: Tensor) -> Tensor:
    return _unit_rows(model.get_image_features(pixel_values=pixel_values))


def _unit_rows(output: Any) -> Tensor:
    # transformers 4 returns the features themselves, transformers 5 an object that holds them.
    features = output if isinstance(output, Tensor) else output.pooler_output
    return F.normalize(features, dim=-1)


def _heldout_report(model: Any, processor: Any, languages: Sequence[Language]) -> Iterator[str]:
    @torch.inference_mode()
    def encode_texts(texts: list[str]) -> NDArray[np.float32]:
        return _embed_texts(model, processor.tokenizer, texts).numpy()

    @torch.inference_mode()
    def encode_images(images: list[Image.Image]) -> NDArray[np.float32]:
        inputs = processor.image_processor(images, return_tensors="pt")
        return _embed_pixels(model, inputs["pixel_values"]).numpy()

    for language in languages:
        for name, share in heldout_accuracy(encode_texts, encode_images, language).items():
            yield f"{language}  {name:<15} {share:.3f}"


def main(arguments: Sequence[str] | None = None) -> None:
    """Train both checkpoints, or one, and print how they do on held-out pictures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "checkpoints")
    parser.add_argument("--only", choices=list(LANGUAGES))
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    # One thread: two would wait for each other whenever the machine has anything else to do.
    torch.set_num_threads(1)
    for family in [options.only] if options.only else LANGUAGES:
        start = time.perf_counter()
        report = train(family, options.output / family, seed=options.seed)
        print(f"{family}: trained in {time.perf_counter() - start:.0f} s")
        print("\n".join(report))


if __name__ == "__main__":
    main()
