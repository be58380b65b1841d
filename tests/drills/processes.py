"""What the processes of a service hold and use: memory, threads, descriptors, CPU time.

Input: the process id of a gunicorn master. Output: its workers and their counts, from /proc.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Held", "cpu_seconds", "held_by", "is_stopped", "peak_mb", "reset_peak", "workers_of"]


@dataclass(frozen=True)
class Held:
    """What one process holds now.

    resident_mb   counts pages that it shares with others
    share_mb      counts of a page that n processes have 1/n; without pages of files, such as libraries, of which any
                  other process that starts or ends takes or gives back a part
    private_mb    does not count them
    """

    resident_mb: float
    share_mb: float
    private_mb: float
    num_threads: int
    num_descriptors: int


def workers_of(master: int) -> list[int]:
    """Return the process ids of a master's living workers, oldest first."""
    text = Path(f"/proc/{master}/task/{master}/children").read_text("ascii")
    return sorted(pid for pid in map(int, text.split()) if _is_alive(pid))


def held_by(pid: int) -> Held:
    """Return what a process holds. Raises OSError if it has ended."""
    process = Path(f"/proc/{pid}")
    rollup = _kilobytes((process / "smaps_rollup").read_text("ascii"))
    return Held(
        resident_mb=rollup["Rss"] / 1024,
        share_mb=(rollup["Pss"] - rollup["Pss_File"]) / 1024,
        private_mb=(rollup["Private_Clean"] + rollup["Private_Dirty"]) / 1024,
        num_threads=len(list((process / "task").iterdir())),
        num_descriptors=len(list((process / "fd").iterdir())),
    )


def reset_peak(pid: int) -> float:
    """Begin anew to look for a process's peak of resident memory, and return what it has now, in MB."""
    Path(f"/proc/{pid}/clear_refs").write_text("5", "ascii")
    return _kilobytes(Path(f"/proc/{pid}/status").read_text("ascii"))["VmRSS"] / 1024


def peak_mb(pid: int) -> float:
    """Return the peak since then."""
    return _kilobytes(Path(f"/proc/{pid}/status").read_text("ascii"))["VmHWM"] / 1024


def cpu_seconds(pid: int) -> float:
    """Return the CPU time of a process so far."""
    words = Path(f"/proc/{pid}/stat").read_text("utf-8").rpartition(")")[2].split()
    return (int(words[11]) + int(words[12])) / os.sysconf("SC_CLK_TCK")


def exact_cpu_seconds(pid: int) -> float:
    """Return the CPU time of the threads that a process has, which the kernel tells in nanoseconds."""
    return sum(int(file.read_text("ascii").split()[0]) for file in Path(f"/proc/{pid}/task").glob("*/schedstat")) / 1e9


def is_stopped(pid: int) -> bool:
    """Tell whether SIGSTOP has come to every thread of a process."""
    states = [_state(thread) for thread in Path(f"/proc/{pid}/task").iterdir()]
    return all(state in "TX" for state in states)


def _kilobytes(text: str) -> dict[str, int]:
    lines = (line.split() for line in text.splitlines())
    return {words[0].rstrip(":"): int(words[1]) for words in lines if words and words[-1] == "kB"}


def _is_alive(pid: int) -> bool:
    return _state(Path(f"/proc/{pid}")) not in "ZX"


def _state(process: Path) -> str:
    """Return the letter of a process's or thread's state, X where it has ended."""
    try:
        return (process / "stat").read_text("utf-8").rpartition(")")[2].split()[0]
    except OSError:
        return "X"
