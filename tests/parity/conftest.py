"""Checkpoints of real dimensions, made once."""

from pathlib import Path

import checkpoints
import pytest
import skimage.data
import sklearn.datasets


def pytest_collection_modifyitems(items):
    for item in items:
        if "parity" in Path(str(item.fspath)).parts:
            item.add_marker(pytest.mark.parity)


@pytest.fixture(scope="session")
def vit_b_32(tmp_path_factory) -> Path:
    """ViT-B/32 as a plain Hugging Face directory."""
    return checkpoints.make_clip(tmp_path_factory.mktemp("vit-b-32") / "plain")


@pytest.fixture(scope="session")
def vit_b_32_st(vit_b_32, tmp_path_factory) -> Path:
    """The same in the legacy layout of sentence-transformers/clip-ViT-B-32."""
    directory = tmp_path_factory.mktemp("vit-b-32-st")
    return checkpoints.make_sentence_transformers(directory, vit_b_32)


@pytest.fixture(scope="session")
def chinese_vit_b_16(tmp_path_factory) -> Path:
    """Chinese-CLIP ViT-B/16."""
    return checkpoints.make_chinese_clip(tmp_path_factory.mktemp("cn-vit-b-16") / "plain")


@pytest.fixture(scope="session")
def photos() -> list[Path]:
    """The real photographs of scikit-image and scikit-learn that are pictures for a person."""
    folder = Path(skimage.data.__file__).parent
    found = [path for path in sorted(folder.iterdir()) if path.suffix in (".png", ".jpg", ".jpeg")]
    found += sorted((Path(sklearn.datasets.__file__).parent / "images").glob("*.jpg"))
    assert len(found) > 20
    return found
