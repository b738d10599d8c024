import asyncio
import base64
import json
import sys
from collections import defaultdict
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from by_hand import MODEL, NEAR_X, X, Y, image, text
from llama_index.core.callbacks import CallbackManager
from llama_index.core.ingestion import IngestionPipeline
from llama_index.core.schema import ImageNode
from llama_index.core.vector_stores import MetadataFilter, MetadataFilters
from PIL import Image

from llama_index_clip_ext import (
    Estimate,
    ImageNotFoundError,
    aevaluate_retrieval,
    create_retriever,
    create_vector_store,
    evaluate_retrieval,
    evaluation,
    ingest_images,
    load_embedding,
)
from llama_index_clip_ext.demo.captions import class_caption
from llama_index_clip_ext.demo.heldout import heldout_drawings
from llama_index_clip_ext.pairs import read_pairs
from llama_index_clip_ext.sources import image_digest

NEAR_Y = [0.28, 0.96, 0.0, 0.0]  # 7-24-25.
# The cosines, by hand:      a = X   b = Y   c = NEAR_X
#   "x"      = X              1       0       0.6
#   "y"      = Y              0       1       0.8
#   "near y" = NEAR_Y         0.28    0.96    0.936
TEXTS = {"x": X, "y": Y, "near y": NEAR_Y, "z": [0.0, 0.0, 1.0, 0.0]}
PAIRS = [("x", b"a"), ("y", b"b"), ("near y", b"c")]


class ByHand:
    """The seam to the model: texts as the table has them."""

    space = MODEL.space
    callback_manager = CallbackManager([])

    def get_text_embedding_batch(self, texts, show_progress=False):
        return [TEXTS[text] for text in texts]


def picture(name, vector, **metadata):
    return image(name, vector, content_hash=image_digest(name[:1].encode()), **metadata)


@pytest.fixture
def store(tmp_path):
    with create_vector_store(MODEL, uri=tmp_path / "a.db") as vector_store:
        vector_store.add([picture("a", X), picture("b", Y), picture("c", NEAR_X), text("t", X)])
        yield vector_store


@pytest.fixture
def retriever(store):
    return create_retriever(ByHand(), store, similarity_top_k=1)


def values(metrics):
    return {name: estimate.value for name, estimate in metrics.items()}


def test_both_directions_by_hand(retriever):
    result = evaluate_retrieval(retriever, PAIRS, ks=(1, 2))

    # "near y" finds b before c; every image's own text is the nearest of the three.
    assert values(result.text_to_image) == pytest.approx(
        {"recall@1": 2 / 3, "recall@2": 1, "mrr@2": (1 + 1 + 1 / 2) / 3}
    )
    assert values(result.image_to_text) == {"recall@1": 1, "recall@2": 1, "mrr@2": 1}
    assert (result.n_texts, result.n_images, result.n_collection) == (3, 3, 3)
    assert result.skipped == []


def test_the_retriever_is_asked_for_enough_and_left_as_it_is(retriever):
    assert evaluate_retrieval(retriever, PAIRS, ks=[3]).text_to_image["recall@3"].value == 1
    assert retriever.similarity_top_k == 1


def test_images_that_no_pair_names_compete(store, retriever):
    store.add([picture("d", NEAR_Y)])

    result = evaluate_retrieval(retriever, PAIRS, ks=(1, 2, 3))

    assert values(result.text_to_image) == pytest.approx(
        {"recall@1": 2 / 3, "recall@2": 2 / 3, "recall@3": 1, "mrr@3": (1 + 1 + 1 / 3) / 3}
    )
    assert values(result.image_to_text)["recall@1"] == 1
    assert result.n_collection == 4


def test_several_images_of_a_text_and_several_texts_of_an_image(retriever):
    pairs = [("near y", b"a"), ("near y", b"b"), ("y", b"b"), ("x", b"b")]

    result = evaluate_retrieval(retriever, pairs, ks=(1, 2))

    # "near y" finds b, which is right, first; "y" b; "x" a and c, both wrong.
    assert values(result.text_to_image) == pytest.approx(
        {"recall@1": 2 / 3, "recall@2": 2 / 3, "mrr@2": 2 / 3}
    )
    # a is nearest to "x", which is not its text, then to "near y", which is; b to "y".
    assert values(result.image_to_text) == pytest.approx(
        {"recall@1": 1 / 2, "recall@2": 1, "mrr@2": 3 / 4}
    )
    assert (result.n_texts, result.n_images) == (3, 2)


