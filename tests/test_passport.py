"""The passport: which model made a collection's vectors."""

import json
from dataclasses import replace

import pytest
from by_hand import MODEL

from llama_index_clip_ext import __version__
from llama_index_clip_ext.errors import (
    DimensionMismatchError,
    EmbeddingSpaceMismatchError,
    StoreError,
)
from llama_index_clip_ext.models import EmbeddingSpace, ScoreStatistics
from llama_index_clip_ext.passport import FORMAT, PROPERTY, UPGRADES, Passport

SPACE = EmbeddingSpace("模型-a", "0123456789abcdef", "a" * 64, "b" * 64, dim=4)
STATISTICS = {"text->image": ScoreStatistics(mean=0.18, std=0.03)}

# What stands in the collections out there: never to be changed. The first is what the first code
# with a store wrote.
FIRST = (
    '{"format": 1, "model": "\\u6a21\\u578b-a", "revision": "0123456789abcdef", "weights": "'
    + "a" * 64
    + '", "preprocessing": "'
    + "b" * 64
    + '", "dim": 4, "metric": "IP", "normalized": true, "package": "0.1.0"'
)
FORMAT_1 = (
    FIRST + ', "calibration": {"text->image": {"mean": 0.18, "std": 0.03}}, "full_text": "english"'
)
FORMAT_2 = FORMAT_1.replace('"format": 1', '"format": 2') + ', "provenance": "recorded"'


def read(properties):
    return Passport.from_properties(properties, "photos")


def test_format_2_is_written_and_read_to_the_letter():
    passport = Passport(SPACE, "IP", "0.1.0", STATISTICS, "english")

    assert passport.to_properties() == {PROPERTY: FORMAT_2 + "}"}
    assert read({PROPERTY: FORMAT_2 + "}"}) == passport


def test_format_1_is_read_and_its_rows_do_not_say_which_tower_made_their_vectors():
    old = {"provenance": "unknown", "format": 1}

    assert read({PROPERTY: FIRST + "}"}) == Passport(SPACE, "IP", "0.1.0", **old)
    whole = Passport(SPACE, "IP", "0.1.0", STATISTICS, "english", **old)
    assert read({PROPERTY: FORMAT_1 + "}"}) == whole
    # Written again, it is of the format of today, and still does not say it of those rows.
    upgraded = FORMAT_2.replace('"recorded"', '"unknown"') + "}"
    assert whole.to_properties() == {PROPERTY: upgraded}
    assert read({PROPERTY: upgraded}) == replace(whole, format=2)


def test_every_older_format_has_an_upgrade_and_no_other():
    assert sorted(UPGRADES) == list(range(1, FORMAT))


@pytest.mark.parametrize(
    "damaged",
    [
        "",
        "no JSON",
        FORMAT_1,
        FORMAT_2,
        "null",
        "7",
        "[]",
        "[" * 100_000,
        "{}",
        '{"format": 1}',
        FORMAT_2 + ', "provenance": "guessed"}',
        *(FORMAT_1 + f', "{change}}}' for change in (
            *('format": "1"', 'format": 0', 'format": null', 'format": 1.5'),
            *('model": 7', 'dim": "4"', 'dim": 4.5', 'weights": null', 'revision": ["a"]'),
            *('metric": "L2"', 'metric": 7', 'package": 7', 'full_text": "klingon"'),
            *('calibration": []', 'calibration": {"a": {"mean": 1}}', 'calibration": {"a": 1}'),
        )),
        None,
        7,
    ],
)  # fmt: skip
def test_a_damaged_one_is_a_clear_error(damaged):
    with pytest.raises(
        StoreError, match="'photos': its passport is damaged .*overwrite=True.*drops"
    ):
        read({PROPERTY: damaged})


@pytest.mark.parametrize(
    "missing", ["format", "model", "revision", "weights", "preprocessing", "dim", "metric"]
)
def test_so_is_one_that_lacks_something(missing):
    content = json.loads(FORMAT_1 + "}")
    del content[missing]

    with pytest.raises(StoreError, match=f"'photos': its passport is damaged .*{missing}"):
        read({PROPERTY: json.dumps(content)})


def test_a_passport_survives_the_collections_properties():
    passport = Passport(SPACE, "IP")
    properties = passport.to_properties()

    assert list(properties) == [PROPERTY]
    assert isinstance(properties[PROPERTY], str)
    assert read({**properties, "mmap.enabled": "true"}) == passport
    assert (passport.provenance, passport.format) == ("recorded", FORMAT)
    assert passport.package == __version__


def test_a_collection_of_another_program_has_none():
    assert read({"mmap.enabled": "true"}) is None


def test_what_a_later_version_adds_does_not_matter():
    properties = Passport(SPACE, "IP").to_properties()
    content = json.loads(properties[PROPERTY]) | {"colour": "blue"}
    content["calibration"] = {"a": {"mean": 0.1, "std": 0.2, "median": 0.3}}

    passport = Passport(SPACE, "IP", calibration={"a": ScoreStatistics(0.1, 0.2)})
    assert read({PROPERTY: json.dumps(content)}) == passport


def test_a_newer_format_is_refused():
    properties = Passport(SPACE, "IP", package="9.9").to_properties()
    content = json.loads(properties[PROPERTY]) | {"format": 3}

    with pytest.raises(StoreError, match=r"'photos' was made by .* 9\.9 in format 3.* up to 2; up"):
        read({PROPERTY: json.dumps(content)})


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
