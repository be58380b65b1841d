"""A client's connection, as cheap to use as it can be while other threads want the interpreter.

With Python's own time-outs every receive and send waits in a second call of the kernel, and every change of them is a
third. All of these let the interpreter go, and beside a busy engine it has to be waited for each time. So the
connection always blocks, and the kernel itself keeps the time (SO_RCVTIMEO, SO_SNDTIMEO). It is told of a new time-out
when something is received or sent under it: gunicorn sets several a request under which nothing is.

A client may end its half of the connection and still wait for its answer (RFC 9112, 9.6). From here that looks like a
client that has gone, until something is sent: only the system of one that has gone refuses it. So while an answer is
awaited, the first bytes of it, which are the same whatever it will be, can be sent one by one as questions.
"""

from __future__ import annotations

import contextlib
import select
import socket
import struct
import threading
from typing import Any, Final, Self

__all__ = ["STALL_SECONDS", "Connection", "has_come"]

STALL_SECONDS: Final = 60.0  # a client that takes or gives nothing for so long is let go
ANSWER_START: Final = b"HTTP/1."


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
