"""Which bundle a run is for. Enters: what the user said. Leaves: the folder, and the hash of its manifest."""

from __future__ import annotations

from pathlib import Path

from meari.bulk.errors import BulkError
from meari.bundle_format.folders import DEFAULT, BundleFolders, find_bundles, holds_bundle, printable
from meari.bundle_format.manifest import read_files, read_manifest
from meari.errors import BundleError, did_you_mean

__all__ = ["bundle_hash", "default_bundle", "find_bundle", "list_bundles"]


def find_bundle(bundles: Path, model: str | None) -> Path:
    """The folder of the bundle: `model` in `bundles`, or a path; without `model` the default one. Raises BulkError.

    bundles  a folder of bundles, or a bundle
    model    a name, or the path of a bundle
    """
    found = list_bundles(bundles) if model is None or bundles.is_dir() else BundleFolders()
    if model is None:
        return default_bundle(bundles, found)
    if model in found.folders:
        return found.folders[model]
    if Path(model).is_dir() and holds_bundle(Path(model)):
        return Path(model)
    if model in found.failed and model != DEFAULT:
        raise BulkError(f"model: {model}: {found.failed[model]}")
    expected = ", ".join(found.folders) or f"a bundle in {printable(bundles)}, which has none"
    hint = did_you_mean(model, found.folders)
    raise BulkError(f"model: got {model!r}, expected {expected}, or the path of a bundle{hint}")


def default_bundle(bundles: Path, found: BundleFolders) -> Path:
    """As DEFAULT says, else the first by name whose files are those of its manifest. Raises BulkError."""
    names = [found.default, *found.folders] if found.default else list(found.folders)
    reasons = [f"{name}: {problem}" for name, problem in found.failed.items()]
    for name in names:
        try:
            folder = found.folders[name]
            read_files(folder, read_manifest(folder)[0])
        except BundleError as error:
            reasons.append(f"{name}: {error}")
        else:
            return folder
    if reasons:
        raise BulkError(f"bundles: no bundle in {printable(bundles)} can be read: {'; '.join(dict.fromkeys(reasons))}")
    raise BulkError(f"bundles: there is no bundle in {printable(bundles)}, expected a folder of bundles, or a bundle")


def list_bundles(bundles: Path) -> BundleFolders:
    """Return the bundles in a folder, or the bundle that it is itself. Raises BulkError."""
    try:
        return find_bundles(bundles)
    except BundleError as error:
        raise BulkError(f"bundles: {error}") from None


def bundle_hash(folder: Path) -> str:
    """SHA-256 of the manifest, which holds those of all other files. Raises BundleError."""
    return read_manifest(folder)[1]
