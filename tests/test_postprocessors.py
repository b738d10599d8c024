import asyncio
import io

import numpy as np
import pytest
from llama_index.core.schema import ImageNode, NodeWithScore, TextNode
from PIL import Image

from llama_index_clip_ext import (
    CLIPEmbedding,
    NearDuplicatePostprocessor,
    create_retriever,
    create_vector_store,
    ingest_images,
)
from llama_index_clip_ext.demo.drawing import draw_shapes


@pytest.fixture
def rows(clip, store):
    """Four images at known angles in a plane: 0, 5, 60 and 64 degrees."""
    nodes = []
    for degrees in (0, 5, 60, 64):
        vector = np.zeros(clip.dim)
        vector[:2] = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
        nodes.append(ImageNode(id_=str(degrees), image_path="x.png", embedding=vector.tolist()))
    store.add(nodes)
    return nodes


def hits_of(nodes):
    return [NodeWithScore(node=node.model_copy(), score=1.0) for node in nodes]


def ids(hits):
    return [hit.node.node_id for hit in hits]


def test_the_best_of_near_duplicates_stays_and_names_the_others(store, rows):
    collapse = NearDuplicatePostprocessor(vector_store=store)  # cos 5 degrees is 0.996
    hits = collapse.postprocess_nodes(hits_of(rows))
    assert ids(hits) == ["0", "60"]
    assert [hit.node.metadata["retrieval_near_duplicates"] for hit in hits] == [["5"], ["64"]]
    assert "retrieval_near_duplicates" in hits[0].node.excluded_llm_metadata_keys
    assert ids(asyncio.run(collapse.apostprocess_nodes(hits_of(rows[::-1])))) == ["64", "5"]
    loose = NearDuplicatePostprocessor(vector_store=store, threshold=0.4)
    assert ids(loose.postprocess_nodes(hits_of(rows))) == ["0"]
    exact = NearDuplicatePostprocessor(vector_store=store, threshold=1.0)
    assert ids(exact.postprocess_nodes(hits_of(rows))) == ["0", "5", "60", "64"]
    assert collapse.postprocess_nodes([]) == []


def test_a_second_pass_adds_up_and_repeats_nothing(store, rows):
    close = NearDuplicatePostprocessor(vector_store=store)
    loose = NearDuplicatePostprocessor(vector_store=store, threshold=0.4)
    hits = close.postprocess_nodes(close.postprocess_nodes(hits_of(rows)))
    assert [hit.node.metadata["retrieval_near_duplicates"] for hit in hits] == [["5"], ["64"]]
    (hit,) = loose.postprocess_nodes(hits)
    assert hit.node.metadata["retrieval_near_duplicates"] == ["5", "60", "64"]


def test_hits_of_another_store_are_left_as_they_are(store, rows):
    strangers = [TextNode(id_="a"), TextNode(id_="b")]
    collapse = NearDuplicatePostprocessor(vector_store=store)
    assert ids(collapse.postprocess_nodes(hits_of([*strangers, *rows[:2]]))) == ["a", "b", "0"]


def test_one_picture_in_three_files_is_one_hit(tmp_path):
    embed_model = CLIPEmbedding("demo-clip")
    folder = tmp_path / "pictures"
    folder.mkdir()
    for n, drawing in enumerate(draw_shapes(12, seed=5)):
        drawing.image.save(folder / f"{n:02}.png")
    with Image.open(folder / "03.png") as image:
        image.save(folder / "03-as.jpg", quality=90)
        image.resize((image.width * 2, image.height * 2), Image.Resampling.BICUBIC).save(
            folder / "03-large.png"
        )
        stream = io.BytesIO()
        image.save(stream, "PNG")
    with create_vector_store(embed_model, uri=tmp_path / "own.db") as store:
        ingest_images(folder, embed_model=embed_model, vector_store=store)
        collapse = NearDuplicatePostprocessor(vector_store=store, threshold=0.98)
        plain = create_retriever(embed_model, store, similarity_top_k=3)
        found = [hit.node.metadata["file_name"] for hit in plain.retrieve_image(stream)]
        assert sorted(found) == ["03-as.jpg", "03-large.png", "03.png"]
        collapsing = create_retriever(
            embed_model, store, similarity_top_k=14, node_postprocessors=[collapse]
        )
        hits = collapsing.retrieve_image(stream)
        assert [hit.node.metadata["file_name"][:2] for hit in hits].count("03") == 1
        assert len(hits[0].node.metadata["retrieval_near_duplicates"]) == 2


def test_an_impossible_threshold_says_so(store):
    with pytest.raises(ValueError, match="less than or equal to 1"):
        NearDuplicatePostprocessor(vector_store=store, threshold=1.5)
