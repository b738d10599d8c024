"""A checkpoint's files are found, on disk or on a hub, and told from what would not work."""

from __future__ import annotations

import hashlib
import http.server
import json
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import hub
import pytest
from checkpoints import CHINESE_CLIP_PREPROCESSOR, CLIP_PREPROCESSOR

import llama_index_clip_ext
from llama_index_clip_ext import CLIPEmbedding
from llama_index_clip_ext.architectures import ARCHITECTURES
from llama_index_clip_ext.checkpoint import Checkpoint, download_model, find_checkpoint
from llama_index_clip_ext.errors import ModelLoadError, UnknownModelError

NAME, REPOSITORY = "clip-ViT-B-32", "sentence-transformers/clip-ViT-B-32"
CONFIG = {"model_type": "clip", "projection_dim": 16, "text_config": {}}


def write(directory: Path, **files) -> Path:
    """Write the least that is taken for a CLIP checkpoint; ``None`` leaves a file out.

    Names are given with ``__`` for the dot.
    """
    default = {"config__json": CONFIG, "preprocessor_config__json": CLIP_PREPROCESSOR}
    default |= {"vocab__json": {"a</w>": 0}, "merges__txt": b"#version: 0.2"}
    directory.mkdir(parents=True, exist_ok=True)
    for name, content in {**default, "model__safetensors": b"weights", **files}.items():
        if content is not None:
            data = content if isinstance(content, bytes) else json.dumps(content).encode()
            (directory / name.replace("__", ".")).write_bytes(data)
    return directory


def module(kind: str, path: str = "") -> dict:
    return {"idx": 0, "name": "0", "path": path, "type": f"sentence_transformers.models.{kind}"}


# Both layouts.


def test_plain_directory(clip_dir):
    assert find_checkpoint(clip_dir) == Checkpoint(
        name=str(clip_dir),
        directory=clip_dir.resolve(),
        architecture=ARCHITECTURES["clip"],
        dim=16,
        context_length=77,
        reads_english_only=True,
        revision="",
    )
    assert find_checkpoint(clip_dir).family == "clip"


def test_layout_of_sentence_transformers(st_dir):
    checkpoint = find_checkpoint(str(st_dir))
    assert checkpoint.directory == st_dir.resolve() / "0_CLIPModel"
    assert (checkpoint.family, checkpoint.dim, checkpoint.context_length) == ("clip", 16, 77)
    assert checkpoint.weight_files == [st_dir.resolve() / "0_CLIPModel" / "model.safetensors"]


def test_chinese_clip(chinese_clip_dir):
    checkpoint = find_checkpoint(chinese_clip_dir)
    assert checkpoint.directory == chinese_clip_dir.resolve()
    assert (checkpoint.family, checkpoint.dim) == ("chinese-clip", 16)
    # Its tokenizer and its positions allow 512.
    assert checkpoint.context_length == 52


@pytest.mark.parametrize(
    ("config", "dim", "context"),
    [
        ({"model_type": "clip"}, 512, 77),
        ({"model_type": "clip", "projection_dim": 768, "text_config": None}, 768, 77),
        ({"model_type": "clip", "text_config": {"max_position_embeddings": 248}}, 512, 248),
        ({"model_type": "chinese_clip", "projection_dim": 1024}, 1024, 52),
        ({"model_type": "chinese_clip", "text_config": {"max_position_embeddings": 32}}, 512, 32),
    ],
)
def test_dimension_and_context_come_from_the_configuration(config, dim, context, tmp_path):
    checkpoint = find_checkpoint(write(tmp_path / "model", config__json=config))
    assert (checkpoint.dim, checkpoint.context_length) == (dim, context)


@pytest.mark.parametrize(
    "modules",
    [
        [module("CLIPModel", "0_CLIPModel")],
        [module("CLIPModel", "0_CLIPModel"), module("Normalize", "1_Normalize")],
        [module("Transformer", "0_CLIPModel"), module("Normalize", "1_Normalize")],
    ],
    ids=["CLIPModel", "CLIPModel, Normalize", "Transformer, Normalize"],
)
def test_pipeline_of_one_encoder_is_read(modules, tmp_path):
    write(tmp_path / "model" / "0_CLIPModel")
    (tmp_path / "model" / "modules.json").write_text(json.dumps(modules))
    checkpoint = find_checkpoint(tmp_path / "model")
    assert checkpoint.directory == (tmp_path / "model" / "0_CLIPModel").resolve()


