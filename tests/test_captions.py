"""Captions by a multimodal LLM, whose stand-in looks at the pictures that it is given."""

import asyncio
import base64
import io
import threading

import pytest
from llama_index.core import Settings
from llama_index.core.base.llms.types import (
    ChatMessage,
    ChatResponse,
    ImageBlock,
    LLMMetadata,
    TextBlock,
)
from llama_index.core.bridge.pydantic import PrivateAttr
from llama_index.core.ingestion import DocstoreStrategy, IngestionPipeline
from llama_index.core.llms import CustomLLM
from llama_index.core.schema import (
    ImageDocument,
    ImageNode,
    MediaResource,
    MetadataMode,
    Node,
    TextNode,
)
from llama_index.core.storage.docstore import SimpleDocumentStore
from llama_index.core.vector_stores import SimpleVectorStore
from llama_index.core.vector_stores.types import VectorStoreQuery, VectorStoreQueryMode
from PIL import Image

from llama_index_clip_ext import (
    CaptionError,
    ImageCaptioner,
    ImageLoadError,
    ImageNotFoundError,
    ZeroShotTagger,
    create_vector_store,
    ingest_images,
    load_image_nodes,
)

COLOURS = {"red": (255, 0, 0), "green": (0, 128, 0), "blue": (0, 0, 255), "black": (0, 0, 0)}


