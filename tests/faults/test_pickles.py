"""No checkpoint runs code: neither by its pickles, nor by Python files that it brings along."""

import ast
import builtins
import json
import os
import pickle
import shutil
import zipfile
from contextlib import suppress
from pathlib import Path

import checkpoints
import numpy as np
import pytest
import torch
from transformers import CLIPModel, DistilBertModel

import llama_index_clip_ext
from llama_index_clip_ext import CLIPEmbedding, ModelLoadError
from llama_index_clip_ext.checkpoint import find_checkpoint
from llama_index_clip_ext.loading import read_logits


class Bomb:
    """Makes a folder where it is unpickled."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


def plain(bomb, weights, file):
    """A pickle, as old as the format."""
    file.write_bytes(pickle.dumps({**weights, "bomb": bomb}))


def zipped(bomb, weights, file):
    """What torch.save writes."""
    torch.save({**weights, "bomb": bomb}, file)


def legacy(bomb, weights, file):
    """What torch.save wrote before 1.6."""
    torch.save({**weights, "bomb": bomb}, file, _use_new_zipfile_serialization=False)


def script(bomb, weights, file):
    """What torch.save writes, made to look like TorchScript, which has a loader of its own."""
    torch.save({**weights, "bomb": bomb}, file)
    with zipfile.ZipFile(file, "a") as archive:
        archive.writestr("archive/constants.pkl", pickle.dumps(bomb))


FORMS = [zipped, plain, legacy, script]


@pytest.fixture
def marker(tmp_path):
    return tmp_path / "somebody got in"


@pytest.fixture(scope="module")
def tower_dir(tmp_path_factory):
    return checkpoints.make_text_tower(tmp_path_factory.mktemp("tower"))


def armed(folder, form, marker, *, sharded=False):
    """Put a folder's weights into a pickle, with a bomb beside them."""
    model_class = DistilBertModel if "distil" in (folder / "config.json").read_text() else CLIPModel
    weights = model_class.from_pretrained(folder).state_dict()
    (folder / "model.safetensors").unlink()
    if not sharded:
        form(Bomb(marker), weights, folder / "pytorch_model.bin")
        return
    shard = "pytorch_model-00001-of-00001.bin"
    form(Bomb(marker), weights, folder / shard)
    index = {"metadata": {}, "weight_map": dict.fromkeys(weights, shard)}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))


def ask_image(folder):
    CLIPEmbedding(folder).get_image_embedding(np.zeros((8, 8, 3), dtype=np.uint8))


def ask_text(folder):
    CLIPEmbedding(folder).get_text_embedding("a cat")


def ask_scale(folder):
    read_logits(find_checkpoint(folder))


WAYS = [(ask, form) for form in FORMS for ask in (ask_image, ask_text, ask_scale)]


@pytest.mark.parametrize(
    ("layout", "ask", "form"),
    [
        *(("plain", *way) for way in WAYS),
        *((layout, *way) for way in WAYS[:3] for layout in ("sharded", "sentence-transformers")),
    ],
)
def test_weights_of_either_tower(layout, ask, form, clip_dir, marker, tmp_path, tally):
    folder = tmp_path / "model"
    if layout == "sentence-transformers":
        folder.mkdir()
        checkpoints.make_sentence_transformers(folder, clip_dir)
        armed(folder / "0_CLIPModel", form, marker)
    else:
        shutil.copytree(clip_dir, folder)
        armed(folder, form, marker, sharded=layout == "sharded")
    refused(lambda: ask(folder), marker, tally)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("place", ["transformer", "dense"])
def test_weights_of_a_text_tower_of_its_own(
    place, form, clip_dir, tower_dir, marker, tmp_path, tally
):
    folder = tmp_path / "tower"
    shutil.copytree(tower_dir, folder)
    if place == "transformer":
        armed(folder, form, marker)
    else:
        dense = folder / "2_Dense" / "pytorch_model.bin"
        form(Bomb(marker), torch.load(dense, weights_only=True), dense)
    model = CLIPEmbedding(clip_dir, text_model_name=folder)
    refused(lambda: model.get_text_embedding("a cat"), marker, tally)


@pytest.mark.parametrize("kind", ["tokenizer", "text tower", "config"])
def test_code_that_a_checkpoint_brings_along(
    kind, clip_dir, tower_dir, marker, tmp_path, tally, monkeypatch
):
    """transformers would ask on the terminal whether to run it, and wait for an answer."""
    asked = []
    monkeypatch.setattr(builtins, "input", lambda prompt="": asked.append(prompt) or "y")
    model, tower = tmp_path / "model", tmp_path / "tower"
    shutil.copytree(clip_dir, model)
    shutil.copytree(tower_dir, tower)
    evil = f"import os\nos.mkdir({str(marker)!r})\n"
    (model / "evil.py").write_text(evil)
    (tower / "evil.py").write_text(evil)
    if kind == "tokenizer":
        change(model / "tokenizer_config.json", "AutoTokenizer", ["evil.T", None])
        change(model / "tokenizer_config.json", None, {"tokenizer_class": "EvilTokenizer"})
    elif kind == "text tower":
        change(tower / "config.json", "AutoModel", "evil.M", "AutoConfig", "evil.C")
        change(tower / "config.json", None, {"model_type": "evil"})
    else:
        change(model / "config.json", "AutoConfig", "evil.C", "AutoModel", "evil.M")

    def use():
        text_model_name = tower if kind == "text tower" else None
        CLIPEmbedding(model, text_model_name=text_model_name).get_text_embedding("a cat")

    if kind == "config":
        use()  # Of an architecture that transformers has itself, nothing else is taken.
        tally("checkpoints that bring code", tried=1, let_in=marker.exists())
    else:
        refused(use, marker, tally)
    assert not asked
    assert not marker.exists()