def test_a_copy_is_as_right_as_the_original(store, retriever):
    store.add([picture("a copy", X)])

    result = evaluate_retrieval(retriever, PAIRS, ks=[1])

    assert result.text_to_image["recall@1"].value == pytest.approx(2 / 3)
    assert (result.n_images, result.n_collection) == (3, 4)


def test_llama_indexs_dataset_names_nodes(retriever):
    dataset = SimpleNamespace(
        queries={"q1": "x", "q2": "near y"},
        relevant_docs={"q1": ["a"], "q2": ["a", "c"]},
        corpus={"a": "a.png", "c": "c.png"},
    )

    result = evaluate_retrieval(retriever, dataset, ks=(1, 2))

    assert values(result.text_to_image) == {"recall@1": 0.5, "recall@2": 1, "mrr@2": 0.75}
    # c is nearest to "near y", a to "x": both are theirs.
    assert values(result.image_to_text) == {"recall@1": 1, "recall@2": 1, "mrr@2": 1}


def test_filters_and_cutoffs_are_part_of_what_is_measured(store):
    only_b = MetadataFilters(filters=[MetadataFilter(key="content_hash", value=image_digest(b"b"))])
    filtered = create_retriever(ByHand(), store, filters=only_b)
    strict = create_retriever(ByHand(), store, similarity_cutoff=0.99)

    of_b = evaluate_retrieval(filtered, PAIRS, ks=[1])
    of_the_best = evaluate_retrieval(strict, PAIRS, ks=[1, 5])

    assert of_b.text_to_image["recall@1"].value == pytest.approx(1 / 3)
    # "near y" has no hit at all.
    assert of_the_best.text_to_image["recall@5"].value == pytest.approx(2 / 3)


def test_images_that_are_not_there_are_an_error_or_listed(retriever):
    pairs = [*PAIRS, ("z", b"nowhere"), ("z", "gone.png")]

    with pytest.raises(ImageNotFoundError, match=r"image 4 \(gone.png\)"):
        evaluate_retrieval(retriever, pairs)
    with pytest.raises(ValueError, match=r"1 of 4 pairs .* 'clip_ext': pair 3 \(bytes of 7 bytes"):
        evaluate_retrieval(retriever, pairs[:4])

    result = evaluate_retrieval(retriever, pairs, on_missing="skip", ks=(1, 2))

    assert result.n_texts == 3
    assert values(result.text_to_image)["recall@2"] == 1
    assert [(failure.index, failure.reason) for failure in result.skipped] == [
        (3, "not among the images of collection 'clip_ext'"),
        (4, "no such file"),
    ]
    assert "skipped: gone.png: no such file" in str(result)
    with pytest.raises(ValueError, match="all 2 pairs were left out; the first: bytes of 7"):
        evaluate_retrieval(retriever, pairs[3:], on_missing="skip")


def test_a_dataset_with_unknown_nodes_is_refused(retriever):
    dataset = SimpleNamespace(queries={"q1": "x"}, relevant_docs={"q1": ["t", "other"]})

    with pytest.raises(ValueError, match=r"2 of 2 pairs .* pair 0 \(node 't' of query 'q1'\)"):
        evaluate_retrieval(retriever, dataset)
    dataset.relevant_docs = {"q1": []}
    with pytest.raises(ValueError, match="query 'q1' has no relevant_docs"):
        evaluate_retrieval(retriever, dataset)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pairs": []}, "pairs is empty"),
        ({"ks": ()}, "ks is ()"),
        ({"ks": (0, 1)}, r"ks is \(0, 1\)"),
        ({"on_missing": "ignore"}, "on_missing is 'ignore'"),
        ({"confidence": 95}, "confidence is 95"),
        ({"n_resamples": 0}, "n_resamples is 0"),
    ],
)
def test_impossible_options(retriever, options, message):
    with pytest.raises(ValueError, match=message):
        evaluate_retrieval(retriever, options.pop("pairs", PAIRS), **options)


