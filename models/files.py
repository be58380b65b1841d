"""Files and folders that are complete or absent, even after a crash, and one writer at a time in a folder.

Input: bytes, or a folder's worth of files. Output: the same on disk, or `FolderInUse`. Must not know: their content.

A file is written beside its final path, flushed to the disk, and renamed over the old one. A folder cannot be renamed
over another; Linux exchanges the two in one step. Where the file system cannot do that, there are two renames; between
them only `NAME.old` exists, and `current_folder` returns it:

    NAME.new   being written, or just replaced; ignored by readers, removed by the next writer
    NAME       the current one
    NAME.old   the previous one, between two renames

A power cut keeps the operations on names in their order, and of the bytes only those that were flushed: so everything
is flushed before it gets its name, and the old version is removed only after that name was flushed.

The lock is `flock` on a file, so it ends with its process however that ends: no lock has to be removed by hand. The
file is removed when the block ends. Over NFS, locks hold between machines if the server supports them; on a file system
without locks, nobody is refused.
"""

import contextlib
import ctypes
import errno
import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from meari.models.errors import FolderInUse

LOCK = ".lock"
_AT_CWD, _RENAME_EXCHANGE = -100, 2  # as in fcntl.h and stdio.h
_CANNOT = frozenset((errno.EINVAL, errno.ENOSYS, errno.EXDEV, errno.ENOTSUP))


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
    new = _beside(folder, ".new")
    settle_folder(folder)
    new.mkdir(parents=True)
    try:
        yield new
    except BaseException:
        _remove(new)
        raise
    _flush_files(new)
    if not folder.exists():
        new.rename(folder)
    elif not _exchange(new, folder):
        folder.rename(_beside(folder, ".old"))
        new.rename(folder)
    _flush_folder(folder.parent)
    settle_folder(folder)


def settle_folder(folder: Path) -> None:
    """Remove what a writer that was ended left beside a folder; only its one writer may call this."""
    old = _beside(folder, ".old")
    if not folder.exists() and old.exists():
        old.rename(folder)
    for rest in (_beside(folder, ".new"), old):
        _remove(rest)


def why_not_writable(folder: Path) -> str:
    """Return why a folder cannot be made or replaced, "" if it can be: only the system can tell, so one is made beside
    it and removed.
    """
    missing = _beside(folder.absolute(), f".{os.getpid()}.tmp")
    while not missing.parent.exists():
        missing = missing.parent
    try:
        missing.mkdir()
    except FileExistsError:  # another process was faster
        return ""
    except OSError as error:
        return error.strerror or str(error)
    with contextlib.suppress(OSError):  # something is in it by now
        missing.rmdir()
    return ""


def _exchange(one: Path, other: Path) -> bool:
    """Exchange two folders in one step; return False where the system cannot."""
    try:
        renameat2 = ctypes.CDLL(None, use_errno=True).renameat2
    except (AttributeError, OSError):
        return False
    if not renameat2(_AT_CWD, os.fsencode(one), _AT_CWD, os.fsencode(other), _RENAME_EXCHANGE):
        return True
    number = ctypes.get_errno()
    if number in _CANNOT:
        return False
    raise OSError(number, os.strerror(number), str(other))


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