def colour_of(picture):
    """Name the colour nearest to that of a picture's middle."""
    pixel = picture.getpixel((picture.width // 2, picture.height // 2))
    distances = {
        name: sum((a - b) ** 2 for a, b in zip(pixel, colour, strict=True))
        for name, colour in {**COLOURS, "white": (255, 255, 255)}.items()
    }
    return min(distances, key=distances.get)


class LookingLLM(CustomLLM):
    """A `LLM` that takes images in its messages: it looks, counts, and fails for some colours."""

    _seen: list = PrivateAttr(default_factory=list)
    _prompts: list = PrivateAttr(default_factory=list)
    _fails_for: set = PrivateAttr(default_factory=set)
    _answers: dict = PrivateAttr(default_factory=dict)
    _lock: threading.Lock = PrivateAttr(default_factory=threading.Lock)
    _running: int = PrivateAttr(default=0)
    _most: int = PrivateAttr(default=0)

    @property
    def metadata(self):
        return LLMMetadata(is_chat_model=True)

    def complete(self, prompt, formatted=False, **kwargs):
        raise AssertionError("a text alone was asked")

    def stream_complete(self, prompt, formatted=False, **kwargs):
        raise AssertionError("a text alone was asked")

    def chat(self, messages, **kwargs):
        (message,) = messages
        text, image = message.blocks
        assert isinstance(text, TextBlock)
        assert isinstance(image, ImageBlock)
        assert image.image_mimetype == "image/jpeg"
        answer = self.look(image.resolve_image().read(), text.text)
        return ChatResponse(message=ChatMessage(role="assistant", content=answer))

    def look(self, encoded, prompt):
        picture = Image.open(io.BytesIO(encoded))
        picture.load()
        with self._lock:
            self._seen.append(picture)
            self._prompts.append(prompt)
        colour = colour_of(picture)
        if colour in self._fails_for:
            raise ConnectionError("the service is down")
        return self._answers.get(colour, f" a {colour} picture\n")

    @property
    def seen(self):
        return [colour_of(picture) for picture in self._seen]

    async def achat(self, messages, **kwargs):
        self._running += 1
        self._most = max(self._most, self._running)
        await asyncio.sleep(0.01)
        self._running -= 1
        return self.chat(messages, **kwargs)


@pytest.fixture
def llm():
    return LookingLLM()


@pytest.fixture(params=["called", "awaited"])
def run(request):
    """Call a transformation, or await it."""
    if request.param == "called":
        return lambda transform, nodes, **kwargs: transform(nodes, **kwargs)
    return lambda transform, nodes, **kwargs: asyncio.run(transform.acall(nodes, **kwargs))


def captions(nodes):
    return {node.metadata["file_name"].split(".")[0]: node.text for node in nodes}


def test_each_image_gets_the_caption_of_what_it_shows(llm, run, pictures):
    nodes = load_image_nodes(pictures)

    returned = run(ImageCaptioner(llm=llm, prompt="What colour?"), nodes)

    assert captions(returned) == {name: f"a {name} picture" for name in (*COLOURS, "white")}
    assert [node.node_id for node in returned] == [node.node_id for node in nodes]
    assert sorted(llm.seen) == sorted((*COLOURS, "white"))
    assert set(llm._prompts) == {"What colour?"}


def test_captions_and_texts_are_left_alone(llm, run, pictures):
    (pictures / "red.txt").write_text("a sidecar")
    text = TextNode(text="")
    nodes = [*load_image_nodes(pictures), text]

    before = [node.model_copy(deep=True) for node in nodes]

    captioned = run(ImageCaptioner(llm=llm), nodes)

    assert captions(captioned[:-1])["red"] == "a sidecar"
    assert "red" not in llm.seen
    assert captioned[-1] is text
    assert len(llm.seen) == 4

    captioned = run(ImageCaptioner(llm=llm, overwrite=True), captioned)
    assert captions(captioned[:-1])["red"] == "a red picture"
    assert len(llm.seen) == 9
    assert nodes == before


def test_no_nodes_are_no_request(llm, run):
    assert run(ImageCaptioner(llm=llm), []) == []
    assert llm.seen == []


def test_a_failure_names_the_image_and_loses_no_caption(llm, run, pictures):
    nodes = load_image_nodes(pictures)  # black, blue, green, red, white
    llm._fails_for = {"green"}
    captioner = ImageCaptioner(llm=llm, num_workers=1)

    with pytest.raises(CaptionError, match=r"green\.png \(ConnectionError: the service is down\)"):
        run(captioner, nodes)

    assert llm.seen == ["black", "blue", "green"]  # No more were asked for.

    llm._fails_for = set()
    captioned = run(captioner, nodes)
    assert llm.seen[3:] == ["green", "red", "white"]
    assert captions(captioned) == {name: f"a {name} picture" for name in (*COLOURS, "white")}

    # A call that does not want them leaves what another has kept.
    llm._fails_for = {"white"}
    with pytest.raises(CaptionError):
        run(captioner, nodes)
    run(captioner, nodes[:0])
    llm._fails_for = set()
    before = len(llm.seen)
    run(captioner, nodes)
    assert llm.seen[before:] == ["white"]
    assert [node.text for node in nodes] == [""] * 5
    captioned[0].metadata["album"] = "summer"
    assert "album" not in nodes[0].metadata
    llm._seen.clear()

    # Another call is another question; so is another prompt after a failure.
    run(captioner, nodes)
    assert len(llm.seen) == 5
    llm._fails_for = {"white"}
    with pytest.raises(CaptionError):
        run(captioner, nodes)
    captioner.prompt = "What colour?"
    with pytest.raises(CaptionError):
        run(captioner, nodes)
    assert llm._prompts[-5:] == ["What colour?"] * 5


def test_the_error_carries_the_image_and_the_cause(llm, pictures):
    llm._fails_for = {"red"}

    with pytest.raises(CaptionError) as info:
        ImageCaptioner(llm=llm)(load_image_nodes(pictures / "red.png"))

    assert info.value.source == str(pictures / "red.png")
    assert isinstance(info.value.__cause__, ConnectionError)


def test_failures_can_be_skipped(llm, run, pictures, caplog):
    nodes = load_image_nodes(pictures)
    (pictures / "blue.png").write_bytes(b"no picture")
    llm._fails_for = {"green"}

    found = captions(run(ImageCaptioner(llm=llm, on_error="skip"), nodes))

    assert (found["blue"], found["green"]) == ("", "")
    assert found["red"] == "a red picture"
    warnings = [record.message for record in caplog.records if record.name.endswith("captions")]
    assert len(warnings) == 2
    assert any("blue.png" in warning for warning in warnings)
    assert any("green.png" in warning for warning in warnings)


def test_an_image_that_cannot_be_read_is_an_image_error(llm, run, pictures):
    nodes = load_image_nodes(pictures / "red.png")
    (pictures / "red.png").unlink()

    with pytest.raises(ImageNotFoundError, match=r"red\.png"):
        run(ImageCaptioner(llm=llm), nodes)
    with pytest.raises(ImageLoadError, match="URLs are not fetched"):
        run(ImageCaptioner(llm=llm), [ImageNode(image_url="http://192.0.2.1/a.png")])


@pytest.mark.parametrize("answer", ["", " \n", None])
def test_an_answer_without_text_is_no_caption(run, pictures, answer):
    llm = LookingLLM()
    llm._answers = {"red": answer}

    with pytest.raises(CaptionError, match=r"red\.png \(ValueError: its answer has no text\)"):
        run(ImageCaptioner(llm=llm), load_image_nodes(pictures / "red.png"))


def test_the_llm_gets_upright_pictures_of_a_common_kind_and_size(llm, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # To be turned by a quarter.
    Image.new("CMYK", (3000, 1500), (0, 255, 255, 0)).save(tmp_path / "a.jpg", exif=exif)
    Image.new("RGBA", (4, 2), (0, 0, 0, 0)).save(tmp_path / "b.png")

    nodes = ImageCaptioner(llm=llm, num_workers=1)(load_image_nodes(tmp_path))

    large, clear = llm._seen
    assert (large.format, large.mode, large.size) == ("JPEG", "RGB", (512, 1024))
    assert (clear.mode, clear.size) == ("RGB", (4, 2))
    assert captions(nodes) == {"a": "a red picture", "b": "a white picture"}


def test_any_node_that_holds_an_image(llm, run, pictures):
    content = (pictures / "red.png").read_bytes()
    nodes = [
        Node(image_resource=MediaResource(path=pictures / "red.png")),
        ImageNode(image=base64.b64encode(content).decode()),
        ImageDocument(image_path=str(pictures / "blue.png")),
    ]

    nodes = run(ImageCaptioner(llm=llm), nodes)

    assert nodes[0].text_resource.text == "a red picture"
    assert nodes[0].image_resource.path == pictures / "red.png"
    assert [node.text for node in nodes[1:]] == ["a red picture", "a blue picture"]


async def test_requests_run_at_once_but_not_too_many():
    llm = LookingLLM()
    nodes = []
    for width in range(12):
        buffer = io.BytesIO()
        Image.new("RGB", (8 + width, 8), "red").save(buffer, "PNG")
        nodes.append(ImageNode(image=base64.b64encode(buffer.getvalue()).decode()))

    nodes = await ImageCaptioner(llm=llm, num_workers=3).acall(nodes)

    assert llm._most == 3
    assert [node.text for node in nodes] == ["a red picture"] * 12


async def test_it_can_be_called_in_a_running_loop(llm, pictures):
    nodes = ImageCaptioner(llm=llm)(load_image_nodes(pictures))

    assert captions(nodes)["red"] == "a red picture"


def test_a_progress_bar_is_shown_when_wanted(llm, run, pictures, capsys):
    nodes = load_image_nodes(pictures)

    run(ImageCaptioner(llm=llm), nodes, show_progress=True)
    assert "Captioning images" in capsys.readouterr().err
    run(ImageCaptioner(llm=llm, overwrite=True), nodes)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("option", [{"num_workers": 0}, {"on_error": "ignore"}, {"llm": "gpt"}])
def test_impossible_options_are_refused(option):
    with pytest.raises(ValueError, match=next(iter(option))):
        ImageCaptioner(**{"llm": LookingLLM(), **option})


def test_nothing_global_is_touched(pictures):
    ImageCaptioner(llm=LookingLLM())(load_image_nodes(pictures))

    assert Settings._llm is None


def test_a_caption_is_what_models_read_of_the_image(llm, pictures):
    (plain,) = load_image_nodes(pictures / "red.png")
    assert plain.get_content(MetadataMode.EMBED) == "file_name: red.png"

    (node,) = ImageCaptioner(llm=llm)([plain])

    assert node.get_content(MetadataMode.EMBED) == "a red picture"
    assert node.get_content(MetadataMode.LLM) == "file_name: red.png\n\na red picture"
    assert node.hash != plain.hash
    (pictures / "red.txt").write_text("a red picture")
    (sidecar,) = load_image_nodes(pictures / "red.png")
    assert sidecar == node


def test_captions_are_stored_replaced_and_searched_by_their_words(llm, clip, pictures, tmp_path):
    query = VectorStoreQuery(
        query_str="the green one", mode=VectorStoreQueryMode.TEXT_SEARCH, similarity_top_k=3
    )
    with create_vector_store(clip, uri=tmp_path / "c.db", full_text="english") as store:
        nodes = load_image_nodes(pictures)
        ingest_images(nodes, embed_model=clip, vector_store=store)
        assert store.query(query).ids == []

        captioned = ImageCaptioner(llm=llm)(load_image_nodes(pictures))
        report = ingest_images(captioned, embed_model=clip, vector_store=store)

        assert report.replaced == 5
        assert store.count() == 5
        (hit,) = store.query(query).nodes
        assert hit.metadata["file_name"] == "green.png"
        assert hit.text == "a green picture"


def test_in_a_pipeline_of_llamaindexs(llm, clip, pictures, tmp_path):
    with create_vector_store(clip, uri=tmp_path / "c.db", full_text="english") as store:
        pipeline = IngestionPipeline(
            transformations=[ImageCaptioner(llm=llm), clip], vector_store=store
        )
        pipeline.run(nodes=load_image_nodes(pictures))
        pipeline.run(nodes=load_image_nodes(pictures))

        assert len(llm.seen) == 5  # Its cache knows them.
        assert store.count("image") == 5
        query = VectorStoreQuery(
            query_str="blue", mode=VectorStoreQueryMode.TEXT_SEARCH, similarity_top_k=3
        )
        assert [node.metadata["file_name"] for node in store.query(query).nodes] == ["blue.png"]


@pytest.mark.parametrize("strategy", DocstoreStrategy)
@pytest.mark.parametrize("transform", ["captions", "tags"])
def test_a_pipeline_with_a_docstore_does_nothing_twice(llm, clip, pictures, strategy, transform):
    made = {
        "captions": lambda: ImageCaptioner(llm=llm),
        "tags": lambda: ZeroShotTagger(clip, ["red", "blue"]),
    }[transform]()
    pipeline = IngestionPipeline(
        transformations=[made],
        docstore=SimpleDocumentStore(),
        docstore_strategy=strategy,
        vector_store=SimpleVectorStore(),
        disable_cache=True,
    )
    documents = [ImageDocument(image_path=str(path), id_=path.name) for path in pictures.iterdir()]
    for read in (lambda: load_image_nodes(pictures), lambda: [d.model_copy() for d in documents]):
        pipeline.transformations = [made, clip]
        assert len(pipeline.run(nodes=read())) == 5
        assert not pipeline.run(nodes=read())
    assert len(llm.seen) == (10 if transform == "captions" else 0)
