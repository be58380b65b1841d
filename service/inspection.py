"""A bundle's folder → what it says of itself, what its files really hold, and how its self-test ended here.

Opened as a server would: files against their hashes, golden figures on this CPU, rows in batches of many sizes. Where
that fails, what could be read is told with the reason.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from service.answers.description import describe_bundle
from service.bundle import Bundle, open_bundle
from service.errors import BundleError
from service.graphs.bundle_graph import BundleGraph
from service.manifest import Manifest, parse_manifest
from service.text.tokenizer import TokenizerKind, load_tokenizer

__all__ = ["Inspection", "describe_folder", "inspect_bundle"]

MAX_SLOTS = 64  # rows of the largest batch that is tried: a server's own default


@dataclass(frozen=True)
class Inspection:
    """`description` is JSON as of GET /models/NAME, with files and self-test; `problem` is "" where all is well."""

    description: dict[str, Any]
    problem: str


def describe_folder(folder: Path) -> dict[str, Any]:
    """What the manifest says; nothing is checked. Raises BundleError."""
    manifest, digest = _read_manifest(folder)
    described: dict[str, Any] = msgspec.to_builtins(describe_bundle(folder.resolve().name, manifest, digest))
    return described


def inspect_bundle(folder: Path, clock: Callable[[], float] = time.monotonic) -> Inspection:
    """Read the folder and run the self-test. Raises BundleError where there is no manifest to be read."""
    manifest, _ = _read_manifest(folder)
    described = describe_folder(folder)
    described["folder"] = str(folder)
    described["bytes"] = sum(path.stat().st_size for path in folder.iterdir() if path.is_file())
    described["files"] = {name: entry.bytes for name, entry in manifest.files.items()}
    started = clock()
    try:
        described["graphs"] = {name: _graph(folder / f"{name}.onnx") for name in ("cell", "output")}
        bundle = open_bundle(folder, max_slots=MAX_SLOTS)
        _check_tokenizer(folder, manifest)
    except BundleError as error:
        described["self_test"] = {"passed": False, "problem": str(error)}
        return Inspection(described, str(error))
    described["state_bytes"] = bundle.runner.state_bytes
    described["self_test"] = _found(bundle, clock() - started)
    return Inspection(described, "")


def _found(bundle: Bundle, seconds: float) -> dict[str, Any]:
    found: dict[str, Any] = msgspec.to_builtins(bundle.self_test)
    tolerance = bundle.manifest.golden.tolerance
    return {"passed": True, **found, "golden_tolerance": tolerance, "seconds": round(seconds, 3)}


def _read_manifest(folder: Path) -> tuple[Manifest, str]:
    try:
        data = (folder / "manifest.json").read_bytes()
    except OSError as error:
        raise BundleError(f"{folder}/manifest.json: cannot be read: {error.strerror}") from None
    return parse_manifest(data), hashlib.sha256(data).hexdigest()


def _graph(path: Path) -> dict[str, Any]:
    """As it stands in the file."""
    try:
        data = path.read_bytes()
        operators = BundleGraph(data).operators()
    except OSError as error:
        raise BundleError(f"{path.name}: cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise BundleError(f"{path.name}: {error}") from None
    return {"file": path.name, "bytes": len(data), "operators": operators}


def _check_tokenizer(folder: Path, manifest: Manifest) -> None:
    kind = TokenizerKind(manifest.tokenizer.kind)
    load_tokenizer(folder / "tokenizer.json", kind, manifest.tokenizer.unknown_id, manifest.sizes["vocabulary"])
