import asyncio
import logging
import math

import numpy as np
import pytest
from llama_index.core.postprocessor import SimilarityPostprocessor
from llama_index.core.schema import (
    ImageNode,
    MetadataMode,
    NodeWithScore,
    QueryBundle,
    TextNode,
)
from llama_index.core.vector_stores.types import MetadataFilter, MetadataFilters
from PIL import Image

from llama_index_clip_ext import (
    CLIPEmbedding,
    CLIPVectorStoreIndex,
    EmbeddingSpaceMismatchError,
    FilterError,
    ScoreStatistics,
    acalibrate_scores,
    calibrate_scores,
    create_retriever,
    create_vector_store,
    ingest_images,
)
from llama_index_clip_ext.demo.run import draw_pictures
from llama_index_clip_ext.scores import cut_off


def names(hits):
    return [hit.node.metadata.get("file_name", hit.node.node_id) for hit in hits]


@pytest.fixture
def filled(clip, store, pictures):
    """The five colours, and two texts."""
    ingest_images(pictures, embed_model=clip, vector_store=store)
    store.add(clip([TextNode(text="a red thing", id_="t1"), TextNode(text="soup", id_="t2")]))
    return store


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """The demo's 168 captioned pictures, and their captions as texts; calibrated."""
    folder = tmp_path_factory.mktemp("demo")
    draw_pictures(folder / "pictures")
    embed_model = CLIPEmbedding("demo-clip")
    captions = {file.read_text(encoding="utf-8") for file in (folder / "pictures").glob("*.txt")}
    with create_vector_store(embed_model, uri=folder / "demo.db") as store:
        ingest_images(folder / "pictures", embed_model=embed_model, vector_store=store)
        store.add(embed_model([TextNode(text=caption) for caption in sorted(captions)]))
        calibrate_scores(embed_model, store)
        yield embed_model, store, folder / "pictures"


def test_images_and_texts_are_fused_by_rank_and_keep_their_cosines(clip, filled, pictures):
    retriever = create_retriever(clip, filled, similarity_top_k=4, modality="both")
    hits = retriever.retrieve("a red thing")
    images = create_retriever(clip, filled, similarity_top_k=4).retrieve("a red thing")
    texts = create_retriever(clip, filled, similarity_top_k=4, modality="text").retrieve(
        "a red thing"
    )
    # First of each, second of each: by score alone both texts would come first.
    expected = [images[0], texts[0], images[1], texts[1]]
    assert names(hits) == names(expected)
    assert [hit.score for hit in hits] == pytest.approx([1 / 61, 1 / 61, 1 / 62, 1 / 62])
    for hit, other in zip(hits, expected, strict=True):
        assert hit.node.metadata["retrieval_similarity"] == pytest.approx(other.score, abs=1e-6)
    assert [hit.node.metadata["retrieval_modality"] for hit in hits] == ["image", "text"] * 2
    for hit in hits:
        for mode in (MetadataMode.EMBED, MetadataMode.LLM):
            assert "retrieval_similarity" not in hit.node.get_content(mode)
    for again in (
        asyncio.run(retriever.aretrieve("a red thing")),
        retriever.retrieve("a red thing"),
    ):
        assert names(again) == names(hits)
    assert "retrieval_similarity" not in images[0].node.metadata  # It is the score.
    assert texts[0].node.metadata["retrieval_modality"] == "text"


def test_cutoffs_by_hand():
    hits = [NodeWithScore(node=TextNode(), score=score) for score in (0.4, 0.3, 0.1, -0.1)]

    def left(*cutoffs):
        return [hit.score for hit in cut_off(hits, *cutoffs)]

    assert left(None, None) == [0.4, 0.3, 0.1, -0.1]
    assert left(0.3, None) == [0.4, 0.3]
    assert left(None, 0.5) == [0.4, 0.3]
    assert left(0.35, 0.5) == [0.4]
    assert left(None, 0.0) == [0.4, 0.3, 0.1]
    assert left(None, 1.0) == [0.4]
    # Where even the best is below zero there is nothing to take a share of.
    assert cut_off(hits[3:], None, 0.5) == hits[3:]


