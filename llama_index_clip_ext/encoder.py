"""Texts or images in, unit float32 rows out: the only room with torch and transformers."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np

from .checkpoint import Checkpoint
from .errors import ModelLoadError, TextTooLongError
from .vectors import Rows, l2_normalize

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image

logger = logging.getLogger(__name__)

Dtype: TypeAlias = Literal["auto", "float32", "float16", "bfloat16"]
OnLongText: TypeAlias = Literal["truncate", "error"]

# transformers' class names by family: model, and image processor (the Pillow one).
_CLASSES = {
    "clip": ("CLIPModel", "CLIPImageProcessor"),
    "chinese-clip": ("ChineseCLIPModel", "ChineseCLIPImageProcessor"),
}

# A picture thinner than this is cropped to it before it is resized: the checkpoint's centre crop
# throws the rest away, but resizing first could take gigabytes (1x100000 becomes 224x22400000).
_MAX_ASPECT_RATIO = 64

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
        on_long_text: What to do with a text that is longer than the context.

    Attributes:
        n_truncated: Texts that were cut to the context so far.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        *,
        device: str = "auto",
        dtype: Dtype = "auto",
        on_long_text: OnLongText = "truncate",
    ) -> None:
        self.checkpoint = checkpoint
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
        self._tokenizer: Any = None
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

    def encode_texts(self, texts: Sequence[str], *, batch_size: int) -> Rows:
        """Embed texts, one row each, in the order given.

        Args:
            texts: Texts of any length; what exceeds the context is cut off, its end mark kept.
            batch_size: Texts per forward pass. Trades memory for speed, never changes the answer
                beyond float rounding.

        Returns:
            Unit-length embeddings on the CPU. Shape ``(len(texts), dim)``; ``(0, dim)`` if empty.

        Raises:
            TypeError: If an item is not a ``str``.
            TextTooLongError: If a text is too long and ``on_long_text`` is ``"error"``.
            ModelLoadError: If the checkpoint cannot be loaded.

        Source:
            Radford et al. 2021, Fig. 3 (projection, then L2 normalisation). arXiv:2103.00020
        """
        for index, text in enumerate(texts):
            if not isinstance(text, str):
                raise TypeError(f"text {index} is a {type(text).__name__}, expected str")
        self._load()
        batches = []
        for start, batch in _batched(texts, batch_size):
            batches.append(self._forward("get_text_features", self._tokenize(batch, start)))
        return self._stack(batches)

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
        batches = []
        for _, batch in _batched(pixels, batch_size):
            batches.append(self._forward("get_image_features", {"pixel_values": np.stack(batch)}))
        return self._stack(batches)

    def _stack(self, batches: list[Rows]) -> Rows:
        if not batches:
            return np.empty((0, self.checkpoint.dim), dtype=np.float32)
        return np.concatenate(batches)

    def _preprocess(self, image: Image) -> Rows:
        """Run the checkpoint's own processor on one picture. Shape ``(3, height, width)``."""
        if self._image_processor.do_center_crop:
            image = _crop_to_aspect_ratio(image, _MAX_ASPECT_RATIO)
        # The channels are named, because they cannot be guessed from a picture 1 or 3 high.
        outputs = self._image_processor(
            image.convert("RGB"), return_tensors="np", input_data_format="channels_last"
        )
        return np.asarray(outputs["pixel_values"][0], dtype=np.float32)

    def _tokenize(self, texts: Sequence[str], start: int) -> dict[str, Any]:
        context = self.checkpoint.context_length
        rows = self._tokenizer(list(texts), truncation=False, verbose=False)["input_ids"]
        for offset, row in enumerate(rows):
            if len(row) > context:
                self._report_long_text(start + offset, len(row))
                # The last id is CLIP's EOS or BERT's SEP: CLIP reads its features there.
                rows[offset] = row[: context - 1] + row[-1:]
        return dict(self._tokenizer.pad({"input_ids": rows}, return_tensors="np"))

    def _report_long_text(self, index: int, tokens: int) -> None:
        context = self.checkpoint.context_length
        if self.on_long_text == "error":
            raise TextTooLongError(
                f"text {index} has {tokens} tokens, {self.checkpoint.name!r} reads {context}; "
                "shorten it, or use on_long_text='truncate'",
                index=index,
                tokens=tokens,
                context_length=context,
            )
        if self.n_truncated == 0:
            logger.warning(
                "text %d has %d tokens and was cut to the %d that %r reads; further cuts are only "
                "counted (n_truncated)",
                index,
                tokens,
                context,
                self.checkpoint.name,
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

    def _load(self) -> None:
        """Read the checkpoint once, however many threads ask."""
        if self._model is not None:
            return
        with self._lock:
            if self._model is None:
                self._tokenizer, self._image_processor = self._load_processors()
                self._model = self._to_device(self._load_model())

    def _load_processors(self) -> tuple[Any, Any]:
        import transformers

        checkpoint = self.checkpoint
        name = _CLASSES[checkpoint.family][1]
        # transformers 5 keeps Pillow's variant under a name of its own and prefers torchvision's,
        # whose resizing differs; in transformers 4 the plain name is Pillow's.
        processor_class = getattr(transformers, f"{name}Pil", None) or getattr(transformers, name)
        try:
            tokenizer = transformers.AutoTokenizer.from_pretrained(checkpoint.directory)
            return tokenizer, processor_class.from_pretrained(checkpoint.directory)
        except (OSError, ValueError) as err:
            raise ModelLoadError(
                f"cannot load the processor of {checkpoint.name!r}: {err}"
            ) from err

    def _load_model(self) -> Any:
        import torch
        import transformers

        checkpoint = self.checkpoint
        model_class = getattr(transformers, _CLASSES[checkpoint.family][0])
        # A bar over a load of a second or two would cross the caller's own.
        shows_bars = transformers.utils.logging.is_progress_bar_enabled()
        transformers.utils.logging.disable_progress_bar()
        try:
            model, info = model_class.from_pretrained(
                checkpoint.directory,
                dtype=torch.float32,
                use_safetensors=checkpoint.has_safetensors,
                # Reported below, with a name, instead of by a table in the log.
                ignore_mismatched_sizes=True,
                output_loading_info=True,
            )
        except (OSError, ValueError, RuntimeError) as err:
            raise ModelLoadError(f"cannot load {checkpoint.name!r}: {err}") from err
        finally:
            if shows_bars:
                transformers.utils.logging.enable_progress_bar()
        # Of a mismatch transformers 5 gives the key and both shapes, 4 the key.
        mismatched = [key if isinstance(key, str) else key[0] for key in info["mismatched_keys"]]
        missing = [*info["missing_keys"], *mismatched]
        if missing:
            raise ModelLoadError(
                f"{checkpoint.name!r}: {len(missing)} weights are missing or of another shape in "
                f"{checkpoint.directory}, such as {missing[0]!r}: the answers would be random"
            )
        return model.eval()

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
        with torch.inference_mode():
            text = {k: torch.as_tensor(v) for k, v in self._tokenize(["1 + 1"], 0).items()}
            pixels = torch.as_tensor(self._preprocess(gradient)[None])
            rows = [
                self._features(model, "get_text_features", text),
                self._features(model, "get_image_features", {"pixel_values": pixels}),
            ]
        return l2_normalize(np.concatenate(rows))


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
