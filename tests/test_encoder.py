import json
import logging
import pickle
import shutil
import threading
from copy import deepcopy
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from llama_index_clip_ext import devices
from llama_index_clip_ext import encoder as encoder_module
from llama_index_clip_ext.checkpoint import find_checkpoint
from llama_index_clip_ext.encoder import Encoder
from llama_index_clip_ext.errors import EmbeddingError, ModelLoadError, TextTooLongError

CONTEXT = {"clip": 77, "chinese-clip": 52}


@pytest.fixture(scope="module", params=["clip", "chinese-clip"])
def encoder(request, clip_dir, chinese_clip_dir):
    return Encoder(find_checkpoint(clip_dir if request.param == "clip" else chinese_clip_dir))


@pytest.fixture
def colours():
    return [Image.new("RGB", (50, 40), name) for name in ("red", "green", "blue", "white", "black")]


def test_rows_are_unit_float32_in_order_whatever_the_batch_size(encoder, colours):
    one_by_one = np.concatenate([encoder.encode_images([i], batch_size=1) for i in colours])
    assert one_by_one.dtype == np.float32
    assert one_by_one.shape == (5, 16)
    np.testing.assert_allclose(np.linalg.norm(one_by_one, axis=1), 1, atol=1e-5)
    for batch_size in (2, 5, 64):
        rows = encoder.encode_images(iter(colours), batch_size=batch_size)
        np.testing.assert_allclose(rows, one_by_one, atol=1e-5)


def test_texts_of_mixed_length_are_embedded_as_one_by_one(encoder):
    texts = ["a", "", "a red circle on a white background " * 3, "红色的圆形", "🙂"]
    rows = encoder.encode_texts(texts, batch_size=64)
    alone = np.concatenate([encoder.encode_texts([text], batch_size=1) for text in texts])
    np.testing.assert_allclose(rows, alone, atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-5)


def test_nothing_in_nothing_out(encoder):
    assert encoder.encode_texts([], batch_size=4).shape == (0, 16)
    assert encoder.encode_images([], batch_size=4).shape == (0, 16)


def test_batch_size_must_be_positive(encoder):
    with pytest.raises(ValueError, match="batch_size is 0, expected at least 1"):
        encoder.encode_texts(["a"], batch_size=0)


def test_a_text_must_be_a_str(encoder):
    with pytest.raises(TypeError, match="text 1 is a PosixPath, expected str"):
        encoder.encode_texts(["a", __import__("pathlib").Path("a.jpg")], batch_size=4)


def test_long_text_is_its_own_prefix_with_the_end_mark(encoder, caplog):
    context = encoder.checkpoint.context_length
    assert context == CONTEXT[encoder.checkpoint.family]
    # One token each in both vocabularies: the context holds all but its two special tokens.
    words = ["cat"] * 1000
    encoder.n_truncated = 0
    with caplog.at_level(logging.WARNING):
        long = encoder.encode_texts([" ".join(words), "cat", " ".join(words)], batch_size=4)
    prefix = encoder.encode_texts([" ".join(words[: context - 2])], batch_size=4)
    np.testing.assert_allclose(long[[0]], prefix, atol=1e-5)
    np.testing.assert_allclose(long[[2]], prefix, atol=1e-5)
    assert encoder.n_truncated == 2
    assert len(caplog.records) == 1
    message = caplog.records[0].getMessage()
    assert f"text 0 has 1002 tokens and was cut to the {context}" in message


def test_long_text_can_be_refused_and_says_which(clip_dir):
    encoder = Encoder(find_checkpoint(clip_dir), on_long_text="error")
    encoder.encode_texts(["cat " * 75], batch_size=4)
    with pytest.raises(TextTooLongError, match="text 2 has 78 tokens, .* reads 77") as caught:
        encoder.encode_texts(["a", "b", "cat " * 76], batch_size=2)
    assert (caught.value.index, caught.value.tokens, caught.value.context_length) == (2, 78, 77)


