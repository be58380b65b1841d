"""The service's log: which records are written, where, and in which format.

Input: log records; that of a request carries its `RequestLine`. Output: lines on stderr, JSON or text. Must not know:
Flask, gunicorn.

All records go to stderr: the service's own, gunicorn's, and those of any library from WARNING on, so that whatever
collects the log meets one format. A terminal gets text for a person; a file, a pipe or a container's log is read by a
program and gets JSON. An exception that may quote a request (`errors.MAY_QUOTE`) is written with its types and places
alone, without its messages.
"""

from __future__ import annotations

import contextlib
import json
import logging
import sys
import time
import traceback
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Final, TextIO

import msgspec

from meari.runtime.text.json_lines import escape_line_ends
from meari.service.request_line import RequestLine

__all__ = [
    "MAX_LINES",
    "WAIT_SECONDS",
    "BufferedLines",
    "JsonFormat",
    "TextFormat",
    "configure_logging",
    "flush_log",
    "line_format",
    "show_libraries",
]

WAIT_SECONDS: Final = 0.1
MAX_LINES: Final = 64


class BufferedLines(logging.Handler):
    """Writes a line at once, unless it has just written some; then with those that follow. Warnings never wait."""

    def __init__(self, stream: TextIO, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._stream = stream
        self._clock = clock
        self._lines: list[str] = []
        self._written_at = -WAIT_SECONDS

    def emit(self, record: logging.LogRecord) -> None:
        """Add the record's line."""
        try:
            self._lines.append(self.format(record) + "\n")
            waited = self._clock() - self._written_at
            if record.levelno > logging.INFO or waited >= WAIT_SECONDS or len(self._lines) >= MAX_LINES:
                self.flush()
        except Exception:  # noqa: BLE001 (as all handlers do)
            self.handleError(record)

    def flush(self) -> None:
        """Write every line there is."""
        with self.lock or contextlib.nullcontext():
            lines, self._lines = self._lines, []
            if lines:
                self._written_at = self._clock()
                self._stream.write("".join(lines))
                self._stream.flush()


MAX_CAUSES: Final = 8
_encode: Final = msgspec.json.Encoder().encode
_IN_MESSAGE: Final = ("method", "path", "status")  # of a request


class JsonFormat(logging.Formatter):
    """One object a line: time (UTC), level, logger, process, message, what a request's line has, and an exception."""

    def format(self, record: logging.LogRecord) -> str:
        """The record's line."""
        members: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")[:-6] + "Z",
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
    """Local time, level, process, logger and message; what a request's line has follows as name=value."""

    def format(self, record: logging.LogRecord) -> str:
        """The record's line, and below it an exception."""
        pieces = [self.formatTime(record), record.levelname, str(record.process), _name(record), record.getMessage()]
        request = _request_of(record)
        if request is not None:
            fields = request.fields()
            pieces += [f"{name}={_cell(value)}" for name, value in fields.items() if name not in _IN_MESSAGE]
        line = " ".join(pieces)
        return f"{line}\n{exception_text(record)}" if record.exc_info else line


def exception_text(record: logging.LogRecord) -> str:
    """As Python shows it; where it may quote a request, without its message and those of its causes."""
    error = record.exc_info[1] if record.exc_info else None
    if error is None or not getattr(record, "may_quote", False):
        return "".join(traceback.format_exception(error)).rstrip()
    told: list[str] = []
    while error is not None and len(told) < MAX_CAUSES:
        told.append("".join(traceback.format_tb(error.__traceback__)) + type(error).__qualname__)
        error = error.__cause__ or error.__context__
    return "\n".join(told)


def _name(record: logging.LogRecord) -> str:
    """Return the logger's name as the log shows it: the place below the package."""
    return record.name.removeprefix("meari.")


def _request_of(record: logging.LogRecord) -> RequestLine | None:
    request = getattr(record, "request", None)
    return request if isinstance(request, RequestLine) else None


def _cell(value: object) -> str:
    if isinstance(value, str) and value.isascii() and value.isprintable() and " " not in value:
        return value
    return _encode(value).decode("utf-8", "replace")


def configure_logging(level: str, line_format: str) -> None:
    """Send the service's records of this level and above to stderr; asking again changes level and format.

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
    """The format that was chosen; JSON before that."""
    handlers = logging.getLogger("meari").handlers
    return (handlers[0].formatter if handlers else None) or JsonFormat()


def show_libraries() -> None:
    """Write warnings and errors of all other libraries, and Python's own warnings, in the same format."""
    root = logging.getLogger()
    logging.captureWarnings(True)
    if not root.handlers:
        root.addHandler(logging.StreamHandler(sys.stderr))
        root.setLevel(logging.WARNING)
    for handler in root.handlers:
        handler.setFormatter(line_format())


def flush_log() -> None:
    """Write what waits to be written; to be called now and then."""
    for handler in logging.getLogger("meari").handlers:
        handler.flush()