def test_encoder_may_lie_beside_modules_json(tmp_path):
    directory = write(tmp_path / "model", modules__json=[module("CLIPModel")])
    assert find_checkpoint(directory).directory == directory.resolve()


def test_safetensors_come_before_pickles(tmp_path):
    both = write(tmp_path / "both", pytorch_model__bin=b"pickled")
    assert find_checkpoint(both).weight_files == [both.resolve() / "model.safetensors"]
    old = write(tmp_path / "old", model__safetensors=None, pytorch_model__bin=b"pickled")
    assert find_checkpoint(old).weight_files == [old.resolve() / "pytorch_model.bin"]


# What would not work.

DENSE = [module("CLIPModel", "0_CLIPModel"), module("Dense", "1_Dense")]
BROKEN = {
    "no config": ({"config__json": None}, "config.json is missing"),
    "config is no JSON": ({"config__json": b'{"model_type": "cl'}, "cannot read .*config.json"),
    "config is not UTF-8": ({"config__json": b"\xff\xfe"}, "cannot read .*config.json"),
    "config is a list": ({"config__json": []}, "config.json"),
    "another model": (
        {"config__json": {"model_type": "bert"}},
        "'bert' model; .*clip.*config.json",
    ),
    "no model type": ({"config__json": {}}, "None model; supported are: clip, chinese_clip"),
    "no preprocessor": ({"preprocessor_config__json": None}, "processor_config.json is missing"),
    "preprocessor is no JSON": (
        {"preprocessor_config__json": b"{"},
        "cannot read .*preprocessor_config.json",
    ),
    "preprocessor is a list": ({"preprocessor_config__json": []}, "preprocessor_config.json"),
    "no weights": ({"model__safetensors": None}, "no weights in .*safetensors"),
    "other weights": (
        {"model__safetensors": None, "flax_model__msgpack": b""},
        r"no weights in .*safetensors or .*pytorch_model\*\.bin",
    ),
    "another module": ({"modules__json": DENSE}, r"\['CLIPModel', 'Dense'\].*one CLIP module"),
    "no modules": ({"modules__json": []}, "one CLIP module"),
    "modules are no JSON": ({"modules__json": b"["}, "cannot read .*modules.json"),
    "modules of another form": ({"modules__json": {"0": "CLIPModel"}}, "modules.json"),
}


@pytest.mark.parametrize("what", BROKEN)
def test_broken_checkpoint_names_the_model_and_the_file(what, tmp_path):
    files, message = BROKEN[what]
    directory = write(tmp_path / "model", **files)
    with pytest.raises(ModelLoadError, match=message) as caught:
        find_checkpoint(directory)
    assert repr(str(directory)) in str(caught.value)
    assert isinstance(caught.value, OSError)


def test_empty_directory(tmp_path):
    with pytest.raises(ModelLoadError, match=r"not a complete checkpoint, config\.json is missing"):
        find_checkpoint(tmp_path)


# The space of its vectors.


def test_same_weights_in_two_layouts_are_one_space(clip_dir, st_dir):
    one, other = find_checkpoint(clip_dir).space, find_checkpoint(st_dir).space
    assert (one.weights, one.preprocessing, one.dim) == (
        other.weights,
        other.preprocessing,
        other.dim,
    )
    assert len(one.weights) == len(one.preprocessing) == 64


def test_other_weights_are_another_space(clip_dir, other_clip_dir):
    one, other = find_checkpoint(clip_dir).space, find_checkpoint(other_clip_dir).space
    assert one.weights != other.weights
    assert one.preprocessing == other.preprocessing


def preprocessing(directory: Path, settings: dict) -> str:
    write(directory, preprocessor_config__json=settings)
    return find_checkpoint(directory).space.preprocessing


@pytest.mark.parametrize(
    "change",
    [
        {"size": {"shortest_edge": 224}},
        {"crop_size": {"height": 224, "width": 224}},
        {"image_processor_type": "CLIPImageProcessor"},
        # What the class does without being told, and writes down when it is saved.
        {"do_rescale": True, "rescale_factor": 1 / 255},
    ],
    ids=lambda change: next(iter(change)),
)
def test_another_spelling_is_the_same_preprocessing(change, tmp_path):
    same = preprocessing(tmp_path / "1", CLIP_PREPROCESSOR)
    assert preprocessing(tmp_path / "2", {**CLIP_PREPROCESSOR, **change}) == same


