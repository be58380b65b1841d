"""Refusals by the worker itself, without Flask: of requests without room, by their heads, and of malformed ones.

Input: the first bytes of a request, or what gunicorn made of them. Output: the whole answer; nothing for a request that
may be answered, or whose head says more than is understood here. Must not know: onnxruntime, Flask.

Under overload most requests are refused, and what that costs is missing for the others. A head is understood here if
nothing about it is doubtful: lines of known form, none of them twice, and at most a length as the framing of the body.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping, MutableMapping
from dataclasses import dataclass
from functools import lru_cache
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Final

import msgspec
from gunicorn.http import errors as http
from gunicorn.util import http_date

from meari.errors import (
    EngineFailed,
    ExpectationFailed,
    HeadersTooLarge,
    HeadTimeout,
    InvalidRequest,
    MeariError,
    NotImplementedHere,
    Overloaded,
    Problem,
    TargetTooLong,
    VersionNotSupported,
)
from meari.service.error_body import SAFE_HEADERS, error_body, openai_error_body
from meari.service.log import NO_ROUTE, RequestLine, log_request, request_id
from meari.service.process.http import CONTINUE, HEAD_SECONDS, LIMIT, NUM_FIELDS, Incoming
from meari.service.requests.keys import ANYBODY
from meari.service.requests.origins import SENT_HOST, believe_proxies, client_network, cors_headers, may_answer

if TYPE_CHECKING:
    from meari.service.service import Service

__all__ = [
    "WORK_PATHS",
    "WORK_TARGETS",
    "Head",
    "Refusal",
    "WaitingBody",
    "broken_off",
    "malformed",
    "overloaded",
    "refusal",
]

WORK_PATHS: Final = frozenset(
    ("/generate", "/score", "/complete", "/states", "/tokenize", "/detokenize", "/v1/completions")
)
WORK_TARGETS: Final = tuple(f"POST {path} ".encode() for path in WORK_PATHS)
_HEAD: Final = re.compile(rb"POST (/[a-z0-9/]{1,32}) HTTP/1\.1\r\n((?:[A-Za-z0-9-]+:[\t -~]*\r\n)*)\r\n")
_FIELD: Final = re.compile(r"([^:]+):([^\r]*)\r\n")  # no two parts that can match the same: each step would try all
REASONS: Final = {status.value: status.phrase for status in HTTPStatus}
OWN_FAULTS: Final = (http.InvalidResponseHeader, http.InvalidResponseHeaderName, http.ConfigurationProblem)
MAX_SHOWN_CHARS: Final = 100
MAX_KNOWN_BYTES: Final = 1024  # of a head that is kept, with what it says
FIXED_FIELDS: Final = {"Content-Type": "application/json", **dict(SAFE_HEADERS)}
FRAMING: Final = ("HTTP_TRANSFER_ENCODING", "HTTP_UPGRADE")  # more than is understood here


@dataclass(frozen=True)
class Refusal:
    """An answer that is an error."""

    status: int
    fields: dict[str, str]
    body: bytes

    @property
    def status_line(self) -> str:
        """Return status and reason."""
        return f"{self.status} {REASONS[self.status]}"

    def answer(self, *, keeps: bool = False) -> bytes:
        """Return all bytes. keeps: another request may follow on the connection."""
        begin = _begin_answer(self.status_line, int(time.time()), keeps)
        fields = "".join([f"{name}: {value}\r\n" for name, value in self.fields.items()])
        return f"{begin}{fields}\r\n".encode("latin-1") + self.body


def refusal(error: MeariError, number: str, target: str, headers: Mapping[str, str]) -> Refusal:
    """Return headers and body of an error.

    number   id of the request
    target   its target, as far as it was understood
    headers  further headers
    """
    body = msgspec.json.encode(openai_error_body(error) if target.startswith("/v1/") else error_body(error, number))
    own = {"X-Request-Id": number, "Content-Length": str(len(body))}
    return Refusal(error.status, {**FIXED_FIELDS, **own, **headers}, body)


@dataclass(frozen=True)
class Head:
    """Head of a request for work.

    environ   its headers and the client's address, as WSGI names them
    size      bytes of the head
    num_body  bytes of the body
    keeps     another request may follow
    """

    environ: MutableMapping[str, Any]
    size: int
    num_body: int
    keeps: bool

    @classmethod
    def of(cls, received: bytes, address: str) -> Head | None:
        """Return the head at the beginning of what was received; None unless it is whole and plain."""
        head = (_known if len(received) <= MAX_KNOWN_BYTES else cls.parsed)(received)
        if head is None:
            return None
        return cls({**head.environ, "REMOTE_ADDR": address}, head.size, head.num_body, head.keeps)

    @classmethod
    def parsed(cls, received: bytes) -> Head | None:
        """Return the same without an address."""
        found = _HEAD.match(received)
        if found is None or (path := found[1].decode("ascii")) not in WORK_PATHS:
            return None
        fields = _FIELD.findall(found[2].decode("ascii"))
        environ = {_in_environ(name): value.strip(" \t") for name, value in fields}
        length = environ.get("HTTP_CONTENT_LENGTH", "0")
        if len(environ) < len(fields) or any(name in environ for name in FRAMING) or not _is_length(length):
            return None
        is_asking = "HTTP_EXPECT" in environ  # then the client may send its body or not
        if is_asking and environ["HTTP_EXPECT"].lower() != "100-continue":
            return None
        keeps = environ.get("HTTP_CONNECTION", "keep-alive").lower() == "keep-alive" and not is_asking
        environ |= {"PATH_INFO": path, "REQUEST_METHOD": "POST"}
        return cls(environ, found.end(), int(length), keeps)


@lru_cache(maxsize=256)
def _known(received: bytes) -> Head | None:
    """Return a head that has come before, as most do but for the length of the body."""
    return Head.parsed(received)


@lru_cache(maxsize=64)
def _in_environ(name: str) -> str:
    return f"HTTP_{name.upper().replace('-', '_')}"


@lru_cache(maxsize=64)
def _begin_answer(status_line: str, second: int, keeps: bool) -> str:  # noqa: FBT001 (a key)
    connection = "keep-alive" if keeps else "close"
    return f"HTTP/1.1 {status_line}\r\nDate: {http_date(second)}\r\nConnection: {connection}\r\n"


def _is_length(value: str) -> bool:
    return value.isdigit() and len(value) < 16


def overloaded(service: Service, environ: MutableMapping[str, Any], *, is_received: bool) -> Refusal | None:
    """Refuse a request that there is no room for; None for all others.

    A request whose host or key is not accepted is no matter of room, and is refused where the others are answered.
    environ      what trusted proxies report is written to it
    is_received  a thread has the request
    """
    if service.drain.refuses_work:
        return None
    started = time.monotonic()
    believe_proxies(environ, service.settings.trusted_hops)
    if not may_answer(environ.get("HTTP_HOST", ""), environ.get(SENT_HOST, ""), service.settings.allowed_hosts):
        return None
    address, caller = environ.get("REMOTE_ADDR", ""), ANYBODY
    if service.keys is not None:
        known = service.keys.known(environ.get("HTTP_AUTHORIZATION"), address)
        if known is None:
            return None
        caller = known
    try:
        service.admission.refuse_early(caller.name or client_network(address), is_received=is_received)
    except Overloaded as error:
        path = environ["PATH_INFO"]
        line = RequestLine(request_id(environ.get("HTTP_X_REQUEST_ID")), "POST", path, path, error.status, error=error)
        line.client_address, line.key, line.error_message = address, caller.name, str(error)
        service.metrics.note_refused(error.bound, path)
        line.total_seconds = time.monotonic() - started
        log_request(line)
        headers = cors_headers(service.settings.cors_origins, environ.get("HTTP_ORIGIN"))
        headers["Retry-After"] = str(error.retry_after_seconds)
        return refusal(error, line.request_id, path, headers)
    return None


def malformed(error: Exception, address: str, target: str, headers: Mapping[str, str]) -> Refusal:
    """Refuse bytes that are no request, and log it.

    They may be the rest of a body whose length was wrong, so the log has the kind of the error alone.
    address  of the client
    target   as far as it was understood
    headers  further headers
    """
    number, known = request_id(None), translated(error)
    kind = type(error).__name__
    line = RequestLine(number, "-", "-", NO_ROUTE, known.status, error=known, error_message=kind)
    line.client_address = address
    log_request(line)
    return refusal(known, number, target, headers)


def broken_off(incoming: Incoming) -> Problem:
    """Say how much of a body has come whose client sends no more."""
    came = len(incoming) - len(incoming.head())
    if incoming.body_size > came:
        return Problem("body", f"{came} bytes", f"{incoming.body_size} as Content-Length says")
    return Problem("body", reason="it broke off before it was complete")


def translated(error: Exception) -> MeariError:
    """Translate gunicorn's error to that of the contract; EngineFailed if the service itself is at fault."""
    if isinstance(error, MeariError):
        return error
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
            self._connection.sendall(CONTINUE)
        data: bytes = self._body.read(size)
        return data
