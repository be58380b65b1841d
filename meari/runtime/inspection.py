"""A bundle's folder → its description, the contents of its files, and the result of its self-test on this CPU.

Input: a folder. Output: a description as of GET /models/NAME. Must not know: HTTP, requests.

The bundle is opened as a server would: files against their hashes, golden figures on this CPU, rows in batches of many
sizes. If that fails, the description has the parts that could be read, and the reason.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from meari.bundle_format.folders import MANIFEST, SIGNATURE, bundle_name
from meari.bundle_format.manifest import Manifest
from meari.bundle_format.reader import naming_folder, read_files, read_manifest
from meari.bundle_format.signatures import PublicKey, check_signature, read_signature
from meari.errors import BundleError
from meari.runtime.bundle import Bundle, open_bundle
from meari.runtime.graphs.bundle_graph import BundleGraph

__all__ = ["Inspection", "describe_bundle", "describe_folder", "inspect_bundle"]

MAX_SLOTS = 64  # rows of the largest batch that is tried: a server's own default


@dataclass(frozen=True)
class Inspection:
    """`description` is JSON as of GET /models/NAME, with files and self-test; `problem` is "" where all is well."""

    description: dict[str, Any]
    problem: str


def describe_bundle(name: str, manifest: Manifest, bundle_hash: str) -> dict[str, Any]:
    """Return the part of GET /models that any bundle has, served or not.

    name         of its folder, by which it is called
    bundle_hash  SHA-256 of the manifest's bytes
    """
    return {
        "name": name,
        "family": manifest.family,
        "precision": manifest.precision,
        "sizes": manifest.sizes,
        "state": manifest.state,
        "tokenizer": {
            "kind": manifest.tokenizer.kind,
            "normalization": manifest.tokenizer.normalization,
            "unknown_id": manifest.tokenizer.unknown_id,
            "vocabulary_size": manifest.sizes["vocabulary"],
            "boundary": manifest.boundary,
        },
        "graphs": manifest.graphs,
        "corpus": {**manifest.corpus, "has_ends": manifest.has_ends},
        "figures": manifest.figures,
        "hashes": {"bundle": bundle_hash, "files": {name: entry.sha256 for name, entry in manifest.files.items()}},
    }


def describe_folder(folder: Path, signing_keys: Sequence[PublicKey] = ()) -> dict[str, Any]:
    """Return the description in the manifest; nothing is checked but its signature, if there are keys.

    Raises BundleError.
    """
    manifest, digest = read_manifest(folder, signing_keys)
    described: dict[str, Any] = msgspec.to_builtins(describe_bundle(bundle_name(folder), manifest, digest))
    return described


def inspect_bundle(
    folder: Path, signing_keys: Sequence[PublicKey] = (), clock: Callable[[], float] = time.monotonic
) -> Inspection:
    """Read the folder and run the self-test. Raises BundleError where there is no manifest to be read.

    signing_keys  keys of which one has signed the bundle; without any it need not be signed
    """
    with naming_folder(folder):
        manifest, digest = read_manifest(folder)
    described = describe_folder(folder)
    described["folder"] = str(folder)
    described["bytes"] = (folder / MANIFEST).stat().st_size + sum(entry.bytes for entry in manifest.files.values())
    described["files"] = {name: entry.bytes for name, entry in manifest.files.items()}
    started = clock()
    try:
        described["signature"] = _signature(folder, digest, signing_keys)
        files = read_files(folder, manifest)
        graphs = {name: f"{name}.onnx" for name in ("cell", "output")}
        described["graphs"] = {name: _graph(file, files[file]) for name, file in graphs.items()}
        bundle = open_bundle(folder, max_slots=MAX_SLOTS, signing_keys=signing_keys)
    except BundleError as error:
        described["self_test"] = {"passed": False, "problem": str(error)}
        return Inspection(described, str(error))
    described["state_bytes"] = bundle.runner.state_bytes
    described["self_test"] = _found(bundle, clock() - started)
    return Inspection(described, "")


def _signature(folder: Path, bundle_hash: str, keys: Sequence[PublicKey]) -> dict[str, Any] | None:
    """Return who has signed the bundle, None where nobody has. Raises BundleError for a signature that does not hold.

    keys  where there are any, one of them must have signed
    """
    if keys:
        check_signature(folder, bundle_hash, keys)
    elif not os.path.lexists(folder / SIGNATURE):
        return None
    key = read_signature(folder, bundle_hash)
    return {"key_id": key.id, "public_key": key.text, "trusted": key in keys}


def _found(bundle: Bundle, seconds: float) -> dict[str, Any]:
    found: dict[str, Any] = msgspec.to_builtins(bundle.self_test)
    tolerance = bundle.manifest.golden.tolerance
    return {"passed": True, **found, "golden_tolerance": tolerance, "seconds": round(seconds, 3)}


def _graph(file: str, data: bytes) -> dict[str, Any]:
    """Return size and operators of the graph in a file."""
    try:
        return {"file": file, "bytes": len(data), "operators": BundleGraph(data).operators()}
    except ValueError as error:
        raise BundleError(f"{file}: {error}") from None
