import asyncio
import base64
import inspect
import json

import numpy as np
import pytest
from llama_index.core import Settings, StorageContext
from llama_index.core.base.llms.types import ChatMessage
from llama_index.core.callbacks import CallbackManager
from llama_index.core.ingestion import IngestionPipeline
from llama_index.core.memory import ChatMemoryBuffer
from llama_index.core.node_parser import SentenceSplitter
from llama_index.core.schema import (
    Document,
    ImageDocument,
    ImageNode,
    IndexNode,
    MediaResource,
    MetadataMode,
    Node,
    NodeRelationship,
    QueryBundle,
    RelatedNodeInfo,
    TextNode,
    TransformComponent,
)
from llama_index.core.vector_stores import MetadataFilters, SimpleVectorStore
from llama_index.vector_stores.milvus import MilvusVectorStore
from witness import Witness

from llama_index_clip_ext import (
    CLIPEmbedding,
    CLIPVectorStoreIndex,
    EmbeddingSpaceMismatchError,
    ImageCaptioner,
    ImageLoadError,
    ZeroShotTagger,
    create_retriever,
    create_vector_store,
    load_image_nodes,
)
from llama_index_clip_ext.nodes import is_image_node


@pytest.fixture
def context(store):
    return StorageContext.from_defaults(vector_store=store)


@pytest.fixture
def index(clip, store):
    return CLIPVectorStoreIndex.from_vector_store(store, embed_model=clip)


def names(hits):
    return [hit.node.metadata.get("file_name", hit.node.node_id) for hit in hits]


def test_an_index_of_a_folder(clip, context, store, pictures):
    index = CLIPVectorStoreIndex(
        load_image_nodes(pictures), storage_context=context, embed_model=clip
    )
    assert store.count("image") == 5
    path = pictures / "green.png"
    assert names(index.as_retriever(similarity_top_k=2).retrieve_image(path))[0] == "green.png"
    index.insert_nodes(load_image_nodes(pictures))
    assert store.count() == 5
    node = store.get_nodes([load_image_nodes(path)[0].node_id])[0]
    np.testing.assert_allclose(node.embedding, clip.get_image_embedding(path), atol=1e-5)


def test_the_callers_nodes_are_left_as_they_are(index, pictures):
    nodes = [ImageNode(image_path=str(pictures / "red.png")), TextNode(text="soup")]
    before = [node.model_copy(deep=True) for node in nodes]
    index.insert_nodes(nodes)
    assert nodes == before


def test_nodes_with_embeddings_are_not_embedded_again(clip, index, store, pictures, monkeypatch):
    nodes = clip(load_image_nodes(pictures))
    monkeypatch.setattr(clip.encoder, "_rows", lambda *args: pytest.fail("computed again"))
    index.insert_nodes(nodes)
    assert store.count() == 5


async def test_embedded_and_new_nodes_together_keep_their_order(clip, index, store, pictures):
    embedded = clip(load_image_nodes(pictures / "red.png"))
    new = [TextNode(text="soup", id_="soup"), *load_image_nodes(pictures / "blue.png")]
    await index.ainsert_nodes([new[0], *embedded, new[1]])
    assert store.count("image") == 2
    assert store.count("text") == 1
    np.testing.assert_allclose(
        store.get_nodes(["soup"])[0].embedding, clip.get_text_embedding("soup"), atol=1e-5
    )


def test_an_image_that_does_not_load_is_raised_or_left_out(clip_dir, clip, store, pictures):
    (pictures / "bad.png").write_bytes(b"not a picture")
    nodes = load_image_nodes(pictures)
    with pytest.raises(ImageLoadError, match=r"bad\.png"):
        CLIPVectorStoreIndex.from_vector_store(store, embed_model=clip).insert_nodes(nodes)
    assert store.count() == 0
    lenient = CLIPEmbedding(clip_dir, on_error="skip")
    CLIPVectorStoreIndex.from_vector_store(store, embed_model=lenient).insert_nodes(nodes)
    assert store.count() == 5


def test_a_long_document_is_split_and_an_image_with_a_long_caption_is_not(clip, context, store):
    sentences = " ".join(f"This is sentence number {number}." for number in range(60))
    picture = base64.b64encode(_png()).decode()
    documents = [
        Document(text=sentences, id_="text"),
        ImageDocument(image=picture, text=sentences, id_="image"),
    ]
    splitter = SentenceSplitter(chunk_size=60, chunk_overlap=0)
    index = CLIPVectorStoreIndex.from_documents(
        documents, context, embed_model=clip, transformations=[splitter]
    )
    assert store.count("text") > 5
    assert store.count("image") == 1
    index.delete_ref_doc("text")
    assert (store.count("text"), store.count("image")) == (0, 1)
    index.insert(documents[0])
    assert store.count("text") > 5


