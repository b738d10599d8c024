import os

import pytest
from llama_index.core.schema import TextNode

from llama_index_clip_ext import (
    NearDuplicatePostprocessor,
    create_retriever,
    create_vector_store,
    ingest_images,
    load_image_nodes,
)
from llama_index_clip_ext.notes import note, without_notes
from llama_index_clip_ext.rows import node_hash


@pytest.fixture
def words(clip, tmp_path):
    store = create_vector_store(clip, uri=str(tmp_path / "words.db"), full_text="standard")
    yield store
    store.close()


@pytest.mark.parametrize("options", [{"modality": "both"}, {"vector_store_query_mode": "hybrid"}])
def test_hits_that_are_stored_again_are_the_same_nodes(clip, words, pictures, options):
    (pictures / "red.txt").write_text("a red thing")
    ingest_images(pictures, embed_model=clip, vector_store=words)
    words.add(clip([TextNode(text="a red thing, in words", id_="text")]))
    close = NearDuplicatePostprocessor(vector_store=words, threshold=-1)
    retriever = create_retriever(clip, words, node_postprocessors=[close], **options)

    (hit,) = retriever.retrieve("a red thing")
    found = create_retriever(clip, words, **options).retrieve("a red thing")
    before = words.get_hashes([one.node.node_id for one in found])

    assert hit.node.metadata["retrieval_near_duplicates"]
    for one in (hit, *found):
        assert "retrieval_similarity" in one.node.metadata
        assert node_hash(one.node) == before[one.node.node_id]
        words.add(clip([one.node]))
    assert words.get_hashes(list(before)) == before
    stored = words.get_nodes([one.node.node_id for one in found])
    assert not any("retrieval_similarity" in node.metadata for node in stored)


def test_the_users_own_metadata_are_left_alone(clip, words, pictures):
    own = {"similarity": "high", "modality": "MRI", "bm25": 7, "near_duplicates": "none known"}
    os.utime(pictures / "red.png", (1_700_000_000, 1_700_000_000))
    (node,) = load_image_nodes(pictures / "red.png", captions=lambda path: "a red thing")
    node.metadata |= own
    # As for all that load_image_nodes writes.
    node.excluded_llm_metadata_keys = node.excluded_embed_metadata_keys = list(node.metadata)
    ingest_images([node], embed_model=clip, vector_store=words)
    close = NearDuplicatePostprocessor(vector_store=words, threshold=-1)
    for options in ({"modality": "both"}, {"vector_store_query_mode": "hybrid"}):
        retriever = create_retriever(clip, words, node_postprocessors=[close], **options)
        (hit,) = retriever.retrieve("a red thing")
        assert hit.node.metadata.items() >= own.items()
        words.add(clip([hit.node]))
        (stored,) = words.get_nodes([node.node_id])
        assert stored.metadata == node.metadata


def test_metadata_of_the_same_name_that_models_read_is_the_users():
    node = TextNode(text="x", metadata={"retrieval_similarity": "alike"})
    assert without_notes(node) is node
    note(node, {"retrieval_modality": "text"})
    assert without_notes(node).metadata == {"retrieval_similarity": "alike"}
    assert node.metadata == {"retrieval_similarity": "alike", "retrieval_modality": "text"}
