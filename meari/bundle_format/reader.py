"""Reader of a bundle's manifest and files.

Input: a bundle's folder, or the bytes of its manifest. Output: a `Manifest` that does not contradict itself, and the
bytes of the files that a server needs, as large and with the SHA-256 that the manifest states; or a BundleError that
names the field or the file. Must not know: the content of the other files.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final, NoReturn

import msgspec

from meari.bundle_format.consistency import check_consistency
from meari.bundle_format.folders import (
    CELL_GRAPH,
    GOLDEN,
    MANIFEST,
    OUTPUT_GRAPH,
    REQUIRED_FILES,
    open_file,
    printable,
    read_file,
)
from meari.bundle_format.manifest import FORMAT_VERSION, FileEntry, Manifest, Positive, contradiction, show_value
from meari.bundle_format.signatures import PublicKey, check_signature
from meari.errors import BundleError

__all__ = ["check_sizes", "naming_folder", "parse_manifest", "read_files", "read_manifest"]

MAX_MANIFEST_BYTES: Final = 1 << 20
MAX_DEPTH: Final = 32  # of a manifest's objects and lists; an export writes 7
MAX_GRAPH_BYTES: Final = (1 << 31) - 1  # what ONNX' file format can hold
MAX_FILE_BYTES: Final = 1 << 27  # a tokenizer of a million tokens takes half
MAX_READ_BYTES: Final = {CELL_GRAPH: MAX_GRAPH_BYTES, OUTPUT_GRAPH: MAX_GRAPH_BYTES, GOLDEN: 1 << 28}


def read_manifest(folder: Path, signing_keys: Sequence[PublicKey] = ()) -> tuple[Manifest, str]:
    """Read a bundle's manifest; return it with the SHA-256 of its bytes, which cover all other files.

    signing_keys  keys of which one has signed the manifest; without any it need not be signed

    Raises BundleError; a signature is verified before anything is parsed.
    """
    data = read_file(folder / MANIFEST, MAX_MANIFEST_BYTES)
    digest = hashlib.sha256(data).hexdigest()
    if signing_keys:
        check_signature(folder, digest, signing_keys)
    return parse_manifest(data), digest


@contextlib.contextmanager
def naming_folder(folder: Path) -> Iterator[None]:
    """Put the bundle's folder before what a BundleError of the block says of its files."""
    try:
        yield
    except BundleError as error:
        raise BundleError(f"{printable(folder)}: {error}") from None


def check_sizes(manifest: Manifest) -> None:
    """Raise BundleError for a file that is larger than any of its kind may be."""
    for name, entry in manifest.files.items():
        most = MAX_READ_BYTES.get(name, MAX_FILE_BYTES)
        if entry.bytes > most:
            raise contradiction(f"files.{name}.bytes", entry.bytes, f"at most {most}")


def read_files(folder: Path, manifest: Manifest) -> dict[str, bytes]:
    """Read the files that a server needs, and compare all listed files with their sizes and SHA-256.

    Raises BundleError naming the first that differs.
    """
    check_sizes(manifest)  # before any of them is opened
    found = {name: _read(folder / name, entry) for name, entry in sorted(manifest.files.items())}
    return {name: data for name, data in found.items() if data is not None}


def _read(path: Path, entry: FileEntry) -> bytes | None:
    """Return the bytes of a file that a server needs, None for another."""
    says = f"as files.{path.name}.{{}} of {MANIFEST} says; the file was changed after the export"
    with open_file(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size != entry.bytes:
            raise BundleError(f"{path.name}: got {size:,} bytes, expected {entry.bytes:,}, {says.format('bytes')}")
        data = file.read(size)
    digest = hashlib.sha256(data).hexdigest()
    if digest != entry.sha256:
        expected = f"{entry.sha256[:12]}…, {says.format('sha256')}"
        raise BundleError(f"{path.name}: SHA-256: got {digest[:12]}…, expected {expected}")
    return data if path.name in REQUIRED_FILES else None


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
    check_consistency(manifest)
    return manifest


def _parse_json(data: bytes) -> dict[str, Any]:
    try:
        raw = json.loads(
            data.decode("utf-8"), object_pairs_hook=_unique, parse_float=_finite, parse_constant=_refuse_constant
        )
    except UnicodeDecodeError:
        raise BundleError(f"{MANIFEST}: got other than UTF-8, expected JSON in UTF-8") from None
    except RecursionError:
        raise BundleError(f"{MANIFEST}: got JSON nested too deeply, expected at most {MAX_DEPTH} levels") from None
    except ValueError as error:
        reason = "a byte-order mark at its beginning" if data.startswith(b"\xef\xbb\xbf") else str(error)
        raise BundleError(f"{MANIFEST}: got other than JSON: {reason}") from None
    if not isinstance(raw, dict):
        raise BundleError(f"{MANIFEST}: got {show_value(raw)}, expected a JSON object")
    if _is_deeper_than(raw, MAX_DEPTH):
        raise BundleError(f"{MANIFEST}: got JSON nested too deeply, expected at most {MAX_DEPTH} levels")
    try:
        json.dumps(raw, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise BundleError(f"{MANIFEST}: got half a surrogate pair in a text, expected whole characters") from None
    return raw


def _is_deeper_than(value: object, depth: int) -> bool:
    if not isinstance(value, dict | list):
        return False
    inner = value.values() if isinstance(value, dict) else value
    return depth == 0 or any(_is_deeper_than(each, depth - 1) for each in inner)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        shown = twice[:100].encode("utf-8", "backslashreplace").decode()
        raise BundleError(f"{MANIFEST}: {shown}: got it twice, expected every field once")
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
    field = f"{'.'.join(names)}: got {show_value(value)}: " if names else ""
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
