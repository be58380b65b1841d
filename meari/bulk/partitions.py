"""Partitions of a corpus: files → ranges of whole lines, and the work on one range → a part of the output, once.

Input: files anywhere that fsspec reads. Output: a folder with a part for each range, its commit, at last a manifest.
Must
not know: Ray, or who works on which partition when.

    job.json                 what the job is: its options, its files, its partitions with their checksums
    parts/part-00012.jsonl   records of partition 12, in the order of its lines
    commits/00012.json       written after its part: lines, bytes and SHA-256. A part without it does not count
    manifest.json            written last: all parts

The records of a partition depend on its lines and the options alone, so it does no harm if two workers do it: both
write the same bytes, and each file is replaced whole. A partition that is committed is not done again. Bytes that
differ from those that were counted when the job began are refused.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import tempfile
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import IO, Any, Final, Literal

import msgspec

from meari.bulk.errors import BulkError
from meari.bulk.frames import Bad, Begun, Done, LineWork, LongLine, Part
from meari.bulk.lines import LONG_BYTES, Chunk, LineCutter, Unpacker, refuse_other_kinds
from meari.bulk.options import ScoreOptions, WorkOptions, figure_types
from meari.bulk.parquet import check_text_column, json_lines, open_parquet, write_parquet
from meari.file_kinds import GZIP, HEAD_BYTES, PARQUET

__all__ = [
    "Commit",
    "File",
    "Folder",
    "Inputs",
    "Partition",
    "commit_partition",
    "list_inputs",
    "numbered",
    "ranges_of",
    "survey",
]

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


class Commit(msgspec.Struct, frozen=True):
    """A part that is complete. `lines` are those of the input, both seconds those of the worker, `totals` its sums."""

    partition: int
    part: str
    lines: int
    bytes: int
    sha256: str
    seconds: float
    cpu_seconds: float
    totals: dict[str, int]


def open_file(name: str) -> IO[bytes]:
    """Open a path or URL for reading. Raises BulkError."""
    fs, path = _fs_of(name)
    try:
        opened: IO[bytes] = fs.open(path, "rb")
    except (OSError, ValueError) as error:
        raise BulkError(f"{name}: {getattr(error, 'strerror', None) or error}, expected a readable file") from None
    return opened


def absolute(name: str) -> str:
    """Return a path or URL that means the same in any working folder."""
    return name if "://" in name else str(Path(name).absolute())


def list_inputs(names: Sequence[str]) -> list[File]:
    """Return the files; of URLs also those of folders and patterns, sorted by name. Raises BulkError."""
    found = [file for name in names for file in _files_of(name)]
    return [_known(name) for name in found]


def _files_of(name: str) -> list[str]:
    if "://" not in name:
        return [name]
    fs, path = _fs_of(name)
    if fs.isdir(path):
        inside = [fs.unstrip_protocol(one) for one in sorted(fs.find(path))]
        files = [one for one in inside if one.lower().endswith(SUFFIXES) and not one.rpartition("/")[2].startswith(".")]
    else:
        files = [fs.unstrip_protocol(one) for one in sorted(fs.glob(path))] if "*" in name else [name]
    if not files:
        raise BulkError(f"{name}: got no file that ends in {', '.join(SUFFIXES)}, expected some")
    return files


def _known(name: str) -> File:
    fs, path = _fs_of(name)
    with open_file(name) as file:
        head = file.read(HEAD_BYTES)
    if head.startswith(PARQUET) and (0 in head or name.lower().endswith(".parquet")):
        return File(name, absolute(name), fs.size(path), "parquet")
    refuse_other_kinds(name, head)
    return File(name, absolute(name), fs.size(path), "gzip" if head.startswith(GZIP) else "plain")


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
    if file.kind != "plain":
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
    lines: dict[str, int] = {}
    for partition in (partition for several in found for partition in several if partition.num_lines != 0):
        first = lines.get(partition.name, 0)
        own = first + 1 if partition.kind == "plain" else partition.first_line + 1
        lines[partition.name] = first + (partition.num_lines or 0)
        done.append(msgspec.structs.replace(partition, number=len(done), first_line=own))
    return done


def _lines_of(partition: Partition) -> Iterator[bytes]:
    """Yield the bytes of a partition's lines. Raises BulkError at the end if they are not those that were counted."""
    digest = hashlib.sha256()
    with open_file(partition.path) as opened:
        if partition.kind == "parquet":
            fs, path = _fs_of(partition.path)
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


@dataclass(frozen=True)
class Held:
    """Bounds of a chunk and of the chunks that are worked on at a time."""

    lines: int
    bytes: int
    lines_held: int
    bytes_held: int


OF_SCORE: Final = Held(512, 1 << 16, 1024, 1 << 20)
OF_GENERATE: Final = Held(32, 1 << 15, 384, 1 << 20)


def chunks_of(partition: Partition, held: Held) -> Iterator[Chunk]:
    """Yield the lines of a partition in chunks, in flat memory. Raises BulkError."""
    cutter = LineCutter(partition.start if partition.kind == "plain" else 0, partition.first_line)
    data = _lines_of(partition)
    while not cutter.is_done:
        if (chunk := cutter.take(held.lines, held.bytes, partial=False)) is not None:
            yield chunk
        elif (more := next(data, None)) is None:
            cutter.close()
        else:
            cutter.feed(more)


