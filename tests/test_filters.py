"""Metadata filters: the expressions, and what they find in a real collection."""

import math

import pytest
from by_hand import MODEL, X, ask, image
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from llama_index.core.schema import TextNode
from llama_index.core.vector_stores.types import (
    FilterCondition,
    FilterOperator,
    MetadataFilter,
    MetadataFilters,
)

from llama_index_clip_ext import create_vector_store
from llama_index_clip_ext.errors import FilterError
from llama_index_clip_ext.expressions import Engine, ids_expression, literal
from llama_index_clip_ext.filters import filter_expression
from llama_index_clip_ext.rows import Field, metadata_fields

FIELDS = metadata_fields()


def where(*filters, condition=FilterCondition.AND):
    return MetadataFilters(filters=list(filters), condition=condition)


def has(key, value, operator="=="):
    return MetadataFilter(key=key, value=value, operator=FilterOperator(operator))


def expression(*filters, condition=FilterCondition.AND, engine=Engine.SERVER):
    return filter_expression(where(*filters, condition=condition), FIELDS, engine=engine)


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


@pytest.mark.parametrize(
    "value", [None, math.nan, math.inf, {"a": 1}, object(), [None], 2**63, -(2**63), "\ud800"]
)
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
        (has("doc_id", "a"), 'doc_id == "a"'),
        (has("doc_id", ["a", "b"], "in"), 'doc_id in ["a", "b"]'),
        (has("doc_id", None, "is_empty"), 'doc_id == ""'),
        (has("width", 1), "width == 1"),
        (has("width", 2.0), "width == 2"),
        (has("width", 2.5), "width in []"),
        (has("width", [2.5, 3.0], "in"), "width in [3]"),
        (has("width", 1, "<"), "(width != -1) and (width < 1)"),
        (has("width", 2.5, ">="), "(width != -1) and (width > 2)"),
        (has("width", -2.5, "<"), "(width != -1) and (width <= -3)"),
        (has("width", 1, "!="), "not (width == 1)"),
        (has("width", None, "is_empty"), "width == -1"),
        (has("file_name", ["a"], "nin"), 'not (file_name in ["a"])'),
        (has("file_name", "b", ">="), '(file_name != "") and (file_name >= "b")'),
        (
            has("file_name", "50%_\\", "text_match"),
            r'(file_name != "") and (file_name like "%50\\%\\_\\\\%")',
        ),
    ],
)
def test_columns(item, expected):
    assert expression(item) == f"({expected})"


@pytest.mark.parametrize(
    ("item", "server", "lite"),
    [
        (has("n", "a"), '($meta["n"] == "a")', '($meta["n"] == "a")'),
        (has("n", 1), '($meta["n"] == 1) or ($meta["n"] == true)', '($meta["n"] == 1)'),
        (
            has("n", 0.5, ">"),
            '($meta["n"] > 0.5) or ($meta["n"] == true)',
            '($meta["n"] * 0 == 0 and $meta["n"] > 0.5)',
        ),
        (has("n", "a", "<"), '($meta["n"] < "a")', '($meta["n"] like "%" and $meta["n"] < "a")'),
        (
            has("n", ["a", "b"], "in"),
            '($meta["n"] in ["a", "b"])',
            '($meta["n"] like "%" and n in ["a", "b"])',
        ),
        (
            has("n-1", ["a", "b"], "in"),
            '($meta["n-1"] in ["a", "b"])',
            '(($meta["n-1"] == "a") or ($meta["n-1"] == "b"))',
        ),
        (
            has("n", [2, 2.5], "in"),
            '($meta["n"] == 2) or ($meta["n"] == 2.5)',
            '($meta["n"] == 2) or ($meta["n"] == 2.5)',
        ),
        (
            has("n", 2, "contains"),
            '(json_contains_any($meta["n"], [2.0]))',
            '(not ($meta["n"] like "%") and json_contains_any(n, [2]))',
        ),
        (
            has("n-1", ["a"], "any"),
            '(json_contains_any($meta["n-1"], ["a"])) or ($meta["n-1"] like "%a%")',
            '(not ($meta["n-1"] like "%") and '
            'json_contains_any(_node_content["metadata"]["n-1"], ["a"])) or '
            '($meta["n-1"] like "%a%")',
        ),
        (has("text", "a"), '($meta["$text"] == "a")', '($meta["$text"] == "a")'),
    ],
)
def test_dynamic_fields(item, server, lite):
    name = "$text" if item.key == "text" else item.key
    guard = f'((exists $meta["{name}"]) and ('

    assert expression(item) == f"{guard}{server}))"
    assert expression(item, engine=Engine.LITE) == f"{guard}{lite}))"


