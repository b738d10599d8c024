"""Texts or images in, unit float32 rows out."""

from __future__ import annotations

import logging
import math
import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, TypeVar

import numpy as np

from . import nvjpeg
from .checkpoint import Checkpoint
from .devices import (
    Dtype,
    default_batch_size,
    is_out_of_memory,
    resolve_device,
    resolve_dtype,
)
from .errors import (
    DimensionMismatchError,
    EmbeddingError,
    ImageLoadError,
    ModelLoadError,
    TextTooLongError,
)
from .images import load_image
from .int8 import Int8Tower, load_int8
from .loading import (
    Tower,
    load_image_processor,
    load_tokenizer,
    load_tower,
    read_config,
    read_logits,
)
from .prefetch import batched, prefetch, usable_cores
from .preprocessing import Pixels, Preprocessing, crop_to_aspect_ratio
from .scripts import cjk_share
from .sources import held
from .text_checkpoint import TextCheckpoint
from .tokenization import TextTokenizer
from .vectors import Rows, l2_normalize

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image

logger = logging.getLogger(__name__)

T = TypeVar("T")

OnLongText: TypeAlias = Literal["truncate", "error", "chunk_mean"]
Preprocess: TypeAlias = Literal["fast", "reference"]

# One picture as the image tower reads it, as uint8 pixels that are scaled on the device, or encoded
# and to be decoded there.
ImageInputs: TypeAlias = dict[str, Any]
_PIXELS = "pixels"
_JPEG = "jpeg"

# Share of Chinese, Japanese or Korean letters from which a text is more than a name in passing.
_MAX_CJK_SHARE = 0.3

# How far a device may be from the CPU in float32 before its answers count as wrong.
_MIN_DEVICE_COSINE = 0.999

# More threads than this decode faster than any one device computes.
_MAX_DECODERS = 32

# Queries whose embeddings are kept. Each takes a few kB.
_KEPT_QUERIES = 256