def test_cutoffs_are_monotone_in_the_retriever(demo):
    embed_model, store, _ = demo
    counts = {"similarity_cutoff": [], "relative_cutoff": []}
    for name, found in counts.items():
        for cutoff in (0.0, 0.3, 0.6, 0.9, 1.0):
            retriever = create_retriever(embed_model, store, similarity_top_k=100, **{name: cutoff})
            found.append(len(retriever.retrieve("a red circle")))
        assert found == sorted(found, reverse=True)
    assert counts["relative_cutoff"][0] > counts["relative_cutoff"][3] >= 1
    assert counts["relative_cutoff"][4] == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"relative_cutoff": 1.5}, "relative_cutoff is 1.5, expected 0 to 1"),
        ({"calibrated": True}, r"not calibrated: call calibrate_scores"),
        (
            {"similarity_cutoff": 0.1, "vector_store_query_mode": "hybrid"},
            "similarity_cutoff is for cosines",
        ),
        (
            {"calibrated": True, "vector_store_query_mode": "text_search"},
            "calibrated is for cosines",
        ),
        ({"similarity_top_k": 20_000}, "similarity_top_k is 20000, expected .* 16384"),
        ({"similarity_top_k": 0}, "similarity_top_k is 0"),
        ({"similarity_top_k": -1}, "similarity_top_k is -1"),
        ({"similarity_top_k": 2.0}, r"similarity_top_k is 2\.0, expected a whole number"),
        ({"similarity_top_k": True}, "similarity_top_k is True"),
        ({"similarity_top_k": "5"}, "similarity_top_k is '5'"),
        ({"similarity_top_k": None}, "similarity_top_k is None"),
        ({"similarity_cutoff": 2.0}, r"similarity_cutoff is 2\.0, and no cosine is above 1"),
        ({"similarity_cutoff": math.nan}, "similarity_cutoff is NaN"),
        ({"relative_cutoff": math.nan}, "relative_cutoff is nan"),
        ({"vector_store_query_mode": "hybrid"}, "has no full text"),
        ({"vector_store_query_mode": "text_search"}, "has no full text"),
        ({"vector_store_query_mode": "sparse"}, "has no full text"),
        ({"vector_store_query_mode": "svm"}, "'svm' is not supported"),
        ({"alpha": 2.0, "vector_store_query_mode": "hybrid"}, r"alpha is 2\.0"),
        ({"alpha": 0.5}, "alpha is for vector_store_query_mode='hybrid', and it is 'default'"),
        ({"mmr_threshold": 0.5}, "mmr_threshold is for vector_store_query_mode='mmr'"),
        ({"modality": "audio"}, "modality is 'audio'"),
    ],
)
def test_impossible_options_say_so(clip, filled, options, message):
    with pytest.raises(ValueError, match=message):
        create_retriever(clip, filled, **options)
    with pytest.raises(ValueError, match=message):
        CLIPVectorStoreIndex.from_vector_store(filled, embed_model=clip).as_retriever(**options)


def test_a_filter_that_cannot_be_asked_fails_where_the_retriever_is_made(clip, filled):
    bad = MetadataFilters(filters=[MetadataFilter(key="a", operator=">", value=["b"])])
    with pytest.raises(FilterError):
        create_retriever(clip, filled, filters=bad)


def test_a_bundle_of_an_embedding_alone_is_calibrated_as_what_it_is_of(demo):
    """By cosine an image is far above most texts: taken for a text's, all images are hits."""
    embed_model, store, folder = demo
    retriever = create_retriever(embed_model, store, calibrated=True, similarity_top_k=200)
    picture = sorted(folder.glob("*.png"))[5]

    def scores(hits):
        return {hit.node.node_id: hit.score for hit in hits}

    by_image = scores(retriever.retrieve_image(picture))
    of_image = QueryBundle("", embedding=embed_model.get_image_embedding(picture))
    assert scores(retriever.retrieve(of_image)) == pytest.approx(by_image, abs=1e-3)
    assert scores(asyncio.run(retriever.aretrieve(of_image))) == pytest.approx(by_image, abs=1e-3)
    by_text = scores(retriever.retrieve("a red circle"))
    of_text = QueryBundle("", embedding=embed_model.get_query_embedding("a red circle"))
    assert scores(retriever.retrieve(of_text)) == pytest.approx(by_text, abs=1e-3)
    measured = store.passport.calibration
    assert measured["image->image"].mean > measured["text->image"].mean + 0.1

    unknown = np.random.default_rng(0).normal(size=64)
    with pytest.raises(ValueError, match=r"give it image_path= or query_str="):
        retriever.retrieve(QueryBundle("", embedding=unknown.tolist()))
    # Without calibration nobody needs to know.
    plain = create_retriever(embed_model, store)
    assert len(plain.retrieve(QueryBundle("", embedding=unknown.tolist()))) == 5


