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

STALL_SECONDS: Final = 60.0  # a client that sends and receives nothing for this long is dropped
ANSWER_START: Final = b"HTTP/1."
_GONE: Final = select.POLLHUP | select.POLLERR
_ENDED: Final = getattr(select, "POLLRDHUP", 1 << 16)  # Linux has it
PROBE_SECONDS: Final = 1.0  # between two probes of a client that sends no more; doubles each time


class Connection(socket.socket):
    """A socket with time-outs; there is no other mode."""

    _seconds: float = STALL_SECONDS
    _receive_seconds = _send_seconds = 0.0  # as last set in the kernel
    _lock: threading.Lock  # guards the next two: the thread that probes is not the one that answers
    _is_pending = False  # an answer of which nothing but probes was sent
    _num_probes = 0  # bytes of its first line that were sent

    @classmethod
    def over(cls, accepted: socket.socket) -> Self:
        """Take over an accepted connection; the old object is detached."""
        connection = cls(accepted.family, accepted.type, accepted.proto, fileno=accepted.detach())
        super(cls, connection).setblocking(True)  # noqa: FBT003 (the socket's own signature)
        connection._lock = threading.Lock()
        return connection

    def await_answer(self) -> None:
        """Allow `probe` to send the first bytes of the answer."""
        with self._lock:
            self._is_pending = True

    def probe(self) -> bool:
        """Send a byte of the answer to find out whether the client is still there; False where none may be sent."""
        with self._lock:
            byte = ANSWER_START[self._num_probes : self._num_probes + 1]
            if not self._is_pending or not byte:
                return False
            with contextlib.suppress(OSError):  # the next look at the connection finds the reason
                self._num_probes += super().send(byte, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
            return True

    def begin_answer(self) -> int:
        """End the probes, and return how many bytes of the head the client already has; called before the head."""
        with self._lock:
            sent, self._num_probes, self._is_pending = self._num_probes, 0, False
        return sent

    def settimeout(self, value: float | None) -> None:
        """Set the seconds for each receive and each send; None stands for STALL_SECONDS."""
        self._seconds = STALL_SECONDS if value is None else max(value, 0.001)

    def gettimeout(self) -> float | None:
        """Return the seconds, as set."""
        return self._seconds

    def setblocking(self, flag: bool) -> None:  # noqa: FBT001 (the socket's own signature)
        """Reset to the longest time-out. gunicorn's loop, which wants a socket that never blocks, only polls it."""
        if flag:
            self.settimeout(None)

    def recv(self, bufsize: int, flags: int = 0) -> bytes:
        """Receive as a socket does. Raises TimeoutError."""
        if self._receive_seconds != self._seconds:
            self._receive_seconds = self._tell_kernel(socket.SO_RCVTIMEO)
        try:
            return super().recv(bufsize, flags)
        except BlockingIOError:
            raise TimeoutError("the client sent nothing in time") from None

    def sendall(self, data: Any, flags: int = 0) -> None:
        """Send as a socket does. Raises TimeoutError."""
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
    """Wait until there is something to read; return False after `timeout` seconds."""
    readable = select.poll()
    readable.register(connection, select.POLLIN)
    return bool(readable.poll(timeout * 1000))


class ClientGone(Exception):
    """The client closed its connection before its answer was ready."""


class Client:
    """The client of one request; without a socket (tests) it never goes away."""

    def __init__(self, connection: Connection | None) -> None:
        self.connection = connection
        self.fileno = -1 if connection is None else connection.fileno()
        self.has_ended = False  # its half of the connection, at the last look
        self._wants_ping = False
        self._probe_at, self._pause = 0.0, PROBE_SECONDS
        if connection is not None:
            connection.settimeout(STALL_SECONDS)
            connection.await_answer()

    @property
    def is_gone(self) -> bool:
        """True once the connection is broken. A client that only sends no more may still wait, and is probed.

        The system of a client that has gone answers the probe with a reset, which the next look finds.
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
        if self.has_ended and time.monotonic() >= self._probe_at:
            self._probe_at, self._pause = time.monotonic() + self._pause, self._pause * 2
            self._wants_ping = not self.connection.probe()
        return False

    def takes_ping(self) -> bool:
        """Tell, once each time, whether a stream should write a comment: nothing else can probe the client any more."""
        wanted, self._wants_ping = self._wants_ping, False
        return wanted


def _events(connection: socket.socket) -> int:
    """Return the events of poll(2), without bytes of a next request; the end of all bytes counts on every system."""
    poll = select.poll()  # a new one, because several threads may call
    poll.register(connection, select.POLLIN | (_ENDED & 0xFFFF))
    events = sum(mask for _, mask in poll.poll(0))
    if events == select.POLLIN and not connection.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT):
        return _ENDED
    return events
