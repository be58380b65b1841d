"""Logging: one line an event on stderr, one line a request. Nothing of a request's text is logged.

Under load the lines of several requests are written together: each write lets the interpreter go, and beside a busy
engine it has to be waited for again.
"""

from __future__ import annotations

import contextlib
import logging
import sys
import time
from collections.abc import Callable
from typing import Final, TextIO
from urllib.parse import quote

__all__ = ["BufferedLines", "RequestLine", "configure_logging", "flush_log", "log_request"]

_FORMAT: Final = "%(asctime)s %(levelname)s %(process)d %(name)s %(message)s"
WAIT_SECONDS: Final = 0.1
MAX_LINES: Final = 64
_access: Final = logging.getLogger("service.access")


def configure_logging(level: str) -> None:
    """Send the service's records of this level and above to stderr; asking again only changes the level."""
    root = logging.getLogger("service")
    root.setLevel(level.upper())
    root.propagate = False
    if not root.handlers:
        handler = BufferedLines(sys.stderr)
        handler.setFormatter(logging.Formatter(_FORMAT))
        root.addHandler(handler)


def flush_log() -> None:
    """Write what waits to be written; to be called now and then."""
    for handler in logging.getLogger("service").handlers:
        handler.flush()


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


class RequestLine:
    """What the line of one request says."""

    __slots__ = ("code", "method", "model", "path", "request_id", "tokens")

    def __init__(self, request_id: str, method: str, path: str) -> None:
        self.request_id = request_id
        self.method = method
        self.path = path
        self.model = ""
        self.tokens = 0
        self.code = ""


def log_request(line: RequestLine, status: int, seconds: float) -> None:
    """Write the line."""
    _access.info(
        "%s %s %d %.1f ms request_id=%s model=%s tokens=%d%s",
        line.method,
        quote(line.path[:200], safe="/"),
        status,
        seconds * 1000,
        line.request_id,
        quote(line.model[:100], safe="") or "-",
        line.tokens,
        f" code={line.code}" if line.code else "",
    )
