"""The traps of the neighbours (a text taken for an image, and so on), each as a test of ours."""

from __future__ import annotations

import http.server
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from llama_index.core.ingestion import DocstoreStrategy, IngestionPipeline
from llama_index.core.schema import ImageNode
from llama_index.core.storage.docstore import SimpleDocumentStore
from llama_index.core.storage.kvstore import SimpleKVStore
from PIL import Image

from llama_index_clip_ext import CLIPEmbedding, ImageLoadError, load_image_nodes


@pytest.fixture
def picture(tmp_path) -> Path:
    Image.linear_gradient("L").convert("RGB").save(tmp_path / "picture.png")
    return tmp_path / "picture.png"


@pytest.fixture
def web(picture):
    """A loopback web server that notes who asks."""
    asked = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            self.send_response(200)
            self.end_headers()
            self.wfile.write(picture.read_bytes())

        def log_message(self, *args):
            pass

    server = http.server.HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/picture.png", asked
    server.shutdown()
    thread.join()
    server.server_close()


def test_1_an_image_is_never_embedded_as_the_text_of_its_path(clip, picture):
    expected = clip.get_image_embedding(picture)
    Image.open(picture).save(picture.with_suffix(".tif"))
    bare = picture.with_suffix("")
    bare.write_bytes(picture.read_bytes())
    for path in (picture.with_suffix(".tif"), bare):
        image = clip.get_image_embedding(str(path))
        np.testing.assert_allclose(image, expected, atol=1e-5)
        assert np.dot(image, clip.get_text_embedding(str(path))) < 0.99
    with pytest.raises(FileNotFoundError):
        clip.get_image_embedding(str(picture.with_name("missing.png")))
    picture.write_bytes(picture.read_bytes()[:100])
    with pytest.raises(ImageLoadError):
        clip.get_image_embedding(str(picture))


def test_2_a_text_is_never_fetched_or_opened(clip, picture, web):
    url, asked = web
    image = clip.get_image_embedding(picture)
    for text in (url, str(picture), f"file://{picture}", "data:image/png;base64,iVBORw0KGgo="):
        for row in (
            clip.get_query_embedding(text),
            clip.get_text_embedding(text),
            clip.get_text_embedding_batch([text])[0],
        ):
            assert np.dot(row, image) < 0.99
            np.testing.assert_allclose(row, clip._get_text_embedding(text), atol=1e-5)
    assert asked == []


@pytest.mark.parametrize("allow_urls", [False, True])
def test_2_an_image_url_is_refused_and_not_fetched(clip_dir, web, allow_urls):
    url, asked = web
    embed_model = CLIPEmbedding(clip_dir, allow_urls=allow_urls)
    for source in (url, ImageNode(image_url=url)):
        # Allowed or not, a server of this machine is none of the Internet's.
        reason = "has no public address" if allow_urls else "URLs are not fetched unless allowed"
        with pytest.raises(ImageLoadError, match=reason):
            embed_model.get_image_embedding(source)
    assert asked == []


def test_2_a_rotated_photo_is_the_same_as_a_path_and_as_an_image(clip, tmp_path):
    upright = Image.linear_gradient("L").convert("RGB").resize((60, 40))
    exif = Image.Exif()
    exif[0x0112] = 6  # Stored rotated: to be turned by 90 degrees clockwise.
    path = tmp_path / "rotated.png"
    upright.transpose(Image.Transpose.ROTATE_90).save(path, exif=exif)
    expected = clip.get_image_embedding(upright)
    for source in (path, Image.open(path), path.read_bytes()):
        np.testing.assert_allclose(clip.get_image_embedding(source), expected, atol=1e-5)


def test_3_a_pipeline_embeds_images_as_images(clip, picture):
    node = ImageNode(image_path=str(picture), metadata={"file_name": "picture.png"})
    (out,) = IngestionPipeline(transformations=[clip]).run(nodes=[node])
    np.testing.assert_allclose(out.embedding, clip.get_image_embedding(picture), atol=1e-5)


async def test_3_an_async_pipeline_does_so_too(clip, picture):
    node = ImageNode(image_path=str(picture), metadata={"file_name": "picture.png"})
    (out,) = await IngestionPipeline(transformations=[clip]).arun(nodes=[node])
    np.testing.assert_allclose(out.embedding, clip.get_image_embedding(picture), atol=1e-5)


def test_4_the_embeddings_cache_holds_images(clip_dir, picture, monkeypatch):
    embed_model = CLIPEmbedding(clip_dir, embeddings_cache=SimpleKVStore())
    first = embed_model.get_image_embedding(picture)
    monkeypatch.setattr(embed_model.encoder, "_rows", lambda *args: pytest.fail("encoded again"))
    assert embed_model.get_image_embedding_batch([picture] * 3) == [first] * 3


def test_4_the_hash_follows_the_bytes_so_that_docstores_notice(clip, store, picture):
    pipeline = IngestionPipeline(
        transformations=[clip],
        docstore=SimpleDocumentStore(),
        docstore_strategy=DocstoreStrategy.UPSERTS,
        vector_store=store,
    )
    nodes = load_image_nodes(picture.parent)
    assert len(pipeline.run(nodes=nodes)) == 1
    assert len(pipeline.run(nodes=load_image_nodes(picture.parent))) == 0
    Image.new("RGB", (30, 30), "red").save(picture)
    again = load_image_nodes(picture.parent)
    assert (again[0].node_id, again[0].hash != nodes[0].hash) == (nodes[0].node_id, True)
    assert len(pipeline.run(nodes=again)) == 1
    assert store.count() == 1


def test_5_vectors_are_unit_length_and_made_without_gradients(clip, picture, monkeypatch):
    import torch

    modes = []
    features = clip.encoder._features

    def noting(*args):
        modes.append(torch.is_inference_mode_enabled())
        return features(*args)

    monkeypatch.setattr(clip.encoder, "_features", noting)
    for row in (clip.get_image_embedding(picture), clip.get_text_embedding("a")):
        assert np.linalg.norm(row) == pytest.approx(1, abs=1e-5)
    assert modes == [True, True]


def test_5_no_package_from_git_is_needed():
    code = "import llama_index_clip_ext.embedding, sys; print('clip' in sys.modules)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "False"


def test_6_pixels_are_never_stored(clip, store):
    import base64
    import io

    noise = np.random.default_rng(0).integers(0, 256, (400, 400, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise).save(buffer, "PNG")
    node = ImageNode(id_="n", image=base64.b64encode(buffer.getvalue()).decode(), metadata={"k": 1})
    assert len(node.image) > 400_000
    store.add(clip([node]))
    row = store.client.get(store.collection_name, ids=["n"])[0]
    assert sum(len(str(value)) for key, value in row.items() if key != "embedding") < 5_000
    import hashlib

    assert row["content_hash"] == hashlib.sha256(buffer.getvalue()).hexdigest()
    assert store.get_nodes(["n"])[0].metadata["k"] == 1
    assert node.image  # the caller's node keeps its pixels
