"""What a user passes is a value to Milvus, never a part of an expression.

Ids, documents, keys and values of every kind go through all that asks or deletes by them, and a
list kept in Python says what each must find. `filter_oracle.py` has the meaning of filters;
`test_filter_properties.py` and `test_server.py` ask it of each operator.
"""

from pathlib import Path

import expression_scan
import filter_oracle
import pytest
from by_hand import MODEL, X, ask, image, text
from filter_oracle import group, one
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from llama_index.core.schema import NodeRelationship, RelatedNodeInfo

import llama_index_clip_ext
from llama_index_clip_ext import FilterError, create_vector_store
from llama_index_clip_ext.rows import _RESERVED_KEYS

FRAGMENTS = [
    *('"', "'", "\\", '\\"', "\\\\", "\n", "\r", "\t", "\x00", "\x1b", "\x7f", "\x85", "\u2028"),
    *(" ", "a", "id", "猫", "e\u0301", "🐈", "\u200d", "\ufeff", "\u202e", "\ud800", "\udfff"),
    *('"] or id in ["', '" or id != "', "' or '1'=='1", ") or (", "] or true or [", " and "),
    *("not ", "$meta", '$meta["', "%", "_", "{x}", "{{", "//", "--", "/*", "\\u0022", "\\x22", ";"),
]
TEXTS = st.lists(
    st.one_of(st.sampled_from(FRAGMENTS), st.characters(exclude_categories=())),
    min_size=1,
    max_size=5,
).map("".join)
INNOCENT = [image("innocent", colour="red"), text("bystander", colour="blue")]


@pytest.fixture(scope="module", params=["Milvus Lite", "server"])
def asked(request, tmp_path_factory):
    """A store, what it is called in the table, and how often to try in short and in full."""
    if request.param == "server":
        address, often = request.getfixturevalue("server"), {"short": 3, "full": 30}
    else:
        address = tmp_path_factory.mktemp("expressions") / "e.db"
        often = {"short": 12, "full": 200}
    with create_vector_store(MODEL, uri=address, collection_name="expressions") as store:
        yield store, f"expressions, {request.param}", often


def test_what_users_pass_is_a_value_and_nothing_else(asked, tries, tally):
    store, what, often = asked

    @settings(
        max_examples=tries(**often),
        suppress_health_check=[HealthCheck.function_scoped_fixture],
        **filter_oracle.SAME_EACH_TIME,
    )
    @given(st.lists(TEXTS, min_size=4, max_size=8, unique=True))
    def attempt(texts):
        round_ = Round(store, texts)
        round_.refuse()
        round_.look_up()
        round_.delete()
        tally(what, tried=round_.tried, lost=len(round_.lost), let_in=len(round_.let_in))
        assert not round_.lost
        assert not round_.let_in

    attempt()


class Round:
    """Some hostile texts, in every place at once, and what comes of asking by each.

    Attributes:
        tried: Calls that were compared with the list.
        lost: Which of them missed rows, by what was asked.
        let_in: Which found, or deleted, rows that were not asked for.
    """

    def __init__(self, store, texts):
        self.store = store
        self.texts = texts
        self.tried = 0
        self.lost = []
        self.let_in = []
        fine = [each for each in texts if is_unicode(each)]
        keys = [key for key in fine if key not in _RESERVED_KEYS] or ["a"]
        self.nodes = {node.node_id: node for node in INNOCENT}
        for index, node_id in enumerate(fine):
            # A document, key and value of other texts than its id, so that each counts by itself.
            node = (image if index % 2 else text)(node_id)
            node.metadata = {keys[index % len(keys)]: fine[index - 1], "colour": "red"}
            source = RelatedNodeInfo(node_id=fine[index - 2])
            node.relationships[NodeRelationship.SOURCE] = source
            self.nodes[node_id] = node
        store.clear()
        store.add(list(self.nodes.values()))

    def refuse(self):
        """Texts that are no Unicode are refused before anything is written."""
        for bad in self.texts:
            if is_unicode(bad):
                continue
            named = image("other")
            named.metadata = {bad: "x"}
            for node in (image(bad), image("other", note=bad), named):
                with pytest.raises(ValueError, match="Unicode"):
                    self.store.add([image("first"), node])
        self.compare("after adding", self.store.get_ids(), self.nodes)

    def look_up(self):
        """Ask by each text, as an id, a document, a key and a value."""
        for each in self.texts:
            by_id = [each] if each in self.nodes else []
            refusable = not is_unicode(each)
            self.ask(self.get_nodes, [each], by_id, refusable)
            self.ask(self.store.get_hashes, [each], by_id, refusable)
            self.ask(self.of_ids, [each], by_id, refusable)
            self.ask(self.of_documents, [each], self.of_document(each), refusable)
            for wanted in self.filters(each):
                expected = self.matching(wanted)
                n_images = sum(self.nodes[one].class_name() == "ImageNode" for one in expected)
                refusable = not is_key(each)
                self.ask(self.query, wanted, expected, refusable)
                self.ask(self.store.get_ids, wanted, expected, refusable)
                self.ask(self.images, wanted, range(n_images), refusable)

    def delete(self):
        """Delete by each text, in one way after the other."""
        for index, each in enumerate(self.texts):
            if index % 3 == 0:
                gone, call, asked = self.of_document(each), self.store.delete, each
            elif index % 3 == 1:
                gone, call, asked = {each}, self.store.delete_nodes, [each]
            else:
                asked = self.filters(each)[0]
                gone, call = self.matching(asked), self.delete_filtered
            try:
                call(asked)
            except FilterError:
                assert not is_key(each)
                gone = ()
            for node_id in gone:
                self.nodes.pop(node_id, None)
            self.compare((call.__name__, asked), self.store.get_ids(), self.nodes)

    def get_nodes(self, ids):
        return [node.node_id for node in self.store.get_nodes(ids)]

    def of_ids(self, ids):
        return self.store.query(ask(X, top_k=100, node_ids=ids)).ids

    def of_documents(self, documents):
        return self.store.query(ask(X, top_k=100, doc_ids=documents)).ids

    def query(self, wanted):
        return self.store.query(ask(X, top_k=100, filters=wanted)).ids

    def images(self, wanted):
        return range(self.store.count("image", wanted))

    def delete_filtered(self, wanted):
        self.store.delete_nodes(filters=wanted)

    def matching(self, wanted):
        return filter_oracle.matching(self.nodes.values(), wanted)

    def of_document(self, name):
        nodes = self.nodes.values()
        return {node.node_id for node in nodes if (node.ref_doc_id or node.node_id) == name}

    def filters(self, each):
        """Filters by a text as a value of every key that there is, and as a key of every value."""
        keys = sorted({key for node in self.nodes.values() for key in node.metadata if is_key(key)})
        values = sorted(
            {value for node in self.nodes.values() for value in node.metadata.values()}
        )[:3]
        return [
            group(*(one(key, "==", each) for key in keys), condition="or"),
            group(one(each, "in", values)),
            group(one("colour", "==", "red"), one(each, "!=", each)),
            group(one("doc_id", "nin", [each])),
        ]

    def ask(self, call, asked, expected, refusable):
        """Compare what a call finds; or it refuses to ask, by what Milvus has no literal for."""
        try:
            found = call(asked)
        except FilterError:
            self.tried += 1
            assert refusable
        else:
            self.compare((call.__name__, asked), found, expected)

    def compare(self, asked, found, expected):
        self.tried += 1
        if set(expected) - set(found):
            self.lost.append((asked, set(expected) - set(found)))
        if set(found) - set(expected):
            self.let_in.append((asked, set(found) - set(expected)))


