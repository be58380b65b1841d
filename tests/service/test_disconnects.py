"""Test the detection of disconnected clients: their slots and places in the queue are free within 3 steps."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from meari.service.clients import Client, Connection, Disconnects
from tests.patience import PATIENCE, until
from tests.runtime.tiny_bundle import write_tiny_bundle
from tests.service.running import Server, running_server
from tests.service.test_server import ENDLESS, metric, raw_post

Connect = Callable[[], tuple[socket.socket, Client]]


@pytest.fixture
def disconnects() -> Iterator[Disconnects]:
    watch = Disconnects()
    watch.start()
    yield watch
    watch.stop()


@pytest.fixture
def connect() -> Iterator[Connect]:
    """Return both ends of a connection, the service's end as a Client."""
    with contextlib.ExitStack() as sockets:

        def make() -> tuple[socket.socket, Client]:
            theirs, ours = socket.socketpair()
            connection = sockets.enter_context(Connection.over(ours))
            return sockets.enter_context(theirs), Client(connection)

        yield make


def test_only_the_disconnected_client_is_detected(disconnects: Disconnects, connect: Connect) -> None:
    noticed: dict[int, threading.Event] = {number: threading.Event() for number in range(20)}
    pairs = [connect() for _ in noticed]
    for number, (_, client) in enumerate(pairs):
        disconnects.watch(client, noticed[number].set)
    for theirs, _ in pairs[::2]:
        theirs.sendall(b"the next request")
        theirs.close()
    for number in range(0, 20, 2):
        assert noticed[number].wait(PATIENCE)
        assert pairs[number][1].is_gone
    assert not any(noticed[number].is_set() or pairs[number][1].is_gone for number in range(1, 20, 2))


def test_earlier_disconnect_is_detected_at_once(disconnects: Disconnects, connect: Connect) -> None:
    theirs, client = connect()
    theirs.close()
    noticed = threading.Event()
    disconnects.watch(client, noticed.set)
    assert noticed.wait(PATIENCE)


def test_forgotten_client_gets_no_callback(disconnects: Disconnects, connect: Connect) -> None:
    (theirs, client), (last, last_client) = connect(), connect()
    calls: list[str] = []
    noticed = threading.Event()
    disconnects.watch(client, lambda: calls.append("gone"))
    disconnects.watch(last_client, noticed.set)
    disconnects.forget(client)
    disconnects.forget(client)
    theirs.close()
    last.close()
    assert noticed.wait(PATIENCE)
    assert calls == []


def test_half_closed_client_counts_as_connected_until_it_closes(disconnects: Disconnects, connect: Connect) -> None:
    theirs, client = connect()
    noticed = threading.Event()
    theirs.shutdown(socket.SHUT_WR)
    disconnects.watch(client, noticed.set)
    assert theirs.recv(1) == b"H"  # the probe, which is the first byte of the response
    assert not client.is_gone
    assert client.has_ended
    assert not noticed.is_set()
    theirs.close()
    assert noticed.wait(PATIENCE)
    assert client.is_gone


def test_connection_serves_successive_requests(disconnects: Disconnects, connect: Connect) -> None:
    theirs, client = connect()
    first, second = threading.Event(), threading.Event()
    disconnects.watch(client, first.set)
    disconnects.forget(client)
    disconnects.watch(client, second.set)
    theirs.close()
    assert second.wait(PATIENCE)
    assert not first.is_set()


def test_request_without_a_connection_is_not_watched(disconnects: Disconnects) -> None:
    client, calls = Client(None), list[str]()
    disconnects.watch(client, lambda: calls.append("gone"))
    disconnects.forget(client)
    assert not client.is_gone
    assert calls == []


