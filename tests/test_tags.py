import asyncio
import json
import pickle
from copy import deepcopy

import numpy as np
import pytest
from llama_index.core.ingestion import IngestionPipeline
from llama_index.core.schema import ImageNode, MetadataMode, Node, TextNode
from llama_index.core.storage.kvstore import SimpleKVStore
from llama_index.core.vector_stores import FilterOperator, MetadataFilter, MetadataFilters
from PIL import Image

from llama_index_clip_ext import (
    CLIPEmbedding,
    DimensionMismatchError,
    ImageLoadError,
    ZeroShotTagger,
    create_retriever,
    create_vector_store,
    ingest_images,
    load_embedding,
    load_image_nodes,
)
from llama_index_clip_ext.demo.captions import COLOURS, SHAPES, Scene, label
from llama_index_clip_ext.demo.heldout import heldout_drawings

LABELS = ["red thing", "soup", "cat", "blue sky"]


@pytest.fixture
def nodes(pictures):
    return load_image_nodes(pictures)


def by_hand(embed_model, nodes, prompts, bias=None):
    """The probabilities of each label for each node, by numpy alone."""
    texts = []
    for several in prompts:
        mean = np.mean([embed_model.get_text_embedding(prompt) for prompt in several], axis=0)
        texts.append(mean / np.linalg.norm(mean))
    images = np.array([embed_model.get_image_embedding(node) for node in nodes])
    logits = embed_model.encoder.logit_scale * (images @ np.array(texts).T)
    if bias is not None:
        return 1 / (1 + np.exp(-(logits + bias)))
    return np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)


def where_tag(tag, key="tags"):
    has_tag = MetadataFilter(key=key, value=tag, operator=FilterOperator.CONTAINS)
    return MetadataFilters(filters=[has_tag])


@pytest.mark.parametrize("family", ["clip", "chinese_clip"])
def test_probabilities_by_hand(family, request, nodes):
    embed_model = request.getfixturevalue(family)
    templates = ("a photo of a {}.", "{}")
    expected = by_hand(embed_model, nodes, [[t.format(one) for t in templates] for one in LABELS])

    tagged = ZeroShotTagger(embed_model, LABELS, templates=templates, top_k=4)(nodes)

    assert [node.node_id for node in tagged] == [node.node_id for node in nodes]
    for node, row in zip(tagged, expected, strict=True):
        order = np.argsort(-row)
        assert node.metadata["tags"] == [LABELS[index] for index in order]
        assert node.metadata["tags_scores"] == pytest.approx(row[order].tolist(), abs=1e-4)


def test_the_best_few_above_a_threshold(clip, nodes):
    expected = by_hand(clip, nodes, [[f"a photo of a {one}."] for one in LABELS])
    best = np.sort(expected.max(axis=1))
    threshold = float(best[1] + best[2]) / 2

    tagged = ZeroShotTagger(clip, LABELS, top_k=2, threshold=threshold)(nodes)

    counts = [len(node.metadata["tags"]) for node in tagged]
    assert counts == [min(2, int(n)) for n in (expected >= threshold).sum(axis=1)]
    assert 0 in counts
    assert [len(node.metadata["tags_scores"]) for node in tagged] == counts


def test_a_label_may_have_prompts_of_its_own(clip, nodes):
    labels = {"猫": ["a cat", "a photo of a cat"], "soup": "a bowl of soup"}
    expected = by_hand(clip, nodes, [labels["猫"], [labels["soup"]]])

    tagged = ZeroShotTagger(clip, labels)(nodes)

    for node, row in zip(tagged, expected, strict=True):
        assert node.metadata["tags"] == [["猫", "soup"][row.argmax()]]
        assert node.metadata["tags_scores"] == [pytest.approx(row.max(), abs=1e-4)]


def test_a_model_with_a_bias_judges_each_label_by_itself(clip, nodes, monkeypatch):
    monkeypatch.setattr(type(clip.encoder), "logit_bias", -1.5)
    expected = by_hand(clip, nodes, [["a photo of a cat."]], bias=-1.5)

    tagged = ZeroShotTagger(clip, ["cat"])(nodes)

    scores = [node.metadata["tags_scores"][0] for node in tagged]
    assert scores == pytest.approx(expected[:, 0].tolist(), abs=1e-4)


def test_one_label_is_no_choice(clip, nodes):
    with pytest.raises(ValueError, match="one label only"):
        ZeroShotTagger(clip, ["cat"])(nodes)


def test_chinese_models_get_a_chinese_template(clip, chinese_clip):
    assert ZeroShotTagger(chinese_clip, ["猫"]).labels == {"猫": ["猫的照片"]}
    assert ZeroShotTagger(clip, ["cat"]).labels == {"cat": ["a photo of a cat."]}


def test_other_nodes_pass_as_they_are(clip, pictures):
    mixed = [
        TextNode(text="soup", id_="t"),
        ImageNode(image_path=str(pictures / "red.png")),
        Node(image_resource={"path": pictures / "blue.png"}),
    ]
    before = deepcopy(mixed[0])

    tagged = ZeroShotTagger(clip, LABELS)(mixed)

    assert tagged[0] == before
    assert all(node.metadata["tags"][0] in LABELS for node in tagged[1:])
    assert ZeroShotTagger(clip, LABELS)([]) == []


