"""Wishes of admins, models to be loaded or to be kept away, and how far the workers of the host are with them.

Input: wishes from any worker. Output: the wishes of the host in order; what each worker serves; whose turn it is to
load. Must not know: requests, Flask, how a bundle is loaded.
"""

from __future__ import annotations

import contextlib
import fcntl
import math
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Final

import msgspec

from meari.service.host import models_folder

__all__ = ["TURN_SECONDS", "HostWishes", "Wishes", "WorkerReport"]

TURN_SECONDS: Final = 0.5  # that a worker lets others load before it, in one look
LOCK_POLL_SECONDS: Final = 0.02
WISHES: Final = "wishes.json"
REPORT: Final = ".worker.json"


class Wishes(msgspec.Struct, frozen=True):
    """What admins have asked for since the start.

    number    counts the wishes
    unloaded  names of models that are kept away
    loads     name -> number of the last wish that asked for it
    """

    number: int = 0
    unloaded: frozenset[str] = frozenset()
    loads: dict[str, int] = {}

    def with_load(self, name: str) -> Wishes:
        """Return the wishes and that to load a model."""
        number = self.number + 1
        return Wishes(number, self.unloaded - {name}, {**self.loads, name: number})

    def with_unload(self, name: str) -> Wishes:
        """Return the wishes and that to keep a model away."""
        return Wishes(self.number + 1, self.unloaded | {name}, {key: n for key, n in self.loads.items() if key != name})

    def loads_since(self, number: int) -> set[str]:
        """Return the names that were asked for after wish `number`."""
        return {name for name, asked in self.loads.items() if asked > number}


class WorkerReport(msgspec.Struct, frozen=True):
    """What a worker serves.

    wishes  number of the last wish that it has fulfilled, or cannot fulfil
    models  name -> hash of the bundle
    failed  name -> reason
    """

    pid: int
    wishes: int
    models: dict[str, str]
    failed: dict[str, str]


class HostWishes:
    """The wishes of a host, and how far its workers are with them. Any thread.

    Kept in files that the workers share; without a folder the worker is alone.
    """

    def __init__(self, runtime_folder: Path | None) -> None:
        self._folder = None if runtime_folder is None else models_folder(runtime_folder)
        if self._folder is not None:
            self._folder.mkdir(parents=True, exist_ok=True)
        self._alone = Wishes()
        self._own: WorkerReport | None = None

    def read(self) -> Wishes:
        """Return all wishes so far."""
        if self._folder is None:
            return self._alone
        try:
            return msgspec.json.decode((self._folder / WISHES).read_bytes(), type=Wishes)
        except FileNotFoundError:
            return Wishes()

    def change(self, add: Callable[[Wishes], Wishes]) -> Wishes:
        """Add a wish; returns all of them, in the order in which workers see them."""
        if self._folder is None:
            self._alone = add(self._alone)
            return self._alone
        with _host_lock(self._folder / "wishes.lock", math.inf):
            wishes = add(self.read())
            self._write(self._folder / WISHES, wishes)
            return wishes

    @contextlib.contextmanager
    def turn(self, max_seconds: float) -> Iterator[None]:
        """Let one worker load at a time, or go on after `max_seconds`."""
        with _host_lock(None if self._folder is None else self._folder / "loading.lock", max_seconds):
            yield

    def report(self, report: WorkerReport) -> None:
        """Tell the other workers what this one serves. Where no file can be written, the next call tries again."""
        if report != self._own:
            with contextlib.suppress(OSError):
                if self._folder is not None:
                    self._write(self._folder / f"{report.pid}{REPORT}", report)
                self._own = report

    def reports(self) -> list[WorkerReport]:
        """Return the reports of all workers that live and have loaded their bundles."""
        if self._folder is None:
            return [] if self._own is None else [self._own]
        found = []
        for file in sorted(self._folder.glob(f"*{REPORT}")):
            if _is_alive(int(file.name.removesuffix(REPORT))):
                found.append(msgspec.json.decode(file.read_bytes(), type=WorkerReport))
            else:
                file.unlink(missing_ok=True)
        return found

    def await_reports(self, number: int, max_seconds: float) -> list[WorkerReport]:
        """Return the reports once no worker is behind wish `number`, at the latest after `max_seconds`."""
        until = time.monotonic() + max_seconds
        while True:
            reports = self.reports()
            if time.monotonic() >= until or (reports and all(report.wishes >= number for report in reports)):
                return reports
            time.sleep(LOCK_POLL_SECONDS)

    def _write(self, path: Path, content: msgspec.Struct) -> None:
        new = path.with_suffix(f".{os.getpid()}")
        new.write_bytes(msgspec.json.encode(content))
        new.replace(path)


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


@contextlib.contextmanager
def _host_lock(path: Path | None, max_seconds: float) -> Iterator[None]:
    """Hold a lock of the host, or go on without it after `max_seconds`. It ends with the process that holds it."""
    if path is None:
        yield
        return
    until = time.monotonic() + max_seconds
    with path.open("wb") as file:
        while not _try_lock(file) and time.monotonic() < until:
            time.sleep(LOCK_POLL_SECONDS)
        yield


def _try_lock(file: IO[bytes]) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
