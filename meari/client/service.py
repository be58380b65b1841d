"""A running service: its models, and the bytes of its answers.

Input: a URL, paths and JSON bodies. Output: answers, whole or as a stream, or errors of one line. Must not know: any
other module of the project; it knows the HTTP contract, not how the service keeps it.

A refusal with `Retry-After` (429, and 503 while bundles are loaded) is asked again after so many seconds, as long as
that adds up to no more than `patience_seconds`; past a limit of the key, which other requests use too, for an hour,
unless it is 0.
Connections are kept between requests.
"""

from __future__ import annotations

import http.client
import json
import math
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from typing import Any, Final
from urllib.parse import quote, urlsplit

from meari.client.answers import read_answer
from meari.client.connections import Answer, Connections
from meari.client.descriptions import ModelDescription, ModelList
from meari.client.errors import OTHER_FIELDS, BadAnswer, Refused, RemoteError, Unreachable

__all__ = [
    "ANSWER_SECONDS",
    "CUT_STREAM",
    "FIRST_REFUSAL",
    "LAST_EVENT",
    "PATIENCE_SECONDS",
    "Events",
    "RemoteService",
    "all_models",
    "check_options",
    "checked_url",
    "event_data",
    "find_model",
    "refusal",
    "request_headers",
    "retry_seconds",
    "translated",
]

ANSWER_SECONDS: Final = 600.0  # of silence: a service's own limit for a request is below that
PATIENCE_SECONDS: Final = 120.0
LIMIT_SECONDS: Final = 3600.0
PAST_LIMIT: Final = "rate_limit_exceeded"
MIN_RETRY_SECONDS: Final = 0.1
DEFAULT_RETRY_SECONDS: Final = 1.0
RETRIED: Final = (429, 503)
MESSAGE_CHARS: Final = 1000
EVENT: Final = b"data:"
LAST_EVENT: Final = b"[DONE]"
CUT_STREAM: Final = "the stream ended before the text did"
FIRST_REFUSAL: Final = 300  # redirections are not followed: they are for pages


def checked_url(url: str) -> str:
    """Return the URL without a slash at its end. Raises ValueError if it is not the URL of a service."""
    try:
        parts = urlsplit(url)
        well_formed = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
        well_formed &= "@" not in parts.netloc  # a name and password, which nothing would send
        well_formed &= parts.path.isascii()
        (parts.hostname or "").encode("idna")  # its parts have 1 to 63 characters
    except (ValueError, AttributeError, TypeError):  # the latter two of what is no text
        well_formed = False
    if not well_formed or parts.query or parts.fragment or any(character.isspace() for character in url):
        raise ValueError(f"got {url!r}, expected http://HOST:PORT or https://HOST")
    return url.rstrip("/")


def check_options(key: object, timeout: object, patience: object) -> None:
    """Raise ValueError for a key that no header can have, and for times that are none."""
    if not isinstance(key, str) or not (key.isascii() and key.isprintable()):
        raise ValueError("key: got other characters, expected printable ASCII characters, which a header can have")
    if not _is_time(timeout) or not timeout:
        raise ValueError(f"timeout: got {timeout!r}, expected a finite number of seconds over 0")
    if not _is_time(patience):
        raise ValueError(f"patience: got {patience!r}, expected a finite number of seconds of 0 or more")


