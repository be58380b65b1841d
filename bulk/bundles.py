"""Which bundle a run is for. Enters: what the user said. Leaves: the folder, and the hash of its manifest."""

from __future__ import annotations

import hashlib
from pathlib import Path

from bulk.errors import BulkError

__all__ = ["bundle_folders", "bundle_hash", "find_bundle"]

MANIFEST = "manifest.json"


def find_bundle(bundles: Path, model: str | None) -> Path:
    """The folder of the bundle: `model` in `bundles`, or a path; without `model` the default one. Raises BulkError.

    bundles  a folder of bundles, or a bundle
    model    a name, or the path of a bundle
    """
    if model is None:
        return bundles if (bundles / MANIFEST).is_file() else _default(bundles)
    for folder in (bundles / model, Path(model)):
        if (folder / MANIFEST).is_file():
            return folder
    if (bundles / MANIFEST).is_file() and bundles.resolve().name == model:
        return bundles
    found = ", ".join(_names(bundles)) or f"a bundle in {bundles}, which has none"
    raise BulkError(f"model: got {model!r}, expected {found}, or the path of a bundle")


def bundle_hash(folder: Path) -> str:
    """SHA-256 of the manifest, which holds those of all other files."""
    return hashlib.sha256((folder / MANIFEST).read_bytes()).hexdigest()


def bundle_folders(bundles: Path) -> list[Path]:
    """The bundles in a folder, by name; or the one that it is itself."""
    return [bundles] if (bundles / MANIFEST).is_file() else [bundles / name for name in _names(bundles)]


def _default(bundles: Path) -> Path:
    names = _names(bundles)
    if not names:
        raise BulkError(f"bundles: there is no bundle in {bundles}, expected a folder of bundles, or a bundle")
    try:
        named = (bundles / "DEFAULT").read_text("utf-8").strip()
    except OSError:
        named = ""
    return bundles / (named if named in names else names[0])


def _names(bundles: Path) -> list[str]:
    if not bundles.is_dir():
        return []
    return sorted(folder.name for folder in bundles.iterdir() if (folder / MANIFEST).is_file())