def test_conditions_nest():
    a, b, c = has("doc_id", "a"), has("doc_id", "b"), has("doc_id", "c")

    assert expression(a, b) == '(doc_id == "a") and (doc_id == "b")'
    assert expression(a, b, condition=None) == '(doc_id == "a") and (doc_id == "b")'
    assert expression(a, b, condition=FilterCondition.OR) == '(doc_id == "a") or (doc_id == "b")'
    assert expression(a, b, condition=FilterCondition.NOT) == (
        'not ((doc_id == "a") or (doc_id == "b"))'
    )
    assert expression(a, where(b, c, condition=FilterCondition.OR)) == (
        '(doc_id == "a") and ((doc_id == "b") or (doc_id == "c"))'
    )
    assert expression(where(a, where(b, condition=FilterCondition.NOT))) == (
        '((doc_id == "a") and (not ((doc_id == "b"))))'
    )


@pytest.mark.parametrize(
    "filters",
    [None, where(), where(where(), where(where())), where(where(), condition=FilterCondition.NOT)],
)
def test_nothing_to_filter_by(filters):
    assert filter_expression(filters, FIELDS) == ""


@pytest.mark.parametrize("key", ["", "$meta", "a\x00b", "a\x1fb"])
@pytest.mark.parametrize("engine", Engine)
def test_keys_that_milvus_does_not_find_are_refused(key, engine):
    with pytest.raises(FilterError, match="Milvus finds no key"):
        expression(has(key, "x"), engine=engine)


@pytest.mark.parametrize(
    ("item", "message"),
    [
        (has("n", None), "filter 'n' == None: there is no value.*'is_empty'"),
        (has("n", None, ">"), "there is no value"),
        (has("n", "a", "in"), "'in' needs a list"),
        (has("n", "a", "nin"), "'nin' needs a list"),
        (has("n", "a", "any"), "'any' needs a list"),
        (has("n", "a", "all"), "'all' needs a list"),
        (has("n", [], "all"), "'all' needs at least one value"),
        (has("n", ["a"]), "'==' needs one value"),
        (has("n", 1, "text_match"), "'text_match' needs a text"),
        (has("n", "a", "text_match_insensitive"), "lower case under another key"),
        (has("n", math.nan), "cannot filter by nan"),
        (has("n", 2**63), "at most 64 bits"),
        (has("n", "\ud800"), "Unicode"),
        (has("width", "300"), "filter 'width' == '300': '300' compared with a column of int"),
        (has("width", [1, 2], "contains"), "'contains' needs one value"),
        (has("width", 1, "contains"), "a column of int holds no lists"),
        (has("width", "1", "text_match"), "'1' compared with a column of int"),
        (has("width", 1e300, ">"), "at most 64 bits"),
        (has("width", -1), "-1 stands for a missing value here; use 'is_empty'"),
        (has("file_name", 7), "filter 'file_name' == 7: 7 compared with a column of str"),
        (has("file_name", [7], "in"), "7 compared with a column of str"),
        (has("file_name", "", "!="), "'' stands for a missing value here; use 'is_empty'"),
        (has("file_name", ["a", ""], "in"), "'' stands for a missing value"),
        (has("last_modified_date", 2024, ">"), "2024 compared with a column of str"),
    ],
)
def test_what_has_no_exact_equivalent_is_refused(item, message):
    with pytest.raises(FilterError, match=message):
        expression(item)


