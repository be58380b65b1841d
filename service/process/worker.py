"""A gunicorn worker that goes on answering while it drains, and wakes few threads for a request.

gunicorn's own gthread worker closes its door at once on SIGTERM: who asks for readiness then meets a closed or silent
port. This one tells the app to refuse work, keeps its door open until nothing is under way (or the grace is over), and
then ends as gunicorn does.

gunicorn's hands a connection back to its loop after every answer, and the loop hands the next request to another
thread: two threads to wake that have nothing else to do. Here a thread stays with its connection for a moment.

gunicorn's takes no new client while connections on which nothing happens hold all places. Here they give way.

gunicorn's takes whatever connection it can get. This one lets a worker come first that has fewer (ConnectionBalance).

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
from meari.service.connection import Connection, has_come
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
from meari.service.requests.cors import cors_headers
from meari.service.workers import ConnectionBalance

if TYPE_CHECKING:
    from meari.service.service import Service

__all__ = ["BALANCE", "MAX_STAYING", "DrainingWorker"]

CHECK_SECONDS: Final = 0.05
OBSERVE_SECONDS: Final = 0.5  # between two looks at the engines, for the metrics
MAX_STAYING: Final = 64  # threads that wait for the next request of their connection
STAY_SECONDS: Final = 0.05
HOLD_SECONDS: Final = 0.00025  # an idle worker is awake by then
HEAD_BYTES: Final = 8192
CLIENT_ERRORS: Final = (ConnectionError, TimeoutError, NoMoreData)  # of a connection, like the next
CLIENT_NUMBERS: Final = (errno.ENOTCONN, errno.EHOSTUNREACH, errno.ENETUNREACH, errno.ENETDOWN, errno.EHOSTDOWN)
FULL: Final = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
BALANCE: Final = ConnectionBalance()  # made in the master process


class PolledConnection(TConn):  # type: ignore[misc]
    """gunicorn's, whose first wait for a client makes, fills, asks and closes an `epoll`: four calls instead of one."""

    data_ready: bool
    initialized: bool

    def init(self) -> None:
        """Before the first request."""
        if not self.initialized:
            self.initialized = True
            self.parser = PromptParser(self.cfg, self.sock, self.client)

    def wait_for_data(self, timeout: float) -> bool:
        """True once there is something to read, False after `timeout` seconds."""
        self.data_ready = self.data_ready or has_come(self.sock, timeout)
        return self.data_ready