def test_documents_of_a_run_that_failed_are_not_taken_for_done(clip, context, store, pictures):
    good = ImageDocument(image_path=str(pictures / "red.png"), id_="red")
    gone = ImageNode(image_path="gone.png", id_="gone")
    with pytest.raises(FileNotFoundError):
        CLIPVectorStoreIndex.from_documents([good, gone], context, embed_model=clip)
    index = CLIPVectorStoreIndex([], storage_context=context, embed_model=clip)
    assert index.refresh_ref_docs([good]) == [True]
    assert store.count() == 1


def test_a_changed_file_is_noticed_by_its_content(index, store, pictures):
    (node,) = load_image_nodes(pictures / "red.png")
    assert index.refresh_ref_docs([node]) == [True]
    (pictures / "red.png").write_bytes((pictures / "blue.png").read_bytes())
    assert index.refresh_ref_docs(load_image_nodes(pictures / "red.png")) == [True]
    assert index.refresh_ref_docs(load_image_nodes(pictures / "red.png")) == [False]
    assert store.count() == 1


def test_a_document_that_was_left_out_is_tried_again(clip_dir, context, store, pictures):
    lenient = CLIPEmbedding(clip_dir, on_error="skip")
    good, late = (
        ImageNode(image_path=str(pictures / f"{name}.png"), id_=name) for name in ("red", "late")
    )
    index = CLIPVectorStoreIndex.from_documents([good, late], context, embed_model=lenient)
    assert index.refresh_ref_docs([good, late]) == [False, False]
    (pictures / "late.png").write_bytes((pictures / "blue.png").read_bytes())
    assert index.refresh_ref_docs([good, late]) == [False, True]
    assert index.refresh_ref_docs([good, late]) == [False, False]
    assert store.count() == 2


@pytest.mark.parametrize("on_error", ["raise", "skip"])
async def test_what_was_stored_stays_where_an_update_fails(
    on_error, clip_dir, context, store, pictures
):
    model = CLIPEmbedding(clip_dir, on_error=on_error)
    index = CLIPVectorStoreIndex([], storage_context=context, embed_model=model)
    (before,) = load_image_nodes(pictures / "red.png")
    index.insert(before)
    (pictures / "red.png").write_bytes(b"not a picture")
    (after,) = load_image_nodes(pictures / "red.png")
    for update in (index.refresh_ref_docs, index.arefresh_ref_docs):
        if on_error == "raise":
            with pytest.raises(ImageLoadError):
                await _called(update, [after])
        else:
            assert await _called(update, [after]) == [False]
    assert store.get_nodes([before.node_id])[0].metadata == before.metadata


def test_an_image_that_a_model_among_the_transformations_left_out_keeps_its_row(
    clip_dir, context, store, pictures
):
    model = CLIPEmbedding(clip_dir, on_error="skip")
    index = CLIPVectorStoreIndex(
        [],
        storage_context=context,
        embed_model=model,
        transformations=[SentenceSplitter(), model],
    )
    (before,) = load_image_nodes(pictures / "red.png")
    index.insert(before)
    (pictures / "red.png").write_bytes(b"not a picture")
    (after,) = load_image_nodes(pictures / "red.png")
    assert index.refresh_ref_docs([after, Document(text="soup", id_="soup")]) == [False, True]
    assert store.get_nodes([before.node_id])[0].metadata == before.metadata
    index.update_ref_doc(Document(text=" ", id_="soup"))  # It has nothing to say any more.
    assert store.get_ids() == [before.node_id]


