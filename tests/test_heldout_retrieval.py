"""The demo's models on pictures they were not trained on, through the store and the retriever."""

import pytest
from llama_index.core.schema import ImageNode, TextNode

from llama_index_clip_ext import create_retriever, create_vector_store, load_embedding
from llama_index_clip_ext.demo.captions import COLOURS, DIGIT, SHAPES, Scene, class_caption
from llama_index_clip_ext.demo.heldout import heldout_drawings

CLASSES = [Scene(colour, shape) for colour in COLOURS for shape in SHAPES]
CLASSES += [Scene(shape=DIGIT, digit=digit) for digit in range(10)]

ANYTHING = {"en": "something", "zh": "东西"}


def class_of(scene):
    if scene.digit is not None:
        return Scene(shape=DIGIT, digit=scene.digit)
    return Scene(scene.colour, scene.shape)


@pytest.fixture(
    scope="module",
    params=[("demo-clip", "en"), ("demo-chinese-clip", "zh"), ("demo-chinese-clip", "en")],
    ids=lambda param: "-".join(param),
)
def filled(request, tmp_path_factory):
    """A collection of all held-out pictures, and of a text for each class."""
    model, language = request.param
    embed_model = load_embedding(model, embed_batch_size=64)
    drawings = heldout_drawings()
    rows = embed_model.embed_images([drawing.image for drawing in drawings]).embeddings
    images = [
        ImageNode(id_=f"image {n}", image_path=f"{n}.png", embedding=row.tolist())
        for n, row in enumerate(rows)
    ]
    texts = [
        TextNode(id_=f"text {n}", text=class_caption(scene, language))
        for n, scene in enumerate(CLASSES)
    ]
    uri = tmp_path_factory.mktemp("heldout") / "heldout.db"
    with create_vector_store(embed_model, uri=uri) as store:
        store.add([*images, *embed_model(texts)])
        yield embed_model, store, language


def shown(hit):
    """The class of what was found."""
    kind, number = hit.node.node_id.split()
    scenes = CLASSES if kind == "text" else [drawing.scene for drawing in heldout_drawings()]
    return class_of(scenes[int(number)])


def share(is_right):
    is_right = list(is_right)
    return sum(is_right) / len(is_right)


def test_text_to_image(filled):
    embed_model, store, language = filled
    retriever = create_retriever(embed_model, store, similarity_top_k=1)
    recall = share(
        shown(retriever.retrieve(class_caption(scene, language))[0]) == scene for scene in CLASSES
    )
    assert recall >= 0.9


def test_image_to_image(filled):
    embed_model, store, _ = filled
    retriever = create_retriever(embed_model, store, similarity_top_k=2)
    drawings = heldout_drawings()[:64]
    hits = [retriever.retrieve_like([f"image {n}"])[0] for n in range(len(drawings))]
    assert not any(hit.node.node_id == f"image {n}" for n, hit in enumerate(hits))
    recall = share(shown(hit) == class_of(d.scene) for hit, d in zip(hits, drawings, strict=True))
    assert recall >= 0.9


def test_image_to_text(filled):
    embed_model, store, _ = filled
    retriever = create_retriever(embed_model, store, similarity_top_k=1, modality="text")
    drawings = [*heldout_drawings()[:64], *heldout_drawings()[-64:]]
    recall = share(
        shown(retriever.retrieve_image(drawing.image)[0]) == class_of(drawing.scene)
        for drawing in drawings
    )
    assert recall >= 0.9


@pytest.mark.parametrize("says_what_it_was", [True, False])
def test_this_shape_but_red(filled, says_what_it_was):
    """And every other colour, instead of the picture's own, named or not."""
    embed_model, store, language = filled
    retriever = create_retriever(embed_model, store, similarity_top_k=1)
    colours = list(COLOURS)
    found, wanted = [], []
    for n, drawing in enumerate(heldout_drawings()[:384]):
        old = drawing.scene.colour
        new = colours[(colours.index(old) + 1 + n % 7) % 8]
        # Texts lie further from images than images from each other: where the old colour is not
        # taken away, the new one must count more, and what all texts have in common must go.
        minus = COLOURS[old].usual(language) if says_what_it_was else ANYTHING[language]
        query = embed_model.compose_query(
            text=COLOURS[new].usual(language),
            image=drawing.image,
            weights=(1, 1) if says_what_it_was else (1.5, 1),
            minus=[minus],
        )
        found.append(shown(retriever.retrieve(query)[0]))
        wanted.append(Scene(new, drawing.scene.shape))
    assert share(one == other for one, other in zip(found, wanted, strict=True)) >= 0.9
