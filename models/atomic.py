"""Files and folders that are either there in full or not at all, also when the machine stops in the middle.

In: bytes, or a folder's worth of files. Out: the same on disk. Knows nothing of what is in them.

A file is written beside its place, flushed to the disk, and renamed over the old one. A folder cannot be renamed
over another, so its swap has two renames; between them only `NAME.old` exists, and `settled` finds it:

    NAME.new   being written; ignored by readers, removed by the next writer
    NAME       the current one
    NAME.old   the one before, for the instant of the swap
"""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def write_file(path: Path, content: bytes) -> None:
    """Write a whole file atomically."""
    beside = path.with_name(path.name + ".new")
    with beside.open("wb") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())
    beside.replace(path)
    _flush_folder(path.parent)


@contextmanager
def replaced_folder(folder: Path) -> Iterator[Path]:
    """Yield an empty folder to fill; on a clean exit it takes the place of `folder`, on an error nothing changes."""
    new, old = _beside(folder, ".new"), _beside(folder, ".old")
    if not folder.exists() and old.exists():
        old.rename(folder)
    _remove(new)
    new.mkdir(parents=True)
    try:
        yield new
    except BaseException:
        _remove(new)
        raise
    _flush_files(new)
    _remove(old)
    if folder.exists():
        folder.rename(old)
    new.rename(folder)
    _flush_folder(folder.parent)
    _remove(old)


def settled(folder: Path) -> Path:
    """Where the newest whole version of a folder is: itself, or what a swap that was cut short left of it."""
    old = _beside(folder, ".old")
    return old if old.exists() and not folder.exists() else folder


def _beside(folder: Path, suffix: str) -> Path:
    return folder.with_name(folder.name + suffix)


def _remove(folder: Path) -> None:
    if folder.exists():
        shutil.rmtree(folder)


def _flush_files(folder: Path) -> None:
    for path in folder.iterdir():
        with path.open("rb") as stream:
            os.fsync(stream.fileno())
    _flush_folder(folder)


def _flush_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
