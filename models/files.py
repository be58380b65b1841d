"""Files and folders that are complete or absent, even after a crash, and one writer at a time in a folder.

Input: bytes, or a folder's worth of files. Output: the same on disk, or `FolderInUse`. Must not know: their content.

A file is written beside its final path, flushed to the disk, and renamed over the old one. A folder cannot be renamed
over another, so its swap has two renames; between them only `NAME.old` exists, and `current_folder` returns it:

    NAME.new   being written; ignored by readers, removed by the next writer
    NAME       the current one
    NAME.old   the previous one, during the swap

The lock is `flock` on a file, so it ends with its process however that ends: no lock has to be removed by hand. The
file is removed when the block ends. Over NFS, locks hold between machines if the server supports them; on a file system
without locks, nobody is refused.
"""

import contextlib
import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from meari.models.errors import FolderInUse

LOCK = ".lock"


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


def current_folder(folder: Path) -> Path:
    """Return the path of the newest whole version of a folder: itself, or its predecessor after an interrupted swap."""
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


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the lock of the only writer in `folder`, which is created if absent. Raises FolderInUse."""
    folder.mkdir(parents=True, exist_ok=True)
    with _locked(folder / LOCK, folder):
        yield


@contextlib.contextmanager
def locked_beside(folder: Path) -> Iterator[None]:
    """Hold the lock of a folder that is swapped as a whole: the lock lies beside it, in a folder that does not stay
    empty.

    Raises FolderInUse.
    """
    is_made = not folder.parent.exists()
    folder.parent.mkdir(parents=True, exist_ok=True)
    try:
        with _locked(folder.with_name(f".{folder.name}{LOCK}"), folder):
            yield
    finally:
        if is_made and not any(folder.parent.iterdir()):
            folder.parent.rmdir()


@contextlib.contextmanager
def _locked(path: Path, folder: Path) -> Iterator[None]:
    descriptor = _acquire(path, folder)
    try:
        yield
    finally:
        path.unlink(
            missing_ok=True
        )  # before the unlock, so that a process that has the file open sees that it was removed
        os.close(descriptor)


def _acquire(path: Path, folder: Path) -> int:
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.read(descriptor, 100).decode(errors="replace").strip()
            os.close(descriptor)
            raise FolderInUse(f"{folder}: another run is writing to it{holder and f' ({holder})'}") from None
        except OSError:  # a file system without locks
            return descriptor
        if _is_at(path, descriptor):
            os.ftruncate(descriptor, 0)
            os.write(descriptor, f"process {os.getpid()} on {os.uname().nodename}\n".encode())
            return descriptor
        os.close(descriptor)  # its holder has just removed it


def _is_at(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False
