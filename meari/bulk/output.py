"""Where records go: standard output, or a file with its checksum. Knows nothing of records."""

from __future__ import annotations

import fcntl
import os
import stat
import zlib
from pathlib import Path

from meari.bulk.errors import BulkError, ReaderGone
from meari.bulk.frames import write_all

__all__ = ["Output"]


class Output:
    """An open output. `num_bytes` and `crc` are of what a regular file holds.

    is_file  whether it is a regular file: one that can be cut and gone on with
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
        """Keep so many bytes, whose checksum is `crc`, and write behind them."""
        if self.is_file:
            if os.fstat(self._fd).st_size != num_bytes:
                os.ftruncate(self._fd, num_bytes)
            os.lseek(self._fd, num_bytes, os.SEEK_SET)
        self.num_bytes, self.crc = num_bytes, crc

    def write(self, data: bytes) -> None:
        """Write everything. Raises ReaderGone, BulkError."""
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
        """Make what was written durable. Raises BulkError."""
        if self.is_file:
            try:
                os.fsync(self._fd)
            except OSError as error:
                raise BulkError(f"{self.path}: {error.strerror}") from None

    def close(self) -> None:
        """Close it."""
        os.close(self._fd)

    def _lock(self) -> None:
        """Where the file system knows locks."""
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._fd)
            raise BulkError(f"{self.path}: another run is writing to it") from None
        except OSError:
            pass
