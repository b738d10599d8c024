"""Write a collection for `test_compatibility.py`, with whichever code of this package is imported.

``collection-1-first.zip`` was written by commit a38c860, the first with a store that landed,
``collection-1.zip`` by the first commit that has this file, and ``collection-2.zip`` by the first
that writes format 2: in a checkout of the commit,

    PYTHONPATH=. python .../make_collection.py collection.zip
"""

import base64
import inspect
import json
import shutil
import sys
import zipfile
from pathlib import Path

from llama_index.core.schema import ImageNode, NodeRelationship, RelatedNodeInfo, TextNode
from PIL import Image

from llama_index_clip_ext import create_vector_store, ingest_images, load_embedding

# Ids and hashes are of paths.
ROOT = Path("/srv/album")
CAPTIONS = {"red": "A red square.", "猫 在沙发上": "沙发上的猫 🐈", "it's": ""}
COLOURS = {"red": "red", "猫 在沙发上": "orange", "it's": "blue"}


def main(archive):
    ROOT.mkdir(parents=True)
    try:
        pictures = ROOT / "pictures"
        pictures.mkdir()
        for stem, caption in CAPTIONS.items():
            Image.new("RGB", (40, 30), COLOURS[stem]).save(pictures / f"{stem}.png")
            if caption:
                (pictures / f"{stem}.txt").write_text(caption, encoding="utf-8")
        fill(ROOT / "photos.db", pictures)
        with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as packed:
            for file in sorted(ROOT.rglob("*")):
                if file.name != "LOCK":
                    packed.write(file, file.relative_to(ROOT).as_posix())
    finally:
        shutil.rmtree(ROOT)


def fill(database, pictures):
    model = load_embedding("demo-clip")
    options = {}
    if "full_text" in inspect.signature(create_vector_store).parameters:
        options = {"full_text": "english"}
    with create_vector_store(model, uri=database, collection_name="photos", **options) as store:
        report = ingest_images(pictures, embed_model=model, vector_store=store)
        assert report.added == 3, report
        pixels = base64.b64encode((pictures / "red.png").read_bytes()).decode()
        inline = ImageNode(
            id_='inline "猫"\n',
            image=pixels,
            text="held in memory",
            metadata={"tags": ["猫", 'b"\\'], "n": 7, "nested": {"a": [1, None]}, "拍-摄": "北京"},
        )
        ingest_images([inline], embed_model=model, vector_store=store)
        note = TextNode(id_="note", text="An orange cat.", metadata={"n": 2.5, "flag": True})
        note.relationships[NodeRelationship.SOURCE] = RelatedNodeInfo(node_id="album '1'")
        store.add(model([note]))
        ids = [row["id"] for row in store.client.query("photos", 'id != ""', ["id"])]
        rows = {
            node.node_id: {
                "hash": store.get_hashes([node.node_id])[node.node_id],
                "text": node.text,
                "class": node.class_name(),
                "metadata": node.metadata,
                "document": node.ref_doc_id,
                "image_path": getattr(node, "image_path", None),
                "embedding": node.embedding,
            }
            for node in store.get_nodes(ids)
        }
        properties = store.client.describe_collection("photos")["properties"]
        passport = properties["clip_ext.passport"]
    expected = {"passport": passport, "rows": rows}
    content = json.dumps(expected, ensure_ascii=False, indent=1)
    (ROOT / "expected.json").write_text(content, encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1])
