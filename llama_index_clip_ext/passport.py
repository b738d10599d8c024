"""What a collection says of its vectors, kept in the collection's own properties."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from types import MappingProxyType
from typing import Any, Literal

from pydantic import TypeAdapter, ValidationError

from . import __version__
from .errors import DimensionMismatchError, EmbeddingSpaceMismatchError, StoreError
from .full_text import FullText
from .models import EmbeddingSpace, ScoreStatistics

# A property, because Milvus Lite drops a collection's description.
PROPERTY = "clip_ext.passport"
FORMAT = 2

# What collections of each older format say by not saying it. They are read as they are; the first
# write puts the current format into their properties, and no row is written or embedded again.
UPGRADES: Mapping[int, Mapping[str, Any]] = MappingProxyType(
    {
        # Rows do not say which tower made their vectors, hashes are of metadata that were not yet
        # converted to JSON, and ids have no namespace.
        1: {"provenance": "unknown"},
    }
)

_HASHES = ("weights", "preprocessing")


@dataclass(frozen=True)
class Passport:
    """Which model made a collection's vectors, and how they are compared.

    Attributes:
        space: The model, its weights and preprocessing, and the dimension.
        metric: Milvus's metric: ``COSINE`` or ``IP``, the same on unit vectors.
        package: Version of this package that made the collection.
        calibration: What unrelated pairs score, by direction such as ``text->image``; empty until
            `calibrate_scores` has measured it.
        full_text: Analyzer of its texts; ``None`` if they cannot be searched by words.
        provenance: Whether every row says which tower made its vector; ``"unknown"`` if rows were
            written in a format that did not record it.
        format: The format that the collection is in; older ones are upgraded by the first write.
    """

    space: EmbeddingSpace
    metric: str
    package: str = __version__
    calibration: Mapping[str, ScoreStatistics] = field(default_factory=dict)
    full_text: FullText | None = None
    provenance: Literal["recorded", "unknown"] = "recorded"
    format: int = FORMAT

    def to_properties(self) -> dict[str, str]:
        """Return the collection properties that keep the passport, in the current format."""
        content = {
            "format": FORMAT,
            **asdict(self.space),
            "metric": self.metric,
            "normalized": True,
            "package": self.package,
            "calibration": {name: asdict(one) for name, one in self.calibration.items()},
            "full_text": self.full_text,
            "provenance": self.provenance,
        }
        return {PROPERTY: json.dumps(content)}

    @classmethod
    def from_properties(cls, properties: Mapping[str, Any], collection: str) -> Passport | None:
        """Read the passport; ``None`` if the collection has none.

        What a later version adds to this format is passed over.

        Args:
            properties: The collection's.
            collection: Its name, for the message.

        Raises:
            StoreError: If a newer version of this package wrote it, or it is damaged.
        """
        if PROPERTY not in properties:
            return None
        try:
            content = json.loads(properties[PROPERTY])
            made_in = content["format"]
            is_number = isinstance(made_in, int) and not isinstance(made_in, bool)
            if is_number and made_in > FORMAT:
                raise StoreError(
                    f"collection {collection!r} was made by llama-index-clip-ext "
                    f"{content.get('package', '(unknown)')} in format {made_in}, this version "
                    f"reads up to {FORMAT}; upgrade the package"
                )
            is_known = is_number and (made_in == FORMAT or made_in in UPGRADES)
            if not is_known or content["metric"] not in ("COSINE", "IP"):
                raise ValueError(f"format {made_in!r}, metric {content.get('metric')!r}")
            for older in range(made_in, FORMAT):
                content |= UPGRADES[older]
            # The first collections of this format say nothing of calibration and full text, and
            # have none.
            known = {name: content[name] for name in cls.__dataclass_fields__ if name in content}
            whole = json.dumps({**known, "space": content})
            return TypeAdapter(cls).validate_json(whole, strict=True)
        except (TypeError, KeyError, ValueError, RecursionError) as err:
            raise StoreError(
                f"collection {collection!r}: its passport is damaged and does not say which model "
                f"wrote it ({_reason(err)}). Restore the database, or index again with another "
                "collection_name, or with overwrite=True, which drops it with all its data"
            ) from err

    def check_full_text(self, wanted: FullText | None, collection: str) -> None:
        """Refuse a collection whose texts were not prepared to be searched as is wanted.

        Raises:
            StoreError: If they were not.
        """
        if wanted is not None and self.full_text != wanted:
            made = f"full_text={self.full_text!r}" if self.full_text else "no full text"
            raise StoreError(
                f"collection {collection!r} was made with {made}, full_text={wanted!r} is wanted; "
                "use another collection_name (--collection), or index again with overwrite=True "
                "(--overwrite), which drops the collection with all its data"
            )

    def check(self, space: EmbeddingSpace, collection: str) -> None:
        """Refuse a model whose embeddings cannot be compared with the collection's.

        Args:
            space: The model's.
            collection: The collection's name, for the message.

        Raises:
            DimensionMismatchError: If the dimensions differ.
            EmbeddingSpaceMismatchError: If the weights or the preprocessing differ.
        """
        ways_out = (
            f"open it with {self.space.model!r}, use another collection_name (--collection), or "
            "overwrite=True (index --overwrite) to drop it and start afresh"
        )
        if self.space.dim != space.dim:
            raise DimensionMismatchError(
                f"collection {collection!r} holds {self.space.dim}-dim vectors of "
                f"{self.space.model!r}, model {space.model!r} makes {space.dim}; {ways_out}",
                expected=self.space.dim,
                actual=space.dim,
            )
        # One revision may come as safetensors here and as PyTorch's own format there.
        same_revision = (space.model, space.revision) == (self.space.model, self.space.revision)
        hashed = ("preprocessing",) if same_revision and space.revision else _HASHES
        different = [name for name in hashed if getattr(self.space, name) != getattr(space, name)]
        if different:
            raise EmbeddingSpaceMismatchError(
                f"collection {collection!r} holds vectors of {_name(self.space)}, this model is "
                f"{_name(space)}: their {' and '.join(different)} differ, so their vectors cannot "
                f"be compared; {ways_out}"
            )


def _name(space: EmbeddingSpace) -> str:
    revision = f"revision {space.revision[:12]}, " if space.revision else ""
    return f"{space.model!r} ({revision}weights {space.weights[:12]})"


def _reason(err: Exception) -> str:
    if isinstance(err, ValidationError):
        return "; ".join(f"{one['loc'][-1]}: {one['msg']}" for one in err.errors())
    return f"{type(err).__name__}: {err}"
