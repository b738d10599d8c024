"""Find what reaches Milvus as an expression without having gone through `expressions`.

A reading of the source, function by function. What is handed over as an expression must be a
constant, or what a function of `expressions` returned, or a name that only such things were bound
to. Inside `expressions`, what stands in a formatted text must be a literal, a name, or a test.
"""

from __future__ import annotations

import ast

HOME = "expressions"
# Functions of `expressions`, of which the first ones take tests that were made before.
OF_TESTS = {"joined", "negated"}
MAKERS = OF_TESTS | {
    *("literal", "ids_expression", "compared", "holding", "lite_list", "pattern"),
    *("is_empty", "has_part", "is_in", "compares", "contains_any", "may_hold"),
    "check_whole",  # The user's own, which is one expression, and cannot end another.
}
# Functions that hand on what these made: all that they return is read.
PASSING = {
    "filters": {
        *("filter_expression", "_group", "_one", "_of_column", "_of_dynamic_field"),
        *("text_guard", "modality_expression"),
    },
    "store": {"_expression"},
}
# What takes an expression, by keyword; and which positional argument is one.
KEYWORDS = {"filter", "expr", "expression"}
POSITIONAL = {"_delete": 0, "_count": 0, "pages": 1}
# Functions whose parameter is an expression: their callers are read.
PARAMETERS = {
    ("store", "_delete", "expression"),
    ("store", "_count", "expression"),
    ("paging", "pages", "expression"),
}
ATTRIBUTES = {"scope.expression"}  # A `Scope` is given it by keyword.
CONSTANTS = {"NEVER"}
# pymilvus quotes ids by Python's rules, not Milvus's.
UNESCAPED = {"ids"}
CLIENTS = {"query", "search", "delete", "get", "query_iterator", "search_iterator", "hybrid_search"}
# What `expressions` may put into a text as it is: columns, signs, words and finished tests.
AS_IT_IS = {
    *("field", "sign", "word", "test", "no_text", "NEVER"),
    *("self._field", "self._members", "self._lite_lists"),
}
INSIDE = MAKERS | {"_is_like_typed"}


def complaints(module: str, source: str) -> list[str]:
    """Return what is wrong in a module, one line each."""
    tree = ast.parse(source)
    if module == HOME:
        return [f"{module}:{node.lineno}: {ast.unparse(node)}" for node in _unescaped(tree)]
    reader = _Reader(module)
    reader.visit(tree)
    return reader.found


def _unescaped(tree: ast.Module) -> list[ast.expr]:
    """Return what `expressions` puts into a text though it is neither a literal nor a name."""
    messages = {
        id(node)
        for raising in ast.walk(tree)
        if isinstance(raising, ast.Raise)
        for node in ast.walk(raising)
    }
    wrong: list[ast.expr] = []
    for node in ast.walk(tree):
        if id(node) in messages:
            continue
        if isinstance(node, ast.FormattedValue):
            if not _may_stand(node.value):
                wrong.append(node.value)
        elif _formats(node):
            wrong.append(node)
    return wrong


def _may_stand(value: ast.expr) -> bool:
    """Whether a value may stand in a text of `expressions`."""
    if isinstance(value, ast.BoolOp):
        return all(_may_stand(each) for each in value.values)
    if isinstance(value, ast.Call) and _name(value.func) == "join":
        # ``", ".join(literal(item) for item in value)``
        return isinstance(value.args[0], ast.GeneratorExp) and _may_stand(value.args[0].elt)
    if isinstance(value, ast.Call):
        return _name(value.func) in INSIDE
    return ast.unparse(value) in AS_IT_IS