@pytest.mark.parametrize("key", ["name", "file_name"])
@pytest.mark.parametrize("part", ["50%", "IMG_12", "C:\\new"])
def test_a_part_that_an_engine_has_no_pattern_for_is_refused_there(key, part):
    with pytest.raises(FilterError, match="Milvus Lite has no escape for"):
        expression(has(key, part, "text_match"), engine=Engine.LITE)
    with pytest.raises(FilterError, match="matches the beginning of a text only; ask .* >= and <"):
        expression(has(key, "cat", "text_match"), engine=Engine.OLD_SERVER)


def test_a_boolean_that_got_past_llama_index_is_the_number_that_it_equals():
    item = MetadataFilter.model_construct(key="n", value=True, operator=FilterOperator.EQ)

    assert expression(item) == expression(has("n", 1))


def test_a_very_long_list_does_not_make_a_very_long_message():
    with pytest.raises(FilterError) as caught:
        expression(has("n", [*map(str, range(1000)), "\ud800"], "in"))

    assert len(str(caught.value)) < 300


def test_groups_nested_deeper_than_milvus_lite_reads_are_refused():
    deep = where(has("n", 1))
    for _ in range(31):
        deep = where(deep)

    assert filter_expression(deep, FIELDS)
    with pytest.raises(FilterError, match="nested deeper than 32 groups"):
        filter_expression(where(deep), FIELDS)


def test_columns_of_another_program():
    fields = {"flag": Field("flag", object), "score": Field("score", float)}

    assert filter_expression(where(has("score", 2)), fields) == "(score == 2)"
    assert filter_expression(where(has("score", None, "is_empty")), fields) == "(id in [])"
    with pytest.raises(FilterError, match="column of that name whose type cannot be filtered"):
        filter_expression(where(has("flag", 1)), fields)
    with pytest.raises(FilterError, match="lists under plain names only"):
        filter_expression(where(has("a-b", "x", "contains")), fields, engine=Engine.LITE)


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
    # In a column, an empty text is a missing one.
    values = [value for value in HOSTILE if value or key != "file_name"]
    store.add([image(str(index), **{key: value}) for index, value in enumerate(values)])

    for index, value in enumerate(values):
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


@pytest.mark.parametrize("operator", ["<", "<="])
def test_a_column_without_a_value_does_not_count_as_minus_one(store, operator):
    store.add([image("small", width=100), image("unknown")])

    assert found(store, has("width", 150, operator)) == ["small"]


def test_a_text_column_without_a_value_does_not_count_as_empty(store):
    store.add([image("named", file_name="a.png"), image("nameless")])

    assert found(store, has("file_name", "b.png", "<")) == ["named"]


def test_a_row_without_the_key_is_matched_by_negations_alone(store):
    # As in LlamaIndex's SimpleVectorStore; by themselves, Milvus Lite and a server disagree.
    store.add([image("named", name="b", tags=["x"]), image("none", name=None), image("nameless")])

    assert found(store, has("name", "a", "!=")) == ["named", "nameless", "none"]
    assert found(store, has("name", "b", "!=")) == ["nameless", "none"]
    assert found(store, has("name", ["b"], "nin")) == ["nameless", "none"]
    assert found(store, has("name", [], "nin")) == ["named", "nameless", "none"]
    assert found(store, has("name", None, "is_empty")) == ["nameless", "none"]
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


def test_modality_is_the_columns_whatever_the_metadata_say(store):
    store.add([TextNode(id_="t", text="soup", embedding=X, metadata={"modality": "image"})])
    store.add([image("i")])
    assert found(store, has("modality", "text")) == ["t"]
    assert found(store, has("modality", "image")) == ["i"]


@pytest.mark.parametrize("value", ["./a", "../a/b.png", "~/a"])
@pytest.mark.parametrize("operator", ["text_match", "contains", ">=", "<"])
def test_a_part_of_a_path_is_of_the_path_as_it_is_stored(value, operator):
    with pytest.raises(FilterError, match="paths are stored whole"):
        expression(has("file_path", value, operator))