def test_the_checkpoints_own_processor_decides(clip_dir, tmp_path):
    """Chinese-CLIP squashes, CLIP crops: shown by giving one checkpoint the other's way."""
    squash = shutil.copytree(clip_dir, tmp_path / "squash")
    settings = (squash / "preprocessor_config.json").read_text()
    settings = settings.replace('"do_center_crop": true', '"do_center_crop": false')
    settings = settings.replace('"size": 224', '"size": {"height": 224, "width": 224}')
    (squash / "preprocessor_config.json").write_text(settings)
    # A 4:1 picture whose middle is red and whose ends are blue.
    picture = Image.new("RGB", (400, 100), "blue")
    picture.paste((255, 0, 0), (150, 0, 250, 100))
    red = Image.new("RGB", (100, 100), "red")
    rows = {}
    for name, directory in (("crop", clip_dir), ("squash", squash)):
        rows[name] = Encoder(find_checkpoint(directory)).encode_images([picture, red], batch_size=2)
    # Cropped to the middle, all but a rim of a pixel is red; squashed, three quarters are blue.
    assert rows["crop"][0] @ rows["crop"][1] > 0.99
    assert rows["squash"][0] @ rows["squash"][1] < rows["crop"][0] @ rows["crop"][1] - 0.01


@pytest.mark.parametrize("size", [(1, 1), (1, 300), (300, 1), (3, 3), (1, 20_000)])
def test_thin_pictures_work(encoder, size):
    rows = encoder.encode_images([Image.new("RGB", size, "red")], batch_size=1)
    np.testing.assert_allclose(np.linalg.norm(rows), 1, atol=1e-5)


def test_sixteen_threads_one_load(clip_dir, monkeypatch):
    from transformers import CLIPModel

    loads = []
    load = CLIPModel.from_pretrained.__func__

    def counting(cls, *args, **kwargs):
        loads.append(threading.get_ident())
        return load(cls, *args, **kwargs)

    monkeypatch.setattr(CLIPModel, "from_pretrained", classmethod(counting))
    encoder = Encoder(find_checkpoint(clip_dir))
    barrier = threading.Barrier(16)
    rows = [None] * 16

    def use(number):
        barrier.wait()
        rows[number] = encoder.encode_texts(["a red circle"], batch_size=1)

    threads = [threading.Thread(target=use, args=(number,)) for number in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(loads) == 1
    for row in rows:
        np.testing.assert_array_equal(row, rows[0])


def test_making_an_encoder_loads_nothing(clip_dir, tmp_path):
    copy = shutil.copytree(clip_dir, tmp_path / "copy")
    encoder = Encoder(find_checkpoint(copy))
    (copy / "model.safetensors").unlink()
    with pytest.raises(ModelLoadError):
        encoder.encode_texts(["a"], batch_size=1)


def test_a_missing_weight_is_an_error(clip_dir, tmp_path):
    from safetensors.torch import load_file, save_file

    copy = shutil.copytree(clip_dir, tmp_path / "copy")
    weights = load_file(copy / "model.safetensors")
    del weights["text_projection.weight"]
    save_file(weights, copy / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelLoadError, match=r"1 weights are missing.*text_projection\.weight"):
        Encoder(find_checkpoint(copy)).encode_texts(["a"], batch_size=1)


def test_a_weight_of_another_shape_is_an_error(clip_dir, tmp_path):
    from safetensors.torch import load_file, save_file

    copy = shutil.copytree(clip_dir, tmp_path / "copy")
    weights = load_file(copy / "model.safetensors")
    weights["text_projection.weight"] = torch.zeros(8, 32)
    save_file(weights, copy / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelLoadError, match="text_projection"):
        Encoder(find_checkpoint(copy)).encode_texts(["a"], batch_size=1)


def test_pickled_weights_load_where_there_are_no_safetensors(clip_dir, tmp_path):
    from safetensors.torch import load_file

    copy = shutil.copytree(clip_dir, tmp_path / "copy")
    torch.save(load_file(copy / "model.safetensors"), copy / "pytorch_model.bin")
    (copy / "model.safetensors").unlink()
    expected = Encoder(find_checkpoint(clip_dir)).encode_texts(["a"], batch_size=1)
    rows = Encoder(find_checkpoint(copy)).encode_texts(["a"], batch_size=1)
    np.testing.assert_allclose(rows, expected, atol=1e-6)


def test_a_pickle_that_runs_code_is_not_read(clip_dir, tmp_path):
    copy = shutil.copytree(clip_dir, tmp_path / "copy")
    (copy / "model.safetensors").unlink()
    witness = tmp_path / "witness"

    class Attack:
        def __reduce__(self):
            return (open, (str(witness), "w"))

    torch.save({"x": Attack()}, copy / "pytorch_model.bin")
    with pytest.raises(Exception, match=r"(?i)weights|pickle|cannot load"):
        Encoder(find_checkpoint(copy)).encode_texts(["a"], batch_size=1)
    assert not witness.exists()


def test_half_precision_stays_close_and_comes_back_as_unit_float32(encoder, colours):
    exact = encoder.encode_images(colours, batch_size=5)
    for dtype in ("bfloat16", "float16"):
        half = Encoder(encoder.checkpoint, dtype=dtype)
        rows = half.encode_images(colours, batch_size=5)
        assert rows.dtype == np.float32
        np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-5)
        assert (rows * exact).sum(axis=1).min() > 0.999