class DrainingWorker(ThreadWorker):  # type: ignore[misc]
    """gthread, with a drain before its end and threads that stay with their connections."""

    cfg: Any

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._staying: set[object] = set()  # connections; the interpreter makes `add` and `discard` whole
        self._observed_at = 0.0

    def init_process(self) -> None:
        """In the new process: load the app, and run the loop until the end."""
        limit_arenas()
        self.cfg = QuickConfig(self.cfg)
        super().init_process()

    def accept(self, listener: Any) -> None:
        """A new connection, if no other worker was quicker."""
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
        self._keep_a_place()
        BALANCE.note(self.age, self.nr_conns)
        self.enqueue_req(PolledConnection(self.cfg, Connection.over(accepted), address, listener.getsockname()))

    def _keep_a_place(self) -> None:
        """Where all places are taken, close connections on which nothing is under way, so that the next client gets in.

        The longest idle go first. One whose next request has come is not idle, whatever the loop knows of it.
        """
        while self.nr_conns >= self.worker_connections and (idle := self._longest_idle()) is not None:
            connections, connection = idle
            connections.remove(connection)
            self.poller.unregister(connection.sock)
            self.nr_conns -= 1
            connection.close()

    def _longest_idle(self) -> tuple[deque[Any], Any] | None:
        """A connection that waits for a request, and where gunicorn keeps it."""
        waiting = [(each.timeout, kept, each) for kept in (self.keepalived_conns, self.pending_conns) for each in kept]
        for _, kept, connection in sorted(waiting, key=lambda entry: entry[0]):
            if not has_come(connection.sock, 0):
                return kept, connection
        return None

    def handle(self, conn: Any) -> Any:
        """The requests of a connection, as long as the next one comes soon; what gunicorn does with it then."""
        outcome = self._handle_one(conn)
        while outcome is True and self._comes_soon(conn):
            outcome = self._handle_one(conn)
        if not outcome:
            close_graceful(
                conn.sock
            )  # here, for gunicorn's loop would wait two seconds for a client that does not close
        return outcome

    def _handle_one(self, conn: Any) -> Any:
        """Answer the next request; True where the connection may be used again. What clients do is no error here."""
        request = None
        try:
            if not conn.initialized and not conn.wait_for_data(STAY_SECONDS):
                return _DEFER
            conn.sock.settimeout(HEAD_SECONDS)
            conn.init()
            request = next(conn.parser)
            keep = self.handle_request(request, conn)
        except StopIteration:  # closed between two requests, or by us
            return False
        except Exception as error:  # noqa: BLE001 (told there)
            self.handle_error(request, conn.sock, conn.client, error)
            return False
        try:
            return self._keepalive_after(conn, keep)
        except (OSError, ParseException):  # of a body that nobody wanted
            return False

    def _comes_soon(self, conn: Any) -> bool:
        """Wait a moment for the next request, unless many threads do so already."""
        unreader = conn.parser.unreader
        if unreader.buf.getvalue():
            return True
        if len(self._staying) >= MAX_STAYING:
            return False
        self._staying.add(conn)
        try:
            conn.sock.settimeout(STAY_SECONDS)
            unreader.unread(conn.sock.recv(HEAD_BYTES))
        except OSError:  # nothing in time, or no client any more
            return False
        else:
            return True
        finally:
            self._staying.discard(conn)

    def handle_request(self, req: Any, conn: Any) -> bool:
        """Answer one request; True where the connection may be used again. As gunicorn does, without what is off here.

        That is access log, hooks, files sent by the kernel and a restart after so many requests.
        """
        waits, req._expected_100_continue = req._expected_100_continue, False  # noqa: SLF001 (else gunicorn tells it at once)
        response, environ = wsgi.create(req, conn.sock, conn.client, conn.server, self.cfg, JoinedResponse)
        environ["wsgi.multithread"] = True
        environ.pop("HTTP_UPGRADE", None)  # to another protocol, which is never done here
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
        """SIGTERM: begin to drain. A request that comes from now on is the last one of its connection.

        What was answered before without saying so stays open: its client may be sending the next one already.
        """
        service = self._service()
        if service is None:
            super().handle_exit(sig, frame)
            return
        service.drain.begin()
        self.method_queue.defer(lambda: None)  # wakes the loop

    def handle_error(self, req: Any, client: Any, addr: object, exc: Exception) -> None:
        """What did not become a request is answered with the same body as every other error.

        What came may be the rest of a body whose length was wrong, so the log tells the kind of the error alone.
        """
        is_half = req is None and isinstance(exc, TimeoutError | NoMoreData)  # a request
        if not is_half and (isinstance(exc, CLIENT_ERRORS) or getattr(exc, "errno", None) in CLIENT_NUMBERS):
            self.log.debug("a client has gone: %s", type(exc).__name__)
            return
        number = request_id(None)
        error = translated(exc)
        if error.status == EngineFailed.status:
            self.log.error("request %s could not be handled", number, exc_info=exc, extra=MAY_QUOTE)
        kind = type(exc).__name__
        log_request(RequestLine(number, "-", "-", NO_ROUTE, error.status, error=error, error_message=kind))
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
        """One turn of gunicorn's loop; while draining, look often whether the end has come."""
        BALANCE.note(self.age, self.nr_conns)
        service = self._service()
        if service is not None and time.monotonic() - self._observed_at >= OBSERVE_SECONDS:
            self._observed_at = time.monotonic()
            service.observe()
            flush_log()
        draining = service is not None and service.drain.has_begun
        super().wait_for_and_dispatch_events(min(timeout, CHECK_SECONDS) if draining else timeout)
        self._keep_a_place()
        if draining and service is not None and service.drain.may_stop(service.admission.num_requests):
            self.alive = False

    def _may_keep(self) -> bool:
        """True where the connection of the request at hand may serve another one."""
        service = self._service()
        if not self.alive or (service is not None and service.drain.has_begun):
            return False
        return bool(self.cfg.keepalive) and len(self.keepalived_conns) < self.max_keepalived

    def _service(self) -> Service | None:
        app: Any = getattr(self, "wsgi", None)
        service: Service | None = app.extensions.get("meari") if app is not None else None
        return service
