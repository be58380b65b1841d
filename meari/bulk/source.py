"""The input of a run: files one after another, standard input, or a few texts.

Input: names of files. Output: chunks of lines, each of one file; of Parquet the rows as JSONL (`parquet.py`). Must not
know: what stands in a line.

A regular file is known by its size and SHA-256 before it is read, and read no further than that size. Of a pipe only
the bytes read so far are known, by their SHA-256. Offsets count unpacked bytes.
"""

from __future__ import annotations

import hashlib
import os
import select
import stat
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

import msgspec

from meari.bulk.errors import BulkError, CannotResume
from meari.bulk.lines import Chunk, LineCutter, Unpacker, refuse_other_kinds
from meari.bulk.parquet import ParquetInput, is_parquet
from meari.file_kinds import HEAD_BYTES, may_be_other

__all__ = ["Source", "TextSource"]

READ_BYTES: Final = 1 << 18
BUFFER_BYTES: Final = 1 << 19


class Input:
    """One open file or pipe; "-" is standard input.

    name     in messages
    failure  why it could not be read to its end; the whole lines before that point are handed out all the same
    """

    def __init__(self, name: str) -> None:
        self.name = "standard input" if name == "-" else name or "''"
        try:
            self.fd = os.dup(0) if name == "-" else os.open(name, os.O_RDONLY | os.O_CLOEXEC)
            status = os.fstat(self.fd)
        except OSError as error:
            raise BulkError(f"{self.name}: {error.strerror}, expected a readable file") from None
        if stat.S_ISDIR(status.st_mode):
            raise BulkError(f"{self.name}: got a folder, expected a file of lines")
        # Files of /proc say that they are empty.
        self.is_file = stat.S_ISREG(status.st_mode) and status.st_size > 0
        self._begin = os.lseek(self.fd, 0, os.SEEK_CUR) if self.is_file else 0
        self._size = max(0, status.st_size - self._begin) if self.is_file else None
        self._head = b""
        self._unpacker: Unpacker | None = None
        self._is_known = self._is_unpacked_known = False
        if self.is_file:
            self._know(os.pread(self.fd, HEAD_BYTES, self._begin))
        self._cutter = LineCutter()
        self._num_read = 0  # of the file, packed
        self._ended = False
        self._taken = hashlib.sha256()
        self.failure: BulkError | None = None

    @property
    def num_bytes(self) -> int | None:
        """Size of a regular file that is not packed, None for any other."""
        return self._size if self._unpacker is None else None

    @property
    def wants_more(self) -> bool:
        """True while there may be bytes to read and room for them."""
        return not self._ended and self._cutter.num_bytes < BUFFER_BYTES

    @property
    def is_done(self) -> bool:
        """True once every line has been taken."""
        return self._cutter.is_done

    @property
    def num_left(self) -> int | None:
        """Bytes that have not been taken yet, None if unknown."""
        return None if self.num_bytes is None else self.num_bytes - self._num_read + self._cutter.num_bytes

    def is_readable(self) -> bool:
        """Return whether `read` would return without waiting."""
        if self._unpacker is not None and self._unpacker.has_more:
            return True
        poll = select.poll()
        poll.register(self.fd, select.POLLIN)
        return bool(poll.poll(0))

    def read(self) -> None:
        """Read some bytes, waiting for them if need be. Raises BulkError for an input of a kind that is not read."""
        try:
            data, ended = self._read(READ_BYTES)
        except BulkError as failure:
            if not self._is_known or not (self._unpacker is None or self._is_unpacked_known):
                raise
            self.failure = failure
            self._cutter.break_off()
            self._ended = True
            return
        if data:
            self._cutter.feed(data)
        if ended:
            self._cutter.close()
            self._ended = True

    def first_line(self) -> bytes:
        """Wait for the next line and return it, or as much of it as shows its format. Raises BulkError."""
        while (line := self._cutter.first_line()) is None:
            self.read()
        if self.failure is not None and self._cutter.is_done:
            raise self.failure
        return line

    def take(self, max_lines: int, max_bytes: int, *, partial: bool) -> Chunk | None:
        """Take the next chunk; see `LineCutter.take`."""
        chunk = self._cutter.take(max_lines, max_bytes, partial=partial)
        if chunk is None or self.is_file:
            return chunk
        self._taken.update(chunk.data)
        return replace(chunk, digest=self._taken.hexdigest())

    def identity(self) -> dict[str, object]:
        """Return what tells this input from others; nothing of it is taken."""
        if not self.is_file:
            return {"pipe": True}
        digest = hashlib.sha256()
        for data in self._positioned(self._begin, self._size or 0):
            digest.update(data)
        return {"bytes": self._size, "sha256": digest.hexdigest()}

    def skip(self, offset: int, line: int, digest: str) -> None:
        """Continue `offset` bytes into the input, at `line`; nothing has been taken yet.

        digest  SHA-256 of the bytes before, for a pipe. Raises CannotResume if the pipe brings other bytes.
        """
        if self.is_file and self._unpacker is None:
            os.lseek(self.fd, self._begin + offset, os.SEEK_SET)
            self._num_read, self._ended = offset, False
            self._cutter = LineCutter(offset, line)
        elif offset:
            self._skip_read(offset, line, digest)

    def close(self) -> None:
        """Close the file."""
        os.close(self.fd)

    def _skip_read(self, offset: int, line: int, digest: str) -> None:
        self.first_line()  # which may take a byte-order mark away
        left = offset - self._cutter.offset
        data = self._cutter.drain()
        while left > len(data) and not self._ended:
            self._taken.update(data)
            left -= len(data)
            data, self._ended = self._read(READ_BYTES)
        self._taken.update(data[:left])
        if left > len(data) or (not self.is_file and self._taken.hexdigest() != digest):
            raise CannotResume(f"{self.name}: its first {line - 1} lines differ from those of the run to resume")
        self._cutter = LineCutter(offset, line)
        self._cutter.feed(data[left:])
        if self._ended:
            self._cutter.close()

    def _read(self, count: int) -> tuple[bytes, bool]:
        """Wait for some unpacked bytes; return them, and whether those were the last."""
        while True:
            if self._unpacker is not None and self._unpacker.has_more:
                data = self._checked(self._unpacker.unpack(b""))
            else:
                raw = self._read_raw(count)
                data = self._known(raw)
                if not raw:
                    if self._unpacker is not None:
                        self._unpacker.end()
                    return data, True
            if data:
                return data, False

    def _known(self, raw: bytes) -> bytes:
        """Return the next bytes unpacked, once their kind is known."""
        if not self._is_known:
            self._head += raw
            if raw and may_be_other(self._head):
                return b""
            self._know(self._head)
            raw, self._head = self._head, b""
        return raw if self._unpacker is None else self._checked(self._unpacker.unpack(raw))

    def _checked(self, unpacked: bytes) -> bytes:
        """Return the same bytes. Raises BulkError if the first ones are of a kind that is not read."""
        if unpacked and not self._is_unpacked_known:
            refuse_other_kinds(self.name, unpacked, is_unpacked=True)
            self._is_unpacked_known = True
        return unpacked

    def _know(self, head: bytes) -> None:
        refuse_other_kinds(self.name, head)
        self._unpacker = Unpacker.of(self.name, head)
        self._is_known = True

    def _read_raw(self, count: int) -> bytes:
        if self._size is not None:
            count = min(count, self._size - self._num_read)
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