class FakeModel:
    """A model that goes to any device, whether there is one or not."""

    def __init__(self, moved=None):
        self.moved = moved if moved is not None else []

    def to(self, *args):
        self.moved.append(args)
        return self


def test_a_device_that_computes_nonsense_is_refused(clip_dir, monkeypatch):
    """The start-up check of a device that is neither CPU nor CUDA, with a device of our making."""
    encoder = Encoder(find_checkpoint(clip_dir), device="mps")
    answers = iter([np.eye(1, 16, dtype=np.float32), np.eye(1, 16, 4, dtype=np.float32)])
    monkeypatch.setattr(encoder, "_read_tower", lambda name, dtype: FakeModel())
    monkeypatch.setattr(encoder, "_probe", lambda name, model: next(answers))
    with pytest.raises(ModelLoadError, match=r"device 'mps' computes wrong .* cosine 0\.0000"):
        encoder.encode_images([Image.new("RGB", (9, 9))], batch_size=1)


@pytest.mark.parametrize("tower", ["text", "image"])
def test_the_probe_agrees_with_itself(encoder, tower):
    probe = encoder._probe(tower, encoder._tower(tower))
    assert probe.shape == (1, 16)
    np.testing.assert_allclose(probe, encoder._probe(tower, encoder._tower(tower)), atol=1e-6)


@pytest.mark.skipif(torch.cuda.is_available(), reason="asks for a CUDA that must be missing")
def test_a_device_that_is_not_there_is_named(clip_dir):
    with pytest.raises(ModelLoadError, match="cannot use device 'cuda'"):
        Encoder(find_checkpoint(clip_dir), device="cuda").encode_texts(["a"], batch_size=1)


@pytest.mark.parametrize(
    ("has_cuda", "has_bfloat16", "is_small", "device", "dtype"),
    [
        (True, True, False, "cuda", torch.float16),
        (True, True, True, "cuda", torch.float32),
        (False, True, False, "cpu", torch.bfloat16),
        (False, True, True, "cpu", torch.float32),
        (False, False, False, "cpu", torch.float32),
    ],
)
def test_auto_is_what_is_fast_and_safe_here(
    clip_dir, monkeypatch, has_cuda, has_bfloat16, is_small, device, dtype
):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: has_cuda)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    monkeypatch.setattr(devices, "has_native_bfloat16", lambda: has_bfloat16)
    if not is_small:
        monkeypatch.setattr(devices, "_SMALL_BYTES", 0)
    moved = []
    encoder = Encoder(find_checkpoint(clip_dir))
    monkeypatch.setattr(encoder, "_read_tower", lambda name, dtype: FakeModel(moved))
    encoder._tower("image")
    assert moved == [(device, dtype)]


