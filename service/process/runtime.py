"""The folder that the workers of one host share while they run: metrics and marks of readiness.

Made and emptied by gunicorn's master process before the first fork, removed at its end where it was made for this run.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from meari.service.process.marks import clear_marks

__all__ = ["make_runtime_folder", "marks_folder", "metrics_folder", "prepare_runtime_folder"]

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
