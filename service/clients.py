"""The clients of requests: their connections, and the watch over clients that go away.

Input: accepted sockets. Output: bytes received and sent, a call for each client that goes away while the engine works
for it (`Disconnects`), and waits that then end early (`Watch`). Must not know: Flask, requests, and answers but for the
first bytes of each.

With Python's own time-outs every receive, send and change of the time-out is another system call. Each of them releases
the interpreter, and beside a busy engine the thread has to wait to get it back. So the kernel itself keeps the time of
a receive (SO_RCVTIMEO), and is told a new one when something is received under it. A send never blocks in the kernel,
where the time would begin again with each part taken: what is left waits for `poll`, or for the worker's loop.

A client may shut down its sending half and still wait for its answer (RFC 9112, 9.6). To the server that looks like a
client that has gone, until something is sent: only then does a client that has gone answer with a reset. So while an
answer is pending, its first bytes, which are the same for every answer, can be sent one by one as probes; in the middle
of a stream it is a comment between two events.

The thread of a request sleeps until the engine has an event for it; between two polls of its client a fast engine would
run hundreds of steps for nobody. So one thread sleeps on the sockets of all requests in flight. A connection is
registered with the kernel once, at its first request: each further one costs two entries of a table.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import socket
import struct
import threading
import time
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, Self

from meari.errors import EngineFailed, NotReady
from meari.runtime.engine import Waitable
from meari.service.workers import Drain

__all__ = ["BODY_SECONDS", "PING", "STALL_SECONDS", "Client", "ClientGone", "Connection", "Disconnects", "Watch"]

STALL_SECONDS: Final = 60.0  # a client that sends and receives nothing for this long is dropped
BODY_SECONDS: Final = 30.0  # from the end of a head to the last byte of its body
PING: Final = b": ping\n\n"  # a comment of a stream
PROGRESS_BYTES: Final = 65536
SIOCOUTQ: Final = 0x5411  # of Linux
ANSWER_START: Final = b"HTTP/1."
_ENDED: Final = getattr(select, "POLLRDHUP", 1 << 16)  # Linux has it
PROBE_SECONDS: Final = 1.0  # between two probes of a client that sends no more; doubles each time
LOOK_SECONDS: Final = 0.25  # between two looks for changes that nothing reports
LATE_SECONDS: Final = 10.0  # past its deadline, when the engine should have ended a request long ago


class Connection(socket.socket):
    """A socket with time-outs; there is no other mode."""

    keeps_rest = False  # `sendall` keeps what the client does not take at once, for `flush`, and does not wait
    own_bytes = 0  # held as long as it is open, beside those of requests and answers
    _seconds: float = STALL_SECONDS
    _receive_seconds = 0.0  # as last set in the kernel
    _look_at: float  # when it is seen next whether the client stalls
    filler = b""  # that means nothing between two writes, in the middle of a stream
    _lock: threading.Lock  # guards sends and the next two: the thread that probes is not the one that answers
    _is_pending = False  # an answer of which nothing but probes was sent
    _num_probes = 0  # bytes of its first line that were sent
    _rest = memoryview(b"")  # of an answer
    _when_sent: Callable[[], None] = staticmethod(lambda: None)
    _num_sent = 0  # bytes that this system has taken
    _due = 0  # of them, what the client's must have taken by the end of the time-out
    _stalled_since: float | None = None

    @classmethod
    def over(cls, accepted: socket.socket) -> Self:
        """Take over an accepted connection; the old object is detached."""
        connection = cls(accepted.family, accepted.type, accepted.proto, fileno=accepted.detach())
        super(cls, connection).setblocking(True)  # noqa: FBT003 (the socket's own signature)
        connection._lock = threading.Lock()
        connection._look_at = time.monotonic() + 1.0
        return connection

    def await_answer(self) -> None:
        """Allow `probe` to send the first bytes of the answer."""
        with self._lock:
            self._is_pending = True

    def probe(self) -> None:
        """Send a little of the answer, if that is possible, to find out whether its client is there. Raises OSError."""
        if not self._lock.acquire(blocking=False):  # more of the answer is being sent, which finds out as well
            return
        try:
            if self._is_pending and self._num_probes < len(ANSWER_START):
                self._num_probes += self._send_probe(ANSWER_START[self._num_probes : self._num_probes + 1])
            elif self.filler and not self._rest:
                sent = self._send_probe(self.filler)
                self._rest = memoryview(self.filler[sent:] if sent else b"")
        finally:
            self._lock.release()

    def _send_probe(self, byte: bytes) -> int:
        return self._send_now(byte)

    def begin_answer(self) -> int:
        """End the probes, and return how many bytes of the head the client already has; called before the head."""
        self.settimeout(None)
        self._stalled_since = None
        with self._lock:
            sent, self._num_probes, self._is_pending, self.filler = self._num_probes, 0, False, b""
        return sent

    def settimeout(self, value: float | None) -> None:
        """Set the seconds for each receive, and for the client to go on taking; None stands for STALL_SECONDS."""
        self._seconds = STALL_SECONDS if value is None else max(value, 0.001)

    def gettimeout(self) -> float | None:
        """Return them."""
        return self._seconds

    def setblocking(self, flag: bool) -> None:  # noqa: FBT001 (the socket's own signature)
        """Reset to the longest time-out if `flag` is true."""
        self._seconds = STALL_SECONDS if flag else self._seconds

    def recv(self, bufsize: int, flags: int = 0) -> bytes:
        """Receive as a socket does. Raises TimeoutError."""
        if self._receive_seconds != self._seconds:
            self._receive_seconds = self._seconds
            seconds = struct.pack("ll", int(self._seconds), int(self._seconds % 1 * 1e6))
            self.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, seconds)
        try:
            return super().recv(bufsize, flags)
        except BlockingIOError:
            raise TimeoutError("the client sent nothing in time") from None

    def recv_now(self, size: int, flags: int = 0) -> bytes | None:
        """Receive what has come; None where nothing has, and no bytes at the end."""
        try:
            return super().recv(size, flags | socket.MSG_DONTWAIT)
        except (BlockingIOError, InterruptedError):
            return None

    def peek(self) -> bytes | None:
        """Look whether something has come, as `recv_now` tells it."""
        return Connection.recv_now(self, 1, socket.MSG_PEEK)

    def sendall(self, data: Any, flags: int = 0) -> None:
        """Send as a socket does, or keep the rest. Raises TimeoutError once the client has stalled.

        A client stalls that takes neither PROGRESS_BYTES nor all that waits in the seconds of the time-out. What has
        come to its system counts as taken, what waits in this one does not.
        """
        with self._lock:
            self._send_all(data)

    def _send_all(self, data: Any) -> None:
        left = memoryview(self._rest.tobytes() + data if self._rest else data)
        self._rest = memoryview(b"")
        while left := left[self._send_now(left) :]:
            if self.keeps_rest:
                self._rest = left
                return
            writable = select.poll()
            writable.register(self, select.POLLOUT)
            writable.poll(min(LOOK_SECONDS, self._seconds / 4) * 1000)
            self._raise_if_stalled(len(left))
        if not self.keeps_rest:
            self._raise_if_stalled(0)

    def _send_now(self, data: Any) -> int:
        """Send what the system takes without waiting."""
        try:
            sent = self.send(data, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
        except (BlockingIOError, InterruptedError):
            return 0
        self._num_sent += sent
        return sent

    @property
    def num_unsent(self) -> int:
        """Bytes of an answer that are kept."""
        return len(self._rest)

    def flush(self) -> None:
        """Send on what was kept. Raises OSError, TimeoutError once the client has stalled."""
        self._rest = self._rest[self._send_now(self._rest) :] or memoryview(b"")  # an empty part would hold the whole
        self._raise_if_stalled(len(self._rest))
        self.when_sent(self._when_sent)

    def when_sent(self, callback: Callable[[], None]) -> None:
        """Call back once nothing is kept any more, or the connection is closed; at once where nothing is kept."""
        self._when_sent = callback if self._rest else Connection._when_sent
        if not self._rest:
            callback()

    def close(self) -> None:
        """Close, whether or not everything was sent."""
        self._rest = memoryview(b"")
        self.when_sent(self._when_sent)
        super().close()

    def _raise_if_stalled(self, num_left: int) -> None:
        now = time.monotonic()
        if now < self._look_at:
            return
        self._look_at = now + min(1.0, self._seconds / 4)
        num_waiting = 0
        with contextlib.suppress(OSError):  # on other systems only what they do not take counts as waiting
            num_waiting = struct.unpack("i", fcntl.ioctl(self, SIOCOUTQ, bytes(4)))[0]
        taken = self._num_sent - num_waiting
        if self._stalled_since is None or taken >= self._due:
            self._stalled_since = now if num_waiting + num_left else None
            self._due = min(self._num_sent + num_left, taken + PROGRESS_BYTES)
        elif now - self._stalled_since >= self._seconds:
            raise TimeoutError("the client took nothing in time")


class ClientGone(Exception):
    """The client closed its connection before its answer was ready."""


class Client:
    """The client of one request; without a socket (tests) it never goes away."""

    def __init__(self, connection: Connection | None) -> None:
        self.connection = connection
        self.fileno = -1 if connection is None else connection.fileno()
        self.has_ended = False  # its half of the connection, at the last look
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
        if events & (select.POLLHUP | select.POLLERR):
            return True
        self.has_ended = bool(events & _ENDED)
        if self.has_ended and time.monotonic() >= self._probe_at:
            self._probe_at, self._pause = time.monotonic() + self._pause, self._pause * 2
            with contextlib.suppress(OSError):  # the next look finds the reason
                self.connection.probe()
        return False


def _events(connection: Connection) -> int:
    """Return the events of poll(2), without bytes of a next request; the end of all bytes counts on every system."""
    poll = select.poll()  # a new one, because several threads may call
    poll.register(connection, select.POLLIN | (_ENDED & 0xFFFF))
    events = sum(mask for _, mask in poll.poll(0))
    if events == select.POLLIN and connection.peek() == b"":
        return _ENDED
    return events


class Disconnects:
    """Calls back for each client that goes away, where there is epoll; safe from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()  # no system call is made under it but for clients that have gone
        self._watched: dict[int, tuple[Client, Callable[[], None]]] = {}  # by file descriptor, as the next two
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
        """Block until there is an event or the request has ended; return False after `seconds`.

        Raises ClientGone, EngineFailed.
        """
        until = self.clock() + seconds
        while not handle.wait(max(0.0, min(LOOK_SECONDS, until - self.clock()))):
            self.check(handle)
            if self.clock() >= until:
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
