import asyncio
import base64
import inspect
import io
import json
import logging
import pickle
import shutil
import threading
import time
from copy import deepcopy
from pathlib import Path

import numpy as np
import pytest
from llama_index.core import Settings
from llama_index.core.base.embeddings.base import BaseEmbedding
from llama_index.core.callbacks import CallbackManager, CBEventType, LlamaDebugHandler
from llama_index.core.embeddings import MultiModalEmbedding
from llama_index.core.rate_limiter import TokenBucketRateLimiter
from llama_index.core.schema import (
    Document,
    ImageDocument,
    ImageNode,
    MediaResource,
    Node,
    TextNode,
)
from llama_index.core.storage.kvstore import SimpleKVStore
from PIL import Image

from llama_index_clip_ext import (
    ChineseCLIPEmbedding,
    CLIPEmbedding,
    ImageLoadError,
    ImageNotFoundError,
    ModelLoadError,
    UnknownModelError,
    load_embedding,
)


@pytest.fixture
def red(tmp_path) -> Path:
    """A picture of one colour with a mark that no other has."""
    image = Image.new("RGB", (40, 30), "red")
    image.putpixel((20, 15), (0, 0, 255))
    image.save(tmp_path / "red.png")
    return tmp_path / "red.png"


@pytest.fixture
def counted(clip_dir, monkeypatch):
    """A CLIP that notes the size of each forward pass."""
    embed_model = CLIPEmbedding(clip_dir, embed_batch_size=4)
    encoder = embed_model.encoder
    sizes = []
    forward = encoder._rows

    def counting(method, inputs):
        sizes.append((method, len(next(iter(inputs.values())))))
        return forward(method, inputs)

    monkeypatch.setattr(encoder, "_rows", counting)
    return embed_model, sizes


def test_class_tree():
    for embedding_class in (CLIPEmbedding, ChineseCLIPEmbedding):
        names = [base.__name__ for base in embedding_class.__mro__]
        assert MultiModalEmbedding.__name__ in names
        assert BaseEmbedding.__name__ in names
        assert embedding_class.class_name() == embedding_class.__name__


def test_defaults_are_the_recommended_models():
    assert CLIPEmbedding().model_name == "clip-ViT-B-32"
    assert ChineseCLIPEmbedding().model_name == "Chinese-CLIP-ViT-L"
    assert CLIPEmbedding().dim == 512
    assert ChineseCLIPEmbedding().dim == 768


def test_load_embedding_picks_the_class(clip_dir, st_dir, chinese_clip_dir):
    assert type(load_embedding("clip-ViT-L-14")) is CLIPEmbedding
    assert type(load_embedding("Chinese-CLIP-ViT-H")) is ChineseCLIPEmbedding
    assert type(load_embedding(st_dir)) is CLIPEmbedding
    assert type(load_embedding(chinese_clip_dir)) is ChineseCLIPEmbedding
    with pytest.raises(UnknownModelError):
        load_embedding("no-such-model")


def test_load_embedding_passes_options_on(clip_dir):
    assert load_embedding(clip_dir, background="black").background == "black"
    with pytest.raises(TypeError, match="modle"):
        load_embedding(clip_dir, modle="x")


def test_the_typed_options_are_those_of_the_constructor():
    from llama_index_clip_ext.dual_encoder import DualEncoderEmbedding, EmbeddingOptions

    parameters = set(inspect.signature(DualEncoderEmbedding.__init__).parameters)
    assert set(EmbeddingOptions.__annotations__) == parameters - {"self", "model_name"}


def test_one_path_is_no_list(clip, red):
    with pytest.raises(TypeError, match="sources is one PosixPath, expected a list"):
        clip.get_image_embedding_batch(red)


def test_one_image_has_no_position(clip):
    with pytest.raises(ImageNotFoundError, match=r"^image \(gone\.png\)") as caught:
        clip.get_image_embedding("gone.png")
    assert caught.value.index is None


def test_an_unknown_colour_is_refused_at_once(clip_dir):
    with pytest.raises(ValueError, match="notacolor"):
        CLIPEmbedding(clip_dir, background="notacolor")


def test_a_checkpoint_of_the_other_family_is_refused(clip_dir):
    with pytest.raises(ModelLoadError, match="chinese-clip checkpoint.*use ChineseCLIPEmbedding"):
        CLIPEmbedding("Chinese-CLIP-ViT-B")
    with pytest.raises(ModelLoadError, match="is a clip checkpoint.*use CLIPEmbedding"):
        ChineseCLIPEmbedding(clip_dir).get_text_embedding("a")


