"""What filters must find: LlamaIndex's own function over a corpus, and filters to ask it with."""

import random

from by_hand import X, ask, image, text
from hypothesis import strategies as st
from llama_index.core.schema import NodeRelationship, RelatedNodeInfo
from llama_index.core.vector_stores.types import (
    FilterCondition,
    FilterOperator,
    MetadataFilter,
    MetadataFilters,
)
from llama_index.core.vector_stores.utils import build_metadata_filter_fn

from llama_index_clip_ext import FilterError
from llama_index_clip_ext.expressions import has_pattern

ROWS = 64
SAME_EACH_TIME = {"deadline": None, "derandomize": True, "database": None}
WIDEST = 2**63 - 1
HOSTILE = [
    *("", " ", "a", "A", "ab", "b", "cat.png", "it's", '"quoted"', '"] or id in ["', "'; drop --"),
    *(
        "back\\slash",
        "\\",
        "two\nlines",
        "tab\tbed",
        "猫咪 在沙发上",
        "猫",
        "🐈‍⬛ 👩🏽‍🚀",
        "\u2028",
    ),
    *("%", "a_b", "1", "[1, 2]", '{"n": 1}', "true", "null", "\x01", "e\u0301", "é"),
]
# No floats from 2**53 to 2**63: a server rounds integers to compare them.
NUMBERS = [
    *(-3, -1, 0, 1, 2, 7, -0.5, 0.1, 0.30000000000000004, 2.0, 2.5, 1e-7, 5e-324, 1e300, -1e300),
    *(2**53 - 1, 2**53 + 1, -(2**53) - 1, 2**63 - 2, WIDEST, -WIDEST),
]
DATES = ["2023-12-31T23:59:59+00:00", "2024-05-01T00:00:00+00:00", "2024-05-02T12:30:00+00:00"]
LISTS = [
    [[], ["猫"], ["猫", "狗"], ["a", 'b"\\'], [""], [1], [1.0, 2.5], [True], [0], [2**53 + 1]],
    [["a", 1, None, 2.5, False], [["a"]], [{"a": 1}], [-3, 0.1], ["[1, 2]"], [1e300]],
]

# By key, what rows hold there. Some of one type, which Milvus Lite evaluates by other code.
MIXED = [
    *HOSTILE,
    *NUMBERS,
    *LISTS[0],
    *LISTS[1],
    True,
    False,
    None,
    {},
    {"a": 1},
    {"b": {"c": []}},
]
DYNAMIC = {
    "mixed": MIXED,
    "text_only": HOSTILE,
    "int_only": [number for number in NUMBERS if isinstance(number, int)],
    "float_only": [number for number in NUMBERS if isinstance(number, float)],
    "number": NUMBERS,
    "flag": [True, False],
    "flag_or_int": [True, False, 0, 1, 2],
    "tags": [["猫"], ["猫", "狗"], ["a", "ab"], ["it's"]],
    "list": [*LISTS[0], *LISTS[1]],
    "like_list": ["[1, 2]", [1], "1", 1],
    "nested": [{}, {"a": 1}, {"mixed": 1}],
    # Names of columns, of Milvus and Milvus Lite, keywords, and what is no name at all.
    **dict.fromkeys(("id", "text", "embedding", "node_hash", "_node_type"), MIXED),
    **dict.fromkeys(("_node_content", "_seq", "_partition", "in", "exists", "RowID"), MIXED),
    **dict.fromkeys(
        ("key-dash", "a.b", "a b", "a[0]", "it's", 'a"] or ["', "a\\b", "a/b~1"), MIXED
    ),
    **dict.fromkeys(
        ("标签", "🐈", "e\u0301", "हिन्दी", "$x", "two\nlines", "mixed2", "ref_doc_id", "¼"), MIXED
    ),
}
COLUMNS = {
    "file_name": HOSTILE,
    "content_hash": ["a", "b"],
    "last_modified_date": DATES,
    "width": [0, 1, 7, 640, -1, 2**31, WIDEST],
    "file_size": [-7, 2, 2**53 + 1],
}


def corpus():
    """Return nodes with all of this, the same ones each time."""
    draw = random.Random(0)
    nodes = []
    for index in range(ROWS):
        metadata = {
            key: draw.choice(values)
            for key, values in (*DYNAMIC.items(), *COLUMNS.items())
            if draw.random() < 0.6
        }
        node = (text if index % 3 == 0 else image)(f"node {index}", X)
        node.metadata = metadata
        if index % 2:
            source = RelatedNodeInfo(node_id=f"album '{index % 5}'")
            node.relationships[NodeRelationship.SOURCE] = source
        nodes.append(node)
    return nodes


def matching(nodes, filters):
    """Return the ids of the nodes that match, as LlamaIndex's `SimpleVectorStore` has it."""
    return {node.node_id for node in nodes if matches(filters, metadata_of(node))}


