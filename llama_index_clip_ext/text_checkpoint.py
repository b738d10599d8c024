"""A text tower of its own, in the layout of sentence-transformers, read as far as JSON goes."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from .errors import DimensionMismatchError, ModelLoadError
from .fingerprint import files_sha256, read_vocabulary
from .layout import Module, check_weights, read_json, read_modules, weight_files
from .models import ModelSpec, resolve_model


@dataclass(frozen=True)
class TextCheckpoint:
    """A text encoder on disk: a transformer, the mean over its tokens, and one linear map.

    Attributes:
        name: What the user calls the model.
        directory: The folder of the transformer.
        dense: The folder of the linear map; ``None`` if the mean is the embedding.
        dim: Components of an embedding.
        context_length: Tokens that it reads, special tokens included.
        lower_case: Whether texts are lower-cased first.
    """

    name: str
    directory: Path
    dense: Path | None
    dim: int
    context_length: int
    lower_case: bool

    @cached_property
    def weights(self) -> str:
        """SHA-256 of the weight files, which tells towers apart."""
        folders = [self.directory, *([self.dense] if self.dense else [])]
        return files_sha256([file for folder in folders for file in weight_files(folder)])


def is_text_only(modules: list[Module]) -> bool:
    """Whether a pipeline embeds texts and no images: it pools over tokens."""
    kinds = [module.kind for module in modules]
    return kinds[:2] == ["Transformer", "Pooling"]


def text_only_message(name: str) -> str:
    """Return what to tell who asks a text tower for images."""
    return (
        f"{name!r} embeds texts only; pair it with the images it was trained for: "
        f"CLIPEmbedding('clip-ViT-B-32', text_model_name={name!r})"
    )


def check_pair(name: str, text_model_name: str) -> None:
    """Refuse a text tower that is known by its name not to belong to a model's images.

    Raises:
        UnknownModelError: If one of the names is no model's.
        ModelLoadError: If the second is no text tower, or one for another model.
        DimensionMismatchError: If the dimensions differ.
    """
    model, text_model = resolve_model(name), resolve_model(text_model_name)
    if text_model.family not in ("text-only", None):
        raise ModelLoadError(
            f"text_model_name is {text_model_name!r}, a whole {text_model.family} model; expected "
            "a text tower, such as 'clip-ViT-B-32-multilingual-v1'"
        )
    if None not in (model.dim, text_model.dim) and model.dim != text_model.dim:
        raise DimensionMismatchError(
            f"text tower {text_model_name!r} makes {text_model.dim} components, the images of "
            f"{name!r} have {model.dim}; it is for the images of {text_model.images_of!r}",
            expected=model.dim or 0,
            actual=text_model.dim or 0,
        )
    # Vectors of one dimension need not be of one space: the answers would be random.
    if text_model.images_of and model.dim and model.name != text_model.images_of:
        raise ModelLoadError(
            f"text tower {text_model_name!r} was trained for the images of "
            f"{text_model.images_of!r}, not of {name!r}"
        )


def read_text_checkpoint(spec: ModelSpec, directory: Path) -> TextCheckpoint:
    """Read the configuration of a text tower.

    Args:
        spec: The model, for its name.
        directory: The folder of its ``modules.json``.

    Raises:
        ModelLoadError: If files are missing, or the pipeline has a step that would not be
            reproduced exactly.
    """
    name = spec.name
    modules = read_modules(name, directory)
    kinds = [module.kind for module in modules]
    steps = [kind for kind in kinds if kind != "Normalize"]
    if steps not in (["Transformer", "Pooling"], ["Transformer", "Pooling", "Dense"]):
        raise ModelLoadError(
            f"{name!r} is no text tower (modules.json: {kinds or 'missing'}); text_model_name "
            "takes a sentence-transformers model of Transformer, Pooling and Dense, such as "
            "'clip-ViT-B-32-multilingual-v1'"
        )
    folders = {module.kind: module.directory for module in modules}
    transformer = folders["Transformer"]
    config = read_json(name, transformer / "config.json")
    if not read_vocabulary(name, transformer):
        raise ModelLoadError(
            f"{name!r}: {transformer} is not a complete checkpoint, the tokenizer's vocab.txt or "
            "tokenizer.json is missing"
        )
    check_weights(name, transformer)
    dim = _pooled_dim(name, folders["Pooling"])
    dense = folders.get("Dense")
    if dense is not None:
        dim = _dense_dim(name, dense)
    settings = _settings(name, transformer)
    # What its tokens were cut to in training; older files say it in one place, newer in the other.
    lengths = [
        settings["sentence_bert_config.json"].get("max_seq_length"),
        settings["tokenizer_config.json"].get("model_max_length"),
        config.get("max_position_embeddings"),
    ]
    return TextCheckpoint(
        name=name,
        directory=transformer,
        dense=dense,
        dim=dim,
        context_length=int(min(filter(None, lengths), default=512)),
        lower_case=bool(settings["sentence_bert_config.json"].get("do_lower_case")),
    )


def _settings(name: str, directory: Path) -> dict[str, dict[str, object]]:
    files = ("sentence_bert_config.json", "tokenizer_config.json")
    return {
        file: read_json(name, directory / file) if (directory / file).is_file() else {}
        for file in files
    }


def _pooled_dim(name: str, directory: Path) -> int:
    config = read_json(name, directory / "config.json")
    # sentence-transformers 5 names the mode; before, each had a flag.
    modes = config.get("pooling_mode") or [
        key.removeprefix("pooling_mode_").removesuffix("_tokens")
        for key, value in config.items()
        if key.startswith("pooling_mode_") and value
    ]
    if modes not in ("mean", ["mean"]):
        raise ModelLoadError(
            f"{name!r}: its pooling is {modes}, supported is the mean ({directory})"
        )
    return int(config.get("embedding_dimension") or config.get("word_embedding_dimension") or 0)


def _dense_dim(name: str, directory: Path) -> int:
    config = read_json(name, directory / "config.json")
    check_weights(name, directory)
    activation = str(config.get("activation_function", "")).rsplit(".", 1)[-1]
    if activation != "Identity" or config.get("use_residual"):
        raise ModelLoadError(
            f"{name!r}: its dense layer has the activation {activation or 'Tanh'}"
            f"{' and a residual' if config.get('use_residual') else ''}, supported is Identity "
            f"({directory})"
        )
    return int(config["out_features"])
