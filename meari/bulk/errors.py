"""What can end bulk work early.

BulkError
├── BadLine        a line of the input that is not what was expected
└── CannotResume   the output file belongs to other input or other settings, or to nothing known
Interrupted        a signal asked for the end
"""

from __future__ import annotations

import signal

__all__ = ["BadLine", "BulkError", "CannotResume", "Interrupted", "ReaderGone"]


class BulkError(Exception):
    """The root. `str(error)` says what came, what was expected and what to do."""


class BadLine(BulkError):
    """Work ended at a line; everything before it has been written."""


class CannotResume(BulkError):
    """Going on would not give what one run would have given."""


class ReaderGone(Exception):
    """Whoever read standard output has ended."""


class Interrupted(BaseException):
    """SIGINT or SIGTERM came. `line` is how far the output file is, None without one; `file` what it is of, if told."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.exit_code = 128 + number
        self.line: int | None = None
        self.file = ""
