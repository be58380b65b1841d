"""Test connections with time-outs kept by the kernel."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from meari.service.clients import STALL_SECONDS, Connection

BRIEFLY = 0.02


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, Connection]]:
    theirs, ours = socket.socketpair()
    with theirs, Connection.over(ours) as connection:
        yield theirs, connection


def test_sent_bytes_are_received_and_the_end_is_empty(pair: tuple[socket.socket, Connection]) -> None:
    theirs, connection = pair
    theirs.sendall(b"hello")
    theirs.shutdown(socket.SHUT_WR)
    assert connection.recv(100) == b"hello"
    assert connection.recv(100) == b""


def test_silent_client_causes_a_timeout(pair: tuple[socket.socket, Connection]) -> None:
    _, connection = pair
    connection.settimeout(BRIEFLY)
    with pytest.raises(TimeoutError, match="sent nothing"):
        connection.recv(100)


def test_client_that_reads_nothing_causes_a_timeout(pair: tuple[socket.socket, Connection]) -> None:
    _, connection = pair
    connection.settimeout(BRIEFLY)
    with pytest.raises(TimeoutError, match="took nothing"):
        connection.sendall(b"x" * 100_000_000)


def test_gunicorn_gets_the_longest_timeout_in_every_mode(pair: tuple[socket.socket, Connection]) -> None:
    theirs, connection = pair
    connection.settimeout(BRIEFLY)
    connection.setblocking(False)
    assert connection.gettimeout() == BRIEFLY
    connection.setblocking(True)
    assert connection.gettimeout() == STALL_SECONDS
    theirs.sendall(b"x")
    assert connection.recv(1) == b"x"


def test_timeout_of_zero_does_not_block(pair: tuple[socket.socket, Connection]) -> None:
    _, connection = pair
    connection.settimeout(0.0)
    with pytest.raises(TimeoutError):
        connection.recv(1)


def test_first_response_bytes_probe_the_client_while_it_waits(pair: tuple[socket.socket, Connection]) -> None:
    theirs, connection = pair
    assert not connection.probe()
    connection.await_answer()
    assert [connection.probe() for _ in range(9)] == [True] * 7 + [False] * 2
    assert connection.begin_answer() == 7
    assert not connection.probe()
    assert theirs.recv(100) == b"HTTP/1."
    connection.await_answer()
    assert connection.probe()
    assert connection.begin_answer() == 1