def test_vectors_are_used_where_they_are_and_kept_where_they_are_made(clip, nodes, monkeypatch):
    tagger = ZeroShotTagger(clip, LABELS, top_k=4)
    fresh = tagger([node.model_copy(deep=True) for node in nodes])
    assert [len(node.embedding) for node in fresh] == [clip.dim] * 5

    encoded = []
    encode = type(clip.encoder).encode_prepared
    monkeypatch.setattr(
        type(clip.encoder),
        "encode_prepared",
        lambda self, batch: encode(self, encoded.extend(batch) or batch),
    )
    again = tagger(clip(nodes))

    assert len(encoded) == 5  # By the model itself; the tagger needed no more.
    assert [node.metadata["tags"] for node in again] == [node.metadata["tags"] for node in fresh]


def test_labels_are_embedded_once(clip_dir, nodes, monkeypatch):
    embed_model = CLIPEmbedding(clip_dir)
    tagger = ZeroShotTagger(embed_model, LABELS, templates=["{}", "a {}"])
    encoded = []
    encode = type(embed_model.encoder).encode_texts
    monkeypatch.setattr(
        type(embed_model.encoder),
        "encode_texts",
        lambda self, texts, **kwargs: encoded.extend(texts) or encode(self, texts, **kwargs),
    )

    for _ in range(3):
        tagger(nodes)

    # In batches of like length.
    assert sorted(encoded) == sorted(text for one in LABELS for text in (one, f"a {one}"))


def test_a_vector_of_another_model_is_refused(clip, nodes):
    nodes[0].embedding = [1.0, 0.0]
    with pytest.raises(DimensionMismatchError, match=f"of 2 components, .* makes {clip.dim}"):
        ZeroShotTagger(clip, LABELS)(nodes)


def test_what_does_not_load(clip_dir, pictures):
    (pictures / "bad.png").write_text("<html>")
    nodes = load_image_nodes(pictures)
    with pytest.raises(ImageLoadError, match=r"bad\.png"):
        ZeroShotTagger(CLIPEmbedding(clip_dir), LABELS)(nodes)

    tagged = ZeroShotTagger(CLIPEmbedding(clip_dir, on_error="skip"), LABELS)(nodes)

    assert [node.metadata["file_name"] for node in tagged if "tags" not in node.metadata] == [
        "bad.png"
    ]
    assert len(tagged) == 6


def test_tags_are_read_by_other_models_scores_are_not(clip, nodes):
    (node, *_) = ZeroShotTagger(clip, LABELS)(ZeroShotTagger(clip, LABELS)(nodes))

    for mode in (MetadataMode.EMBED, MetadataMode.LLM):
        assert f"tags: {node.metadata['tags']}" in node.get_content(mode)
        assert "tags_scores" not in node.get_content(mode)
    assert node.excluded_llm_metadata_keys.count("tags_scores") == 1


def test_two_taggers_keep_apart(clip, nodes):
    tagged = ZeroShotTagger(clip, ["a", "b"], key="colours")(nodes)
    tagged = ZeroShotTagger(clip, ["c", "d"], key="shape")(tagged)

    assert set(tagged[0].metadata) >= {"colours", "colours_scores", "shape", "shape_scores"}


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"labels": []}, ValueError, "labels is empty"),
        ({"labels": {}}, ValueError, "labels is empty"),
        ({"labels": "cat"}, TypeError, "not one text"),
        ({"labels": ["a", "b", "a"]}, ValueError, "label 'a' comes twice"),
        ({"labels": {"a": []}}, ValueError, "label 'a' has no prompt"),
        ({"templates": []}, ValueError, "label 'red thing' has no prompt"),
        ({"templates": "a {}"}, TypeError, "not one text"),
        ({"templates": ["a cat"]}, ValueError, "template 'a cat' has no {}"),
        ({"top_k": 0}, ValueError, "top_k is 0"),
        ({"threshold": 1.5}, ValueError, "threshold is 1.5"),
        ({"key": ""}, ValueError, "key is ''"),
        ({"key": "file_name"}, ValueError, "key is 'file_name', .* own columns"),
    ],
)
def test_impossible_options(clip, options, error, message):
    with pytest.raises(error, match=message):
        ZeroShotTagger(clip, options.pop("labels", LABELS), **options)


def test_it_travels(clip_dir, nodes):
    clip = CLIPEmbedding(clip_dir)  # Not the one that all tests share and may have used before.
    tagger = ZeroShotTagger(clip, LABELS, templates=["{}"], top_k=2, key="topics")
    expected = [node.metadata["topics"] for node in tagger(clip(nodes))]

    for copy in (pickle.loads(pickle.dumps(tagger)), deepcopy(tagger)):
        assert copy.to_dict() == tagger.to_dict()
        assert [node.metadata["topics"] for node in copy(nodes)] == expected
    facts = json.loads(tagger.to_json())
    assert facts["class_name"] == "ZeroShotTagger"
    assert facts["labels"]["soup"] == ["soup"]
    assert facts["embed_model"]["model_name"] == clip.model_name
    assert len(pickle.dumps(tagger)) < 10_000


