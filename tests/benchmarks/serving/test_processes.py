"""Servers as processes: started, awaited, ended, and what is said of one that fails."""

import sys
from pathlib import Path

import pytest

from benchmarks.serving.processes import StartFailed, free_port, serving

SERVER = """
import http.server, os, subprocess, sys
subprocess.Popen([sys.executable, "-c", "import sys; sys.stdin.read()"], stdin=subprocess.PIPE)
http.server.HTTPServer(("127.0.0.1", int(os.environ["PORT"])), http.server.SimpleHTTPRequestHandler).serve_forever()
"""


def test_server_is_ready_and_ends_with_all_its_processes(tmp_path: Path) -> None:
    port = free_port()
    command = [sys.executable, "-c", SERVER]
    with serving(command, {"PORT": str(port)}, port, "/", tmp_path / "log", 20.0) as running:
        assert running.ready_seconds > 0
        assert running.usage(False).num_processes == 2
        assert running.becomes_idle(20.0)
    assert running.usage(False).num_processes == 0
    assert running.process.returncode is not None


def test_server_that_ends_at_once_is_reported_with_its_log(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "print('no licence found'); raise SystemExit(3)"]
    with (
        pytest.raises(StartFailed, match=r"code 3\nno licence found"),
        serving(command, {}, 1, "/", tmp_path / "l", 20),
    ):
        pass


def test_server_that_never_answers_is_ended_when_its_time_is_over(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "import sys, threading; threading.Event().wait()"]
    with (
        pytest.raises(StartFailed, match=r"not ready within 0\.3 s"),
        serving(command, {}, free_port(), "/", tmp_path / "log", 0.3),
    ):
        pass
