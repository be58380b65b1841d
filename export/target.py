"""The folder that a bundle is written into: whether it may be, looked at before any work is done.

Input: a folder. Output: nothing, or an error. Must not know: torch, which takes seconds to import.
"""

import re
from pathlib import Path

from meari.bundle_format.folders import IN_PASSING, MANIFEST
from meari.bundle_format.names import NAME_PATTERN
from meari.export.errors import BundleExists, ExportError
from meari.models.files import why_not_writable


def check_target(folder: Path, *, overwrite: bool) -> None:
    """Raise ExportError for a name that no server takes, BundleExists if the folder must not be replaced, and
    ExportError where nothing can be written.
    """
    if not re.fullmatch(NAME_PATTERN, folder.name) or folder.name.endswith(IN_PASSING):
        ends = f"none of {', '.join(IN_PASSING)} at its end, and not DEFAULT"
        raise ExportError(f"got the bundle name {folder.name!r}, expected letters, digits, '.', '_', '-', {ends}")
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        if not (folder / MANIFEST).is_file():
            raise BundleExists(f"{folder}: exists and is not a bundle; choose another name")
        if not overwrite:
            raise BundleExists(f"{folder}: this bundle exists; replace it with --overwrite, or choose another name")
    if reason := why_not_writable(folder):
        raise ExportError(f"{folder}: no bundle can be written there: {reason}")
