"""The standard streams of a command: three that are open, and an error stream that never ends the work.

Input: descriptors 0, 1 and 2 as the shell left them. Output: `sys.stdin`, `sys.stdout` and `sys.stderr`. Must not know:
verbs.

A descriptor that the shell closed (`>&-`) would be given to the next file that is opened, and what a library prints
would be written into that file. So each closed one is held: input and output by a file that cannot be read or written,
so that a verb which needs one fails, the error stream by /dev/null.
"""

import fcntl
import io
import os
import sys
from typing import Any, Final, TextIO

__all__ = ["open_streams"]

HELD: Final = ((0, os.O_WRONLY), (1, os.O_RDONLY), (2, os.O_WRONLY))  # as a closed one, 0 and 1 refuse their use


class _Messages(io.FileIO):
    """Descriptor 2. A message that cannot be written is lost: a full disk must not undo work that is done."""

    def write(self, data: Any, /) -> int:
        try:
            return super().write(data)
        except OSError:
            return memoryview(data).nbytes


def open_streams() -> None:
    """Open the closed standard streams, and make messages safe; streams that somebody has replaced are left alone."""
    for descriptor, mode in HELD:
        try:
            os.fstat(descriptor)
        except OSError:
            held = os.open(os.devnull, mode)  # the lowest free number, which is this one
            fcntl.fcntl(held, fcntl.F_SETFD, 0)  # for children, too
    if sys.stdin is None:
        sys.stdin = _text(io.FileIO(0, "w", closefd=False))
    if sys.stdout is None:
        sys.stdout = _text(io.FileIO(1, "w", closefd=False))
    if sys.stderr is None or sys.stderr is sys.__stderr__:
        sys.stderr = _text(_Messages(2, "w", closefd=False), getattr(sys.stderr, "encoding", "utf-8"))


def _text(raw: io.FileIO, encoding: str = "utf-8") -> TextIO:
    return io.TextIOWrapper(io.BufferedWriter(raw), encoding, "backslashreplace", line_buffering=True)
