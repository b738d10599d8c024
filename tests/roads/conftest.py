"""What the tests of roads share; after them, which were taken with which nodes is printed."""

from __future__ import annotations

from pathlib import Path

import pytest
from matrix import table
from node_kinds import ALBUM, IMAGE_KINDS, KINDS, make_node


@pytest.fixture(scope="session")
def demo():
    """The demo's trained CLIP, loaded once for the session."""
    from llama_index_clip_ext import CLIPEmbedding

    return CLIPEmbedding("demo-clip")


@pytest.fixture(autouse=True)
def _no_openai(monkeypatch):
    """No key, and nothing in Settings before or after."""
    import llama_index.core.settings as settings_module

    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    for name in ("_embed_model", "_llm"):
        monkeypatch.setattr(settings_module.Settings, name, None)
    yield
    assert settings_module.Settings._embed_model is None
    assert settings_module.Settings._llm is None


@pytest.fixture
def photos(tmp_path) -> Path:
    """A folder for the pictures of the nodes."""
    folder = tmp_path / "photos"
    folder.mkdir()
    return folder


@pytest.fixture
def nodes(photos):
    """One node of each kind, by kind, each of another picture or text."""
    return {kind: make_node(kind, photos) for kind in KINDS}


@pytest.fixture
def shelf(demo, tmp_path):
    """An empty Milvus Lite collection of the demo's CLIP."""
    from llama_index_clip_ext import create_vector_store

    with create_vector_store(demo, uri=tmp_path / "shelf.db") as vector_store:
        yield vector_store


@pytest.fixture
def filled(demo, shelf, nodes):
    """The same with one row of each kind."""
    shelf.add(demo([node.model_copy() for node in nodes.values()]))
    assert all(ALBUM.items() <= node.metadata.items() for node in nodes.values())
    assert shelf.count("image") == len(IMAGE_KINDS)
    return shelf


def pytest_collection_modifyitems(items):
    for item in items:
        for marker in item.iter_markers("road"):
            (road,) = marker.args
            parameters = item.callspec.params if hasattr(item, "callspec") else {}
            mode = marker.kwargs.get("mode") or parameters["mode"]
            cell = (road, marker.kwargs["kind"], mode)
            item.user_properties.append(("road", (cell, marker.kwargs.get("hole", ""))))


def pytest_terminal_summary(terminalreporter):
    reports = [
        (outcome, report)
        for outcome in ("passed", "skipped", "failed", "error")
        for report in terminalreporter.stats.get(outcome, [])
    ]
    if lines := table(reports):
        terminalreporter.section("roads x kinds of nodes, sync/async")
        for line in lines:
            terminalreporter.write_line(line)
