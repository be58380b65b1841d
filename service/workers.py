"""State that the workers of a host share, and the end of each worker.

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
    "models_folder",
    "prepare_runtime_folder",
]

MEMORY = Path("/dev/shm")  # noqa: S108 (only a folder made by mkdtemp is used there; writes stay in memory)
LAST_SECONDS = 1.0  # of the grace period, reserved for sending the text so far
NUM_ENTRIES: Final = 64  # workers alive at the same time; more of them share entries
UNUSED: Final = -1
CLEARLY_MORE: Final = 1.125  # times as many
OTHER_FILES: Final = 64  # of a worker: its log, its engines, and files that it reads now and then


def make_runtime_folder() -> Path:
    """Make a new folder, in memory where the system offers such a place."""
    return Path(tempfile.mkdtemp(prefix="meari-", dir=MEMORY if _is_writable(MEMORY) else None))


def prepare_runtime_folder(folder: Path) -> None:
    """Make missing folders, and remove the files of an earlier run; nothing else is touched."""
    clear_marks(marks_folder(folder))
    metrics = metrics_folder(folder)
    metrics.mkdir(parents=True, exist_ok=True)
    for file in (*metrics.glob("*.db"), *models_folder(folder).glob("*.json")):
        file.unlink()


def marks_folder(folder: Path) -> Path:
    """Return the folder of the workers' marks of readiness."""
    return folder / "workers"


def metrics_folder(folder: Path) -> Path:
    """Return the folder of prometheus_client's values."""
    return folder / "metrics"


def models_folder(folder: Path) -> Path:
    """Return the folder of what admins have asked for, and of what each worker serves."""
    return folder / "models"


def _is_writable(folder: Path) -> bool:
    try:
        with tempfile.TemporaryFile(dir=folder):
            return True
    except OSError:
        return False


class ReadyMarks:
    """Marks of the workers that have loaded their bundles, one file a worker; without a folder the worker is alone.

    A connection may reach any worker, so none reports that it is ready before all have been so once.
    """

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
        """True while any worker has its mark."""
        return self._folder is not None and any(self._folder.iterdir())

    @property
    def all_were_ready(self) -> bool:
        """True once every worker has had its mark; a worker that is replaced later does not change it."""
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
    """Remove the mark of a worker that has ended."""
    (folder / str(pid)).unlink(missing_ok=True)


class Drain:
    """The end of a worker, from SIGTERM until its last answer is sent; begun at most once, safe from any thread.

    Readiness fails first and new work is refused, while answers in progress are finished; those that are not done when
    the time is up end with the text so far. Plain attributes, so that a signal handler may call `begin`.
    """

    def __init__(self, min_seconds: float, grace_seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._min_seconds = min_seconds
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
        """Tell whether the worker may stop accepting connections: no request is in progress, or the time is up."""
        if self._began_at is None:
            return False
        waited = self._clock() - self._began_at
        return waited >= self._grace_seconds or (num_requests == 0 and waited >= self._min_seconds)

    @property
    def must_end(self) -> bool:
        """True when answers in progress have to end now."""
        if self._began_at is None:
            return False
        return self._clock() - self._began_at >= self._grace_seconds - LAST_SECONDS


class ConnectionBalance:
    """Numbers of connections by a worker's number, in shared memory; each worker writes its own entry alone."""

    def __init__(self) -> None:
        self._counts = memoryview(mmap.mmap(-1, 4 * NUM_ENTRIES)).cast("i")
        for entry in range(NUM_ENTRIES):
            self.forget(entry)

    def note(self, worker: int, num_connections: int) -> None:
        """Note how many connections a worker holds."""
        self._counts[worker % NUM_ENTRIES] = num_connections

    def forget(self, worker: int) -> None:
        """Free the entry of a worker that has ended."""
        self._counts[worker % NUM_ENTRIES] = UNUSED

    def has_clearly_more(self, worker: int) -> bool:
        """Tell whether a worker holds clearly more than some other."""
        own = self._counts[worker % NUM_ENTRIES]
        fewest = min((count for count in self._counts.tolist() if count != UNUSED), default=own)
        return own > CLEARLY_MORE * fewest


def allowed_connections(wanted: int) -> int:
    """Ask the system for room for `wanted` connections; return the number that it grants.

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