def test_a_document_and_the_images_that_name_it_are_stored_each_by_itself(
    clip_dir, context, store, pictures
):
    model = CLIPEmbedding(clip_dir, on_error="skip")
    index = CLIPVectorStoreIndex([], storage_context=context, embed_model=model)
    source = {NodeRelationship.SOURCE: RelatedNodeInfo(node_id="pdf")}
    figure, own, gone = (
        ImageNode(image_path=str(pictures / f"{name}.png"), id_=name, relationships=source)
        for name in ("red", "blue", "gone")
    )
    index.insert_nodes([figure])
    pdf = Document(text="soup", id_="pdf")
    assert index.refresh_ref_docs([pdf, own, gone]) == [True, True, False]
    changed = Document(text="salt", id_="pdf")
    assert index.refresh_ref_docs([pdf, own, changed]) == [True, False, True]
    assert sorted(store.get_ids()) == ["blue", "pdf", "red"]
    assert store.get_nodes(["pdf"])[0].text == "salt"  # Of one id, the last counts.
    assert index.refresh_ref_docs([changed, own]) == [False, False]


def test_a_document_with_a_broken_image_leaves_nothing_behind(clip_dir, context, store, pictures):
    class Figures(TransformComponent):
        def __call__(self, nodes, **kwargs):
            assert kwargs["tenant"] == "a"
            image = ImageNode(image_path="gone.png")
            parts = [TextNode(text="part of a text"), image]
            for part in parts:
                part.relationships[NodeRelationship.SOURCE] = nodes[0].as_related_node_info()
            return parts

    index = CLIPVectorStoreIndex(
        [],
        storage_context=context,
        embed_model=CLIPEmbedding(clip_dir, on_error="skip"),
        transformations=[Figures()],
    )
    for _ in range(2):
        index.insert(Document(text="soup", id_="pdf"), tenant="a")
    assert store.count() == 0
    assert index.docstore.get_document_hash("pdf") is None


async def _called(function, *args):
    answer = function(*args)
    return await answer if inspect.isawaitable(answer) else answer


async def test_a_document_takes_its_own_place_in_an_index_that_is_opened_again(clip, store):
    text = " ".join(f"This is sentence number {number}." for number in range(60))
    document, other = Document(text=text, id_="text"), Document(text=text, id_="other")
    splitter = SentenceSplitter(chunk_size=60, chunk_overlap=0)
    options = {"embed_model": clip, "transformations": [splitter]}
    context = StorageContext.from_defaults(vector_store=store)
    CLIPVectorStoreIndex.from_documents([document, other], context, **options)
    size = store.count()
    assert size > 10
    index = CLIPVectorStoreIndex.from_vector_store(store, **options)
    assert index.refresh_ref_docs([document]) == [True]
    await index.ainsert(document)
    await index.aupdate_ref_doc(document)
    assert store.count() == size
    index.update_ref_doc(Document(text="short", id_="text"))
    assert store.count() == size // 2 + 1
    context = StorageContext.from_defaults(vector_store=store)
    CLIPVectorStoreIndex.from_documents([document], context, **options)
    assert store.count() == size


def test_what_is_made_for_images_is_given_them_by_from_documents(clip, context, store, pictures):
    captioner = ImageCaptioner(llm=Witness([ChatMessage(content="soup")] * 5).llm, num_workers=1)
    index = CLIPVectorStoreIndex.from_documents(
        [*load_image_nodes(pictures), Document(text="soup")],
        context,
        embed_model=clip,
        transformations=[captioner, ZeroShotTagger(clip, ["a", "b"]), SentenceSplitter()],
    )
    images = store.get_nodes(store.get_ids(modality="image"))
    assert [node.text for node in images] == ["soup"] * 5
    assert all(node.metadata["tags"] for node in images)
    assert store.count("text") == 1
    assert index.refresh_ref_docs(load_image_nodes(pictures)) == [False] * 5


def test_nodes_that_are_deleted_from_the_docstore_can_be_added_again(index, store, pictures):
    nodes = load_image_nodes(pictures)
    index.refresh_ref_docs(nodes)
    index.delete_nodes([nodes[0].node_id], delete_from_docstore=True)
    asyncio.run(index.adelete_nodes([nodes[1].node_id], delete_from_docstore=True))
    index.delete_nodes([nodes[2].node_id])
    assert store.count() == 2
    assert index.refresh_ref_docs(nodes) == [True, True, False, False, False]


def test_what_holds_nothing_is_left_out_and_said(index, store, caplog):
    sound = Node(audio_resource=MediaResource(data=b"sound"))
    index.insert_nodes([TextNode(text=" "), sound, TextNode(text="soup", id_="soup")])
    index.refresh_ref_docs([Document(text="", id_="empty")])
    assert store.get_ids() == ["soup"]
    assert "left out 2 nodes without a text or an image" in caplog.text