def test_pairs_are_read_from_a_file(tmp_path):
    (tmp_path / "a.jsonl").write_text(
        '\n{"text": "x\u2028y", "image": "b.png", "more": 1}\n{"text": "猫", "image": "/c.png"}\n'
    )
    (tmp_path / "b.csv").write_text('image,text\r\nb.png,"two\r\nlines"\r\n', newline="")

    assert read_pairs(tmp_path / "a.jsonl") == [
        ("x\u2028y", tmp_path / "b.png"),
        ("猫", Path("/c.png")),
    ]
    assert read_pairs(str(tmp_path / "b.csv")) == [("two\r\nlines", tmp_path / "b.png")]
    (tmp_path / "c.csv").write_text("text, image\na cat, b.png\n")
    assert read_pairs(tmp_path / "c.csv") == [("a cat", tmp_path / "b.png")]


def test_pixels_are_of_no_file(retriever):
    with pytest.raises(TypeError, match="image of pair 0 is a PIL image RGB 2x2: pixels do not"):
        evaluate_retrieval(retriever, [("x", Image.new("RGB", (2, 2)))])


def test_images_that_came_by_llama_indexs_roads_are_found(clip, pictures, tmp_path):
    files = sorted(pictures.iterdir())
    with create_vector_store(clip, uri=tmp_path / "roads.db") as store:
        nodes = [ImageNode(image_path=str(file)) for file in files[1:]]
        nodes.append(ImageNode(image=base64.b64encode(files[0].read_bytes()).decode()))
        IngestionPipeline(transformations=[clip], vector_store=store).run(nodes=nodes)
        result = evaluate_retrieval(
            create_retriever(clip, store), [(file.stem, file) for file in files]
        )
        assert (result.n_images, result.text_to_image["recall@5"].value) == (5, 1)


def test_by_words_alone_too(clip, pictures, tmp_path):
    for file in list(pictures.iterdir()):
        file.with_suffix(".txt").write_text(f"a {file.stem} thing")
    with create_vector_store(clip, uri=tmp_path / "words.db", full_text="english") as store:
        ingest_images(pictures, embed_model=clip, vector_store=store)
        words = create_retriever(clip, store, vector_store_query_mode="text_search")
        pairs = [(file.stem, file) for file in pictures.glob("*.png")]
        assert evaluate_retrieval(words, pairs).text_to_image["recall@1"].value == 1


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", '{"text": "x", "image": "y"}\n{"text": "x"}', "record 2: expected a text"),
        ("a.jsonl", "not JSON", "record 1: .* got not JSON"),
        ("a.jsonl", '["x", "y"]', "record 1"),
        ("a.csv", "text,path\nx,y", "record 1"),
        ("a.txt", "x y", "ending in .jsonl or .csv"),
        ("a.csv", "text,image\n" + "x" * 200_000 + ",y", "a.csv: damaged, or no CSV .field larger"),
        ("a.csv", "text,image\ncaf\xe9,y".encode("latin-1"), "a.csv: expected a text in UTF-8"),
    ],
)
def test_a_file_without_pairs(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ValueError, match=message):
        read_pairs(tmp_path / name)


@pytest.mark.parametrize("pair", ["x", ("x",), (b"a", "x"), {"text": "x"}])
def test_what_is_no_pair(retriever, pair):
    with pytest.raises(TypeError, match=r"pair 1 is .*, expected \(text, image\)"):
        evaluate_retrieval(retriever, [("x", b"a"), pair])


def test_another_retriever_is_refused(store):
    with pytest.raises(TypeError, match="SimpleNamespace, expected what create_retriever"):
        evaluate_retrieval(SimpleNamespace(), PAIRS)
    with pytest.raises(ValueError, match="is 'text', expected 'image'"):
        evaluate_retrieval(create_retriever(ByHand(), store, modality="text"), PAIRS)


