"""No way through LlamaIndex leaves an image with a text's vector, and those that did are mended."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
from llama_index.core import StorageContext, VectorStoreIndex, load_index_from_storage
from llama_index.core.indices.multi_modal import MultiModalVectorStoreIndex
from llama_index.core.node_parser import SentenceSplitter
from llama_index.core.schema import Document, ImageDocument, ImageNode, TextNode

from llama_index_clip_ext import (
    CLIPEmbedding,
    CLIPVectorStoreIndex,
    EmbeddingError,
    TextsOnly,
    aingest_images,
    create_vector_store,
    ingest_images,
    load_embedding,
    load_image_nodes,
    sync_images,
)
from llama_index_clip_ext import provenance as remembered
from llama_index_clip_ext.demo.run import draw_pictures


def captioned(folder):
    """Give each picture a caption, which LlamaIndex's index would embed in its place."""
    for path in sorted(folder.iterdir()):
        path.with_suffix(".txt").write_text(f"a photograph, {path.stem}")
    return load_image_nodes(folder)


def spoil(monkeypatch, store, nodes, model):
    """Store images with the vectors of their texts, as an earlier version would have."""
    vectors = {node.node_id: model.get_text_embedding(node.text) for node in nodes}
    monkeypatch.setattr(remembered, "_MEMORY", remembered._Memory())
    copies = [node.model_copy(update={"embedding": vectors[node.node_id]}) for node in nodes]
    store.add(copies)


def vectors_of(store, nodes):
    return {node.node_id: node.embedding for node in store.get_nodes([n.node_id for n in nodes])}


def assert_vectors_of_images(store, nodes, model):
    for node_id, vector in vectors_of(store, nodes).items():
        path = next(node.image_path for node in nodes if node.node_id == node_id)
        np.testing.assert_allclose(vector, model.get_image_embedding(path), atol=1e-5)


def provenance_of(store):
    return store.get_provenance(store.get_ids())


def by_vector_store_index(nodes, store, model):
    VectorStoreIndex.from_vector_store(store, embed_model=model).insert_nodes(nodes)


def by_new_vector_store_index(nodes, store, model):
    context = StorageContext.from_defaults(vector_store=store)
    VectorStoreIndex(nodes, storage_context=context, embed_model=model)


def by_documents(nodes, store, model):
    context = StorageContext.from_defaults(vector_store=store)
    documents = [
        ImageDocument(image_path=node.image_path, text=node.text, metadata=node.metadata)
        for node in nodes
    ]
    VectorStoreIndex.from_documents(
        documents,
        storage_context=context,
        embed_model=model,
        transformations=[TextsOnly(SentenceSplitter())],
    )


def by_one_index_of_both_stores(nodes, store, model):
    context = StorageContext.from_defaults(vector_store=store, image_store=store)
    MultiModalVectorStoreIndex(
        nodes, storage_context=context, embed_model=model, image_embed_model=model
    )


ROADS = [
    by_vector_store_index,
    by_new_vector_store_index,
    by_documents,
    by_one_index_of_both_stores,
]


@pytest.mark.parametrize("road", ROADS, ids=lambda road: road.__name__)
def test_an_image_with_its_texts_vector_is_refused_and_what_was_there_stays(
    clip, store, pictures, road
):
    nodes = captioned(pictures)
    ingest_images(pictures, embed_model=clip, vector_store=store)
    with pytest.raises(EmbeddingError, match="is an image, and its embedding is that of a text"):
        road([node.model_copy() for node in nodes], store, clip)
    assert store.count() == store.count("image") == len(nodes)
    assert_vectors_of_images(store, nodes, clip)


@pytest.mark.parametrize(
    "copied",
    [
        list,
        lambda vector: json.loads(json.dumps(vector)),
        lambda vector: np.asarray(vector, dtype=np.float32).tolist(),
    ],
    ids=["list", "json", "float32"],
)
def test_a_texts_vector_is_known_however_it_is_copied(clip, store, pictures, copied):
    node = load_image_nodes(pictures / "red.png")[0]
    for embed in (clip.get_text_embedding, clip.get_query_embedding):
        with pytest.raises(EmbeddingError, match="is that of a text"):
            store.add([node.model_copy(update={"embedding": copied(embed("a red thing"))})])
    batch = clip.get_text_embedding_batch(["one", "two"])
    with pytest.raises(EmbeddingError, match="is that of a text"):
        store.add([node.model_copy(update={"embedding": copied(batch[1])})])
    assert store.count() == 0
    # A text with the same vector is what it says, and so is an image with an image's.
    right = clip.get_image_embedding(node.image_path)
    store.add([node.model_copy(update={"embedding": copied(right)})])
    store.add([TextNode(text="a red thing", embedding=clip.get_text_embedding("a red thing"))])
    assert (store.count("image"), store.count("text")) == (1, 1)


