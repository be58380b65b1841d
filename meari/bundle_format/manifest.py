"""Manifest of a bundle: the type that the export writes and a server reads.

Input: fields. Output: a `Manifest`, the bytes of `manifest.json`. Must not know: files.

Unknown fields are refused: a bundle of a later format could mean something else by the same numbers.
"""

from __future__ import annotations

import datetime as dt
import json
from typing import Annotated, Any, Final, Literal

import msgspec

from meari.bundle_format.folders import MANIFEST
from meari.bundle_format.names import Family, Precision, TokenizerKind
from meari.errors import BundleError, Problem

__all__ = ["Boundary", "FileEntry", "Golden", "Manifest", "StateEntry", "TokenizerEntry", "contradiction", "show_value"]

FORMAT_VERSION: Final = 1
MANY_FILES: Final = 100  # as training texts whose ends can be learned
Count = Annotated[int, msgspec.Meta(ge=0)]
Positive = Annotated[int, msgspec.Meta(ge=1)]
PARTS: Final = ("validation", "test")
MAX_SHOWN: Final = 60  # characters of a value in a message


class _Strict(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Base of all parts: immutable, no unknown fields."""


class StateEntry(_Strict, frozen=True):
    """One tensor of the recurrent state, without its batch dimension."""

    name: Annotated[str, msgspec.Meta(min_length=1)]
    shape: tuple[Positive, ...]
    dtype: Literal["float32"]


class Boundary(_Strict, frozen=True):
    """Token that begins every text as context and ends it as outcome."""

    id: Count
    token: str


class TokenizerEntry(_Strict, frozen=True):
    """Kind of `tokenizer.json`."""

    kind: TokenizerKind
    normalization: Literal["NFC"]
    unknown_id: Count | None


class Golden(_Strict, frozen=True):
    """Largest difference in nats between the figures of `golden.npz` and those computed here.

    The smallest tolerance is the resolution of float32; a difference beyond the largest means another model.
    """

    tolerance: Annotated[float, msgspec.Meta(ge=1e-6, le=0.1)]


class FileEntry(_Strict, frozen=True):
    """Hash and size of a file of the folder."""

    sha256: Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{64}$")]
    bytes: Count


class Manifest(_Strict, frozen=True):
    """Content of `manifest.json`. `name` is the name at export; a bundle is called by the name of its folder."""

    format_version: int
    name: Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$")]
    family: Family
    precision: Precision
    sizes: dict[str, Positive]
    state: tuple[StateEntry, ...]
    boundary: Boundary
    tokenizer: TokenizerEntry
    graphs: dict[str, dict[str, Any]]
    corpus: dict[str, Any]
    training: dict[str, Any]
    figures: dict[str, Any]
    golden: Golden
    files: dict[str, FileEntry]

    def to_json(self) -> bytes:
        """Return the bytes of `manifest.json`. Raises ValueError for a number that is not finite."""
        return (json.dumps(msgspec.to_builtins(self), ensure_ascii=False, indent=2, allow_nan=False) + "\n").encode()

    @property
    def training_ended(self) -> dt.date | None:
        """Date in UTC at which the training ended; None if the weights came from elsewhere or before there was a date.

        Raises ValueError for what is no date.
        """
        stated = self.figures.get("training_ended")
        if stated is None:
            return None
        date = dt.date.fromisoformat(stated)
        if date.isoformat() != stated:  # another of ISO's forms, which a browser may not read
            raise ValueError(stated)
        return date

    @property
    def has_ends(self) -> bool:
        """True if the training text taught where a text ends, so that the end counts in a score by default.

        A bundle from before `corpus.has_ends` is judged by its documents: lines and paragraphs have ends, and so have
        files if there were many of them.
        """
        stated = self.corpus.get("has_ends")
        if isinstance(stated, bool):
            return stated
        documents = self.figures.get("training_documents")
        has_many = isinstance(documents, int) and documents >= MANY_FILES
        return self.corpus.get("document") != "file" or has_many


def contradiction(field: str, got: object, expected: str) -> BundleError:
    """Make the error for a field that contradicts the rest of the bundle."""
    return BundleError(Problem(f"{MANIFEST}: {field}", show_value(got), expected))


def show_value(value: object) -> str:
    """Return a value as JSON, cut to a message's length."""
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}…"
