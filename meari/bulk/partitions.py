"""Partitions of a corpus: files anywhere that fsspec reads → ranges of whole lines, and the lines of a range.

Input: names of files. Output: partitions, chunks of their lines. Must not know: what is done with them, or by whom.

Bytes that differ from those that were counted when the job began are refused.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from typing import IO, Final, Literal

import msgspec

from meari.bulk.errors import BulkError
from meari.bulk.lines import Chunk, LineCutter, Unpacker, refuse_other_kinds
from meari.bulk.options import Share
from meari.bulk.parquet import check_text_column, json_lines, open_parquet
from meari.bulk.storage import absolute, content_name, fs_of, is_packed, is_url, names_below, open_file
from meari.file_kinds import GZIP, HEAD_BYTES, PARQUET

__all__ = ["File", "Inputs", "Partition", "chunks_of", "list_inputs", "numbered", "ranges_of", "survey"]

READ_BYTES: Final = 1 << 18
FIND_BYTES: Final = 1 << 20
SUFFIXES: Final = (".txt", ".text", ".gz", ".parquet")
Kind = Literal["plain", "gzip", "parquet"]


class File(msgspec.Struct, frozen=True):
    """One input. `name` is its path or URL as it was given, `path` the same from any working folder."""

    name: str
    path: str
    size: int
    kind: Kind


class Partition(msgspec.Struct, frozen=True):
    """Some whole lines of a file.

    start, end  bytes of a plain file, rows of Parquet, 0 and the size of a file that gzip has packed
    sha256      of those bytes as they are stored; of Parquet that of the file's index
    """

    number: int
    name: str
    path: str
    kind: Kind
    start: int
    end: int
    first_line: int
    num_lines: int | None
    sha256: str


def list_inputs(names: Sequence[str]) -> list[File]:
    """Return the files; of URLs also those of folders and patterns, sorted by name. Raises BulkError."""
    found = [file for name in names for file in _files_of(name)]
    return [_known(name) for name in found]


def _files_of(name: str) -> list[str]:
    if not is_url(name):
        return [name]
    fs, path = fs_of(name)
    # Of HTTP, a folder is a page of links: fsspec would read the whole of a file to look for some.
    is_file = name.startswith("http") and not name.endswith("/")
    if not is_file and fs.isdir(path):
        inside = [one for one in sorted(fs.find(path)) if one.lower().endswith(SUFFIXES)]
        shown = [one for one in inside if not one.rpartition("/")[2].startswith(".")]
        files = names_below(name, fs, path, shown)
    else:
        files = names_below(name, fs, path, sorted(fs.glob(path))) if "*" in name else [name]
    if not files:
        raise BulkError(f"{name}: got no file that ends in {', '.join(SUFFIXES)}, expected some")
    return files


def _known(name: str) -> File:
    fs, path = fs_of(name)
    with open_file(name) as file:
        head = file.read(HEAD_BYTES)
        size = _size_of(name, file, fs.size(path))
    if head.startswith(PARQUET) and (0 in head or content_name(name).lower().endswith(".parquet")):
        return File(name, absolute(name), size, "parquet")
    refuse_other_kinds(name, head)
    return File(name, absolute(name), size, "gzip" if head.startswith(GZIP) else "plain")


def _size_of(name: str, file: IO[bytes], size: int | None) -> int:
    """Return the size of a file. Raises BulkError if only its beginning can be read, as on some HTTP servers."""
    problem = "the server does not tell its size"
    try:
        if size is not None:
            if size and name.startswith("http"):
                file.seek(size - 1)
                file.read(1)
            return size
    except (OSError, ValueError) as error:
        problem = str(error)
    raise BulkError(f"{name}: {problem}; expected a file of which any range can be read")


class Inputs:
    """The inputs of a job, as far as their format and fields must be known before it begins; see `Source`."""

    def __init__(self, files: Sequence[File]) -> None:
        self._files = files

    def first_lines(self) -> Iterator[tuple[str, bytes]]:
        """Yield the name and the first line of every file. Raises BulkError."""
        for file in self._files:
            yield file.name, _first_line(file)

    def first_line(self) -> bytes:
        """Return the first line of the first file, or as much of it as shows its fields. Raises BulkError."""
        return _first_line(self._files[0])

    def check_texts(self, field: str) -> None:
        """Raise BulkError for a Parquet file without a column of texts by that name."""
        for file in self._files:
            if file.kind == "parquet":
                with open_file(file.path) as opened, open_parquet(file.name, opened) as parquet:
                    check_text_column(parquet, file.name, field)


def _first_line(file: File) -> bytes:
    cutter = LineCutter()
    data = _lines_of(Partition(0, file.name, file.path, file.kind, 0, file.size, 1, None, ""))
    while (line := cutter.first_line()) is None:
        more = next(data, None)
        if more is None:
            cutter.close()
        else:
            cutter.feed(more)
    return line


def ranges_of(file: File, max_bytes: int) -> list[tuple[File, int, int]]:
    """Return the ranges of bytes in which lines are counted; one of a file that cannot be cut."""
    if file.kind != "plain" or is_packed(file.path):
        return [(file, 0, file.size)]
    return [(file, at, min(at + max_bytes, file.size)) for at in range(0, file.size, max_bytes)]


def survey(file: File, start: int, end: int, max_bytes: int) -> list[Partition]:
    """Return the partitions that begin in a range of a file, with numbers and lines counted from 0 there."""
    if file.kind == "parquet":
        return _survey_parquet(file, max_bytes)
    with open_file(file.path) as opened:
        if file.kind == "gzip":
            digest = hashlib.sha256()
            while data := opened.read(READ_BYTES):
                digest.update(data)
            return [Partition(0, file.name, file.path, "gzip", 0, file.size, 0, None, digest.hexdigest())]
        begin = _line_start(opened, start, end)
        return [] if begin is None else [_survey_lines(opened, file, begin, end)]


def _line_start(opened: IO[bytes], start: int, end: int) -> int | None:
    """Return where the first line begins that begins in a range, None if none does."""
    if start == 0:
        return 0
    at = start - 1
    opened.seek(at)
    while at < end - 1 and (data := opened.read(min(FIND_BYTES, end - 1 - at))):
        if (found := data.find(b"\n")) >= 0:
            return at + found + 1
        at += len(data)
    return None


def _survey_lines(opened: IO[bytes], file: File, begin: int, end: int) -> Partition:
    """Count the lines that begin from `begin` on and before `end`; the last of them may end behind it."""
    digest, at, num_lines, last = hashlib.sha256(), begin, 0, b""
    opened.seek(begin)
    while at < file.size and (data := opened.read(min(FIND_BYTES, file.size - at))):
        if at + len(data) >= end and (found := data.find(b"\n", max(0, end - 1 - at))) >= 0:
            data = data[: found + 1]
            file_end = True
        else:
            file_end = False
        digest.update(data)
        num_lines += data.count(b"\n")
        at, last = at + len(data), data[-1:]
        if file_end:
            break
    num_lines += last != b"\n"
    return Partition(0, file.name, file.path, "plain", begin, at, 0, num_lines, digest.hexdigest())


def _survey_parquet(file: File, max_bytes: int) -> list[Partition]:
    with open_file(file.path) as opened, open_parquet(file.name, opened) as parquet:
        digest = _index_digest(opened, file.size)
        found: list[Partition] = []
        begin = row = size = 0
        for group in range(parquet.num_row_groups):
            about = parquet.metadata.row_group(group)
            row, size = row + about.num_rows, size + about.total_byte_size
            if size >= max_bytes or group + 1 == parquet.num_row_groups:
                found.append(Partition(0, file.name, file.path, "parquet", begin, row, begin, row - begin, digest))
                begin, size = row, 0
    return found


def _index_digest(opened: IO[bytes], size: int) -> str:
    opened.seek(size - 8)
    length = int.from_bytes(opened.read(8)[:4], "little")
    opened.seek(max(0, size - 8 - length))
    return hashlib.sha256(opened.read()).hexdigest()


def numbered(found: Iterable[Sequence[Partition]]) -> list[Partition]:
    """Return partitions in order, numbered, with the numbers of their lines in their files; those without lines not."""
    done: list[Partition] = []
    num_before = 0  # lines of the same file
    for partition in (partition for several in found for partition in several if partition.num_lines != 0):
        if partition.start == 0:  # a file begins, which may have been named before
            num_before = 0
        own = num_before if partition.kind == "plain" else partition.first_line
        num_before += partition.num_lines or 0
        done.append(msgspec.structs.replace(partition, number=len(done), first_line=own + 1))
    return done


def _lines_of(partition: Partition) -> Iterator[bytes]:
    """Yield the bytes of a partition's lines. Raises BulkError at the end if they are not those that were counted."""
    digest = hashlib.sha256()
    with open_file(partition.path) as opened:
        if partition.kind == "parquet":
            fs, path = fs_of(partition.path)
            _check_digest(partition, _index_digest(opened, fs.size(path)))
            with open_parquet(partition.name, opened) as parquet:
                last = partition.end if partition.num_lines is not None else None
                yield from json_lines(parquet, partition.name, partition.start, last)
            return
        opened.seek(partition.start)
        unpacker = Unpacker(partition.name) if partition.kind == "gzip" else None
        left = partition.end - partition.start
        while left and (data := opened.read(min(READ_BYTES, left))):
            left -= len(data)
            digest.update(data)
            if unpacker is None:
                yield data
                continue
            unpacked = unpacker.unpack(data)
            if left + len(data) == partition.end:
                refuse_other_kinds(partition.name, unpacked, is_unpacked=True)
            yield unpacked
            while unpacker.has_more:
                yield unpacker.unpack(b"")
        if unpacker is not None:
            unpacker.end()
    _check_digest(partition, digest.hexdigest())


def _check_digest(partition: Partition, found: str) -> None:
    if partition.sha256 and found != partition.sha256:
        raise BulkError(f"{partition.name}: got other bytes than when the job began, expected the same file")


def chunks_of(partition: Partition, share: Share) -> Iterator[Chunk]:
    """Yield the lines of a partition in chunks, in flat memory. Raises BulkError."""
    cutter = LineCutter(partition.start if partition.kind == "plain" else 0, partition.first_line)
    data = _lines_of(partition)
    while not cutter.is_done:
        if (chunk := cutter.take(share.lines, share.max_bytes, partial=False)) is not None:
            yield chunk
        elif (more := next(data, None)) is None:
            cutter.close()
        else:
            cutter.feed(more)