def test_only_of_these_nodes_or_documents(index, store, pictures):
    nodes = load_image_nodes(pictures)
    index.insert_nodes([*nodes, TextNode(text="soup", id_="a chunk")])
    one, two = nodes[1].node_id, nodes[3].node_id

    def ids(**options):
        return sorted(hit.node_id for hit in index.as_retriever(**options).retrieve("soup"))

    assert ids(node_ids=[one, two]) == sorted([one, two])
    assert ids(doc_ids=[two]) == [two]
    assert ids(doc_ids=[two], node_ids=[one]) == []
    assert ids(doc_ids=[]) == ids(node_ids=[]) == []
    assert ids(doc_ids=["a chunk", two], modality="both") == sorted(["a chunk", two])
    engine = index.as_query_engine(llm=Witness().llm, node_ids=[one])
    assert [hit.node_id for hit in engine.query("soup").source_nodes] == [one]


def test_pixels_are_kept_nowhere(clip, context, tmp_path):
    picture = base64.b64encode(_png()).decode()
    index = CLIPVectorStoreIndex(
        [ImageNode(image=picture)], storage_context=context, embed_model=clip
    )
    index.storage_context.persist(str(tmp_path / "storage"))
    files = [path.read_text() for path in (tmp_path / "storage").iterdir()]
    assert files
    assert not any(picture[:40] in content for content in files)
    assert json.loads((tmp_path / "storage" / "index_store.json").read_text())


def test_objects_behind_index_nodes_are_retrieved_from(clip, store, context, pictures):
    images = CLIPVectorStoreIndex.from_vector_store(store, embed_model=clip)
    images.insert_nodes(load_image_nodes(pictures))
    shelf = IndexNode(
        text="pictures of colours", index_id="colours", obj=images.as_retriever(modality="image")
    )
    index = CLIPVectorStoreIndex(objects=[shelf], storage_context=context, embed_model=clip)
    hits = index.as_retriever(modality="text").retrieve("pictures of colours")
    assert sorted(names(hits)) == sorted(path.name for path in pictures.iterdir())


def test_objects_of_nodes_are_kept_apart_and_the_callers_nodes_stay_whole(clip, store, context):
    store.add(clip([TextNode(text="a red circle", id_="behind")]))
    behind = create_retriever(clip, store, modality="text", node_ids=["behind"])

    def shelf(name):
        return IndexNode(text=name, index_id=name, obj=behind)

    first, second, third = shelf("first"), shelf("second"), shelf("third")
    index = CLIPVectorStoreIndex(
        [first], objects=[second], storage_context=context, embed_model=clip
    )
    retriever = index.as_retriever(modality="text", similarity_top_k=1)
    index.insert_nodes([third])
    for name in ("first", "second", "third"):
        assert [hit.node_id for hit in retriever.retrieve(name)] == ["behind"]
    assert first.obj is second.obj is third.obj is behind


def test_options_of_the_retriever(index, clip, store, pictures):
    index.insert_nodes([*load_image_nodes(pictures), TextNode(text="soup", id_="soup")])
    assert names(index.as_retriever(modality="text").retrieve("soup")) == ["soup"]
    assert len(index.as_retriever(similarity_top_k=2).retrieve("soup")) == 2
    strict = index.as_retriever(similarity_cutoff=0.9999, modality="image")
    assert names(strict.retrieve_image(pictures / "red.png")) == ["red.png"]
    with pytest.raises(ValueError, match="modality is 'sound'"):
        index.as_retriever(modality="sound")
    same = create_retriever(clip, store).retrieve("soup")
    assert names(index.as_retriever(modality="image").retrieve("soup")) == names(same)


def test_what_does_not_belong_together_is_refused(clip, context, other_clip_dir, pictures):
    nodes = load_image_nodes(pictures)
    with pytest.raises(EmbeddingSpaceMismatchError):
        CLIPVectorStoreIndex(
            nodes, storage_context=context, embed_model=CLIPEmbedding(other_clip_dir)
        )
    with pytest.raises(TypeError, match="SimpleVectorStore, expected what create_vector_store"):
        CLIPVectorStoreIndex.from_vector_store(SimpleVectorStore(), embed_model=clip)
    with pytest.raises(TypeError, match="embed_model"):
        CLIPVectorStoreIndex(nodes, storage_context=context)


def test_no_url_is_fetched(index):
    """LlamaIndex's multimodal index would fetch it, wherever it points to."""
    with pytest.raises(ImageLoadError, match="http"):
        index.insert_nodes([ImageNode(image_url="http://169.254.169.254/picture.png")])