@pytest.mark.parametrize(
    "change",
    [
        {"size": 336},
        {"crop_size": 200},
        {"resample": 2},
        {"do_center_crop": False},
        {"image_mean": [0.5, 0.5, 0.5]},
        CHINESE_CLIP_PREPROCESSOR,
    ],
    ids=lambda change: next(iter(change)) if len(change) == 1 else "all",
)
def test_other_settings_are_another_preprocessing(change, tmp_path):
    same = preprocessing(tmp_path / "1", CLIP_PREPROCESSOR)
    assert preprocessing(tmp_path / "2", {**CLIP_PREPROCESSOR, **change}) != same


def test_preprocessing_in_the_processor_s_file(tmp_path):
    """As transformers 5 saves a whole processor."""
    new = write(
        tmp_path / "new",
        preprocessor_config__json=None,
        processor_config__json={"image_processor": CLIP_PREPROCESSOR},
    )
    old = preprocessing(tmp_path / "old", CLIP_PREPROCESSOR)
    assert find_checkpoint(new).space.preprocessing == old


@pytest.mark.parametrize("family", ["clip", "chinese-clip"])
def test_checkpoint_saved_again_by_transformers_is_the_same_space(
    family, clip_dir, chinese_clip_dir, tmp_path
):
    from transformers import AutoTokenizer, CLIPImageProcessor
    from transformers.models.chinese_clip import ChineseCLIPImageProcessor

    source = clip_dir if family == "clip" else chinese_clip_dir
    kind = CLIPImageProcessor if family == "clip" else ChineseCLIPImageProcessor
    kind.from_pretrained(source).save_pretrained(tmp_path / "again")
    AutoTokenizer.from_pretrained(source).save_pretrained(tmp_path / "again")
    for name in ("config.json", "model.safetensors"):
        shutil.copy(source / name, tmp_path / "again")
    before, after = find_checkpoint(source).space, find_checkpoint(tmp_path / "again").space
    assert after.preprocessing == before.preprocessing
    assert after.weights == before.weights


def test_every_weight_file_counts(tmp_path):
    names = {"model-1__safetensors": b"1", "model-2__safetensors": b"2"}
    one = write(tmp_path / "1", model__safetensors=None, **names)
    other = write(
        tmp_path / "2", model__safetensors=None, **{**names, "model-2__safetensors": b"3"}
    )
    assert find_checkpoint(one).space.weights != find_checkpoint(other).space.weights


# The hub's cache. It names a large file by its SHA-256 and links to it.


def weights_linked_to(directory: Path, blob: Path) -> str:
    write(directory, model__safetensors=None)
    (directory / "model.safetensors").symlink_to(blob)
    return find_checkpoint(directory).space.weights


def test_name_of_a_blob_saves_reading_it(tmp_path):
    """The blob's content is not that of its name here, so that it shows which was used."""
    plain = find_checkpoint(write(tmp_path / "plain", model__safetensors=b"weights"))
    blob = tmp_path / "blobs" / hashlib.sha256(b"weights").hexdigest()
    blob.parent.mkdir()
    blob.write_bytes(b"other bytes")
    assert weights_linked_to(tmp_path / "linked", blob) == plain.space.weights


def test_blob_that_is_shared_by_repositories_counts_by_its_own_name(tmp_path):
    """huggingface_hub 2 links a repository's blob to a shared one, named by Xet's hash."""
    plain = find_checkpoint(write(tmp_path / "plain", model__safetensors=b"weights"))
    shared = tmp_path / "blobs" / "ab" / ("ab" * 32)
    shared.parent.mkdir(parents=True)
    shared.write_bytes(b"weights")
    blob = tmp_path / "models--a--b" / "blobs" / hashlib.sha256(b"weights").hexdigest()
    blob.parent.mkdir(parents=True)
    blob.symlink_to(shared)
    assert weights_linked_to(tmp_path / "linked", blob) == plain.space.weights


def test_other_names_are_not_taken_for_a_hash(tmp_path):
    plain = find_checkpoint(write(tmp_path / "plain", model__safetensors=b"weights"))
    blob = tmp_path / "blobs" / hashlib.sha1(b"weights").hexdigest()
    blob.parent.mkdir()
    blob.write_bytes(b"weights")
    assert weights_linked_to(tmp_path / "linked", blob) == plain.space.weights


