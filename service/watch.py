"""Clients that go away while the engine works for them.

Input: the clients of all requests in flight. Output: a call for each client that goes away, when it happens
(`Disconnects`), and waits that end early when nobody is there for the result (`Watch`). Must not know: Flask.

The thread of a request sleeps until the engine has an event for it. If it polled its client's socket instead, a fast
engine would run hundreds of steps for nobody between two polls. So one thread sleeps on the sockets of all requests in
flight. A connection is registered with the kernel once, at its first request, and stays registered until it is closed:
each further request costs two entries of a table.
"""

from __future__ import annotations

import os
import select
import socket
import threading
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from meari.errors import EngineFailed, NotReady
from meari.runtime.engine import Waitable
from meari.service.connection import Client, ClientGone
from meari.service.workers import Drain

__all__ = ["Disconnects", "Watch"]

CallBack = tuple[Client, Callable[[], None]]
LOOK_SECONDS: Final = 0.25  # between two looks for changes that nothing reports
LATE_SECONDS: Final = 10.0  # past its deadline, when the engine should have ended a request long ago


class Disconnects:
    """Calls back for each client that goes away; safe from any thread.

    Without epoll it does nothing, and the request's next look finds the client gone.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()  # no system call is made under it but for clients that have gone
        self._watched: dict[int, CallBack] = {}  # by file descriptor, as the next two
        self._known: dict[int, weakref.ref[socket.socket]] = {}  # connections registered with the kernel
        self._ended: set[int] = set()  # clients that send no more, or have gone
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
        """Call `on_gone` from the thread, once, when the client has gone, unless `forget` comes first."""
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
                self._report(descriptor)
        if is_new:
            events = select.EPOLLRDHUP | select.EPOLLET  # one event per change
            try:
                self._epoll.register(descriptor, events)
            except FileExistsError:
                self._epoll.modify(descriptor, events)

    def forget(self, client: Client) -> None:
        """Stop watching, before the connection is closed here or serves its next request."""
        with self._lock:
            self._watched.pop(client.fileno, None)

    def _report(self, descriptor: int) -> None:
        """Call back if this client has gone: the descriptor may have been another connection's before.

        `is_gone` probes a client that only sends no more; if the probe is refused, another event follows.
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
                        self._report(descriptor)
        os.close(end)


@dataclass(frozen=True, eq=False)
class Watch:
    """Waits of one request, which end early when its client goes away or its worker must end.

    clock  the engine's
    """

    client: Client
    drain: Drain
    clock: Callable[[], float]

    def await_end(self, handle: Waitable) -> None:
        """Block until the request has ended. Raises ClientGone, EngineFailed."""
        while not handle.wait_end(LOOK_SECONDS):
            self.check(handle)
        self._check_cancelled(handle)

    def await_scores(self, handle: Waitable) -> None:
        """Block until all figures are computed: a part of them is no answer.

        Raises ScoreTimeout, NotReady where the worker had to end, EngineFailed, ClientGone.
        """
        self.await_end(handle)
        try:
            handle.raise_for_failure()
        except EngineFailed:
            if self.drain.must_end:
                raise NotReady("the service is shutting down") from None
            raise

    def await_news(self, handle: Waitable, seconds: float) -> bool:
        """Block until there is an event or the request has ended; return False after `seconds`, or to send a ping.

        Raises ClientGone, EngineFailed.
        """
        until = self.clock() + seconds
        while not handle.wait(max(0.0, min(LOOK_SECONDS, until - self.clock()))):
            self.check(handle)
            if self.client.takes_ping() or self.clock() >= until:
                return False
        self._check_cancelled(handle)
        return True

    def end_if_draining(self, handle: Waitable) -> None:
        """Cancel a request that cannot be finished before the worker has to end."""
        if self.drain.must_end and not handle.cancelled:
            handle.cancel()

    def _check_cancelled(self, handle: Waitable) -> None:
        if handle.cancelled and self.client.is_gone:
            raise ClientGone

    def check(self, handle: Waitable) -> None:
        """Cancel a request that nobody waits for any more. Raises ClientGone, EngineFailed."""
        if self.client.is_gone:
            handle.cancel()
            raise ClientGone
        self.end_if_draining(handle)
        if self.clock() > handle.deadline + LATE_SECONDS:
            handle.cancel()
            raise EngineFailed("the engine did not end the request in time")
