"""Texts or images in, unit float32 rows out."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, cast

import numpy as np

from .checkpoint import Checkpoint
from .errors import DimensionMismatchError, ModelLoadError, TextTooLongError
from .loading import load_image_processor, load_model, load_tokenizer
from .scripts import cjk_share
from .text_checkpoint import TextCheckpoint
from .tokenization import TextTokenizer
from .vectors import Rows, l2_normalize

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image

logger = logging.getLogger(__name__)

Dtype: TypeAlias = Literal["auto", "float32", "float16", "bfloat16"]
OnLongText: TypeAlias = Literal["truncate", "error", "chunk_mean"]

# A picture thinner than this is cropped to it before it is resized: the checkpoint's centre crop
# throws the rest away, but resizing first could take gigabytes (1x100000 becomes 224x22400000).
_MAX_ASPECT_RATIO = 64

# Share of Chinese, Japanese or Korean letters from which a text is more than a name in passing.
_MAX_CJK_SHARE = 0.3

# How far a device may be from the CPU in float32 before its answers count as wrong.
_MIN_DEVICE_COSINE = 0.999


class Encoder:
    """A dual encoder, loaded on first use and shared safely by threads.

    Copies share the weights; a pickle carries the settings alone and loads again where it lands.

    Args:
        checkpoint: The files to load.
        device: ``"auto"`` (CUDA if there is one, else the CPU) or a torch device's name. ``"mps"``
            is checked against the CPU when it is loaded, because it has given wrong numbers.
        dtype: Arithmetic of the forward pass. ``"auto"`` is float16 on CUDA and float32 elsewhere.
        on_long_text: What to do with a text that is longer than the context: cut it, refuse it, or
            take the mean over windows of it, each as long as the context.
        text_checkpoint: A text tower to embed texts by, in place of the checkpoint's own.

    Attributes:
        n_truncated: Texts that were cut to the context so far.

    Raises:
        DimensionMismatchError: If the text tower has another dimension than the images.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        *,
        device: str = "auto",
        dtype: Dtype = "auto",
        on_long_text: OnLongText = "truncate",
        text_checkpoint: TextCheckpoint | None = None,
    ) -> None:
        if text_checkpoint is not None and text_checkpoint.dim != checkpoint.dim:
            raise DimensionMismatchError(
                f"text tower {text_checkpoint.name!r} makes {text_checkpoint.dim} components, the "
                f"images of {checkpoint.name!r} have {checkpoint.dim}: it was trained for another "
                "model",
                expected=checkpoint.dim,
                actual=text_checkpoint.dim,
            )
        self.checkpoint = checkpoint
        self.text_checkpoint = text_checkpoint
        self.device = device
        self.dtype = dtype
        self.on_long_text = on_long_text
        self.n_truncated = 0
        self._reset()

    def _reset(self) -> None:
        self._lock = threading.RLock()
        # Apart from the lock under which the model runs: event loops ask for the executor.
        self._executor_lock = threading.Lock()
        self._model: Any = None
        self._image_processor: Any = None
        self._tokenizer: TextTokenizer | None = None
        self._warned_of_script = False
        self._executor: ThreadPoolExecutor | None = None
        self._executor_pid = 0

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in vars(self).items() if not key.startswith("_")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._reset()

    def __deepcopy__(self, memo: dict[int, Any]) -> Encoder:
        return self

    @property
    def executor(self) -> ThreadPoolExecutor:
        """The one thread on which async callers run this model, so that calls queue up in order."""
        with self._executor_lock:
            # A forked child inherits the object but not its thread.
            if self._executor is None or self._executor_pid != os.getpid():
                self._executor = ThreadPoolExecutor(1, thread_name_prefix="clip-encoder")
                self._executor_pid = os.getpid()
            return self._executor

    @property
    def logit_scale(self) -> float:
        """What a cosine is multiplied with to be a logit. Loads the weights on first use.

        Source:
            Radford et al. 2021, Fig. 3 (there ``exp(t)``; this is after the exponential).
        """
        self._load()
        return float(self._model.logit_scale.detach().float().exp())

    @property
    def logit_bias(self) -> float | None:
        """What is added to a logit, by models that were trained with a sigmoid; else ``None``.

        Source:
            Zhai et al. 2023, Algorithm 1 (SigLIP). arXiv:2303.15343
        """
        self._load()
        bias = getattr(self._model, "logit_bias", None)
        return None if bias is None else float(bias.detach().float())

    def encode_texts(self, texts: Sequence[str], *, batch_size: int) -> Rows:
        """Embed texts, one row each, in the order given.

        Args:
            texts: Texts of any length.
            batch_size: Texts, or windows of long ones, per forward pass. Trades memory for speed,
                never changes the answer beyond float rounding.

        Returns:
            Unit-length embeddings on the CPU. Shape ``(len(texts), dim)``; ``(0, dim)`` if empty.

        Raises:
            TypeError: If an item is not a ``str``.
            TextTooLongError: If a text is too long and ``on_long_text`` is ``"error"``.
            ModelLoadError: If the checkpoint cannot be loaded.

        Source:
            Radford et al. 2021, Fig. 3 (projection, then L2 normalisation). arXiv:2103.00020
        """
        check_texts(texts)
        # Half of a character, as texts out of a PDF may hold, is none: tokenizers refuse it.
        texts = [text.encode("utf-8", "replace").decode() for text in texts]
        tokenizer = self._load()
        self._check_script(texts)
        rows = np.zeros((len(texts), self.checkpoint.dim), dtype=np.float32)
        counts = np.zeros(len(texts), dtype=int)
        for _, batch in _batched(self._windows(tokenizer, texts, batch_size), batch_size):
            indices = [index for index, _ in batch]
            inputs = tokenizer.pad([window for _, window in batch])
            np.add.at(rows, indices, self._forward("get_text_features", inputs))
            np.add.at(counts, indices, 1)
        # The sum over windows has the direction of their mean.
        several = counts > 1
        rows[several] = l2_normalize(rows[several])
        return rows

    def encode_images(self, images: Iterable[Image], *, batch_size: int) -> Rows:
        """Embed images, one row each, in the order given.

        Args:
            images: RGB pictures of any size; drawn one at a time, and only the model's input is
                kept of each, so that a generator of large photographs takes little memory.
            batch_size: Images per forward pass. Trades memory for speed, never changes the answer
                beyond float rounding.

        Returns:
            Unit-length embeddings on the CPU. Shape ``(n, dim)``; ``(0, dim)`` if empty.

        Raises:
            ModelLoadError: If the checkpoint cannot be loaded.

        Source:
            Radford et al. 2021, Fig. 3 (projection, then L2 normalisation). arXiv:2103.00020
        """
        self._load()
        pixels = (self._preprocess(image) for image in images)
        batches = [np.empty((0, self.checkpoint.dim), dtype=np.float32)]
        for _, batch in _batched(pixels, batch_size):
            inputs = {key: np.stack([item[key] for item in batch]) for key in batch[0]}
            batches.append(self._forward("get_image_features", inputs))
        return np.concatenate(batches)

    def _preprocess(self, image: Image) -> dict[str, Any]:
        """Run the checkpoint's own processor on one picture.

        Returns:
            The image tower's inputs: ``pixel_values`` of shape ``(3, height, width)``; for NaFlex,
            of shape ``(patches, values)``, with the mask and the grid of the patches.
        """
        if getattr(self._image_processor, "do_center_crop", False):
            image = _crop_to_aspect_ratio(image, _MAX_ASPECT_RATIO)
        # The channels are named, because they cannot be guessed from a picture 1 or 3 high.
        outputs = self._image_processor(
            image.convert("RGB"), return_tensors="np", input_data_format="channels_last"
        )
        return {key: value[0] for key, value in outputs.items()}

    def _windows(
        self, tokenizer: TextTokenizer, texts: Sequence[str], batch_size: int
    ) -> Iterator[tuple[int, list[int]]]:
        """Yield the tokens to embed, each with the position of its text."""
        for start, batch in _batched(texts, batch_size):
            for index, row in enumerate(tokenizer.tokenize(batch), start):
                windows = tokenizer.windows(row)
                if len(windows) > 1 and self.on_long_text != "chunk_mean":
                    self._report_long_text(index, len(row))
                    windows = windows[:1]
                for window in windows:
                    yield index, window

    def reads(self, text: str) -> bool:
        """Whether a text is not Chinese, Japanese or Korean for a model of English words."""
        if self.text_checkpoint or not self.checkpoint.reads_english_only or text.isascii():
            return True
        return cjk_share(text) <= _MAX_CJK_SHARE

    def _check_script(self, texts: Sequence[str]) -> None:
        """Say once that a model is asked in what it does not read."""
        if self._warned_of_script:
            return
        foreign = next((index for index, text in enumerate(texts) if not self.reads(text)), None)
        if foreign is not None:
            self._warned_of_script = True
            logger.warning(
                "text %d is Chinese, Japanese or Korean (%.0f %% of its letters), %r reads "
                "English: its answers to it mean little. Use ChineseCLIPEmbedding, or CLIP's "
                "images with the multilingual text tower: CLIPEmbedding('clip-ViT-B-32', "
                "text_model_name='clip-ViT-B-32-multilingual-v1'); said once",
                foreign,
                100 * cjk_share(texts[foreign]),
                self.checkpoint.name,
            )

    def _report_long_text(self, index: int, tokens: int) -> None:
        reader = self.text_checkpoint or self.checkpoint
        if self.on_long_text == "error":
            raise TextTooLongError(
                f"text {index} has {tokens} tokens, {reader.name!r} reads {reader.context_length}; "
                "shorten it, or use on_long_text='truncate' or 'chunk_mean'",
                index=index,
                tokens=tokens,
                context_length=reader.context_length,
            )
        if self.n_truncated == 0:
            logger.warning(
                "text %d has %d tokens and was cut to the %d that %r reads; further cuts are only "
                "counted (n_truncated)",
                index,
                tokens,
                reader.context_length,
                reader.name,
            )
        self.n_truncated += 1

    def _forward(self, method: str, inputs: dict[str, Any]) -> Rows:
        import torch

        with self._lock, torch.inference_mode():
            tensors = {key: torch.as_tensor(value) for key, value in inputs.items()}
            return l2_normalize(self._features(self._model, method, tensors))

    def _features(self, model: Any, method: str, inputs: dict[str, torch.Tensor]) -> Rows:
        """Run one tower. Shape ``(n, dim)``, not normalised, float32 on the CPU."""
        import torch

        parameter = next(model.parameters())
        inputs = {
            key: value.to(parameter.device, parameter.dtype if value.is_floating_point() else None)
            for key, value in inputs.items()
        }
        try:
            outputs = getattr(model, method)(**inputs)
        except TypeError:
            # transformers 4.57 hands Chinese-CLIP's projection the pooler output that this model
            # does not have (huggingface/transformers#42351); it is pooled at CLS.
            if self.checkpoint.family != "chinese-clip" or method != "get_text_features":
                raise
            outputs = model.text_projection(model.text_model(**inputs).last_hidden_state[:, 0])
        # transformers 4 returns the projected features, 5 an object that holds them; its first item
        # is the hidden state, of which no use can be made by mistake here.
        features = outputs if isinstance(outputs, torch.Tensor) else outputs.pooler_output
        if not isinstance(features, torch.Tensor) or features.shape[-1] != self.checkpoint.dim:
            raise TypeError(
                f"{method} of {type(model).__name__} gave {type(outputs).__name__}, expected "
                f"features of {self.checkpoint.dim} components; is transformers supported?"
            )
        rows: Rows = features.float().cpu().numpy()
        return rows

    def _load(self) -> TextTokenizer:
        """Read the checkpoint once, however many threads ask; return the tokenizer."""
        # The model is set last: who sees it sees the others, too.
        if self._model is None:
            with self._lock:
                if self._model is None:
                    self._image_processor = load_image_processor(self.checkpoint)
                    self._tokenizer, model = self._load_towers()
                    self._model = self._to_device(model)
        return cast(TextTokenizer, self._tokenizer)

    def _load_towers(self) -> tuple[TextTokenizer, Any]:
        model = load_model(self.checkpoint)
        if self.text_checkpoint is None:
            return load_tokenizer(self.checkpoint), model
        from .text_tower import load_text_tokenizer, pair_towers  # Imports torch.

        tokenizer = load_text_tokenizer(self.text_checkpoint)
        return tokenizer, pair_towers(model, self.text_checkpoint)

    def _to_device(self, model: Any) -> Any:
        import torch

        device = self.device
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        dtype = self.dtype
        if dtype == "auto":
            dtype = "float16" if device.startswith("cuda") else "float32"
        reference = None
        if not device.startswith(("cpu", "cuda")):
            reference = self._probe(model)
        try:
            model = model.to(device, getattr(torch, dtype))
        except (RuntimeError, AssertionError, NotImplementedError) as err:
            raise ModelLoadError(f"cannot use device {device!r} with {dtype}: {err}") from err
        if reference is not None:
            worst = float((reference * self._probe(model)).sum(axis=1).min())
            if not worst >= _MIN_DEVICE_COSINE:
                raise ModelLoadError(
                    f"device {device!r} computes wrong embeddings: cosine {worst:.4f} to the CPU, "
                    f"at least {_MIN_DEVICE_COSINE} expected; use device='cpu'"
                )
        logger.info("loaded %r on %s in %s", self.checkpoint.name, device, dtype)
        return model

    def _probe(self, model: Any) -> Rows:
        """Embed a fixed text and a fixed picture. Shape ``(2, dim)``."""
        import torch
        from PIL import Image

        gradient = Image.linear_gradient("L").convert("RGB")
        tokenizer = cast(TextTokenizer, self._tokenizer)
        inputs = {
            "get_text_features": tokenizer.pad(tokenizer.tokenize(["1 + 1"])),
            "get_image_features": {k: v[None] for k, v in self._preprocess(gradient).items()},
        }
        with torch.inference_mode():
            rows = [
                self._features(model, method, {k: torch.as_tensor(v) for k, v in arrays.items()})
                for method, arrays in inputs.items()
            ]
        return l2_normalize(np.concatenate(rows))


def check_texts(texts: Sequence[object]) -> None:
    """Refuse what is no text.

    Raises:
        TypeError: If an item is not a ``str``.
    """
    for index, text in enumerate(texts):
        if not isinstance(text, str):
            raise TypeError(f"text {index} is a {type(text).__name__}, expected str")


def _batched(items: Iterable[Any], size: int) -> Iterator[tuple[int, list[Any]]]:
    """Yield the position of each batch's first item, and the batch."""
    if size < 1:
        raise ValueError(f"batch_size is {size}, expected at least 1")
    iterator = iter(items)
    start = 0
    while batch := list(islice(iterator, size)):
        yield start, batch
        start += len(batch)


def _crop_to_aspect_ratio(image: Image, limit: int) -> Image:
    """Cut the ends off a picture that is more than ``limit`` times as long as it is wide."""
    width, height = image.size
    short = min(width, height)
    left = max(0, (width - short * limit) // 2)
    top = max(0, (height - short * limit) // 2)
    if left == top == 0:
        return image
    return image.crop((left, top, width - left, height - top))
