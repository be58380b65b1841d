"""gunicorn's writer of answers, with the head and the first piece of the body in one write.

Each write is a call of the kernel, a packet, and a moment in which another thread may take the interpreter.
"""

from __future__ import annotations

from typing import Any

from gunicorn import util
from gunicorn.http.wsgi import Response

from meari.service.process.request import WaitingBody

__all__ = ["JoinedResponse"]


class JoinedResponse(Response):  # type: ignore[misc]
    """Head and body as gunicorn makes them."""

    headers_sent: bool

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._head = b""
        self.waiting: WaitingBody | None = None

    def should_close(self) -> bool:
        """Also where a client waits with its body: it may send it after all, or not."""
        return (self.waiting is not None and self.waiting.is_refused) or bool(super().should_close())

    def send_headers(self) -> None:
        """Keep the head until there is something to send with it."""
        if not self.headers_sent:
            if self.waiting is not None:
                self.waiting.refuse()
            fields = [*self.default_headers(), *(f"{name}: {value}\r\n" for name, value in self.headers), "\r\n"]
            self._head = "".join(fields).encode("latin-1")[self.sock.begin_answer() :]
            self.headers_sent = True

    def _emit_body(self, data: bytes) -> None:
        head, self._head = self._head, b""
        pieces = [head, b"%X\r\n" % len(data), data, b"\r\n"] if self.chunked else [head, data]
        self.sock.sendall(b"".join(pieces))

    def close(self) -> None:
        """Send what is left: the head of an answer without a body, the end of one that came in chunks."""
        self.send_headers()
        if self.chunked:
            self._head += b"0\r\n\r\n"
        if self._head:
            util.write(self.sock, self._head)
            self._head = b""
