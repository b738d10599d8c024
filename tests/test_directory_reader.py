"""LlamaIndex's own reader of folders, with its package for PDFs, beside the tested versions."""

from importlib.metadata import requires, version

import pytest
from llama_index.core import SimpleDirectoryReader, StorageContext
from packaging.requirements import Requirement
from packaging.version import Version

from llama_index_clip_ext import CLIPVectorStoreIndex
from llama_index_clip_ext.nodes import is_image_node

pytest.importorskip("llama_index.readers.file", reason="pip install llama-index-readers-file")

# LlamaIndex's reader of images leaves their files to the garbage collector.
pytestmark = pytest.mark.filterwarnings(
    "ignore:unclosed file:ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"
)


def write_pdf(path, text):
    """Write a page with a line of text."""
    stream = f"BT /F1 24 Tf 72 720 Td ({text}) Tj ET".encode()
    objects = [
        b"<< /Type /Catalog /Pages 2 0 R >>",
        b"<< /Type /Pages /Kids [3 0 R] /Count 1 >>",
        b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 612 792] /Contents 4 0 R "
        b"/Resources << /Font << /F1 5 0 R >> >> >>",
        b"<< /Length %d >>\nstream\n%s\nendstream" % (len(stream), stream),
        b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>",
    ]
    content, places = b"%PDF-1.4\n", []
    for number, one in enumerate(objects, 1):
        places.append(len(content))
        content += b"%d 0 obj\n%s\nendobj\n" % (number, one)
    table = len(content)
    content += b"xref\n0 %d\n0000000000 65535 f \n" % (len(objects) + 1)
    content += b"".join(b"%010d 00000 n \n" % place for place in places)
    content += b"trailer\n<< /Size %d /Root 1 0 R >>\n" % (len(objects) + 1)
    content += b"startxref\n%d\n%%%%EOF\n" % table
    path.write_bytes(content)


@pytest.fixture
def index(clip, store, pictures):
    """An index of a folder of pictures, a PDF and a text, read by SimpleDirectoryReader."""
    write_pdf(pictures / "recipe.pdf", "The soup is hot")
    (pictures / "note.md").write_text("# Shopping\n\nBuy apples.")
    documents = SimpleDirectoryReader(str(pictures)).load_data()
    assert len(documents) >= 7
    context = StorageContext.from_defaults(vector_store=store)
    return CLIPVectorStoreIndex.from_documents(documents, context, embed_model=clip)


def test_a_folder_with_a_pdf_is_read_and_found(index, store, pictures):
    assert store.count("image") == 5
    assert store.count("text") >= 2
    texts = index.as_retriever(modality="text", similarity_top_k=9).retrieve("soup")
    (pdf,) = [hit.node for hit in texts if hit.node.metadata["file_name"] == "recipe.pdf"]
    assert "The soup is hot" in pdf.text
    assert pdf.metadata["page_label"] == "1"
    (first, *_) = index.as_retriever(modality="image").retrieve_image(pictures / "red.png")
    assert first.node.metadata["file_name"] == "red.png"
    both = index.as_retriever(similarity_top_k=7).retrieve("soup")
    assert {is_image_node(hit.node) for hit in both} == {True, False}


def test_reading_it_again_adds_nothing(clip, index, store, pictures):
    before = store.count()
    documents = SimpleDirectoryReader(str(pictures), filename_as_id=True).load_data()
    index.refresh_ref_docs(documents)
    counted = store.count()
    index.refresh_ref_docs(documents)
    assert store.count() == counted
    assert counted >= before


def test_the_tested_versions_are_those_that_the_reader_allows():
    """What constraints.txt pins installs beside llama-index-readers-file."""
    for needed in map(Requirement, requires("llama-index-readers-file")):
        if needed.marker is None or needed.marker.evaluate({"extra": ""}):
            assert needed.specifier.contains(Version(version(needed.name)), prereleases=True), (
                needed
            )
