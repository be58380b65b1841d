"""Test that clients cause no errors or tracebacks in the log, and that every error response has the error body."""

from __future__ import annotations

import contextlib
import json
import resource
import select
import socket
import ssl
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from meari.service.process.http import HEAD_SECONDS
from tests.drills.processes import workers_of
from tests.patience import until
from tests.service.log.test_requests import line_of, lines
from tests.service.running import Server, running_server
from tests.service.test_server import ENDLESS, metric, raw_post

HEAD = b"POST /generate HTTP/1.1\r\nHost: x\r\n"
LONG = b"a" * 9000


@pytest.fixture(scope="module")
def server(letters: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("odd")
    settings: dict[str, Any] = {"log_level": "debug", "max_tokens": 1_000_000, "default_model": "letters"}
    with running_server(folder, bundles=letters, **settings) as running:
        yield running
        running.terminate()
        assert running.wait() == 0
        assert complaints(running) == []


def complaints(server: Server) -> list[dict[str, Any]]:
    return [line for line in lines(server) if line["level"] in ("error", "critical") or "exception" in line]


def reset(connection: socket.socket) -> None:
    """Close the connection with a reset."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


def received(connection: socket.socket) -> bytes:
    answer = b""
    with contextlib.suppress(ConnectionResetError):
        while piece := connection.recv(65536):
            answer += piece
    return answer


def error_of(answer: bytes) -> tuple[int, dict[str, Any], bytes]:
    head, _, body = answer.partition(b"\r\n\r\n")
    return int(head.split()[1]), json.loads(body)["error"], head


@pytest.mark.parametrize(
    ("sent", "status", "code"),
    [
        (b"GARBAGE\r\n\r\n", 400, "invalid_request"),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\x07" * 500, 400, "invalid_request"),
        (b"\x00" * 20, 400, "invalid_request"),
        (b"{}\n", 400, "invalid_request"),
        (b"get / HTTP/1.1\r\n\r\n", 400, "invalid_request"),
        (b"GET / SPDY/3\r\n\r\n", 400, "invalid_request"),
        (b"GET / HTTP/2.0\r\n\r\n", 505, "not_implemented"),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400, "invalid_request"),
        (b"GET /" + LONG + b" HTTP/1.1\r\nHost: x\r\n\r\n", 414, "too_large"),
        (HEAD + b"X-Long: " + LONG + b"\r\n\r\n", 431, "too_large"),
        (HEAD + b"X-Many: 1\r\n" * 200 + b"\r\n", 431, "too_large"),
        (HEAD + b"no colon\r\n\r\n", 400, "invalid_request"),
        (HEAD + b"Bad Name: 1\r\n\r\n", 400, "invalid_request"),
        (HEAD + b"X-Folded: a\r\n b\r\n\r\n", 400, "invalid_request"),
        (HEAD + b"X_Under: a\r\n\r\n", 200, ""),
        (HEAD + b"X-Bad: \x01\r\n\r\n", 400, "invalid_request"),
        (HEAD + b"Host: y\r\n\r\n", 400, "invalid_request"),
        (HEAD + b"Expect: a-miracle\r\n\r\n", 417, "invalid_request"),
        (HEAD + b"Transfer-Encoding: br, chunked\r\n\r\n", 501, "not_implemented"),
        (HEAD + b"Content-Length: x\r\n\r\n", 400, "invalid_request"),
        (HEAD + b"Content-Length: -1\r\n\r\n", 400, "invalid_request"),
        (HEAD + b"Content-Len", 400, "invalid_request"),  # end of the stream
        (raw_post(b"zz\r\n", b"Transfer-Encoding: chunked"), 400, "invalid_request"),
        (raw_post(b"5\r\nab", b"Transfer-Encoding: chunked"), 400, "invalid_request"),
        (raw_post(b'{"pro', b"Content-Length: 50"), 400, "invalid_request"),
    ],
)
def test_malformed_http_gets_the_error_body(server: Server, sent: bytes, status: int, code: str) -> None:
    with server.connect() as connection:
        connection.sendall(sent)
        connection.shutdown(socket.SHUT_WR)
        answer = received(connection)
    if not code:  # gunicorn drops these headers
        return
    found, error, head = error_of(answer)
    assert (found, error["code"]) == (status, code), answer
    assert set(error) == {"code", "message", "request_id"}
    assert f"X-Request-Id: {error['request_id']}".encode() in head
    for header in (b"Content-Type: application/json", b"nosniff", b"no-store"):
        assert header in head
    assert b"<" not in answer
    assert server.client.get("/healthz").status_code == 200
    assert complaints(server) == []


def test_malformed_http_under_v1_gets_the_error_body_of_openai(server: Server) -> None:
    with server.connect() as connection:
        connection.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: br, chunked\r\n\r\n")
        _, error, _ = error_of(received(connection))
    assert (error["type"], error["code"]) == ("server_error", "not_implemented")
    assert error["message"] == "Transfer-Encoding: got br, chunked, expected chunked or none"


def test_tls_client_on_the_plain_port_gets_an_immediate_error(server: Server) -> None:
    context = ssl.create_default_context()
    with server.connect() as connection, pytest.raises(ssl.SSLError):
        context.wrap_socket(connection, server_hostname="localhost")
    assert complaints(server) == []


def half_heads(server: Server) -> Iterator[socket.socket]:
    for start in (HEAD, b"POST /gen", b"G", b"\r\n", HEAD + b"Content-Le"):
        connection = server.connect()
        connection.settimeout(6 * HEAD_SECONDS)
        connection.sendall(start)
        yield connection


def send_slowly(connection: socket.socket) -> bytes:
    """Send bytes slowly and return the response."""
    connection.settimeout(0.3)
    answer = b""
    with contextlib.suppress(ConnectionError):
        while True:
            if not answer:
                connection.sendall(b"a")
            with contextlib.suppress(TimeoutError):
                piece = connection.recv(65536)
                if not piece:
                    break
                answer += piece
    return answer


def test_incomplete_head_times_out_with_a_response_and_without_an_error(server: Server) -> None:
    with contextlib.ExitStack() as stack:
        connections = [stack.enter_context(connection) for connection in half_heads(server)]
        drip = stack.enter_context(server.connect())
        drip.sendall(HEAD + b"X-Slow: ")
        drip_answer = send_slowly(drip)
        assert error_of(drip_answer)[0] == 408
        for connection in connections:
            status, error, _ = error_of(received(connection))
            assert (status, error["code"]) == (408, "invalid_request")
    assert complaints(server) == []


def leave_in_mid_head(server: Server) -> None:
    for connection in half_heads(server):
        reset(connection)


def leave_in_mid_body(server: Server) -> None:
    connection = server.connect()
    connection.sendall(raw_post(b'{"prompt"', b"Content-Length: 50000"))
    reset(connection)


def leave_in_mid_chunk(server: Server) -> None:
    connection = server.connect()
    connection.sendall(raw_post(b'9\r\n{"pro', b"Transfer-Encoding: chunked"))
    reset(connection)


def leave_before_the_answer(server: Server) -> None:
    connection = server.connect()
    connection.sendall(raw_post(json.dumps({**ENDLESS, "max_tokens": 1_000_000}).encode()))
    until(lambda: metric(server, "meari_running_sequences") == 1)
    reset(connection)


def leave_in_mid_stream(server: Server) -> None:
    connection = server.connect()
    connection.sendall(raw_post(json.dumps({**ENDLESS, "max_tokens": 1_000_000, "stream": True}).encode()))
    assert connection.recv(20)
    reset(connection)


def leave_in_mid_answer(server: Server) -> None:
    connection = server.connect()
    body = json.dumps({"texts": ["abc" * 2000], "tokens": True, "top": 20}).encode()
    connection.sendall(raw_post(body, path=b"/score"))
    assert connection.recv(20)
    reset(connection)


def leave_between_requests(server: Server) -> None:
    connection = server.connect()
    connection.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
    assert connection.recv(20)
    reset(connection)


def leave_at_once(server: Server) -> None:
    reset(server.connect())
    server.connect().close()


@pytest.mark.parametrize(
    "leave",
    [
        leave_in_mid_head,
        leave_in_mid_body,
        leave_in_mid_chunk,
        leave_before_the_answer,
        leave_in_mid_stream,
        leave_in_mid_answer,
        leave_between_requests,
        leave_at_once,
    ],
)
def test_aborted_connections_are_not_errors(server: Server, leave: Callable[[Server], None]) -> None:
    for _ in range(3):
        leave(server)
        until(lambda: metric(server, "meari_running_sequences") == 0)
    assert server.client.get("/healthz").status_code == 200
    assert complaints(server) == []


def test_clients_that_do_not_close_do_not_delay_others(server: Server) -> None:
    with contextlib.ExitStack() as stack:
        for _ in range(30):
            connection = stack.enter_context(server.connect())
            connection.sendall(b"GARBAGE\r\n\r\n")
            assert connection.recv(20)
        address = f"http://127.0.0.1:{server.port}/healthz"
        assert httpx.get(address, trust_env=False, timeout=30).status_code == 200, "not two seconds for each of them"


def test_unread_malformed_body_gets_one_response(server: Server) -> None:
    with server.connect() as connection:
        connection.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n")
        assert received(connection).count(b"HTTP/1.1 ") == 1


def test_expect_header_gets_100_continue(server: Server) -> None:
    body = b'{"prompt": "w", "temperature": 0}'
    head = raw_post(b"", b"Expect: 100-Continue", b"Content-Length: %d" % len(body), b"Connection: close")
    with server.connect() as connection:
        connection.sendall(head)
        assert connection.recv(1000) == b"HTTP/1.1 100 Continue\r\n\r\n"
        connection.sendall(body)
        assert received(connection).startswith(b"HTTP/1.1 200 OK\r\n")


@pytest.mark.parametrize(
    ("path", "header", "status"),
    [
        (b"/generate", b"Content-Length: 99999999999", 413),
        (b"/generate", b"Content-Length: 99\r\nContent-Encoding: gzip", 415),
        (b"/nowhere", b"Content-Length: 99", 404),
        (b"/healthz", b"Content-Length: 99", 405),
    ],
)
def test_refused_request_with_an_expect_header_gets_no_100_continue(
    server: Server, path: bytes, header: bytes, status: int
) -> None:
    with server.connect() as connection:
        connection.sendall(
            raw_post(b"", b"Expect: 100-continue", header, path=path).replace(b"Content-Length: 0\r\n", b"")
        )
        answer = received(connection)
    assert error_of(answer)[0] == status
    assert b"Connection: close" in answer
    assert b"100 Continue" not in answer


def test_upgrade_to_another_protocol_is_ignored(server: Server) -> None:
    headers = {"Connection": "Upgrade", "Upgrade": "websocket"}
    assert server.client.get("/healthz", headers=headers).status_code == 200


@pytest.mark.parametrize("path", ["//generate", "/%2fgenerate", "/v1%2Fcompletions", "/nowhere"])
def test_unknown_path_is_logged_verbatim(server: Server, path: str) -> None:
    name = path.translate({ord("/"): ".", ord("%"): "."})
    with server.connect() as connection:
        connection.sendall(raw_post(b"", b"X-Request-Id: %b" % name.encode(), b"Connection: close", path=path.encode()))
        received(connection)
    line = line_of(server, name)
    assert (line["path"], line["route"], line["status"], line["outcome"]) == (path, "none", 404, "invalid")


@pytest.fixture
def many_files() -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < 3000:
        pytest.skip("needs 3000 open files")
    resource.setrlimit(resource.RLIMIT_NOFILE, (3000 if soft == resource.RLIM_INFINITY else max(soft, 3000), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.usefixtures("many_files")
def test_idle_connections_give_way_to_new_clients(letters: Path, tmp_path: Path) -> None:
    limit = 1000
    ask = b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(running_server(tmp_path, bundles=letters, max_connections=limit))
        server.client.close()
        held = [stack.enter_context(server.connect()) for _ in range(limit)]
        for connection in held[100:]:  # the first hundred send nothing
            connection.sendall(ask)
            assert connection.recv(65536).startswith(b"HTTP/1.1 200 OK")
        for _ in range(10):
            newcomer = stack.enter_context(server.connect())
            newcomer.sendall(ask)
            assert newcomer.recv(65536).startswith(b"HTTP/1.1 200 OK")
        readable = select.poll()
        for connection in held:
            readable.register(connection, select.POLLIN)
        closed = {number for number, _ in readable.poll(0)}
        assert 1 <= len(closed) <= 200  # not all of them, unlike after a timeout
        assert held[0].fileno() in closed
        held[-1].sendall(ask)
        assert held[-1].recv(65536).startswith(b"HTTP/1.1 200 OK")


@pytest.mark.skipif(not hasattr(resource, "prlimit"), reason="needs Linux")
def test_clients_beyond_the_limit_of_open_files_wait_without_ending_a_worker(server: Server) -> None:
    [worker] = workers_of(server.process.pid)
    limits = resource.prlimit(worker, resource.RLIMIT_NOFILE)
    assert server.client.get("/healthz").status_code == 200  # this connection stays open
    with contextlib.ExitStack() as stack:
        resource.prlimit(worker, resource.RLIMIT_NOFILE, (64, limits[1]))
        stack.callback(resource.prlimit, worker, resource.RLIMIT_NOFILE, limits)
        for _ in range(100):
            stack.enter_context(server.connect())
        # The worker logs this every 50 ms; the metrics try every 500 ms.
        refused = "no connection can be taken: Too many open files"
        until(lambda: server.log.count(refused) >= 40)
        assert server.client.get("/healthz").status_code == 200
    with server.connect() as connection:
        connection.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        assert received(connection).startswith(b"HTTP/1.1 200 OK")
    assert workers_of(server.process.pid) == [worker]
    assert complaints(server) == []
