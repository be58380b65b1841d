"""HTTP on a connection: gunicorn's parser and writer, adapted, and refusals of malformed requests.

Input: the bytes of a connection. Output: gunicorn's request, the bytes of an answer, or those of a refusal. Must not
know: the application.

A head has to be complete HEAD_SECONDS after its first byte: a silent client, or one that sends a byte at a time, would
hold a thread. Bytes that do not begin like HTTP (TLS on the plain port, say) are refused at once, because their client
waits for an answer. A refused request keeps the part that was understood: `error.request`.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from http import HTTPStatus
from typing import Any, Final

import msgspec
from gunicorn import util
from gunicorn.http import errors as http
from gunicorn.http.errors import InvalidRequestLine, LimitRequestLine, NoMoreData, ParseException
from gunicorn.http.message import Request
from gunicorn.http.parser import RequestParser
from gunicorn.http.wsgi import Response

from meari.errors import (
    EngineFailed,
    ExpectationFailed,
    HeadersTooLarge,
    HeadTimeout,
    InvalidRequest,
    MeariError,
    NotImplementedHere,
    Problem,
    TargetTooLong,
    VersionNotSupported,
)
from meari.service.clients import has_come
from meari.service.error_body import error_body, openai_error_body

__all__ = ["HEAD_SECONDS", "JoinedResponse", "PromptParser", "QuickConfig", "WaitingBody", "answer_bytes", "translated"]

HEAD_SECONDS: Final = 10.0
REST_SECONDS: Final = 0.2  # to read on in a head that is refused before its fields
REST_BYTES: Final = 65536
_ORIGIN: Final = re.compile(rb"^origin:[ \t]*([!-~]*)[ \t]*\r?$", re.IGNORECASE | re.MULTILINE)
_TOKEN: Final = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
MAX_SHOWN_CHARS: Final = 100
LIMIT: Final = 8190  # bytes of a line of the head, as gunicorn's own default
NUM_FIELDS: Final = 100
OWN_FAULTS: Final = (http.InvalidResponseHeader, http.InvalidResponseHeaderName, http.ConfigurationProblem)


class PromptRequest(Request):  # type: ignore[misc]
    """A request; raises TimeoutError where its head takes too long."""

    uri: str | None

    def __init__(self, cfg: Any, unreader: Any, *arguments: Any) -> None:
        self._until = time.monotonic() + HEAD_SECONDS
        self._head = bytearray()  # or its end, as far as it was received
        try:
            super().__init__(cfg, unreader, *arguments)
        except ParseException as error:
            error.request = self
            if isinstance(error, LimitRequestLine):
                self._read_on(unreader)
            raise

    def _read_on(self, unreader: Any) -> None:
        """Read the fields after a first line that is too long, if they arrive at once."""
        while b"\r\n\r\n" not in self._head and len(self._head) < REST_BYTES and has_come(unreader.sock, REST_SECONDS):
            try:
                super().read_into(unreader, self._head)
            except (OSError, NoMoreData):
                return

    @property
    def origin(self) -> str | None:
        """Origin of the page that sends the request, even if other fields are malformed."""
        found = _ORIGIN.search(self._head.partition(b"\r\n\r\n")[0])
        return None if found is None else found[1].decode("ascii")

    @property
    def target(self) -> str:
        """Target of the request, even if the first line is too long."""
        return self.uri or self._head.partition(b" ")[2][:100].decode("latin-1")

    def read_into(self, unreader: Any, buf: Any, stop: bool = False) -> None:  # noqa: FBT001, FBT002 (gunicorn's own)
        """Read one more piece of the head."""
        if time.monotonic() > self._until:
            raise TimeoutError("the head of a request took too long")
        super().read_into(unreader, buf, stop)
        self._head = buf

    def read_line(self, unreader: Any, buf: Any, limit: int = 0) -> Any:
        """Read the first line."""
        if buf and not _TOKEN.match(buf):
            raise InvalidRequestLine("it does not begin with a method")
        return super().read_line(unreader, buf, limit)


class WaitingBody:
    """The body of a client that waits for permission to send it (Expect: 100-continue), given at the first read.

    So the body of a request that is refused by its head alone is never sent.
    """

    def __init__(self, body: Any, connection: Any) -> None:
        self._body = body
        self._connection = connection
        self._is_allowed = False
        self.is_refused = False

    def refuse(self) -> None:
        """Never give the permission from now on; called when the answer begins."""
        self.is_refused = not self._is_allowed

    def read(self, size: int | None = None) -> bytes:
        """Read as gunicorn's bodies do."""
        if self.is_refused:
            return b""
        if not self._is_allowed:
            self._is_allowed = True
            self._connection.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
        data: bytes = self._body.read(size)
        return data


