"""HTTP on a plain socket: bytes of requests → answers as they came, fast and without a library that would mend them.

Input: the port of a service. Output: answers with their time. Must not know: what was asked.
"""

from __future__ import annotations

import socket
import time
from dataclasses import dataclass
from typing import Final

from tests.patience import PATIENCE

__all__ = ["Answer", "Connection", "Malformed", "answers_of", "post"]

PIECE: Final = 1 << 16
BODYLESS: Final = (204, 304)


class Malformed(Exception):
    """Bytes that are no HTTP answer."""


@dataclass(frozen=True)
class Answer:
    """An answer; `fields` are its headers in lower case."""

    status: int
    fields: dict[str, str]
    body: bytes
    seconds: float = 0.0


def post(path: str, body: bytes, *fields: str) -> bytes:
    """Return the bytes of a POST of JSON, with further header lines."""
    lines = [f"POST {path} HTTP/1.1", "Host: localhost", "Content-Type: application/json", *fields]
    return "\r\n".join([*lines, f"Content-Length: {len(body)}", "", ""]).encode("latin-1") + body


class Connection:
    """A connection that is kept alive and has at most one request on its way; it connects again after an end."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._socket: socket.socket | None = None
        self._buffer = b""
        self.sent_at = 0.0

    def send(self, request: bytes, *, is_last: bool = False) -> None:
        """Send a request; after the last one, close the sending side."""
        if self._socket is None:
            self._socket = socket.create_connection(("127.0.0.1", self._port), timeout=PATIENCE)
            self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._buffer = b""
        self.sent_at = time.monotonic()
        self._socket.sendall(request)
        if is_last:
            self._socket.shutdown(socket.SHUT_WR)

    def has_ended(self) -> bool:
        """Wait for the next byte, and tell whether the service closed the connection in place of it."""
        if self._socket is None:
            return True
        if not self._buffer:
            self._buffer = self._socket.recv(PIECE)
        return not self._buffer

    def answer(self, *, is_head: bool = False) -> Answer:
        """Wait for the answer to what was sent. Raises Malformed, or ConnectionError where none came."""
        status, fields = self._head()
        while status == 100:
            status, fields = self._head()
        body = b"" if is_head or status in BODYLESS else self._body(fields)
        if fields.get("connection", "").lower() == "close":
            self.close()
        return Answer(status, fields, body, time.monotonic() - self.sent_at)

    def ask(self, request: bytes) -> Answer:
        """Send a request and wait for its answer."""
        self.send(request)
        return self.answer()

    def close(self) -> None:
        """Close the connection; the next request opens another one."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _head(self) -> tuple[int, dict[str, str]]:
        while (end := self._buffer.find(b"\r\n\r\n")) < 0:
            self._read()
        head, self._buffer = self._buffer[:end], self._buffer[end + 4 :]
        return parse_head(head)

    def _body(self, fields: dict[str, str]) -> bytes:
        if fields.get("transfer-encoding") == "chunked":
            return self._chunks()
        if "content-length" not in fields:
            raise Malformed("an answer without a length")
        return self._take(int(fields["content-length"]))

    def _chunks(self) -> bytes:
        pieces: list[bytes] = []
        while True:
            while (end := self._buffer.find(b"\r\n")) < 0:
                self._read()
            size = int(self._buffer[:end], 16)
            self._buffer = self._buffer[end + 2 :]
            piece = self._take(size + 2)
            if not size:
                return b"".join(pieces)
            pieces.append(piece[:-2])

    def _take(self, size: int) -> bytes:
        while len(self._buffer) < size:
            self._read()
        data, self._buffer = self._buffer[:size], self._buffer[size:]
        return data

    def _read(self) -> None:
        assert self._socket is not None, "nothing was sent"
        piece = self._socket.recv(PIECE)
        if not piece:
            self.close()
            raise ConnectionError("the connection was closed before its answer was complete")
        self._buffer += piece


def parse_head(head: bytes) -> tuple[int, dict[str, str]]:
    """Return the status and the headers of an answer. Raises Malformed."""
    first, *lines = head.decode("latin-1").split("\r\n")
    words = first.split(" ", 2)
    if len(words) < 2 or not words[0].startswith("HTTP/1.") or not words[1].isdigit():
        raise Malformed(first[:100])
    return int(words[1]), {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}


def answers_of(port: int, data: bytes, *, is_head: bool = False) -> tuple[list[Answer], float]:
    """Send bytes on a connection of their own and close the sending side; return all answers, and the time to the end.

    is_head  the request is a HEAD, whose answer has no body

    Raises Malformed, and ConnectionError where an answer breaks off.
    """
    connection, started, answers = Connection(port), time.monotonic(), []
    try:
        connection.send(data, is_last=True)
        while not connection.has_ended():
            answers.append(connection.answer(is_head=is_head))
    except (ConnectionResetError, BrokenPipeError):
        pass  # a client that goes on sending after its refusal may lose it
    finally:
        connection.close()
    return answers, time.monotonic() - started