def test_it_prints_an_aligned_table(retriever):
    lines = str(evaluate_retrieval(retriever, PAIRS, ks=(2, 1, 1))).splitlines()

    assert lines[0].split() == ["text", "->", "image", "image", "->", "text"]
    assert lines[1].split() == ["queries", "3", "3"]
    assert lines[2].split() == ["among", "3", "images", "3", "texts"]
    assert [line.split()[0] for line in lines[3:6]] == ["recall@1", "recall@2", "mrr@2"]
    assert lines[3].split()[1] == "0.667"
    assert lines[4].endswith("1.000 [1.000, 1.000]  1.000 [1.000, 1.000]")
    column = lines[0].index("image -> text")
    assert all(line[column - 2 : column] == "  " for line in lines[:6])
    assert "95% bootstrap" in lines[6]


def test_it_becomes_plain_data(retriever):
    result = evaluate_retrieval(retriever, PAIRS, ks=[1], confidence=0.9)

    facts = json.loads(json.dumps(result.to_dict()))

    assert facts["confidence"] == 0.9
    assert facts["n_texts"] == 3
    assert facts["text_to_image"]["recall@1"]["value"] == pytest.approx(2 / 3)
    assert set(facts["image_to_text"]["mrr@1"]) == {"value", "low", "high"}


def test_it_is_drawn_with_its_intervals(retriever):
    pytest.importorskip("matplotlib")
    result = evaluate_retrieval(retriever, PAIRS, ks=(1, 2))

    figure = result.plot()

    (axes,) = figure.axes
    heights = [bar.get_height() for bar in axes.patches]
    assert heights == pytest.approx([2 / 3, 1, 2.5 / 3, 1, 1, 1])
    assert [label.get_text() for label in axes.get_xticklabels()] == [*result.text_to_image]
    (whisker,) = (line.get_segments()[0] for line in axes.collections[:1])
    recall = result.text_to_image["recall@1"]
    assert whisker[:, 1] == pytest.approx([recall.low, recall.high])
    figure.savefig("plot.png")
    with Image.open("plot.png") as drawn:
        assert drawn.width > 400


def test_without_matplotlib_it_says_what_is_missing(retriever, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)

    with pytest.raises(ImportError, match="pip install matplotlib"):
        evaluate_retrieval(retriever, PAIRS, ks=[1]).plot()


def test_a_seed_decides_the_intervals(retriever):
    first, again, other = (
        evaluate_retrieval(retriever, PAIRS, seed=seed, n_resamples=200) for seed in (0, 0, 5)
    )

    assert first == again
    assert values(other.text_to_image) == values(first.text_to_image)
    estimate = first.text_to_image["recall@1"]
    assert isinstance(estimate, Estimate)
    assert estimate.low <= estimate.value <= estimate.high


async def test_async_leaves_the_loop_free(retriever):
    ticks = 0

    async def tick():
        nonlocal ticks
        while True:
            await asyncio.sleep(0.001)
            ticks += 1

    ticking = asyncio.create_task(tick())
    result = await aevaluate_retrieval(retriever, PAIRS, n_resamples=2000)
    ticking.cancel()

    assert result == evaluate_retrieval(retriever, PAIRS, n_resamples=2000)
    assert ticks > 3


def test_progress_is_shown_if_asked(retriever, capsys):
    evaluate_retrieval(retriever, PAIRS)
    assert "Retrieving" not in capsys.readouterr().err
    evaluate_retrieval(retriever, PAIRS, show_progress=True)
    assert "Retrieving" in capsys.readouterr().err


