"""Run the command line in processes that are forked from one that has imported meari, and so start in milliseconds.

Input: the words of a command, its standard input and environment. Output: as of `subprocess.run`. Each command has a
process, a working folder, an environment and streams of its own, and ends as any other process does; only its imports
are done before. What is told of a fresh interpreter, and of signals, is tested with one.
"""

from __future__ import annotations

import contextlib
import fcntl
import importlib
import json
import os
import select
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any, Final, Never

from tests.patience import PATIENCE

__all__ = ["run", "write_command"]

ROOT: Final = Path(__file__).resolve().parents[1]
MODULES: Final = ("meari.cli.score", "meari.cli.generate", "meari.cli.filter", "meari.bulk.filtering", "meari.bulk.run")
PIPE_BYTES: Final = 1 << 16
MAX_STREAMS: Final = 10
COMMAND: Final = """#!{python} -ISE
import json, os, socket, sys
streams = [number for number in range(10) if os.path.exists(f"/proc/self/fd/{{number}}")]
channel = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
channel.connect({address!r})
order = dict(command=["meari", *sys.argv[1:]], cwd=os.getcwd(), env=dict(os.environ), streams=streams)
socket.send_fds(channel, [json.dumps(order).encode()], streams)
code = int(channel.recv(64))
sys.exit(code if code >= 0 else 128 - code)
"""


def run(
    words: Sequence[object],
    *,
    stdin: bytes = b"",
    cwd: Path = ROOT,
    env: Mapping[str, str] = os.environ,
) -> subprocess.CompletedProcess[bytes]:
    """Run `meari WORDS`; return its result. Raises TimeoutExpired."""
    command = ["meari", *map(str, words)]
    order = {"command": command, "cwd": str(cwd), "env": dict(env), "streams": [0, 1, 2]}
    (read_in, write_in), (read_out, write_out), (read_error, write_error) = (os.pipe() for _ in range(3))
    with (
        socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as channel,
        ThreadPoolExecutor(3) as threads,
    ):
        channel.connect(_server())
        channel.settimeout(PATIENCE)
        socket.send_fds(channel, [json.dumps(order).encode()], [read_in, write_out, write_error])
        for end in (read_in, write_out, write_error):
            os.close(end)
        found = [threads.submit(_read, end) for end in (read_out, read_error)]
        threads.submit(_write, write_in, stdin)
        try:
            code = int(channel.recv(64))
        except TimeoutError:
            channel.shutdown(socket.SHUT_RDWR)  # which ends the command
            raise subprocess.TimeoutExpired(command, PATIENCE) from None
    return subprocess.CompletedProcess(command, code, *(one.result() for one in found))


def write_command(path: Path) -> None:
    """Write a program that does what `meari` does, for shells."""
    path.write_text(COMMAND.format(python=sys.executable, address=_server()))
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


def _read(end: int) -> bytes:
    with open(end, "rb") as file:
        return file.read()


def _write(end: int, data: bytes) -> None:
    with open(end, "wb", buffering=0) as file, contextlib.suppress(BrokenPipeError):  # the command has read enough
        file.writelines(data[at : at + PIPE_BYTES] for at in range(0, len(data), PIPE_BYTES))


@cache
def _server() -> str:
    """Start the process that commands are forked from; return the path of its socket. It ends with this process."""
    address = Path(tempfile.mkdtemp(prefix="meari-")) / "socket"
    lifeline, _ = os.pipe()  # the other end stays open as long as this process
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listening:
        listening.bind(str(address))
        listening.listen(64)
        command = [sys.executable, "-m", "tests.forked", str(listening.fileno()), str(address)]
        server = subprocess.Popen(command, cwd=ROOT, stdin=lifeline, pass_fds=[listening.fileno()])
    server.returncode = 0  # nobody waits for it
    os.close(lifeline)
    return str(address)


def _serve(listening: socket.socket) -> tuple[dict[str, Any], list[int]] | None:
    """Fork a process for each order, which this returns there, with its streams; None at the end of all."""
    while True:
        ready, _, _ = select.select([listening, sys.stdin], [], [])
        if sys.stdin in ready:
            return None
        channel, _ = listening.accept()
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        if not os.fork():
            listening.close()
            request, streams, _, _ = socket.recv_fds(channel, 1 << 20, MAX_STREAMS)
            if command := os.fork():
                _keep(command, channel, streams)
            channel.close()
            return json.loads(request), streams
        channel.close()


def _keep(command: int, channel: socket.socket, streams: Sequence[int]) -> Never:
    """Wait for a command and send its exit code; kill it if nobody waits for the code any longer."""
    for stream in streams:
        os.close(stream)
    awaited: list[Any] = [channel, os.pidfd_open(command)]
    if channel in select.select(awaited, [], [])[0]:
        os.kill(command, signal.SIGKILL)
    code = os.waitstatus_to_exitcode(os.waitpid(command, 0)[1])
    with contextlib.suppress(OSError):
        channel.send(str(code).encode())
    os._exit(0)


def _become(order: dict[str, Any], streams: Sequence[int]) -> None:
    """Make this process the one of a command."""
    given = [fcntl.fcntl(stream, fcntl.F_DUPFD_CLOEXEC, MAX_STREAMS) for stream in streams]
    for stream in streams:
        os.close(stream)
    for stream, number in zip(given, order["streams"], strict=True):
        os.dup2(stream, number)
        os.close(stream)
    sys.stdin = open(0, closefd=False)  # noqa: SIM115 (as Python opens them at its start)
    sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", buffering=1, errors="backslashreplace", closefd=False)  # noqa: SIM115
    os.chdir(order["cwd"])
    os.environ.clear()
    os.environ.update(order["env"])
    sys.argv = order["command"]


if __name__ == "__main__":
    from meari.cli._compiler import leave_compiler_out
    from meari.cli.main import main

    leave_compiler_out()
    for module in MODULES:
        importlib.import_module(module)
    assert len(list(Path("/proc/self/task").iterdir())) == 1, "a thread would be missing in forked processes"
    address = Path(sys.argv[2])
    order = _serve(socket.socket(fileno=int(sys.argv[1])))
    if order is None:
        shutil.rmtree(address.parent)
    else:
        _become(*order)
        main()
