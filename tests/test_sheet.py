import pytest
from llama_index.core.schema import ImageNode, NodeWithScore, TextNode
from PIL import Image

from llama_index_clip_ext import create_retriever, ingest_images, show_results
from llama_index_clip_ext.sheet import Tile, draw_contact_sheet


@pytest.fixture
def hits(clip, store, pictures):
    (pictures / "red.txt").write_text("A red thing, 红色圆形, and a caption that is far too long")
    ingest_images(pictures, embed_model=clip, vector_store=store)
    return create_retriever(clip, store).retrieve("soup")


def colours(picture):
    return {colour for _, colour in picture.getcolors(maxcolors=1 << 24)}


def test_every_hit_is_shown_in_order(hits, pictures):
    sheet = show_results(hits, query="soup")
    assert sheet.mode == "RGB"
    # The middle of each tile is the picture's colour.
    shown = [sheet.getpixel((14 + column * 146 + 66, 14 + 38 + 66)) for column in range(5)]
    expected = []
    for hit in hits:
        with Image.open(hit.node.metadata["file_path"]) as image:
            expected.append(image.getpixel((5, 5)))
    assert shown == expected


def test_rows_break_and_a_picture_that_was_asked_with_comes_first(hits, pictures):
    wide, narrow = show_results(hits), show_results(hits, columns=2)
    assert narrow.width < wide.width
    assert narrow.height > 2 * wide.height
    sheet = show_results(hits, query=pictures / "blue.png")
    assert sheet.getpixel((14 + 66, 14 + 66)) == (0, 0, 255)
    assert sheet.size == (wide.width + 146, wide.height)  # It stands in the row of the five hits.


def test_a_title_stands_above_a_picture_or_in_place_of_the_text(hits, pictures):
    blue = pictures / "blue.png"
    sheet = show_results(hits, query=blue, title="like it")
    assert sheet.getpixel((14 + 66, 14 + 38 + 66)) == (0, 0, 255)
    assert len(colours(sheet.crop((0, 14, sheet.width, 14 + 38)))) > 2
    assert show_results(hits, query="x", title="y") == show_results(hits, title="y")


def test_a_caption_takes_two_lines_and_no_more():
    image = Image.new("RGB", (40, 30), "red")
    sheets = [
        draw_contact_sheet([("", [Tile(image, "1", detail=detail)])])
        for detail in ("", "word", "word " * 5, "word " * 50)
    ]
    heights = [sheet.height for sheet in sheets]
    assert heights == [heights[0], heights[0] + 19, heights[0] + 38, heights[0] + 38]


def test_texts_missing_files_and_nothing_are_shown_too(tmp_path):
    gone = NodeWithScore(node=ImageNode(image_path=str(tmp_path / "gone.png")), score=0.5)
    text = NodeWithScore(node=TextNode(text="word " * 200), score=None)
    unbroken = NodeWithScore(node=TextNode(text="无" * 300), score=1.0)
    sheet = show_results([gone, text, unbroken])
    for column in range(3):
        tile = sheet.crop((14 + column * 146, 14, 14 + column * 146 + 132, 146))
        assert len(colours(tile)) > 2  # Something is written there.
    assert len(colours(show_results([]))) > 2


def test_a_title_of_a_page_does_not_widen_the_sheet_without_end(hits):
    longest = show_results(hits[:1], query="a very long question\n" * 99)
    assert longest == show_results(hits[:1], query="a very long question " * 198)
    assert longest.width <= 900


@pytest.mark.parametrize("text", ["海边日落", "éöñçß", "рыба", "ねこネコ", "αβγ", "“…—€½"])
def test_every_letter_is_drawn(text):
    drawn = {show_results([], query=letter).tobytes() for letter in text}
    assert len(drawn | {show_results([], query=" ").tobytes()}) == len(text) + 1


def test_a_letter_that_the_font_lacks_is_a_box_rather_than_nothing():
    cat, dog, blank = (show_results([], query=letter) for letter in "🐱🐶 ")
    assert cat == dog != blank


def test_impossible_columns_say_so(hits):
    with pytest.raises(ValueError, match="columns is 0"):
        show_results(hits, columns=0)


def test_a_cosine_stands_beside_a_score_that_is_none():
    def sheet(score, **metadata):
        return show_results(
            [NodeWithScore(node=TextNode(text="x", metadata=metadata), score=score)]
        )

    assert sheet(0.016, retrieval_similarity=0.449) != sheet(0.016)
    assert sheet(0.449, retrieval_similarity=0.449) == sheet(0.449)


def test_formats_that_are_added_are_drawn(tmp_path):
    Image.new("RGB", (40, 30), "red").save(tmp_path / "red.ppm")
    hit = NodeWithScore(node=ImageNode(image_path=str(tmp_path / "red.ppm")), score=0.5)

    def has_red(**options):
        return (255, 0, 0) in {
            colour for _, colour in show_results([hit], **options).getcolors(10**6)
        }

    assert has_red(image_formats=["PPM"])
    assert not has_red()