async def test_a_texts_vector_of_an_async_call_is_known(clip, store, pictures):
    node = load_image_nodes(pictures / "red.png")[0]
    for vector in (
        await clip.aget_text_embedding("a"),
        await clip.aget_query_embedding("b"),
        *await clip.aget_text_embedding_batch(["c"]),
    ):
        with pytest.raises(EmbeddingError, match="is that of a text"):
            await store.async_add([node.model_copy(update={"embedding": vector})])


def test_ones_own_vector_is_stored_with_one_warning(clip, store, pictures, caplog):
    nodes = load_image_nodes(pictures)
    own = np.eye(16, dtype=np.float32)
    for at, node in enumerate(nodes):
        store.add([node.model_copy(update={"embedding": own[at].tolist()})])
    assert [one.levelname for one in caplog.records if "repair=True" in one.message] == ["WARNING"]
    assert set(provenance_of(store).values()) == {"unknown"}
    np.testing.assert_allclose(vectors_of(store, nodes)[nodes[1].node_id], own[1], atol=1e-6)
    # They stay as they are, until repair is asked for.
    report = ingest_images(pictures, embed_model=clip, vector_store=store)
    assert (report.unchanged, report.total) == (5, 5)
    np.testing.assert_allclose(vectors_of(store, nodes)[nodes[1].node_id], own[1], atol=1e-6)


def test_ingest_says_which_tower_made_what_it_stores(clip, store, pictures):
    ingest_images(pictures, embed_model=clip, vector_store=store)
    store.add(clip([TextNode(text="soup", id_="soup")]))
    made = provenance_of(store)
    assert made.pop("soup") == "text"
    assert set(made.values()) == {"image"}


def test_ingest_repairs_what_it_is_asked_to(clip, store, pictures, monkeypatch):
    nodes = captioned(pictures)
    spoil(monkeypatch, store, nodes, clip)
    assert set(provenance_of(store).values()) == {"unknown"}

    report = ingest_images(pictures, embed_model=clip, vector_store=store)
    assert (report.unchanged, report.total) == (5, 5)
    report = ingest_images(pictures, embed_model=clip, vector_store=store, repair=True)
    assert (report.replaced, report.total) == (5, 5)
    assert_vectors_of_images(store, nodes, clip)
    assert set(provenance_of(store).values()) == {"image"}
    report = ingest_images(pictures, embed_model=clip, vector_store=store, repair=True)
    assert (report.unchanged, report.total) == (5, 5)


async def test_the_async_twin_repairs_too(clip, store, pictures, monkeypatch):
    nodes = captioned(pictures)
    spoil(monkeypatch, store, nodes, clip)
    await aingest_images(pictures, embed_model=clip, vector_store=store, repair=True)
    assert_vectors_of_images(store, nodes, clip)


def test_a_sync_that_checks_repairs(clip, store, pictures, monkeypatch):
    nodes = captioned(pictures)
    spoil(monkeypatch, store, nodes, clip)
    sync_images(pictures, embed_model=clip, vector_store=store)
    assert set(provenance_of(store).values()) == {"unknown"}
    report = sync_images(pictures, embed_model=clip, vector_store=store, checksum=True)
    assert report.replaced == 5
    assert_vectors_of_images(store, nodes, clip)
    report = sync_images(pictures, embed_model=clip, vector_store=store, checksum=True)
    assert report.unchanged == 5


def test_a_trained_model_finds_the_image_again_after_a_repair(tmp_path, monkeypatch):
    """What the fault did to a search: "a red circle" no longer found the red circle."""
    model = load_embedding("demo-clip")
    draw_pictures(tmp_path / "shapes")
    nodes = [
        node.model_copy(update={"text": f"drawing {at}"})
        for at, node in enumerate(load_image_nodes(tmp_path / "shapes"))
    ]
    with create_vector_store(model, uri=tmp_path / "shapes.db") as store:
        spoil(monkeypatch, store, nodes, model)
        index = CLIPVectorStoreIndex.from_vector_store(store, embed_model=model)
        retriever = index.as_retriever(modality="image", similarity_top_k=1)
        spoiled = {node.node_id: node for node in store.get_nodes([n.node_id for n in nodes])}
        ingest_images(nodes, embed_model=model, vector_store=store, repair=True)
        (hit,) = retriever.retrieve("a red circle")
        assert hit.node.metadata["file_name"].endswith("-red-circle.png")
        asked = np.array(model.get_query_embedding("a red circle"))
        before = float(asked @ spoiled[hit.node_id].embedding)
        assert hit.score > before + 0.2


