"""Test how responses are written to the connection, and how a worker reads gunicorn's configuration."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from gunicorn.config import Config

from meari.service.process.http import JoinedResponse, QuickConfig


class Wire:
    """Connection that records every write."""

    def __init__(self, num_probes: int = 0) -> None:
        self.writes: list[bytes] = []
        self.num_probes = num_probes

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