def is_unicode(value):
    return not any("\ud800" <= character <= "\udfff" for character in value)


def is_key(value):
    """Whether Milvus finds metadata by it, on a server too."""
    is_spelt_out = not any(ord(character) < 32 and character not in "\n\r\t" for character in value)
    return is_unicode(value) and is_spelt_out and value != "$meta"


# The source.

PACKAGE = Path(llama_index_clip_ext.__file__).parent


def test_every_expression_comes_from_the_one_escaper(tally):
    files = sorted(PACKAGE.rglob("*.py"))
    found = [
        complaint
        for file in files
        for complaint in expression_scan.complaints(file.stem, file.read_text(encoding="utf-8"))
    ]
    tally("expressions, read in the source", tried=len(files), let_in=len(found))
    assert found == []


@pytest.mark.parametrize(
    "planted",
    [
        "client.query(c, filter=f'id == \"{x}\"')",
        "client.query(c, filter='id == \"%s\"' % x)",
        "client.query(c, filter='id == \"{}\"'.format(x))",
        "client.query(c, filter='id == ' + x)",
        "client.query(c, filter=x)",
        "client.query(c, filter=str(x))",
        "client.delete(c, f'id == {x}')",
        "client.delete(c, ids=[x])",
        "client.search(c, data=[], filter=x or 'id != \"\"')",
        "client.query_iterator(c, expr=f'{x}')",
        "self._delete(f'id == {x}')",
        "self._count(x)",
        "pages(q, f'id == {x}', [], e)",
        "y = f'id == {x}'; client.query(c, filter=y)",
        "y = 'id == 1'; y += x; client.query(c, filter=y)",
        "y, z = x; client.query(c, filter=y)",
        "parts = []; parts.append(x); client.query(c, filter=joined('and', parts, e))",
        "parts = [literal(x)]; parts.extend(x); client.query(c, filter=joined('and', parts, e))",
        "client.query(c, filter=joined('and', [f'a == {each}' for each in x], e))",
        "client.query(c, filter=negated(x))",
        "Scope(expression=x)",
        "if x: y = literal(x)\n    else: y = x\n    client.query(c, filter=y)",
    ],
)
def test_a_planted_expression_is_found(planted):
    assert expression_scan.complaints("elsewhere", f"def f(self, x):\n    {planted}\n")


@pytest.mark.parametrize(
    ("module", "planted"),
    [
        ("expressions", "def f(value):\n    return f'id == \"{value}\"'"),
        ("expressions", "def f(value):\n    return f'id == {str(value)}'"),
        ("expressions", "def f(value):\n    return 'id == \"%s\"' % value"),
        ("expressions", "def f(value):\n    return 'id == \"{}\"'.format(value)"),
        ("filters", "def _one(value):\n    return f'id == {value}'"),
        ("elsewhere", "def literal(value):\n    return value"),
        ("elsewhere", "class A:\n    def _expression(self, value):\n        return value"),
    ],
)
def test_so_is_one_where_they_are_made(module, planted):
    assert expression_scan.complaints(module, planted)


def test_what_is_made_as_it_should_is_not_complained_of():
    source = """
def f(self, x):
    parts = [literal(x) if x else ""]
    parts.append(ids_expression("id", [x]))
    test = joined("and", [part for part in parts if part], e)
    client.query(c, filter=negated(test) or 'id != ""')
"""
    assert expression_scan.complaints("elsewhere", source) == []