def change(file, *entries):
    """Write into a JSON file: what ``auto_map`` says, or other keys after a ``None``."""
    content = json.loads(file.read_text())
    if entries[0] is None:
        content |= entries[1]
    else:
        content["auto_map"] = dict(zip(entries[::2], entries[1::2], strict=True))
    file.write_text(json.dumps(content))


def refused(use, marker, tally):
    """Expect an error that names the model, and that nothing ran."""
    try:
        use()
        error = None
    except Exception as err:
        error = err
    tally("checkpoints that bring code", tried=1, let_in=marker.exists())
    assert not marker.exists()
    assert isinstance(error, ModelLoadError), repr(error)


def test_a_bomb_goes_off_where_it_may(marker, tmp_path):
    """Else nothing was tried above. The last form is read by torch.jit alone, which runs none."""
    for form in FORMS[:-1]:
        form(Bomb(marker), {}, tmp_path / "bomb")
        with suppress(RuntimeError):  # A plain pickle ends too soon for torch.
            torch.load(tmp_path / "bomb", weights_only=False)
        marker.rmdir()


# The source.

PACKAGE = Path(llama_index_clip_ext.__file__).parent
# Calls that run, or may run, what they read.
DANGEROUS = {
    *("eval", "exec", "compile", "__import__", "execfile", "input"),
    *("pickle.load", "pickle.loads", "pickle.Unpickler", "marshal.load", "marshal.loads"),
    *("shelve.open", "joblib.load", "dill.load", "dill.loads", "cloudpickle.load"),
    *("cloudpickle.loads", "pd.read_pickle", "pandas.read_pickle", "jsonpickle.decode"),
    *("yaml.load", "yaml.unsafe_load", "yaml.full_load", "torch.jit.load", "torch.hub.load"),
    *("os.system", "os.popen", "subprocess.run", "subprocess.Popen", "subprocess.call"),
    *("runpy.run_path", "runpy.run_module", "tarfile.open", "shutil.unpack_archive"),
}
# Calls that are safe with one of their arguments only.
NEEDS = {
    "torch.load": ("weights_only", True),
    "np.load": ("allow_pickle", False),
    "numpy.load": ("allow_pickle", False),
    "AutoTokenizer.from_pretrained": ("trust_remote_code", False),
    "AutoConfig.from_pretrained": ("trust_remote_code", False),
    "AutoModel.from_pretrained": ("trust_remote_code", False),
    "model_class.from_pretrained": ("trust_remote_code", False),
}
NEVER_SO = {("trust_remote_code", True), ("weights_only", False), ("allow_pickle", True)}


def dangers(source):
    """Return the calls of a source that run what they read, or may."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call):
            continue
        name = ast.unparse(node.func)
        given = {
            (keyword.arg, keyword.value.value)
            for keyword in node.keywords
            if isinstance(keyword.value, ast.Constant)
        }
        tail = ".".join(name.split(".")[-2:])
        is_unsafe = tail in NEEDS and NEEDS[tail] not in given
        if name in DANGEROUS or is_unsafe or given & NEVER_SO:
            found.append(f"{node.lineno}: {ast.unparse(node)}")
    return found


def test_nothing_in_the_package_runs_what_it_reads(tally):
    files = sorted(PACKAGE.rglob("*.py"))
    found = [
        f"{file.name}:{danger}"
        for file in files
        for danger in dangers(file.read_text(encoding="utf-8"))
    ]
    tally("calls that run what they read, in the source", tried=len(files), let_in=len(found))
    assert found == []


@pytest.mark.parametrize(
    "planted",
    [
        "pickle.loads(content)",
        "torch.load(file)",
        "torch.load(file, weights_only=False)",
        "torch.load(file, weights_only=chosen)",
        "yaml.load(stream)",
        "eval(text)",
        "exec(text)",
        "np.load(file)",
        "np.load(file, allow_pickle=True)",
        "transformers.AutoTokenizer.from_pretrained(folder)",
        "CLIPModel.from_pretrained(folder, trust_remote_code=True)",
        "subprocess.run(command)",
    ],
)
def test_a_planted_call_is_found(planted):
    assert dangers(f"def f():\n    return {planted}\n")
