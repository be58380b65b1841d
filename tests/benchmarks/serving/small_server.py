"""Small HTTP server with every kind of response of the measured servers: whole, streamed, chunked, refused, none."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from tests.patience import PATIENCE

NUM_PIECES = 3


class SmallServer(ThreadingHTTPServer):
    """HTTP server; `release` ends the requests for /silent."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.release = threading.Event()
        self.num_requests = 0

    @property
    def port(self) -> int:
        return int(self.server_address[1])


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: SmallServer

    def do_GET(self) -> None:
        self._whole({})

    def do_POST(self) -> None:
        self.server.num_requests += 1
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.path == "/silent":
            self.server.release.wait(PATIENCE)
        if self.path == "/refuse":
            self._whole({"error": "full"}, status=429)
        elif self.path == "/break":
            self._whole({"error": "broken"}, status=500)
        elif body.get("stream") or self.path == "/chunked":
            self._chunked(self._events(body) if body.get("stream") else [json.dumps(answer(body)).encode()])
        else:
            self._whole(answer(body), close=self.path == "/close")

    def _events(self, body: dict[str, Any]) -> Iterator[bytes]:
        for _ in range(NUM_PIECES):
            yield b'data: {"choices": [{"text": " a"}]}\n\n'
        yield b"data: " + json.dumps({"usage": answer(body)["usage"]}).encode() + b"\n\n"

    def _whole(self, body: dict[str, Any], *, status: int = 200, close: bool = False) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        if close:
            self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(data)

    def _chunked(self, pieces: Any) -> None:
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for piece in pieces:
            self.wfile.write(f"{len(piece):x}\r\n".encode() + piece + b"\r\n")
            self.wfile.flush()
        self.wfile.write(b"0\r\n\r\n")

    def log_request(self, *_: Any) -> None:
        """Log nothing."""


def answer(body: dict[str, Any]) -> dict[str, Any]:
    return {"choices": [{"text": "a a"}], "usage": {"generated_tokens": body["max_tokens"]}}


@contextmanager
def running() -> Iterator[SmallServer]:
    server = SmallServer()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server
    finally:
        server.release.set()
        server.shutdown()
        thread.join()
        server.server_close()