def metadata_of(node):
    """Return what a node is filtered by."""
    metadata = {**node.metadata, "doc_id": node.ref_doc_id or node.node_id}
    for key in COLUMNS:
        if metadata.get(key) in ("", -1):
            metadata[key] = None  # That is how the columns say "missing".
    return metadata


def matches(filters, metadata):
    """Say whether filters match, nested and empty groups included."""
    if isinstance(filters, MetadataFilter):
        return matches_one(filters, metadata)
    parts = [matches(part, metadata) for part in filters.filters if not says_nothing(part)]
    if not parts:
        return True
    if filters.condition == FilterCondition.NOT:
        return not any(parts)
    return any(parts) if filters.condition == FilterCondition.OR else all(parts)


def says_nothing(part):
    """Whether a group is empty, or holds empty groups alone."""
    return isinstance(part, MetadataFilters) and all(says_nothing(each) for each in part.filters)


def matches_one(item, metadata):
    """Ask LlamaIndex, except where it would raise or look into dictionaries."""
    if item.operator in _OF_LISTS and isinstance(metadata.get(item.key), dict):
        return False
    try:
        return build_metadata_filter_fn(lambda _: metadata, MetadataFilters(filters=[item]))("")
    except TypeError:
        return False


def leaves(with_text_match):
    """Filters of one key each, of which none is refused.

    Args:
        with_text_match: Whether the engine matches parts of texts.
    """
    operators = [op for op in FilterOperator if op != FilterOperator.TEXT_MATCH_INSENSITIVE]
    if not with_text_match:
        operators.remove(FilterOperator.TEXT_MATCH)
    scalars = st.one_of(
        st.sampled_from(HOSTILE),
        st.sampled_from(NUMBERS),
        st.text(st.characters(codec="utf-8"), max_size=5),
        st.integers(-WIDEST, WIDEST),
        st.floats(-(2.0**53), 2.0**53).map(float),
    )
    texts = st.sampled_from([*HOSTILE[1:], *DATES, "a", "2024-05", "album '1'", "node 3"])
    whole = st.one_of(st.sampled_from([0, 1, 7, 640, 2, 2.5, 2.0, -0.5]), st.integers(0, 2**40))
    return st.one_of(
        _leaves(st.sampled_from([*DYNAMIC, *DYNAMIC, "absent"]), operators, scalars),
        _leaves(
            st.sampled_from(["file_name", "content_hash", "last_modified_date", "doc_id"]),
            operators if with_text_match else [op for op in operators if op not in _OF_LISTS],
            texts,
        ),
        _leaves(
            st.sampled_from(["width", "file_size"]),
            [op for op in operators if op not in (*_OF_LISTS, FilterOperator.TEXT_MATCH)],
            whole,
        ),
    )


_OF_LISTS = (FilterOperator.CONTAINS, FilterOperator.ANY, FilterOperator.ALL)
_WITH_LISTS = (FilterOperator.IN, FilterOperator.NIN, FilterOperator.ANY, FilterOperator.ALL)


@st.composite
def _leaves(draw, keys, operators, values):
    operator = draw(st.sampled_from(operators))
    if operator == FilterOperator.IS_EMPTY:
        value = None
    elif operator == FilterOperator.TEXT_MATCH:
        value = draw(st.sampled_from(["", "a", "猫", "it's", '"', "\n", "ca", "2024-05", "🐈"]))
    elif operator in _WITH_LISTS:
        some = draw(st.lists(values, min_size=operator == FilterOperator.ALL, max_size=6))
        value = [each for each in some if isinstance(each, str) == isinstance(some[0], str)]
    else:
        value = draw(values)
    return one(draw(keys), operator, value)


def filters(*, with_text_match):
    """Groups of such filters, nested and empty ones included."""
    return st.recursive(
        leaves(with_text_match),
        lambda parts: st.builds(
            lambda each, condition: MetadataFilters(filters=each, condition=condition),
            st.lists(parts, max_size=4),
            st.sampled_from(FilterCondition),
        ),
        max_leaves=8,
    ).map(
        lambda part: part if isinstance(part, MetadataFilters) else MetadataFilters(filters=[part])
    )