def test_the_memory_of_vectors_is_bounded(monkeypatch):
    monkeypatch.setattr(remembered, "_REMEMBERED", 10)
    memory = remembered._Memory()
    memory.remember(range(100), "text")
    assert memory.find(99) == "text"
    assert memory.find(0) is None
    assert len(memory._latest) + len(memory._earlier) <= 20
    # At the least the latest ten are known.
    assert all(memory.find(key) == "text" for key in range(90, 100))


def test_an_index_comes_back_as_what_it_was(clip, store, pictures, tmp_path):
    context = StorageContext.from_defaults(vector_store=store)
    nodes = captioned(pictures)
    made = CLIPVectorStoreIndex(nodes, storage_context=context, embed_model=clip)
    made.set_index_id("pictures")
    context.persist(str(tmp_path / "storage"))

    again = StorageContext.from_defaults(vector_store=store, persist_dir=str(tmp_path / "storage"))
    for index_id in ("pictures", None):
        loaded = load_index_from_storage(again, index_id=index_id, embed_model=clip)
        assert type(loaded) is CLIPVectorStoreIndex
    loaded.insert(ImageDocument(image_path=nodes[0].image_path, text="a caption", id_="again"))
    np.testing.assert_allclose(
        vectors_of(store, [ImageNode(id_="again")])["again"],
        clip.get_image_embedding(nodes[0].image_path),
        atol=1e-5,
    )
    loaded.insert(Document(text="soup", id_="soup"))
    assert store.count("text") == 1
    assert len(loaded.as_retriever(similarity_top_k=7).retrieve("soup")) == 7


def test_an_index_that_was_stored_beside_llama_indexs_keeps_apart(clip, store, pictures, tmp_path):
    context = StorageContext.from_defaults(vector_store=store)
    ours = CLIPVectorStoreIndex([], storage_context=context, embed_model=clip)
    theirs = VectorStoreIndex([], storage_context=context, embed_model=clip)
    context.persist(str(tmp_path / "storage"))
    again = StorageContext.from_defaults(vector_store=store, persist_dir=str(tmp_path / "storage"))
    for index in (ours, theirs):
        loaded = load_index_from_storage(again, index_id=index.index_id, embed_model=clip)
        assert type(loaded) is type(index)


LOAD = """
import sys
from llama_index.core import StorageContext, load_index_from_storage
load_index_from_storage(StorageContext.from_defaults(persist_dir=sys.argv[1]))
"""


def test_a_process_that_never_imported_the_package_is_told_to(clip, store, tmp_path):
    context = StorageContext.from_defaults(vector_store=store)
    CLIPVectorStoreIndex([], storage_context=context, embed_model=clip)
    context.persist(str(tmp_path / "storage"))
    done = subprocess.run(
        [sys.executable, "-c", LOAD, str(tmp_path / "storage")],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 1
    assert "import llama_index_clip_ext before this index is loaded" in done.stderr


def test_a_model_that_skips_pictures_does_not_hide_a_wrong_vector(clip_dir, store, pictures):
    lenient = CLIPEmbedding(clip_dir, on_error="skip")
    nodes = captioned(pictures)
    with pytest.raises(EmbeddingError, match="is that of a text"):
        by_vector_store_index(nodes, store, lenient)
    assert store.count() == 0


def test_what_was_read_is_known_when_it_is_written_again(
    clip, store, pictures, monkeypatch, caplog
):
    """As by another process, which tags what is stored."""
    ingest_images(pictures, embed_model=clip, vector_store=store)
    store.add(clip([TextNode(text="soup", id_="soup")]))
    before = provenance_of(store)
    monkeypatch.setattr(remembered, "_MEMORY", remembered._Memory())
    nodes = store.get_nodes(store.get_ids())
    for node in nodes:
        node.metadata["album"] = "spring"
    store.add(nodes)
    assert provenance_of(store) == before
    assert "repair=True" not in caplog.text


def test_an_index_that_is_loaded_without_a_store_says_which(clip, store, tmp_path):
    context = StorageContext.from_defaults(vector_store=store)
    CLIPVectorStoreIndex([], storage_context=context, embed_model=clip)
    context.persist(str(tmp_path / "storage"))
    alone = StorageContext.from_defaults(persist_dir=str(tmp_path / "storage"))
    with pytest.raises((TypeError, ValueError), match="create_vector_store"):
        load_index_from_storage(alone, embed_model=clip)
