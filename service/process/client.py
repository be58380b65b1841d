"""Is the client still there? Asked of its socket, without reading from it. Knows nothing of HTTP."""

from __future__ import annotations

import select
import socket
import time
from typing import Final

from meari.service.process.connection import STALL_SECONDS, Connection

__all__ = ["Client", "ClientGone"]

_GONE: Final = select.POLLHUP | select.POLLERR
_ENDED: Final = getattr(select, "POLLRDHUP", 1 << 16)  # not everywhere
ASK_SECONDS: Final = 1.0  # until a client that sends no more is asked again; doubles each time


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