class PromptParser(RequestParser):  # type: ignore[misc]
    """Yields the requests of a connection."""

    mesg_class = PromptRequest


class JoinedResponse(Response):  # type: ignore[misc]
    """An answer whose head and first piece of the body are one write.

    Each write is a system call, a packet, and a moment in which another thread may take the interpreter.
    """

    headers_sent: bool

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._head = b""
        self.waiting: WaitingBody | None = None

    def should_close(self) -> bool:
        """Close also if a client still waits with its body, which it may or may not send."""
        return (self.waiting is not None and self.waiting.is_refused) or bool(super().should_close())

    def send_headers(self) -> None:
        """Keep the head until there is a piece of the body to send with it."""
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
        """Send the rest: the head of an answer without a body, or the last chunk."""
        self.send_headers()
        if self.chunked:
            self._head += b"0\r\n\r\n"
        if self._head:
            util.write(self.sock, self._head)
            self._head = b""


def translated(error: Exception) -> MeariError:
    """Translate gunicorn's error to that of the contract; EngineFailed if the service itself is at fault."""
    if isinstance(error, OWN_FAULTS):
        return EngineFailed("the request could not be handled")
    for kind, translate in TRANSLATIONS.items():
        if isinstance(error, kind):
            return translate(error)
    return EngineFailed("the request could not be handled")


def _version(error: Any) -> MeariError:
    if isinstance(error.version, str):  # no version at all
        return _malformed(error)
    return VersionNotSupported(Problem("request", f"HTTP/{'.'.join(map(str, error.version))}", "HTTP/1.1"))


def _malformed(error: Exception) -> MeariError:
    return InvalidRequest(Problem("request", "malformed HTTP", "HTTP/1.1", _shown(error)))


def _shown(value: object) -> str:
    return str(value)[:MAX_SHOWN_CHARS]


TRANSLATIONS: Final[dict[type[Exception], Callable[[Any], MeariError]]] = {
    TimeoutError: lambda _: HeadTimeout(
        Problem("request", reason=f"its head was not complete after {HEAD_SECONDS:g} seconds")
    ),
    http.NoMoreData: lambda _: InvalidRequest(Problem("request", reason="it broke off before its head was complete")),
    http.LimitRequestLine: lambda _: TargetTooLong(
        Problem("request", reason=f"its first line is too long, expected at most {LIMIT} bytes")
    ),
    http.LimitRequestHeaders: lambda _: HeadersTooLarge(
        Problem("request", reason=f"its headers are too large, expected at most {NUM_FIELDS} of at most {LIMIT} bytes")
    ),
    http.ExpectationFailed: lambda error: ExpectationFailed(Problem("Expect", _shown(error.expect), "100-continue")),
    http.UnsupportedTransferCoding: lambda error: NotImplementedHere(
        Problem("Transfer-Encoding", _shown(error.hdr), "chunked or none")
    ),
    http.InvalidHTTPVersion: _version,
    http.ParseException: _malformed,
}


def answer_bytes(error: MeariError, number: str, target: str, headers: dict[str, str]) -> bytes:
    """Return a whole answer, after which the connection is closed.

    target   target of the request, as far as it was understood
    headers  further headers
    """
    is_openai = target.startswith("/v1/")
    body = msgspec.json.encode(openai_error_body(error) if is_openai else error_body(error, number))
    fields = {
        "Connection": "close",
        "Content-Type": "application/json",
        "X-Request-Id": number,
        "Content-Length": str(len(body)),
        **headers,
    }
    lines = [f"HTTP/1.1 {error.status} {HTTPStatus(error.status).phrase}", *(f"{k}: {v}" for k, v in fields.items())]
    return "\r\n".join([*lines, "\r\n"]).encode("ascii") + body


class QuickConfig:
    """gunicorn's configuration with each value looked up once: its parser reads some twenty of them per request."""

    def __init__(self, config: Any) -> None:
        self._config = config

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._config, name)
        setattr(self, name, value)
        return value
