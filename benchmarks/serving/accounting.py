"""What a server uses, over all of its processes: CPU seconds and memory, from /proc.

A server's processes are those of its session, their descendants, and those that carry its mark in their environment
(daemons that left both). Processes that have ended count as far as their parent has waited for them.
"""

import os
from dataclasses import dataclass
from pathlib import Path

MARK = "BENCH_SERVER_MARK"
PROC = Path("/proc")
TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Usage:
    """cpu_seconds since the start; memory_mb: the sum of PSS, shared pages counted once over all processes.

    machine_seconds   CPU time of all that runs on the machine, since its start
    """

    cpu_seconds: float
    memory_mb: float
    num_processes: int
    machine_seconds: float


@dataclass(frozen=True)
class _Process:
    pid: int
    parent: int
    session: int
    cpu_ticks: int


def usage(pid: int, mark: str, *, memory: bool = True) -> Usage:
    """Of the server that was started as process `pid` with `mark` in its environment."""
    found = processes_of(pid, mark)
    ticks = sum(process.cpu_ticks for process in _all_processes() if process.pid in found)
    machine = machine_seconds()
    megabytes = sum(_pss_mb(process) for process in found) if memory else 0.0  # last, because it takes milliseconds
    return Usage(ticks / TICKS, megabytes, len(found), machine)


def machine_seconds() -> float:
    """CPU time that the machine has spent on anything, stolen time included."""
    user, nice, system, _idle, _waiting, *rest = map(int, (PROC / "stat").read_text().split("\n", 1)[0].split()[1:9])
    return (user + nice + system + sum(rest)) / TICKS


def memory_by_process(pid: int, mark: str) -> dict[int, float]:
    """PSS of each of a server's processes, in MB."""
    return {process: _pss_mb(process) for process in processes_of(pid, mark)}


def processes_of(pid: int, mark: str) -> set[int]:
    """The ids of a server's processes."""
    everything = _all_processes()
    found = {process.pid for process in everything if process.session == pid or _has_mark(process.pid, mark)}
    grown = True
    while grown:
        more = {process.pid for process in everything if process.parent in found} - found
        found |= more
        grown = bool(more)
    return found


def _all_processes() -> list[_Process]:
    found = (_read(int(entry.name)) for entry in PROC.iterdir() if entry.name.isdigit())
    return [process for process in found if process is not None]


def _read(pid: int) -> _Process | None:
    """None for a process that is gone, or whose end only has to be waited for."""
    try:
        text = (PROC / str(pid) / "stat").read_text()
    except OSError:
        return None
    fields = text.rpartition(")")[2].split()  # the name may hold anything; after it: state, parent, group, session
    if fields[0] == "Z":
        return None
    return _Process(pid, int(fields[1]), int(fields[3]), sum(map(int, fields[11:15])))


def _has_mark(pid: int, mark: str) -> bool:
    try:
        return f"{MARK}={mark}".encode() in (PROC / str(pid) / "environ").read_bytes()
    except OSError:
        return False


def _pss_mb(pid: int) -> float:
    try:
        text = (PROC / str(pid) / "smaps_rollup").read_text()
    except OSError:
        return 0.0
    line = next((line for line in text.splitlines() if line.startswith("Pss:")), "Pss: 0 kB")
    return int(line.split()[1]) / 1024
