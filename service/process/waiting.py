"""Connections that wait in a worker's loop, without a thread, each with a time by which its wait has to end.

Input: connections, what comes on them, the time. Output: connections with a whole request, each to a thread; refusals
of those that are too many or too slow. Must not know: the application but for its settings.

A connection that sends nothing costs an entry of the poller and one here. The time of a wait counts from its
beginning, whatever the client sends meanwhile, so one byte a second gains a client nothing.
"""

from __future__ import annotations

import contextlib
import selectors
import signal
import socket
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from operator import itemgetter
from typing import TYPE_CHECKING, Any, Final

from gunicorn.workers.gthread import ThreadWorker

from meari.errors import Bound, InvalidRequest, Overloaded, Problem
from meari.service.clients import BODY_SECONDS
from meari.service.log import request_id
from meari.service.process.http import CONTINUE, HEAD_SECONDS, Held, Stage, Waits
from meari.service.process.refusals import broken_off, refusal
from meari.service.process.tls import Certificate, NotTls

if TYPE_CHECKING:
    from meari.service.service import Service

__all__ = ["MAX_READING", "NUM_QUICK", "RECEIVE_BYTES", "CollectingWorker", "WaitingRoom"]

RECEIVE_BYTES: Final = 65536
MAX_COLLECTED: Final = 65536  # bytes of a body that is always collected by the loop
MAX_READING: Final = 16  # threads that read larger ones as they come
NUM_QUICK: Final = 4  # threads for requests that wait for nothing, however many come at once
UNSENT_BYTES: Final = 262144  # of an answer, that the system keeps for a client that has no room for them
KEEP_SECONDS: Final = 75.0  # longer than clients keep idle connections, so that the client closes first
ANSWER_LOOK_SECONDS: Final = 1.0  # between two looks whether a client takes its answer


OF_STAGE: Final = {Stage.REST: Waits.END, Stage.IDLE: Waits.IDLE, Stage.HEAD: Waits.HEAD, Stage.BODY: Waits.BODY}
SECONDS: Final = {
    Waits.HANDSHAKE: HEAD_SECONDS,
    Waits.IDLE: KEEP_SECONDS,
    Waits.HEAD: HEAD_SECONDS,
    Waits.BODY: BODY_SECONDS,
    Waits.ANSWER: float("inf"),
    Waits.END: 2.0,
}
SILENT: Final = (Waits.IDLE, Waits.HANDSHAKE)  # nobody waits for an answer


