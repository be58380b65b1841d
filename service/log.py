"""The service's log: one line a request and whatever else happens, on stderr, as JSON or text.

Input: log records; that of a request carries its `RequestLine`, filled in while the request was handled. Output: lines.
Must not know: Flask, gunicorn.

All records go to stderr: the service's own, gunicorn's, and those of any library from WARNING on, so that whatever
collects the log meets one format. A terminal gets text for a person; a file, a pipe or a container's log is read by a
program and gets JSON. Prompts and answers are in a line only where the caller put them there; nothing else quotes a
request but its method, its path and the model's name. An exception that may quote a request (`errors.MAY_QUOTE`) is
written with its types and places alone, without its messages.
"""

from __future__ import annotations

import contextlib
import enum
import json
import logging
import re
import secrets
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from typing import Final, TextIO
from urllib.parse import quote

import msgspec

from meari.errors import MeariError
from meari.runtime.answers import Work
from meari.validation.parsing import escape_line_ends

__all__ = [
    "MAX_LINES",
    "NO_ROUTE",
    "WAIT_SECONDS",
    "BufferedLines",
    "JsonFormat",
    "RequestLine",
    "RequestOutcome",
    "TextFormat",
    "configure_logging",
    "flush_log",
    "line_format",
    "log_request",
    "request_id",
    "show_libraries",
]

MAX_PATH_CHARS: Final = 200
NO_ROUTE: Final = "none"
CLIENT_FAULTS: Final = (501, 505)  # parts of HTTP that the service does not have were requested
_access: Final = logging.getLogger("meari.service.access")
_SANE: Final = re.compile(r"[A-Za-z0-9._-]{1,128}")
WAIT_SECONDS: Final = 0.1
MAX_LINES: Final = 64
MAX_CAUSES: Final = 8
_encode: Final = msgspec.json.Encoder().encode
_IN_MESSAGE: Final = ("method", "path", "status")  # of a request


class RequestOutcome(enum.StrEnum):
    """End of a request."""

    OK = "ok"
    INVALID = "invalid"  # a mistake of the caller
    REFUSED = "refused"  # overloaded, starting or ending
    FAILED = "failed"  # a fault of the service
    ABORTED = "aborted"  # the client went away first


@dataclass(slots=True)
class RequestLine:
    """The line of one request, filled in while the request is handled; seconds count from its head."""

    request_id: str
    method: str
    path: str
    route: str
    status: int = 0
    client_address: str = ""
    key: str = ""  # its name
    model: str = ""
    stream: bool = False
    aborted: bool = False
    error: MeariError | None = None
    error_field: str = ""  # the first wrong field, if it is one of the contract's
    error_message: str = ""  # only if it quotes nothing, or if texts are logged
    work: Work | None = None
    queue_seconds: float | None = None
    first_token_seconds: float | None = None
    total_seconds: float = 0.0
    trace_id: str = ""
    span_id: str = ""
    prompts: tuple[str, ...] = ()
    answers: tuple[str, ...] = ()

    @property
    def has_route(self) -> bool:
        """False for a path that the service does not have."""
        return self.route != NO_ROUTE

    @property
    def outcome(self) -> RequestOutcome:
        """End of the request, from the error or the status: a stream that fails has a status of 200."""
        if self.aborted:
            return RequestOutcome.ABORTED
        status = self.status if self.error is None else self.error.status
        if status in (429, 503):
            return RequestOutcome.REFUSED
        if status >= 400:
            return RequestOutcome.FAILED if status >= 500 and status not in CLIENT_FAULTS else RequestOutcome.INVALID
        return RequestOutcome.OK

    def fields(self) -> dict[str, object]:
        """Return the members of the line, in the order in which they are written, with units in their names."""
        fields: dict[str, object] = {"request_id": self.request_id}
        if self.trace_id:
            fields |= {"trace_id": self.trace_id, "span_id": self.span_id}
        fields |= {
            "method": self.method,
            "path": self.quoted_path,
            "route": self.route,
            "status": self.status,
            "outcome": self.outcome.value,
        }
        if self.client_address:
            fields["client_address"] = self.client_address
        if self.key:
            fields["key"] = self.key
        if self.model:
            fields |= {"model": self.model, "stream": self.stream}
        if self.work is not None:
            fields |= _work_fields(self.work)
        if self.queue_seconds is not None:
            fields["queue_ms"] = _milliseconds(self.queue_seconds)
        if self.first_token_seconds is not None:
            fields["first_token_ms"] = _milliseconds(self.first_token_seconds)
        fields["total_ms"] = _milliseconds(self.total_seconds)
        self._add_error(fields)
        if self.prompts or self.answers:
            fields |= {"prompts": self.prompts, "answers": self.answers}
        return fields

    def _add_error(self, fields: dict[str, object]) -> None:
        if self.error is not None:
            fields["error"] = self.error.code
        if self.error_field:
            fields["error_field"] = self.error_field
        if self.error_message:
            fields["error_message"] = self.error_message

    @property
    def quoted_path(self) -> str:
        """The path as one word of ASCII."""
        return _quoted(self.path[:MAX_PATH_CHARS])


@lru_cache(maxsize=64)
def _quoted(path: str) -> str:
    return quote(path, safe="/%")


def log_request(line: RequestLine) -> None:
    """Write the line: an error if the service failed, a warning if a time limit was reached, else information."""
    level = logging.INFO
    if line.outcome is RequestOutcome.FAILED:
        level = logging.WARNING if line.error is not None and line.error.status == 504 else logging.ERROR
    if _access.isEnabledFor(level):
        message, values = "%s %s %d", (line.method, line.quoted_path, line.status)
        extra = {"request": line}  # the next line does what a logger does, but does not look for its caller
        _access.handle(_access.makeRecord(_access.name, level, "", 0, message, values, None, extra=extra))


