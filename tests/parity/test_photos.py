"""A folder of real photographs and awkward files, indexed with a checkpoint of real dimensions."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
from PIL import Image

from llama_index_clip_ext import (
    create_retriever,
    create_vector_store,
    ingest_images,
    load_embedding,
)

BAD = {"truncated.jpg", "empty.png", "page.jpg", "noise.png"}


@pytest.fixture(scope="module")
def folder(photos, tmp_path_factory):
    """Photographs, and one of each kind of file that breaks other programs."""
    folder = tmp_path_factory.mktemp("photos")
    for path in photos:
        shutil.copy(path, folder / path.name)
    photo = Image.open(photos[0]).convert("RGB")
    exif = Image.Exif()
    exif[0x0112] = 6
    photo.resize((300, 200)).save(folder / "rotated.jpg", exif=exif)
    photo.convert("CMYK").save(folder / "cmyk.jpg")
    deep = (np.linspace(0, 65535, 64 * 64).reshape(64, 64)).astype(np.uint16)
    Image.fromarray(deep).save(folder / "sixteen-bit.png")
    photo.quantize(32).save(folder / "palette.png")
    frames = [Image.new("RGB", (64, 64), name) for name in ("orange", "navy", "teal")]
    frames[0].save(folder / "animated.gif", save_all=True, append_images=frames[1:])
    Image.linear_gradient("L").resize((1, 300)).save(folder / "thin.png")
    Image.new("RGBA", (64, 64), (255, 0, 0, 90)).save(folder / "transparent.webp")
    content = next(path for path in photos if path.suffix == ".jpg").read_bytes()
    (folder / "truncated.jpg").write_bytes(content[: len(content) // 2])
    (folder / "empty.png").write_bytes(b"")
    (folder / "page.jpg").write_text("<!doctype html><title>404</title>")
    (folder / "noise.png").write_bytes(bytes(range(256)) * 8)
    return folder


@pytest.mark.parametrize("checkpoint", ["vit_b_32_st", "chinese_vit_b_16"])
def test_good_files_in_bad_files_named_and_each_found_first(checkpoint, folder, request, tmp_path):
    embed_model = load_embedding(request.getfixturevalue(checkpoint))
    good = sorted(path for path in folder.iterdir() if path.name not in BAD)
    with create_vector_store(embed_model, uri=tmp_path / "photos.db") as store:
        report = ingest_images(folder, embed_model=embed_model, vector_store=store)
        assert {failure.source.rsplit("/", 1)[-1] for failure in report.failed} == BAD
        assert report.added == len(good) == store.count("image")

        again = ingest_images(folder, embed_model=embed_model, vector_store=store)
        assert (again.added, again.replaced, again.unchanged) == (0, 0, len(good))
        assert len(again.failed) == len(BAD)
        assert store.count() == len(good)

        # Two files of the collection may hold one picture: both then score 1.
        retriever = create_retriever(embed_model, store, similarity_top_k=3)
        for path in good:
            hits = retriever.retrieve_image(path)
            assert hits[0].score == pytest.approx(1, abs=1e-3)
            alike = [hit.node.metadata["file_name"] for hit in hits if hit.score > 1 - 1e-3]
            assert path.name in alike, (
                path.name,
                [(h.score, h.node.metadata["file_name"]) for h in hits],
            )