def test_int8_is_for_the_cpu(clip_dir):
    encoder = Encoder(find_checkpoint(clip_dir), device="cuda", dtype="int8")
    with pytest.raises(ModelLoadError, match="dtype='int8' runs on the CPU, the device is 'cuda'"):
        encoder.encode_images([Image.new("RGB", (9, 9))], batch_size=1)


@pytest.mark.parametrize("tower", ["text", "image"])
def test_memory_that_runs_out_halves_the_batch(encoder, colours, monkeypatch, caplog, tower):
    """With an out-of-memory error of our making; what fits is kept for the batches to come."""
    encoder = pickle.loads(pickle.dumps(encoder))
    items = colours if tower == "image" else ["red", "green", "blue", "white", "black"]
    encode = encoder.encode_images if tower == "image" else encoder.encode_texts
    expected = encode(items, batch_size=5)
    rows, sizes = encoder._rows, []

    def small(name, tensors):
        size = len(next(iter(tensors.values())))
        sizes.append(size)
        if size > 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB")
        return rows(name, tensors)

    monkeypatch.setattr(encoder, "_rows", small)
    with caplog.at_level(logging.WARNING):
        np.testing.assert_allclose(encode(items, batch_size=5), expected, atol=1e-5)
        np.testing.assert_allclose(encode(items, batch_size=5), expected, atol=1e-5)
    assert sizes == [5, 2, 2, 1, 2, 2, 1]
    (record,) = caplog.records
    assert f"memory ran out with 5 {tower}s at once, going on with 2" in record.getMessage()
    assert "embed_batch_size=2" in record.getMessage()


def test_memory_that_takes_not_even_one_is_an_error(encoder, colours, monkeypatch):
    def none(name, tensors):
        # As torch says it on the CPU.
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 B")

    encoder = pickle.loads(pickle.dumps(encoder))
    monkeypatch.setattr(encoder, "_rows", none)
    with pytest.raises(EmbeddingError, match=r"memory runs out with one image .*can't allocate"):
        encoder.encode_images(colours, batch_size=5)


def test_other_errors_are_not_tried_again(encoder, colours, monkeypatch):
    def broken(name, tensors):
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    encoder = pickle.loads(pickle.dumps(encoder))
    monkeypatch.setattr(encoder, "_rows", broken)
    with pytest.raises(RuntimeError, match="mat1"):
        encoder.encode_images(colours, batch_size=5)


def test_a_query_is_embedded_once(encoder, monkeypatch):
    encoder = pickle.loads(pickle.dumps(encoder))
    monkeypatch.setattr(encoder_module, "_KEPT_QUERIES", 2)
    first = encoder.encode_query("a red circle")
    np.testing.assert_allclose(first, encoder.encode_texts(["a red circle"], batch_size=1)[0])
    encoder.encode_query("a green circle")
    encoder.encode_query("a red circle")
    encoder.encode_query("a yellow circle")
    monkeypatch.setattr(encoder, "_rows", None)
    np.testing.assert_array_equal(encoder.encode_query("a red circle"), first)
    with pytest.raises(TypeError, match="'NoneType' object is not callable"):
        encoder.encode_query("a green circle")  # Not asked for as lately as the others.
    with pytest.raises(TypeError, match="'NoneType' object is not callable"):
        encoder.encode_query("a blue circle")
    with pytest.raises(ValueError, match="read-only"):
        first[0] = 1


def test_a_text_needs_the_text_tower_alone(clip_dir, chinese_clip_dir):
    for directory in (clip_dir, chinese_clip_dir):
        encoder = Encoder(find_checkpoint(directory))
        encoder.encode_texts(["a red circle"], batch_size=1)
        assert list(encoder._towers) == ["text"]
        names = [name for name, _ in encoder._towers["text"].named_parameters()]
        assert not any(name.startswith("vision_model") for name in names)