def test_settings_are_neither_read_nor_set(clip, context, pictures, monkeypatch):
    def refuse(self):
        pytest.fail("Settings was read")

    for name in ("embed_model", "llm", "callback_manager", "node_parser", "transformations"):
        monkeypatch.setattr(type(Settings), name, property(refuse))
    documents = [ImageDocument(image_path=str(pictures / "red.png")), Document(text="soup")]
    index = CLIPVectorStoreIndex.from_documents(documents, context, embed_model=clip)
    assert isinstance(index.as_retriever().callback_manager, CallbackManager)
    assert len(index.as_retriever().retrieve("soup")) == 2


def test_an_index_goes_on_where_a_pipeline_wrote(clip, index, store, pictures):
    IngestionPipeline(transformations=[clip], vector_store=store).run(
        nodes=load_image_nodes(pictures)
    )
    assert names(index.as_retriever().retrieve_image(pictures / "black.png"))[0] == "black.png"


def _png() -> bytes:
    from io import BytesIO

    from PIL import Image

    buffer = BytesIO()
    Image.linear_gradient("L").save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def mixed(clip, store, pictures):
    """An index of five pictures, and a text that answers the question better than any."""
    index = CLIPVectorStoreIndex.from_vector_store(store, embed_model=clip)
    index.insert_nodes([*load_image_nodes(pictures), TextNode(text="the soup is hot", id_="soup")])
    return index


def kinds(nodes):
    return {type(hit.node).__name__ for hit in nodes}


def test_images_and_texts_answer_by_default(mixed):
    """The retriever's, the query engine's and every chat engine's default."""
    both = {"ImageNode", "TextNode"}
    assert kinds(mixed.as_retriever().retrieve("soup")) == both
    assert kinds(mixed.as_query_engine(llm=Witness().llm).query("soup").source_nodes) == both
    for mode in ("context", "condense_plus_context", "best", "condense_question"):
        engine = mixed.as_chat_engine(chat_mode=mode, llm=Witness().llm, **memory(mode))
        assert kinds(engine.chat("soup").source_nodes) == both, mode
    assert kinds(mixed.as_retriever(modality="image").retrieve("soup")) == {"ImageNode"}


def memory(mode):
    # LlamaIndex's own default opens a database that it does not close.
    return {} if mode == "simple" else {"memory": ChatMemoryBuffer.from_defaults(token_limit=3000)}


@pytest.mark.parametrize("mode", ["context", "condense_plus_context", "best", "condense_question"])
@pytest.mark.parametrize("is_async", [False, True])
def test_a_multimodal_chat_engine_shows_the_images(mixed, pictures, mode, is_async):
    witness = Witness()
    engine = mixed.as_chat_engine(chat_mode=mode, llm=witness.llm, multimodal=True, **memory(mode))
    answer = asyncio.run(engine.achat("soup")) if is_async else engine.chat("soup")
    shown = [
        (pictures / hit.node.metadata["file_name"]).read_bytes()
        for hit in answer.source_nodes
        if isinstance(hit.node, ImageNode)
    ]
    assert shown
    assert sorted(witness.images) == sorted(shown)
    assert "the soup is hot" in witness.text


def test_a_chat_engine_that_is_not_multimodal_shows_none(mixed):
    witness = Witness()
    engine = mixed.as_chat_engine(chat_mode="context", llm=witness.llm, **memory("context"))
    engine.chat("soup")
    assert witness.images == []
    with pytest.raises(ValueError, match="'simple' retrieves nothing"):
        mixed.as_chat_engine(chat_mode="simple", llm=witness.llm, multimodal=True)
    with pytest.raises(ValueError, match="chat_mode is 'react', expected one of"):
        mixed.as_chat_engine(chat_mode="react", llm=witness.llm)


def test_documents_need_no_storage_context(clip, pictures, tmp_path, caplog):
    """They go into Milvus Lite in the current folder, beside what that holds already."""
    caplog.set_level("INFO", logger="llama_index_clip_ext")
    red = ImageDocument(image_path=str(pictures / "red.png"), id_="red")
    first = CLIPVectorStoreIndex.from_documents([red], embed_model=clip)
    assert f"storing in {tmp_path / 'clip_ext.db'}, collection 'clip_ext'" in caplog.text
    assert (tmp_path / "clip_ext.db").exists()
    second = CLIPVectorStoreIndex.from_documents([Document(text="soup")], embed_model=clip)
    assert second.vector_store.count("image") == second.vector_store.count("text") == 1
    assert len(first.as_retriever().retrieve("soup")) == 2
    first.vector_store.close()
    second.vector_store.close()
    with create_vector_store(clip) as store:
        assert store.count() == 2