@pytest.fixture(scope="module")
def slow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Run a service with four slots and steps that take longer than a request for metrics."""
    folder = tmp_path_factory.mktemp("slow")
    write_tiny_bundle(folder / "bundles" / "letters", work=1280)
    limits: dict[str, Any] = {"max_slots": 4, "max_tokens": 100_000, "max_inflight_bytes": 2**32}
    with running_server(folder, bundles=folder / "bundles", **limits) as server:
        yield server


def in_the_engine(server: Server) -> tuple[float, float]:
    return metric(server, "meari_running_sequences"), metric(server, "meari_waiting_requests")


@pytest.mark.parametrize(
    ("path", "body", "num_running"),
    [
        (b"/generate", {**ENDLESS, "max_tokens": 100_000}, 4),
        (b"/generate", {**ENDLESS, "max_tokens": 100_000, "stream": True}, 4),
        (b"/score", {"text": "abc" * 20_000}, 4),
        (b"/complete", {"text": "abc" * 20_000}, 1),  # a search has all four slots
    ],
    ids=["whole", "stream", "score", "complete"],
)
def test_disconnected_clients_free_their_slots_within_three_steps(
    slow: Server, path: bytes, body: dict[str, Any], num_running: int
) -> None:
    until(lambda: in_the_engine(slow) == (0, 0))
    known = metric(slow, "meari_steps_total") + 24  # the engine has then measured the time of a step
    with contextlib.ExitStack() as clients:
        for _ in range(12):
            clients.enter_context(slow.connect()).sendall(raw_post(json.dumps(body).encode(), path=path))
        until(lambda: in_the_engine(slow)[0] == num_running and metric(slow, "meari_steps_total") >= known, PATIENCE)
        before = metric(slow, "meari_steps_total")
    until(lambda: in_the_engine(slow) == (0, 0))
    assert (
        metric(slow, "meari_steps_total") - before <= 1 + 3
    )  # one request may end between the metric and the disconnect


REQUESTS: list[tuple[bytes, dict[str, Any]]] = [
    (b"/generate", {"prompt": "w", "temperature": 0}),
    (b"/generate", {"prompt": "w", "temperature": 0, "stream": True}),
    (b"/score", {"text": "abc" * 500, "add_end": True}),
    (b"/v1/completions", {"prompt": "w", "temperature": 0}),
    (b"/v1/completions", {"prompt": "w", "temperature": 0, "stream": True}),
    (b"/complete", {"text": "abc"}),
    (b"/tokenize", {"text": "abc"}),
]
IDS = [f"{path.decode()}-{'stream' if 'stream' in body else 'whole'}" for path, body in REQUESTS]


def received(connection: socket.socket) -> bytes:
    """Return all bytes received until the other side closes."""
    connection.settimeout(60)
    return b"".join(iter(lambda: connection.recv(65536), b""))


@pytest.fixture(scope="module")
def single_slot(letters: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Run a service with one slot."""
    limits: dict[str, Any] = {"max_slots": 1, "max_tokens": 1_000_000}
    with running_server(tmp_path_factory.mktemp("single_slot"), bundles=letters, **limits) as server:
        yield server


@pytest.mark.parametrize("version", [b"1.1", b"1.0"])
@pytest.mark.parametrize(("path", "body"), REQUESTS, ids=IDS)
def test_half_closed_client_gets_its_response(
    single_slot: Server, path: bytes, body: dict[str, Any], version: bytes
) -> None:
    request = raw_post(json.dumps(body).encode(), path=path).replace(b"HTTP/1.1", b"HTTP/" + version, 1)
    for is_busy in (False, path not in (b"/score", b"/tokenize")):
        until(lambda: in_the_engine(single_slot) == (0, 0))
        with single_slot.connect() as connection, single_slot.connect() as other:
            if is_busy:  # the request waits in the queue at first
                other.sendall(raw_post(json.dumps({**ENDLESS, "max_tokens": 1_000_000}).encode()))
                until(lambda: in_the_engine(single_slot)[0] == 1)
            connection.sendall(request)
            connection.shutdown(socket.SHUT_WR)
            if is_busy:
                until(lambda: in_the_engine(single_slot) == (1, 1))
            other.close()
            answer = received(connection)
        assert answer.startswith(b"HTTP/%b 200 OK\r\n" % version)
        assert answer.count(b"HTTP/1.") == 1
        assert b"data: [DONE]" in answer or "stream" not in body
        assert b'"end"' in answer or path != b"/generate"


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("reads", [False, True])
def test_disconnect_of_a_half_closed_client_is_detected(single_slot: Server, stream: bool, reads: bool) -> None:
    until(lambda: in_the_engine(single_slot) == (0, 0))
    body = json.dumps({**ENDLESS, "max_tokens": 1_000_000, "stream": stream}).encode()
    with single_slot.connect() as connection:
        connection.sendall(raw_post(body))
        connection.shutdown(socket.SHUT_WR)
        until(lambda: in_the_engine(single_slot)[0] == 1)
        if reads:
            assert connection.recv(65536)
    until(lambda: in_the_engine(single_slot) == (0, 0), PATIENCE)


def test_pipelined_requests_of_a_half_closed_client_are_all_answered(single_slot: Server) -> None:
    request = raw_post(json.dumps(REQUESTS[0][1]).encode())
    with single_slot.connect() as connection:
        connection.sendall(request * 3)
        connection.shutdown(socket.SHUT_WR)
        assert received(connection).count(b"HTTP/1.1 200 OK") == 3