@pytest.mark.parametrize("name", ["dtype", "on_long_text", "on_error"])
def test_an_unknown_option_lists_the_known_ones(name, clip_dir):
    with pytest.raises(ValueError, match=f"{name} is 'nonsense', expected one of '"):
        CLIPEmbedding(clip_dir, **{name: "nonsense"})


def test_every_source_kind_gives_the_same_vector(clip, red):
    content = red.read_bytes()
    encoded = base64.b64encode(content).decode()
    bare = red.with_name("no_extension")
    shutil.copy(red, bare)
    shutil.copy(red, red.with_suffix(".jfif"))
    image = Image.open(red)
    sources = [
        str(red),
        red,
        bare,
        red.with_suffix(".jfif"),
        content,
        bytearray(content),
        io.BytesIO(content),
        image,
        np.asarray(image),
        f"data:image/png;base64,{encoded}",
        encoded,
        ImageNode(image_path=str(red)),
        ImageNode(image=encoded),
        ImageDocument(image_path=str(red)),
        ImageDocument(image=encoded),
        Node(image_resource=MediaResource(path=red)),
        Node(image_resource=MediaResource(data=content)),
    ]
    expected = clip.get_image_embedding(str(red))
    for source, row in zip(sources, clip.get_image_embedding_batch(sources), strict=True):
        np.testing.assert_allclose(row, expected, atol=1e-5, err_msg=repr(type(source)))


def test_batches_are_real_and_keep_order(counted, pictures):
    embed_model, sizes = counted
    files = sorted(pictures.iterdir()) * 2
    rows = embed_model.get_image_embedding_batch(files)
    assert sizes == [
        ("image", 4),
        ("image", 4),
        ("image", 2),
    ]
    np.testing.assert_allclose(rows[:5], rows[5:], atol=1e-5)
    np.testing.assert_allclose(rows[3], embed_model.get_image_embedding(files[3]), atol=1e-5)
    sizes.clear()
    texts = [f"text {number}" for number in range(6)]
    rows = embed_model.get_text_embedding_batch(texts)
    assert sizes == [("text", 4), ("text", 2)]
    np.testing.assert_allclose(rows[5], embed_model.get_query_embedding("text 5"), atol=1e-5)


def test_large_batches_are_allowed(clip_dir):
    assert CLIPEmbedding(clip_dir, embed_batch_size=512).embed_batch_size == 512


async def test_async_twins_agree(clip, red):
    np.testing.assert_allclose(
        await clip.aget_image_embedding(red), clip.get_image_embedding(red), atol=1e-5
    )
    np.testing.assert_allclose(
        await clip.aget_image_embedding_batch([red, red]),
        [clip.get_image_embedding(red)] * 2,
        atol=1e-5,
    )
    np.testing.assert_allclose(
        await clip.aget_query_embedding("a"), clip.get_query_embedding("a"), atol=1e-5
    )
    np.testing.assert_allclose(
        await clip.aget_text_embedding_batch(["a", "b"]),
        clip.get_text_embedding_batch(["a", "b"]),
        atol=1e-5,
    )
    result = await clip.aembed_images([red, "missing.png"], on_error="skip")
    assert (result.kept, [failure.index for failure in result.failures]) == ([0], [1])


async def test_no_forward_pass_runs_on_the_event_loop(counted, red, monkeypatch):
    embed_model, _ = counted
    threads = set()
    forward = embed_model.encoder._rows

    def noting(method, inputs):
        threads.add(threading.current_thread())
        return forward(method, inputs)

    monkeypatch.setattr(embed_model.encoder, "_rows", noting)
    await embed_model.aget_query_embedding("a")
    await embed_model.aget_text_embedding("a")
    await embed_model.aget_text_embedding_batch(["a"] * 9)
    await embed_model.aget_image_embedding(red)
    await embed_model.aget_image_embedding_batch([red] * 9)
    await embed_model.acall([TextNode(text="a"), ImageNode(image_path=str(red))])
    await asyncio.gather(*(embed_model.aget_query_embedding(str(n)) for n in range(50)))
    assert len(threads) == 1
    assert threading.main_thread() not in threads


