"""What the workers of a host share, and how each of them ends.

Input: a folder and memory that the master process makes for its workers; signals and the time. Output: whether all
workers have been ready, who holds clearly more connections than another, and whether a worker must refuse work, may
stop or must end. Must not know: bundles, requests, sockets.

All workers wait for new connections on one socket, and the kernel wakes them all: the quickest takes them, often
several in a row, and keeps them as long as their clients send requests. So a worker that holds clearly more than
another lets the others accept first.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import resource
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

__all__ = [
    "ConnectionBalance",
    "Drain",
    "ReadyMarks",
    "allowed_connections",
    "clear_marks",
    "forget_worker",
    "make_runtime_folder",
    "marks_folder",
    "metrics_folder",
    "prepare_runtime_folder",
]

MEMORY = Path("/dev/shm")  # noqa: S108 (only a folder made by mkdtemp is used there; writes stay in memory)


def make_runtime_folder() -> Path:
    """A new folder, in memory where there is such a place."""
    return Path(tempfile.mkdtemp(prefix="meari-", dir=MEMORY if _is_writable(MEMORY) else None))


def prepare_runtime_folder(folder: Path) -> None:
    """Make what is missing, and take away what an earlier run left there; nothing else is touched."""
    clear_marks(marks_folder(folder))
    metrics = metrics_folder(folder)
    metrics.mkdir(parents=True, exist_ok=True)
    for file in metrics.glob("*.db"):
        file.unlink()


def marks_folder(folder: Path) -> Path:
    """Where workers note that they are ready."""
    return folder / "workers"


def metrics_folder(folder: Path) -> Path:
    """Where prometheus_client keeps its values."""
    return folder / "metrics"


def _is_writable(folder: Path) -> bool:
    try:
        with tempfile.TemporaryFile(dir=folder):
            return True
    except OSError:
        return False


class ReadyMarks:
    """The marks as one worker sees them. Without a folder the worker is on its own."""

    def __init__(self, folder: Path | None, num_workers: int) -> None:
        self._folder = folder
        self._num_workers = num_workers
        self._all_were_ready = folder is None

    def mark(self) -> None:
        """Note that this worker has loaded its bundles."""
        if self._folder is not None:
            (self._folder / str(os.getpid())).touch()

    @property
    def some_are_ready(self) -> bool:
        """True while a worker has its mark."""
        return self._folder is not None and any(self._folder.iterdir())

    @property
    def all_were_ready(self) -> bool:
        """True from the moment when every worker had its mark; one that is replaced later does not change it."""
        if not self._all_were_ready and self._folder is not None:
            self._all_were_ready = len(list(self._folder.iterdir())) >= self._num_workers
        return self._all_were_ready


def clear_marks(folder: Path) -> None:
    """Make the folder, and empty it of the marks of an earlier run."""
    folder.mkdir(parents=True, exist_ok=True)
    for mark in folder.iterdir():
        if mark.name.isdigit():
            mark.unlink()


def forget_worker(folder: Path, pid: int) -> None:
    """Take back the mark of a worker that has ended."""
    (folder / str(pid)).unlink(missing_ok=True)


LAST_SECONDS = 1.0  # kept of the grace for sending what is there


class Drain:
    """Begun at most once; every thread may ask."""

    def __init__(self, least_seconds: float, grace_seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._least_seconds = least_seconds
        self._grace_seconds = grace_seconds
        self._clock = clock
        self._began_at: float | None = None

    def begin(self) -> None:
        """Refuse new work from now on."""
        if self._began_at is None:
            self._began_at = self._clock()

    @property
    def has_begun(self) -> bool:
        """True while draining."""
        return self._began_at is not None

    def may_stop(self, num_requests: int) -> bool:
        """True once the worker need not take connections any more: nothing is under way, or time is up."""
        if self._began_at is None:
            return False
        waited = self._clock() - self._began_at
        return waited >= self._grace_seconds or (num_requests == 0 and waited >= self._least_seconds)

    @property
    def must_end(self) -> bool:
        """True when answers under way have to end now."""
        if self._began_at is None:
            return False
        return self._clock() - self._began_at >= self._grace_seconds - LAST_SECONDS


NUM_PLACES: Final = 64  # of workers that live at the same time; where there are more, they share places
NOBODY: Final = -1
CLEARLY: Final = 1.125  # times as many
OTHER_FILES: Final = 64  # of a worker: its log, its engines, and what it reads now and then


class ConnectionBalance:
    """The connections of all workers, by a worker's number; each writes its own alone."""

    def __init__(self) -> None:
        self._counts = memoryview(mmap.mmap(-1, 4 * NUM_PLACES)).cast("i")
        for place in range(NUM_PLACES):
            self.forget(place)

    def note(self, worker: int, num_connections: int) -> None:
        """What a worker holds now."""
        self._counts[worker % NUM_PLACES] = num_connections

    def forget(self, worker: int) -> None:
        """A worker has ended."""
        self._counts[worker % NUM_PLACES] = NOBODY

    def has_clearly_more(self, worker: int) -> bool:
        """Whether a worker holds clearly more than some other."""
        own = self._counts[worker % NUM_PLACES]
        least = min((count for count in self._counts.tolist() if count != NOBODY), default=own)
        return own > CLEARLY * least


def allowed_connections(wanted: int) -> int:
    """Ask the system for room for `wanted` connections; as many as it gives.

    Called in the master process, whose workers inherit the limit.
    """
    needed = wanted + OTHER_FILES
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= needed:
        return wanted
    with contextlib.suppress(OSError, ValueError):
        soft = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    return max(1, resource.getrlimit(resource.RLIMIT_NOFILE)[0] - OTHER_FILES)
