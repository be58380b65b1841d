"""A handler that writes the lines of several requests together where they come fast.

Each write lets the interpreter go, and beside a busy engine it has to be waited for again.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable
from typing import Final, TextIO

__all__ = ["MAX_LINES", "WAIT_SECONDS", "BufferedLines"]

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
