import ast
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

import llama_index_clip_ext


def test_importing_loads_nothing_heavy():
    heavy = "torch", "transformers", "llama_index", "pymilvus", "numpy", "PIL"
    code = f"import llama_index_clip_ext, sys; print(sorted(set({heavy}) & set(sys.modules)))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


def test_every_public_name_is_there_and_documented():
    for name in llama_index_clip_ext.__all__:
        thing = getattr(llama_index_clip_ext, name)
        assert thing.__doc__, name
    assert set(dir(llama_index_clip_ext)) >= set(llama_index_clip_ext.__all__)


def test_type_checkers_see_the_same_names():
    tree = ast.parse(Path(llama_index_clip_ext.__file__).read_text(encoding="utf-8"))
    block = next(node for node in tree.body if isinstance(node, ast.If))
    typed = {
        alias.name: f"llama_index_clip_ext.{node.module}"
        for node in block.body
        if isinstance(node, ast.ImportFrom) and node.level
        for alias in node.names
    }
    assert set(typed) == set(llama_index_clip_ext.__all__)
    for name, home in typed.items():
        assert getattr(import_module(home), name) is getattr(llama_index_clip_ext, name)


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        llama_index_clip_ext.nonsense  # noqa: B018


def test_all_errors_are_ours():
    from llama_index_clip_ext import errors

    for name in vars(errors):
        if name.endswith("Error"):
            assert issubclass(getattr(errors, name), errors.ClipExtError)
            assert name in errors.__doc__
            assert name in llama_index_clip_ext.__all__