class _Reader(ast.NodeVisitor):
    """Reads each function of a module."""

    def __init__(self, module: str) -> None:
        self.module = module
        self.found: list[str] = []
        self.functions: list[ast.AST] = []
        self.asked: set[str] = set()  # Names being looked into, which say nothing of themselves.

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        self._read(node)

    def visit_AsyncFunctionDef(self, node: ast.AsyncFunctionDef) -> None:
        self._read(node)

    def _read(self, node: ast.FunctionDef | ast.AsyncFunctionDef) -> None:
        passing = PASSING.get(self.module, set())
        if node.name in MAKERS or (node.name in _all_passing() and node.name not in passing):
            self._complain(node, f"{node.name} has the name of a function that is trusted")
        self.functions.append(node)
        if node.name in passing:
            for each in ast.walk(node):
                if isinstance(each, ast.Return) and each.value and not self._is_made(each.value):
                    self._complain(each, ast.unparse(each))
        self.generic_visit(node)
        self.functions.pop()

    def visit_Call(self, node: ast.Call) -> None:
        name = _name(node.func)
        for keyword in node.keywords:
            if keyword.arg in KEYWORDS and not self._is_made(keyword.value):
                self._complain(node, f"{keyword.arg}={ast.unparse(keyword.value)}")
            if keyword.arg in UNESCAPED and name in CLIENTS:
                self._complain(node, f"{name}({keyword.arg}=...)")
        if name in POSITIONAL and not self._is_made(node.args[POSITIONAL[name]]):
            self._complain(node, ast.unparse(node))
        if name in CLIENTS and "client" in ast.unparse(node.func) and len(node.args) > 1:
            self._complain(node, f"{name} with an expression that has no keyword")
        self.generic_visit(node)

    def _complain(self, node: ast.AST, what: str) -> None:
        self.found.append(f"{self.module}:{node.lineno}: {what}")

    def _is_made(self, value: ast.expr, bound: tuple[ast.comprehension, ...] = ()) -> bool:
        """Whether a value is an expression, or a collection of them, that was made as it should."""
        if isinstance(value, ast.Constant):
            return isinstance(value.value, str)
        if isinstance(value, ast.Call):
            name = _name(value.func)
            if name in OF_TESTS:
                return self._is_made(value.args[name == "joined"], bound)
            return name in MAKERS | _all_passing()
        if isinstance(value, ast.BoolOp):
            return all(self._is_made(each, bound) for each in value.values)
        if isinstance(value, ast.IfExp):
            return self._is_made(value.body, bound) and self._is_made(value.orelse, bound)
        if isinstance(value, (ast.List, ast.Tuple)):
            return all(self._is_made(each, bound) for each in value.elts)
        if isinstance(value, (ast.ListComp, ast.GeneratorExp)):
            return self._is_made(value.elt, (*bound, *value.generators))
        if isinstance(value, ast.Attribute):
            return ast.unparse(value) in ATTRIBUTES
        return isinstance(value, ast.Name) and self._is_bound(value.id, bound)

    def _is_bound(self, name: str, bound: tuple[ast.comprehension, ...]) -> bool:
        """Whether only expressions are ever bound to a name in this function, or added to it."""
        for one in bound:
            if isinstance(one.target, ast.Name) and one.target.id == name:
                return self._is_made(one.iter)
        if name in CONSTANTS:
            return True
        if not self.functions:
            return False
        function = self.functions[-1]
        if (self.module, function.name, name) in PARAMETERS:
            return True
        values = []
        for node in ast.walk(function):
            if isinstance(node, (ast.Assign, ast.AnnAssign, ast.AugAssign)):
                targets = node.targets if isinstance(node, ast.Assign) else [node.target]
                if any(_binds(target, name) for target in targets):
                    # Taken apart, or added to by +=, is none of what is known to be made.
                    is_plain = all(isinstance(target, ast.Name) for target in targets)
                    is_plain = is_plain and not isinstance(node, ast.AugAssign)
                    values.append(node.value if is_plain else None)
            elif isinstance(node, (ast.For, ast.NamedExpr, ast.arg, ast.withitem)):
                target = getattr(node, "target", None) or getattr(node, "optional_vars", None)
                if getattr(node, "arg", None) == name or (target and _binds(target, name)):
                    values.append(None)
            elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                if ast.unparse(node.func.value) == name and node.func.attr in ("append", "insert"):
                    values.append(node.args[-1])
                elif ast.unparse(node.func.value) == name and node.func.attr == "extend":
                    values.append(None)
        if name in self.asked:
            return True
        self.asked.add(name)
        is_made = bool(values) and all(one is not None and self._is_made(one) for one in values)
        self.asked.remove(name)
        return is_made


def _all_passing() -> set[str]:
    return set().union(*PASSING.values())


def _binds(target: ast.AST, name: str) -> bool:
    return any(isinstance(node, ast.Name) and node.id == name for node in ast.walk(target))


def _name(function: ast.expr) -> str:
    if isinstance(function, ast.Attribute):
        return function.attr
    return function.id if isinstance(function, ast.Name) else ""


def _formats(node: ast.AST) -> bool:
    """Whether it is ``"..." % value`` or ``"...".format(value)``."""
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Mod):
        return isinstance(node.left, (ast.JoinedStr, ast.Constant))
    return isinstance(node, ast.Call) and _name(node.func) == "format"
