"""Metadata filters: the expressions, and what they find in a real collection."""

import math

import pytest
from by_hand import MODEL, X, ask, image
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from llama_index.core.vector_stores.types import (
    FilterCondition,
    FilterOperator,
    MetadataFilter,
    MetadataFilters,
)

from llama_index_clip_ext import create_vector_store
from llama_index_clip_ext.errors import FilterError
from llama_index_clip_ext.filters import filter_expression, ids_expression, literal

COLUMNS = {"id": "", "file_name": '""', "width": "-1"}


def where(*filters, condition=FilterCondition.AND):
    return MetadataFilters(filters=list(filters), condition=condition)


def has(key, value, operator="=="):
    return MetadataFilter(key=key, value=value, operator=FilterOperator(operator))


def expression(*filters, condition=FilterCondition.AND):
    return filter_expression(where(*filters, condition=condition), COLUMNS)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (True, "true"),
        (False, "false"),
        (7, "7"),
        (-0.5, "-0.5"),
        ("plain", '"plain"'),
        ("", '""'),
        ("it's", '"it\'s"'),
        ('say "hi"', r'"say \"hi\""'),
        (r"C:\new\table.png", r'"C:\\new\\table.png"'),
        ("a\nb\rc\td", r'"a\nb\rc\td"'),
        ("猫 🐈 é", '"猫 🐈 é"'),
        (["a", 'b"'], r'["a", "b\""]'),
        ((1, 2.5), "[1, 2.5]"),
        ([], "[]"),
    ],
)
def test_literals(value, expected):
    assert literal(value) == expected


@pytest.mark.parametrize("value", [None, math.nan, math.inf, {"a": 1}, object(), [None]])
def test_what_milvus_has_no_literal_for_is_refused(value):
    with pytest.raises(FilterError, match="^cannot filter by"):
        literal(value)


def test_ids():
    assert ids_expression("doc_id", ["a", 'x"] or id in ["b']) == (
        r'doc_id in ["a", "x\"] or id in [\"b"]'
    )


@pytest.mark.parametrize(
    ("item", "expected"),
    [
        (has("id", "a"), 'id == "a"'),
        (has("id", ["a", "b"], "in"), 'id in ["a", "b"]'),
        (has("width", 1), "width == 1"),
        (has("width", 1, "<"), "(width != -1) and (width < 1)"),
        (has("file_name", ["a"], "nin"), '(file_name != "") and (file_name not in ["a"])'),
        (has("file_name", "cat", "text_match"), '(file_name != "") and (file_name like "%cat%")'),
        (has("n", 1, "!="), '(exists $meta["n"]) and ($meta["n"] != 1)'),
        (has("n", 1.5, ">"), '(exists $meta["n"]) and ($meta["n"] > 1.5)'),
        (has("n", 1, ">="), '(exists $meta["n"]) and ($meta["n"] >= 1)'),
        (has("n", 1, "<="), '(exists $meta["n"]) and ($meta["n"] <= 1)'),
        (has("n", [1, 2], "in"), '(exists $meta["n"]) and ($meta["n"] == 1 or $meta["n"] == 2)'),
        (has("n", [1], "nin"), '(exists $meta["n"]) and (not ($meta["n"] == 1))'),
        (has("t", "a", "contains"), '(exists $meta["t"]) and (json_contains($meta["t"], "a"))'),
        (has("t", ["a"], "any"), '(exists $meta["t"]) and (json_contains_any($meta["t"], ["a"]))'),
        (has("t", ["a"], "all"), '(exists $meta["t"]) and (json_contains_all($meta["t"], ["a"]))'),
        (has("key-dash", "x"), '(exists $meta["key-dash"]) and ($meta["key-dash"] == "x")'),
        (has("相机", "徕卡"), '(exists $meta["相机"]) and ($meta["相机"] == "徕卡")'),
        (has("it's a.b", "x"), '(exists $meta["it\'s a.b"]) and ($meta["it\'s a.b"] == "x")'),
    ],
)
def test_operators_and_keys(item, expected):
    assert expression(item) == f"({expected})"


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        ("tags", '(exists tags) and (json_contains(tags, "x"))'),
        ("标签", '(exists 标签) and (json_contains(标签, "x"))'),
        ("in", '(exists $meta["in"]) and (json_contains($meta["in"], "x"))'),
        ("key-dash", '(exists $meta["key-dash"]) and (json_contains($meta["key-dash"], "x"))'),
    ],
)
def test_milvus_lite_wants_bare_names_where_there_are_any(key, expected):
    filters = where(has(key, "x", "contains"))

    assert filter_expression(filters, COLUMNS, is_lite=True) == f"({expected})"