async def test_the_loop_goes_on_while_a_batch_is_embedded(counted, monkeypatch):
    embed_model, _ = counted
    slow = embed_model.encoder._rows
    monkeypatch.setattr(
        embed_model.encoder, "_rows", lambda *args: (time.sleep(0.2), slow(*args))[1]
    )
    task = asyncio.create_task(embed_model.aget_text_embedding_batch(["a"] * 8))
    beats = 0
    while not task.done():
        await asyncio.sleep(0.01)
        beats += 1
    assert beats > 10


def test_nodes_go_to_their_own_tower_in_order(clip, red):
    nodes = [
        TextNode(text="a red picture"),
        ImageNode(image_path=str(red), text="a caption that must not count"),
        Document(text="another"),
        ImageDocument(image_path=str(red)),
        Node(image_resource=MediaResource(path=red)),
    ]
    ids = [node.node_id for node in nodes]
    image = clip.get_image_embedding(red)
    first, third = clip.get_text_embedding("a red picture"), clip.get_text_embedding("another")
    expected = [first, image, third, image, image]
    for out in (clip(nodes), asyncio.run(clip.acall(deepcopy(nodes)))):
        assert [node.node_id for node in out] == ids
        np.testing.assert_allclose([node.embedding for node in out], expected, atol=1e-5)


def test_a_node_whose_image_is_gone_raises_or_is_left_out(clip, clip_dir, red, caplog):
    nodes = [TextNode(text="a"), ImageNode(image_path="gone.png"), ImageNode(image_path=str(red))]
    with pytest.raises(FileNotFoundError, match=r"gone\.png"):
        clip(nodes)
    skipping = CLIPEmbedding(clip_dir, on_error="skip")
    with caplog.at_level(logging.WARNING):
        kept = skipping(nodes)
    assert kept == [nodes[0], nodes[2]]
    assert "gone.png" in caplog.text
    assert nodes[1].embedding is None


def test_an_image_node_without_an_image_is_not_embedded_as_text(clip):
    with pytest.raises(ImageLoadError, match="holds no image"):
        clip([ImageNode(text="only a caption")])


def test_failures_carry_index_and_source_and_rows_stay_aligned(clip, red, tmp_path):
    (tmp_path / "truncated.png").write_bytes(red.read_bytes()[:60])
    (tmp_path / "empty.jpg").write_bytes(b"")
    (tmp_path / "page.jpg").write_text("<html></html>")
    names = ["truncated.png", "empty.jpg", "page.jpg", "missing.jpg"]
    sources = [red, *(tmp_path / name for name in names), red]
    result = clip.embed_images(sources, on_error="skip")
    assert result.kept == [0, 5]
    assert [failure.index for failure in result.failures] == [1, 2, 3, 4]
    for failure, name in zip(result.failures, names, strict=True):
        assert failure.source.endswith(name)
        assert failure.reason
    np.testing.assert_allclose(result.embeddings, [clip.get_image_embedding(red)] * 2, atol=1e-5)
    with pytest.raises(ImageLoadError, match=r"image 1 \(.*truncated\.png\)") as caught:
        clip.get_image_embedding_batch(sources)
    assert caught.value.index == 1
    nothing = clip.embed_images(sources[1:5], on_error="skip")
    assert nothing.embeddings.shape == (0, 16)
    with pytest.raises(ImageNotFoundError):
        clip.get_image_embedding(tmp_path / "missing.jpg")
    np.testing.assert_allclose(np.linalg.norm(clip.get_image_embedding(red)), 1, atol=1e-5)


def test_the_index_counts_over_batches(clip_dir, red):
    embed_model = CLIPEmbedding(clip_dir, embed_batch_size=2)
    with pytest.raises(ImageLoadError) as caught:
        embed_model.get_image_embedding_batch([red, red, red, "gone.png"])
    assert caught.value.index == 3