def _is_time(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < math.inf


class Events(Iterator[bytes]):
    """The data of the events of a stream. `close` ends it, before the first event too."""

    def __init__(self, events: Generator[bytes, None, None], answer: Answer) -> None:
        self._events = events
        self._answer = answer

    def __next__(self) -> bytes:
        return next(self._events)

    def close(self) -> None:
        self._events.close()
        self._answer.close()


@dataclass(frozen=True)
class RemoteService:
    """One service.

    url               as `checked_url` returns it
    api_key           sent as a bearer token, unless it is empty
    patience_seconds  longest wait after refusals, all of one request together
    sleep             waits a number of seconds
    answer_seconds    longest silence before an answer is given up
    """

    url: str
    api_key: str = field(default="", repr=False)
    patience_seconds: float = PATIENCE_SECONDS
    sleep: Callable[[float], None] = time.sleep
    answer_seconds: float = ANSWER_SECONDS
    _connections: Connections = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_connections", Connections(self.url, self.answer_seconds))

    def get(self, path: str) -> bytes:
        """Return the answer of GET. Raises RemoteError."""
        return self._read(path, None)

    def post(self, path: str, body: bytes) -> bytes:
        """Return the answer of POST. Raises RemoteError."""
        return self._read(path, body)

    def stream(self, path: str, body: bytes) -> Events:
        """Send a request at once; return the data of each server-sent event as it comes.

        Raises RemoteError, also if the stream is cut off.
        """
        with translated(self.url):
            answer = self._open(path, body)
        return Events(self._events(answer), answer)

    def close(self) -> None:
        """Close the idle connections."""
        self._connections.close()

    def _events(self, answer: Answer) -> Generator[bytes, None, None]:
        try:
            with translated(self.url):
                for line in answer.lines():
                    data = event_data(self.url, line)
                    if data == LAST_EVENT:
                        answer.read()
                        return
                    if data:
                        yield data
        finally:
            answer.close()
        raise BadAnswer(self.url, CUT_STREAM)

    def _read(self, path: str, body: bytes | None) -> bytes:
        with translated(self.url):
            return self._open(path, body).read()

    def _open(self, path: str, body: bytes | None) -> Answer:
        waited = 0.0
        while True:
            answer = self._connections.request(
                "GET" if body is None else "POST", path, body, request_headers(self.api_key, body)
            )
            if answer.status < FIRST_REFUSAL:
                return answer
            refused = refusal(self.url, answer.status, answer.read(), answer.reason)
            wait = retry_seconds(refused, answer.headers.get("Retry-After"), waited, self.patience_seconds)
            if wait is None:
                raise refused
            waited += wait
            self.sleep(wait)


@contextmanager
def translated(url: str) -> Iterator[None]:
    """Turn errors of the standard library into errors of one line."""
    try:
        yield
    except RemoteError:
        raise
    except OSError as error:
        raise Unreachable(url, _reason(error)) from None
    except http.client.IncompleteRead:
        raise BadAnswer(url, "the answer was cut off") from None
    except http.client.HTTPException as error:
        raise BadAnswer(url, f"got no answer in HTTP ({type(error).__name__})") from None


def all_models(service: RemoteService) -> dict[str, Any]:
    """Return the answer of GET /models. Raises RemoteError."""
    return _object(service, service.get("/models"), ModelList)


def find_model(service: RemoteService, name: str | None) -> dict[str, Any]:
    """Return the answer of GET /models/NAME; without a name that of the default model. Raises RemoteError."""
    if name is not None:
        return _object(service, service.get(f"/models/{quote(name, safe='')}"), ModelDescription)
    served = all_models(service)
    found: dict[str, dict[str, Any]] = {model["name"]: model for model in served["models"]}
    if served["default"] not in found:
        raise RemoteError(service.url, f"its default model is not served, but {', '.join(found) or 'none at all'}")
    return found[served["default"]]


def _object(service: RemoteService, data: bytes, kind: type) -> dict[str, Any]:
    """Return an answer as an object. Raises BadAnswer if it does not fit the type, or cannot be written as JSON."""
    try:
        answer: dict[str, Any] = json.loads(data)
        read_answer(kind, answer)
        json.dumps(answer, ensure_ascii=False, allow_nan=False).encode("utf-8")
    except (ValueError, LookupError, TypeError, AttributeError, OverflowError, RecursionError):
        raise BadAnswer(service.url, OTHER_FIELDS) from None
    return answer


def _reason(error: object) -> str:
    if isinstance(error, ConnectionRefusedError):
        return "connection refused: is the service running there?"
    if isinstance(error, TimeoutError):
        return "no answer in time"
    if isinstance(error, ConnectionError):
        return "the service closed the connection"
    return f"cannot be reached: {error.strerror or error}" if isinstance(error, OSError) else str(error)


def request_headers(api_key: str, body: bytes | None) -> dict[str, str]:
    """Return the headers of a request."""
    headers = {} if body is None else {"Content-Type": "application/json"}
    return {**headers, "Authorization": f"Bearer {api_key}"} if api_key else headers


def event_data(url: str, line: bytes) -> bytes:
    """Return the data in a line of a stream, empty for pings and blank lines. Raises Refused for an error event."""
    data = line.removeprefix(EVENT).strip() if line.startswith(EVENT) else b""
    if data.startswith(b'{"error"'):
        raise refusal(url, None, data, "")
    return data


def refusal(url: str, status: int | None, body: bytes, reason: str) -> Refused:
    """Return the error of the contract, else that of HTTP."""
    try:
        detail = json.loads(body)["error"]
        code, message = str(detail["code"]), str(detail["message"])
    except (ValueError, LookupError, TypeError, RecursionError):
        code, message = "", reason or "an answer that is none of meari's"
    return Refused(url, status, code, message[:MESSAGE_CHARS])


def retry_seconds(
    refused: Refused,
    header: str | None,
    waited: float,
    patience_seconds: float,
    clock: Callable[[], float] = time.time,
) -> float | None:
    """Return how long to wait before a refused request is sent again, None if it is not.

    header            value of Retry-After: seconds or, as proxies send it, a date; a second if it is neither. Where the
                      time has passed, a tenth of a second, and as long again as all before
    waited            seconds after earlier refusals of the same request
    patience_seconds  longest wait together; past a limit of the key, which other requests use too, an hour; 0: no wait
    """
    if refused.status not in RETRIED:
        return None
    seconds = _seconds(header, clock)
    seconds = seconds if math.isfinite(seconds) else DEFAULT_RETRY_SECONDS
    seconds = seconds if seconds >= MIN_RETRY_SECONDS else max(MIN_RETRY_SECONDS, waited)
    patience = LIMIT_SECONDS if refused.code == PAST_LIMIT and patience_seconds else patience_seconds
    return seconds if waited + seconds <= patience else None


def _seconds(header: str | None, clock: Callable[[], float]) -> float:
    try:
        return float(header or DEFAULT_RETRY_SECONDS)
    except ValueError:
        pass
    try:
        return parsedate_to_datetime(header or "").timestamp() - clock()
    except (ValueError, OverflowError):
        return DEFAULT_RETRY_SECONDS
