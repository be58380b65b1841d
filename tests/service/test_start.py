"""Test the start of the service: its messages on a terminal, and its exit if it cannot start."""

from __future__ import annotations

import os
import pty
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from meari.service.process.start import StartError, check_address, page_address
from tests.patience import PATIENCE
from tests.runtime.tiny_bundle import write_tiny_bundle
from tests.service.running import ROOT, clean_environment, command, free_port

SERVE = [sys.executable, "-c", "from meari.cli.main import main; main()", "serve"]


def ended(arguments: list[str], **settings: object) -> subprocess.CompletedProcess[str]:
    environment = clean_environment(**{"port": free_port(), "workers": 2, **settings})
    return subprocess.run(
        arguments, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=PATIENCE, check=False
    )


def without_log(stderr: str) -> list[str]:
    return [line for line in stderr.splitlines() if not line.startswith("{")]


@pytest.fixture
def broken(tmp_path: Path) -> Path:
    for name in ("one", "two"):
        write_tiny_bundle(tmp_path / "broken" / name)
    (tmp_path / "broken" / "one" / "cell.onnx").unlink()
    (tmp_path / "broken" / "two" / "manifest.json").write_text("{", "utf-8")
    return tmp_path / "broken"


@pytest.mark.parametrize("make", [False, True], ids=["missing", "empty"])
@pytest.mark.parametrize("arguments", [SERVE, command()], ids=["meari", "gunicorn"])
def test_start_without_bundles_ends_with_advice(tmp_path: Path, arguments: list[str], make: bool) -> None:
    folder = tmp_path / "folder"
    if make:
        folder.mkdir()
        (folder / "DEFAULT").write_text("x", "utf-8")
    done = ended(arguments, bundles=folder)
    assert done.returncode == 2
    first, second = without_log(done.stderr)
    assert re.search(f"there is no {'bundle in' if make else 'folder'} {folder}$", first)
    assert "docs/train-your-own.md" in second
    assert "--bundles or MEARI_BUNDLES" in second
    assert "level" not in done.stderr or arguments is not SERVE, "no line of a log before"


@pytest.mark.parametrize("arguments", [SERVE, command()], ids=["meari", "gunicorn"])
def test_start_with_only_broken_bundles_ends_with_their_names(broken: Path, arguments: list[str]) -> None:
    done = ended(arguments, bundles=broken)
    assert done.returncode == 2, done.stderr
    first, second, third = without_log(done.stderr)
    assert first == f"meari cannot start: no bundle in {broken} could be loaded:"
    assert re.fullmatch(r"one: cell\.onnx: .+; two: manifest\.json: .+", second)
    assert "docs/train-your-own.md" in third


@contextmanager
def taken_port() -> Iterator[int]:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        yield holder.getsockname()[1]


@pytest.mark.parametrize("arguments", [[*SERVE, "--json"], command()], ids=["meari", "gunicorn"])
def test_used_port_is_reported_in_one_line(letters: Path, arguments: list[str]) -> None:
    with taken_port() as port:
        done = ended(arguments, bundles=letters, port=port)
    assert (done.returncode, done.stdout) == (1, "")
    [line] = without_log(done.stderr)
    assert f"cannot listen on 127.0.0.1:{port}: the port is taken" in line
    assert "Retrying" not in done.stderr


@pytest.mark.parametrize(
    ("host", "says"),
    [
        ("nobody.invalid", "host: got 'nobody.invalid', expected a name or an address of this machine"),
        ("203.0.113.9", "cannot listen on 203.0.113.9:1: that is no address of this machine"),
        ("a" * 70, "host: got|cannot listen"),
        ("2001:db8::9", r"cannot listen on \[2001:db8::9\]:1: "),
    ],
)
def test_address_of_another_machine_is_reported(host: str, says: str) -> None:
    with pytest.raises(StartError, match=says):
        check_address(host, 1 if host[0] == "2" else 0)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may listen on any port")
