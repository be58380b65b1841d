"""Reasons for which bulk work ends early, and signals as one of them.

BulkError
├── BadLine        a line of the input that is not what was expected
└── CannotResume   the output file belongs to other input or other settings, or to nothing known
Interrupted        a signal asked for the end
ReaderGone         nobody reads standard output any more

Input: signals. Output: exceptions. Must not know: anything else, for it is imported first.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

__all__ = ["BadLine", "BulkError", "CannotResume", "Interrupted", "ReaderGone", "interruptible"]


class BulkError(Exception):
    """The root. `str(error)` says what came, what was expected and what to do."""


class BadLine(BulkError):
    """Work ended at a line; everything before it has been written."""


class CannotResume(BulkError):
    """A resumed run would not give the output of one whole run."""


class ReaderGone(Exception):
    """The reader of standard output has ended."""


class Interrupted(BaseException):
    """SIGINT or SIGTERM came.

    line  last line that is in the output file, None without a file
    file  input file of that line, "" unless records name files
    """

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.exit_code = 128 + number
        self.line: int | None = None
        self.file = ""


@contextmanager
def interruptible() -> Iterator[None]:
    """Let SIGINT and SIGTERM raise Interrupted in the main thread, once."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(number: int, _: FrameType | None) -> None:
        for each in before:
            signal.signal(each, signal.SIG_IGN)
        raised.append(Interrupted(number))
        raise raised[0]

    raised: list[Interrupted] = []
    before = {number: signal.signal(number, interrupt) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    except (ImportError, RecursionError) as error:
        if raised:  # within an import: compiled modules and numpy make another error of it
            raise raised[0] from error
        raise
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