@pytest.mark.parametrize("hidden_act", ["quick_gelu", "gelu"])
def test_the_fused_activation_is_the_activation(clip_dir, tmp_path, colours, hidden_act):
    from transformers import CLIPModel

    copy = shutil.copytree(clip_dir, tmp_path / "copy")
    settings = json.loads((copy / "config.json").read_text())
    settings["vision_config"]["hidden_act"] = hidden_act
    (copy / "config.json").write_text(json.dumps(settings))
    encoder = Encoder(find_checkpoint(copy), preprocess="reference")
    rows = encoder.encode_images(colours, batch_size=5)
    model = CLIPModel.from_pretrained(copy).eval()
    inputs = [encoder.prepare(image)["pixel_values"] for image in colours]
    with torch.inference_mode():
        output = model.get_image_features(pixel_values=torch.tensor(np.stack(inputs)))
    features = output if isinstance(output, torch.Tensor) else output.pooler_output
    expected = torch.nn.functional.normalize(features, dim=1).numpy()
    np.testing.assert_allclose(rows, expected, atol=1e-5)


def test_no_cuda_device_is_said(monkeypatch):
    def refuse(device):
        raise AssertionError("Torch not compiled with CUDA enabled")

    monkeypatch.setattr(torch.cuda, "mem_get_info", refuse)
    tower = SimpleNamespace(image_size=224, patch_size=32, intermediate_size=3072)
    with pytest.raises(ModelLoadError, match="cannot use device 'cuda': Torch not compiled"):
        devices.default_batch_size("cuda", tower, itemsize=2)


@pytest.mark.parametrize(
    ("free", "expected"), [(64 * 2**30, 256), (2**30, 128), (2**24, 2), (2**10, 1)]
)
def test_the_batch_on_cuda_takes_a_quarter_of_the_free_memory(monkeypatch, free, expected):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free, free))
    tower = SimpleNamespace(image_size=224, patch_size=32, intermediate_size=3072)
    assert devices.default_batch_size("cuda", tower, itemsize=2) == expected
    assert devices.default_batch_size("cpu", tower, itemsize=2) == 32
    naflex = SimpleNamespace(num_patches=49, patch_size=16, intermediate_size=3072)
    assert devices.default_batch_size("cuda", naflex, itemsize=2) == expected


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
def test_cuda_agrees_with_the_cpu(encoder, colours):
    cpu = Encoder(encoder.checkpoint, device="cpu")
    cuda = Encoder(encoder.checkpoint, device="cuda")
    for method, items in (("encode_images", colours), ("encode_texts", ["a red circle", "红色"])):
        expected = getattr(cpu, method)(items, batch_size=5)
        rows = getattr(cuda, method)(items, batch_size=5)
        assert (rows * expected).sum(axis=1).min() > 0.999


def test_features_are_taken_from_a_tensor_and_from_an_output_object(encoder):
    """transformers 4 returns the one, 5 the other; anything else is an error that names it."""
    features = torch.full((1, 16), 2.0)
    parameter = torch.zeros(1)
    for outputs in (features, SimpleNamespace(pooler_output=features)):
        model = SimpleNamespace(
            parameters=lambda: iter([parameter]), get_text_features=lambda outputs=outputs: outputs
        )
        np.testing.assert_array_equal(
            encoder._features(model, "get_text_features", {}), features.numpy()
        )
    hidden = SimpleNamespace(
        parameters=lambda: iter([parameter]), get_text_features=lambda: torch.zeros(1, 7, 32)
    )
    with pytest.raises(TypeError, match="gave Tensor, expected features of 16 components"):
        encoder._features(hidden, "get_text_features", {})


def test_chinese_text_works_where_transformers_forgets_to_pool(chinese_clip_dir, monkeypatch):
    """As in transformers 4.57: huggingface/transformers#42351."""
    from transformers import ChineseCLIPModel

    checkpoint = find_checkpoint(chinese_clip_dir)
    expected = Encoder(checkpoint).encode_texts(["红色的圆形"], batch_size=1)

    def broken(self, **inputs):
        raise TypeError("linear(): argument 'input' must be Tensor, not NoneType")

    monkeypatch.setattr(ChineseCLIPModel, "get_text_features", broken)
    rows = Encoder(checkpoint).encode_texts(["红色的圆形"], batch_size=1)
    np.testing.assert_allclose(rows, expected, atol=1e-6)