def open_input(name: str) -> Input | ParquetInput:
    """Open one input. Raises BulkError."""
    return ParquetInput(name) if name != "-" and is_parquet(name) else Input(name)


class Source:
    """All inputs, in order; each is open while it is read.

    names        of the files; "-" is standard input, which stands alone
    tells_files  records name their file
    num_bytes    of all files, None if unknown
    """

    def __init__(self, names: Sequence[str], *, tells_files: bool = False) -> None:
        self._names = list(names)
        self.tells_files = tells_files
        self._number = 0
        self._input = open_input(self._names[0])
        self._sizes = [self._input.num_bytes, *map(self._size_of, self._names[1:])]
        self.num_bytes = _sum(self._sizes)

    @property
    def fd(self) -> int:
        """Descriptor of the input that is being read."""
        return self._input.fd

    @property
    def wants_more(self) -> bool:
        """True while there may be bytes to read and room for them."""
        return self._input.wants_more

    @property
    def is_done(self) -> bool:
        """True once every line has been taken."""
        return self._input.is_done and self._number + 1 == len(self._names)

    @property
    def failure(self) -> BulkError | None:
        """The reason why the current input has no end."""
        return self._input.failure

    @property
    def is_broken_off(self) -> bool:
        """True once every whole line has been taken of an input without an end."""
        return self.failure is not None and self._input.is_done

    @property
    def num_left(self) -> int | None:
        """Bytes that have not been taken yet, None if unknown."""
        return _sum([self._input.num_left, *self._sizes[self._number + 1 :]])

    def name(self, number: int) -> str:
        """Return the name of a file in messages."""
        return self._input.name if number == self._number else self._names[number]

    def label(self, number: int) -> str:
        """Return the name of a file in records, "" if they name none."""
        return self._names[number] if self.tells_files else ""

    def bytes_before(self, number: int) -> int:
        """Return the bytes of all files before one of them, 0 if their sizes are unknown."""
        return _sum(self._sizes[:number]) or 0

    def is_readable(self) -> bool:
        """Return whether `read` would return without waiting."""
        return self._input.is_readable()

    def read(self) -> None:
        """Read some bytes, waiting for them if need be. Raises BulkError."""
        self._input.read()

    def first_line(self) -> bytes:
        """Wait for the next line and return it, or as much of it as shows its format. Raises BulkError."""
        return self._input.first_line()

    def first_lines(self) -> Iterator[tuple[str, bytes]]:
        """Yield the name and the first line of every file; nothing has been taken yet. Raises BulkError."""
        yield self._names[0], self.first_line()
        for name in self._names[1:]:
            one = open_input(name)
            line = one.first_line()
            one.close()
            yield name, line

    def take(self, max_lines: int, max_bytes: int, *, partial: bool) -> Chunk | None:
        """Take the next chunk, after the last line of a file from the next file; see `LineCutter.take`."""
        while (chunk := self._input.take(max_lines, max_bytes, partial=partial)) is None:
            if not self._input.is_done or self.failure is not None or self.is_done:
                return None
            self._open(self._number + 1)
            self._input.read()
        return replace(chunk, file=self._number)

    def identity(self) -> dict[str, object]:
        """Return what tells these inputs from others; nothing of them is taken."""
        if not self.tells_files:
            return self._input.identity()
        digest = hashlib.sha256()
        for name in self._names:
            one = open_input(name)
            digest.update(f"{name}\0{one.identity()}\n".encode("utf-8", "surrogateescape"))
            one.close()
        return {"files": len(self._names), "sha256": digest.hexdigest()}

    def skip(self, number: int, offset: int, line: int, digest: str) -> None:
        """Continue in one of the files; see `Input.skip`."""
        if number:
            self._open(number)
        self._input.skip(offset, line, digest)

    def check_texts(self, field: str) -> None:
        """Raise BulkError for a Parquet file without a column of texts by that name."""
        for name in self._names:
            if name != "-" and is_parquet(name):
                one = ParquetInput(name)
                one.check_text(field)
                one.close()

    def _open(self, number: int) -> None:
        self._input.close()
        self._input = open_input(self._names[number])
        self._number = number

    @staticmethod
    def _size_of(name: str) -> int | None:
        """Return the size of a file that comes later. Raises BulkError if it cannot be read, or not more than once."""
        one = open_input(name)
        one.close()
        if not one.is_file and not Path(name).is_file():
            raise BulkError(f"{name}: got a pipe or device beside other inputs, expected regular files")
        return one.num_bytes if one.is_file else 0


class TextSource:
    """A few texts, as the lines of a JSONL file that would hold them.

    data  those lines
    """

    def __init__(self, texts: Sequence[str]) -> None:
        self.data = b"".join(msgspec.json.encode({"text": text}) + b"\n" for text in texts)
        self.num_lines = len(texts)
        self.num_bytes: int | None = len(self.data)

    def name(self, number: int) -> str:
        """Return the name in messages."""
        return "--text"

    def label(self, number: int) -> str:
        """Return the name in records: none."""
        return ""

    def bytes_before(self, number: int) -> int:
        """Return the bytes of all files before this one: none."""
        return 0

    def identity(self) -> dict[str, object]:
        """Return what tells these texts from others."""
        return {"bytes": len(self.data), "sha256": hashlib.sha256(self.data).hexdigest()}


def _sum(sizes: Sequence[int | None]) -> int | None:
    """Return the sum, None if one of the sizes is unknown."""
    known = [size for size in sizes if size is not None]
    return sum(known) if len(known) == len(sizes) else None