def test_callbacks_and_instrumentation(clip_dir, red):
    from llama_index.core.instrumentation import get_dispatcher
    from llama_index.core.instrumentation.event_handlers import BaseEventHandler

    seen = []

    class Recorder(BaseEventHandler):
        def handle(self, event, **kwargs):
            seen.append(event)

    debug = LlamaDebugHandler(print_trace_on_end=False)
    embed_model = CLIPEmbedding(
        clip_dir, embed_batch_size=2, callback_manager=CallbackManager([debug])
    )
    recorder = Recorder()
    root = get_dispatcher()
    root.add_event_handler(recorder)
    try:
        rows = embed_model.get_image_embedding_batch([red, red, red])
        asyncio.run(embed_model.aget_image_embedding(red))
        embed_model.get_text_embedding("a")
    finally:
        root.event_handlers.remove(recorder)
    pairs = debug.get_event_pairs(CBEventType.EMBEDDING)
    assert len(pairs) == 4  # two batches, one image, one text
    assert pairs[0][1].payload["chunks"] == [str(red), str(red)]
    assert pairs[0][1].payload["embeddings"] == rows[:2]
    names = [type(event).__name__ for event in seen]
    assert names.count("EmbeddingStartEvent") == names.count("EmbeddingEndEvent") == 4
    assert seen[1].chunks == [str(red), str(red)]


def test_progress_bars_are_shown_when_asked_for(clip, red, capsys):
    clip.get_image_embedding_batch([red], show_progress=True)
    clip.get_text_embedding_batch(["a"], show_progress=True)
    shown = capsys.readouterr().err
    assert "Generating image embeddings" in shown
    assert "Generating embeddings" in shown
    clip.get_image_embedding_batch([red])
    assert capsys.readouterr().err == ""


def test_to_dict_and_back(clip_dir, red):
    embed_model = CLIPEmbedding(clip_dir, embed_batch_size=7, device="cpu", background="black")
    expected = embed_model.get_image_embedding(red)
    data = embed_model.to_dict()
    json.dumps(data)
    assert data["class_name"] == "CLIPEmbedding"
    assert data["model_name"] == str(clip_dir)
    again = CLIPEmbedding.from_dict(data)
    assert (again.embed_batch_size, again.device, again.background) == (7, "cpu", "black")
    np.testing.assert_array_equal(again.get_image_embedding(red), expected)


def test_a_pickle_is_small_and_works_and_a_copy_shares_the_weights(clip_dir, red, caplog):
    embed_model = CLIPEmbedding(clip_dir, embed_batch_size=7)
    expected = embed_model.get_image_embedding(red)
    asyncio.run(embed_model.aget_image_embedding(red))
    with caplog.at_level(logging.WARNING):
        pickled = pickle.dumps(embed_model)
    assert not caplog.records
    assert len(pickled) < 10_000
    again = pickle.loads(pickled)
    assert again.embed_batch_size == 7
    np.testing.assert_array_equal(again.get_image_embedding(red), expected)
    assert deepcopy(embed_model).encoder is embed_model.encoder


def test_what_does_not_pickle_is_left_at_home_and_kept_there(clip_dir, red, caplog):
    limiter = TokenBucketRateLimiter(requests_per_minute=600)
    handler, cache = LlamaDebugHandler(), SimpleKVStore()
    handler.lock = cache.lock = threading.Lock()
    embed_model = CLIPEmbedding(
        clip_dir,
        rate_limiter=limiter,
        embeddings_cache=cache,
        callback_manager=CallbackManager([handler]),
    )
    expected = embed_model.get_image_embedding(red)
    with caplog.at_level(logging.WARNING):
        again = pickle.loads(pickle.dumps(embed_model))
    (message,) = (record.message for record in caplog.records if "dual_encoder" in record.name)
    assert message.startswith("callback_manager, embeddings_cache, rate_limiter do not pickle")
    assert (embed_model.rate_limiter, embed_model.embeddings_cache) == (limiter, cache)
    assert embed_model.callback_manager.handlers == [handler]
    assert (again.rate_limiter, again.embeddings_cache) == (None, None)
    for one in (embed_model, again):
        np.testing.assert_allclose(one.get_image_embedding(red), expected, atol=1e-6)
        assert len(one.get_text_embedding("soup")) == one.dim


def test_a_stream_that_can_be_read_once_is(clip_dir, red):
    class Once(io.BytesIO):
        def seekable(self):
            return False

    content = red.read_bytes()
    cached = CLIPEmbedding(clip_dir, embeddings_cache=SimpleKVStore())
    expected = cached.get_image_embedding(content)
    np.testing.assert_allclose(cached.get_image_embedding(Once(content)), expected, atol=1e-6)
    failures = cached.embed_images([Once(b""), Once(content)], on_error="skip").failures
    assert [failure.index for failure in failures] == [0]