async def test_async_leaves_the_loop_free(clip, nodes):
    expected = [n.metadata["tags"] for n in ZeroShotTagger(clip, LABELS)(deepcopy(nodes))]
    ticks = 0

    async def tick():
        nonlocal ticks
        while True:
            await asyncio.sleep(0.001)
            ticks += 1

    ticking = asyncio.create_task(tick())
    tagged = await ZeroShotTagger(clip, LABELS).acall(nodes)
    ticking.cancel()

    assert [node.metadata["tags"] for node in tagged] == expected
    assert ticks > 3


def test_in_a_pipeline(clip, store, nodes):
    pipeline = IngestionPipeline(
        transformations=[clip, ZeroShotTagger(clip, LABELS)], vector_store=store
    )
    expected = [n.metadata["tags"] for n in ZeroShotTagger(clip, LABELS)(deepcopy(nodes))]

    pipeline.run(nodes=nodes)

    stored = store.get_nodes([node.node_id for node in nodes])
    assert [node.metadata["tags"] for node in stored] == expected


def test_what_is_stored_is_tagged_without_its_pictures(clip, store, pictures):
    ingest_images(pictures, embed_model=clip, vector_store=store)
    for file in pictures.iterdir():
        file.unlink()
    everything = MetadataFilters(filters=[])

    store.add(ZeroShotTagger(clip, LABELS)(store.get_nodes(filters=everything)))

    tags = [node.metadata["tags"] for node in store.get_nodes(filters=everything)]
    assert len(tags) == 5
    for one in LABELS:
        hits = create_retriever(clip, store, filters=where_tag(one)).retrieve("x")
        assert len(hits) == tags.count([one])


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    folder = tmp_path_factory.mktemp("drawn")
    drawings = heldout_drawings()[:128]
    for number, drawing in enumerate(drawings):
        drawing.image.save(folder / f"{number:03}.png")
    return folder, drawings


@pytest.mark.parametrize(("model", "language"), [("demo-clip", "en"), ("demo-chinese-clip", "zh")])
def test_drawings_are_tagged_stored_and_filtered(model, language, drawn, tmp_path):
    folder, drawings = drawn
    # With a cache, what the tagger embeds is not embedded again to be stored.
    embed_model = load_embedding(model, embeddings_cache=SimpleKVStore())
    classes = [label(Scene(colour, shape), language) for colour in COLOURS for shape in SHAPES]
    shapes = [shape.usual(language) for shape in SHAPES.values()]
    of_classes = ZeroShotTagger(embed_model, classes)
    of_shapes = ZeroShotTagger(embed_model, shapes, key="shapes")

    with create_vector_store(embed_model, uri=tmp_path / "a.db") as store:
        for added in (128, 0):
            nodes = of_shapes(of_classes(load_image_nodes(folder)))
            report = ingest_images(nodes, embed_model=embed_model, vector_store=store)
            assert (report.added, report.replaced, report.unchanged) == (added, 0, 128 - added)

        circle = SHAPES["circle"].usual(language)
        retriever = create_retriever(
            embed_model, store, filters=where_tag(circle, "shapes"), similarity_top_k=128
        )
        hits = retriever.retrieve(COLOURS["red"].usual(language))

    right = {
        "tags": [label(drawing.scene, language) for drawing in drawings],
        "shapes": [SHAPES[drawing.scene.shape].usual(language) for drawing in drawings],
    }
    for key, names in right.items():
        is_right = [n.metadata[key] == [m] for n, m in zip(nodes, names, strict=True)]
        assert np.mean(is_right) >= 0.9, key
    assert {hit.node.node_id for hit in hits} == {
        node.node_id for node in nodes if node.metadata["shapes"] == [circle]
    }
    assert hits[0].node.metadata["tags"] == [label(Scene("red", "circle"), language)]


def test_a_batch_of_another_size_is_no_change(drawn, tmp_path):
    folder, _ = drawn
    with create_vector_store(load_embedding("demo-clip"), uri=tmp_path / "a.db") as store:
        for batch_size, unchanged in ((32, 0), (5, 128)):
            embed_model = load_embedding("demo-clip", embed_batch_size=batch_size)
            tagger = ZeroShotTagger(embed_model, [*SHAPES], top_k=8)
            nodes = tagger(load_image_nodes(folder))
            report = ingest_images(nodes, embed_model=embed_model, vector_store=store)
            assert report.unchanged >= 0.95 * unchanged
            assert report.added == 128 - unchanged


def test_a_grey_picture_is_no_exception(clip):
    node = ImageNode(image_path="grey.png")
    Image.new("L", (1, 9), 128).save("grey.png")

    assert ZeroShotTagger(clip, LABELS)([node])[0].metadata["tags"]


@pytest.mark.parametrize("labels", [["cat", ""], [" "], {"cat": ""}, {"": "a cat"}, ["cat", None]])
def test_blank_labels_are_refused(clip, labels):
    with pytest.raises(ValueError, match="blank"):
        ZeroShotTagger(clip, labels)
