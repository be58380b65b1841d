"""The output of a run, and its journal: how far an output file is.

Input: bytes of records, checkpoints. Output: standard output, or a file with FILE.progress beside it. Must not know:
records.

FILE.progress lets a run that was ended at any moment be resumed without lost or doubled lines. It holds a JSON object a
line: first the identity of the run (input, settings), then checkpoints. A checkpoint says how many bytes of FILE, with
which checksum, belong to how many bytes and lines of the input, and the sums so far. It is written, and made durable,
after those bytes were. So whenever a run ended, the last checkpoint that FILE reaches is true: FILE is cut there and
the run continues from that line.
"""

from __future__ import annotations

import fcntl
import json
import os
import stat
import zlib
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Final

import msgspec

from meari.bulk.errors import BulkError, CannotResume, ReaderGone
from meari.bulk.frames import write_all

__all__ = [
    "Checkpoint",
    "Journal",
    "Output",
    "check_journal",
    "check_same",
    "is_interrupted",
    "journal_paths",
    "read_run",
]

FORMAT: Final = 1
START: Final = b'{"meari_progress": '  # of every journal
READ_BYTES: Final = 1 << 20
Count = Annotated[int, msgspec.Meta(ge=0)]


class Output:
    """An open output.

    num_bytes  written so far, and in a regular file kept from an earlier run
    crc        of the bytes of a regular file
    is_file    it is a regular file, which can be cut and resumed
    """

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self.num_bytes = 0
        self.crc = 0
        try:
            self._fd = os.dup(1) if path is None else os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o666)
        except OSError as error:
            raise BulkError(f"{path}: {error.strerror}, expected a file to write to") from None
        self.is_file = path is not None and stat.S_ISREG(os.fstat(self._fd).st_mode)
        if self.is_file:
            self._lock()

    def start_at(self, num_bytes: int, crc: int) -> None:
        """Keep the first `num_bytes` bytes, whose checksum is `crc`, and write behind them."""
        if self.is_file:
            if os.fstat(self._fd).st_size != num_bytes:
                os.ftruncate(self._fd, num_bytes)
            os.lseek(self._fd, num_bytes, os.SEEK_SET)
        self.num_bytes, self.crc = num_bytes, crc

    def write(self, data: bytes) -> None:
        """Write all bytes. Raises ReaderGone, BulkError."""
        try:
            write_all(self._fd, data)
        except BrokenPipeError:
            raise ReaderGone from None
        except OSError as error:
            raise BulkError(f"{self.path or 'standard output'}: {error.strerror}") from None
        self.num_bytes += len(data)
        if self.is_file:
            self.crc = zlib.crc32(data, self.crc)

    def sync(self) -> None:
        """Make the written bytes durable. Raises BulkError."""
        if self.is_file:
            try:
                os.fsync(self._fd)
            except OSError as error:
                raise BulkError(f"{self.path}: {error.strerror}") from None

    def close(self) -> None:
        """Close it."""
        os.close(self._fd)

    def _lock(self) -> None:
        """Lock the file, if the file system has locks. Raises BulkError if another run holds it."""
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._fd)
            raise BulkError(f"{self.path}: another run is writing to it") from None
        except OSError:
            pass


@dataclass(frozen=True)
class Checkpoint:
    """A point at which the output is exactly that of a number of whole lines.

    line          lines of the input that are done, of several files those of `file`
    input_bytes   position of the next one
    input_digest  SHA-256 of the bytes read from a pipe, "" for a file
    output_bytes  size of the output
    output_crc    its CRC-32
    seconds       of work, over all runs
    totals        sums by name
    complete      all lines are done
    file          number of the file of the next line, from 0
    num_lines     lines that are done, of all files
    """

    line: Count = 0
    input_bytes: Count = 0
    input_digest: str = ""
    output_bytes: Count = 0
    output_crc: Count = 0
    seconds: float = 0.0
    totals: dict[str, int] | None = None
    complete: bool = False
    file: Count = 0
    num_lines: Count = 0


def journal_paths(output: Path) -> tuple[Path, Path]:
    """Return the journal beside an output, and the file that becomes it."""
    path = output.with_name(output.name + ".progress")
    return path, path.with_name(path.name + ".tmp")


def check_journal(output: Path) -> None:
    """Raise BulkError if a journal beside this output would replace a file that is no journal."""
    for path in journal_paths(output):
        if path.exists() and not _is_ours(path):
            raise BulkError(
                f"{path}: got another file where the progress of the run is noted, expected none, or the progress of "
                "an earlier run; move it away, or choose another -o FILE; nothing was written"
            )