def test_the_usual_cutoff_is_warned_about_where_no_text_reaches_it(
    clip, filled, demo, caplog, tmp_path
):
    worded = create_vector_store(clip, uri=tmp_path / "words.db", full_text="english")
    usual = [SimilarityPostprocessor(similarity_cutoff=0.7)]

    def warnings(*args, **options):
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            create_retriever(*args, node_postprocessors=usual, **options)
        return caplog.messages

    (message,) = warnings(clip, filled)
    assert "SimilarityPostprocessor(similarity_cutoff=0.7) drops every hit: good text-to-image" in (
        message
    )
    assert len(warnings(clip, filled, modality="both")) == 1
    assert warnings(clip, filled, modality="text") == []
    assert warnings(demo[0], demo[1], calibrated=True) == []
    words = {"vector_store_query_mode": "text_search"}
    both = {"vector_store_query_mode": "hybrid"}
    assert warnings(clip, worded, **words) == []
    assert "ranks are fused, and score 0.033 at most" in warnings(clip, worded, **both)[0]
    assert warnings(clip, worded, **both, alpha=0.5) == []
    usual[0] = SimilarityPostprocessor(similarity_cutoff=0.2)
    assert warnings(clip, filled) == []
    assert "ranks are fused" in warnings(clip, filled, modality="both")[0]
    assert "ranks are fused" in warnings(demo[0], demo[1], modality="both", calibrated=True)[0]
    usual[0] = SimilarityPostprocessor(similarity_cutoff=0.02)
    assert "score 0.016 at most" in warnings(clip, filled, modality="both")[0]
    assert warnings(clip, worded, **both) == []
    usual[0] = SimilarityPostprocessor(similarity_cutoff=0.01)
    assert warnings(clip, filled, modality="both") == []
    worded.close()


def test_postprocessors_are_applied_in_order_sync_and_async(clip, filled):
    retriever = create_retriever(
        clip, filled, node_postprocessors=[SimilarityPostprocessor(similarity_cutoff=2.0)]
    )
    assert retriever.retrieve("soup") == []
    assert asyncio.run(retriever.aretrieve("soup")) == []


def test_the_statistics_are_those_of_unrelated_pairs_by_hand(demo):
    _, store, _ = demo
    images, texts = (store.sample_nodes(modality, 10_000) for modality in ("image", "text"))
    rows = np.array([node.embedding for node in images])
    asked = np.array([node.embedding for node in texts])
    cosines = asked @ rows.T
    unrelated = [
        cosines[t, i]
        for t, text in enumerate(texts)
        for i, image in enumerate(images)
        if text.text != image.text
    ]
    measured = store.passport.calibration
    assert measured["text->image"].mean == pytest.approx(np.mean(unrelated), abs=1e-5)
    assert measured["text->image"].std == pytest.approx(np.std(unrelated), abs=1e-5)
    assert set(measured) == {
        f"{asked}->{found}"
        for asked in ("text", "image", "composed")
        for found in ("image", "text")
    }
    assert measured["text->text"].mean > measured["text->image"].mean


def test_a_part_of_no_weight_does_not_change_what_a_score_means(demo):
    embed_model, store, pictures = demo
    retriever = create_retriever(embed_model, store, calibrated=True)
    query = next(iter(sorted(pictures.glob("*.png"))))

    def scores(hits):
        return [(hit.node_id, pytest.approx(hit.score, abs=1e-3)) for hit in hits]

    both = QueryBundle("red", image_path=str(query))
    by_text, by_image = retriever.retrieve("red"), retriever.retrieve_image(query)
    for weights, alone in (((1, 0), by_text), ((0, 1), by_image)):
        composed = embed_model.compose_query(text="red", image=query, weights=weights)
        assert [(hit.node_id, hit.score) for hit in retriever.retrieve(composed)] == scores(alone)
    for ask, alone in (
        (retriever.text_to_image_retrieve, by_text),
        (retriever.image_to_image_retrieve, by_image),
    ):
        assert [(hit.node_id, hit.score) for hit in ask(both)] == scores(alone)
    # Like a text is as by a text.
    (text,) = store.sample_nodes("text", 1)
    like = retriever.retrieve_like([text.node_id])
    asked = retriever.retrieve(QueryBundle("x", embedding=text.embedding))
    assert [(hit.node_id, hit.score) for hit in like] == scores(asked)


def test_both_may_be_asked_for_where_there_are_no_texts(clip, store, tmp_path):
    folder = tmp_path / "many"
    folder.mkdir()
    for number in range(12):
        Image.new("RGB", (8, 8), (20 * number, 0, 255 - 20 * number)).save(folder / f"{number}.png")
    ingest_images(folder, embed_model=clip, vector_store=store)
    calibrate_scores(clip, store, texts=[f"soup {number}" for number in range(12)])
    both = create_retriever(clip, store, calibrated=True, modality="both")
    assert len(both.retrieve("soup")) == 5
    store.add(clip([TextNode(text="soup")]))
    with pytest.raises(ValueError, match="text->text is not calibrated.* too few texts"):
        both.retrieve("soup")
    with pytest.raises(TypeError, match="texts is one str"):
        calibrate_scores(clip, store, texts="soup")


