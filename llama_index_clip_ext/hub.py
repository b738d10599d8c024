"""Checkpoints on the hub: their files, cached or fetched."""

from __future__ import annotations

from pathlib import Path

from .errors import ModelLoadError
from .fingerprint import SENTENCEPIECE_FILES
from .models import ModelSpec

# Names are spelt out because a repository may hold the weights of other programs, such as
# open_clip_model.safetensors.
SAFETENSORS = "model*.safetensors"
PICKLED = "pytorch_model*.bin"

# Enough for every layout and no more: repositories also hold ONNX and OpenVINO exports. The leading
# part reaches into folders such as 0_CLIPModel/, since the hub matches whole paths.
_SMALL_FILES = ["*.json", "*.txt", "*.md", *SENTENCEPIECE_FILES]
_SMALL_FILES += [f"*/{name}" for name in SENTENCEPIECE_FILES]
_IGNORED = ["onnx/*", "openvino/*", "*/onnx/*", "*/openvino/*"]


def fetch(
    spec: ModelSpec,
    *,
    revision: str | None,
    cache_folder: str | Path | None,
    endpoint: str | None,
    local_dir: str | Path | None = None,
    local_files_only: bool = False,
    weights: tuple[str, ...] = (SAFETENSORS, f"*/{SAFETENSORS}"),
) -> Path:
    """Return the folder of a repository's files, after fetching those that are not there.

    Args:
        spec: The model; its ``checkpoint`` is a hub id.
        revision: Branch, tag or commit.
        cache_folder: The hub's cache; ``None`` means huggingface_hub's own.
        endpoint: Address of a mirror; ``None`` means ``HF_ENDPOINT`` or the hub.
        local_dir: A plain folder for the files, in place of the cache.
        local_files_only: Open no socket.
        weights: Patterns of the weight files to fetch beside the small ones.

    Raises:
        ModelLoadError: If the hub does not deliver, or nothing is cached and it may not be asked.
    """
    # huggingface_hub takes 0.3 s to import, which `clip-ext models` need not wait for.
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    cache = Path(cache_folder or constants.HF_HUB_CACHE).expanduser()
    try:
        return Path(
            snapshot_download(
                spec.checkpoint,
                revision=revision,
                cache_dir=cache,
                local_dir=local_dir,
                endpoint=endpoint,
                local_files_only=local_files_only,
                allow_patterns=[*_SMALL_FILES, *weights],
                ignore_patterns=_IGNORED,
            )
        )
    except LocalEntryNotFoundError as err:
        raise ModelLoadError(_not_here(spec, cache, endpoint, err)) from err
    # HfHubHTTPError, and what httpx, json and the file system raise over a mirror that is none, a
    # connection that breaks, or a full disk.
    except Exception as err:
        raise ModelLoadError(
            f"cannot download {spec.name!r} ({spec.checkpoint}): {type(err).__name__}: {err}. "
            "Check the name, revision and endpoint; a private repository needs HF_TOKEN"
        ) from err


def _not_here(spec: ModelSpec, cache: Path, endpoint: str | None, err: Exception) -> str:
    from huggingface_hub import constants

    address = endpoint or constants.ENDPOINT
    cause: BaseException = err
    while cause.__cause__ or cause.__context__:
        cause = cause.__cause__ or cause.__context__ or cause
    why = f" ({type(cause).__name__}: {cause})" if cause is not err else ""
    return (
        f"model {spec.name!r} ({spec.checkpoint}) is not in the cache {cache} and could not be "
        f"downloaded from {address}{why}. Ways out: (1) on a machine with access, run clip-ext "
        f"download {spec.name} --local-dir DIR, copy DIR here and pass its path as the model; (2) "
        "name a mirror that works, by HF_ENDPOINT or endpoint; (3) where there is access, do not "
        "set HF_HUB_OFFLINE or local_files_only"
    )
