"""One writer at a time in a folder.

In: a folder. Out: a lock of the system on it while a block runs, or `FolderInUse`. Knows nothing of what is written.

The lock is `flock` on a file, so it ends with its process, whichever way that ends: no lock ever has to be removed by
hand. The file goes when the block ends. Over NFS locks hold between machines where the server has them; a file system
without locks gives none, and then nobody is refused.
"""

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from meari.models.errors import FolderInUse

LOCK = ".lock"


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the only place of a writer in `folder`, which is made where there is none. Raises FolderInUse."""
    folder.mkdir(parents=True, exist_ok=True)
    with _locked(folder / LOCK, folder):
        yield


@contextlib.contextmanager
def locked_beside(folder: Path) -> Iterator[None]:
    """The same for a folder that is swapped as a whole: the lock lies beside it, in a folder that does not stay empty.

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
        path.unlink(missing_ok=True)  # before the lock goes: whoever has the file open already sees that it is gone
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
