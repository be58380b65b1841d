"""A bundle's `manifest.json` as a value.

Enters: the bytes of the file. Leaves: a Manifest, or a BundleError that names the field. What is not understood is
refused: a bundle of a later format could mean something else by the same numbers.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import msgspec

from service.errors import BundleError

FORMAT_VERSION: Final = 1
REQUIRED_FILES: Final = ("cell.onnx", "golden.npz", "output.onnx", "tokenizer.json")
MANY_FILES: Final = 100  # as training texts whose ends can be learned
Count = Annotated[int, msgspec.Meta(ge=0)]
Positive = Annotated[int, msgspec.Meta(ge=1)]


class _Strict(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Base of all parts: immutable, no unknown fields."""


class StateEntry(_Strict, frozen=True):
    """One tensor of the recurrent state, without its batch dimension."""

    name: str
    shape: tuple[Positive, ...]
    dtype: Literal["float32"]


class Boundary(_Strict, frozen=True):
    """The token that begins every text as context and ends it as outcome."""

    id: Count
    token: str


class TokenizerEntry(_Strict, frozen=True):
    """How `tokenizer.json` cuts text."""

    kind: Literal["char", "bpe", "word"]
    normalization: Literal["NFC"]
    unknown_id: Count | None


class Golden(_Strict, frozen=True):
    """How far the figures of `golden.npz` may be from those computed here, in nats."""

    tolerance: Annotated[float, msgspec.Meta(gt=0)]


class FileEntry(_Strict, frozen=True):
    """What a file of the folder has to be."""

    sha256: str
    bytes: Count


class Manifest(_Strict, frozen=True):
    """What a bundle says of itself. The free-form parts (corpus, training, figures, graphs) are only shown."""

    format_version: int
    name: Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$")]
    family: Literal["rnn", "gru", "lstm", "esn"]
    precision: Literal["fp32", "int8"]
    sizes: dict[str, Count]
    state: tuple[StateEntry, ...]
    boundary: Boundary
    tokenizer: TokenizerEntry
    graphs: dict[str, dict[str, Any]]
    corpus: dict[str, Any]
    training: dict[str, Any]
    figures: dict[str, Any]
    golden: Golden
    files: dict[str, FileEntry]

    @property
    def has_ends(self) -> bool:
        """Whether the training text taught where a text ends, so that the end figures in a score by default.

        A bundle from before `corpus.has_ends` is judged by what its documents are: lines and paragraphs have ends,
        and so have files where there were many of them.
        """
        stated = self.corpus.get("has_ends")
        if isinstance(stated, bool):
            return stated
        documents = self.figures.get("training_documents")
        has_many = isinstance(documents, int) and documents >= MANY_FILES
        return self.corpus.get("document") != "file" or has_many


def parse_manifest(data: bytes) -> Manifest:
    """Read a manifest. Raises BundleError with the field that is wrong."""
    try:
        version = msgspec.json.decode(data, type=dict[str, Any]).get("format_version")
        if version != FORMAT_VERSION:
            raise BundleError(
                f"manifest.json: format_version: got {version!r}, expected {FORMAT_VERSION}; export the bundle again"
            )
        manifest = msgspec.json.decode(data, type=Manifest)
    except msgspec.DecodeError as error:
        raise BundleError(f"manifest.json: {error}") from error
    if "vocabulary" not in manifest.sizes:
        raise BundleError("manifest.json: sizes.vocabulary: missing, expected the number of tokens")
    stated = manifest.corpus.get("has_ends", True)
    if not isinstance(stated, bool):
        raise BundleError(f"manifest.json: corpus.has_ends: got {stated!r}, expected true, false or no such field")
    absent = [name for name in REQUIRED_FILES if name not in manifest.files]
    if absent:
        raise BundleError(f"manifest.json: files: {', '.join(absent)} not listed, expected with its SHA-256")
    return manifest


def check_files(folder: Path, manifest: Manifest) -> None:
    """Compare every listed file with its size and SHA-256. Raises BundleError naming the first that differs."""
    for name, entry in sorted(manifest.files.items()):
        if Path(name).name != name:
            raise BundleError(f"manifest.json: files: got {name!r}, expected a plain file name")
        try:
            data = (folder / name).read_bytes()
        except OSError as error:
            raise BundleError(f"{name}: cannot be read: {error.strerror}") from error
        digest = hashlib.sha256(data).hexdigest()
        if digest != entry.sha256:
            raise BundleError(
                f"{name}: SHA-256 is {digest[:12]}… over {len(data)} bytes, "
                f"the manifest says {entry.sha256[:12]}… over {entry.bytes}; the file was changed after the export"
            )
