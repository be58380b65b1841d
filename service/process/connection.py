"""A client's connection, as cheap to use as it can be while other threads want the interpreter.

With Python's own time-outs every receive and send waits in a second call of the kernel, and every change of them is a
third. All of these let the interpreter go, and beside a busy engine it has to be waited for each time. So the
connection always blocks, and the kernel itself keeps the time (SO_RCVTIMEO, SO_SNDTIMEO). It is told of a new time-out
when something is received or sent under it: gunicorn sets several a request under which nothing is.
"""

from __future__ import annotations

import socket
import struct
from typing import Any, Self

from service.process.client import STALL_SECONDS

__all__ = ["Connection"]


class Connection(socket.socket):
    """Behaves as a socket with a time-out; there is no other mode."""

    _seconds: float = STALL_SECONDS
    _receive_seconds = _send_seconds = 0.0  # as the kernel was told

    @classmethod
    def over(cls, accepted: socket.socket) -> Self:
        """Take an accepted connection over; the old object is closed by that."""
        connection = cls(accepted.family, accepted.type, accepted.proto, fileno=accepted.detach())
        super(cls, connection).setblocking(True)
        return connection

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