@pytest.mark.parametrize("options", [{}, {"embeddings_cache": SimpleKVStore()}])
def test_what_is_no_text_says_so_and_half_a_character_is_passed_over(clip_dir, options):
    embed_model = CLIPEmbedding(clip_dir, **options)
    with pytest.raises(TypeError, match="text 1 is a NoneType, expected str"):
        embed_model.get_text_embedding_batch(["a", None])
    np.testing.assert_allclose(
        embed_model.get_text_embedding("a \ud83d cat"), embed_model.get_text_embedding("a ? cat")
    )


def test_it_works_in_a_spawned_process(clip_dir, red):
    import multiprocessing
    from concurrent.futures import ProcessPoolExecutor

    embed_model = CLIPEmbedding(clip_dir)
    expected = embed_model.get_image_embedding(red)
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        assert pool.submit(embed_model.get_image_embedding, red).result() == pytest.approx(
            expected, abs=1e-5
        )


def test_sixteen_threads_share_one_encoder(clip_dir):
    embed_model = CLIPEmbedding(clip_dir)
    barrier = threading.Barrier(16)
    encoders = []

    def use():
        barrier.wait()
        encoders.append(embed_model.encoder)

    threads = [threading.Thread(target=use) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({id(encoder) for encoder in encoders}) == 1


def test_settings_take_it_and_are_never_set(clip, monkeypatch):
    import llama_index.core.settings as settings_module

    monkeypatch.setattr(settings_module.Settings, "_embed_model", None)
    clip.get_text_embedding("a")
    assert settings_module.Settings._embed_model is None
    Settings.embed_model = clip
    assert Settings.embed_model is clip
    monkeypatch.undo()


def test_images_are_cached_by_content_and_model(clip_dir, other_clip_dir, red, tmp_path):
    cache = SimpleKVStore()
    embed_model = CLIPEmbedding(clip_dir, embeddings_cache=cache)
    other = CLIPEmbedding(other_clip_dir, embeddings_cache=cache)
    seen = []
    for model in (embed_model, other):
        encode = model.encoder.encode_prepared

        def counting(batch, encode=encode):
            seen.append(len(batch))
            return encode(batch)

        model.encoder.encode_prepared = counting
    copy = shutil.copy(red, tmp_path / "copy.png")
    rows = embed_model.get_image_embedding_batch([red, copy, red.read_bytes()])
    assert seen == [1]
    np.testing.assert_allclose(rows, [rows[0]] * 3)
    np.testing.assert_allclose(embed_model.get_image_embedding(red), rows[0], atol=1e-6)
    assert seen == [1]
    assert not np.allclose(other.get_image_embedding(red), rows[0], atol=1e-3)
    # Beside copies that are decoded ahead, and batches of their own.
    seen.clear()
    Image.new("RGB", (41, 30), "blue").save(copy)
    embed_model.embed_batch_size = 1
    np.testing.assert_allclose(*embed_model.get_image_embedding_batch([copy, copy]))
    assert seen == [1]
    shutil.copy(red, copy)
    Image.new("RGB", (40, 30), "green").save(red)
    assert not np.allclose(embed_model.get_image_embedding(red), rows[0], atol=1e-3)
    result = embed_model.embed_images([copy, "gone.png", red], on_error="skip")
    assert (result.kept, [f.index for f in result.failures]) == ([0, 2], [1])
    np.testing.assert_allclose(result.embeddings[0], rows[0], atol=1e-6)


def test_a_text_cache_entry_is_never_taken_for_an_image(clip_dir, red):
    embed_model = CLIPEmbedding(clip_dir, embeddings_cache=SimpleKVStore())
    text = embed_model.get_text_embedding(str(red))
    image = embed_model.get_image_embedding(str(red))
    assert not np.allclose(text, image, atol=1e-3)
    np.testing.assert_allclose(embed_model.get_text_embedding(str(red)), text)


def test_a_copy_with_another_model_gives_the_other_models_vectors(clip_dir, other_clip_dir, red):
    embed_model = CLIPEmbedding(clip_dir)
    first = embed_model.get_image_embedding(red)
    other = embed_model.model_copy(update={"model_name": str(other_clip_dir)})
    expected = CLIPEmbedding(other_clip_dir).get_image_embedding(red)
    np.testing.assert_allclose(other.get_image_embedding(red), expected, atol=1e-6)
    np.testing.assert_allclose(embed_model.get_image_embedding(red), first, atol=1e-6)


async def test_asking_for_the_thread_does_not_wait_for_the_model(counted):
    """The loop must go on while another thread holds the model, as in a load of seconds."""
    embed_model, _ = counted
    with embed_model.encoder._lock:
        started = time.perf_counter()
        task = asyncio.create_task(embed_model.aget_query_embedding("a"))
        for _ in range(20):
            await asyncio.sleep(0.01)
        assert time.perf_counter() - started < 2
        assert not task.done()
    assert len(await task) == 16


def test_token_counting_takes_images(clip_dir, red):
    from llama_index.core.callbacks import TokenCountingHandler

    counter = TokenCountingHandler(tokenizer=str.split)
    embed_model = CLIPEmbedding(clip_dir, callback_manager=CallbackManager([counter]))
    embed_model.get_image_embedding(red)
    embed_model([ImageNode(image_path=str(red))])
    assert counter.total_embedding_token_count == 2


def test_a_stream_is_embedded_batch_by_batch_as_it_is_drawn(clip_dir, red):
    embed_model = CLIPEmbedding(clip_dir, embed_batch_size=2)
    frame = np.zeros((20, 20, 3), dtype=np.uint8)

    def frames():
        for level in range(0, 250, 50):
            frame[:] = level  # The same array, as a video reader fills it.
            yield frame
        yield "gone.png"

    batches = list(embed_model.stream_images(frames(), on_error="skip"))
    assert [batch.kept for batch in batches] == [[0, 1], [2, 3], [4]]
    assert [failure.index for failure in batches[-1].failures] == [5]
    whole = [np.full((20, 20, 3), level, dtype=np.uint8) for level in (0, 150)]
    expected = embed_model.get_image_embedding_batch(whole)
    rows = np.concatenate([batch.embeddings for batch in batches])
    np.testing.assert_allclose(rows[[0, 3]], expected, atol=1e-5)
    stream = embed_model.stream_images(frames())
    assert [len(next(stream).kept) for _ in range(3)] == [2, 2, 1]
    with pytest.raises(ImageNotFoundError) as caught:
        next(stream)
    assert caught.value.index == 5
    with pytest.raises(ValueError, match="on_error is 'ignore'"):
        next(embed_model.stream_images([red], on_error="ignore"))
    with pytest.raises(TypeError, match="sources is one str"):
        next(embed_model.stream_images(str(red)))


def test_texts_of_any_lengths_come_back_in_order(clip_dir):
    embed_model = CLIPEmbedding(clip_dir, embed_batch_size=3)
    texts = ["a " * (number * 7 % 11) + str(number) for number in range(20)]
    expected = [embed_model.get_text_embedding(text) for text in texts]
    np.testing.assert_allclose(embed_model.get_text_embedding_batch(texts), expected, atol=1e-5)
    rows = asyncio.run(embed_model.aget_text_embedding_batch(texts))
    np.testing.assert_allclose(rows, expected, atol=1e-5)


def test_the_batch_size_suits_the_device_unless_it_is_given(clip_dir, red, monkeypatch):
    monkeypatch.setattr("llama_index_clip_ext.encoder.Encoder.batch_size", 7)
    for options, expected in (({}, 7), ({"embed_batch_size": 5}, 5)):
        embed_model = CLIPEmbedding(clip_dir, **options)
        assert embed_model.embed_batch_size == options.get("embed_batch_size", 32)
        embed_model.get_text_embedding_batch(["a"])
        assert embed_model.embed_batch_size == expected
    with pytest.raises(ValueError, match="embed_batch_size"):
        CLIPEmbedding(clip_dir, embed_batch_size=0)


def test_formats_that_are_added_are_read(clip_dir, red):
    """By name, in every copy; a name that Pillow has not is said when the model is made."""
    file = io.BytesIO()
    Image.open(red).save(file, "PPM")
    usual = CLIPEmbedding(clip_dir)
    with pytest.raises(ImageLoadError, match=r"image_formats=\('PPM',\) adds"):
        usual.get_image_embedding(file)
    added = CLIPEmbedding(clip_dir, image_formats=["ppm"])
    expected = usual.get_image_embedding(red)
    for model in (
        added,
        CLIPEmbedding.from_dict(added.to_dict()),
        pickle.loads(pickle.dumps(added)),
    ):
        assert model.get_image_embedding(file) == pytest.approx(expected, abs=1e-6)
    with pytest.raises(ValueError, match="image_formats names NONE"):
        CLIPEmbedding(clip_dir, image_formats=["none"])
