"""Receiver of OTLP over HTTP that decodes the data of a real exporter."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

Values = dict[str, Any]


class Collector:
    """Collector of the bodies sent to /v1/traces."""

    def __init__(self) -> None:
        self.bodies: list[bytes] = []
        self.port = 0

    @property
    def resources(self) -> list[Values]:
        """Return the attributes of each sender."""
        return [values(sent.resource.attributes) for sent in self._sent()]

    @property
    def spans(self) -> list[Any]:
        """Return all spans."""
        return [span for sent in self._sent() for scope in sent.scope_spans for span in scope.spans]

    def span_of(self, request_id: str) -> tuple[Any, Values]:
        """Return the single span of a request and its attributes."""
        found = [(span, values(span.attributes)) for span in self.spans]
        [one] = [pair for pair in found if pair[1]["http.response.header.x-request-id"] == [request_id]]
        return one

    def _sent(self) -> list[Any]:
        decoded = [ExportTraceServiceRequest.FromString(body) for body in self.bodies]
        return [sent for message in decoded for sent in message.resource_spans]


def values(attributes: Any) -> Values:
    """Return attributes as plain values by name."""
    return {pair.key: _plain(pair.value) for pair in attributes}


def _plain(value: Any) -> Any:
    kind = value.WhichOneof("value")
    found = getattr(value, kind)
    return [_plain(item) for item in found.values] if kind == "array_value" else found


@contextlib.contextmanager
def running_collector() -> Iterator[Collector]:
    """Run a collector on a free port."""
    collector = Collector()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            assert self.path == "/v1/traces"
            collector.bodies.append(body)
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 (the interface's name)
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    collector.port = server.server_port
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield collector
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
