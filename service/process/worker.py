"""A gunicorn worker that keeps answering while it drains, and wakes few threads per request.

Input: connections of clients, signals. Output: answers of the application, refusals of malformed requests. Must not
know: onnxruntime, Flask.

gunicorn's gthread worker closes its port at once on SIGTERM: probes of readiness then meet a closed or silent port.
This one tells the application to refuse work, keeps the port open until no request is in progress (or the grace period
is over), and then ends as gunicorn does.

gunicorn's worker hands a connection back to its loop after every answer, and the loop hands the next request to another
thread: two threads are woken for nothing. Here a thread stays with its connection for a moment.

gunicorn's worker accepts no new client while idle connections use up its limit. Here the idle ones are closed.

gunicorn's worker accepts any connection that it can get. This one lets workers with fewer connections accept first
(`ConnectionBalance`).

The master process imports this file before it forks. It must not lead to onnxruntime, which starts threads when it is
imported: a fork would lose them, and the worker would abort at its end.
"""

from __future__ import annotations

import errno
import time
from collections import deque
from types import FrameType
from typing import TYPE_CHECKING, Any, Final

from gunicorn.http import wsgi
from gunicorn.http.errors import NoMoreData, ParseException
from gunicorn.util import close_graceful, write_nonblock
from gunicorn.workers.gthread import _DEFER, TConn, ThreadWorker

from meari.errors import MAY_QUOTE, EngineFailed
from meari.runtime.machine import limit_arenas
from meari.service.clients import Connection, has_come
from meari.service.error_body import SAFE_HEADERS
from meari.service.log import NO_ROUTE, RequestLine, flush_log, log_request, request_id
from meari.service.process.http import (
    HEAD_SECONDS,
    JoinedResponse,
    PromptParser,
    QuickConfig,
    WaitingBody,
    answer_bytes,
    translated,
)
from meari.service.requests.origins import believe_proxies, cors_headers
from meari.service.workers import ConnectionBalance

if TYPE_CHECKING:
    from meari.service.service import Service

__all__ = ["BALANCE", "MAX_STAYING", "DrainingWorker"]

CHECK_SECONDS: Final = 0.05
OBSERVE_SECONDS: Final = 0.5  # between two updates of the metrics
MAX_STAYING: Final = 64  # threads that wait for the next request on their connection
STAY_SECONDS: Final = 0.05
HOLD_SECONDS: Final = 0.00025  # an idle worker wakes up within it
HEAD_BYTES: Final = 8192
CLIENT_ERRORS: Final = (ConnectionError, TimeoutError, NoMoreData)  # of a connection, as the next
CLIENT_NUMBERS: Final = (errno.ENOTCONN, errno.EHOSTUNREACH, errno.ENETUNREACH, errno.ENETDOWN, errno.EHOSTDOWN)
FULL: Final = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
BALANCE: Final = ConnectionBalance()  # made in the master process


class PolledConnection(TConn):  # type: ignore[misc]
    """A connection that waits for its client with one system call; gunicorn's makes an `epoll` and needs four."""

    data_ready: bool
    initialized: bool

    def init(self) -> None:
        """Make the parser, before the first request."""
        if not self.initialized:
            self.initialized = True
            self.parser = PromptParser(self.cfg, self.sock, self.client)

    def wait_for_data(self, timeout: float) -> bool:
        """Wait until there is something to read; return False after `timeout` seconds."""
        self.data_ready = self.data_ready or has_come(self.sock, timeout)
        return self.data_ready


