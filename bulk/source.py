"""Where the input comes from: a file, or standard input. Leaves: chunks of lines, and what tells the input from others.

A regular file is known by its size and SHA-256 before it is read, and read no further than that size. Of a pipe only
what has been read so far is known, by its SHA-256.
"""

from __future__ import annotations

import hashlib
import os
import select
import stat
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Final

from bulk.errors import BulkError, CannotResume
from bulk.lines import Chunk, LineCutter

__all__ = ["Source"]

READ_BYTES: Final = 1 << 18
BUFFER_BYTES: Final = 1 << 19


class Source:
    """An open input. `name` is how messages call it; "-" is standard input.

    num_bytes   size of a regular file, None of a pipe
    """

    def __init__(self, name: str) -> None:
        self.name = "standard input" if name == "-" else name
        try:
            self.fd = os.dup(0) if name == "-" else os.open(name, os.O_RDONLY | os.O_CLOEXEC)
            status = os.fstat(self.fd)
        except OSError as error:
            raise BulkError(f"{self.name}: {error.strerror}, expected a readable file") from None
        if stat.S_ISDIR(status.st_mode):
            raise BulkError(f"{self.name}: got a folder, expected a file of lines")
        # Files of /proc say that they are empty.
        self._is_file = stat.S_ISREG(status.st_mode) and status.st_size > 0
        self._begin = os.lseek(self.fd, 0, os.SEEK_CUR) if self._is_file else 0
        self.num_bytes = max(0, status.st_size - self._begin) if self._is_file else None
        self._cutter = LineCutter()
        self._num_read = 0
        self._ended = False
        self._taken = hashlib.sha256()

    @property
    def wants_more(self) -> bool:
        """True while there may be bytes to read and room for them."""
        return not self._ended and self._cutter.num_bytes < BUFFER_BYTES

    @property
    def is_done(self) -> bool:
        """True once every line was taken."""
        return self._cutter.is_done

    @property
    def num_left(self) -> int | None:
        """Bytes that have not been taken yet, None where nobody knows."""
        return None if self.num_bytes is None else self.num_bytes - self._num_read + self._cutter.num_bytes

    def is_same_file(self, path: Path) -> bool:
        """Whether it is read from the file at `path`."""
        return self._is_file and os.path.samestat(os.fstat(self.fd), path.stat())

    def is_readable(self) -> bool:
        """Whether `read` would not have to wait."""
        poll = select.poll()
        poll.register(self.fd, select.POLLIN)
        return bool(poll.poll(0))

    def read(self) -> None:
        """Take in some bytes, waiting for them if need be. Raises BulkError."""
        data = self._read(READ_BYTES)
        if data:
            self._cutter.feed(data)
        else:
            self._cutter.close()
            self._ended = True

    def first_line(self) -> bytes:
        """The next line, or as much of it as tells what it is; waits for it. Raises BulkError."""
        while (line := self._cutter.first_line()) is None:
            self.read()
        return line

    def take(self, max_lines: int, max_bytes: int, *, partial: bool) -> Chunk | None:
        """As `LineCutter.take`."""
        chunk = self._cutter.take(max_lines, max_bytes, partial=partial)
        if chunk is None or self._is_file:
            return chunk
        self._taken.update(chunk.data)
        return replace(chunk, digest=self._taken.hexdigest())

    def identity(self) -> dict[str, object]:
        """What tells this input from others, found without taking anything of it."""
        if not self._is_file:
            return {"pipe": True}
        digest = hashlib.sha256()
        for data in self._positioned(self._begin, self.num_bytes or 0):
            digest.update(data)
        return {"bytes": self.num_bytes, "sha256": digest.hexdigest()}

    def skip(self, offset: int, line: int, digest: str) -> None:
        """Go on `offset` bytes into the input, at `line`, where nothing has been taken yet.

        digest  SHA-256 of what comes before, of a pipe. Raises CannotResume where it brings other bytes.
        """
        if self._is_file:
            os.lseek(self.fd, self._begin + offset, os.SEEK_SET)
            self._num_read, self._ended = offset, False
            self._cutter = LineCutter(offset, line)
        elif offset:
            self._skip_read(offset, line, digest)

    def _skip_read(self, offset: int, line: int, digest: str) -> None:
        self.first_line()  # which may take a byte-order mark away
        left = offset - self._cutter.offset
        data = self._cutter.drain()
        while left > len(data) and not self._ended:
            self._taken.update(data)
            left -= len(data)
            data = self._read(READ_BYTES)
            self._ended = not data
        self._taken.update(data[:left])
        if left > len(data) or self._taken.hexdigest() != digest:
            raise CannotResume(f"{self.name}: its first {line - 1} lines differ from those of the run to resume")
        self._cutter = LineCutter(offset, line)
        self._cutter.feed(data[left:])
        if self._ended:
            self._cutter.close()

    def _read(self, count: int) -> bytes:
        if self.num_bytes is not None:
            count = min(count, self.num_bytes - self._num_read)
        try:
            data = os.read(self.fd, count)
        except OSError as error:
            raise BulkError(f"{self.name}: {error.strerror}, expected a readable file") from None
        self._num_read += len(data)
        return data

    def _positioned(self, begin: int, count: int) -> Iterator[bytes]:
        end = begin + count
        while begin < end and (data := os.pread(self.fd, min(1 << 20, end - begin), begin)):
            yield data
            begin += len(data)