class WaitingRoom:
    """All waiting connections, those of a kind in the order in which their time is up. Only the loop's thread may call.

    on_event   called with a connection when its client sends, or takes more of its answer
    """

    def __init__(
        self,
        poller: selectors.BaseSelector,
        on_event: Callable[[Held], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._poller = poller
        self._on_event = on_event
        self._clock = clock
        self._until: dict[Waits, dict[Held, float]] = {kind: {} for kind in Waits}
        self._looked_at = 0.0
        self.num_bytes = 0  # of requests and answers that wait
        self.per_network: Counter[str] = Counter()  # connections, those in threads included

    def enter(self, held: Held, kind: Waits) -> None:
        """Let a connection wait; one that waits for the same already keeps its time."""
        num_bytes = len(held.incoming) + held.sock.num_unsent + held.sock.own_bytes
        num_bytes = 0 if kind is Waits.END else num_bytes  # soon over, whatever gives way
        self.num_bytes += num_bytes - held.num_bytes
        held.num_bytes = num_bytes
        if held.waits is kind:
            return
        if held.waits is not None:
            del self._until[held.waits][held]
        events = selectors.EVENT_WRITE if kind is Waits.ANSWER else selectors.EVENT_READ
        if held.waits is None:
            self._poller.register(held, events, self._on_event)
        elif Waits.ANSWER in (kind, held.waits):
            self._poller.modify(held, events, self._on_event)
        held.waits = kind
        self._until[kind][held] = self._clock() + SECONDS[kind]

    def renew(self, held: Held) -> None:
        """Give a wait its whole time again, for the next request."""
        if held.waits is not None:
            del self._until[held.waits][held]
            self._until[held.waits][held] = self._clock() + SECONDS[held.waits]

    def leave(self, held: Held) -> None:
        """End a wait, before a thread takes the connection or it is closed."""
        if held.waits is None:
            return
        del self._until[held.waits][held]
        self._poller.unregister(held)
        self.num_bytes -= held.num_bytes
        held.waits, held.num_bytes = None, 0

    def pause(self, held: Held) -> None:
        """Let no event come for a connection, whose time goes on."""
        self._poller.unregister(held)
        held.is_paused = True

    def go_on(self, held: Held) -> None:
        """End a pause."""
        self._poller.register(held, selectors.EVENT_READ, self._on_event)
        held.is_paused = False

    def seconds_left(self) -> float:
        """Return the time until something has to be done."""
        first = min((next(iter(each.values()), float("inf")) for each in self._until.values()), default=float("inf"))
        if self._until[Waits.ANSWER]:
            first = min(first, self._looked_at + ANSWER_LOOK_SECONDS)
        return max(0.0, first - self._clock())

    def overdue(self) -> Iterator[Held]:
        """Yield the connections whose time is up, and now and then those whose client takes an answer."""
        now = self._clock()
        for kind, waiting in self._until.items():
            if kind is Waits.ANSWER:
                continue
            while waiting and (first := next(iter(waiting.items())))[1] <= now:
                yield first[0]
                if first[0] in waiting:  # nothing was done about it
                    break
        if self._until[Waits.ANSWER] and now >= self._looked_at + ANSWER_LOOK_SECONDS:
            self._looked_at = now
            yield from list(self._until[Waits.ANSWER])

    def hurry(self, kind: Waits, seconds: float) -> None:
        """Shorten the waits of a kind."""
        until = self._clock() + seconds
        self._until[kind] = {held: min(time, until) for held, time in self._until[kind].items()}

    def first_to_give_way(self, network: str | None = None) -> Held | None:
        """Return the connection that is worth least: idle for longest, else in its head for longest.

        One whose next bytes have arrived is not idle, even if the loop does not know of them yet.
        """
        for kind in (Waits.IDLE, Waits.HANDSHAKE, Waits.HEAD):
            for held in self._until[kind]:
                if network in (None, held.network) and held.is_silent:
                    return held
        return None

    def largest_burden(self) -> Held | None:
        """Return the connection whose bytes give way to those of others: idle, else the slowest body, head, reader."""
        for kinds in ((Waits.IDLE,), (Waits.BODY,), (Waits.HEAD, Waits.HANDSHAKE), (Waits.ANSWER,)):
            if first := [each for kind in kinds if (each := next(self._burdens(kind), None))]:
                return min(first, key=itemgetter(1))[0]
        return None

    def _burdens(self, kind: Waits) -> Iterator[tuple[Held, float]]:
        """Yield what holds bytes, with the time at which its wait ends."""
        for held, until in self._until[kind].items():
            if not held.num_bytes:  # nor has any other: without TLS an idle connection holds nothing
                return
            if kind not in SILENT or held.is_silent:
                yield held, until


class RequestThreads(ThreadPoolExecutor):
    """Threads for requests, one from the first moment on. Where no more can be started, these do all the work.

    A container or its host bounds the number of threads, and memory does.
    """

    def __init__(self, max_threads: int, name: str) -> None:
        super().__init__(max_threads, name)
        self.submit(bool)

    def _adjust_thread_count(self) -> None:
        try:
            super()._adjust_thread_count()
        except RuntimeError:
            if not self._threads:
                raise


class CollectingWorker(ThreadWorker):  # type: ignore[misc]
    """gunicorn's gthread worker, whose loop collects requests and gives a thread to each whole one.

    room         made when the loop begins; the loop's thread alone calls what uses it
    service      None until it is loaded
    certificate  of new connections, from the master: the files may be broken now; None where TLS is not spoken
    _quick       pool of the threads for requests that wait for nothing
    """

    alive: bool
    cfg: Any
    wsgi: Any
    room: WaitingRoom
    service: Service | None = None
    certificate: Certificate | None = None

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._whole: list[Held] = []  # requests to be handed to threads
        self._num_reading = self._max_reading = 0  # threads that read a body as it comes
        self._trusted_hops = self._max_per_network = self._max_body_bytes = self._max_waiting_bytes = 0

    def load_wsgi(self) -> None:
        """Make the application, and note what its settings say about connections."""
        super().load_wsgi()
        self._quick = RequestThreads(NUM_QUICK, "quick")
        self.service = self.wsgi.extensions.get("meari")
        if self.service is not None:
            settings = self.service.settings
            self._trusted_hops = settings.trusted_hops
            self._max_per_network = settings.max_connections_per_address
            self._max_body_bytes = settings.max_body_bytes
            self._max_reading = min(MAX_READING, settings.max_requests // 4)  # each holds the place of a request
            self._max_waiting_bytes = settings.max_inflight_bytes // 2

    def get_thread_pool(self) -> RequestThreads:
        """Make the pool of the threads for all other requests."""
        return RequestThreads(self.cfg.threads, "requests")

    def init_signals(self) -> None:
        """Set the worker's handlers, then take the signals that the master has held back for it."""
        super().init_signals()
        signal.pthread_sigmask(signal.SIG_SETMASK, ())

    @classmethod
    def check_config(cls, cfg: Any, log: Any) -> None:
        """Accept every number of threads: connections that wait do not hold them."""

    def run(self) -> None:
        """Run gunicorn's loop, over a room for the connections that wait."""
        self.room = WaitingRoom(self.poller, self._on_event)
        for listener in self.sockets:  # inherited by each connection: the system keeps less for readers that stall
            with contextlib.suppress(OSError, AttributeError):
                listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, UNSENT_BYTES)
        super().run()
        self._quick.shutdown(wait=False)

    def _on_event(self, held: Held) -> None:
        """Go on with a connection whose client has sent something, or taken some of its answer."""
        try:
            if held.waits is Waits.HANDSHAKE:
                self.room.pause(held)
                secure: Any = held.sock
                step = self.tpool.submit(secure.shake_hands)
                step.add_done_callback(lambda done: self.method_queue.defer(self._go_on_shaking, held, done))
            elif held.waits is Waits.ANSWER:
                held.sock.flush()
                if not held.sock.num_unsent:
                    self._go_on(held)
            elif held.waits is Waits.END and not held.keeps:
                if held.sock.recv_now(RECEIVE_BYTES) == b"":
                    self._close(held)
            elif held.waits is not None:  # otherwise it was closed in this turn of the loop
                self._receive(held)
        except OSError:
            self._close(held)

    def _go_on_shaking(self, held: Held, step: Any) -> None:
        """Go on after a thread's step of a handshake, which never waits."""
        self.room.go_on(held)
        error = step.exception()
        if error is None and step.result():
            self._receive(held)
        elif isinstance(error, NotTls):  # in plain text, which this client reads
            with contextlib.suppress(OSError):
                socket.socket.send(held.sock, refusal(error, request_id(None), "", {}).answer())
            self._close(held)
        elif error is not None:
            self.log.debug("a handshake failed: %s", error)
            self._close(held)

    def _receive(self, held: Held) -> None:
        """Take what has come of a request."""
        try:
            data = held.sock.recv_now(RECEIVE_BYTES)
        except OSError:
            self._close(held)
            return
        if data is not None:
            held.incoming.add(data)
        self._place(held)

    def _place(self, held: Held) -> None:
        """Hand a connection to a thread if a whole request has come, else let it wait for what is missing."""
        stage = held.incoming.stage()
        if stage in (Stage.IDLE, Stage.REST) and held.incoming.has_ended:
            self._close(held)
        elif stage is Stage.READY or (stage is Stage.BODY and self._needs_thread(held)):
            self.room.leave(held)
            self.enqueue_req(held)
        elif stage is Stage.BROKEN:
            self._refuse_part(held, broken_off(held.incoming))
        else:
            self.wait(held, OF_STAGE[stage])

    def wait(self, held: Held, kind: Waits) -> None:
        """Let a connection wait. Where all that wait hold too much memory, some are refused or closed."""
        self.room.enter(held, kind)
        if self.room.num_bytes > self._max_waiting_bytes:
            self._shed()

    def _needs_thread(self, held: Held) -> bool:
        """Tell whether a thread should read the body as it comes: it may be refused by the head alone.

        Only a few threads may do so. Without one, the body is collected like a small one.
        """
        incoming = held.incoming
        if incoming.body_size > self._max_body_bytes:  # refused by its head
            return True
        if incoming.body_size <= MAX_COLLECTED and not incoming.expects_continue:
            return False
        if self._num_reading < self._max_reading:
            self._num_reading += 1
            held.is_read = True
            incoming.until = time.monotonic() + BODY_SECONDS
            return True
        if incoming.expects_continue and not held.is_asked:
            held.is_asked = held.sock.keeps_rest = True
            held.sock.sendall(CONTINUE)
        return False

    def enqueue_req(self, conn: Any) -> None:
        """Note a whole request. A thread gets it once the loop has taken in all that came with it.

        Every call of the system lets the threads run that have work: between two connections of a burst each of them
        would do all of its own.
        """
        self.count(conn)
        self._whole.append(conn)

    def start_whole(self) -> None:
        """Hand requests to threads: to a few those that wait for nothing, so that a burst of them starts no others."""
        whole, self._whole = self._whole, []
        for held in whole:
            pool, handle = (self._quick, self.handle_one) if self._is_quick(held) else (self.tpool, self.handle)
            pool.submit(handle, held).add_done_callback(partial(self.method_queue.defer, self.finish_request, held))

    def _is_quick(self, held: Held) -> bool:
        incoming = held.incoming
        is_open = incoming.is_whole and not incoming.is_posted
        return is_open or incoming.announces_more_than(self._max_body_bytes)

    def finish_request(self, conn: Any, fs: Any) -> None:
        """Go on with a connection that comes back from its thread; called by the loop."""
        held: Held = conn
        held.keeps = not fs.cancelled() and fs.exception() is None and bool(fs.result())
        held.incoming.until = 0.0
        self._num_reading -= held.is_read
        held.is_read = held.is_asked = False
        self._answered(held)

    def _answered(self, held: Held) -> None:
        """Send the rest of an answer, or go on at once."""
        if held.sock.num_unsent:
            self.room.enter(held, Waits.ANSWER)
        else:
            self._go_on(held)

    def _go_on(self, held: Held) -> None:
        """Take the next request, or end the connection."""
        if held.keeps:
            self._place(held)
        elif held.incoming.has_ended:
            self._close(held)
        else:
            self._end(held)

    def _end(self, held: Held) -> None:
        """Close when the client does, or soon: a client may lose its answer if it meets a closed connection."""
        try:
            held.sock.shutdown(socket.SHUT_WR)
        except OSError:
            self._close(held)
        else:
            self.room.enter(held, Waits.END)

    def _close(self, held: Held) -> None:
        self.room.leave(held)
        self.nr_conns -= 1
        if held.network:
            self.room.per_network[held.network] -= 1
            if not self.room.per_network[held.network]:
                del self.room.per_network[held.network]
        held.sock.close()

    def _refuse(self, held: Held, message: str, bound: Bound) -> None:
        """Answer a connection without a thread, and end it."""
        held.keeps = False
        error = Overloaded(message, bound)
        if self.service is not None:
            self.service.metrics.note_refused(bound)
        answer = refusal(error, request_id(None), "", {"Retry-After": str(error.retry_after_seconds)}).answer()
        try:
            held.sock.keeps_rest = True
            held.sock.sendall(answer)
        except OSError:
            self._close(held)
        else:
            self._answered(held)

    def _refuse_part(self, held: Held, problem: Problem) -> None:
        """Refuse a request that will not come whole, without a thread; problem: what is wrong with its body."""
        request = None
        try:
            request = held.next_request(self.cfg)
            error: Exception = InvalidRequest(problem)
        except StopIteration:  # nothing but an empty line
            self._close(held)
            return
        except Exception as found:  # noqa: BLE001 (logged where it is answered)
            error = found
        self.handle_error(request, held.sock, held.client, error)
        held.keeps = False
        self._answered(held)

    def _shed(self) -> None:
        """Close idle connections, then refuse the slowest requests, while all that wait hold too much memory."""
        while self.room.num_bytes > self._max_waiting_bytes and (held := self.room.largest_burden()) is not None:
            if held.waits in (*SILENT, Waits.ANSWER):
                self._close(held)
                continue
            held.incoming.skip(len(held.incoming))
            self._refuse(held, "requests that come too slowly hold too much memory; try again", Bound.BYTES)
