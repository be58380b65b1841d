"""A client that goes away is noticed when it happens: its slots and its place in the queue are free within 3 steps."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from service.process.client import Client
from service.process.disconnects import Disconnects
from tests.patience import PATIENCE
from tests.service.running import Server, running_server
from tests.service.test_server import ENDLESS, metric, raw_post, until
from tests.service.tiny_bundle import write_tiny_bundle

Connect = Callable[[], tuple[socket.socket, Client]]


@pytest.fixture
def disconnects() -> Iterator[Disconnects]:
    watch = Disconnects()
    watch.start()
    yield watch
    watch.stop()


@pytest.fixture
def connect() -> Iterator[Connect]:
    """Connections: the client's end, and the service's as a Client."""
    with contextlib.ExitStack() as sockets:

        def make() -> tuple[socket.socket, Client]:
            theirs, ours = map(sockets.enter_context, socket.socketpair())
            return theirs, Client(ours)

        yield make


def test_who_closes_is_noticed_and_nobody_else(disconnects: Disconnects, connect: Connect) -> None:
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


def test_who_has_gone_before_is_noticed_at_once(disconnects: Disconnects, connect: Connect) -> None:
    theirs, client = connect()
    theirs.close()
    noticed = threading.Event()
    disconnects.watch(client, noticed.set)
    assert noticed.wait(PATIENCE)


def test_who_is_forgotten_is_not_called_back(disconnects: Disconnects, connect: Connect) -> None:
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


def test_a_connection_serves_one_request_after_another(disconnects: Disconnects, connect: Connect) -> None:
    theirs, client = connect()
    first, second = threading.Event(), threading.Event()
    disconnects.watch(client, first.set)
    disconnects.forget(client)
    disconnects.watch(client, second.set)
    theirs.close()
    assert second.wait(PATIENCE)
    assert not first.is_set()


def test_without_a_connection_nothing_is_watched(disconnects: Disconnects) -> None:
    client, calls = Client(None), list[str]()
    disconnects.watch(client, lambda: calls.append("gone"))
    disconnects.forget(client)
    assert not client.is_gone
    assert calls == []


@pytest.fixture(scope="module")
def slow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Steps that take longer than to ask for a metric, four slots."""
    folder = tmp_path_factory.mktemp("slow")
    write_tiny_bundle(folder / "bundles" / "letters", work=1280)
    limits: dict[str, Any] = {"max_slots": 4, "max_tokens": 100_000, "max_inflight_bytes": 2**32}
    with running_server(folder, bundles=folder / "bundles", **limits) as server:
        yield server


def in_the_engine(server: Server) -> tuple[float, float]:
    return metric(server, "meari_running_sequences"), metric(server, "meari_waiting_requests")


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (b"/generate", {**ENDLESS, "max_tokens": 100_000}),
        (b"/generate", {**ENDLESS, "max_tokens": 100_000, "stream": True}),
        (b"/score", {"text": "abc" * 20_000}),
    ],
    ids=["whole", "stream", "score"],
)
def test_clients_that_go_away_free_their_slots_within_three_steps(
    slow: Server, path: bytes, body: dict[str, Any]
) -> None:
    until(lambda: in_the_engine(slow) == (0, 0))
    known = metric(slow, "meari_steps_total") + 24  # by then the engine knows how long a step takes
    with contextlib.ExitStack() as clients:
        for _ in range(12):
            clients.enter_context(slow.connect()).sendall(raw_post(json.dumps(body).encode(), path=path))
        until(lambda: in_the_engine(slow)[0] == 4 and metric(slow, "meari_steps_total") >= known, PATIENCE)
        before = metric(slow, "meari_steps_total")
    until(lambda: in_the_engine(slow) == (0, 0))
    assert metric(slow, "meari_steps_total") - before <= 1 + 3  # one may end between the question and the closing
