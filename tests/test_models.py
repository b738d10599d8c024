"""What is known of each checkpoint by its name alone."""

from __future__ import annotations

from dataclasses import FrozenInstanceError, astuple
from pathlib import Path

import pytest

from llama_index_clip_ext.errors import ClipExtError, UnknownModelError
from llama_index_clip_ext.models import (
    DEMO_MODELS,
    TEXT_MODELS,
    ModelSpec,
    list_models,
    resolve_model,
)

# name, hub id, family, dimension, tokens of context
TABLE = [
    ("clip-ViT-B-32", "sentence-transformers/clip-ViT-B-32", "clip", 512, 77),
    ("clip-ViT-B-16", "sentence-transformers/clip-ViT-B-16", "clip", 512, 77),
    ("clip-ViT-L-14", "sentence-transformers/clip-ViT-L-14", "clip", 768, 77),
    ("Chinese-CLIP-ViT-B", "OFA-Sys/chinese-clip-vit-base-patch16", "chinese-clip", 512, 52),
    ("Chinese-CLIP-ViT-L", "OFA-Sys/chinese-clip-vit-large-patch14", "chinese-clip", 768, 52),
    ("Chinese-CLIP-ViT-H", "OFA-Sys/chinese-clip-vit-huge-patch14", "chinese-clip", 1024, 52),
]
NAMES = [row[0] for row in TABLE]


def test_table():
    assert [astuple(spec)[:5] for spec in list_models()] == TABLE
    assert all(spec.advice and not spec.is_local for spec in list_models())


def test_table_cannot_be_changed():
    list_models().clear()
    assert len(list_models()) == 6
    with pytest.raises(FrozenInstanceError):
        list_models()[0].dim = 1


@pytest.mark.parametrize("row", TABLE, ids=NAMES)
def test_alias_and_hub_id_in_any_case(row):
    for name in row[:2]:
        for spelling in (name, name.lower(), name.upper()):
            assert astuple(resolve_model(spelling))[:5] == row


def test_other_hub_id_is_known_by_its_name_alone():
    spec = resolve_model("openai/clip-vit-base-patch32")
    assert spec == ModelSpec("openai/clip-vit-base-patch32", "openai/clip-vit-base-patch32")
    assert (spec.family, spec.dim, spec.context_length) == (None, None, None)
    assert not spec.is_local


@pytest.mark.parametrize("kind", [str, Path])
@pytest.mark.parametrize("spelling", ["mine", "./mine", "mine/", "~/mine", "../{parent}/mine"])
def test_directory(kind, spelling, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    (tmp_path / "mine").mkdir()
    spec = resolve_model(kind(spelling.format(parent=tmp_path.name)))
    assert spec.checkpoint == str((tmp_path / "mine").resolve())
    assert spec.is_local
    assert (spec.family, spec.dim, spec.context_length) == (None, None, None)


def test_directory_that_looks_like_a_hub_id_is_a_directory(tmp_path):
    (tmp_path / "owner" / "model").mkdir(parents=True)
    assert resolve_model("owner/model").is_local


@pytest.mark.parametrize("name", ["demo-clip", "demo-chinese-clip"])
def test_demo_models_are_directories_of_the_package(name):
    spec = resolve_model(name)
    assert spec is DEMO_MODELS[name]
    assert (spec.name, spec.dim) == (name, 64)
    assert spec.is_local
    assert name not in [known.name for known in list_models()]


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("clip-ViT-B32", "clip-ViT-B-32"),
        ("ViT-B-32", "clip-ViT-B-32"),
        ("clip-ViT-L-13", "clip-ViT-L-14"),
        ("CLIP-VIT-B-33", "clip-ViT-B-32"),
        ("chinese-clip-vit-l-14", "Chinese-CLIP-ViT-L"),
        ("ChineseCLIP-ViT-H", "Chinese-CLIP-ViT-H"),
        ("demo-clop", "demo-clip"),
    ],
)
def test_unknown_name_lists_the_known_ones_and_the_closest(name, meant):
    with pytest.raises(
        UnknownModelError, match=rf"^unknown model '{name}': not an alias"
    ) as caught:
        resolve_model(name)
    assert f"Did you mean {meant!r}?" in str(caught.value)
    assert str(caught.value).endswith(f"Known: {', '.join([*NAMES, *TEXT_MODELS, *DEMO_MODELS])}")
    assert isinstance(caught.value, ValueError)
    assert isinstance(caught.value, ClipExtError)


@pytest.mark.parametrize(
    "name",
    ["", "xyz", "./missing", "../missing", "/missing/model", "~/missing", "a/b/c", Path("a/b")],
)
def test_name_of_nothing_is_unknown(name):
    with pytest.raises(UnknownModelError, match="no such directory") as caught:
        resolve_model(name)
    assert "Did you mean" not in str(caught.value)
    assert "clip-ViT-B-32" in str(caught.value)


@pytest.mark.parametrize(
    "name", ["owner/a--b", "owner/a..b", "owner/-a", "模型/名字", "owner/a.git"]
)
def test_what_the_hub_would_not_accept_is_unknown(name):
    with pytest.raises(UnknownModelError):
        resolve_model(name)
