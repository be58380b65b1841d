"""Clients that go away, noticed when it happens: one thread sleeps on the sockets of all requests under way.

The thread of a request sleeps until the engine has news for it. If it looked at its client's socket now and then
instead, an engine of fast steps would do hundreds of them for nobody before each look. Knows nothing of HTTP.

A connection is told to the kernel once, at its first request, and stays with it until it is closed: what is done for
every request are two entries of a table.
"""

from __future__ import annotations

import os
import select
import socket
import threading
import weakref
from collections.abc import Callable

from meari.service.process.client import Client

__all__ = ["Disconnects"]

CallBack = tuple[Client, Callable[[], None]]


class Disconnects:
    """Calls back for each client that goes away; safe from any thread.

    Where there is no epoll it does nothing, and a client is missed at its request's next look only.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()  # no call of the kernel is made under it but for clients that went away
        self._watched: dict[int, CallBack] = {}  # by file descriptor, as are the next two
        self._known: dict[int, weakref.ref[socket.socket]] = {}  # connections that the kernel watches
        self._ended: set[int] = set()  # send no more, or have gone
        self._epoll = select.epoll() if hasattr(select, "epoll") else None
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Start the thread."""
        if self._epoll is not None:
            end, self._end = os.pipe()
            self._thread = threading.Thread(target=self._run, args=(self._epoll, end), name="disconnects", daemon=True)
            self._thread.start()

    def stop(self) -> None:
        """End the thread."""
        if self._thread is not None:
            os.close(self._end)
            self._thread.join()
            self._thread = None

    def watch(self, client: Client, on_gone: Callable[[], None]) -> None:
        """Call `on_gone` from the thread, once, when the client has gone, unless it is forgotten before."""
        if self._epoll is None or client.connection is None:
            return
        descriptor = client.fileno
        with self._lock:
            self._watched[descriptor] = client, on_gone
            known = self._known.get(descriptor)
            is_new = known is None or known() is not client.connection
            if is_new:
                self._known[descriptor] = weakref.ref(client.connection)
                self._ended.discard(descriptor)
            elif descriptor in self._ended:
                self._tell(descriptor)
        if is_new:
            events = select.EPOLLRDHUP | select.EPOLLET  # told once
            try:
                self._epoll.register(descriptor, events)
            except FileExistsError:
                self._epoll.modify(descriptor, events)

    def forget(self, client: Client) -> None:
        """Before the connection is closed here or serves its next request. `on_gone` is not called any more."""
        with self._lock:
            self._watched.pop(client.fileno, None)

    def _tell(self, descriptor: int) -> None:
        """Call back, if it is that client who has gone: the number may have been another connection's before.

        One who only sends no more is asked by `is_gone`; if that is refused, there is a next event.
        """
        client, on_gone = self._watched[descriptor]
        if client.is_gone:
            del self._watched[descriptor]
            on_gone()
        elif not client.has_ended:
            self._ended.discard(descriptor)

    def _run(self, epoll: select.epoll, end: int) -> None:
        news = select.poll()
        news.register(epoll, select.POLLIN)
        news.register(end, select.POLLHUP)
        while not any(descriptor == end for descriptor, _ in news.poll()):
            for descriptor, _ in epoll.poll(0):
                with self._lock:
                    self._ended.add(descriptor)
                    if descriptor in self._watched:
                        self._tell(descriptor)
        os.close(end)