@pytest.mark.parametrize(("model", "language"), [("demo-clip", "en"), ("demo-chinese-clip", "zh")])
def test_the_demo_models_on_held_out_drawings(model, language, tmp_path):
    drawings = heldout_drawings()[::3]
    folder = tmp_path / "drawings"
    folder.mkdir()
    pairs = []
    for number, drawing in enumerate(drawings):
        file = folder / f"{number:03}.png"
        drawing.image.save(file)
        pairs.append((class_caption(drawing.scene, language), file))
    # However the image comes, it is the same file.
    pairs[0] = pairs[0][0], pairs[0][1].read_bytes()
    pairs[1] = pairs[1][0], ImageNode(image_path=str(pairs[1][1]))
    embed_model = load_embedding(model)
    with create_vector_store(embed_model, uri=tmp_path / "a.db") as store:
        ingest_images(folder, embed_model=embed_model, vector_store=store, captions=None)
        for file in folder.iterdir():
            file.rename(file.with_name(f"moved-{file.name}"))
        moved = [
            (words, file if isinstance(file, bytes) else folder / f"moved-{number:03}.png")
            for number, (words, file) in enumerate(pairs)
        ]

        result = evaluate_retrieval(create_retriever(embed_model, store), moved)

    n_texts = len({words for words, _ in pairs})
    assert n_texts > 60
    assert (result.n_texts, result.n_images) == (n_texts, len(drawings))
    for metrics in (result.text_to_image, result.image_to_text):
        assert metrics["recall@1"].value >= 0.9, str(result)
        assert metrics["recall@1"].value <= metrics["recall@5"].value
        for estimate in metrics.values():
            assert estimate.low <= estimate.value <= estimate.high


def test_metrics_are_those_of_ir_measures_on_random_cases():
    """What papers on image-text retrieval call R@k is Success@k: queries with a right hit."""
    ir_measures = pytest.importorskip("ir_measures", reason="pip install ir-measures")
    chance = np.random.default_rng(0)
    everything = [f"d{number}" for number in range(60)]
    ks = (1, 3, 5, 10, 20)
    asked, relevant, run = [], [], []
    for query in range(1_000):
        right = chance.choice(everything, chance.integers(1, 8), replace=False).tolist()
        ranking = chance.choice(everything, chance.integers(0, 31), replace=False).tolist()
        asked.append((set(right), ranking))
        relevant += [ir_measures.Qrel(f"{query}", one, 1) for one in right]
        run += [ir_measures.ScoredDoc(f"{query}", one, -at) for at, one in enumerate(ranking)]

    ours = evaluation._score(asked, ks)

    theirs = {f"recall@{k}": ir_measures.Success @ k for k in ks}
    theirs["mrr@20"] = ir_measures.RR @ 20
    assert ours.keys() == theirs.keys()
    found = defaultdict(dict)
    for one in ir_measures.iter_calc(list(theirs.values()), relevant, run):
        found[one.measure][int(one.query_id)] = one.value
    for name, measure in theirs.items():
        # Of a query without hits it says nothing.
        assert ours[name] == pytest.approx([found[measure].get(query, 0) for query in range(1_000)])
        assert 0 < np.mean(ours[name]) < 1


EMPTY = ["", " ", "\n\t"]


@pytest.mark.parametrize("empty", EMPTY)
def test_pairs_without_a_text_are_an_error(retriever, empty):
    pairs = [(empty, b"a"), (empty, b"b")]
    with pytest.raises(ValueError, match=r"2 of 2 pairs have an empty text: pair 0 .*a caption"):
        evaluate_retrieval(retriever, pairs)
    with pytest.raises(ValueError, match="all 2 pairs were left out; the first: .* text is empty"):
        evaluate_retrieval(retriever, pairs, on_missing="skip")
    with pytest.raises(ValueError, match="1 of 4 pairs have an empty text: pair 0"):
        evaluate_retrieval(retriever, [(empty, b"a"), *PAIRS])
    dataset = SimpleNamespace(queries={"q": empty}, relevant_docs={"q": ["a"]})
    with pytest.raises(ValueError, match="1 of 1 pairs have an empty text"):
        evaluate_retrieval(retriever, dataset)


def test_a_pair_without_a_text_can_be_left_out(retriever):
    result = evaluate_retrieval(retriever, [("", b"a"), *PAIRS], on_missing="skip")
    assert [one.index for one in result.skipped] == [0]
    assert "its text is empty" in result.skipped[0].reason
    alone = evaluate_retrieval(retriever, PAIRS)
    assert values(result.text_to_image) == values(alone.text_to_image)
