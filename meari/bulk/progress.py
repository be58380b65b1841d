"""The progress bar on standard error: a line that is written over itself on a terminal, now and then one in a log.

Input: counts. Output: lines. Must not know: the run. `rich.progress` takes 0.12 s of a CPU to import at every start,
and writes nothing into a log.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from typing import Final, TextIO

__all__ = ["Progress", "duration"]

TERMINAL_SECONDS: Final = 0.2  # between two updates of the bar
LOG_SECONDS: Final = 5.0  # between two lines of a log
BAR_CELLS: Final = 20


class Progress:
    """Shows how far a run is.

    num_bytes  of the whole input, None if unknown
    done       bytes that an earlier run has done
    """

    def __init__(
        self, num_bytes: int | None, done: int, clock: Callable[[], float], stream: TextIO = sys.stderr
    ) -> None:
        self._num_bytes = num_bytes
        self._before = done
        self._clock = clock
        self._stream = stream
        self._on_terminal = stream.isatty()
        self._started = self._shown = clock()
        self._is_drawn = False

    def show(self, num_bytes: int, num_lines: int, num_tokens: int) -> None:
        """Update the bar if it is time to.

        num_bytes   of the input that are done, of all runs
        num_lines   likewise
        num_tokens  of this run
        """
        now = self._clock()
        if now - self._shown < (TERMINAL_SECONDS if self._on_terminal else LOG_SECONDS):
            return
        self._shown = now
        line = self._line(num_bytes, num_lines, num_tokens, now - self._started)
        if self._on_terminal:
            width = shutil.get_terminal_size().columns - 1
            self._stream.write(f"\r{line[:width]:<{width}}")
        else:
            self._stream.write(line + "\n")
        self._is_drawn = True
        self._stream.flush()

    def end(self) -> None:
        """Clear the line."""
        if self._is_drawn and self._on_terminal:
            width = shutil.get_terminal_size().columns - 1
            self._stream.write(f"\r{'':<{width}}\r")
            self._stream.flush()

    def _line(self, num_bytes: int, num_lines: int, num_tokens: int, seconds: float) -> str:
        rate = f"{num_lines:,} lines, {num_tokens / seconds:,.0f} tokens/s"
        if not self._num_bytes:
            return f"{rate}, {duration(seconds)}"
        share = min(1.0, num_bytes / self._num_bytes)
        full = int(share * BAR_CELLS)
        bar = "█" * full + "░" * (BAR_CELLS - full)
        done = num_bytes - self._before
        left = (self._num_bytes - num_bytes) * seconds / done if done else None
        return f"{share:4.0%} {bar} {rate}, {'?' if left is None else duration(left)} left"


def duration(seconds: float) -> str:
    """Return a time as `1:02:03` or `2:03`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
