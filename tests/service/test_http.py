"""Test how responses are written to the connection, and how a worker reads gunicorn's configuration."""

from __future__ import annotations

from types import SimpleNamespace
from typing import cast

import pytest
from gunicorn.config import Config

from meari.service.clients import Connection
from meari.service.process.http import Incoming, JoinedResponse, QuickConfig, Stage


class Wire:
    """Connection that records every write."""

    def __init__(self, num_probes: int = 0) -> None:
        self.writes: list[bytes] = []
        self.num_probes = num_probes
        self.filler = b""

    def sendall(self, data: bytes) -> None:
        self.writes.append(data)

    def begin_answer(self) -> int:
        return self.num_probes


def answer(wire: Wire, *pieces: bytes, method: str = "POST", **headers: str) -> None:
    request = SimpleNamespace(method=method, version=(1, 1), should_close=lambda: False)
    response = JoinedResponse(request, wire, Config())
    response.start_response("200 OK", [(name.replace("_", "-"), value) for name, value in headers.items()])
    for piece in pieces:
        response.write(piece)
    response.close()


def test_response_of_known_length_is_one_write() -> None:
    wire = Wire()
    answer(wire, b"hello", Content_Length="5")
    (sent,) = wire.writes
    head, _, body = sent.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 OK\r\n")
    assert b"\r\nContent-Length: 5" in head
    assert body == b"hello"


def test_stream_sends_its_head_with_the_first_piece() -> None:
    wire = Wire()
    answer(wire, b"first", b"", b"a second piece")
    first, second, end = wire.writes
    assert b"Transfer-Encoding: chunked" in first
    assert first.endswith(b"\r\n\r\n5\r\nfirst\r\n")
    assert second == b"E\r\na second piece\r\n"
    assert end == b"0\r\n\r\n"


def test_head_bytes_sent_as_probes_are_not_sent_again() -> None:
    wire = Wire(num_probes=3)
    answer(wire, b"hello", Content_Length="5")
    assert wire.writes[0].startswith(b"P/1.1 200 OK\r\n")


@pytest.mark.parametrize("pieces", [(), (b"",), (b"what nobody asked for",)])
def test_response_to_a_head_request_has_no_body(pieces: tuple[bytes, ...]) -> None:
    wire = Wire()
    answer(wire, *pieces, method="HEAD", Content_Length="21")
    (sent,) = wire.writes
    assert sent.startswith(b"HTTP/1.1 200 OK\r\n")
    assert sent.endswith(b"\r\n\r\n")


def test_empty_stream_is_one_write() -> None:
    wire = Wire()
    answer(wire)
    (sent,) = wire.writes
    assert sent.endswith(b"\r\n\r\n0\r\n\r\n")


def test_setting_is_read_once() -> None:
    config = Config()
    quick = QuickConfig(config)
    before = quick.keepalive
    assert before == config.keepalive != 7
    config.set("keepalive", 7)
    assert quick.keepalive == before
    with pytest.raises(AttributeError):
        quick.no_such_setting  # noqa: B018


HEAD = b"POST /score HTTP/1.1\r\nHost: x\r\n"
CHUNKED = HEAD + b"Transfer-Encoding: chunked\r\n\r\n"


def stage_of(data: bytes, *, ended: bool = False) -> Stage:
    """Return the stage of a request that comes byte by byte; all of it at once must give the same."""
    stages = []
    for pieces in ([data], [data[at : at + 1] for at in range(len(data))]):
        incoming = Incoming(cast(Connection, None))
        for piece in pieces:
            incoming.add(piece)
            incoming.stage()
        incoming.has_ended = ended
        stages.append(incoming.stage())
    assert stages[0] is stages[1]
    return stages[0]


@pytest.mark.parametrize(
    ("data", "stage"),
    [
        (b"", Stage.IDLE),
        (b"P", Stage.HEAD),
        (b"\r", Stage.HEAD),
        (b"\r\n", Stage.HEAD),
        (b"\r\nPOST", Stage.HEAD),
        (HEAD, Stage.HEAD),
        (HEAD + b"\r", Stage.HEAD),
        (HEAD + b"\r\n", Stage.READY),
        (HEAD + b"Content-Length: 0\r\n\r\n", Stage.READY),
        (HEAD + b"content-LENGTH:2\r\n\r\n{", Stage.BODY),
        (HEAD + b"content-LENGTH: 2 \r\n\r\n{}", Stage.READY),
        (HEAD + b"Content-Length: 2\r\n\r\n{}GET / HTTP", Stage.READY),
        (CHUNKED, Stage.BODY),
        (CHUNKED + b"2", Stage.BODY),
        (CHUNKED + b"2\r\n{}", Stage.BODY),
        (CHUNKED + b"2;a=b\r\n{}\r\n0\r\n", Stage.BODY),
        (CHUNKED + b"2\r\n{}\r\n0\r\n\r\n", Stage.READY),
        (CHUNKED + b"0\r\nTrailer: 1\r\n", Stage.BODY),
        (CHUNKED + b"0\r\nTrailer: 1\r\n\r\n", Stage.READY),
    ],
)
def test_thread_is_asked_for_when_a_request_has_come_whole(data: bytes, stage: Stage) -> None:
    assert stage_of(data) is stage
    assert stage_of(data, ended=True) is (Stage.BROKEN if stage in (Stage.HEAD, Stage.BODY) else stage)


@pytest.mark.parametrize(
    "data",
    [
        b"\x16\x03\x01",
        b"{",
        b"\rX",
        b"GET / HTTP/1.1\n",
        b"GET /" + b"a" * 70_000,
        HEAD + b"X: a\n",
        CHUNKED + b"zz",
        CHUNKED + b"2\r\n{}xx",
        CHUNKED + b"-1\r\n",
        HEAD + b"Content-Length: x\r\n\r\n",
        HEAD + b"Content-Length: 9\r\nContent-Length: 9\r\n\r\n",
        HEAD + b"Content-Length: 9\r\nTransfer-Encoding: chunked\r\n\r\n",
        HEAD + b"Transfer-Encoding: gzip\r\n\r\n",
    ],
)
def test_request_that_the_parser_refuses_waits_for_nothing(data: bytes) -> None:
    incoming = Incoming(cast(Connection, None))
    incoming.add(data)
    assert incoming.stage() is (Stage.READY if b"\r\n\r\n" in data else Stage.BROKEN)


def test_waiting_for_the_rest_of_a_body_costs_no_more_with_each_piece() -> None:
    incoming = Incoming(cast(Connection, None))
    incoming.add(HEAD + b"Content-Length: 8000000\r\n\r\n")
    for _ in range(100):
        assert incoming.stage() is Stage.BODY
        incoming.add(b"x" * 80_000)
    assert incoming.stage() is Stage.READY
    head, body = incoming.chunk(), b""
    assert head.endswith(b"\r\n\r\n")
    while piece := incoming.chunk() if len(incoming) else b"":
        assert len(piece) <= 65536
        body += piece
    assert len(body) == 8_000_000
    with pytest.raises(TimeoutError):
        incoming.chunk()


def test_rest_of_a_refused_body_is_skipped_up_to_the_next_request() -> None:
    incoming = Incoming(cast(Connection, None))
    incoming.num_skipped = 5
    incoming.add(b"abc")
    assert incoming.stage() is Stage.REST
    incoming.add(b"deGET / HTTP/1.1\r\n\r\n")
    assert incoming.stage() is Stage.READY
    assert incoming.chunk() == b"GET / HTTP/1.1\r\n\r\n"
