"""Programs of `inside`, run several at a time: one process a CPU, started together.

Input: a module and its arguments. Output: the JSON objects that each process prints. Must not know: servers.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.serving.results import Inside

ENVIRONMENT = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "BLIS_NUM_THREADS"), "1")


class ProgramFailed(Exception):
    """A program that ended without its figures; the text is the end of its standard error."""


def run_together(
    module: str, arguments: Sequence[str], *, num_processes: int, num_results: int, timeout: float
) -> list[list[dict[str, Any]]]:
    """Start a module several times and start all measurements together, `num_results` times.

    returns   for each result, the JSON of each process
    Raises ProgramFailed.
    """
    command = [sys.executable, "-m", f"benchmarks.serving.inside.{module}", *arguments]
    with contextlib.ExitStack() as stack:
        processes = [_start(command, stack) for _ in range(num_processes)]
        deadline = threading.Timer(timeout, _kill, [processes])
        stack.callback(deadline.cancel)
        deadline.start()
        return [_round(processes, module) for _ in range(num_results)]


def run_inside(what: str, bundle: Path, processes: int, sizes: Sequence[int], seconds: float) -> list[Inside]:
    """Run `raw` or `engine` for so many seconds a size, in so many processes at once.

    Raises ProgramFailed.
    """
    arguments = [str(bundle), str(seconds), *map(str, sizes)]
    timeout = 60.0 + 3 * seconds * len(sizes)
    rounds = run_together(what, arguments, num_processes=processes, num_results=len(sizes), timeout=timeout)
    return [
        Inside(
            what,
            bundle.name,
            processes,
            size,
            tokens_per_second=round(sum(f["tokens_per_second"] for f in figures), 1),
            tokens_per_cpu_second=round(sum(f["tokens_per_cpu_second"] for f in figures) / processes, 1),
            **{name: round(figures[0].get(name, 0.0), 4) for name in ("step_ms", "cell_ms", "output_ms")},
        )
        for size, figures in zip(sizes, rounds, strict=True)
    ]


def _start(command: Sequence[str], stack: contextlib.ExitStack) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        command,
        env={**os.environ, **ENVIRONMENT},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    stack.callback(_end, process)
    return process


def _kill(processes: list[subprocess.Popen[str]]) -> None:
    for process in processes:
        process.kill()


def _round(processes: list[subprocess.Popen[str]], module: str) -> list[dict[str, Any]]:
    for process in processes:
        assert process.stdin is not None
        with contextlib.suppress(OSError):
            process.stdin.write("go\n")
            process.stdin.flush()
    return [_read(process, module) for process in processes]


def _read(process: subprocess.Popen[str], module: str) -> dict[str, Any]:
    assert process.stdout is not None
    assert process.stderr is not None
    line = process.stdout.readline()
    if not line:
        raise ProgramFailed(f"{module}: {process.stderr.read()[-800:].strip() or 'it took too long'}")
    result: dict[str, Any] = json.loads(line)
    return result


def _end(process: subprocess.Popen[str]) -> None:
    with contextlib.suppress(OSError, ValueError):
        process.communicate(timeout=5)
    if process.poll() is None:
        process.kill()
        process.wait()