class Encoder:
    """A dual encoder, loaded on first use and shared safely by threads.

    Copies share the weights; a pickle carries the settings alone and loads again where it lands.

    Args:
        checkpoint: The files to load.
        device: ``"auto"`` (CUDA if there is one, else the CPU) or a torch device's name. ``"mps"``
            is checked against the CPU when it is loaded, because it has given wrong numbers.
        dtype: Arithmetic of the forward pass. ``"auto"`` is float16 on CUDA, bfloat16 on a CPU that
            multiplies it natively (AVX512-BF16 or AMX), and float32 elsewhere and for small models.
            ``"int8"``, on a CPU, is of the images alone, and has to be made before.
        preprocess: ``"fast"`` decodes and resizes no more of a picture than it takes, and stays
            within cosine 0.999; ``"reference"`` is the checkpoint's own processor.
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
        preprocess: Preprocess = "fast",
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
        self.preprocess = preprocess
        self.on_long_text = on_long_text
        self.n_truncated = 0
        self._reset()

    def _reset(self) -> None:
        self._lock = threading.RLock()
        # Apart from the lock under which the model runs: event loops ask for the executor.
        self._threads_lock = threading.Lock()
        self._threads: dict[str, ThreadPoolExecutor] = {}
        self._threads_pid = 0
        self._towers: dict[Tower, Any] = {}
        self._tokenizer: TextTokenizer | None = None
        self._image_processor: Any = None
        self._preprocessing: Preprocessing | None = None
        self._batch_size = 0
        # Items per forward pass after memory has run out.
        self._fitting: dict[Tower, int] = {}
        self._warned_of_script = False
        self._queries: OrderedDict[str, Rows] = OrderedDict()
        self._queries_lock = threading.Lock()
        self._logits: tuple[float, float | None] | None = None
        self._has_bad_nvjpeg = False

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
        return self._executor("clip-encoder", 1)

    @property
    def decoders(self) -> ThreadPoolExecutor:
        """The threads that read, decode and resize pictures; Pillow lets them run side by side."""
        return self._executor("clip-decoder", self.n_decoders)

    @property
    def n_decoders(self) -> int:
        """How many threads decode pictures."""
        return min(usable_cores(), _MAX_DECODERS)

    @property
    def arithmetic(self) -> str:
        """What the images' forward pass computes in, such as ``"bfloat16"``."""
        if self.dtype == "int8":
            return "int8"
        dtype = resolve_dtype(self.dtype, resolve_device(self.device), self.checkpoint)
        return str(dtype).removeprefix("torch.")

    def _executor(self, name: str, threads: int) -> ThreadPoolExecutor:
        with self._threads_lock:
            # A forked child inherits the objects but not their threads.
            if self._threads_pid != os.getpid():
                self._threads, self._threads_pid = {}, os.getpid()
            if name not in self._threads:
                self._threads[name] = ThreadPoolExecutor(threads, thread_name_prefix=name)
            return self._threads[name]

    @property
    def batch_size(self) -> int:
        """Images per forward pass that suit the device and the model. Reads the configuration."""
        if not self._batch_size:
            device = resolve_device(self.device)
            config = read_config(self.checkpoint)
            itemsize = resolve_dtype(self.dtype, device, self.checkpoint).itemsize
            self._batch_size = default_batch_size(device, config.vision_config, itemsize)
        return self._batch_size

    @property
    def preprocessing(self) -> Preprocessing | None:
        """The checkpoint's preprocessing; ``None`` if it takes more than its few usual steps."""
        self._load_preprocessing()
        return self._preprocessing

    @property
    def least_side(self) -> int | None:
        """Pixels that pictures' sides are decoded to at least; ``None`` decodes them in full."""
        if self.preprocess == "reference" or self.preprocessing is None:
            return None
        return self.preprocessing.least_side

    @property
    def decodes_on_device(self) -> bool:
        """Whether JPEGs are decoded by nvJPEG: on CUDA, where torchvision is installed."""
        if self._has_bad_nvjpeg:
            return False
        return self.least_side is not None and nvjpeg.has_nvjpeg(resolve_device(self.device))

    @property
    def logit_scale(self) -> float:
        """What a cosine is multiplied with to be a logit.

        Source:
            Radford et al. 2021, Fig. 3 (there ``exp(t)``; this is after the exponential).
        """
        return math.exp(self._read_logits()[0])

    @property
    def logit_bias(self) -> float | None:
        """What is added to a logit, by models that were trained with a sigmoid; else ``None``.

        Source:
            Zhai et al. 2023, Algorithm 1 (SigLIP). arXiv:2303.15343
        """
        return self._read_logits()[1]

    def _read_logits(self) -> tuple[float, float | None]:
        # From the file: bfloat16 would make 98.9 of a scale of 100.
        with self._lock:
            if self._logits is None:
                self._logits = read_logits(self.checkpoint)
            return self._logits

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
        self._check_script(texts)
        self._tower("text")
        rows = np.zeros((len(texts), self.checkpoint.dim), dtype=np.float32)
        counts = np.zeros(len(texts), dtype=int)
        # Those of a length together: a batch is padded to its longest.
        windows = sorted(self._windows(texts, batch_size), key=lambda window: len(window[1]))
        for batch in batched(windows, batch_size):
            indices = [index for index, _ in batch]
            tokens = [window for _, window in batch]
            np.add.at(rows, indices, self._fit_memory("text", self._text_rows, tokens))
            np.add.at(counts, indices, 1)
        # The sum over windows has the direction of their mean.
        several = counts > 1
        rows[several] = l2_normalize(rows[several])
        return rows

    def encode_query(self, text: str) -> Rows:
        """Embed one text; the latest ones are kept, because people ask the same again.

        Returns:
            Shape ``(dim,)``, unit length; to be left as it is.

        Raises:
            TypeError, TextTooLongError, ModelLoadError: As `encode_texts`.
        """
        check_texts([text])
        # Not functools.lru_cache, which would keep this object, and its weights, in a cycle.
        with self._queries_lock:
            row = self._queries.get(text)
        if row is None:
            row = self.encode_texts([text], batch_size=1)[0]
            row.flags.writeable = False
        with self._queries_lock:
            self._queries[text] = row
            self._queries.move_to_end(text)
            if len(self._queries) > _KEPT_QUERIES:
                self._queries.popitem(last=False)
        return row

    def encode_images(self, images: Iterable[Image], *, batch_size: int) -> Rows:
        """Embed images, one row each, in the order given.

        Args:
            images: RGB pictures of any size; drawn as they are needed, and only the model's input
                is kept of each, so that a generator of large photographs takes little memory.
            batch_size: Images per forward pass. Trades memory for speed, never changes the answer
                beyond float rounding.

        Returns:
            Unit-length embeddings on the CPU. Shape ``(n, dim)``; ``(0, dim)`` if empty.

        Raises:
            ModelLoadError: If the checkpoint cannot be loaded.
        """
        batches = [np.empty((0, self.checkpoint.dim), dtype=np.float32)]
        drawn: Iterator[Any] = map(held, images)
        prepared = prefetch(self.decoders, self.prepare, drawn, ahead=self.n_decoders)
        for batch in batched(prepared, batch_size):
            batches.append(self.encode_prepared(batch))
        return np.concatenate(batches)

    def prepare(self, image: Image) -> ImageInputs:
        """Turn an RGB picture into what is kept of it until it is encoded. Safe in any thread."""
        self._load_preprocessing()
        if self.preprocess == "fast" and self._preprocessing:
            # Converting copies, even where there is nothing to convert.
            image = image if image.mode == "RGB" else image.convert("RGB")
            return {_PIXELS: self._preprocessing.pixels(image)}
        if getattr(self._image_processor, "do_center_crop", False):
            image = crop_to_aspect_ratio(image)
        # The channels are named, because they cannot be guessed from a picture 1 or 3 high.
        outputs = self._image_processor(
            image.convert("RGB"), return_tensors="np", input_data_format="channels_last"
        )
        return {key: value[0] for key, value in outputs.items()}

    def prepare_jpeg(self, content: bytes) -> ImageInputs | None:
        """Keep an encoded picture for `decode_jpegs`; ``None`` if it is not one for nvJPEG."""
        preprocessing = self.preprocessing
        if preprocessing is None or not nvjpeg.takes(content, preprocessing):
            return None
        return {_JPEG: content}

    def decode_jpegs(self, batch: Sequence[ImageInputs]) -> list[ImageInputs | ImageLoadError]:
        """Decode what `prepare_jpeg` kept, on the device; what else is in a batch stays as it is.

        Returns:
            For each item, what `encode_prepared` takes, or why it could not be decoded.
        """
        preprocessing = self.preprocessing
        contents = [one[_JPEG] for one in batch if _JPEG in one]
        if preprocessing is None or not contents:
            return list(batch)
        decoded: list[ImageInputs | ImageLoadError]
        try:
            pixels = nvjpeg.decode(contents, preprocessing, resolve_device(self.device))
            decoded = [{_PIXELS: one} for one in pixels]
        except (RuntimeError, ImportError, TypeError) as err:
            # It does not say which one: Pillow finds out.
            decoded = list(self.decoders.map(self._decode_here, contents))
            if not any(isinstance(one, ImageLoadError) for one in decoded):
                self._has_bad_nvjpeg = True
                logger.warning(
                    "nvJPEG failed on pictures that Pillow decodes (%s: %s); from now on Pillow "
                    "decodes them all",
                    type(err).__name__,
                    err,
                )
        waiting = iter(decoded)
        return [next(waiting) if _JPEG in one else one for one in batch]

    def _decode_here(self, content: bytes) -> ImageInputs | ImageLoadError:
        try:
            return self.prepare(load_image(content, least_side=self.least_side))
        except ImageLoadError as err:
            return err

    def encode_prepared(self, batch: Sequence[ImageInputs]) -> Rows:
        """Embed what `prepare` returned, in one forward pass unless memory runs out.

        Returns:
            Unit-length embeddings on the CPU. Shape ``(len(batch), dim)``.

        Raises:
            EmbeddingError: If memory runs out with one image, or a row has no direction.
            ModelLoadError: If the checkpoint cannot be loaded.

        Source:
            Radford et al. 2021, Fig. 3 (projection, then L2 normalisation). arXiv:2103.00020
        """
        self._tower("image")
        return self._fit_memory(
            "image", lambda part: self.encode_transferred(self.transfer(part)), batch
        )

    def transfer(self, batch: Sequence[ImageInputs]) -> dict[str, Any]:
        """Move what `prepare` returned to the device, as the image tower reads it."""
        import torch

        if self.dtype == "int8":
            return {_PIXELS: np.stack([one[_PIXELS] for one in batch])}
        if self._preprocessing and _PIXELS in batch[0]:
            return {"pixel_values": self._scaled(batch, self._preprocessing)}
        return {key: torch.as_tensor(np.stack([one[key] for one in batch])) for key in batch[0]}

    def encode_transferred(self, inputs: dict[str, Any]) -> Rows:
        """Embed what `transfer` returned. Shape ``(n, dim)``, unit length, on the CPU."""
        return self._rows("image", inputs)

    def _windows(self, texts: Sequence[str], batch_size: int) -> Iterator[tuple[int, list[int]]]:
        """Yield the tokens to embed, each with the position of its text."""
        tokenizer = self._text_tokenizer
        rows = (row for batch in batched(texts, batch_size) for row in tokenizer.tokenize(batch))
        for index, row in enumerate(rows):
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

    def _fit_memory(
        self, tower: Tower, forward: Callable[[Sequence[T]], Rows], batch: Sequence[T]
    ) -> Rows:
        """Run a batch in one forward pass, or in smaller ones once memory has run out."""
        parts: list[Rows] = []
        start = 0
        while start < len(batch):
            size = min(len(batch) - start, self._fitting.get(tower, len(batch)))
            try:
                parts.append(forward(batch[start : start + size]))
                start += size
                continue
            except RuntimeError as err:
                if not is_out_of_memory(err):
                    raise
                reason = str(err).splitlines()[0]
            # Outside of the handler, whose traceback holds on to what is to be freed.
            if size == 1:
                raise EmbeddingError(
                    f"memory runs out with one {tower} on device {self.device!r} ({reason}); use a "
                    "smaller model, or device='cpu'"
                )
            self._fitting[tower] = min(size // 2, self._fitting.get(tower, size))
            _free_cached_memory()
            logger.warning(
                "memory ran out with %d %ss at once, going on with %d; embed_batch_size=%d saves "
                "the try next time (%s)",
                size,
                tower,
                size // 2,
                size // 2,
                reason,
            )
        return np.concatenate(parts)

    def _text_rows(self, windows: Sequence[list[int]]) -> Rows:
        import torch

        inputs = self._text_tokenizer.pad(list(windows))
        tensors = {key: torch.as_tensor(value) for key, value in inputs.items()}
        return self._rows("text", tensors)

    def _scaled(self, batch: Sequence[ImageInputs], preprocessing: Preprocessing) -> torch.Tensor:
        """Move uint8 pixels to the device, a quarter of the bytes, and scale them there.

        Returns:
            Shape ``(n, 3, height, width)``, float32.
        """
        import torch

        device = next(self._tower("image").parameters()).device
        pixels = [one[_PIXELS] for one in batch]
        if all(isinstance(one, np.ndarray) for one in pixels):
            stacked = _to_device(pixels, device)
        else:  # Some were decoded there.
            stacked = torch.stack(
                [
                    _to_device([one], device)[0] if isinstance(one, np.ndarray) else one
                    for one in pixels
                ]
            )
        factor, offset = (
            torch.tensor(channels, device=device).view(3, 1, 1)
            for channels in (preprocessing.factor, preprocessing.offset)
        )
        return torch.addcmul(offset, stacked.permute(0, 3, 1, 2).float(), factor)

    def _rows(self, tower: Tower, tensors: dict[str, Any]) -> Rows:
        import torch

        model = self._tower(tower)
        if isinstance(model, Int8Tower):
            with self._lock:
                return l2_normalize(model(tensors[_PIXELS]))
        with self._lock, torch.inference_mode():
            return l2_normalize(self._features(model, f"get_{tower}_features", tensors))

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

    @property
    def text_tokenizer(self) -> TextTokenizer:
        """The tokenizer of the text tower; it is read on first use."""
        return self._text_tokenizer

    @property
    def _text_tokenizer(self) -> TextTokenizer:
        with self._lock:
            if self._tokenizer is None:
                self._tokenizer = self._load_tokenizer()
            return self._tokenizer

    def _load_tokenizer(self) -> TextTokenizer:
        if self.text_checkpoint is None:
            return load_tokenizer(self.checkpoint)
        from .text_tower import load_text_tokenizer  # Imports torch.

        return load_text_tokenizer(self.text_checkpoint)

    def _load_preprocessing(self) -> None:
        # Set last: who sees it sees the other, too.
        if self._image_processor is None:
            with self._lock:
                if self._image_processor is None:
                    processor = load_image_processor(self.checkpoint)
                    self._preprocessing = Preprocessing.of(processor)
                    self._image_processor = processor

    def _tower(self, name: Tower) -> Any:
        """Return a tower, which the first to ask for it loads, however many threads ask."""
        tower = self._towers.get(name)
        if tower is None:
            with self._lock:
                if name not in self._towers:
                    self._towers[name] = self._load_tower(name)
                tower = self._towers[name]
        return tower

    def _load_tower(self, name: Tower) -> Any:
        import torch

        device = resolve_device(self.device)
        dtype = resolve_dtype(self.dtype, device, self.checkpoint)
        if name == "image" and self.dtype == "int8":
            return self._load_int8()
        # What is to be compared with the device's answer.
        is_checked = not device.startswith(("cpu", "cuda"))
        model = self._read_tower(name, torch.float32 if is_checked else dtype)
        reference = self._probe(name, model) if is_checked else None
        try:
            model = model.to(device, dtype)
        except (RuntimeError, AssertionError, NotImplementedError) as err:
            kind = str(dtype).removeprefix("torch.")
            raise ModelLoadError(f"cannot use device {device!r} with {kind}: {err}") from err
        if reference is not None:
            worst = float((reference * self._probe(name, model)).sum(axis=1).min())
            if not worst >= _MIN_DEVICE_COSINE:
                raise ModelLoadError(
                    f"device {device!r} computes wrong embeddings: cosine {worst:.4f} to the CPU, "
                    f"at least {_MIN_DEVICE_COSINE} expected; use device='cpu'"
                )
        logger.info("loaded the %s tower of %r on %s", name, self.checkpoint.name, device)
        return model

    def _load_int8(self) -> Int8Tower:
        if self.least_side is None:
            raise ModelLoadError(
                "dtype='int8' is calibrated on preprocess='fast'; use that, or, for a model whose "
                "image processor does more than resize, crop and scale, another dtype"
            )
        return load_int8(self.checkpoint)

    def _read_tower(self, name: Tower, dtype: torch.dtype) -> Any:
        if name == "image" or self.text_checkpoint is None:
            return load_tower(self.checkpoint, name, dtype)
        from .text_tower import load_text_tower  # Imports torch.

        return load_text_tower(self.text_checkpoint, dtype)

    def _probe(self, name: Tower, model: Any) -> Rows:
        """Embed a fixed text, or a fixed picture. Shape ``(1, dim)``."""
        import torch
        from PIL import Image

        if name == "text":
            inputs = self._text_tokenizer.pad(self._text_tokenizer.tokenize(["1 + 1"]))
        else:
            self._load_preprocessing()
            gradient = Image.linear_gradient("L").convert("RGB")
            inputs = self._image_processor(gradient, return_tensors="np")
        with torch.inference_mode():
            tensors = {key: torch.as_tensor(value) for key, value in inputs.items()}
            return l2_normalize(self._features(model, f"get_{name}_features", tensors))


def _to_device(pixels: Sequence[Pixels], device: torch.device) -> torch.Tensor:
    """Stack pixels in pinned memory, from which a copy to CUDA goes on while others compute."""
    import torch

    shape = (len(pixels), *pixels[0].shape)
    stacked = torch.empty(shape, dtype=torch.uint8, pin_memory=device.type == "cuda")
    np.stack(pixels, out=stacked.numpy())
    return stacked.to(device, non_blocking=True)


def _free_cached_memory() -> None:
    import torch

    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()


def check_texts(texts: Sequence[object]) -> None:
    """Refuse what is no text.

    Raises:
        TypeError: If an item is not a ``str``.
    """
    for index, text in enumerate(texts):
        if not isinstance(text, str):
            raise TypeError(f"text {index} is a {type(text).__name__}, expected str")