def test_forbidden_port_is_reported() -> None:
    with pytest.raises(StartError, match="this user may not listen there"):
        check_address("127.0.0.1", 1)


@pytest.mark.parametrize(
    ("host", "shown"),
    [
        ("127.0.0.1", "http://127.0.0.1:8000"),
        ("localhost", "http://localhost:8000"),
        ("0.0.0.0", "http://127.0.0.1:8000"),
        ("::", "http://[::1]:8000"),
        ("::1", "http://[::1]:8000"),
        ("192.168.1.5", "http://192.168.1.5:8000"),
    ],
)
def test_printed_address_can_be_opened(host: str, shown: str) -> None:
    assert page_address(host, 8000) == shown


@contextmanager
def on_a_terminal(arguments: list[str], **settings: object) -> Iterator[tuple[subprocess.Popen[bytes], Any]]:
    """Start the service on a pseudo-terminal; yield the process and a function that reads up to a line with a text."""
    ours, theirs = pty.openpty()
    environment = clean_environment(**settings)
    process = subprocess.Popen(arguments, cwd=ROOT, env=environment, stdout=theirs, stderr=theirs, stdin=theirs)
    os.close(theirs)
    shown = bytearray()

    def read_to(text: bytes) -> list[str]:
        while text not in shown or not shown.endswith(b"\n"):
            shown.extend(os.read(ours, 65536))
        return shown.decode().splitlines()

    guard = threading.Timer(200, process.kill)  # the read then fails
    guard.start()
    try:
        yield process, read_to
    finally:
        guard.cancel()
        process.terminate()
        process.wait(PATIENCE)
        os.close(ours)


@pytest.mark.parametrize("how", ["meari", "make"])
def test_terminal_shows_readiness_once_as_the_last_message(letters: Path, how: str) -> None:
    port = free_port()
    if how == "make" and shutil.which("make") is None:
        pytest.skip("make is not installed")
    arguments = SERVE if how == "meari" else ["make", "--no-print-directory", "serve"]
    with on_a_terminal(arguments, bundles=letters, port=port, workers=3) as (_, read_to):
        lines = read_to(b"Ready: ")
        assert httpx.get(f"http://127.0.0.1:{port}/readyz", timeout=PATIENCE, trust_env=False).status_code == 200
        assert lines[-1] == f"Ready: http://127.0.0.1:{port} (playground)"
        assert "\n".join(lines).count("serving letters") == 3
        httpx.get(f"http://127.0.0.1:{port}/nowhere", timeout=PATIENCE, trust_env=False)
        assert "\n".join(read_to(b"/nowhere")).count("Ready: ") == 1


def test_json_log_has_no_terminal_messages(letters: Path) -> None:
    port = free_port()
    with on_a_terminal(SERVE, bundles=letters, port=port, workers=1, log_format="json") as (_, read_to):
        read_to(b"serving letters")
        httpx.get(f"http://127.0.0.1:{port}/healthz", timeout=PATIENCE, trust_env=False)
        assert "Ready: " not in "\n".join(read_to(b"/healthz"))


@pytest.mark.parametrize("moment", ['"bundles"', "Starting gunicorn", "Using worker", "Booting worker", "serving "])
def test_interrupt_of_a_start_ends_all_processes_calmly(moment: str) -> None:
    """`"bundles"` is in the line of --json, before the service takes the command's place."""
    environment = clean_environment(port=free_port(), workers=2)
    process = subprocess.Popen(
        [*SERVE, "--json"],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None
    lines = []
    for line in process.stdout:
        lines.append(line)
        if moment in line:
            break
    os.killpg(process.pid, signal.SIGINT)  # as Ctrl-C in a terminal does
    rest, _ = process.communicate(timeout=PATIENCE)
    log = "".join(lines) + rest
    assert process.returncode == 0, log
    for word in ("Traceback", "terminate called", "SIGABRT", "SIGINT!", '"level":"error"', '"level":"warning"'):
        assert word not in log, log