def test_conditions_nest():
    a, b, c = has("id", "a"), has("id", "b"), has("id", "c")

    assert expression(a, b) == '(id == "a") and (id == "b")'
    assert expression(a, b, condition=FilterCondition.OR) == '(id == "a") or (id == "b")'
    assert expression(a, b, condition=FilterCondition.NOT) == (
        '(not (id == "a")) and (not (id == "b"))'
    )
    assert expression(a, where(b, c, condition=FilterCondition.OR)) == (
        '(id == "a") and ((id == "b") or (id == "c"))'
    )
    assert expression(where(a, where(b, condition=FilterCondition.NOT))) == (
        '((id == "a") and ((not (id == "b"))))'
    )


@pytest.mark.parametrize("filters", [None, where(), where(where(), where(where()))])
def test_nothing_to_filter_by(filters):
    assert filter_expression(filters, COLUMNS) == ""


@pytest.mark.parametrize("key", ["", 'a"b', "a\\b", "a/b", "a\nb", "a\x00b", 'id != "" or id'])
def test_keys_that_would_fail_silently_or_inject_are_refused(key):
    with pytest.raises(FilterError, match="cannot filter by the key"):
        expression(has(key, "x"))


@pytest.mark.parametrize(
    ("item", "message"),
    [
        (has("n", None), "filter on 'n' has no value"),
        (has("n", None, ">"), "filter on 'n' has no value"),
        (has("n", "a", "in"), "'in' needs a list, got 'a'"),
        (has("n", "a", "nin"), "'nin' needs a list, got 'a'"),
        (has("n", "a", "any"), "'any' needs a list, got 'a'"),
        (has("n", "a", "all"), "'all' needs a list, got 'a'"),
        (has("n", "50%", "text_match"), "wildcards"),
        (has("n", "a", "text_match_insensitive"), "'text_match_insensitive' is not supported"),
        (has("n", None, "is_empty"), "'is_empty' is not supported; supported are =="),
        (has("n", math.nan), "cannot filter by nan"),
    ],
)
def test_what_has_no_exact_equivalent_is_refused(item, message):
    with pytest.raises(FilterError, match=message):
        expression(item)


def test_the_advice_for_a_missing_value_is_not_what_is_refused_next():
    with pytest.raises(FilterError) as caught:
        expression(has("n", None))

    assert "is_empty" not in str(caught.value)


# On a real collection.

HOSTILE = [
    r"C:\Users\new folder\table.png",
    r"\\server\share" + "\\",
    "it's",
    '"quoted"',
    "'; drop --",
    '"] or id in ["',
    "back\\slash",
    "two\nlines",
    "tab\tbed",
    "return\r",
    "猫咪 在沙发上",
    "🐈‍⬛ 👩🏽‍🚀",
    "%_like*",
    "",
    " ",
]


@pytest.fixture(scope="module")
def collection(tmp_path_factory):
    with create_vector_store(MODEL, uri=tmp_path_factory.mktemp("filters") / "f.db") as store:
        yield store


@pytest.fixture
def store(collection):
    collection.clear()
    return collection


def found(store, *filters, condition=FilterCondition.AND):
    return sorted(store.query(ask(filters=where(*filters, condition=condition))).ids)


@pytest.mark.parametrize("key", ["file_name", "name", "文件-名"])
def test_hostile_values_are_found_exactly(store, key):
    store.add([image(str(index), **{key: value}) for index, value in enumerate(HOSTILE)])

    for index, value in enumerate(HOSTILE):
        assert found(store, has(key, value)) == [str(index)]
        assert found(store, has(key, [value, "absent"], "in")) == [str(index)]
        assert found(store, has(key, value), has(key, value, "!=")) == []


