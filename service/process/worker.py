"""A gunicorn worker that keeps answering while it drains, and wakes few threads per request.

Input: connections of clients, signals. Output: answers of the application, refusals of malformed requests. Must not
know: onnxruntime, Flask.

gunicorn's gthread worker closes its port at once on SIGTERM: probes of readiness then meet a closed or silent port.
This one tells the application to refuse work, keeps the port open until no request is in progress (or the grace period
is over), and then ends as gunicorn does; also by itself when an engine cannot go on. The master then starts another.

gunicorn's worker gives a thread to a connection before it knows that a request will come. Here the loop collects
requests, and a thread gets a whole one: a slow or silent client holds none, and neither does one that is slow to take
its answer (`waiting.py`).

gunicorn's worker hands a connection back to its loop after every answer, and the loop hands the next request to another
thread: two threads are woken for nothing. Here a thread stays with its connection for a moment.

gunicorn's worker accepts any connection that it can get, from its first moment, until idle ones use up its limit. This
one accepts while it has something to answer with, or nobody else has (`Place.accepts`), lets workers with fewer
connections accept first, and closes idle ones.
"""

from __future__ import annotations

import errno
import signal
import socket
import sys
import time
from types import FrameType
from typing import Any, Final

from gunicorn.http import wsgi
from gunicorn.http.errors import NoMoreData, ParseException

from meari.errors import MAY_QUOTE, Bound, EngineFailed, Problem
from meari.runtime.machine import limit_arenas, map_large_pieces
from meari.service.clients import BODY_SECONDS, Connection
from meari.service.host import WorkerState
from meari.service.log import flush_log
from meari.service.process.http import Held, JoinedResponse, QuickConfig, Stage, Waits
from meari.service.process.refusals import WORK_PATHS, WORK_TARGETS, Head, WaitingBody, malformed, overloaded
from meari.service.process.tls import TlsConnection
from meari.service.process.waiting import RECEIVE_BYTES, CollectingWorker
from meari.service.requests.origins import CAME_AT, HEAD_BYTES, believe_proxies, cors_headers
from meari.service.workers import own_place

__all__ = ["MAX_STAYING", "DrainingWorker"]

CHECK_SECONDS: Final = 0.05
OBSERVE_SECONDS: Final = 0.5  # between two updates of the metrics
MAX_STAYING: Final = 64  # threads that wait for the next request on their connection,
STAY_SECONDS: Final = 0.05  # so long
MAX_ACCEPTED: Final = 64  # connections, before the loop looks at those that it has
HOLD_SECONDS: Final = 0.00025  # an idle worker wakes up within it
LAST_SECONDS: Final = 2.0  # of an idle connection, once no more are accepted
CLIENT_ERRORS: Final = (ConnectionError, TimeoutError, NoMoreData)  # of a connection, as the next
CLIENT_NUMBERS: Final = (errno.ENOTCONN, errno.EHOSTUNREACH, errno.ENETUNREACH, errno.ENETDOWN, errno.EHOSTDOWN)
FULL: Final = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)


