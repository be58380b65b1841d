"""The connection of a client: a socket whose time-outs the kernel keeps, and whether the client is still there.

Input: an accepted socket. Output: bytes received and sent, and whether the client has gone, which is found without
reading from the socket. Must not know: requests and answers, but for the first bytes that every answer begins with.

With Python's own time-outs every receive and send waits in a second system call, and every change of the time-out is a
third. Each of them releases the interpreter, and beside a busy engine the thread has to wait to get it back. So the
connection always blocks, and the kernel itself keeps the time (SO_RCVTIMEO, SO_SNDTIMEO). The kernel is told a new
time-out when something is received or sent under it: gunicorn sets several per request under which nothing is.

A client may shut down its sending half and still wait for its answer (RFC 9112, 9.6). To the server that looks like a
client that has gone, until something is sent: only then does a client that has gone answer with a reset. So while an
answer is pending, its first bytes, which are the same for every answer, can be sent one by one as probes.
"""

from __future__ import annotations

import contextlib
import select
import socket
import struct
import threading
import time
from typing import Any, Final, Self

__all__ = ["STALL_SECONDS", "Client", "ClientGone", "Connection", "has_come"]

STALL_SECONDS: Final = 60.0  # a client that takes or gives nothing for so long is let go
ANSWER_START: Final = b"HTTP/1."
_GONE: Final = select.POLLHUP | select.POLLERR
_ENDED: Final = getattr(select, "POLLRDHUP", 1 << 16)  # not everywhere
ASK_SECONDS: Final = 1.0  # until a client that sends no more is asked again; doubles each time


class Connection(socket.socket):
    """Behaves as a socket with a time-out; there is no other mode."""

    _seconds: float = STALL_SECONDS
    _receive_seconds = _send_seconds = 0.0  # as the kernel was told
    _lock: threading.Lock  # of the next two: the thread that asks is not the one that answers
    _is_awaited = False  # an answer, of which no more was sent than questions
    _num_asked = 0  # bytes of its first line

    @classmethod
    def over(cls, accepted: socket.socket) -> Self:
        """Take an accepted connection over; the old object is closed by that."""
        connection = cls(accepted.family, accepted.type, accepted.proto, fileno=accepted.detach())
        super(cls, connection).setblocking(True)
        connection._lock = threading.Lock()
        return connection

    def await_answer(self) -> None:
        """From now on `ask` may send the first bytes of the answer."""
        with self._lock:
            self._is_awaited = True

    def ask(self) -> bool:
        """Ask the client's system whether the client is still there; False where there is nothing to ask with."""
        with self._lock:
            byte = ANSWER_START[self._num_asked : self._num_asked + 1]
            if not self._is_awaited or not byte:
                return False
            with contextlib.suppress(OSError):  # then the state of the connection tells
                self._num_asked += super().send(byte, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
            return True

    def begin_answer(self) -> int:
        """To be called before the head is sent: the bytes of it that the client has already."""
        with self._lock:
            sent, self._num_asked, self._is_awaited = self._num_asked, 0, False
        return sent

    def settimeout(self, value: float | None) -> None:
        """Seconds for each receive and each send; None stands for the longest that any client gets."""
        self._seconds = STALL_SECONDS if value is None else max(value, 0.001)

    def gettimeout(self) -> float | None:
        """Seconds, as set."""
        return self._seconds

    def setblocking(self, flag: bool) -> None:
        """Back to the longest time-out. gunicorn's loop, for which it means to unblock, only asks what is readable."""
        if flag:
            self.settimeout(None)

    def recv(self, bufsize: int, flags: int = 0) -> bytes:
        """Raises TimeoutError."""
        if self._receive_seconds != self._seconds:
            self._receive_seconds = self._tell_kernel(socket.SO_RCVTIMEO)
        try:
            return super().recv(bufsize, flags)
        except BlockingIOError:
            raise TimeoutError("the client sent nothing in time") from None

    def sendall(self, data: Any, flags: int = 0) -> None:
        """Raises TimeoutError."""
        if self._send_seconds != self._seconds:
            self._send_seconds = self._tell_kernel(socket.SO_SNDTIMEO)
        try:
            super().sendall(data, flags)
        except BlockingIOError:
            raise TimeoutError("the client took nothing in time") from None

    def _tell_kernel(self, option: int) -> float:
        seconds = self._seconds
        self.setsockopt(socket.SOL_SOCKET, option, struct.pack("ll", int(seconds), int(seconds % 1 * 1e6)))
        return seconds


def has_come(connection: socket.socket, timeout: float) -> bool:
    """True once there is something to read, False after `timeout` seconds."""
    readable = select.poll()
    readable.register(connection, select.POLLIN)
    return bool(readable.poll(timeout * 1000))


class ClientGone(Exception):
    """The client closed its connection before its answer was ready."""


class Client:
    """The connection of one request; without a socket (tests) it never goes away."""

    def __init__(self, connection: Connection | None) -> None:
        self.connection = connection
        self.fileno = -1 if connection is None else connection.fileno()
        self.has_ended = False  # its half of the connection, when last looked at
        self._wants_sign = False
        self._ask_at, self._pause = 0.0, ASK_SECONDS
        if connection is not None:
            connection.settimeout(STALL_SECONDS)
            connection.await_answer()

    @property
    def is_gone(self) -> bool:
        """True once the connection is broken. A client that only sends no more may wait for its answer, and is asked.

        The system of one that has gone refuses the question, and the next look finds that.
        """
        if self.connection is None:
            return False
        try:
            events = _events(self.connection)
        except (OSError, ValueError):  # closed on this side
            return True
        if events & _GONE:
            return True
        self.has_ended = bool(events & _ENDED)
        if self.has_ended and time.monotonic() >= self._ask_at:
            self._ask_at, self._pause = time.monotonic() + self._pause, self._pause * 2
            self._wants_sign = not self.connection.ask()
        return False

    def takes_sign(self) -> bool:
        """Whether a stream should write something now, for want of another way to ask; True once each time."""
        wanted, self._wants_sign = self._wants_sign, False
        return wanted


def _events(connection: socket.socket) -> int:
    """What poll(2) says. Bytes of a next request do not count; the end of all bytes does on every system."""
    poll = select.poll()  # its own: several threads may ask
    poll.register(connection, select.POLLIN | (_ENDED & 0xFFFF))
    events = sum(mask for _, mask in poll.poll(0))
    if events == select.POLLIN and not connection.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT):
        return _ENDED
    return events
