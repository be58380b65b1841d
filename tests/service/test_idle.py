"""Test that connections which wait for nothing hold nothing of what came and went over them, with TLS as without it."""

from __future__ import annotations

import contextlib
import json
import shutil
import socket
import ssl
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.drills.processes import held_by, workers_of
from tests.drills.raw_http import post
from tests.patience import PATIENCE
from tests.service.running import Server, running_server
from tests.service.test_tls import make_certificate

NUM_CONNECTIONS = 24
KEPT_MB = 1.0  # of each connection, where one that keeps its answer has four
FIELDS = "".join(f"X-{number}: {'a' * 8000}\r\n" for number in range(90))
HEAD = f"GET /healthz HTTP/1.1\r\nHost: x\r\n{FIELDS}\r\n".encode()
TOKENIZE = post("/tokenize", json.dumps({"text": "abcdefgh" * 25_000}).encode())


@pytest.fixture(params=["http", "https"])
def server(request: pytest.FixtureRequest, letters: Path, tmp_path: Path) -> Iterator[tuple[Server, Path | None]]:
    if request.param == "http":
        with running_server(tmp_path, bundles=letters) as server:
            yield server, None
        return
    if shutil.which("openssl") is None:
        pytest.skip("openssl was not found")
    certificate, key = make_certificate(tmp_path / "certificate", "idle")
    with running_server(
        tmp_path, bundles=letters, authority=certificate, tls_certificate=certificate, tls_key=key
    ) as server:
        yield server, certificate


def connected(server: Server, certificate: Path | None) -> socket.socket:
    plain = server.connect()
    if certificate is None:
        return plain
    return ssl.create_default_context(cafile=certificate).wrap_socket(plain, server_hostname="127.0.0.1")


def ask(connection: socket.socket, request: bytes) -> int:
    """Send a request, and return how many bytes its answer has."""
    connection.settimeout(PATIENCE)
    connection.sendall(request)
    answer = b""
    while b"\r\n\r\n" not in answer:
        answer += connection.recv(65536)
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 OK")
    [length] = [int(line.split(b":")[1]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length")]
    left = length - len(body)
    while left:
        left -= len(connection.recv(1 << 20))
    return length


@pytest.mark.parametrize("request_bytes", [HEAD, TOKENIZE], ids=["head", "answer"])
def test_idle_connection_holds_nothing_of_its_last_request(
    server: tuple[Server, Path | None], request_bytes: bytes
) -> None:
    running, certificate = server
    [worker] = workers_of(running.process.pid)
    with contextlib.ExitStack() as stack:

        def idle() -> socket.socket:
            connection = stack.enter_context(connected(running, certificate))
            ask(connection, request_bytes)
            return connection

        idle()  # the first one takes what all others use again
        idle()
        before = held_by(worker).private_mb
        for _ in range(NUM_CONNECTIONS):
            idle()
        assert held_by(worker).private_mb - before < KEPT_MB * NUM_CONNECTIONS