class DrainingWorker(CollectingWorker):
    """A collecting worker with a drain before its end, and threads that stay with their connections."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._staying: set[object] = set()  # connections; `add` and `discard` are atomic
        self._observed_at = 0.0

    def init_process(self) -> None:
        """Load the application, and run the loop until the end; called in the new process."""
        limit_arenas()
        map_large_pieces()
        self.cfg = QuickConfig(self.cfg)
        self.place = own_place()
        try:
            super().init_process()
        except Exception:
            if self.booted or not self.place.board.was_ready:
                raise
            self.log.exception("the worker cannot start")  # gunicorn would end the others, too
            sys.exit(1)

    def is_parent_alive(self) -> bool:
        """Tell whether the master lives; if it was killed, leave the port to the next one, and end."""
        if super().is_parent_alive():
            return True
        if self.service is not None:
            self.service.drain.begin()
        self.alive = False
        self.set_accept_enabled(enabled=False)
        for listener in self.sockets:
            listener.close()
        return False

    def set_accept_enabled(self, enabled: bool) -> None:  # noqa: FBT001 (gunicorn's own)
        """Accept connections, if this worker is to; called at every turn of the loop."""
        super().set_accept_enabled(enabled and self.place.accepts)

    def accept(self, listener: Any) -> None:
        """Accept new connections before any thread gets a request of theirs: all, if no other worker has fewer."""
        for _ in range(MAX_ACCEPTED):
            if not self._accept_one(listener) or self.place.has_clearly_more:
                return

    def _accept_one(self, listener: Any) -> bool:
        """Accept a new connection, if no other worker was quicker; return whether there was one."""
        if not self.place.accepts or self.nr_conns >= self.worker_connections:  # since the last turn of the loop
            self.set_accept_enabled(enabled=False)
            return False
        if self.place.has_clearly_more:
            time.sleep(HOLD_SECONDS)
        try:
            accepted, address = listener.accept()
        except OSError as error:
            if error.errno in FULL:  # of the whole machine: nothing is lost, the client waits at the door
                self.log.warning("no connection can be taken: %s", error.strerror)
                time.sleep(CHECK_SECONDS)
            elif error.errno not in (errno.EAGAIN, errno.ECONNABORTED):
                raise
            return False
        self.nr_conns += 1
        self._make_room()
        self.place.note_connections(self.nr_conns)
        self._take(accepted, address, listener.getsockname())
        return True

    def _take(self, accepted: socket.socket, client: Any, server: Any) -> None:
        """Let a new connection wait for its handshake or its first request, if its client may have one more."""
        if self.certificate is None:
            held = Held(Connection.over(accepted), client, server)
            if self._counts_as_client(held):
                self._receive(held)
            return
        secure = TlsConnection.over(accepted)
        secure.begin(self.certificate.context)
        held = Held(secure, client, server)
        if self._counts_as_client(held):
            self.wait(held, Waits.HANDSHAKE)

    def _counts_as_client(self, held: Held) -> bool:
        """Count a connection for its client's network; refuse it past the bound, if no other gives way."""
        if not held.network or self._trusted_hops:  # every client has the address of the proxy
            held.network = ""
            return True
        self.room.per_network[held.network] += 1
        if self.room.per_network[held.network] > self._max_per_network:
            other = self.room.first_to_give_way(held.network)
            if other is None:
                message = f"more than {self._max_per_network} connections from this address; close some"
                self._refuse(held, message, Bound.CONNECTIONS)
                return False
            self._close(other)
        return True

    def _make_room(self) -> None:
        """Close idle connections at the limit of connections, so that the next client gets in."""
        while self.nr_conns >= self.worker_connections and (held := self.room.first_to_give_way()) is not None:
            self._close(held)

    def handle(self, conn: Any) -> bool:
        """Answer a connection's requests, as long as the next one comes soon; return whether it may be used again."""
        keeps = self.handle_one(conn)
        while keeps and not conn.sock.num_unsent and self._comes_soon(conn):
            conn.is_asked = False
            keeps = self._handle_next(conn)
        return keeps

    def _handle_next(self, held: Held) -> bool:
        """Answer a request that did not come through the loop, or refuse it; the rest as of `handle_one`."""
        try:
            if self._refuse_early(held):
                return held.keeps
        except OSError:
            return False
        self.count(held)
        return self.handle_one(held)

    def count(self, held: Held) -> None:
        """Note that a thread gets a request; one for work counts until the thread is done with it."""
        held.came_at = time.monotonic()
        if self.service is not None and held.incoming.is_for(WORK_TARGETS):
            held.is_counted = True
            self.service.admission.note_received()

    def handle_one(self, held: Held) -> bool:
        """Answer the next request; return True if the connection may be used again."""
        request = None
        try:
            request = held.next_request(self.cfg)
            keeps = self.handle_request(request, held)
        except StopIteration:  # closed between two requests, or by this side
            return False
        except Exception as error:  # noqa: BLE001 (logged there)
            self.handle_error(request, held.sock, held.client, error)
            return False
        finally:
            self._uncount(held)
        try:
            if keeps:
                held.incoming.skip_rest(request.body)
        except (OSError, ParseException):  # in a body that nobody read
            return False
        return keeps

    def _uncount(self, held: Held) -> None:
        is_counted, held.is_counted = held.is_counted, False
        if is_counted and self.service is not None:
            self.service.admission.note_done()

    def _comes_soon(self, held: Held) -> bool:
        """Wait a moment for the next request, unless many threads already do; return whether all of it has come."""
        incoming = held.incoming
        stage = incoming.stage()
        if stage is not Stage.IDLE or len(self._staying) >= MAX_STAYING:
            return stage is Stage.READY
        self._staying.add(held)
        until = time.monotonic() + STAY_SECONDS
        try:
            left = STAY_SECONDS
            while left > 0 and not incoming.has_ended and not incoming.expects_continue:
                held.sock.settimeout(left)
                incoming.add(held.sock.recv(RECEIVE_BYTES))
                if incoming.stage() is Stage.READY:
                    return True
                left = until - time.monotonic()
        except OSError:  # nothing in time, or the client has gone
            pass
        finally:
            self._staying.discard(held)
        return False

    def handle_request(self, req: Any, conn: Any) -> bool:
        """Answer one request as gunicorn does; return True if the connection may be used again.

        Left out is what the configuration switches off: access log, hooks, sendfile, a restart after N requests.
        """
        waits = req._expected_100_continue and not conn.is_asked  # noqa: SLF001 (gunicorn's own, as in the next line)
        req._expected_100_continue = False  # noqa: SLF001 (otherwise gunicorn asks for the body at once)
        response, environ = wsgi.create(req, conn.sock, conn.client, conn.server, self.cfg, JoinedResponse)
        environ["wsgi.multithread"] = True
        environ[CAME_AT], environ[HEAD_BYTES] = conn.came_at, req.num_head_bytes
        environ.pop("HTTP_UPGRADE", None)  # no other protocol is spoken here
        if self.certificate is not None:
            environ["wsgi.url_scheme"] = "https"
        if self._trusted_hops:
            believe_proxies(environ, self._trusted_hops)
        if waits:
            environ["wsgi.input"] = response.waiting = WaitingBody(req.body, conn.sock)
        response.rest_is_lost = lambda: conn.incoming.loses_rest(req.body)
        if not self._may_keep():
            response.force_close()
        try:
            pieces = self._refusal(environ, conn, response) or self.wsgi(environ, response.start_response)
            try:
                for piece in pieces:
                    response.write(piece)
                response.close()
            finally:
                if hasattr(pieces, "close"):
                    pieces.close()
        except OSError:
            raise
        except Exception:
            if not response.headers_sent:
                raise
            self.log.exception("an answer broke off", extra=MAY_QUOTE)
            raise StopIteration from None
        return not response.should_close()

    def _refusal(self, environ: dict[str, Any], held: Held, response: JoinedResponse) -> list[bytes] | None:
        """Begin to refuse a request that there is no room for, and return the body; None for all others."""
        has_place, held.has_place = held.has_place, False
        if has_place or self.service is None or not self.service.admission.may_refuse:
            return None
        if environ["REQUEST_METHOD"] != "POST" or environ["PATH_INFO"] not in WORK_PATHS:
            return None
        refused = overloaded(self.service, environ, is_received=held.is_counted)
        if refused is not None:
            response.start_response(refused.status_line, list(refused.fields.items()))
        return None if refused is None else [refused.body]

    def _refuse_early(self, held: Held) -> bool:
        """Refuse a request by its head, if there is no room for it; from any thread. Raises OSError."""
        held.has_place = self.service is None or not self.service.admission.may_refuse  # kept until a thread comes
        if self.service is None or held.has_place or held.incoming.stage() not in (Stage.BODY, Stage.READY):
            return False
        head = Head.of(held.incoming.head(), held.client[0] if isinstance(held.client, tuple) else "")
        refused = None if head is None else overloaded(self.service, head.environ, is_received=False)
        if head is None or refused is None:
            held.has_place = head is not None and held.incoming.is_whole
            return False
        held.keeps = head.keeps and self._may_keep()
        held.incoming.skip(head.size + head.num_body)
        held.sock.keeps_rest = True
        held.sock.sendall(refused.answer(keeps=held.keeps)[held.sock.begin_answer() :])
        return True

    def _place(self, held: Held) -> None:
        """Refuse a request that there is no room for, without a thread; go on with all others."""
        try:
            if self._refuse_early(held):
                self.room.renew(held)
                if held.sock.num_unsent or not held.keeps:
                    self._answered(held)
                    return
        except OSError:
            self._close(held)
            return
        super()._place(held)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Begin to drain on SIGTERM. A request that arrives from now on is the last one of its connection.

        Connections that were answered before without `Connection: close` stay open: their clients may already be
        sending the next request.
        """
        if self.service is None:
            super().handle_exit(sig, frame)
            return
        self.service.drain.begin(awaits_successor=self.service.registry.serves)
        self.method_queue.defer(lambda: None)  # wakes the loop

    def handle_quit(self, sig: int, frame: FrameType | None) -> None:
        """End at once on SIGINT and SIGQUIT.

        Ctrl-C in a terminal sends the first to all processes, and then the master sends the second: an end that it
        broke off would leave threads in onnxruntime, which abort. A worker that has no application yet gets it first,
        so that there is something to stop.
        """
        for each in (signal.SIGINT, signal.SIGQUIT):
            signal.signal(each, lambda *_: None)  # SIG_IGN would make Python write of one that is on its way
        if self.service is None:
            super().handle_exit(sig, frame)
        else:
            super().handle_quit(sig, frame)

    def handle_error(self, req: Any, client: Any, addr: object, exc: Exception) -> None:
        """Answer bytes that are no request with the same body as every other error."""
        is_half = req is None and isinstance(exc, TimeoutError | NoMoreData)  # a part of a request arrived
        if not is_half and (isinstance(exc, CLIENT_ERRORS) or getattr(exc, "errno", None) in CLIENT_NUMBERS):
            self.log.debug("a client has gone: %s", type(exc).__name__)
            return
        known = req or getattr(exc, "request", None)  # as far as it was understood
        origins = () if self.service is None else self.service.settings.cors_origins
        headers = cors_headers(origins, known.origin if known else None)
        refused = malformed(exc, addr[0] if isinstance(addr, tuple) else "", known.target if known else "", headers)
        if refused.status == EngineFailed.status:
            number = refused.fields["X-Request-Id"]
            self.log.error("request %s could not be handled", number, exc_info=exc, extra=MAY_QUOTE)
        try:
            client.keeps_rest = True
            client.sendall(refused.answer()[client.begin_answer() :])
        except OSError:
            self.log.debug("a client did not wait for its refusal")

    def wait_for_and_dispatch_events(self, timeout: float) -> None:
        """Handle what comes for a moment; while draining, look whether to stop.

        What belongs to a turn of the loop costs as much as a refusal: under overload there would be a turn for each.
        """
        self._look_around()
        service = self.service
        # A worker may have become ready since it last decided whether to accept: it waits long only once it does.
        is_settled = self.place.state is WorkerState.READY and self._accepting
        longest = timeout if is_settled else min(timeout, CHECK_SECONDS)
        pause = min(longest, self.room.seconds_left())
        until = time.monotonic() + CHECK_SECONDS
        is_draining = service is not None and service.drain.has_begun
        while pause >= 0:
            super().wait_for_and_dispatch_events(pause)
            self.start_whole()
            self.place.note_connections(self.nr_conns)  # others compare theirs with it before they accept
            if service is not None:
                service.admission.num_waiting_bytes = self.room.num_bytes
                if is_draining or service.drain.has_begun:
                    break
            pause = until - time.monotonic()
        for held in self.room.overdue():
            self._end_wait(held)
        self.start_whole()
        self._make_room()
        if is_draining and service is not None and service.drain.may_stop(service.admission.num_requests):
            self.alive = False

    def _look_around(self) -> None:
        """Tell the others how this worker does; now and then take over what was counted."""
        self.place.refresh()
        self.place.note_connections(self.nr_conns)
        if not self.alive:
            self.room.hurry(Waits.IDLE, LAST_SECONDS)
        if self.service is None or time.monotonic() - self._observed_at < OBSERVE_SECONDS:
            return
        self._observed_at = time.monotonic()
        self.service.observe()
        if self.certificate is not None:
            self.certificate.refresh()
            self.service.metrics.observe_certificate(self.certificate.expires_at)
        flush_log()
        if self.service.registry.report_failed_engine():
            self.service.drain.begin(awaits_successor=False)

    def _end_wait(self, held: Held) -> None:
        """Go on with a connection whose time is up."""
        if held.is_paused:
            return
        if held.waits is Waits.ANSWER:
            self._on_event(held)
        elif held.waits in (Waits.HEAD, Waits.BODY):
            self._refuse_part(held, Problem("body", reason=f"not complete after {BODY_SECONDS:g} seconds"))
        else:
            self._close(held)

    def _may_keep(self) -> bool:
        """Tell whether this connection may serve another request, which should reach a worker that is ready."""
        return bool(self.alive and self.place.state is WorkerState.READY and self.cfg.keepalive)
