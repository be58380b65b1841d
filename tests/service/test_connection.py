"""Test connections with time-outs kept by the kernel."""

from __future__ import annotations

import socket
import threading
import time
import weakref
from collections.abc import Iterator

import pytest

from meari.service.clients import STALL_SECONDS, Connection
from tests.patience import PATIENCE

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
    connection.probe()
    connection.await_answer()
    for _ in range(9):
        connection.probe()
    assert connection.begin_answer() == 7
    connection.probe()
    assert theirs.recv(100) == b"HTTP/1."
    connection.await_answer()
    connection.probe()
    assert connection.begin_answer() == 1


def test_stream_is_probed_between_its_events_and_never_within_one(pair: tuple[socket.socket, Connection]) -> None:
    theirs, connection = pair
    connection.begin_answer()
    connection.filler = b"<ping>"
    connection.probe()
    assert theirs.recv(100) == b"<ping>"
    event = b"x" * 10_000_000
    writer = threading.Thread(target=connection.sendall, args=(event,))
    writer.start()
    received = bytearray()
    while len(received) < len(event):
        connection.probe()
        received += theirs.recv(1 << 20)
    writer.join()
    assert received.strip(b"<ping>") == event  # whole, before or after a ping
    connection.begin_answer()
    connection.probe()
    with pytest.raises(BlockingIOError):
        theirs.recv(100, socket.MSG_DONTWAIT)


def filled(connection: Connection) -> int:
    """Send until the client's system and this one take no more; return how many bytes they took."""
    connection.keeps_rest = True
    connection.sendall(b"x" * 10_000_000)
    return 10_000_000 - connection.num_unsent


def test_rest_of_a_whole_answer_is_kept_and_sent_when_the_client_reads(pair: tuple[socket.socket, Connection]) -> None:
    theirs, connection = pair
    sent: list[str] = []
    taken = filled(connection)
    connection.when_sent(lambda: sent.append("all"))
    assert 0 < taken < 10_000_000
    connection.sendall(b"end")
    received = b""
    while connection.num_unsent:
        assert sent == []
        received += theirs.recv(1_000_000)
        connection.flush()
    assert sent == ["all"]
    while len(received) < 10_000_003:
        received += theirs.recv(1_000_000)
    assert received == b"x" * 10_000_000 + b"end"
    connection.close()
    assert sent == ["all"]


class Answer(bytearray):
    """One whose end can be noticed."""


def test_answer_that_was_sent_is_not_held_while_its_connection_is_idle(pair: tuple[socket.socket, Connection]) -> None:
    theirs, connection = pair
    answer = Answer(10_000_000)
    held = weakref.ref(answer)
    connection.keeps_rest = True
    connection.sendall(answer)
    del answer
    assert held() is not None
    while connection.num_unsent:
        theirs.recv(1_000_000)
        connection.flush()
    assert held() is None


def test_callback_runs_at_once_where_nothing_is_kept_and_at_the_close_otherwise(
    pair: tuple[socket.socket, Connection],
) -> None:
    _, connection = pair
    sent: list[str] = []
    connection.when_sent(lambda: sent.append("nothing kept"))
    assert sent == ["nothing kept"]
    filled(connection)
    connection.when_sent(lambda: sent.append("closed"))
    assert sent == ["nothing kept"]
    connection.close()
    assert sent == ["nothing kept", "closed"]


@pytest.fixture
def over_tcp() -> Iterator[tuple[socket.socket, Connection]]:
    """Return a connection whose client's system takes few bytes."""
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.socket() as theirs:
        theirs.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        theirs.connect(listener.getsockname())
        with Connection.over(listener.accept()[0]) as connection:
            yield theirs, connection


@pytest.mark.parametrize("whole", [False, True])
def test_stalled_client_is_let_go_at_its_time_although_the_system_still_takes_bytes(
    over_tcp: tuple[socket.socket, Connection], whole: bool
) -> None:
    _, connection = over_tcp
    connection.begin_answer()
    connection.settimeout(1.0)
    connection.keeps_rest = whole
    started, num_sends = time.monotonic(), 0

    def send_on() -> None:
        nonlocal num_sends
        connection.sendall(b"x" * (10_000_000 if whole else 1000))  # the system takes pieces for a while
        while time.monotonic() < started + PATIENCE:
            connection.flush() if whole else connection.sendall(b"x" * 1000)
            num_sends += 1
            time.sleep(0.01)

    with pytest.raises(TimeoutError, match="took nothing"):
        send_on()
    assert time.monotonic() - started >= 1.0
    assert num_sends <= 200  # a hundred a second at most, on the fastest machine; the system takes thousands


def test_client_that_reads_slowly_is_kept(pair: tuple[socket.socket, Connection]) -> None:
    theirs, connection = pair
    connection.settimeout(1.0)
    filled(connection)
    until = time.monotonic() + 3.0
    while time.monotonic() < until and connection.num_unsent:
        theirs.recv(100_000)
        connection.flush()
        time.sleep(0.05)