def cache(folder: Path, source: Path, commit: str = hub.COMMIT) -> Path:
    """Put a checkpoint into a cache as huggingface_hub lays it out; return the snapshot."""
    repository = folder / "models--sentence-transformers--clip-ViT-B-32"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(commit)
    shutil.copytree(source, repository / "snapshots" / commit)
    return repository / "snapshots" / commit


@pytest.mark.parametrize("local_files_only", [False, True])
def test_offline_with_nothing_cached_tells_the_ways_out(local_files_only, tmp_path):
    with pytest.raises(ModelLoadError) as caught:
        find_checkpoint(NAME, cache_folder=tmp_path, local_files_only=local_files_only)
    message = str(caught.value)
    for part in (
        f"'{NAME}' ({REPOSITORY}) is not in the cache {tmp_path}",
        f"(1) on a machine with access, run clip-ext download {NAME} --local-dir DIR",
        "(2) name a mirror that works, by HF_ENDPOINT or endpoint",
        "(3) where there is access, do not set HF_HUB_OFFLINE or local_files_only",
    ):
        assert part in message


@pytest.mark.parametrize("name", [NAME, NAME.upper(), REPOSITORY])
def test_cached_snapshot_is_found_offline(name, st_dir, tmp_path):
    snapshot = cache(tmp_path, st_dir)
    checkpoint = find_checkpoint(name, cache_folder=tmp_path)
    assert checkpoint.directory == snapshot / "0_CLIPModel"
    assert checkpoint.revision == checkpoint.space.revision == hub.COMMIT
    assert (checkpoint.name, checkpoint.dim) == (NAME, 16)
    for options in ({"local_files_only": True}, {"revision": hub.COMMIT}, {"revision": "main"}):
        assert find_checkpoint(name, cache_folder=str(tmp_path), **options) == checkpoint


def test_other_revision_is_not_the_one_cached(st_dir, tmp_path):
    cache(tmp_path, st_dir)
    with pytest.raises(ModelLoadError, match="not in the cache"):
        find_checkpoint(NAME, cache_folder=tmp_path, revision="f" * 40)


@pytest.mark.parametrize(
    ("lost", "message"), [("model.safetensors", "no weights"), ("config.json", "config.json")]
)
def test_cached_snapshot_that_was_cut_short_is_refused(lost, message, st_dir, tmp_path):
    (cache(tmp_path, st_dir) / "0_CLIPModel" / lost).unlink()
    with pytest.raises(ModelLoadError, match=message):
        find_checkpoint(NAME, cache_folder=tmp_path)


def test_name_that_the_hub_would_not_accept(tmp_path):
    for name in ("owner/a--b", "模型/名字"):
        with pytest.raises((ModelLoadError, UnknownModelError)):
            find_checkpoint(name, cache_folder=tmp_path)


def test_directory_is_not_downloaded(clip_dir):
    with pytest.raises(ModelLoadError, match="nothing to download"):
        download_model(str(clip_dir))


# Downloads, from a mirror on this machine. In a process of their own, because huggingface_hub reads
# HF_HUB_OFFLINE and HF_ENDPOINT once.

SCRIPT = """
import json, sys
from llama_index_clip_ext.checkpoint import download_model, find_checkpoint
from llama_index_clip_ext.errors import ModelLoadError
call, options = json.loads(sys.argv[1])
try:
    if call == "download":
        print(json.dumps({"folder": str(download_model(**options))}))
    else:
        found = find_checkpoint(**options)
        print(json.dumps({"folder": str(found.directory), "revision": found.revision,
                          "weights": found.space.weights}))
except ModelLoadError as err:
    print(json.dumps({"error": str(err)}))
"""