def test_calibrated_scores_are_standard_deviations_and_keep_the_cosine(demo):
    embed_model, store, pictures = demo
    plain = create_retriever(embed_model, store)
    calibrated = create_retriever(embed_model, store, calibrated=True)
    query = next(iter(sorted(pictures.glob("*.png"))))
    composed = embed_model.compose_query(text="red", image=query)
    for direction, ask in (
        ("text->image", lambda one: one.retrieve("a red circle")),
        ("image->image", lambda one: one.retrieve_image(query)),
        ("image->image", lambda one: one.retrieve_like([query])),
        ("composed->image", lambda one: one.retrieve(composed)),
    ):
        statistics = store.passport.calibration[direction]
        before, after = ask(plain), ask(calibrated)
        assert names(before) == names(after)
        for hit, other in zip(after, before, strict=True):
            assert hit.node.metadata["retrieval_similarity"] == pytest.approx(other.score, abs=1e-6)
            expected = (other.score - statistics.mean) / statistics.std
            assert hit.score == pytest.approx(expected, abs=1e-5)


def test_one_threshold_means_the_same_both_ways(demo):
    """Unrelated pictures pass it about as rarely, which no cosine does."""
    embed_model, store, pictures = demo

    def share_of_wrong(**options):
        wrong = {}
        retriever = create_retriever(embed_model, store, similarity_top_k=168, **options)
        files = sorted(pictures.glob("*.png"))[:128:4]
        for kind in ("text", "image"):
            passed = []
            for file in files:
                label = file.stem.partition("-")[2]
                hits = (
                    retriever.retrieve(f"a {label.replace('-', ' ')}")
                    if kind == "text"
                    else retriever.retrieve_image(file)
                )
                passed.append(sum(label not in name for name in names(hits)) / 160)
            wrong[kind] = float(np.mean(passed))
        return wrong

    calibrated = share_of_wrong(calibrated=True, similarity_cutoff=1.5)
    cosines = share_of_wrong(similarity_cutoff=0.25)
    assert max(calibrated.values()) < 2 * min(calibrated.values())
    assert max(cosines.values()) > 3 * min(cosines.values())


def test_a_calibration_survives_reopening_and_is_the_collections(clip, pictures, tmp_path):
    texts = [f"thing {n}" for n in range(12)]
    for n in range(12):
        (pictures / f"copy{n}.png").write_bytes((pictures / "red.png").read_bytes() + bytes([n]))
    with create_vector_store(clip, uri=tmp_path / "own.db") as store:
        ingest_images(pictures, embed_model=clip, vector_store=store)
        measured = asyncio.run(acalibrate_scores(clip, store, texts=texts))
        assert set(measured) == {"text->image", "image->image", "composed->image"}
    with create_vector_store(clip, uri=tmp_path / "own.db") as store:
        assert store.passport.calibration == measured
        assert store.count() == 17
        retriever = create_retriever(clip, store, calibrated=True, modality="text")
        store.add(clip([TextNode(text="soup")]))
        with pytest.raises(ValueError, match=r"text->text is not calibrated, only text->image"):
            retriever.retrieve("soup")


def test_what_cannot_be_calibrated_says_so(clip, other_clip_dir, filled):
    with pytest.raises(ValueError, match="5 images and 2 texts, at least 10 of each"):
        calibrate_scores(clip, filled)
    with pytest.raises(EmbeddingSpaceMismatchError):
        calibrate_scores(CLIPEmbedding(other_clip_dir), filled)


def test_copies_of_one_image_cannot_be_calibrated(clip, store, pictures):
    nodes = [
        ImageNode(image_path=str(pictures / "red.png"), id_=str(number)) for number in range(12)
    ]
    store.add(clip(nodes))
    with pytest.raises(ValueError, match="are these copies of one image"):
        calibrate_scores(clip, store, texts=[f"query {number}" for number in range(12)])
    assert not store.passport.calibration


def test_means_of_texts_are_texts(clip, store, pictures):
    ingest_images(pictures, embed_model=clip, vector_store=store)
    store.save_calibration({"text->image": ScoreStatistics(0.1, 0.2)})
    retriever = create_retriever(clip, store, calibrated=True)
    for embedding in (
        clip.get_agg_embedding_from_queries(["a", "b"]),
        asyncio.run(clip.aget_agg_embedding_from_queries(["a", "c"])),
        clip.compose_query(text=["a", "b"], minus=["c"]).embedding,
    ):
        assert retriever.retrieve(QueryBundle("", embedding=embedding))
