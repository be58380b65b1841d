"""A bundle by its name, its path, or as the default of a folder.

Input: a folder of bundles or several, and a name. Output: the bundle's folder, or a BundleError that says what there
is. Must not know: settings, the command line.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from meari.bundle_format.folders import (
    DEFAULT,
    BundleFolders,
    Roots,
    bundle_name,
    find_bundles,
    holds_bundle,
    printable,
)
from meari.bundle_format.reader import read_files, read_manifest
from meari.bundle_format.signatures import PublicKey
from meari.errors import BundleError, did_you_mean
from meari.paths import expand_home

__all__ = ["default_bundle", "find_bundle", "list_bundles"]


def find_bundle(bundles: Roots, model: str | None, keys: Sequence[PublicKey] = ()) -> Path:
    """Return the folder of a bundle: `model` in `bundles`, or a path; without `model` the default. Raises BundleError.

    bundles  a folder of bundles, or a bundle; or several of these
    model    a name, or the path of a bundle
    keys     of which one must have signed the default bundle, if there are any
    """
    found = list_bundles(bundles) if model is None or _is_any_folder(bundles) else BundleFolders()
    if model is None:
        return default_bundle(bundles, found, keys)
    if model in found.folders:
        return found.folders[model]
    path = Path(expand_home(model))
    if path.is_dir() and holds_bundle(path):
        return path
    if model in found.failed and model != DEFAULT:
        hidden = [printable(each) for each in found.hidden if bundle_name(each) == model]
        raise BundleError(f"model: {model}: {found.failed[model]}" + (f"; it hides {hidden[0]}" if hidden else ""))
    expected = ", ".join(found.folders) or f"a bundle in {printable(bundles)}, which has none"
    hint = did_you_mean(model, found.folders)
    raise BundleError(f"model: got {model!r}, expected {expected}, or the path of a bundle{hint}")


def _is_any_folder(roots: Roots) -> bool:
    return any(root.is_dir() for root in (roots if isinstance(roots, tuple) else (roots,)))


def default_bundle(bundles: Roots, found: BundleFolders, keys: Sequence[PublicKey] = ()) -> Path:
    """Return the bundle that DEFAULT names, else the first whose files match its manifest, signed where it has to be.

    Raises BundleError.
    """
    names = [found.default, *found.folders] if found.default else list(found.folders)
    reasons = [f"{name}: {problem}" for name, problem in found.failed.items()]
    for name in names:
        try:
            folder = found.folders[name]
            read_files(folder, read_manifest(folder, keys)[0])
        except BundleError as error:
            reasons.append(f"{name}: {error}")
        else:
            return folder
    if reasons:
        raise BundleError(
            f"bundles: no bundle in {printable(bundles)} can be read: {'; '.join(dict.fromkeys(reasons))}"
        )
    raise BundleError(f"bundles: there is no bundle in {printable(bundles)}, expected a folder of bundles, or a bundle")


def list_bundles(bundles: Roots) -> BundleFolders:
    """Return the bundles in folders, or those that they are themselves. Raises BundleError."""
    try:
        return find_bundles(bundles)
    except BundleError as error:
        raise BundleError(f"bundles: {error}") from None
