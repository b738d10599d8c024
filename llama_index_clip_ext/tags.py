"""Zero-shot tags: the labels that suit an image best, written into its node's metadata."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from llama_index.core.bridge.pydantic import ConfigDict, PrivateAttr, SerializeAsAny
from llama_index.core.schema import BaseNode, TransformComponent
from numpy.typing import NDArray

from .background import read_in_own_thread
from .dual_encoder import DualEncoderEmbedding
from .encoder import Encoder
from .errors import DimensionMismatchError
from .nodes import copy_node, is_image_node
from .notes import exclude_from_models
from .rows import COLUMNS
from .vectors import Rows, l2_normalize

# Radford et al. 2021, section 3.1.4; and cn_clip's eval/cvinw_zeroshot_templates.py.
_TEMPLATES = ("a photo of a {}.",)
_CHINESE_TEMPLATES = ("{}的照片",)


class ZeroShotTagger(TransformComponent):
    """Writes the labels that suit an image best into its metadata, where filters find them.

    The list of labels is under ``key``, best first, and their probabilities are beside it, under
    ``tags_scores`` for the key ``tags``. Other nodes pass as they are; of images copies are
    returned, so that a docstore knows the node again that came. It is a transform of LlamaIndex:
    call it with nodes, or put it into an ``IngestionPipeline`` after the embedding model, whose
    vectors it uses. `ingest_images` makes its own: there, a model with an ``embeddings_cache``
    embeds a picture once rather than twice.

    Probabilities are the softmax over the labels, so that one label always wins; of a model with a
    logit bias (SigLIP), each label's own sigmoid.

    Args:
        embed_model: The model that says how well a label suits.
        labels: Labels, put into the templates; or labels with their own prompts, one or several of
            each, such as ``{"cat": ["一只猫", "猫的照片"]}``.
        templates: Prompts with ``{}`` in the label's place. A label's embedding is the mean of its
            prompts', scaled to unit length. ``None`` is one photo template in the language of the
            model. Labels with prompts of their own need none.
        top_k: Labels per image, at most.
        threshold: Leave out labels of a lower probability; the list may be empty.
        key: Metadata key.

    Raises:
        TypeError: If ``labels`` or ``templates`` is one text.
        ValueError: If there are no labels, or one of them comes twice or has no prompt; if a
            template lacks ``{}``; if ``top_k``, ``threshold`` or ``key`` is impossible.

    Source:
        Radford et al. 2021, section 3.1.4 (prompt ensembling). arXiv:2103.00020

    Example:
        ``ZeroShotTagger(embed_model, ["cat", "dog"])(load_image_nodes("./photos"))``
    """

    # Read only, because the labels' embeddings are computed once.
    model_config = ConfigDict(frozen=True)

    embed_model: SerializeAsAny[DualEncoderEmbedding]
    labels: dict[str, list[str]]
    top_k: int
    threshold: float
    key: str

    _labels_of: tuple[Encoder, Rows] | None = PrivateAttr(default=None)

    def __init__(
        self,
        embed_model: DualEncoderEmbedding,
        labels: Sequence[str] | Mapping[str, str | Sequence[str]],
        *,
        templates: Sequence[str] | None = None,
        top_k: int = 1,
        threshold: float = 0.0,
        key: str = "tags",
    ) -> None:
        if templates is None:
            is_chinese = embed_model.family == "chinese-clip"
            templates = _CHINESE_TEMPLATES if is_chinese else _TEMPLATES
        prompts = _prompts(labels, templates)
        if top_k < 1:
            raise ValueError(f"top_k is {top_k}, expected at least 1")
        if not 0 <= threshold <= 1:
            raise ValueError(f"threshold is {threshold}, expected a probability from 0 to 1")
        if not key or key in COLUMNS:
            raise ValueError(
                f"key is {key!r}, expected a metadata key such as 'tags' that is not one of the "
                "store's own columns"
            )
        super().__init__(  # type: ignore[call-arg]
            embed_model=embed_model,
            labels=prompts,
            top_k=top_k,
            threshold=threshold,
            key=key,
        )

    @classmethod
    def class_name(cls) -> str:
        """Return the name that LlamaIndex stores."""
        return "ZeroShotTagger"

    @property
    def scores_key(self) -> str:
        """Metadata key of the probabilities."""
        return f"{self.key}_scores"

    def __call__(self, nodes: Sequence[BaseNode], **kwargs: Any) -> Sequence[BaseNode]:
        """Tag the images among the nodes.

        A node that has an embedding is tagged by it; the others are embedded, and their copies keep
        the embedding.

        Args:
            nodes: Nodes of any kind, mixed.
            **kwargs: LlamaIndex's, such as ``show_progress``.

        Returns:
            All nodes, in order, in place of images copies with tags. One whose image does not load
            is not tagged, if the model's ``on_error`` is ``"skip"``; what reads it next reports it.

        Raises:
            ImageLoadError: If an image does not load and the model's ``on_error`` is ``"raise"``.
            DimensionMismatchError: If a node's embedding is of another model.
            ValueError: If there is one label only, and the model compares labels by softmax.
        """
        nodes = [copy_node(node) if is_image_node(node) else node for node in nodes]
        images = [node for node in nodes if is_image_node(node)]
        self.embed_model([node for node in images if node.embedding is None], **kwargs)
        embedded = [node for node in images if node.embedding is not None]
        if embedded:
            probabilities = self._probabilities(_rows(embedded, self.embed_model))
            for node, row in zip(embedded, probabilities, strict=True):
                self._write(node, row)
        return nodes

    async def acall(self, nodes: Sequence[BaseNode], **kwargs: Any) -> Sequence[BaseNode]:
        """Do what calling the tagger does, off the event loop."""
        return await read_in_own_thread(lambda: self(nodes, **kwargs))

    def _probabilities(self, rows: Rows) -> NDArray[np.float64]:
        """Compare images with labels. Shape ``(len(rows), len(labels))``."""
        encoder = self.embed_model.encoder
        bias = encoder.logit_bias
        if bias is None and len(self.labels) == 1:
            raise ValueError(
                "there is one label only, and a softmax would give it every image; add what else "
                "an image may show"
            )
        logits = encoder.logit_scale * (rows @ self._label_rows(encoder).T).astype(np.float64)
        if bias is not None:
            return np.asarray(1 / (1 + np.exp(-logits - bias)))
        exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
        return np.asarray(exponentials / exponentials.sum(axis=1, keepdims=True))

    def _label_rows(self, encoder: Encoder) -> Rows:
        """Return the labels' embeddings, computed once. Shape ``(len(labels), dim)``."""
        if self._labels_of is None or self._labels_of[0] is not encoder:
            prompts = [prompt for several in self.labels.values() for prompt in several]
            texts = iter(self.embed_model.get_text_embedding_batch(prompts))
            means = [
                np.mean([next(texts) for _ in several], axis=0) for several in self.labels.values()
            ]
            self._labels_of = encoder, l2_normalize(np.array(means))
        return self._labels_of[1]

    def _write(self, node: BaseNode, probabilities: NDArray[np.float64]) -> None:
        labels = list(self.labels)
        best = [
            index
            for index in np.argsort(-probabilities, kind="stable")[: self.top_k]
            if probabilities[index] >= self.threshold
        ]
        node.metadata[self.key] = [labels[index] for index in best]
        # Rounded, so that a picture embedded in another batch is not a changed node to the store.
        node.metadata[self.scores_key] = [round(float(probabilities[index]), 4) for index in best]
        # Labels are words about the image, for other models to read, too; numbers are not.
        exclude_from_models(node, [self.scores_key])


