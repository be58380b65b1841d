"""Load from one thread without a library: requests at given times, or as many at once as there are clients.

Input: the port of a service, bytes of requests. Output: what became of each. Must not know: what was asked.

A client of its own for each request would cost more than the answers do, and would be measured in place of the
service. This one is an epoll loop over connections that stay open, and looks at an answer once it has come whole.
"""

from __future__ import annotations

import contextlib
import gc
import heapq
import itertools
import random
import re
import select
import socket
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Final, Self

from tests.patience import PATIENCE

__all__ = ["Load", "Outcome", "Request", "percentile", "poisson"]

PIECE: Final = 1 << 16
LAST_CHUNK: Final = b"\r\n0\r\n\r\n"
_LENGTH: Final = re.compile(rb"content-length: (\d+)", re.IGNORECASE)
_TOKENS: Final = re.compile(rb'"(?:generated|scored|completion)_tokens":(\d+)')


@dataclass(frozen=True)
class Request:
    """A request: its bytes, when it is due, a name for those of its kind, and when its client leaves it."""

    data: bytes
    due: float = 0.0
    kind: str = ""
    leaves_after: float | None = None  # seconds


@dataclass
class Outcome:
    """What became of a request. All times are those of `time.monotonic`; `status` is 0 where no whole answer came."""

    request: Request
    due: float
    status: int = 0
    sent_at: float = 0.0
    first_at: float = 0.0
    ended_at: float = 0.0
    num_tokens: int = 0
    body: bytes = field(default=b"", repr=False)

    @property
    def kind(self) -> str:
        """Name of the request's kind."""
        return self.request.kind

    @property
    def seconds(self) -> float:
        """Time from the moment at which the request was due to the last byte of its answer."""
        return self.ended_at - self.due


@dataclass(eq=False)
class _Connection:
    sock: socket.socket
    outcome: Outcome | None = None
    source: Iterator[Request] | None = None  # of the client's next request
    unsent: memoryview = memoryview(b"")
    events: int = select.EPOLLIN
    received: bytearray = field(default_factory=bytearray)
    size: int = 0  # of the whole answer; -1 for a chunked one, 0 before its head has come


