"""Run a real service under gunicorn in a subprocess."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from tests.drills.raw_http import post
from tests.patience import PATIENCE

ROOT = Path(__file__).resolve().parents[2]


@dataclass
class Server:
    """Running service; `log` is its output so far."""

    process: subprocess.Popen[bytes]
    port: int
    log_path: Path
    client: httpx.Client
    start_seconds: float = 1.0  # from start to readiness; about one on an idle machine

    @property
    def log(self) -> str:
        return self.log_path.read_text("utf-8")

    def post(self, path: str, **body: Any) -> httpx.Response:
        return self.client.post(path, json=body)

    def connect(self) -> socket.socket:
        """Open a plain connection, for bytes that a client library would not send."""
        return socket.create_connection(("127.0.0.1", self.port), timeout=PATIENCE)

    def terminate(self) -> None:
        self.process.send_signal(signal.SIGTERM)

    def wait(self, seconds: float = PATIENCE) -> int:
        return self.process.wait(seconds)


def free_port() -> int:
    """Return a free port below those that the system gives to outgoing connections, which might take one meanwhile."""
    while True:
        port = random.SystemRandom().randrange(10_000, 32_768)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("", port))
            return port


def clean_environment(**settings: object) -> dict[str, str]:
    own = {name: value for name, value in os.environ.items() if not name.startswith(("MEARI_", "PROMETHEUS_"))}
    own.pop("PORT", None)
    own.pop("HOST", None)
    return own | {f"MEARI_{name.upper()}": str(value) for name, value in settings.items()}


def command() -> list[str]:
    return [sys.executable, "-m", "gunicorn", "-c", "python:meari.service.process.gunicorn_conf"]


@contextlib.contextmanager
def running_server(
    folder: Path,
    *,
    wait_ready: bool = True,
    started_by: list[str] | None = None,
    authority: Path | None = None,
    port: int | None = None,
    **settings: object,
) -> Iterator[Server]:
    """Run the service with these settings until the block ends, with its log in `folder`.

    started_by  another command that starts the service
    authority   certificate that the client trusts, of a service with TLS
    port        where an earlier service was, if this one is to take its place
    """
    port = port or free_port()
    log_path = folder / f"server-{port}.log"
    environment = clean_environment(**{"port": port, "workers": 1, **settings})
    with log_path.open("wb") as log:
        process = subprocess.Popen(started_by or command(), cwd=ROOT, env=environment, stdout=log, stderr=log)
    try:
        verify = authority is None or ssl.create_default_context(cafile=authority)
        url = f"{'http' if authority is None else 'https'}://127.0.0.1:{port}"
        with httpx.Client(base_url=url, timeout=PATIENCE, trust_env=False, verify=verify) as client:
            server = Server(process, port, log_path, client)
            started = time.monotonic()
            _await_status(server, 200 if wait_ready else None)
            server.start_seconds = time.monotonic() - started
            yield server
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


@contextlib.contextmanager
def full_server(folder: Path, bundle: Path, key: str = "") -> Iterator[Server]:
    """Run a service whose only place is held by a stream that its client does not read, and that is written already.

    key  the only one, if there is to be any
    """
    fields = [f"Authorization: Bearer {key}"] if key else []
    keys: dict[str, Any] = {"api_keys": key} if key else {}
    endless = {"prompt": "a", "max_tokens": 2000, "logprobs": 20, "stream": True, "logit_bias": {"0": -100}}
    with (
        running_server(folder, bundles=bundle, max_requests=1, max_tokens=2000, **keys) as server,
        socket.socket() as holder,
    ):
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        holder.connect(("127.0.0.1", server.port))
        holder.sendall(post("/generate", json.dumps(endless).encode(), *fields))
        holder.recv(1)
        until = time.monotonic() + PATIENCE
        while 'running{model_name="letters"} 0.0' not in server.client.get("/metrics").text:
            assert time.monotonic() < until, server.client.get("/metrics").text
        yield server


@contextlib.contextmanager
def unread_stream(
    server: Server, path: str, body: dict[str, Any], headers: dict[str, str] | None = None
) -> Iterator[httpx.Response]:
    """Begin a stream that is open until its response is read, however long that takes the test.

    body  asks for a megabyte or more: the systems of both sides take less
    """
    transport = httpx.HTTPTransport(socket_options=[(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)])
    with (
        httpx.Client(transport=transport, base_url=server.client.base_url, timeout=PATIENCE) as client,
        client.stream("POST", path, json={**body, "stream": True}, headers=headers) as response,
    ):
        yield response


def _await_status(server: Server, status: int | None) -> None:
    """Wait until /readyz answers with `status`, and all workers are ready and no others there; any status if None."""
    until = time.monotonic() + PATIENCE
    while time.monotonic() < until:
        if server.process.poll() is not None:
            raise AssertionError(f"the service ended with {server.process.returncode}:\n{server.log}")
        try:
            found = server.client.get("/readyz")
        except httpx.TransportError:
            found = None
        if found is not None and (status is None or (found.status_code == status and _is_complete(found))):
            return
        time.sleep(0.02)
    raise AssertionError(f"the service did not answer in time:\n{server.log}")


def _is_complete(ready: httpx.Response) -> bool:
    workers = ready.json()["workers"]
    return bool(workers["ready"] == workers["expected"] and not workers["draining"])


def events(response: httpx.Response) -> list[str]:
    """Return the data of each server-sent event."""
    return [line.removeprefix("data: ") for line in response.text.split("\n\n") if line.startswith("data: ")]
