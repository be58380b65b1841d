"""Start a server for an example and send it requests, with only the standard library.

Input: a folder of bundles, or an address and a request. Output: an address, or a response.
"""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

__all__ = ["events", "fetch", "get", "post", "served"]

ROOT = Path(__file__).resolve().parents[1]
START_SECONDS = 90.0
TIMEOUT_SECONDS = 60.0
OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # the server is on this machine


def fetch(address: str, path: str) -> str:
    """Return the body of a response as text."""
    with OPENER.open(address + path, timeout=TIMEOUT_SECONDS) as answer:
        return str(answer.read(), "utf-8")


def get(address: str, path: str) -> Any:
    """Return the JSON body of a response."""
    return json.loads(fetch(address, path))


def post(address: str, path: str, **body: Any) -> Any:
    """Send a JSON body and return the JSON body of the response.

    Raises urllib.error.HTTPError for an error response; its body holds the reason.
    """
    with OPENER.open(_request(address, path, body), timeout=TIMEOUT_SECONDS) as answer:
        return json.load(answer)


def events(address: str, path: str, **body: Any) -> Iterator[str]:
    """Yield the data of each server-sent event as it arrives."""
    with OPENER.open(_request(address, path, body), timeout=TIMEOUT_SECONDS) as answer:
        for line in answer:
            if line.startswith(b"data: "):
                yield line.removeprefix(b"data: ").decode("utf-8").rstrip("\n")


def _request(address: str, path: str, body: dict[str, Any]) -> urllib.request.Request:
    content = json.dumps(body).encode("utf-8")
    return urllib.request.Request(address + path, content, {"Content-Type": "application/json"})  # noqa: S310 (an address that the reader gave)


@contextlib.contextmanager
def served(bundles: Path) -> Iterator[str]:
    """Run `meari serve` over a folder of bundles on a free port until the block ends; yield its address."""
    port = _free_port()
    command = [
        sys.executable,
        "-m",
        "meari.cli.main",
        "serve",
        "--bundles",
        str(bundles.resolve()),
        "--port",
        str(port),
    ]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MEARI_")}
    process = subprocess.Popen([*command, "--workers", "1", "--log-level", "warning"], cwd=ROOT, env=environment)
    try:
        address = f"http://127.0.0.1:{port}"
        _await_ready(process, address)
        yield address
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _await_ready(process: subprocess.Popen[bytes], address: str) -> None:
    until = time.monotonic() + START_SECONDS
    while time.monotonic() < until:
        if process.poll() is not None:
            raise RuntimeError(f"the server ended with exit code {process.returncode}")
        with contextlib.suppress(urllib.error.URLError, ConnectionError):
            get(address, "/readyz")
            return
        time.sleep(0.05)
    raise RuntimeError(f"{address} was not ready within {START_SECONDS:g} s")
