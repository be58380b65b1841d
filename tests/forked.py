"""Run the command line in processes that are forked from one that has imported meari, and so start in milliseconds.

Input: the words of a command, its standard input and environment. Output: as of `subprocess.run`. Each command has a
process, a working folder, an environment and pipes of its own, and ends as any other process does; only its imports are
done before. What is told of a fresh interpreter is tested with one.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import importlib
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any, Final

from tests.patience import PATIENCE

__all__ = ["SCORING", "TORCH", "run"]

ROOT: Final = Path(__file__).resolve().parents[1]
SCORING: Final = ("meari.cli.score", "meari.cli.generate", "meari.cli.filter", "meari.bulk.filtering", "meari.bulk.run")
TORCH: Final = ("meari.cli.train", "meari.models.training.run", "meari.models.training.trainer", "meari.export.bundle")
PIPE_BYTES: Final = 1 << 16
DIE_WITH_PARENT: Final = 1  # PR_SET_PDEATHSIG


def run(
    words: Sequence[object],
    *,
    modules: tuple[str, ...] = SCORING,
    stdin: bytes = b"",
    cwd: Path = ROOT,
    env: Mapping[str, str] = os.environ,
) -> subprocess.CompletedProcess[bytes]:
    """Run `meari WORDS` in a process that has imported `modules`; return its result. Raises TimeoutExpired."""
    command = ["meari", *map(str, words)]
    order = {"command": command, "cwd": str(cwd), "env": dict(env)}
    channel, server = _server(modules)
    (read_in, write_in), (read_out, write_out), (read_error, write_error) = (os.pipe() for _ in range(3))
    socket.send_fds(channel, [json.dumps(order).encode()], [read_in, write_out, write_error])
    for end in (read_in, write_out, write_error):
        os.close(end)
    with ThreadPoolExecutor(3) as threads:
        found = [threads.submit(_read, end) for end in (read_out, read_error)]
        threads.submit(_write, write_in, stdin)
        channel.settimeout(PATIENCE)
        try:
            code = int(channel.recv(64))
        except TimeoutError:
            server.kill()  # the command ends with it
            _server.cache_clear()
            raise subprocess.TimeoutExpired(command, PATIENCE) from None
    return subprocess.CompletedProcess(command, code, *(one.result() for one in found))


def _read(end: int) -> bytes:
    with open(end, "rb") as file:
        return file.read()


def _write(end: int, data: bytes) -> None:
    with open(end, "wb", buffering=0) as file, contextlib.suppress(BrokenPipeError):  # the command has read enough
        file.writelines(data[at : at + PIPE_BYTES] for at in range(0, len(data), PIPE_BYTES))


@cache
def _server(modules: tuple[str, ...]) -> tuple[socket.socket, subprocess.Popen[bytes]]:
    """Start the process that commands are forked from. It ends when its socket is closed, with this process."""
    own, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with its:
        command = [sys.executable, "-m", "tests.forked", str(its.fileno()), *modules]
        server = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.DEVNULL, pass_fds=[its.fileno()])
    atexit.register(_end, own, server)
    return own, server


def _end(channel: socket.socket, server: subprocess.Popen[bytes]) -> None:
    channel.close()
    server.wait()


def _serve(channel: socket.socket) -> None:
    """Fork a process for each order, one at a time, and send its exit code; return only in the forked ones."""
    while True:
        request, ends, _, _ = socket.recv_fds(channel, 1 << 20, 3)
        if not request:
            os._exit(0)
        process = os.fork()
        if not process:
            channel.close()
            _become(json.loads(request), ends)
            return
        for end in ends:
            os.close(end)
        _, status = os.waitpid(process, 0)
        channel.send(str(os.waitstatus_to_exitcode(status)).encode())


def _become(order: dict[str, Any], ends: list[int]) -> None:
    """Make this process the one of a command."""
    ctypes.CDLL(None).prctl(DIE_WITH_PARENT, signal.SIGKILL)
    for number, end in enumerate(ends):
        os.dup2(end, number)
        os.close(end)
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
    for module in sys.argv[2:]:
        importlib.import_module(module)
    assert len(list(Path("/proc/self/task").iterdir())) == 1, "a thread would be missing in forked processes"
    _serve(socket.socket(fileno=int(sys.argv[1])))
    main()
