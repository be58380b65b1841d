"""Starts a server and ends it again: its whole process group, by the id of the process that was started.

Enters: a command. Leaves: a server that answers on its port, or StartFailed with the end of its log.
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

from benchmarks.serving.accounting import MARK, Usage, processes_of, usage

POLL_SECONDS = 0.02
END_SECONDS = 10.0
LOG_LINES = 15
IDLE_SECONDS = 0.2
IDLE_SHARE = 0.5  # of one CPU: less than any load, more than what idle servers do for themselves


class StartFailed(Exception):
    """A server that did not become ready; the text holds the end of its log."""


@dataclass(frozen=True, eq=False)
class Running:
    """A server that takes requests."""

    process: subprocess.Popen[bytes]
    mark: str
    port: int
    ready_seconds: float
    log: Path

    def usage(self, with_memory: bool) -> Usage:
        """What it has used since it was started, over all of its processes."""
        return usage(self.process.pid, self.mark, memory=with_memory)

    def becomes_idle(self, timeout: float) -> bool:
        """Wait until it uses next to no CPU, at most so long; returns whether it does."""
        deadline = time.perf_counter() + timeout
        before = self.usage(False).cpu_seconds
        while time.perf_counter() < deadline:
            time.sleep(IDLE_SECONDS)
            now = self.usage(False).cpu_seconds
            if now - before <= IDLE_SHARE * IDLE_SECONDS:
                return True
            before = now
        return False


def free_port() -> int:
    """A port on which nobody listens now."""
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
    """SIGTERM to the process that was started, then SIGKILL to whatever of its own is left; waits for their end."""
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
    """The end of a log, for a message."""
    try:
        return "\n".join(log.read_text("utf-8", "replace").splitlines()[-LOG_LINES:])
    except OSError:
        return ""
