"""A running service: its models, and the bytes of its answers.

Input: a URL, paths and JSON bodies. Output: answers, whole or as a stream, or errors of one line. Must not know: any
other module of the project; it knows the HTTP contract, not how the service keeps it.

A refusal with `Retry-After` (429, and 503 while bundles are loaded) is asked again after so many seconds, as long as
that adds up to no more than `patience_seconds`; past a limit of the key, which other requests use too, for an hour.
Connections are the standard library's: proxies and certificates as the environment says.
"""

from __future__ import annotations

import http.client
import json
import math
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import quote, urlsplit

from meari.client.errors import BadAnswer, Refused, RemoteError, Unreachable

__all__ = ["RemoteService", "all_models", "checked_url", "find_model"]

CONNECT_SECONDS: Final = 10.0
ANSWER_SECONDS: Final = 600.0  # of silence: a service's own limit for a request is below that
PATIENCE_SECONDS: Final = 120.0
LIMIT_SECONDS: Final = 3600.0
PAST_LIMIT: Final = "rate_limit_exceeded"
DEFAULT_RETRY_SECONDS: Final = 1.0
RETRIED: Final = (429, 503)
MESSAGE_CHARS: Final = 1000
EVENT: Final = b"data:"
LAST_EVENT: Final = b"[DONE]"


def checked_url(url: str) -> str:
    """Return the URL without a slash at its end. Raises ValueError if it is not the URL of a service."""
    try:
        parts = urlsplit(url)
        well_formed = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        well_formed = False
    if not well_formed or parts.query or parts.fragment or any(character.isspace() for character in url):
        raise ValueError(f"got {url!r}, expected http://HOST:PORT or https://HOST")
    return url.rstrip("/")


@dataclass(frozen=True)
class RemoteService:
    """One service.

    url               as `checked_url` returns it
    api_key           sent as a bearer token, unless it is empty
    patience_seconds  longest wait after refusals, all of one request together
    sleep             waits a number of seconds
    """

    url: str
    api_key: str = field(default="", repr=False)
    patience_seconds: float = PATIENCE_SECONDS
    sleep: Callable[[float], None] = time.sleep

    def get(self, path: str) -> bytes:
        """Return the answer of GET. Raises RemoteError."""
        return self._read(path, None)

    def post(self, path: str, body: bytes) -> bytes:
        """Return the answer of POST. Raises RemoteError."""
        return self._read(path, body)

    def stream(self, path: str, body: bytes) -> Iterator[bytes]:
        """Yield the data of each server-sent event as it comes. Raises RemoteError, also if the stream is cut off."""
        with self._translated(), self._open(path, body) as answer:
            for line in answer:
                data = line.removeprefix(EVENT).strip() if line.startswith(EVENT) else b""
                if data == LAST_EVENT:
                    return
                if data.startswith(b'{"error"'):
                    raise self._refused(None, data, "")
                if data:
                    yield data
            raise BadAnswer(self.url, "the stream ended before the text did")

    def _read(self, path: str, body: bytes | None) -> bytes:
        with self._translated(), self._open(path, body) as answer:
            data: bytes = answer.read()
            return data

    def _open(self, path: str, body: bytes | None) -> Any:
        headers = {"Content-Type": "application/json"} if body is not None else {}
        if self.api_key:
            headers["Authorization"] = f"Bearer {self.api_key}"
        request = urllib.request.Request(self.url + path, body, headers)  # noqa: S310 (checked_url: http or https)
        waited = 0.0
        while True:
            try:
                return _opener().open(request, timeout=ANSWER_SECONDS)
            except urllib.error.HTTPError as error:
                with error:
                    refused = self._refused(error.code, error.read(), error.reason)
                    wait = _retry_seconds(error.headers.get("Retry-After"))
                patience = LIMIT_SECONDS if refused.code == PAST_LIMIT else self.patience_seconds
                if error.code not in RETRIED or waited + wait > patience:
                    raise refused from None
            waited += wait
            self.sleep(wait)

    def _refused(self, status: int | None, body: bytes, reason: str) -> Refused:
        """Return the error of the contract, else that of HTTP."""
        try:
            detail = json.loads(body)["error"]
            code, message = str(detail["code"]), str(detail["message"])
        except (ValueError, LookupError, TypeError):
            code, message = "", reason or "an answer that is none of meari's"
        return Refused(self.url, status, code, message[:MESSAGE_CHARS])

    @contextmanager
    def _translated(self) -> Iterator[None]:
        """Turn errors of the standard library into errors of one line."""
        try:
            yield
        except RemoteError:
            raise
        except OSError as error:
            raise Unreachable(self.url, _reason(getattr(error, "reason", error))) from None
        except http.client.IncompleteRead:
            raise BadAnswer(self.url, "the answer was cut off") from None
        except http.client.HTTPException as error:
            raise BadAnswer(self.url, f"got no answer in HTTP ({type(error).__name__})") from None


def all_models(service: RemoteService) -> dict[str, Any]:
    """Return the answer of GET /models. Raises RemoteError."""
    return _object(service, service.get("/models"), "models")


def find_model(service: RemoteService, name: str | None) -> dict[str, Any]:
    """Return the answer of GET /models/NAME; without a name that of the default model. Raises RemoteError."""
    if name is not None:
        return _object(service, service.get(f"/models/{quote(name, safe='')}"), "hashes")
    served = all_models(service)
    found: dict[str, Any] = next(model for model in served["models"] if model["name"] == served["default"])
    return found


def _object(service: RemoteService, data: bytes, field: str) -> dict[str, Any]:
    """Return an answer as an object. Raises BadAnswer if it lacks the field."""
    try:
        answer = json.loads(data)
    except ValueError:
        answer = None
    if not isinstance(answer, dict) or field not in answer:
        raise BadAnswer(service.url, f"got an answer without {field}, expected a meari service")
    return answer


def _reason(error: object) -> str:
    if isinstance(error, ConnectionRefusedError):
        return "connection refused: is the service running there?"
    if isinstance(error, TimeoutError):
        return "no answer in time"
    if isinstance(error, ConnectionError):
        return "the service closed the connection"
    return f"cannot be reached: {error.strerror or error}" if isinstance(error, OSError) else str(error)


def _retry_seconds(header: str | None) -> float:
    """Return the seconds of the header; the default if it is not a number of seconds."""
    try:
        seconds = float(header or DEFAULT_RETRY_SECONDS)
    except ValueError:
        return DEFAULT_RETRY_SECONDS
    return max(0.0, seconds) if math.isfinite(seconds) else DEFAULT_RETRY_SECONDS


class _QuickConnect(http.client.HTTPConnection):
    """A connection that is given up earlier than an answer."""

    def connect(self) -> None:
        _connect(self, super().connect)


class _QuickSecureConnect(http.client.HTTPSConnection):
    """The same over TLS."""

    def connect(self) -> None:
        _connect(self, super().connect)


def _connect(connection: http.client.HTTPConnection, connect: Callable[[], None]) -> None:
    answer_seconds, connection.timeout = connection.timeout, CONNECT_SECONDS
    connect()
    connection.sock.settimeout(answer_seconds)


class _HTTP(urllib.request.HTTPHandler):
    def http_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
        return self.do_open(_QuickConnect, req)


class _HTTPS(urllib.request.HTTPSHandler):
    def https_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
        return self.do_open(_QuickSecureConnect, req)


def _opener() -> urllib.request.OpenerDirector:
    return urllib.request.build_opener(_HTTP, _HTTPS)
