"""What the killed processes do: make a collection hold a folder, and note what they get done.

Notes are lines of JSON in a file: ``["embedded", [names]]`` after a forward pass, ``["stored",
{id: hash}]`` once the store has acknowledged them. What is written is there after a SIGKILL.
"""

import json
import os

import torch
from llama_index.core.instrumentation import get_dispatcher
from llama_index.core.instrumentation.event_handlers import BaseEventHandler
from llama_index.core.instrumentation.events.embedding import EmbeddingEndEvent
from PIL import Image

from llama_index_clip_ext import (
    CLIPEmbedding,
    create_vector_store,
    ingest_images,
    sync_images,
)
from llama_index_clip_ext.rows import node_hash
from llama_index_clip_ext.store import CLIPMilvusVectorStore

# Small, so that many batches are on their way.
BATCH_SIZE = 8
EMBED_BATCH_SIZE = 4

_loaded = {}


def setup(model):
    torch.set_num_threads(1)  # More would be threads of the process that forks.
    clip = _loaded["clip"] = CLIPEmbedding(model, embed_batch_size=EMBED_BATCH_SIZE)
    clip.get_image_embedding(Image.new("RGB", (8, 8)))  # Loads the weights.


def ingest(folder, embed_model, vector_store):
    ingest_images(folder, embed_model=embed_model, vector_store=vector_store, batch_size=BATCH_SIZE)


def sync(folder, embed_model, vector_store):
    sync_images(folder, embed_model=embed_model, vector_store=vector_store, batch_size=BATCH_SIZE)


WAYS = {"ingest": ingest, "sync": sync}


def run(way, folder, notes, **store):
    """Open the collection, do it in one of the ways, and close."""
    take_notes(os.open(notes, os.O_WRONLY | os.O_CREAT | os.O_APPEND))
    clip = _loaded["clip"]
    with create_vector_store(clip, **store) as vector_store:
        WAYS[way](folder, clip, vector_store)


def take_notes(file):
    def note(*what):
        os.write(file, (json.dumps(what) + "\n").encode())

    class Embedded(BaseEventHandler):
        def handle(self, event, **kwargs):
            if isinstance(event, EmbeddingEndEvent):
                note("embedded", event.chunks)

    def add(self, nodes, **kwargs):
        ids = original(self, nodes, **kwargs)
        note("stored", {node.node_id: node_hash(node) for node in nodes})
        return ids

    get_dispatcher().add_event_handler(Embedded())
    original, CLIPMilvusVectorStore.add = CLIPMilvusVectorStore.add, add
