"""Is the client still there? Asked of its socket, without reading from it. Knows nothing of HTTP."""

from __future__ import annotations

import select
import socket
from typing import Final

__all__ = ["Client", "ClientGone"]

STALL_SECONDS: Final = 60.0  # a client that takes or gives nothing for so long is let go
_GONE: Final = select.POLLHUP | select.POLLERR | getattr(select, "POLLRDHUP", 0)


class ClientGone(Exception):
    """The client closed its connection before its answer was ready."""


class Client:
    """The connection of one request; without a socket (tests) it never goes away."""

    def __init__(self, connection: socket.socket | None) -> None:
        self.connection = connection
        self.fileno = -1 if connection is None else connection.fileno()
        if connection is not None:
            connection.settimeout(STALL_SECONDS)

    @property
    def is_gone(self) -> bool:
        """True once the connection is closed from the other side. Bytes of a next request do not count."""
        if self.connection is None:
            return False
        poll = select.poll()  # its own: several threads may ask
        try:
            poll.register(self.connection, _GONE | select.POLLIN)
            events = sum(mask for _, mask in poll.poll(0))
            return bool(events & _GONE) or (bool(events) and not self.connection.recv(1, socket.MSG_PEEK))
        except (OSError, ValueError):  # closed on this side
            return True