@pytest.mark.parametrize("text", ["cats and dogs. " * 400, "word" * 3000, "猫" * 500])
def test_long_texts_are_split_at_what_the_model_reads(clip, context, store, text):
    CLIPVectorStoreIndex.from_documents(
        [Document(text=text, id_="long")], context, embed_model=clip
    )

    tokenizer = clip.encoder.text_tokenizer
    chunks = store.get_nodes(filters=MetadataFilters(filters=[]))
    assert len(chunks) > 3
    for chunk in chunks:
        assert len(tokenizer.body(chunk.get_content(MetadataMode.EMBED))) <= tokenizer.room
        assert chunk.ref_doc_id == "long"
    # No word is lost: each character of the text is in a chunk.
    assert sum(len(chunk.text) for chunk in chunks) >= 0.95 * len(text.replace(" ", ""))


def test_a_text_that_is_read_whole_stays_as_it_is(clip, context, store):
    CLIPVectorStoreIndex.from_documents([Document(text="soup", id_="s")], context, embed_model=clip)
    (node,) = store.get_nodes(["s"])
    assert (type(node), node.text) == (Document, "soup")


def test_metadata_count_and_long_ones_are_left_out_of_the_embedding(clip, context, store, caplog):
    short, long = {"author": "Ada"}, {"note": "very long metadata " * 40}
    documents = [
        Document(text="cats and dogs. " * 100, id_="short", metadata=short),
        Document(text="cats and dogs. " * 100, id_="long", metadata=long),
    ]
    CLIPVectorStoreIndex.from_documents(documents, context, embed_model=clip)
    tokenizer = clip.encoder.text_tokenizer
    chunks = store.get_nodes(filters=MetadataFilters(filters=[]))
    for chunk in chunks:
        assert len(tokenizer.body(chunk.get_content(MetadataMode.EMBED))) <= tokenizer.room
        assert chunk.metadata == (short if chunk.ref_doc_id == "short" else long)
    assert "the metadata of node 'long', and perhaps of others, take more than half" in caplog.text


def test_a_long_node_of_llamaindex_s_newer_kind_is_split_too(clip, context, store):
    node = Node(text_resource=MediaResource(text="cats and dogs. " * 100), id_="node")
    CLIPVectorStoreIndex.from_documents([node], context, embed_model=clip)
    assert store.count("text") > 3
    assert {one.ref_doc_id for one in store.get_nodes(filters=MetadataFilters(filters=[]))} == {
        "node"
    }


def test_a_document_that_grows_or_shrinks_leaves_no_old_chunk(clip, index, store):
    for text, fewest in (("soup", 1), ("cats and dogs. " * 100, 4), ("soup", 1)):
        index.insert(Document(text=text, id_="d"))
        nodes = store.get_nodes(filters=MetadataFilters(filters=[]))
        assert len(nodes) >= fewest
        assert (len(nodes) == 1) == (text == "soup")
        assert all(node.text in text for node in nodes)


def test_a_collection_of_llamaindex_s_own_store_is_searched_by_modality(clip, tmp_path, pictures):
    theirs = MilvusVectorStore(uri=str(tmp_path / "theirs.db"), dim=clip.dim, overwrite=True)
    theirs.add(clip([*load_image_nodes(pictures), TextNode(text="soup", id_="soup")]))
    theirs.client.close()
    place = {"uri": tmp_path / "theirs.db", "collection_name": "llamacollection"}
    with create_vector_store(clip, **place) as store:
        for modality, expected in (
            ("image", {True}),
            ("text", {False}),
            ("both", {True, False}),
        ):
            retriever = create_retriever(clip, store, modality=modality, similarity_top_k=6)
            for question in ("soup", QueryBundle("", image_path=str(pictures / "red.png"))):
                hits = retriever.retrieve(question)
                assert {is_image_node(hit.node) for hit in hits} == expected
                assert len(hits) == 5 * (True in expected) + (False in expected)
            many = retriever.retrieve_many(["soup"])[0]
            assert {is_image_node(hit.node) for hit in many} == expected