def _is_ours(path: Path) -> bool:
    """Return whether a file is a journal, or the beginning of one."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        head = file.read(len(START))
    return START.startswith(head)


class Journal:
    """An open journal; `begin` or `resume` make one."""

    def __init__(self, fd: int, path: Path) -> None:
        self._fd = fd
        self.path = path

    @classmethod
    def begin(cls, output: Path, run: dict[str, Any]) -> Journal:
        """Replace an old journal by a new one, in one step: FILE counts as empty from then on."""
        path, fresh = journal_paths(output)
        try:
            fd = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_CLOEXEC, 0o666)
            _append(fd, {"meari_progress": FORMAT, **run})
            fresh.rename(path)
            _sync_folder(path.parent)
        except OSError as error:
            raise BulkError(f"{path}: {error.strerror}, expected a place to note the progress in") from None
        return cls(fd, path)

    @classmethod
    def resume(cls, output: Path, run: dict[str, Any]) -> tuple[Journal, Checkpoint]:
        """Open the journal of an earlier run and find how far FILE is. Raises CannotResume.

        run  must be equal to that of the earlier run; the error names the differences
        """
        path, _ = journal_paths(output)
        found, checkpoints, num_bytes = _read(path)
        check_same(path, found, {"meari_progress": FORMAT, **run})
        checkpoint = _last_reached(output, checkpoints)
        journal = cls(os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC), path)
        os.ftruncate(journal._fd, num_bytes)
        if [checkpoint] != checkpoints[-1:]:
            journal.note(checkpoint)
        return journal, checkpoint

    def note(self, checkpoint: Checkpoint) -> None:
        """Add a checkpoint; the output's bytes must be durable already. Raises BulkError."""
        try:
            _append(self._fd, asdict(checkpoint))
        except OSError as error:
            raise BulkError(f"{self.path}: {error.strerror}, expected room to note the progress in") from None

    def close(self) -> None:
        """Close the file; it stays."""
        os.close(self._fd)


def read_run(output: Path) -> dict[str, Any] | None:
    """Return what identifies the run of the journal beside an output, None if there is none. Raises CannotResume."""
    path, _ = journal_paths(output)
    return _read(path)[0] if path.exists() else None


def is_interrupted(output: Path) -> bool:
    """Return whether there is a journal whose run never came to its end."""
    path, _ = journal_paths(output)
    try:
        _, checkpoints, _ = _read(path)
    except CannotResume:
        return False
    return not (checkpoints and checkpoints[-1].complete)


def crc_of(path: Path, num_bytes: int) -> int:
    """Return the CRC-32 of the first bytes of a file."""
    crc = 0
    with path.open("rb") as file:
        while num_bytes and (data := file.read(min(READ_BYTES, num_bytes))):
            crc = zlib.crc32(data, crc)
            num_bytes -= len(data)
    return crc


def _append(fd: int, entry: dict[str, Any]) -> None:
    write_all(fd, json.dumps(entry).encode("ascii") + b"\n")
    os.fsync(fd)


def _read(path: Path) -> tuple[dict[str, Any], list[Checkpoint], int]:
    """Return the run, its checkpoints, and the bytes that they take: any bytes behind them are a part of an entry."""
    try:
        head, *lines = path.read_bytes().split(b"\n")[:-1] or [b""]
    except OSError as error:
        raise CannotResume(f"{path}: {error.strerror}, expected the progress of the run to resume") from None
    try:
        run: dict[str, Any] = json.loads(head)
        if run["meari_progress"] != FORMAT:
            raise CannotResume(f"{path}: format {run['meari_progress']!r}, expected {FORMAT}")
    except (ValueError, KeyError, TypeError):
        raise CannotResume(f"{path}: damaged, expected the progress of the run to resume") from None
    checkpoints, num_bytes = [], len(head) + 1
    for line in lines:
        try:
            checkpoints.append(msgspec.json.decode(line, type=Checkpoint))
        except (msgspec.DecodeError, UnicodeDecodeError):
            break
        num_bytes += len(line) + 1
    return run, checkpoints, num_bytes


def check_same(path: Path | str, found: dict[str, Any], expected: dict[str, Any]) -> None:
    """Raise CannotResume if a run is not the one that `path` is of; the message names the differences."""
    differing = [
        f"{name}: got {expected.get(name)!r}, the run to resume had {found.get(name)!r}"
        for name in sorted({*found, *expected})
        if found.get(name) != expected.get(name)
    ]
    if differing:
        raise CannotResume(f"{path} is of a run with other input or settings: {'; '.join(differing)}")


def _last_reached(output: Path, checkpoints: list[Checkpoint]) -> Checkpoint:
    """Return the last checkpoint that the output reaches. Raises CannotResume if its bytes were changed."""
    size = output.stat().st_size if output.exists() else 0
    reached = [checkpoint for checkpoint in checkpoints if checkpoint.output_bytes <= size]
    last = reached[-1] if reached else Checkpoint()
    if last.output_bytes and crc_of(output, last.output_bytes) != last.output_crc:
        raise CannotResume(f"{output}: it was changed since its run ended, expected it as it was left")
    return last


def _sync_folder(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
