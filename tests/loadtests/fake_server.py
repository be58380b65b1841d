"""Small HTTP server with responses in the shape of the contract and no model.

A pause before each event of a stream makes times inside the stream differ from the time of the whole response.
"""

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

NUM_TOKENS = 5
PAUSE_SECONDS = 0.1
REFUSED_EVERY = 3


class FakeServer(ThreadingHTTPServer):
    """Server of /generate and /score; `refuse` refuses every third request, `failing` breaks all streams."""

    daemon_threads = True

    def __init__(self, *, refuse: bool = False, failing: bool = False) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.refuse = refuse
        self.failing = failing
        self.bodies: list[dict[str, Any]] = []

    @property
    def port(self) -> int:
        return int(self.server_address[1])


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: FakeServer

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.bodies.append({"path": self.path, **body})
        if self.server.refuse and len(self.server.bodies) % REFUSED_EVERY == 0:
            self._answer(429, {"error": {"code": "overloaded", "message": "full"}}, {"Retry-After": "1"})
        elif body.get("stream"):
            self._stream()
        else:
            self._answer(200, {"results": [], "choices": [], "usage": {}}, {})

    def _answer(self, status: int, body: dict[str, Any], headers: dict[str, str]) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(data))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)

    def _stream(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for _ in range(NUM_TOKENS):
            time.sleep(PAUSE_SECONDS)
            self._chunk(b'data: {"choices": [{"index": 0, "text": "e"}]}\n\n')
        if self.server.failing:
            self._chunk(b'data: {"error": {"code": "internal", "message": "broken"}}\n\n')
        else:
            self._chunk(b'data: {"usage": {"generated_tokens": %d}}\n\n' % NUM_TOKENS)
            self._chunk(b"data: [DONE]\n\n")
        self.wfile.write(b"0\r\n\r\n")

    def _chunk(self, data: bytes) -> None:
        self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))
        self.wfile.flush()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Log nothing; requests are kept in `bodies`."""


@contextmanager
def running(*, refuse: bool = False, failing: bool = False) -> Iterator[FakeServer]:
    """Serve on a free port until the block ends."""
    with FakeServer(refuse=refuse, failing=failing) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()