def _work_fields(work: Work) -> dict[str, object]:
    fields: dict[str, object] = {
        "prompt_tokens": work.prompt_tokens,
        "cached_tokens": work.cached_tokens,
        "generated_tokens": work.generated_tokens,
        "scored_tokens": work.scored_tokens,
    }
    if work.finish_reasons:
        fields["finish_reasons"] = work.finish_reasons
    return fields


def _milliseconds(seconds: float) -> float:
    return round(seconds * 1000, 3)


def request_id(sent: str | None) -> str:
    """Return the id to log and to send back: the caller's if it is a sane one, else a new one."""
    return sent if sent is not None and _SANE.fullmatch(sent) else secrets.token_hex(8)


class BufferedLines(logging.Handler):
    """Writes a line at once, unless it has just written some; then it writes the line with those that follow.

    Each write releases the interpreter, and beside a busy engine the thread has to wait to get it back. Warnings never
    wait.
    """

    def __init__(self, stream: TextIO, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._stream = stream
        self._clock = clock
        self._lines: list[str] = []
        self._written_at = -WAIT_SECONDS

    def emit(self, record: logging.LogRecord) -> None:
        """Add the record's line, and write if it is time."""
        try:
            self._lines.append(self.format(record) + "\n")
            waited = self._clock() - self._written_at
            if record.levelno > logging.INFO or waited >= WAIT_SECONDS or len(self._lines) >= MAX_LINES:
                self.flush()
        except Exception:  # noqa: BLE001 (as all handlers do)
            self.handleError(record)

    def flush(self) -> None:
        """Write every waiting line."""
        with self.lock or contextlib.nullcontext():
            lines, self._lines = self._lines, []
            if lines:
                self._written_at = self._clock()
                self._stream.write("".join(lines))
                self._stream.flush()


class JsonFormat(logging.Formatter):
    """One object per line: time (UTC), level, logger, process, message, a request's fields, and an exception."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the record's line."""
        members: dict[str, object] = {
            "time": f"{_second(int(record.created))}.{int(record.created % 1 * 1000):03d}Z",
            "level": record.levelname.lower(),
            "logger": _name(record),
            "process": record.process,
            "message": record.getMessage(),
        }
        request = _request_of(record)
        if request is not None:
            members |= request.fields()
        if record.exc_info:
            members["exception"] = exception_text(record)
        try:
            return escape_line_ends(_encode(members)).decode()
        except UnicodeEncodeError:  # half of a surrogate pair, say from a file's name
            return json.dumps(members)


class TextFormat(logging.Formatter):
    """Local time, level, process, logger and message, then a request's fields as name=value."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the record's line, and below it an exception."""
        pieces = [self.formatTime(record), record.levelname, str(record.process), _name(record), record.getMessage()]
        request = _request_of(record)
        if request is not None:
            fields = request.fields()
            pieces += [f"{name}={_cell(value)}" for name, value in fields.items() if name not in _IN_MESSAGE]
        line = " ".join(pieces)
        return f"{line}\n{exception_text(record)}" if record.exc_info else line


@lru_cache(maxsize=1)
def _second(timestamp: int) -> str:
    return datetime.fromtimestamp(timestamp, UTC).isoformat()[:-6]


def exception_text(record: logging.LogRecord) -> str:
    """Return an exception as Python shows it; if it may quote a request, without any message."""
    error = record.exc_info[1] if record.exc_info else None
    if error is None or not getattr(record, "may_quote", False):
        return "".join(traceback.format_exception(error)).rstrip()
    lines: list[str] = []
    while error is not None and len(lines) < MAX_CAUSES:
        lines.append("".join(traceback.format_tb(error.__traceback__)) + type(error).__qualname__)
        error = error.__cause__ or error.__context__
    return "\n".join(lines)


def _name(record: logging.LogRecord) -> str:
    """Return the logger's name as the log shows it: its module below the package."""
    return record.name.removeprefix("meari.")


def _request_of(record: logging.LogRecord) -> RequestLine | None:
    request = getattr(record, "request", None)
    return request if isinstance(request, RequestLine) else None


def _cell(value: object) -> str:
    if isinstance(value, str) and value.isascii() and value.isprintable() and " " not in value:
        return value
    return _encode(value).decode("utf-8", "replace")


def configure_logging(level: str, line_format: str) -> None:
    """Send the service's records of this level and above to stderr; another call changes level and format.

    line_format: text, json, or auto, which is text on a terminal.
    """
    service = logging.getLogger("meari")
    service.setLevel(level.upper())
    service.propagate = False
    if not service.handlers:
        service.addHandler(BufferedLines(sys.stderr))
    as_text = line_format == "text" or (line_format == "auto" and sys.stderr.isatty())
    for handler in service.handlers:
        handler.setFormatter(TextFormat() if as_text else JsonFormat())


def line_format() -> logging.Formatter:
    """Return the configured format; JSON before there is one."""
    handlers = logging.getLogger("meari").handlers
    return (handlers[0].formatter if handlers else None) or JsonFormat()


def show_libraries() -> None:
    """Write warnings and errors of all other libraries, and Python's own warnings, in the same format."""
    root = logging.getLogger()
    logging.captureWarnings(capture=True)
    if not root.handlers:
        root.addHandler(logging.StreamHandler(sys.stderr))
        root.setLevel(logging.WARNING)
    for handler in root.handlers:
        handler.setFormatter(line_format())


def flush_log() -> None:
    """Write the waiting lines; to be called now and then."""
    for handler in logging.getLogger("meari").handlers:
        handler.flush()
