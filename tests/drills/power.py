"""What a disk holds after a power cut.

Input: the operations of a process on the files of a folder. Output: the folder as it is after a cut between two of
them. Must not know: who writes, and why.

The model is that of a journalling file system: the operations on names (create, rename, remove, make and remove
folders, cut a file to nothing) are kept in order, up to some moment; of a file's bytes only those are sure that were
flushed by fsync. A file that was written and not flushed is empty. Every moment is tried, so an operation that was not
flushed is also lost.
"""

from __future__ import annotations

import os
import pickle
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from meari.models import files

__all__ = ["Event", "Recorder", "replay"]

WRITES: Final = os.O_WRONLY | os.O_RDWR


@dataclass(frozen=True)
class Event:
    """An operation: its kind, the paths in the folder, the bytes that were flushed, and what was acknowledged then."""

    kind: str
    path: str
    other: str = ""
    data: bytes = b""
    told: int = 0

    @property
    def name(self) -> str:
        """Return it in words."""
        return f"{self.kind} {self.path} {self.other}".rstrip()


class Recorder:
    """Records the operations of this process in a folder."""

    def __init__(self, folder: Path, told: Callable[[], int]) -> None:
        self._folder = str(folder)
        self._told = told
        self._events: list[Event] = []
        self._is_on = False

    def record(self, work: Callable[[], None], tape: Path) -> None:
        """Run work, and write its operations into a file. The process records until its end."""
        fsync = os.fsync

        def recorded(fd: int) -> None:
            fsync(fd)
            path = Path(f"/proc/self/fd/{fd}").readlink()
            if self._is_ours(str(path)) and path.is_file():
                self._note("flush", str(path), data=path.read_bytes())

        exchange = files._exchange

        def exchanged(one: Path, other: Path) -> bool:
            done = exchange(one, other)
            if done and self._is_ours(str(one)):
                self._note("exchange", str(one), str(other))
            return done

        files._exchange = exchanged
        os.fsync = recorded  # type: ignore[assignment]
        sys.addaudithook(self._hear)
        self._is_on = True
        work()
        self._is_on = False
        self._note("end", self._folder)
        tape.write_bytes(pickle.dumps(self._events))

    @staticmethod
    def load(tape: Path) -> list[Event]:
        """Read the operations that `record` wrote."""
        events: list[Event] = pickle.loads(tape.read_bytes())  # noqa: S301 (our own)
        return events

    def _is_ours(self, path: str) -> bool:
        return path.startswith(f"{self._folder}/")

    def _note(self, kind: str, path: str, other: str = "", data: bytes = b"") -> None:
        names = [each.removeprefix(self._folder).lstrip("/") for each in (path, other)]
        self._events.append(Event(kind, names[0], names[1], data, self._told()))

    def _hear(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self._is_on or event not in HEARD:
            return
        path = _absolute(arguments)
        if not self._is_ours(path):
            return
        if event == "open":
            if arguments[2] & WRITES and arguments[2] & os.O_CREAT:
                self._note("empty" if arguments[2] & os.O_TRUNC else "create", path)
        elif event == "os.rename":
            self._note("rename", path, str(arguments[1]))
        else:
            self._note(HEARD[event], path)


HEARD: Final = {
    "open": "open", "os.rename": "rename", "os.remove": "remove", "os.mkdir": "folder", "os.rmdir": "remove folder",
}  # fmt: skip


def _absolute(arguments: tuple[Any, ...]) -> str:
    """Return the path of an operation; shutil removes by name within an open folder."""
    if isinstance(arguments[0], int) or arguments[0] is None:
        return ""
    path = Path(os.fsdecode(arguments[0]))
    folder = next((each for each in arguments[1:] if isinstance(each, int) and each > 2), None)
    if not path.is_absolute() and folder is not None:
        try:
            return str(Path(f"/proc/self/fd/{folder}").readlink() / path)
        except OSError:
            return ""
    return str(path)


def replay(events: list[Event], folder: Path) -> int | None:
    """Apply operations to a copy of the folder at their begin; return what was acknowledged at the last one."""
    for event in events:
        path, other = folder / event.path, folder / event.other
        match event.kind:
            case "folder":
                path.mkdir(exist_ok=True)
            case "create":
                path.touch()
            case "empty":
                path.write_bytes(b"")
            case "flush" if path.parent.is_dir():
                path.write_bytes(event.data)
            case "rename":
                _rename(path, other)
            case "exchange":
                _exchange(path, other)
            case "remove":
                path.unlink(missing_ok=True)
            case "remove folder":
                shutil.rmtree(path, ignore_errors=True)
    return events[-1].told if events else None


def _rename(path: Path, other: Path) -> None:
    if not path.exists():
        other.write_bytes(b"")  # written by a library, never flushed
    else:
        path.replace(other)


def _exchange(path: Path, other: Path) -> None:
    beside = path.with_name(path.name + ".exchange")
    path.rename(beside)
    other.rename(path)
    beside.rename(other)
