import logging

import checkpoints
import numpy as np
import pytest

from llama_index_clip_ext import ChineseCLIPEmbedding, CLIPEmbedding, load_embedding

WORDS = [
    "a",
    "red",
    "circle",
    "beside",
    "seven",
    "blue",
    "stars",
    "and",
    "a",
    "green",
    "moon",
    "on",
    "grey",
    "ground",
]
LONG = " ".join(WORDS[n % len(WORDS)] for n in range(1000))
LONG_CHINESE = "灰色背景上的红色圆形旁边有七颗蓝色的星星" * 20


@pytest.fixture(scope="module", params=["clip", "chinese-clip", "siglip", "metaclip-2"])
def embed_model(request, clip_dir, chinese_clip_dir, tmp_path_factory):
    """Each kind of context: 77 with two marks, 52 with two, 64 padded with one, 77 with two."""
    folder = tmp_path_factory.mktemp("model")
    makers = {
        "clip": lambda: clip_dir,
        "chinese-clip": lambda: chinese_clip_dir,
        "siglip": lambda: checkpoints.make_siglip(folder, tiny=True),
        "metaclip-2": lambda: checkpoints.make_metaclip_2(folder),
    }
    return load_embedding(makers[request.param](), on_long_text="chunk_mean")


def by_hand(embed_model, text):
    """Cut the tokens between the marks into windows, embed each alone, and take the mean."""
    tokenizer = embed_model.encoder._text_tokenizer
    context = tokenizer.context_length
    (row,) = tokenizer.tokenize([text])
    marks = tokenizer.tokenizer("a", return_special_tokens_mask=True)["special_tokens_mask"]
    n_start, n_end = marks.index(0), marks[::-1].index(0)
    room = context - n_start - n_end
    body = row[n_start : len(row) - n_end]
    windows = [body[at : at + room] for at in range(0, len(body), room)]
    vectors = []
    for window in windows:
        tokens = [*row[:n_start], *window, *row[len(row) - n_end :]]
        assert len(tokens) <= context
        vectors.append(embed_model.encoder._text_rows([tokens])[0])
    mean = np.mean(vectors, axis=0)
    return len(windows), mean / np.linalg.norm(mean)


@pytest.mark.parametrize("text", [LONG, LONG_CHINESE], ids=["english", "chinese"])
def test_the_mean_over_windows_by_hand(embed_model, text):
    count, expected = by_hand(embed_model, text)
    assert count > 2
    row = embed_model.get_text_embedding(text)
    assert np.linalg.norm(row) == pytest.approx(1, abs=1e-5)
    np.testing.assert_allclose(row, expected, atol=1e-5)
    assert embed_model.encoder.n_truncated == 0


def test_short_texts_are_as_ever_and_batches_change_nothing(embed_model):
    texts = ["a red circle", LONG, "", LONG_CHINESE, "a blue star"]
    single = [embed_model.get_text_embedding(text) for text in texts]
    for size in (1, 3, 32):
        copy = embed_model.model_copy(update={"embed_batch_size": size})
        np.testing.assert_allclose(copy.get_text_embedding_batch(texts), single, atol=1e-5)
    cut = embed_model.model_copy(update={"on_long_text": "truncate"})
    for n in (0, 2, 4):
        np.testing.assert_allclose(cut.get_text_embedding(texts[n]), single[n], atol=1e-5)
    assert not np.allclose(cut.get_text_embedding(LONG), single[1], atol=2e-5)


def test_memory_is_that_of_a_batch(embed_model, monkeypatch):
    sizes = []
    forward = type(embed_model.encoder)._rows

    def count(self, method, inputs):
        sizes.append(len(inputs["input_ids"]))
        return forward(self, method, inputs)

    monkeypatch.setattr(type(embed_model.encoder), "_rows", count)
    copy = embed_model.model_copy(update={"embed_batch_size": 4})
    copy.get_text_embedding_batch([LONG] * 3)
    assert max(sizes) == 4
    assert sum(sizes) > 12


class TestScript:
    """A model of English words says once that it is asked in another script."""

    @staticmethod
    def warned(embed_model, texts, caplog):
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            embed_model.get_text_embedding_batch(texts)
        return [message for message in caplog.messages if "reads English" in message]

    def test_once_and_with_the_ways_out(self, clip_dir, caplog):
        embed_model = CLIPEmbedding(clip_dir)
        assert self.warned(embed_model, ["a red circle", "café №7 🐈"], caplog) == []
        # A word of Chinese in a line of English is no reason.
        assert self.warned(embed_model, ["the dish called 汤 on a wooden table"], caplog) == []
        (message,) = self.warned(embed_model, ["soup", "红色圆形"], caplog)
        assert message.startswith("text 1 is Chinese, Japanese or Korean (100 % of its letters)")
        assert "ChineseCLIPEmbedding" in message
        assert "clip-ViT-B-32-multilingual-v1" in message
        assert self.warned(embed_model, ["蓝色", "빨간 원", "赤い丸"], caplog) == []

    def test_not_those_that_read_it(self, chinese_clip_dir, tmp_path, caplog):
        assert self.warned(ChineseCLIPEmbedding(chinese_clip_dir), ["红色圆形"], caplog) == []
        (tmp_path / "m").mkdir()
        multilingual = load_embedding(checkpoints.make_metaclip_2(tmp_path / "m"))
        assert self.warned(multilingual, ["红色圆形"], caplog) == []
