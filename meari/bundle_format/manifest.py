"""Manifest of a bundle: the type that the export writes and a server reads.

Input: the bytes of `manifest.json`, or its fields. Output: a Manifest that does not contradict itself, or a BundleError
that names the field; the bytes of the file. Must not know: the content of other files, which is compared with the
fields in `text/agreement.py` and `graphs/agreement.py` of the runtime.

Unknown fields are refused: a bundle of a later format could mean something else by the same numbers.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Final, Literal, NoReturn

import msgspec

from meari.bundle_format.folders import MANIFEST, REQUIRED_FILES, open_file, read_file
from meari.bundle_format.names import Document, Family, Precision, TokenizerKind
from meari.errors import BundleError, Problem

__all__ = [
    "Boundary",
    "FileEntry",
    "Manifest",
    "StateEntry",
    "TokenizerEntry",
    "contradiction",
    "parse_manifest",
    "read_files",
    "read_manifest",
]

FORMAT_VERSION: Final = 1
MANY_FILES: Final = 100  # as training texts whose ends can be learned
MAX_MANIFEST_BYTES: Final = 1 << 20
MAX_FILE_BYTES: Final = (1 << 31) - 1  # what ONNX' file format can hold
MAX_READ_BYTES: Final = {"golden.npz": 1 << 28, "tokenizer.json": 1 << 28}  # a million tokens take a quarter
Count = Annotated[int, msgspec.Meta(ge=0)]
Positive = Annotated[int, msgspec.Meta(ge=1)]
SIZES: Final = ("vocabulary", "hidden", "layers", "parameters")  # the embedding is of trained families alone
OPTIONAL_SIZES: Final = ("embedding", "trained_parameters")
DOCUMENTS: Final = tuple(Document)
RATES: Final = ("nats_per_token", "nats_per_char", "bits_per_char", "bits_per_char_with_ends", "bits_per_byte")
UNITS: Final = {  # of a rate: what it is counted by, and the nats of its unit
    "nats_per_char": (("num_characters",), 1.0),
    "bits_per_char": (("num_characters",), math.log(2)),
    "bits_per_char_with_ends": (("num_characters", "num_ends"), math.log(2)),
    "bits_per_byte": (("num_bytes",), math.log(2)),
}
COUNTS: Final = ("num_tokens", "num_characters", "num_bytes")
PARTS: Final = ("validation", "test")
TABLES: Final = (*PARTS, "checkpoint", "precision_check", "measured_on")  # of `figures`
CONFIGURED: Final = {"name", "licence", "source", "document", "baseline"}  # of `corpus`, as the config says it
MAX_EXP: Final = 700.0  # nats whose perplexity a float64 holds
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
    return BundleError(Problem(f"{MANIFEST}: {field}", _shown(got), expected))


def read_manifest(folder: Path) -> tuple[Manifest, str]:
    """Read a bundle's manifest; return it with the SHA-256 of its bytes, which cover all other files. Raises
    BundleError.
    """
    data = read_file(folder / MANIFEST, MAX_MANIFEST_BYTES)
    return parse_manifest(data), hashlib.sha256(data).hexdigest()


def read_files(folder: Path, manifest: Manifest) -> dict[str, bytes]:
    """Read the files that a server needs, and compare all listed files with their sizes and SHA-256.

    Raises BundleError naming the first that differs.
    """
    for name, entry in manifest.files.items():
        most = MAX_READ_BYTES.get(name, MAX_FILE_BYTES)
        if entry.bytes > most:
            raise contradiction(f"files.{name}.bytes", entry.bytes, f"at most {most}")
    found = {name: _read(folder / name, entry) for name, entry in sorted(manifest.files.items())}
    return {name: data for name, data in found.items() if data is not None}


def _read(path: Path, entry: FileEntry) -> bytes | None:
    """Return the bytes of a file that a server needs, None for another."""
    says = f"as files.{path.name}.{{}} of {MANIFEST} says; the file was changed after the export"
    with open_file(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size != entry.bytes:
            raise BundleError(f"{path.name}: got {size:,} bytes, expected {entry.bytes:,}, {says.format('bytes')}")
        data = file.read(size) if path.name in REQUIRED_FILES else None
        digest = (hashlib.file_digest(file, "sha256") if data is None else hashlib.sha256(data)).hexdigest()
    if digest != entry.sha256:
        expected = f"{entry.sha256[:12]}…, {says.format('sha256')}"
        raise BundleError(f"{path.name}: SHA-256: got {digest[:12]}…, expected {expected}")
    return data


def parse_manifest(data: bytes) -> Manifest:
    """Read a manifest. Raises BundleError with the field that is wrong."""
    raw = _parse_json(data)
    version = raw.get("format_version")
    if type(version) is not int or version != FORMAT_VERSION:
        raise contradiction("format_version", version, f"{FORMAT_VERSION}; export the bundle again")
    try:
        manifest = msgspec.convert(raw, Manifest)
    except msgspec.ValidationError as error:
        raise _explained(str(error), raw) from None
    for check in (_check_files, _check_sizes, _check_corpus, _check_training, _check_figures):
        check(manifest)
    return manifest


def _parse_json(data: bytes) -> dict[str, Any]:
    try:
        raw = json.loads(
            data.decode("utf-8"), object_pairs_hook=_unique, parse_float=_finite, parse_constant=_refuse_constant
        )
    except UnicodeDecodeError:
        raise BundleError(f"{MANIFEST}: got other than UTF-8, expected JSON in UTF-8") from None
    except RecursionError:
        raise BundleError(f"{MANIFEST}: got JSON nested too deeply, expected that of an export") from None
    except ValueError as error:
        reason = "a byte-order mark at its beginning" if data.startswith(b"\xef\xbb\xbf") else str(error)
        raise BundleError(f"{MANIFEST}: got other than JSON: {reason}") from None
    if not isinstance(raw, dict):
        raise BundleError(f"{MANIFEST}: got {_shown(raw)}, expected a JSON object")
    return raw


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise BundleError(f"{MANIFEST}: {twice[:100]}: got it twice, expected every field once")
    return found


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"the number {text[:40]} is too large")
    return value


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number of JSON")


def _explained(message: str, raw: dict[str, Any]) -> BundleError:
    """Return msgspec's sentence, with the field's full name and its value."""
    reason, _, path = message.partition(" - at `$")
    names: list[str] = []
    value: Any = raw
    for part in re.findall(r"[^.`\[\]]+|\.\.\.", path):
        name = _wrong_entry(names[0], value) if part == "..." else part
        value = value[int(name)] if isinstance(value, list) else value[name]
        names.append(name)
    field = f"{'.'.join(names)}: got {_shown(value)}: " if names else ""
    return BundleError(f"{MANIFEST}: {field}{reason[:1].lower()}{reason[1:]}")


def _wrong_entry(table: str, entries: dict[str, Any]) -> str:
    """Return the first entry that does not fit; msgspec does not name it."""
    kind: Any = {"files": FileEntry, "sizes": Positive}.get(table, dict[str, Any])
    for name, value in entries.items():
        try:
            msgspec.convert(value, kind)
        except msgspec.ValidationError:
            return name
    raise AssertionError("msgspec has found one")


def _shown(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}…"


def _check_files(manifest: Manifest) -> None:
    absent = [name for name in REQUIRED_FILES if name not in manifest.files]
    if absent:
        raise BundleError(f"{MANIFEST}: files: {', '.join(absent)} not listed, expected with its SHA-256")
    for name in manifest.files:
        if Path(name).name != name or "\0" in name or name == MANIFEST:
            raise contradiction("files", name, "a plain name of another file")


def _check_sizes(manifest: Manifest) -> None:
    sizes = manifest.sizes
    for name in SIZES:
        if name not in sizes:
            raise BundleError(f"{MANIFEST}: sizes.{name}: missing, expected a number of at least 1")
    unknown = sorted(sizes.keys() - {*SIZES, *OPTIONAL_SIZES})
    if unknown:
        raise contradiction("sizes", unknown[0], f"one of {', '.join((*SIZES, *OPTIONAL_SIZES))}")
    if (manifest.family == "esn") == ("embedding" in sizes):
        raise contradiction("family", manifest.family, "esn without sizes.embedding, or another family with it")
    trained = sizes.get("trained_parameters", sizes["parameters"])
    if trained > sizes["parameters"] or (trained < sizes["parameters"] and manifest.family != "esn"):
        field = "sizes.parameters, sizes.trained_parameters"
        raise contradiction(field, [sizes["parameters"], trained], "the same, or more than are trained of an esn")
    names = [entry.name for entry in manifest.state]
    for name in names:
        if names.count(name) > 1:
            raise contradiction("state", names, f"{name} once")


def _check_corpus(manifest: Manifest) -> None:
    corpus = manifest.corpus
    for name in ("name", "licence", "source"):
        if not isinstance(corpus.get(name, ""), str):
            raise contradiction(f"corpus.{name}", corpus[name], "text")
    if corpus.get("document", DOCUMENTS[0]) not in DOCUMENTS:
        raise contradiction("corpus.document", corpus["document"], f"one of {', '.join(DOCUMENTS)}")
    if not isinstance(corpus.get("has_ends", True), bool):
        raise contradiction("corpus.has_ends", corpus["has_ends"], "true, false or no such field")


def _check_training(manifest: Manifest) -> None:
    """Compare the config of the training, as far as there is one, with the fields."""
    for path in ("corpus", "model", "tokenizer"):
        if not isinstance(manifest.training.get(path, {}), dict):
            raise contradiction(f"training.{path}", manifest.training[path], "an object or no such field")
    corpus = {
        f"corpus.{name}": (manifest.corpus[name], f"corpus.{name}") for name in CONFIGURED & manifest.corpus.keys()
    }
    fields = {
        "family": (manifest.family, "model.family"),
        "tokenizer.kind": (manifest.tokenizer.kind, "tokenizer.kind"),
        "sizes.embedding": (manifest.sizes.get("embedding"), "model.embedding_size"),
        **_trained_layers(manifest),
        **corpus,
    }
    for field, (said, place) in fields.items():
        table, _, name = place.partition(".")
        trained = manifest.training.get(table, {}).get(name)
        if trained is not None and said is not None and said != trained:
            raise contradiction(field, said, f"{_shown(trained)}, as training.{place} says")
    most = manifest.training.get("tokenizer", {}).get("vocabulary_size") or math.inf
    if not isinstance(most, int | float) or manifest.sizes["vocabulary"] > most:
        said = f"at most {_shown(most)}, as training.tokenizer.vocabulary_size says"
        raise contradiction("sizes.vocabulary", manifest.sizes["vocabulary"], said)


def _trained_layers(manifest: Manifest) -> dict[str, tuple[object, str]]:
    """Return the sizes of the layers, which a config gives either as one list or as one size and a number."""
    model = manifest.training.get("model", {})
    if manifest.family == "esn" or model.get("layer_sizes"):
        return {}
    return {
        "sizes.hidden": (manifest.sizes["hidden"], "model.hidden_size"),
        "sizes.layers": (manifest.sizes["layers"], "model.num_layers"),
    }


def _check_figures(manifest: Manifest) -> None:
    figures = manifest.figures
    trained = manifest.sizes.get("trained_parameters", manifest.sizes["parameters"])
    if figures.get("parameters", trained) != trained:
        field = "figures.parameters, sizes.trained_parameters"
        raise contradiction(field, [figures["parameters"], trained], "the same")
    for name in TABLES:
        if not isinstance(figures.get(name, {}), dict):
            raise contradiction(f"figures.{name}", figures[name], "an object or no such field")
    _check_parts(manifest, [name for name in PARTS if name in figures])
    for where, table in (("figures", figures), ("figures.checkpoint", figures.get("checkpoint", {}))):
        for name, part in table.items():
            if isinstance(part, dict):
                _check_held_out(f"{where}.{name}", part)
            elif table is not figures:
                raise contradiction(f"{where}.{name}", part, "an object")


def _check_parts(manifest: Manifest, parts: list[str]) -> None:
    """Compare the reported part, and whether its texts had ends, with the figures."""
    figures = manifest.figures
    if figures.get("reported_part") not in (None, *parts):
        said = f"one of the parts that have figures: {', '.join(parts) or 'none'}"
        raise contradiction("figures.reported_part", figures["reported_part"], said)
    for name in parts:
        ends = figures[name].get("num_ends", 0)
        if ends and not manifest.has_ends:
            said = f"true: figures.{name}.num_ends is {_shown(ends)}"
            raise contradiction("corpus.has_ends", manifest.corpus.get("has_ends"), said)


def _check_held_out(where: str, part: dict[str, Any]) -> None:
    """Check the figures of a part of the corpus; any of them may be absent."""
    bounds = ((RATES, 0.0), (COUNTS, 1), (("num_ends",), 0), (("perplexity", "perplexity_fp32"), 1.0))
    for names, least in bounds:
        for name in part.keys() & set(names):
            if type(part[name]) not in (int, float) or not least <= part[name] <= sys.float_info.max:
                raise contradiction(f"{where}.{name}", part[name], f"a number of at least {least}")
    for name, sources, value in _derived(part):
        if not math.isclose(part[name], value, rel_tol=1e-2):
            fields = (name, *sources)
            said = ", ".join(f"{where}.{field}" for field in fields)
            raise contradiction(said, [part[field] for field in fields], "that they say the same")


def _derived(part: dict[str, Any]) -> Iterator[tuple[str, tuple[str, ...], float]]:
    """Yield figures, perhaps rounded, that follow from others: name, names of the others, and the expected value."""
    nats = float(part.get("nats_per_token", 0.0))
    if {"perplexity", "nats_per_token"} <= part.keys():
        yield "perplexity", ("nats_per_token",), math.exp(min(nats, MAX_EXP))
    if {"bits_per_char", "nats_per_char"} <= part.keys():
        yield "bits_per_char", ("nats_per_char",), part["nats_per_char"] / math.log(2)
    for rate, (counts, unit) in UNITS.items():
        sources = ("nats_per_token", "num_tokens", *counts)
        if {rate, *sources} <= part.keys():
            yield rate, sources, nats * part["num_tokens"] / unit / sum(part[name] for name in counts)