def messages_of(work: LineWork, chunks: Iterable[Chunk], held: Held, file: str) -> Iterator[Part | Bad | Done]:
    """Yield the results of chunks in order, while the engine has the next ones already."""
    begun: deque[tuple[Begun, int, int]] = deque()
    long: LongLine | None = None
    for chunk in chunks:
        if not chunk.is_long:
            begun.append((work.begin(chunk.data, chunk.first_line, file), chunk.num_lines, len(chunk.data)))
        else:
            if long is None:
                long = work.begin_long(chunk.first_line, file)
                begun.append((long, 1, LONG_BYTES))
            long.feed(chunk.data, ends=chunk.num_lines > 0)
            long = None if chunk.num_lines else long
        while _is_full(begun, held) and begun[0][0] is not long:
            yield from begun.popleft()[0].messages()
    while begun:
        yield from begun.popleft()[0].messages()


def _is_full(begun: deque[tuple[Begun, int, int]], held: Held) -> bool:
    lines, size = sum(lines for _, lines, _ in begun), sum(size for _, _, size in begun)
    return bool(begun) and (lines >= held.lines_held or size >= held.bytes_held)


class Folder:
    """The output of a job, a local folder or a URL."""

    def __init__(self, name: str) -> None:
        self.name = absolute(name.rstrip("/"))

    @cached_property
    def is_local(self) -> bool:
        """True if files can be renamed into place; elsewhere one appears whole when it is closed."""
        return type(_fs_of(self.name)[0]).__name__ == "LocalFileSystem"

    def path(self, *names: str) -> str:
        """Return the path or URL of a file in it."""
        return "/".join((self.name, *names))

    def make(self) -> None:
        """Make the folder and those in it."""
        for name in ("parts", "commits"):
            fs, path = _fs_of(self.path(name))
            fs.makedirs(path, exist_ok=True)

    def clear(self) -> None:
        """Remove all that a job has left."""
        fs, path = _fs_of(self.name)
        if fs.exists(path):
            fs.rm(path, recursive=True)

    def names(self, *below: str) -> list[str]:
        """Return the names of files in a folder of it, none if there is no such folder."""
        fs, path = _fs_of(self.path(*below) if below else self.name)
        fs.invalidate_cache()
        return [one.rpartition("/")[2] for one in fs.ls(path, detail=False)] if fs.exists(path) else []

    def has(self, *names: str) -> bool:
        """Return whether there is such a file."""
        fs, path = _fs_of(self.path(*names))
        return bool(fs.exists(path))

    def read(self, *names: str) -> bytes:
        """Return the bytes of a file. Raises BulkError."""
        with open_file(self.path(*names)) as file:
            return file.read()

    def write(self, data: bytes, *names: str) -> None:
        """Write a file, whole or not at all. Raises BulkError."""
        with tempfile.TemporaryDirectory() as folder:
            fresh = Path(folder) / "file"
            fresh.write_bytes(data)
            self.put(fresh, *names)

    def put(self, file: Path, *names: str) -> None:
        """Copy a local file to its place, whole or not at all. Raises BulkError."""
        fs, path = _fs_of(self.path(*names))
        try:
            if not self.is_local:
                fs.put_file(str(file), path)
                return
            fresh = Path(path).with_name(f".{Path(path).name}.{secrets.token_hex(4)}.tmp")
            with file.open("rb") as source, fresh.open("wb") as target:
                while data := source.read(1 << 20):
                    target.write(data)
                target.flush()
                os.fsync(target.fileno())
            fresh.replace(path)
        except OSError as error:
            raise BulkError(f"{path}: {error.strerror or error}, expected a place to write to") from None

    def commits(self) -> list[Commit]:
        """Return the partitions that are done."""
        names = sorted(name for name in self.names("commits") if name.endswith(".json") and not name.startswith("."))
        return [msgspec.json.decode(self.read("commits", name), type=Commit) for name in names]


def commit_partition(
    partition: Partition, work: LineWork, options: WorkOptions, folder: Folder, *, suffix: str, max_bad: int
) -> Commit | str:
    """Work on a partition, write its part and commit it; or return the problem of the bad line that ends the run.

    Raises BulkError.
    """
    name = f"{partition.number:05}.json"
    if folder.has("commits", name):
        return msgspec.json.decode(folder.read("commits", name), type=Commit)
    started, cpu_started = time.monotonic(), time.process_time()
    held = OF_SCORE if isinstance(options, ScoreOptions) else OF_GENERATE
    label = partition.name if options.with_file else ""
    totals: dict[str, int] = {}
    num_bad = 0
    with tempfile.TemporaryDirectory() as scratch:
        fresh = Path(scratch) / "rows"
        with fresh.open("wb") as file:
            file.write(work.head)
            for message in messages_of(work, chunks_of(partition, held), held, label):
                match message:
                    case Part():
                        file.write(message.data)
                    case Bad():
                        num_bad += 1
                        if num_bad > max_bad:
                            return f"{partition.name}: {message.problem}"
                    case Done():
                        for key, count in message.totals().items():
                            totals[key] = totals.get(key, 0) + count
        lines = sum(totals.get(key, 0) for key in ("num_texts", "num_blank", "num_prompts", "num_bad_lines"))
        if suffix == ".parquet":
            write_parquet(fresh, Path(scratch) / "parquet", figure_types(options), b"{}")
            fresh = Path(scratch) / "parquet"
        part = f"part-{partition.number:05}{suffix}"
        with fresh.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        folder.put(fresh, "parts", part)
        seconds = round(time.monotonic() - started, 3), round(time.process_time() - cpu_started, 3)
        commit = Commit(partition.number, part, lines, fresh.stat().st_size, digest, *seconds, totals)
    folder.write(msgspec.json.encode(commit), "commits", name)
    return commit


def _fs_of(name: str) -> tuple[Any, str]:
    try:
        from fsspec.core import url_to_fs
    except ImportError:
        raise BulkError("--engine ray: got an installation without fsspec, expected meari[ray]") from None
    try:
        found: tuple[Any, str] = url_to_fs(name)
    except (ImportError, ValueError) as error:
        raise BulkError(f"{name}: {error}") from None
    return found
