"""Test connections that wait without a thread: their bounds, their times, and answers that are being sent."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from meari.errors import Bound
from meari.service.process.waiting import MAX_READING, NUM_QUICK
from tests.drills.processes import held_by, workers_of
from tests.patience import PATIENCE, until
from tests.service.log.test_odd_clients import error_of, received
from tests.service.running import ROOT, Server, running_server
from tests.service.test_server import raw_post, refused_by

ASK = b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"
SCORE = raw_post(b'{"text": "abc"}', path=b"/score")
LONG = json.dumps({"texts": ["abc" * 3000], "tokens": True, "top": 20}).encode()


@pytest.fixture(scope="module")
def server(letters: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    settings: dict[str, Any] = {"max_connections_per_address": 400, "max_requests": 4}
    with running_server(tmp_path_factory.mktemp("waiting"), bundles=letters, **settings) as running:
        yield running


def answers(server: Server, source: str = "127.0.0.1", request: bytes = SCORE) -> bool:
    with socket.create_connection(("127.0.0.1", server.port), 60, (source, 0)) as connection:
        connection.sendall(request)
        return connection.recv(65536).startswith(b"HTTP/1.1 200 OK")


def num_threads(server: Server) -> int:
    [worker] = workers_of(server.process.pid)
    return held_by(worker).num_threads


def test_burst_is_taken_in_before_threads_get_its_requests(letters: Path, tmp_path: Path) -> None:
    """Each request counts from when the loop took it in, for its deadline too: none waits for the answers of others."""
    with running_server(tmp_path, bundles=letters, log_format="json") as server, contextlib.ExitStack() as stack:
        [worker] = workers_of(server.process.pid)
        os.kill(worker, signal.SIGSTOP)
        clients = [stack.enter_context(server.connect()) for _ in range(60)]
        for client in clients:
            client.sendall(SCORE)
        os.kill(worker, signal.SIGCONT)
        for client in clients:
            assert client.recv(65536).startswith(b"HTTP/1.1 200 OK")
        until(lambda: server.log.count('"route":"/score"') == len(clients))
        lines = [json.loads(line) for line in server.log.splitlines() if '"route":"/score"' in line]
    ends = [datetime.fromisoformat(line["time"]).timestamp() for line in lines]
    starts = [end - line["total_ms"] / 1000 for end, line in zip(ends, lines, strict=True)]
    assert max(starts) < min(ends)


@pytest.mark.parametrize(
    "begin",
    [
        b"",
        b"POST /score HTT",
        raw_post(b"{", b"Content-Length: 50000", path=b"/score"),
        raw_post(b"{", b"Content-Length: 5000000", path=b"/score"),
        raw_post(b"5\r\n{", b"Transfer-Encoding: chunked", path=b"/score"),
        raw_post(b"", b"Content-Length: 50000", b"Expect: 100-continue", path=b"/score"),
        raw_post(b"", b"Content-Length: 99999999999", path=b"/score"),
        b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
        b"GARBAGE\r\n\r\n",
        b"\0\1\2\r\n\r\n",
        b"DELETE /score HTTP/1.1\r\nHost: x\r\n\r\n",
    ],
    ids=[
        "idle",
        "head",
        "body",
        "large body",
        "chunks",
        "expect",
        "too large",
        "not closed",
        "malformed",
        "binary",
        "other method",
    ],
)
def test_clients_that_stop_hold_few_threads_and_none_when_they_leave_at_once(server: Server, begin: bytes) -> None:
    assert answers(server)
    before = num_threads(server)
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(server.connect()) for _ in range(150)]
        for client in clients:
            client.sendall(begin)
        assert answers(server)
        assert num_threads(server) <= before + MAX_READING + NUM_QUICK
        for client in clients:
            with contextlib.suppress(OSError):  # refused already
                client.shutdown(socket.SHUT_WR)
        for client in clients:
            with contextlib.suppress(ConnectionError):
                while client.recv(65536):
                    pass
        assert answers(server)
        assert num_threads(server) <= before + MAX_READING + NUM_QUICK


def test_address_past_its_bound_loses_idle_connections_and_others_none(server: Server) -> None:
    with contextlib.ExitStack() as stack:
        other = stack.enter_context(socket.create_connection(("127.0.0.1", server.port), 60, ("127.0.0.3", 0)))
        held = []
        for _ in range(420):
            source = ("127.0.0.2", 0)
            held.append(stack.enter_context(socket.create_connection(("127.0.0.1", server.port), 60, source)))
        assert answers(server, "127.0.0.2")
        assert held[0].recv(1) == b""
        other.sendall(ASK)
        assert other.recv(65536).startswith(b"HTTP/1.1 200 OK")


def test_address_past_its_bound_is_refused_where_nothing_gives_way(server: Server) -> None:
    body = raw_post(b"{", b"Content-Length: 50000", path=b"/score")
    with contextlib.ExitStack() as stack:
        for _ in range(400):
            held = stack.enter_context(socket.create_connection(("127.0.0.1", server.port), 60, ("127.0.0.4", 0)))
            held.sendall(body)
        until(lambda: not answers_at_all(server, "127.0.0.4"))
        with socket.create_connection(("127.0.0.1", server.port), 60, ("127.0.0.4", 0)) as connection:
            status, error, head = error_of(received(connection))
        assert (status, error["code"]) == (429, "overloaded")
        assert b"Retry-After: 1" in head
        assert answers(server, "127.0.0.5")
        assert refused_by(server, Bound.CONNECTIONS) >= 1


def answers_at_all(server: Server, source: str) -> bool:
    with socket.create_connection(("127.0.0.1", server.port), 60, (source, 0)) as connection:
        connection.sendall(ASK)
        return connection.recv(65536).startswith(b"HTTP/1.1 200")


def test_body_of_a_byte_at_a_time_has_one_time_in_all(server: Server) -> None:
    started = time.monotonic()
    with server.connect() as connection:
        connection.sendall(raw_post(b"{", b"Content-Length: 50000", path=b"/score"))
        connection.settimeout(0.5)
        answer = b""
        while not answer:
            connection.sendall(b" ")
            with contextlib.suppress(TimeoutError):
                answer = connection.recv(65536)
    status, error, _ = error_of(answer)
    assert (status, error["message"]) == (400, "body: not complete after 30 seconds")
    assert 29 <= time.monotonic() - started <= 60


def test_answer_that_is_being_sent_is_not_cut_by_sigterm(letters: Path, tmp_path: Path) -> None:
    with running_server(tmp_path, bundles=letters) as server:
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
        connection.connect()
        connection.request("POST", "/score", LONG, {"Content-Type": "application/json"})
        response = connection.getresponse()
        server.terminate()
        until(lambda: "Handling signal: term" in server.log)
        assert len(json.loads(response.read())["results"][0]["tokens"]) >= 9000
        connection.close()
        assert server.wait() == 0


def test_requests_that_come_slowly_hold_a_part_of_the_memory_at_most(letters: Path, tmp_path: Path) -> None:
    limits: dict[str, Any] = {"max_body_bytes": 2**20, "max_inflight_bytes": 2**21}
    with running_server(tmp_path, bundles=letters, **limits) as server, contextlib.ExitStack() as stack:
        clients = [stack.enter_context(server.connect()) for _ in range(40)]
        for client in clients:
            client.sendall(raw_post(b"[" + b" " * 60_000, b"Content-Length: 60002", path=b"/score"))
        refused, _, _ = select.select(clients, [], [], PATIENCE)
        status, error, _ = error_of(received(refused[0]))
        assert (status, error["code"]) == (429, "overloaded")
        assert refused_by(server, Bound.BYTES) >= 1
        assert answers(server)
        refused, _, _ = select.select(clients, [], [], 0)
        kept = [client for client in clients if client not in refused]
        for client in kept:
            with contextlib.suppress(OSError):  # refused after that look
                client.sendall(b"]")
        statuses = {error_of(client.recv(65536))[0] for client in kept}
        assert 400 in statuses <= {400, 429}


# More threads than there is memory for; 64 MB hold the stacks of seven.
FEW_THREADS = """
import resource, threading
from meari.service.process.waiting import RequestThreads

threading.stack_size(8 << 20)
pool, gate = RequestThreads(64, "few"), threading.Event()
pages = int(open("/proc/self/statm").read().split()[0])
room = pages * resource.getpagesize() + (64 << 20)
resource.setrlimit(resource.RLIMIT_AS, (room, room))
results = [pool.submit(lambda number=number: gate.wait() and number) for number in range(64)]
assert 1 < threading.active_count() < 16, threading.active_count()
gate.set()
assert [result.result() for result in results] == list(range(64))
"""


def test_requests_are_answered_by_the_threads_that_there_are_where_no_more_can_be_started() -> None:
    subprocess.run([sys.executable, "-c", FEW_THREADS], check=True, cwd=ROOT, timeout=PATIENCE)