def _prompts(
    labels: Sequence[str] | Mapping[str, str | Sequence[str]],
    templates: Sequence[str],
) -> dict[str, list[str]]:
    """Return each label's prompts."""
    if isinstance(labels, str) or isinstance(templates, str):
        raise TypeError("labels and templates are lists of texts, not one text")
    if not labels:
        raise ValueError("labels is empty, expected texts such as ['cat', 'dog']")
    if isinstance(labels, Mapping):
        prompts = {
            label: [own] if isinstance(own, str) else list(own) for label, own in labels.items()
        }
    else:
        for template in templates:
            if "{}" not in template:
                raise ValueError(f"template {template!r} has no {{}} for the label")
        prompts = {label: [t.replace("{}", str(label)) for t in templates] for label in labels}
        if len(prompts) < len(labels):
            twice = next(label for label in prompts if list(labels).count(label) > 1)
            raise ValueError(f"label {twice!r} comes twice")
    for label, own in prompts.items():
        if not all(isinstance(text, str) and text.strip() for text in (label, *own)):
            raise ValueError(f"label {label!r} or a prompt of it is blank, expected texts")
        if not own:
            raise ValueError(f"label {label!r} has no prompt")
    return prompts


def _rows(nodes: Sequence[BaseNode], embed_model: DualEncoderEmbedding) -> Rows:
    """Return the nodes' embeddings. Shape ``(len(nodes), dim)``, unit length."""
    for node in nodes:
        if len(node.embedding or ()) != embed_model.dim:
            raise DimensionMismatchError(
                f"node {node.node_id!r} has an embedding of {len(node.embedding or ())} "
                f"components, {embed_model.model_name!r} makes {embed_model.dim}: another model "
                "made it; set it to None to have it made anew",
                expected=embed_model.dim,
                actual=len(node.embedding or ()),
            )
    return l2_normalize(np.array([node.embedding for node in nodes], dtype=np.float32))