class DrainingWorker(ThreadWorker):  # type: ignore[misc]
    """gunicorn's gthread worker, with a drain before its end and threads that stay with their connections."""

    cfg: Any

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._staying: set[object] = set()  # connections; `add` and `discard` are atomic
        self._observed_at = 0.0
        self._trusted_hops = 0

    def init_process(self) -> None:
        """Load the application, and run the loop until the end; called in the new process."""
        limit_arenas()
        self.cfg = QuickConfig(self.cfg)
        super().init_process()

    def load_wsgi(self) -> None:
        """Make the application, and note what its settings say about connections."""
        super().load_wsgi()
        service = self._service()
        if service is not None:
            self._trusted_hops = service.settings.trusted_hops

    def accept(self, listener: Any) -> None:
        """Accept a new connection, if no other worker was quicker."""
        if BALANCE.has_clearly_more(self.age):
            time.sleep(HOLD_SECONDS)
        try:
            accepted, address = listener.accept()
        except OSError as error:
            if error.errno in FULL:  # of the whole machine: nothing is lost, the client waits at the door
                self.log.warning("no connection can be taken: %s", error.strerror)
                time.sleep(CHECK_SECONDS)
            elif error.errno not in (errno.EAGAIN, errno.ECONNABORTED):
                raise
            return
        self.nr_conns += 1
        self._make_room()
        BALANCE.note(self.age, self.nr_conns)
        self.enqueue_req(PolledConnection(self.cfg, Connection.over(accepted), address, listener.getsockname()))

    def _make_room(self) -> None:
        """Close idle connections at the limit of connections, so that the next client gets in.

        The longest idle go first. A connection whose next request has arrived is not idle, even if the loop does not
        know of it yet.
        """
        while self.nr_conns >= self.worker_connections and (idle := self._longest_idle()) is not None:
            connections, connection = idle
            connections.remove(connection)
            self.poller.unregister(connection.sock)
            self.nr_conns -= 1
            connection.close()

    def _longest_idle(self) -> tuple[deque[Any], Any] | None:
        """Return the connection that has waited longest for a request, with gunicorn's collection that holds it."""
        waiting = [(each.timeout, kept, each) for kept in (self.keepalived_conns, self.pending_conns) for each in kept]
        for _, kept, connection in sorted(waiting, key=lambda entry: entry[0]):
            if not has_come(connection.sock, 0):
                return kept, connection
        return None

    def handle(self, conn: Any) -> Any:
        """Answer a connection's requests, as long as the next one comes soon; return gunicorn's next step for it."""
        outcome = self._handle_one(conn)
        while outcome is True and self._comes_soon(conn):
            outcome = self._handle_one(conn)
        if not outcome:
            close_graceful(conn.sock)  # gunicorn's loop would wait two seconds for a client that does not close
        return outcome

    def _handle_one(self, conn: Any) -> Any:
        """Answer the next request; return True if the connection may be used again."""
        request = None
        try:
            if not conn.initialized and not conn.wait_for_data(STAY_SECONDS):
                return _DEFER
            conn.sock.settimeout(HEAD_SECONDS)
            conn.init()
            request = next(conn.parser)
            keep = self.handle_request(request, conn)
        except StopIteration:  # closed between two requests, or by this side
            return False
        except Exception as error:  # noqa: BLE001 (logged there)
            self.handle_error(request, conn.sock, conn.client, error)
            return False
        try:
            return self._keepalive_after(conn, keep)
        except (OSError, ParseException):  # in a body that nobody read
            return False

    def _comes_soon(self, conn: Any) -> bool:
        """Wait a moment for the next request, unless many threads already do; return whether it has come."""
        unreader = conn.parser.unreader
        if unreader.buf.getvalue():
            return True
        if len(self._staying) >= MAX_STAYING:
            return False
        self._staying.add(conn)
        try:
            conn.sock.settimeout(STAY_SECONDS)
            unreader.unread(conn.sock.recv(HEAD_BYTES))
        except OSError:  # nothing in time, or the client has gone
            return False
        else:
            return True
        finally:
            self._staying.discard(conn)

    def handle_request(self, req: Any, conn: Any) -> bool:
        """Answer one request as gunicorn does; return True if the connection may be used again.

        Left out is what the configuration switches off: access log, hooks, sendfile, a restart after N requests.
        """
        waits, req._expected_100_continue = req._expected_100_continue, False  # noqa: SLF001 (otherwise gunicorn asks for the body at once)
        response, environ = wsgi.create(req, conn.sock, conn.client, conn.server, self.cfg, JoinedResponse)
        environ["wsgi.multithread"] = True
        environ.pop("HTTP_UPGRADE", None)  # no other protocol is spoken here
        if self._trusted_hops:
            believe_proxies(environ, self._trusted_hops)
        if waits:
            environ["wsgi.input"] = response.waiting = WaitingBody(req.body, conn.sock)
        if not self._may_keep():
            response.force_close()
        try:
            pieces = self.wsgi(environ, response.start_response)
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
            close_graceful(conn.sock)
            raise StopIteration from None
        return not response.should_close()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Begin to drain on SIGTERM. A request that arrives from now on is the last one of its connection.

        Connections that were answered before without `Connection: close` stay open: their clients may already be
        sending the next request.
        """
        service = self._service()
        if service is None:
            super().handle_exit(sig, frame)
            return
        service.drain.begin()
        self.method_queue.defer(lambda: None)  # wakes the loop

    def handle_error(self, req: Any, client: Any, addr: object, exc: Exception) -> None:
        """Answer bytes that are no request with the same body as every other error.

        They may be the rest of a body whose length was wrong, so the log has the kind of the error alone.
        """
        is_half = req is None and isinstance(exc, TimeoutError | NoMoreData)  # a part of a request arrived
        if not is_half and (isinstance(exc, CLIENT_ERRORS) or getattr(exc, "errno", None) in CLIENT_NUMBERS):
            self.log.debug("a client has gone: %s", type(exc).__name__)
            return
        number = request_id(None)
        error = translated(exc)
        if error.status == EngineFailed.status:
            self.log.error("request %s could not be handled", number, exc_info=exc, extra=MAY_QUOTE)
        kind = type(exc).__name__
        line = RequestLine(number, "-", "-", NO_ROUTE, error.status, error=error, error_message=kind)
        line.client_address = addr[0] if isinstance(addr, tuple) else ""
        log_request(line)
        known = req or getattr(exc, "request", None)  # as far as it was understood
        service = self._service()
        origins = () if service is None else service.settings.cors_origins
        headers = dict(SAFE_HEADERS) | cors_headers(origins, known.origin if known else None)
        answer = answer_bytes(error, number, known.target if known else "", headers)
        try:
            write_nonblock(client, answer[client.begin_answer() :])
        except OSError:
            self.log.debug("a client did not wait for its refusal")

    def wait_for_and_dispatch_events(self, timeout: float) -> None:
        """Run one turn of gunicorn's loop; while draining, check often whether the worker may stop."""
        BALANCE.note(self.age, self.nr_conns)
        service = self._service()
        if service is not None and time.monotonic() - self._observed_at >= OBSERVE_SECONDS:
            self._observed_at = time.monotonic()
            service.observe()
            flush_log()
        draining = service is not None and service.drain.has_begun
        super().wait_for_and_dispatch_events(min(timeout, CHECK_SECONDS) if draining else timeout)
        self._make_room()
        if draining and service is not None and service.drain.may_stop(service.admission.num_requests):
            self.alive = False

    def _may_keep(self) -> bool:
        """Tell whether the connection of the current request may serve another one."""
        service = self._service()
        if not self.alive or (service is not None and service.drain.has_begun):
            return False
        return bool(self.cfg.keepalive) and len(self.keepalived_conns) < self.max_keepalived

    def _service(self) -> Service | None:
        app: Any = getattr(self, "wsgi", None)
        service: Service | None = app.extensions.get("meari") if app is not None else None
        return service
