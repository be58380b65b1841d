"""Clients that go away, noticed when it happens: one thread sleeps on the sockets of all requests under way.

The thread of a request sleeps until the engine has news for it. If it looked at its client's socket now and then
instead, an engine of fast steps would do hundreds of them for nobody before each look. Knows nothing of HTTP.
"""

from __future__ import annotations

import contextlib
import os
import select
import threading
from collections.abc import Callable

from service.process.client import Client

__all__ = ["Disconnects"]


class Disconnects:
    """Calls back for each client that goes away; safe from any thread.

    Where there is no epoll it does nothing, and a client is missed at its request's next look only.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._watched: dict[int, Callable[[], None]] = {}  # by file descriptor
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
        if self._epoll is None or client.fileno is None:
            return
        with self._lock:
            self._watched[client.fileno] = on_gone
            self._epoll.register(client.fileno, select.EPOLLRDHUP | select.EPOLLONESHOT)

    def forget(self, client: Client) -> None:
        """Before the connection is closed here or serves its next request. `on_gone` is not called any more."""
        if self._epoll is None or client.fileno is None:
            return
        with self._lock:
            if self._watched.pop(client.fileno, None) is not None:
                with contextlib.suppress(OSError):
                    self._epoll.unregister(client.fileno)

    def _run(self, epoll: select.epoll, end: int) -> None:
        news = select.poll()
        news.register(epoll, select.POLLIN)
        news.register(end, select.POLLHUP)
        while not any(descriptor == end for descriptor, _ in news.poll()):
            # Asked for under the lock: a descriptor's number may soon be that of another connection.
            with self._lock:
                for descriptor, _ in epoll.poll(0):
                    self._watched[descriptor]()
        os.close(end)
