"""Which workers of this host have loaded their bundles: a file a worker, in a folder that they share.

A connection may reach any worker, so none says that it is ready before all have been so once. Knows nothing of bundles.
"""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["ReadyMarks", "clear_marks", "forget_worker"]


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