def fill(store, nodes):
    """Write nodes, half of them into what is on disk: Milvus filters that by other code."""
    store.clear()
    store.add(nodes[: len(nodes) // 2])
    store.client.flush(store.collection_name)
    store.add(nodes[len(nodes) // 2 :])


def one(key, operator, value=None):
    """Make a filter of one key."""
    return MetadataFilter(key=key, operator=FilterOperator(operator), value=value)


def group(*parts, condition="and"):
    """Make a group of filters."""
    return MetadataFilters(filters=list(parts), condition=condition)


def nested(depth):
    """Nest AND, OR and NOT in turn."""
    wanted = group(one("number", ">", 0))
    for level in range(depth):
        other = one("width", "<", 100 * level) if level % 2 else one("mixed", "!=", "a")
        wanted = group(wanted, other, condition=["or", "not", "and"][level % 3])
    return wanted


# What was wrong once, or is wrong by Milvus alone.
def deep(depth, width):
    """Groups in each other, each of many conditions."""
    inner = group(one("number", "==", 1))
    for level in range(depth):
        ors = [one("number", "==", number) for number in range(level, level + width)]
        inner = group(inner, *ors, condition="or")
    return inner


KNOWN = [
    group(one("flag", "==", 1)),
    group(one("flag_or_int", ">", 0), one("flag", "!=", 0)),
    group(one("flag_or_int", "in", [0, 2]), one("list", "any", [0, 1]), condition="or"),
    group(
        one("like_list", "contains", 1)
    ),  # Not the text "[1, 2]", which Milvus Lite reads as a list.
    group(one("mixed", "in", ["a", "1"]), condition="not"),  # Lists cannot be hashed.
    group(one("nested", ">", 1), one("mixed", "<=", "a"), condition="not"),
    group(one("_seq", "in", ["a", "b"])),  # A name that Milvus Lite keeps for itself.
    group(one("¼", "in", ["a", "猫"]), one("¼", "any", ["猫", "ab"]), condition="or"),  # No letter.
    group(one("number", "==", 2**53 + 1)),
    group(one("number", ">=", 2.0**62)),
    group(one("list", "all", [1, 2.5])),
    group(one("list", "is_empty"), one("mixed", "is_empty")),
    group(one("key-dash", "any", ["a", "猫"]), one("text", "contains", "猫"), condition="or"),
    group(one("absent", "!=", 1), one("absent", "nin", [])),
    group(one("last_modified_date", ">=", "2024-05-01"), one("last_modified_date", "<", "2024-06")),
    group(one("mixed", "in", [*map(str, range(1000))]), one("number", "in", [*range(1000)])),
    group(one("key-dash", "nin", [*range(50)]), one("width", "nin", [*range(0, 2000, 2)])),
    # 2**53 + 1 is another number, though its float is the same.
    group(one("list", "contains", 2**53), one("list", "all", [2**53]), condition="or"),
    # A server searches by no chain of 48.
    group(*(one("number", "==", number) for number in range(300)), condition="or"),
    group(*(one("mixed", "!=", str(number)) for number in range(100))),
    group(*(one("tags", "contains", "猫") for _ in range(60))),
    group(one("list", "all", ["猫"] * 60)),
    # A part of a text, as well as a member of a list.
    group(one("mixed", "contains", "a"), one("mixed", "any", ["猫", "it's"]), condition="or"),
    group(one("mixed", "all", ["a", "b"]), one("text_only", "contains", ""), condition="or"),
    group(one("tags", "contains", "a_b"), one("tags", "contains", "%")),
    nested(20),
    nested(30),
]


def check_deleting(store, nodes, wanted):
    """Delete by filters from a store that holds these nodes, and put back what was deleted."""
    expected = matching(nodes, wanted)
    try:
        deleted = store.delete_nodes(filters=wanted)
    except FilterError:
        assert is_refusable(nodes, wanted, store._engine)
        assert store.count() == len(nodes)
        return
    assert deleted == len(expected)
    left = {node.node_id for node in store.get_nodes(filters=MetadataFilters(filters=[]))}
    assert left == {node.node_id for node in nodes} - expected
    store.add([node for node in nodes if node.node_id in expected])


def is_refusable(nodes, wanted, engine):
    """Whether filters ask texts for a part by a list operator, and the engine has no pattern."""
    for item in _all(wanted):
        if item.operator not in _OF_LISTS:
            continue
        parts = item.value if isinstance(item.value, list) else [item.value]
        parts = [part for part in parts if isinstance(part, str) and not has_pattern(part, engine)]
        is_column = item.key in (*COLUMNS, "doc_id", "modality")
        has_texts = any(isinstance(node.metadata.get(item.key), str) for node in nodes)
        if parts and (is_column or has_texts):
            return True
    return False


def _all(wanted):
    for item in wanted.filters:
        if isinstance(item, MetadataFilters):
            yield from _all(item)
        else:
            yield item


def check(store, nodes, wanted):
    """Compare all that a store finds by filters with what it must find, or see it refused."""
    if is_refusable(nodes, wanted, store._engine):
        try:
            store.count(filters=wanted)
        except FilterError:
            return
    expected = matching(nodes, wanted)
    assert set(store.query(ask(X, top_k=len(nodes) + 1, filters=wanted)).ids) == expected
    assert {node.node_id for node in store.get_nodes(filters=wanted)} == expected
    assert store.count(filters=wanted) == len(expected)
