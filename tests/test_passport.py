"""The passport: which model made a collection's vectors."""

import json

import pytest
from by_hand import MODEL

from llama_index_clip_ext import __version__
from llama_index_clip_ext.errors import (
    DimensionMismatchError,
    EmbeddingSpaceMismatchError,
    StoreError,
)
from llama_index_clip_ext.models import EmbeddingSpace
from llama_index_clip_ext.passport import PROPERTY, Passport

SPACE = EmbeddingSpace("模型-a", "0123456789abcdef", "a" * 64, "b" * 64, dim=4)


def test_a_passport_survives_the_collections_properties():
    passport = Passport(SPACE, "IP")
    properties = passport.to_properties()

    assert list(properties) == [PROPERTY]
    assert isinstance(properties[PROPERTY], str)
    assert Passport.from_properties({**properties, "mmap.enabled": "true"}) == passport
    assert passport.package == __version__


def test_a_collection_of_another_program_has_none():
    assert Passport.from_properties({"mmap.enabled": "true"}) is None


def test_what_a_later_version_adds_does_not_matter():
    properties = Passport(SPACE, "IP").to_properties()
    content = json.loads(properties[PROPERTY]) | {"colour": "blue"}

    assert Passport.from_properties({PROPERTY: json.dumps(content)}) == Passport(SPACE, "IP")


def test_a_newer_format_is_refused():
    properties = Passport(SPACE, "IP", package="9.9").to_properties()
    content = json.loads(properties[PROPERTY]) | {"format": 2}

    with pytest.raises(StoreError, match=r"llama-index-clip-ext 9\.9 in format 2.* up to 1; upgra"):
        Passport.from_properties({PROPERTY: json.dumps(content)})


def test_the_same_weights_under_another_name_are_the_same_model():
    Passport(SPACE, "IP").check(MODEL.but(model="/elsewhere", revision="").space, "photos")


@pytest.mark.parametrize("part", ["weights", "preprocessing"])
def test_another_model_is_refused_with_both_names(part):
    other = MODEL.but(model="model-b", **{part: "c" * 64}).space

    with pytest.raises(EmbeddingSpaceMismatchError) as caught:
        Passport(SPACE, "IP").check(other, "photos")

    message = str(caught.value)
    assert "collection 'photos' holds vectors of '模型-a' (revision 0123456789ab" in message
    assert "this model is 'model-b'" in message
    assert f"their {part} differ" in message
    assert "overwrite=True" in message


def test_another_dimension_is_refused_with_both():
    with pytest.raises(DimensionMismatchError) as caught:
        Passport(SPACE, "IP").check(MODEL.but(model="model-b", dim=8).space, "photos")

    assert (caught.value.expected, caught.value.actual) == (4, 8)
    message = str(caught.value)
    assert "'photos' holds 4-dim vectors of '模型-a', model 'model-b' makes 8" in message
