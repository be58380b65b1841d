"""Processes of a server: start, CPU time and memory, end of the whole process group.

Input: a command. Output: a server that answers on its port with its usage, or StartFailed with the end of its log.
Must not know: requests.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

MARK = "BENCH_SERVER_MARK"
PROC = Path("/proc")
TICKS = os.sysconf("SC_CLK_TCK")
POLL_SECONDS = 0.02
END_SECONDS = 10.0
LOG_LINES = 15
IDLE_SECONDS = 0.2
IDLE_SHARE = 0.5  # of one CPU: less than any load, more than idle servers use


@dataclass(frozen=True)
class Usage:
    """Usage of a server: cpu_seconds since the start; memory_mb, the sum of PSS, in which shared pages count once.

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
    """Return the usage of the server that was started as process `pid` with `mark` in its environment."""
    found = processes_of(pid, mark)
    ticks = sum(process.cpu_ticks for process in _all_processes() if process.pid in found)
    machine = machine_seconds()
    megabytes = sum(_pss_mb(process) for process in found) if memory else 0.0  # last, because it takes milliseconds
    return Usage(ticks / TICKS, megabytes, len(found), machine)


def machine_seconds() -> float:
    """Return the CPU time that the machine has spent on anything, stolen time included."""
    user, nice, system, _idle, _waiting, *rest = map(int, (PROC / "stat").read_text().split("\n", 1)[0].split()[1:9])
    return (user + nice + system + sum(rest)) / TICKS


def memory_by_process(pid: int, mark: str) -> dict[int, float]:
    """Return the PSS of each of a server's processes, in MB."""
    return {process: _pss_mb(process) for process in processes_of(pid, mark)}


def processes_of(pid: int, mark: str) -> set[int]:
    """Return the ids of a server's processes."""
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
    """Read a file of a process; None if the process is gone or ended."""
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


class StartFailed(Exception):
    """A server that did not become ready, with the end of its log."""


@dataclass(frozen=True, eq=False)
class Running:
    """A server that takes requests."""

    process: subprocess.Popen[bytes]
    mark: str
    port: int
    ready_seconds: float
    log: Path

    def usage(self, *, with_memory: bool) -> Usage:
        """Return the usage since the start, over all processes of the server."""
        return usage(self.process.pid, self.mark, memory=with_memory)

    def becomes_idle(self, timeout: float) -> bool:
        """Wait, at most so long, until the server uses next to no CPU; return whether it does."""
        deadline = time.perf_counter() + timeout
        before = self.usage(with_memory=False).cpu_seconds
        while time.perf_counter() < deadline:
            time.sleep(IDLE_SECONDS)
            now = self.usage(with_memory=False).cpu_seconds
            if now - before <= IDLE_SHARE * IDLE_SECONDS:
                return True
            before = now
        return False


def free_port() -> int:
    """Return a port on which nobody listens now."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


@contextlib.contextmanager
def serving(
    command: Sequence[str], environment: Mapping[str, str], port: int, ready_path: str, log: Path, timeout: float
) -> Iterator[Running]:
    """Run a server until the block ends. Raises StartFailed."""
    mark = uuid.uuid4().hex
    log.parent.mkdir(parents=True, exist_ok=True)
    started = time.perf_counter()
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            env={**os.environ, **environment, MARK: mark},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        _await_ready(process, f"http://127.0.0.1:{port}{ready_path}", timeout, log)
        yield Running(process, mark, port, time.perf_counter() - started, log)
    finally:
        end(process, mark)


def end(process: subprocess.Popen[bytes], mark: str) -> None:
    """Send SIGTERM to the started process, then SIGKILL to the rest of its own processes; wait for their end."""
    others = processes_of(process.pid, mark)
    if process.poll() is None:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(END_SECONDS)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    for pid in others & processes_of(process.pid, mark) - {os.getpid()}:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    process.wait()
    deadline = time.perf_counter() + END_SECONDS
    while processes_of(process.pid, mark) - {os.getpid()} and time.perf_counter() < deadline:
        time.sleep(POLL_SECONDS)  # a process that was killed is still there for a moment


def _await_ready(process: subprocess.Popen[bytes], url: str, timeout: float, log: Path) -> None:
    deadline = time.perf_counter() + timeout
    while time.perf_counter() < deadline:
        if process.poll() is not None:
            raise StartFailed(f"it ended with code {process.returncode}\n{last_lines(log)}")
        if _answers(url):
            return
        time.sleep(POLL_SECONDS)
    raise StartFailed(f"it was not ready within {timeout:g} s\n{last_lines(log)}")


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=2.0) as response:  # noqa: S310 (http on this machine)
            return bool(response.status == 200)
    except (OSError, urllib.error.URLError):
        return False


def last_lines(log: Path) -> str:
    """Return the end of a log, for a message."""
    try:
        return "\n".join(log.read_text("utf-8", "replace").splitlines()[-LOG_LINES:])
    except OSError:
        return ""
