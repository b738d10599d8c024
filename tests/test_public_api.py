import ast
import inspect
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

import llama_index_clip_ext
from llama_index_clip_ext import dual_encoder, retriever


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


def test_notebooks_complete_every_public_class():
    """Jupyter's completion evaluates annotations, and offers nothing where it cannot."""
    jedi = pytest.importorskip("jedi", reason="pip install ipykernel")
    for name in llama_index_clip_ext.__all__:
        thing = getattr(llama_index_clip_ext, name)
        if not inspect.isclass(thing) or issubclass(thing, BaseException):
            continue
        for what in (thing, thing.__new__(thing)):
            offered = {
                one.name for one in jedi.Interpreter("it.", [{"it": what}]).complete(1, len("it."))
            }
            assert {one for one in vars(thing) if not one.startswith("_")} <= offered, name


def test_notebooks_complete_an_open_store(store):
    jedi = pytest.importorskip("jedi", reason="pip install ipykernel")
    code = "vector_store."
    offered = jedi.Interpreter(code, [{"vector_store": store}]).complete(1, len(code))
    assert {"add", "query", "count", "full_text", "close"} <= {one.name for one in offered}


def options_of(function):
    return [
        (one.name, one.default)
        for one in inspect.signature(function).parameters.values()
        if one.kind is inspect.Parameter.KEYWORD_ONLY
    ]


def test_help_shows_the_options_that_are_passed_on():
    c = llama_index_clip_ext
    of_retriever = options_of(c.CLIPRetriever)
    assert ("similarity_top_k", 5) in of_retriever
    assert options_of(c.create_retriever) == of_retriever
    assert options_of(c.create_bilingual_retriever)[-len(of_retriever) :] == of_retriever
    assert dict(options_of(c.CLIPVectorStoreIndex.as_retriever)) == {
        **dict(of_retriever),
        "modality": "both",
    }
    of_model = options_of(c.DualEncoderEmbedding)
    assert ("device", "auto") in of_model
    for make in (c.load_embedding, c.CLIPEmbedding, c.ChineseCLIPEmbedding):
        assert options_of(make) == of_model
    assert set(dict(of_model)) == set(dual_encoder.EmbeddingOptions.__annotations__)
    assert set(dict(of_retriever)) == set(retriever.RetrieverOptions.__annotations__)


def test_no_public_function_shows_keywords_without_their_names():
    # LlamaIndex's own, whose keywords its callers pass on.
    allowed = {"acall", "get_text_embedding_batch", "aget_text_embedding_batch"}
    allowed |= set(vars(llama_index_clip_ext.CLIPVectorStoreIndex)) - {"as_retriever"}
    for name in llama_index_clip_ext.__all__:
        thing = getattr(llama_index_clip_ext, name)
        members = [(name, thing)] if inspect.isfunction(thing) else list(vars(thing).items())
        for member, function in members:
            if not inspect.isfunction(function) or member.startswith("_") or member in allowed:
                continue
            kinds = {one.kind for one in inspect.signature(function).parameters.values()}
            assert inspect.Parameter.VAR_KEYWORD not in kinds, f"{name}.{member}"
