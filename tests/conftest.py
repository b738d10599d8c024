"""What every test gets: no network, caches of its own, and small checkpoints."""

from __future__ import annotations

import os

# Read once, when huggingface_hub is imported: before anything else.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import signal
from pathlib import Path

import loopback
import pytest
from PIL import Image


def pytest_collection_modifyitems(items):
    """Leave what takes a server minutes to the long form, which `make faults` sets, too."""
    if os.environ.get("CLIP_EXT_FAULTS") != "full":
        skip = pytest.mark.skip(reason="long, on a server: set CLIP_EXT_FAULTS=full")
        for item in items:
            if "long" in item.keywords:
                item.add_marker(skip)


@pytest.fixture(autouse=True, scope="session")
def _no_network():
    """Fail whatever test connects to anything but this machine."""
    with loopback.only_loopback():
        yield


@pytest.fixture(autouse=True)
def _own_folders(tmp_path, monkeypatch):
    """Run in an empty folder, so that no test leaves a database in the source tree."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def interruptible():
    """Let Ctrl-C be what it is in a terminal; a shell's jobs in the background ignore it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(scope="session")
def clip_dir(tmp_path_factory) -> Path:
    """A tiny CLIP with OpenAI's vocabulary, as a plain Hugging Face directory."""
    import checkpoints

    return checkpoints.make_clip(tmp_path_factory.mktemp("clip") / "plain", tiny=True)


@pytest.fixture(scope="session")
def other_clip_dir(tmp_path_factory) -> Path:
    """The same architecture with other weights."""
    import checkpoints

    return checkpoints.make_clip(tmp_path_factory.mktemp("clip2") / "plain", tiny=True, seed=1)


@pytest.fixture(scope="session")
def st_dir(clip_dir, tmp_path_factory) -> Path:
    """The tiny CLIP in the legacy layout of sentence-transformers."""
    import checkpoints

    directory = tmp_path_factory.mktemp("st") / "layout"
    directory.mkdir()
    return checkpoints.make_sentence_transformers(directory, clip_dir)


@pytest.fixture(scope="session")
def chinese_clip_dir(tmp_path_factory) -> Path:
    """A tiny Chinese-CLIP with its real vocabulary."""
    import checkpoints

    return checkpoints.make_chinese_clip(tmp_path_factory.mktemp("cn") / "plain", tiny=True)


@pytest.fixture(scope="session")
def clip(clip_dir):
    """An embedding on the tiny CLIP, loaded once for the session."""
    from llama_index_clip_ext import CLIPEmbedding

    return CLIPEmbedding(clip_dir)


@pytest.fixture(scope="session")
def chinese_clip(chinese_clip_dir):
    """An embedding on the tiny Chinese-CLIP, loaded once for the session."""
    from llama_index_clip_ext import ChineseCLIPEmbedding

    return ChineseCLIPEmbedding(chinese_clip_dir)


@pytest.fixture
def store(clip, tmp_path):
    """An empty Milvus Lite collection of the tiny CLIP."""
    from llama_index_clip_ext import create_vector_store

    with create_vector_store(clip, uri=tmp_path / "test.db") as vector_store:
        yield vector_store


@pytest.fixture
def pictures(tmp_path) -> Path:
    """A folder of five pictures of one colour each."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    for name in ("red", "green", "blue", "black", "white"):
        Image.new("RGB", (40, 30), name).save(folder / f"{name}.png")
    return folder


@pytest.fixture(scope="session")
def server(tmp_path_factory):
    """The address of a real Milvus server, in a folder and a network of its own."""
    from server_process import ServerProcess

    process = ServerProcess(tmp_path_factory.mktemp("milvus"))
    process.start()
    yield process.address
    process.kill()


@pytest.fixture
def internet(monkeypatch):
    """Names and servers of the test's own, met in place of the network."""
    from internet import Internet

    from llama_index_clip_ext import remote

    made = Internet()
    monkeypatch.setattr(remote, "resolve", made.resolve)
    monkeypatch.setattr(remote, "connect", made.connect)
    yield made
    made.close()
