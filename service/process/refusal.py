"""What is no proper HTTP never reaches the app: gunicorn's errors → those of the contract, and their whole answer.

Enters: an exception of gunicorn's parser. Leaves: a MeariError, and bytes. Knows nothing of connections.
"""

from __future__ import annotations

from collections.abc import Callable
from http import HTTPStatus
from typing import Any, Final

import msgspec
from gunicorn.http import errors as http

from meari.errors import (
    EngineFailed,
    ExpectationFailed,
    HeadersTooLarge,
    HeadTimeout,
    InvalidRequest,
    MeariError,
    NotImplementedHere,
    TargetTooLong,
    VersionNotSupported,
)
from meari.service.error_body import error_body, openai_error_body
from meari.service.process.request import HEAD_SECONDS

__all__ = ["answer_bytes", "translated"]

MAX_SHOWN_CHARS: Final = 100
LIMIT: Final = 8190  # bytes of a line of the head, as gunicorn's own default
NUM_FIELDS: Final = 100
OWN_FAULTS: Final = (http.InvalidResponseHeader, http.InvalidResponseHeaderName, http.ConfigurationProblem)


def translated(error: Exception) -> MeariError:
    """The error of the contract that this one is; EngineFailed where it is the service's own fault."""
    if isinstance(error, OWN_FAULTS):
        return EngineFailed("the request could not be handled")
    for kind, translate in TRANSLATIONS.items():
        if isinstance(error, kind):
            return translate(error)
    return EngineFailed("the request could not be handled")


def _version(error: Any) -> MeariError:
    if isinstance(error.version, str):  # none at all
        return _malformed(error)
    return VersionNotSupported(f"request: got HTTP/{'.'.join(map(str, error.version))}, expected HTTP/1.1")


def _malformed(error: Exception) -> MeariError:
    return InvalidRequest(f"request: got malformed HTTP, expected HTTP/1.1: {_shown(error)}")


def _shown(value: object) -> str:
    return str(value)[:MAX_SHOWN_CHARS]


TRANSLATIONS: Final[dict[type[Exception], Callable[[Any], MeariError]]] = {
    TimeoutError: lambda _: HeadTimeout(f"request: its head was not complete after {HEAD_SECONDS:g} seconds"),
    http.NoMoreData: lambda _: InvalidRequest("request: it broke off before its head was complete"),
    http.LimitRequestLine: lambda _: TargetTooLong(
        f"request: its first line is too long, expected at most {LIMIT} bytes"
    ),
    http.LimitRequestHeaders: lambda _: HeadersTooLarge(
        f"request: its headers are too large, expected at most {NUM_FIELDS} of at most {LIMIT} bytes"
    ),
    http.ExpectationFailed: lambda error: ExpectationFailed(
        f"Expect: got {_shown(error.expect)}, expected 100-continue"
    ),
    http.UnsupportedTransferCoding: lambda error: NotImplementedHere(
        f"Transfer-Encoding: got {_shown(error.hdr)}, expected chunked or none"
    ),
    http.InvalidHTTPVersion: _version,
    http.ParseException: _malformed,
}


def answer_bytes(error: MeariError, number: str, target: str, headers: dict[str, str]) -> bytes:
    """The whole answer, after which the connection is closed.

    target   of the request, as far as it was understood
    headers  further ones
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