class Load:
    """An epoll loop over connections to one service."""

    def __init__(self, port: int, keep: Callable[[str], bool] = lambda _: False) -> None:
        """keep: tells of a kind whether the bytes of its answers are kept."""
        self._port = port
        self._keep = keep
        self._epoll = select.epoll()
        self._busy: dict[int, _Connection] = {}
        self._idle: list[_Connection] = []
        self._leaving: list[tuple[float, int, _Connection]] = []  # a heap, with the numbers of their requests
        self.outcomes: list[Outcome] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for connection in [*self._busy.values(), *self._idle]:
            connection.sock.close()
        self._epoll.close()

    def open_loop(self, requests: Iterable[Request], patience: float = PATIENCE) -> list[Outcome]:
        """Send each request when it is due, in seconds from now, whatever became of the others; await all answers."""
        start, self.outcomes = time.monotonic() + 0.05, []
        waiting = iter(requests)
        following = next(waiting, None)
        with _no_collections():
            while following is not None or self._busy:
                now = time.monotonic()
                while following is not None and start + following.due <= now:
                    self._send(following, start + following.due)
                    following = next(waiting, None)
                if following is None and now > start + (self._last_due() - start) + patience:
                    break
                left = 0.1 if following is None else start + following.due - time.monotonic()
                self._receive(max(0.0, left))
        return self.outcomes

    def closed_loop(
        self, requests: Iterator[Request], num_clients: int, seconds: float, beside: Iterable[Iterator[Request]] = ()
    ) -> list[Outcome]:
        """Let clients each send a request as soon as their last one is answered; await all answers.

        beside  the requests of each further client
        """
        until, self.outcomes = time.monotonic() + seconds, []
        sources = [*itertools.repeat(requests, num_clients), *beside]
        with _no_collections():
            for source in sources:
                self._send(next(source), time.monotonic(), source)
            while self._busy:
                for following in self._receive(0.1):
                    if following is not None and time.monotonic() < until:
                        self._send(next(following), time.monotonic(), following)
        return self.outcomes

    def _last_due(self) -> float:
        return self.outcomes[-1].due if self.outcomes else 0.0

    def _send(self, request: Request, due: float, source: Iterator[Request] | None = None) -> None:
        connection = self._idle.pop() if self._idle else self._connect()
        connection.source = source
        connection.outcome = Outcome(request, due)
        self.outcomes.append(connection.outcome)
        self._busy[connection.sock.fileno()] = connection
        if request.leaves_after is not None:
            heapq.heappush(self._leaving, (due + request.leaves_after, len(self.outcomes), connection))
        connection.unsent = memoryview(request.data)
        connection.outcome.sent_at = time.monotonic()
        self._send_on(connection)

    def _send_on(self, connection: _Connection) -> None:
        with contextlib.suppress(OSError):  # the loop finds the connection full, or closed
            while connection.unsent:
                connection.unsent = connection.unsent[connection.sock.send(connection.unsent) :]
        events = select.EPOLLIN | (select.EPOLLOUT if connection.unsent else 0)
        if events != connection.events:
            connection.events = events
            self._epoll.modify(connection.sock, events)

    def _connect(self) -> _Connection:
        sock = socket.create_connection(("127.0.0.1", self._port), timeout=PATIENCE)
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._epoll.register(sock, select.EPOLLIN)
        return _Connection(sock)

    def _leave(self, ended: list[Iterator[Request] | None]) -> float:
        """Close connections whose clients leave now; return the seconds until the next one."""
        while self._leaving and self._leaving[0][0] <= time.monotonic():
            _, number, connection = heapq.heappop(self._leaving)
            outcome = self.outcomes[number - 1]
            if connection.outcome is outcome:
                outcome.ended_at = time.monotonic()
                self._end(connection, keeps=False)
                ended.append(connection.source)
        return self._leaving[0][0] - time.monotonic() if self._leaving else PATIENCE

    def _receive(self, seconds: float) -> list[Iterator[Request] | None]:
        """Receive what comes within `seconds`; return the sources of the requests that have ended."""
        ended: list[Iterator[Request] | None] = []
        seconds = min(seconds, self._leave(ended))
        for descriptor, events in self._epoll.poll(0 if ended else max(0.0, seconds)):
            connection = self._busy.get(descriptor)
            if connection is not None and events == select.EPOLLOUT:
                self._send_on(connection)
                continue
            if connection is None:  # closed by the service between two requests
                self._drop(next(each for each in self._idle if each.sock.fileno() == descriptor))
                continue
            if self._take(connection):
                ended.append(connection.source)
        return ended

    def _take(self, connection: _Connection) -> bool:
        outcome, received = connection.outcome, connection.received
        assert outcome is not None
        try:
            piece = connection.sock.recv(PIECE)
        except BlockingIOError:
            return False
        except OSError:
            piece = b""
        now = time.monotonic()
        received += piece
        outcome.first_at = outcome.first_at or now
        if not connection.size:
            connection.size = _whole_size(received)
        size = connection.size
        whole = received.endswith(LAST_CHUNK, -7) if size < 0 else 0 < size <= len(received)
        if not piece or whole:
            outcome.ended_at = now
            if whole:
                outcome.status = int(received[9:12])
                found = _TOKENS.search(received, max(0, len(received) - 400)) if outcome.status == 200 else None
                outcome.num_tokens = int(found[1]) if found else 0
            if self._keep(outcome.kind):
                outcome.body = bytes(received)
            self._end(connection, keeps=bool(piece))
        return bool(not piece or whole)

    def _end(self, connection: _Connection, *, keeps: bool) -> None:
        del self._busy[connection.sock.fileno()]
        keeps = keeps and b"onnection: close" not in connection.received[:400]
        connection.outcome, connection.size, connection.unsent = None, 0, memoryview(b"")
        connection.received.clear()
        self._idle.append(connection)
        if not keeps:
            self._drop(connection)

    def _drop(self, connection: _Connection) -> None:
        self._idle.remove(connection)
        self._epoll.unregister(connection.sock)
        connection.sock.close()


def _whole_size(received: bytearray) -> int:
    end = received.find(b"\r\n\r\n")
    if end < 0:
        return 0
    found = _LENGTH.search(received, 0, end)
    return end + 4 + int(found[1]) if found else -1


@contextlib.contextmanager
def _no_collections() -> Iterator[None]:
    """Keep the garbage collector from stopping the loop."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def poisson(rate: float, seconds: float, make: Callable[[], Request], choice: random.Random) -> Iterator[Request]:
    """Yield requests at the times of a Poisson process with `rate` of them a second."""
    due = choice.expovariate(rate)
    while due < seconds:
        made = make()
        yield Request(made.data, due, made.kind)
        due += choice.expovariate(rate)


def percentile(values: Iterable[float], share: float) -> float:
    """Return the value below which that share of all lie; 0 for none."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else 0.0
