"""Folders that are looked at for bundles: those of a setting, or the usual ones.

Input: the text of a setting, the working folder, the user's data folder. Output: folders in the order in which names
are looked up. Must not know: what is in a bundle.

The usual ones are `bundles/` in the working folder, then the user's data folder, which `meari bundles` fills. Where
the first does not exist and the second has no bundle, the small bundle inside the package is there too.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

import platformdirs

from meari.bundle_format.folders import Roots, find_bundles
from meari.errors import BundleError
from meari.paths import expand_home

__all__ = ["BUILT_IN", "data_folder", "parse_roots", "usual_roots"]

WORKING: Final = Path("bundles")
BUILT_IN: Final = Path(__file__).resolve().parents[1] / "built_in"  # a link to a released bundle in a checkout


def data_folder() -> Path | None:
    """Return the folder of the user's own bundles, which may not exist yet; None for a user without a home folder."""
    try:
        return platformdirs.user_data_path("meari", appauthor=False) / "bundles"
    except RuntimeError:  # neither HOME nor XDG_DATA_HOME is an absolute path, and the system knows no such user
        return None


def usual_roots() -> tuple[Path, ...]:
    """Return the folders of bundles where no setting says which."""
    own = data_folder()
    roots = (WORKING,) if own is None else (WORKING, own)
    has_any = os.path.lexists(WORKING) or (own is not None and _has_bundle(own))
    return roots if has_any else (*roots, BUILT_IN)


def _has_bundle(folder: Path) -> bool:
    try:
        found = find_bundles(folder)
    except BundleError:
        return os.path.lexists(folder)  # and cannot be read, which has to be told
    return bool(found.folders or found.failed)


def parse_roots(text: str) -> Roots:
    """Return a folder, or several where the text has `:` between them and is not the path of one."""
    parts = [Path(expand_home(part)) for part in text.split(os.pathsep) if part]
    return tuple(parts) if len(parts) > 1 and not Path(text).exists() else Path(expand_home(text))
