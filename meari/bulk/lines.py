"""Bytes as they come → unpacked bytes → chunks of whole lines, in bounded memory.

Input: the bytes of one file or pipe. Output: chunks, or for a packed or encoded input that is not read here an error
with the command that converts it. Must not know: what stands in a line, where the bytes come from.

A line ends with "\\n"; the last one needs none. A line longer than LONG_BYTES is handed out in pieces. A byte-order
mark at the head of the input is dropped. gzip is unpacked as it comes.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from pathlib import PurePath
from typing import Final, Self

from meari.bulk.errors import BulkError
from meari.bulk.storage import content_name, is_url
from meari.file_kinds import GZIP, PARQUET, TAR, ZIP, kind_of_content

__all__ = ["LONG_BYTES", "Chunk", "LineCutter", "Unpacker", "refuse_other_kinds"]

LONG_BYTES: Final = 1 << 18
BYTE_ORDER_MARK: Final = b"\xef\xbb\xbf"
UNPACKED_BYTES: Final = 1 << 18  # at once


@dataclass(frozen=True, slots=True)
class Chunk:
    """Some whole lines, or a piece of one long line.

    first_line  number of the first line, from 1
    num_lines   lines in it; the last piece of a long line has 1, the others 0
    end_offset  bytes of the input up to the end of the chunk
    is_long     a piece of a long line
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
    """Cuts bytes that are fed into chunks. Starts `offset` bytes into the input, at line `line`."""

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
        """Number of bytes that wait to be taken."""
        return len(self._data) - self._at

    @property
    def offset(self) -> int:
        """Position of those bytes in the input."""
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
        """Note that nothing more will come."""
        self._closed = True

    def break_off(self) -> None:
        """Note that the rest cannot be read: a line without its end is not handed out."""
        self._data = self._data[: self._data.rfind(b"\n") + 1]
        self._at = min(self._at, len(self._data))
        self._closed = self._is_broken = True

    def drain(self) -> bytes:
        """Return all bytes that wait, as they are."""
        data, self._data, self._at = self._data[self._at :], b"", 0
        self._offset += len(data)
        return data

    def first_line(self) -> bytes | None:
        """Return the next line, or LONG_BYTES of it; None until that much has come."""
        end = self._data.find(b"\n", self._at)
        if end >= 0 or self._closed or self.num_bytes >= LONG_BYTES:
            return self._data[self._at : end if end >= 0 else len(self._data)]
        return None

    def take(self, max_lines: int, max_bytes: int, *, partial: bool) -> Chunk | None:
        """Return the next chunk: at most `max_lines` lines and, from the second on, `max_bytes` bytes.

        partial  hand out the lines that are there even if they fill no chunk
        returns  None if more has to come first
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


def refuse_other_kinds(name: str, head: bytes, *, is_unpacked: bool = False) -> None:
    """Raise BulkError for packed files and encodings that are not read here, with the command that converts them.

    is_unpacked  the first bytes were packed by gzip in the input
    """
    if head.startswith(PARQUET) and 0 in head:
        raise BulkError(f"{name}: got Parquet, whose index is at its end, expected a file by its name, not packed")
    own = content_name(name)
    if kind := kind_of_content(own, head):
        if is_url(name) and kind in {TAR, ZIP}:
            scheme = "tar" if kind is TAR else "zip"
            raise BulkError(f"{name}: got {kind.name}, expected a file in it: {scheme}://NAME::{name}")
        file = "-" if name == "standard input" else name
        is_gzip = is_unpacked or head.startswith(GZIP)
        raise BulkError(f"{name}: {kind.refusal(file, is_gzip=is_gzip)}")
    suffix = PurePath(own).suffix.lower()
    if suffix == ".parquet" and head:
        raise BulkError(f"{name}: got a .parquet that is not Parquet, expected Parquet, or text by another name")
    if not is_unpacked and suffix == ".gz" and head and not head.startswith(GZIP):
        raise BulkError(f"{name}: got a .gz that is not gzip, expected gzip, or plain text by another name")


class Unpacker:
    """Unpacks gzip as it comes, a bounded number of bytes at a time."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._member = zlib.decompressobj(wbits=31)
        self._left = b""
        self.has_more = False  # there may be more without further bytes

    @classmethod
    def of(cls, name: str, head: bytes) -> Self | None:
        """Return an unpacker, or None if the bytes are not gzip."""
        return cls(name) if head.startswith(GZIP) else None

    def unpack(self, data: bytes) -> bytes:
        """Unpack some more bytes, or those that are left. Raises BulkError if they are damaged."""
        data = self._left + data
        if self._member.eof:  # further members may follow, or zeros that fill a tape's block
            data = data.lstrip(b"\0")
            if not data:
                self._left, self.has_more = b"", False
                return b""
            self._member = zlib.decompressobj(wbits=31)
        try:
            unpacked = self._member.decompress(data, UNPACKED_BYTES)
        except zlib.error as error:
            raise self._damaged(str(error)) from None
        self._left = self._member.unused_data if self._member.eof else self._member.unconsumed_tail
        self.has_more = bool(self._left) or len(unpacked) == UNPACKED_BYTES
        return unpacked

    def end(self) -> None:
        """Note that nothing more comes. Raises BulkError if something is missing."""
        if not self._member.eof:
            raise self._damaged("it ends too early")

    def _damaged(self, reason: str) -> BulkError:
        return BulkError(f"{self._name}: got a damaged .gz ({reason}), expected a complete one")
