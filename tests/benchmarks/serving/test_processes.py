"""Test server processes: start, readiness, end and error reports."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from benchmarks.serving.processes import (
    MARK,
    StartFailed,
    free_port,
    machine_seconds,
    memory_by_process,
    processes_of,
    serving,
    usage,
)

SERVER = """
import http.server, os, subprocess, sys
subprocess.Popen([sys.executable, "-c", "import sys; sys.stdin.read()"], stdin=subprocess.PIPE)
http.server.HTTPServer(("127.0.0.1", int(os.environ["PORT"])), http.server.SimpleHTTPRequestHandler).serve_forever()
"""


def test_stopped_server_leaves_no_processes(tmp_path: Path) -> None:
    port = free_port()
    command = [sys.executable, "-c", SERVER]
    with serving(command, {"PORT": str(port)}, port, "/", tmp_path / "log", 20.0) as running:
        assert running.ready_seconds > 0
        assert running.usage(with_memory=False).num_processes == 2
        assert running.becomes_idle(20.0)
    assert running.usage(with_memory=False).num_processes == 0
    assert running.process.returncode is not None


def test_server_that_ends_at_once_is_reported_with_its_log(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "print('no licence found'); raise SystemExit(3)"]
    with (
        pytest.raises(StartFailed, match=r"code 3\nno licence found"),
        serving(command, {}, 1, "/", tmp_path / "l", 20),
    ):
        pass


def test_server_that_is_never_ready_is_stopped_after_its_timeout(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "import sys, threading; threading.Event().wait()"]
    with (
        pytest.raises(StartFailed, match=r"not ready within 0\.3 s"),
        serving(command, {}, free_port(), "/", tmp_path / "log", 0.3),
    ):
        pass


BURN = """
import os, subprocess, sys, time
detached = sys.argv[1] == "detached"
child = "import sys, time\\nwhile time.process_time() < 0.4: pass\\nprint('burnt', flush=True)\\nsys.stdin.read()"
process = subprocess.Popen([sys.executable, "-c", child], start_new_session=detached, stdin=subprocess.PIPE)
sys.stdin.read()
process.communicate()
"""


@contextmanager
def busy_process(kind: str) -> Iterator[subprocess.Popen[str]]:
    """Run a process whose child has used 0.4 CPU-seconds."""
    process = subprocess.Popen(
        [sys.executable, "-c", BURN, kind],
        env={**os.environ, MARK: "a-mark"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "burnt\n"
        yield process
    finally:
        process.communicate()


def test_usage_includes_children_in_and_outside_the_session() -> None:
    for kind in ("attached", "detached"):
        with busy_process(kind) as process:
            found = usage(process.pid, "a-mark")
            assert found.num_processes == 2
            assert 0.35 < found.cpu_seconds < 5
            assert found.memory_mb > 1
            assert sum(memory_by_process(process.pid, "a-mark").values()) > 1


def test_detached_process_is_found_by_its_mark() -> None:
    with busy_process("detached") as process:
        assert len(processes_of(-1, "a-mark")) == 2
        assert processes_of(-1, "another mark") == set()
        assert process.pid in processes_of(-1, "a-mark")


def test_cpu_time_of_the_machine_includes_that_of_each_process() -> None:
    before = machine_seconds()
    with busy_process("attached") as process:
        found = usage(process.pid, "a-mark")
    assert found.machine_seconds >= before
    assert found.machine_seconds > 0.9 * found.cpu_seconds


def test_ended_server_has_no_processes() -> None:
    with busy_process("attached") as process:
        pid = process.pid
    assert processes_of(pid, "a-mark") == set()
