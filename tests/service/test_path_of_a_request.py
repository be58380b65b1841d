"""Test the number of project files through which one request passes."""

from __future__ import annotations

import mmap
import sys
from pathlib import Path

import httpx

from tests.patience import PATIENCE
from tests.service.running import ROOT, running_server

MAX_FILES = 30
NUM_REQUESTS = 5
# Runs gunicorn with a hook that every thread calls at each function call. While the shared byte holds the number of a
# request, the hook records the files of the called functions.
TRACED = """
import mmap, os, sys, threading
byte = mmap.mmap(os.open(sys.argv[1], os.O_RDWR), 1)
noted = open(sys.argv[2], "a", buffering=1)
seen = set()
def note(frame, event, _):
    if event == "call" and byte[0] and (entry := (byte[0], frame.f_code.co_filename)) not in seen:
        seen.add(entry)
        noted.write(f"{entry[0]} {entry[1]}\\n")
threading.setprofile(note)
sys.setprofile(note)
sys.argv[1:] = ["-c", "python:meari.service.process.gunicorn_conf"]
from gunicorn.app.wsgiapp import run
run()
"""


def test_generate_request_passes_through_few_files(letters: Path, tmp_path: Path) -> None:
    """Trace a warm request on its own connection, from acceptance to response, including the engine's thread."""
    number, noted = tmp_path / "number", tmp_path / "noted"
    number.write_bytes(b"\0")
    noted.touch()
    command = [sys.executable, "-c", TRACED, str(number), str(noted)]
    with (
        number.open("r+b") as file,
        mmap.mmap(file.fileno(), 1) as byte,
        running_server(tmp_path, started_by=command, bundles=letters) as server,
    ):
        for each in range(NUM_REQUESTS + 1):
            byte[0] = each  # 0: the first request warms up
            _generate(server.port)
            byte[0] = 0
    ours = {str(path.resolve()): str(path.relative_to(ROOT)) for path in _files()}
    runs: list[set[str]] = [set() for _ in range(NUM_REQUESTS)]
    for line in noted.read_text("utf-8").splitlines():
        which, _, path = line.partition(" ")
        if name := ours.get(str(Path(path).resolve())):
            runs[int(which) - 1].add(name)
    passed = sorted(set.intersection(*runs))  # twice a second the worker also checks its engines
    assert "service/routes/completions.py" in passed
    assert len(passed) <= MAX_FILES, "\n".join(passed)


def _generate(port: int) -> None:
    body = {"prompt": "abc", "max_tokens": 5, "seed": 1}
    with httpx.Client(timeout=PATIENCE, trust_env=False) as client:
        assert client.post(f"http://127.0.0.1:{port}/generate", json=body).json()["choices"][0]["text"]


def _files() -> list[Path]:
    return [path for folder in ("meari", "service") for path in (ROOT / folder).rglob("*.py")]