def run(call: str, *, env: dict[str, str] | None = None, **options) -> dict:
    settings = {
        **{key: value for key, value in os.environ.items() if not key.startswith("HF_")},
        "HF_HUB_OFFLINE": "0",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HOME": str(Path.cwd() / "home"),
        "NO_PROXY": "127.0.0.1",
        "no_proxy": "127.0.0.1",
        "PYTHONPATH": str(Path(llama_index_clip_ext.__file__).parents[1]),
        **(env or {}),
    }
    command = [sys.executable, "-c", SCRIPT, json.dumps([call, options], default=str)]
    done = subprocess.run(command, env=settings, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture(scope="session")
def published(st_dir) -> dict[str, bytes]:
    """The files of sentence-transformers/clip-ViT-B-32, its exports too."""
    return {
        **hub.read_files(st_dir),
        "README.md": b"# A tiny CLIP",
        "0_CLIPModel/pytorch_model.bin": b"a pickle that nobody should read",
        "onnx/model.onnx": b"an export",
        "onnx/config.json": b"{}",
        "openvino/openvino_model.bin": b"an export",
        "0_CLIPModel/onnx/config.json": b"{}",
        "tf_model.h5": b"an export",
    }


def test_download_into_a_folder(published, clip, tmp_path):
    target = tmp_path / "copy"
    with hub.serve(REPOSITORY, published) as server:
        answer = run("download", name=NAME, local_dir=target, endpoint=server.endpoint)
    assert answer == {"folder": str(target)}
    unwanted = ("onnx/", "openvino/", "tf_model", "0_CLIPModel/onnx/", "0_CLIPModel/pytorch_model")
    wanted = {name for name in published if not name.startswith(unwanted)}
    assert set(server.fetched) == wanted
    files = {k: v for k, v in hub.read_files(target).items() if not k.startswith(".cache/")}
    assert files == {name: published[name] for name in wanted}
    # The folder is a model, and the same one.
    copy = CLIPEmbedding(target)
    assert copy.get_text_embedding("a red circle") == pytest.approx(
        clip.get_text_embedding("a red circle"), abs=1e-6
    )


def test_download_is_continued(published, tmp_path):
    target = tmp_path / "copy"
    with hub.serve(REPOSITORY, published) as server:
        options = {"name": NAME, "local_dir": target, "endpoint": server.endpoint}
        run("download", **options)
        (target / "0_CLIPModel" / "vocab.json").unlink()
        server.fetched.clear()
        run("download", **options)
    assert server.fetched == ["0_CLIPModel/vocab.json"]


def test_mirror_of_the_environment_and_then_no_request(published, tmp_path):
    with hub.serve(REPOSITORY, published) as server:
        env = {"HF_ENDPOINT": server.endpoint}
        first = run("find", name=NAME, cache_folder=tmp_path / "cache", env=env)
        assert first["revision"] == hub.COMMIT
        assert "0_CLIPModel/model.safetensors" in server.fetched
        digest = hashlib.sha256(published["0_CLIPModel/model.safetensors"]).hexdigest()
        assert first["weights"] == hashlib.sha256(digest.encode()).hexdigest()
        # What is cached is used without asking.
        server.asked.clear()
        assert run("find", name=NAME, cache_folder=tmp_path / "cache", env=env) == first
        assert server.asked == []


def test_tag_of_a_mirror(published, tmp_path):
    with hub.serve(REPOSITORY, published, tag="v1") as server:
        options = {"name": NAME, "cache_folder": tmp_path, "endpoint": server.endpoint}
        found = run("find", **options, revision="v1")
        assert found["revision"] == hub.COMMIT
        missing = run("find", **options, revision="v2")
    assert f"cannot download '{NAME}' ({REPOSITORY})" in missing["error"]
    assert "revision" in missing["error"]


def test_pickled_weights_are_fetched_where_there_are_no_others(published, clip, tmp_path):
    import torch

    weights = tmp_path / "pytorch_model.bin"
    torch.save(clip_weights(published, tmp_path), weights)
    files = {name: data for name, data in published.items() if not name.endswith(".safetensors")}
    files["0_CLIPModel/pytorch_model.bin"] = weights.read_bytes()
    with hub.serve(REPOSITORY, files) as server:
        target = tmp_path / "copy"
        answer = run("download", name=NAME, local_dir=target, endpoint=server.endpoint)
    assert answer == {"folder": str(target)}
    assert "0_CLIPModel/pytorch_model.bin" in server.fetched
    assert not [name for name in server.fetched if name.startswith(("onnx", "openvino", "tf_"))]
    assert CLIPEmbedding(target).get_text_embedding("a red circle") == pytest.approx(
        clip.get_text_embedding("a red circle"), abs=1e-6
    )


def clip_weights(published: dict[str, bytes], folder: Path) -> dict:
    from safetensors.torch import load_file

    (folder / "model.safetensors").write_bytes(published["0_CLIPModel/model.safetensors"])
    return load_file(folder / "model.safetensors")


def test_pickled_weights_of_a_plain_repository(tmp_path):
    directory = write(tmp_path / "plain", model__safetensors=None, pytorch_model__bin=b"pickled")
    with hub.serve("owner/own-clip", hub.read_files(directory)) as server:
        options = {"cache_folder": tmp_path / "cache", "endpoint": server.endpoint}
        found = run("find", name="owner/own-clip", **options)
        assert (Path(found["folder"]) / "pytorch_model.bin").read_bytes() == b"pickled"
        server.asked.clear()
        assert run("find", name="owner/own-clip", **options) == found
        assert server.asked == []


def test_local_files_only_asks_nobody(published, tmp_path):
    with hub.serve(REPOSITORY, published) as server:
        options = {"name": NAME, "cache_folder": tmp_path, "endpoint": server.endpoint}
        answer = run("find", **options, local_files_only=True)
        offline = run("find", **options, env={"HF_HUB_OFFLINE": "1"})
    assert "not in the cache" in answer["error"]
    assert "not in the cache" in offline["error"]
    assert server.asked == []


def test_unknown_repository(published, tmp_path):
    with hub.serve(REPOSITORY, published) as server:
        options = {"cache_folder": tmp_path, "endpoint": server.endpoint}
        answer = run("find", name="owner/missing", **options)
    assert "cannot download 'owner/missing'" in answer["error"]


def test_repository_of_another_model(tmp_path):
    files = {"config.json": b'{"model_type": "bert"}', "model.safetensors": b""}
    with hub.serve("owner/bert", files) as server:
        options = {"cache_folder": tmp_path, "endpoint": server.endpoint}
        answer = run("find", name="owner/bert", **options)
    assert "'owner/bert'" in answer["error"]
    assert "'bert' model; supported are: clip, chinese_clip" in answer["error"]


def test_mirror_that_is_down(tmp_path):
    with hub.serve(REPOSITORY, {}) as server:
        pass
    options = {"cache_folder": tmp_path, "endpoint": server.endpoint}
    answer = run("find", name=NAME, **options)
    assert f"'{NAME}' ({REPOSITORY}) is not in the cache {tmp_path}" in answer["error"]


def test_mirror_that_is_none(tmp_path):
    """A captive portal answers every address with its own page."""

    class Portal(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            self.end_headers()
            self.wfile.write(b"<html>please log in</html>")

        do_HEAD = do_GET  # noqa: N815

        def log_message(self, *args: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Portal) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        endpoint = f"http://127.0.0.1:{server.server_port}"
        answer = run("find", name=NAME, cache_folder=tmp_path, endpoint=endpoint)
        server.shutdown()
    assert NAME in answer["error"]


@pytest.mark.parametrize("family", ["clip", "chinese_clip"])
def test_a_tokenizer_without_its_vocabulary_is_refused(family, tmp_path):
    """transformers 5 would make one up, in which all texts are nearly alike."""
    directory = write(tmp_path / "model", vocab__json=None, config__json={"model_type": family})
    name = "vocab.json" if family == "clip" else "vocab.txt"
    with pytest.raises(ModelLoadError, match=f"the tokenizer's {name} .* are missing"):
        find_checkpoint(directory)


def test_a_vocabulary_without_its_merges_is_refused(tmp_path):
    with pytest.raises(ModelLoadError, match=r"vocab\.json and merges\.txt .* are missing"):
        find_checkpoint(write(tmp_path / "model", merges__txt=None))


def test_another_vocabulary_is_another_space(tmp_path):
    first = find_checkpoint(write(tmp_path / "1", vocab__json={"a": 0, "b": 1})).space
    other = find_checkpoint(write(tmp_path / "2", vocab__json={"a": 1, "b": 0})).space
    assert first.weights == other.weights
    assert first.preprocessing != other.preprocessing


def test_weights_of_other_programs_do_not_count(tmp_path):
    directory = write(
        tmp_path / "model",
        model__safetensors=None,
        pytorch_model__bin=b"pickled",
        open_clip_model__safetensors=b"another program's",
    )
    assert [file.name for file in find_checkpoint(directory).weight_files] == ["pytorch_model.bin"]
