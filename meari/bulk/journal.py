"""How far an output file is: what lets a run that was ended at any moment go on without lost or doubled lines.

Beside FILE lies FILE.progress, one JSON object a line: first what the run is (input, settings), then checkpoints. A
checkpoint says how many bytes of FILE, with which checksum, belong to how many bytes and lines of the input, and the
sums so far. It is written, and made durable, after those bytes were. So whatever was going on when a run ended, the
last checkpoint that FILE reaches is true: FILE is cut there and the run goes on from that line.
"""

from __future__ import annotations

import json
import os
import zlib
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from meari.bulk.errors import BulkError, CannotResume

__all__ = ["Checkpoint", "Journal", "check_place", "is_interrupted", "journal_path", "read_run"]

FORMAT: Final = 1
START: Final = b'{"meari_progress": '  # of every journal
READ_BYTES: Final = 1 << 20


@dataclass(frozen=True)
class Checkpoint:
    """A place at which the output is exactly that of a number of whole lines.

    line          lines of the input that are done, of several files those of `file`
    input_bytes   where the next one begins
    input_digest  SHA-256 of what was read of a pipe, "" for a file
    output_bytes  size of the output
    output_crc    its CRC-32
    seconds       of work, over all runs
    totals        sums by name
    complete      whether that was all
    file          number of the file that the next line is of, from 0
    num_lines     lines that are done, of all files
    """

    line: int = 0
    input_bytes: int = 0
    input_digest: str = ""
    output_bytes: int = 0
    output_crc: int = 0
    seconds: float = 0.0
    totals: dict[str, int] | None = None
    complete: bool = False
    file: int = 0
    num_lines: int = 0


def journal_path(output: Path) -> Path:
    """The file beside an output."""
    return output.with_name(output.name + ".progress")


def check_place(output: Path) -> None:
    """Raises BulkError where a journal beside this output would replace a file that is no journal."""
    path = journal_path(output)
    for place in (path, path.with_name(path.name + ".tmp")):
        if place.exists() and not _is_ours(place):
            raise BulkError(
                f"{place}: got another file where the progress of the run is noted, expected none, or the progress of "
                "an earlier run; move it away, or choose another -o FILE; nothing was written"
            )


def _is_ours(path: Path) -> bool:
    """Whether a file is a journal, or the beginning of one."""
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
        """Write a new journal in place of an old one, in one step: FILE counts as empty from then on."""
        path = journal_path(output)
        fresh = path.with_name(path.name + ".tmp")
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

        run  must be equal to what that run was; the error names what differs
        """
        path = journal_path(output)
        found, checkpoints, num_bytes = _read(path)
        _check_same(path, found, {"meari_progress": FORMAT, **run})
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
    """What the journal beside an output says of its run, None where there is none. Raises CannotResume."""
    path = journal_path(output)
    return _read(path)[0] if path.exists() else None


def is_interrupted(output: Path) -> bool:
    """Whether there is a journal whose run never came to its end."""
    path = journal_path(output)
    try:
        _, checkpoints, _ = _read(path)
    except CannotResume:
        return False
    return not (checkpoints and checkpoints[-1].complete)


def crc_of(path: Path, num_bytes: int) -> int:
    """CRC-32 of the first bytes of a file."""
    crc = 0
    with path.open("rb") as file:
        while num_bytes and (data := file.read(min(READ_BYTES, num_bytes))):
            crc = zlib.crc32(data, crc)
            num_bytes -= len(data)
    return crc


def _append(fd: int, entry: dict[str, Any]) -> None:
    os.write(fd, json.dumps(entry).encode("ascii") + b"\n")
    os.fsync(fd)


def _read(path: Path) -> tuple[dict[str, Any], list[Checkpoint], int]:
    """The run, its checkpoints, and the bytes that they take: what follows was not written to its end."""
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
            checkpoints.append(Checkpoint(**json.loads(line)))
        except (ValueError, TypeError):
            break
        num_bytes += len(line) + 1
    return run, checkpoints, num_bytes


def _check_same(path: Path, found: dict[str, Any], expected: dict[str, Any]) -> None:
    differing = [
        f"{name}: got {expected.get(name)!r}, the run to resume had {found.get(name)!r}"
        for name in sorted({*found, *expected})
        if found.get(name) != expected.get(name)
    ]
    if differing:
        raise CannotResume(f"{path} is of a run with other input or settings: {'; '.join(differing)}")


def _last_reached(output: Path, checkpoints: list[Checkpoint]) -> Checkpoint:
    """The last checkpoint that the output reaches. Raises CannotResume where its bytes are others."""
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