def test_every_operator_finds_what_it_says(store):
    store.add(
        [
            image("cat", n=1, tags=["pet", "猫"], width=100, file_name="cat.png"),
            image("dog", n=2.5, tags=["pet"], width=200, file_name="dog.png"),
            image("car", n=3, tags=["red"], width=300, file_name="car.png"),
        ]
    )

    assert found(store, has("n", 2, ">")) == ["car", "dog"]
    assert found(store, has("n", 2.5, ">=")) == ["car", "dog"]
    assert found(store, has("n", 2.5, "<")) == ["cat"]
    assert found(store, has("width", 200, "<=")) == ["cat", "dog"]
    assert found(store, has("n", 1, "!=")) == ["car", "dog"]
    assert found(store, has("n", [1, 3], "in")) == ["car", "cat"]
    assert found(store, has("n", [1, 3], "nin")) == ["dog"]
    assert found(store, has("n", [], "in")) == []
    assert found(store, has("tags", "猫", "contains")) == ["cat"]
    assert found(store, has("tags", ["猫", "red"], "any")) == ["car", "cat"]
    assert found(store, has("tags", ["pet", "猫"], "all")) == ["cat"]
    assert found(store, has("file_name", "ca", "text_match")) == ["car", "cat"]
    assert found(
        store, has("n", 1), where(has("n", 3), has("width", 200)), condition=FilterCondition.OR
    ) == ["cat"]
    assert found(store, has("n", 1), has("n", 3), condition=FilterCondition.NOT) == ["dog"]
    assert found(store) == ["car", "cat", "dog"]


@pytest.mark.parametrize("operator", ["<", "<=", "!="])
def test_a_column_without_a_value_does_not_count_as_minus_one(store, operator):
    store.add([image("small", width=100), image("unknown")])

    assert found(store, has("width", 150, operator)) == ["small"]


def test_a_text_column_without_a_value_does_not_count_as_empty(store):
    store.add([image("named", file_name="a.png"), image("nameless")])

    assert found(store, has("file_name", "b.png", "<")) == ["named"]


def test_a_row_without_the_key_matches_no_operator(store):
    # As in LlamaIndex's SimpleVectorStore; by themselves, Milvus Lite and a server disagree.
    store.add([image("named", name="b", tags=["x"]), image("none", name=None), image("nameless")])

    assert found(store, has("name", "a", "!=")) == ["named"]
    assert found(store, has("name", ["a"], "nin")) == ["named"]
    assert found(store, has("name", [], "nin")) == ["named"]
    assert found(store, has("name", "z", "<")) == ["named"]
    assert found(store, has("name", "b"), condition=FilterCondition.NOT) == ["nameless", "none"]
    assert found(store, has("tags", "x", "contains"), condition=FilterCondition.NOT) == [
        "nameless",
        "none",
    ]


@pytest.mark.parametrize("key", ["标签", "tags", "_tags2"])
def test_lists_under_chinese_keys_are_found(store, key):
    store.add([image("a", **{key: ["猫", "狗"]}), image("b", **{key: ["鸟"]})])

    assert found(store, has(key, "猫", "contains")) == ["a"]
    assert found(store, has(key, ["猫", "鸟"], "any")) == ["a", "b"]
    assert found(store, has(key, ["猫", "鸟"], "all")) == []


@pytest.mark.parametrize("key", ["in", "true", "null", "exists", "key-dash", "key.dot", "1st"])
def test_keys_that_are_no_plain_names(store, key):
    store.add([image("a", **{key: "x"}), image("b", **{key: "y"})])

    assert found(store, has(key, "x")) == ["a"]
    assert found(store, has(key, ["x", "z"], "in")) == ["a"]
    assert found(store, has(key, ["x", "z"], "nin")) == ["b"]


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    st.lists(
        st.text(
            st.one_of(
                st.sampled_from("\"'\\\n\r\t[]{}%_ \u2028猫🐈"), st.characters(codec="utf-8")
            ),
            min_size=1,
            max_size=12,
        ).filter(lambda value: "\x00" not in value),
        min_size=2,
        max_size=4,
        unique=True,
    )
)
def test_any_text_is_found_exactly_as_value_and_as_id(store, values):
    store.clear()
    store.add([image(value, X, name=value, file_name=value) for value in values])

    for value in values:
        for key in ("name", "file_name"):
            assert found(store, has(key, value)) == [value]
            assert found(store, has(key, [value], "in")) == [value]
        assert store.query(ask(node_ids=[value])).ids == [value]
        assert [node.node_id for node in store.get_nodes([value])] == [value]
    store.delete(values[0])
    assert sorted(store.query(ask()).ids) == sorted(values[1:])
