"""Bytes as they come → chunks of whole lines, in bounded memory.

A line ends with "\\n"; the last one needs none. A line longer than LONG_BYTES is handed out in pieces. A byte-order
mark at the head of the input is dropped. Knows nothing of what stands in a line.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

__all__ = ["LONG_BYTES", "Chunk", "LineCutter"]

LONG_BYTES: Final = 1 << 18
BYTE_ORDER_MARK: Final = b"\xef\xbb\xbf"


@dataclass(frozen=True, slots=True)
class Chunk:
    """Whole lines, or a piece of one long line.

    first_line  number of the first line, from 1
    num_lines   lines in it; of a long line's pieces the last one has 1, the others 0
    end_offset  bytes of the input up to the end of the chunk
    is_long     a piece of a long line; `num_lines` says whether it is the last
    file        number of its file, from 0
    """

    data: bytes
    first_line: int
    num_lines: int
    end_offset: int
    is_long: bool = False
    digest: str = ""  # SHA-256 of a pipe up to the end of the chunk
    file: int = 0


class LineCutter:
    """Feed it bytes, take chunks. Starts `offset` bytes into the input, at line `line`."""

    def __init__(self, offset: int = 0, line: int = 1) -> None:
        self._data = b""
        self._at = 0
        self._offset = offset
        self._line = line
        self._inside_long = False
        self._closed = False
        self._is_broken = False

    @property
    def num_bytes(self) -> int:
        """Bytes that wait to be taken."""
        return len(self._data) - self._at

    @property
    def offset(self) -> int:
        """Where in the input they begin."""
        return self._offset

    @property
    def is_done(self) -> bool:
        """True once everything was taken."""
        return self._closed and not self.num_bytes and not self._inside_long

    def feed(self, data: bytes) -> None:
        """Add bytes."""
        self._data = self._data[self._at :] + data
        self._at = 0
        if self._offset == 0 and self._data.startswith(BYTE_ORDER_MARK):
            self._at = self._offset = len(BYTE_ORDER_MARK)

    def close(self) -> None:
        """Nothing more will come."""
        self._closed = True

    def break_off(self) -> None:
        """Nothing more can be read: a line without an end is not the whole line, and not handed out."""
        self._data = self._data[: self._data.rfind(b"\n") + 1]
        self._at = min(self._at, len(self._data))
        self._closed = self._is_broken = True

    def drain(self) -> bytes:
        """Take everything as it is."""
        data, self._data, self._at = self._data[self._at :], b"", 0
        self._offset += len(data)
        return data

    def first_line(self) -> bytes | None:
        """The line that is next, or as much as LONG_BYTES of it; None where it has not come completely."""
        end = self._data.find(b"\n", self._at)
        if end >= 0 or self._closed or self.num_bytes >= LONG_BYTES:
            return self._data[self._at : end if end >= 0 else len(self._data)]
        return None

    def take(self, max_lines: int, max_bytes: int, *, partial: bool) -> Chunk | None:
        """The next chunk: at most `max_lines` lines and, from the second on, `max_bytes` bytes.

        partial  hand out what is there, though it fills no chunk
        returns  None where more has to come first
        """
        if self._is_broken and not self.num_bytes:
            return None
        if self._inside_long:
            return self._take_long()
        end, count, full = self._at, 0, False
        while not full:
            stop = self._data.find(b"\n", end) + 1 or (len(self._data) if self._closed else 0)
            if stop in {0, end}:
                break
            full = count > 0 and (stop - self._at > max_bytes or count == max_lines)
            if not full:
                end, count = stop, count + 1
        first_bytes = (end if count == 1 else len(self._data)) - self._at
        if first_bytes > LONG_BYTES and count <= 1:
            return self._take_long()
        if count == 0 or not (full or partial or self._closed):
            return None
        return self._taken(end, count)

    def _take_long(self) -> Chunk | None:
        stop = self._data.find(b"\n", self._at, self._at + LONG_BYTES) + 1
        ends = stop > 0 or (self._closed and self.num_bytes <= LONG_BYTES)
        if not ends and self.num_bytes < LONG_BYTES:
            return None
        end = stop or min(len(self._data), self._at + LONG_BYTES)
        self._inside_long = not ends
        return self._taken(end, int(ends), is_long=True)

    def _taken(self, end: int, num_lines: int, *, is_long: bool = False) -> Chunk:
        data = self._data[self._at : end]
        self._at = end
        self._offset += len(data)
        chunk = Chunk(data, self._line, num_lines, self._offset, is_long)
        self._line += num_lines
        return chunk
