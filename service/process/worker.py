"""A gunicorn worker that goes on answering while it drains.

gunicorn's own gthread worker closes its door at once on SIGTERM: who asks for readiness then meets a closed or silent
port. This one tells the app to refuse work, keeps its door open until nothing is under way (or the grace is over), and
then ends as gunicorn does.

The master process imports this file before it forks. It must not lead to onnxruntime, which starts threads when it is
imported: a fork would lose them, and the worker would abort at its end.
"""

from __future__ import annotations

import socket
from types import FrameType
from typing import TYPE_CHECKING, Any, Final

import msgspec
from gunicorn.http.errors import ParseException
from gunicorn.util import write_nonblock
from gunicorn.workers.gthread import ThreadWorker

from service.error_body import error_body
from service.errors import InvalidRequest
from service.requests.request_ids import request_id

if TYPE_CHECKING:
    from service.service import Service

__all__ = ["DrainingWorker"]

CHECK_SECONDS: Final = 0.05
MAX_SHOWN_CHARS: Final = 100


class DrainingWorker(ThreadWorker):  # type: ignore[misc]
    """gthread, with a drain before its end."""

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """SIGTERM: begin to drain. Answers close their connections from now on."""
        service = self._service()
        if service is None:
            super().handle_exit(sig, frame)
            return
        service.drain.begin()
        self.cfg.set("keepalive", 0)
        self.method_queue.defer(lambda: None)  # wakes the loop

    def handle_error(self, req: object, client: socket.socket, addr: object, exc: Exception) -> None:
        """What is no proper HTTP never reaches the app; it is answered with the same body as every other error."""
        if not isinstance(exc, ParseException):
            super().handle_error(req, client, addr, exc)
            return
        self.log.warning("malformed HTTP: %s", str(exc)[:MAX_SHOWN_CHARS])
        try:
            write_nonblock(client, _malformed_http(str(exc)))
        except OSError:
            self.log.debug("a client did not wait for its refusal")

    def wait_for_and_dispatch_events(self, timeout: float) -> None:
        """One turn of gunicorn's loop; while draining, look often whether the end has come."""
        service = self._service()
        draining = service is not None and service.drain.has_begun
        super().wait_for_and_dispatch_events(min(timeout, CHECK_SECONDS) if draining else timeout)
        if draining and service is not None and service.drain.may_stop(service.admission.num_requests):
            self.alive = False

    def _service(self) -> Service | None:
        app: Any = getattr(self, "wsgi", None)
        service: Service | None = app.extensions.get("meari") if app is not None else None
        return service


def _malformed_http(reason: str) -> bytes:
    """The whole answer to bytes that are no request."""
    number = request_id(None)
    error = InvalidRequest(f"request: got malformed HTTP, expected HTTP/1.1: {reason[:MAX_SHOWN_CHARS]}")
    body = msgspec.json.encode(error_body(error, number))
    head = "HTTP/1.1 400 Bad Request\r\nConnection: close\r\nContent-Type: application/json\r\n"
    return f"{head}X-Request-Id: {number}\r\nContent-Length: {len(body)}\r\n\r\n".encode("ascii") + body