def test_a_model_without_direction_is_an_error(encoder, monkeypatch):
    monkeypatch.setattr(
        encoder, "_features", lambda *args: np.full((1, 16), np.nan, dtype=np.float32)
    )
    with pytest.raises(EmbeddingError, match=r"row 0 of 1 has length nan.*dtype='float32'"):
        encoder.encode_texts(["a"], batch_size=1)


def test_a_pickle_carries_no_weights_and_a_copy_shares_them(encoder):
    expected = encoder.encode_texts(["a"], batch_size=1)
    pickled = pickle.dumps(encoder)
    assert len(pickled) < 10_000
    np.testing.assert_array_equal(pickle.loads(pickled).encode_texts(["a"], batch_size=1), expected)
    assert deepcopy(encoder)._towers is encoder._towers


def test_the_logit_scale_is_after_the_exponential(clip_dir, encoder):
    from transformers import CLIPModel

    model = CLIPModel.from_pretrained(clip_dir)
    assert encoder.logit_scale == pytest.approx(float(model.logit_scale.detach().exp()))
    assert encoder.logit_scale == pytest.approx(1 / 0.07, rel=1e-3)
    assert encoder.logit_bias is None
    half = Encoder(find_checkpoint(clip_dir), dtype="float16")
    assert half.logit_scale == pytest.approx(encoder.logit_scale, rel=1e-6)


@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
def test_scale_and_bias_are_read_as_they_are_stored(clip_dir, tmp_path, suffix):
    """In bfloat16, a scale of 100 would be 98.9."""
    from safetensors.torch import load_file, save_file

    copy = shutil.copytree(clip_dir, tmp_path / "copy")
    weights = load_file(copy / "model.safetensors")
    weights["logit_scale"] = torch.tensor(4.6052)
    weights["logit_bias"] = torch.tensor([-16.7717])
    (copy / "model.safetensors").unlink()
    if suffix == "bin":
        torch.save(weights, copy / "pytorch_model.bin")
    else:
        save_file(weights, copy / "model.safetensors", metadata={"format": "pt"})
    encoder = Encoder(find_checkpoint(copy), dtype="bfloat16")
    assert encoder.logit_scale == pytest.approx(100.0, rel=1e-4)
    assert encoder.logit_bias == pytest.approx(-16.7717)
    assert encoder._towers == {}


def test_weights_that_the_configuration_has_no_place_for_are_said(clip_dir, tmp_path, caplog):
    copy = shutil.copytree(clip_dir, tmp_path / "copy")
    settings = json.loads((copy / "config.json").read_text())
    layers = settings["vision_config"]["num_hidden_layers"]
    settings["vision_config"]["num_hidden_layers"] = layers - 1
    (copy / "config.json").write_text(json.dumps(settings))
    encoder = Encoder(find_checkpoint(copy))
    with caplog.at_level(logging.WARNING, "llama_index_clip_ext"):
        encoder.encode_texts(["a"], batch_size=1)
        assert not caplog.messages  # Those of the other tower are left on purpose.
        encoder.encode_images([Image.new("RGB", (9, 9))], batch_size=1)
    (message,) = caplog.messages
    assert f"vision_model.encoder.layers.{layers - 1}." in message
    assert "config.json" in message


def test_a_generator_may_go_on_with_what_it_yielded(encoder, tmp_path):
    """Close a file once the next is asked for, as a with statement does."""
    for number in range(20):
        Image.new("RGB", (30, 20), (12 * number, 0, 255 - 12 * number)).save(
            tmp_path / f"{number:02}.png"
        )

    def opened():
        for path in sorted(tmp_path.glob("*.png")):
            with Image.open(path) as image:
                yield image

    expected = encoder.encode_images(
        [Image.open(path) for path in sorted(tmp_path.glob("*.png"))], batch_size=4
    )
    np.testing.assert_allclose(encoder.encode_images(opened(), batch_size=4), expected, atol=1e-5)
