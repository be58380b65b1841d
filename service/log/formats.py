"""A log record → one line of JSON, or a line for a person.

The line of a request has `RequestLine.fields()` as further members. An exception that may quote a request
(`errors.MAY_QUOTE`) is told by its types and places alone, without its messages.
"""

from __future__ import annotations

import json
import logging
import traceback
from datetime import UTC, datetime
from typing import Final

import msgspec

from meari.runtime.text.json_lines import escape_line_ends
from meari.service.log.request_line import RequestLine

__all__ = ["JsonFormat", "TextFormat"]

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
