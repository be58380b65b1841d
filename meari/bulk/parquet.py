"""Parquet files that are read: rows → lines of JSONL.

Input: Parquet files. Output: chunks of lines as a JSONL file of the same rows has them. Must not know: how lines are
scored. pyarrow (meari[parquet]) is imported only where a file is opened.

A row is read as the JSON object of its columns: null as null, so that a text that is null is a bad line as in JSONL;
lists and structs as arrays and objects; dates, times and decimals as text; bytes as base64. Pages are decoded as they
are needed, so row groups of any size take the same memory.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import msgspec

from meari.bulk.errors import BulkError
from meari.bulk.lines import Chunk, LineCutter
from meari.bulk.storage import open_file
from meari.file_kinds import HEAD_BYTES, PARQUET

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

__all__ = [
    "PARQUET_SUFFIX",
    "ParquetInput",
    "RowRange",
    "check_text_column",
    "common_schema",
    "is_parquet",
    "json_lines",
    "open_parquet",
    "require_pyarrow",
    "row_batches",
]

PARQUET_SUFFIX: Final = ".parquet"
ROWS_AT_ONCE: Final = 128
BUFFER_BYTES: Final = 1 << 19
PAGE_BUFFER_BYTES: Final = 1 << 18
_encode: Final = msgspec.json.Encoder().encode


def is_parquet(path: str | Path) -> bool:
    """Return whether a regular file is Parquet, by its first bytes, which a text might have, and a zero or its name."""
    path = Path(path)
    if not path.is_file():
        return False
    try:
        with path.open("rb") as file:
            head = file.read(HEAD_BYTES)
    except OSError:
        return False
    return head.startswith(PARQUET) and (0 in head or path.suffix.lower() == PARQUET_SUFFIX)


def require_pyarrow() -> None:
    """Raise BulkError where pyarrow is not installed."""
    try:
        import pyarrow.parquet  # noqa: F401
    except ImportError:
        raise BulkError("Parquet: got an installation without pyarrow, expected meari[parquet]") from None


def open_parquet(name: str, file: Any = None) -> pq.ParquetFile:
    """Open a file by its path, or one that is open. Raises BulkError if it is damaged or names a column twice."""
    require_pyarrow()
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        opened = pq.ParquetFile(name if file is None else file, buffer_size=PAGE_BUFFER_BYTES)
    except (pa.ArrowException, OSError) as error:
        raise BulkError(f"{name}: got damaged Parquet ({_first_line(error)}), expected a complete file") from None
    names = opened.schema_arrow.names
    if twice := next((one for one in names if names.count(one) > 1), None):
        raise BulkError(f"{name}: got the column {twice!r} twice, expected it once")
    return opened


class ParquetInput:
    """One open Parquet file, read as the lines of JSONL that its rows are; see `source.Input`.

    failure  why it could not be read to its end; the rows before that point are handed out all the same
    """

    is_file = True
    num_bytes: int | None = None  # of its lines, which nobody knows before they are read
    num_left: int | None = None

    def __init__(self, name: str) -> None:
        self.name = name
        self.failure: BulkError | None = None
        self._file = open_parquet(name)
        self.fd = os.open(name, os.O_RDONLY | os.O_CLOEXEC)
        self._cutter = LineCutter()
        self._lines = json_lines(self._file, name)
        self._ended = False

    @property
    def wants_more(self) -> bool:
        """True while there may be rows to read and room for them."""
        return not self._ended and self._cutter.num_bytes < BUFFER_BYTES

    @property
    def is_done(self) -> bool:
        """True once every line has been taken."""
        return self._cutter.is_done

    def is_readable(self) -> bool:
        """Return whether `read` would return without waiting."""
        return True

    def read(self) -> None:
        """Read some rows."""
        try:
            data = next(self._lines, None)
        except BulkError as failure:
            self.failure = failure
            self._cutter.break_off()
            self._ended = True
            return
        if data is None:
            self._cutter.close()
            self._ended = True
        else:
            self._cutter.feed(data)

    def first_line(self) -> bytes:
        """Return the next line, or as much of it as shows its fields. Raises BulkError."""
        while (line := self._cutter.first_line()) is None:
            self.read()
        if self.failure is not None and self._cutter.is_done:
            raise self.failure
        return line

    def take(self, max_lines: int, max_bytes: int, *, partial: bool) -> Chunk | None:
        """Take the next chunk; see `LineCutter.take`."""
        return self._cutter.take(max_lines, max_bytes, partial=partial)

    def identity(self) -> dict[str, object]:
        """Return what tells this input from others."""
        with Path(self.name).open("rb") as file:
            return {"bytes": os.fstat(self.fd).st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}

    def skip(self, offset: int, line: int, digest: str) -> None:
        """Continue with the row of that line; its text begins `offset` bytes into the lines of the file."""
        self._cutter = LineCutter(offset, line)
        self._lines = json_lines(self._file, self.name, line - 1)
        self._ended = False

    def close(self) -> None:
        """Close the file."""
        self._file.close()
        os.close(self.fd)

    def check_text(self, field: str) -> None:
        """Raise BulkError if there is no column of texts by that name."""
        check_text_column(self._file, self.name, field)


def check_text_column(file: pq.ParquetFile, name: str, field: str) -> None:
    """Raise BulkError if a file has no column of texts by that name."""
    import pyarrow as pa

    schema = file.schema_arrow
    if field not in schema.names:
        columns = ", ".join(schema.names)
        raise BulkError(f"{name}: got the columns {columns}, expected one called {field}, or another --field")
    kind = schema.field(field).type
    values = kind.value_type if pa.types.is_dictionary(kind) else kind
    if not (pa.types.is_string(values) or pa.types.is_large_string(values) or pa.types.is_string_view(values)):
        raise BulkError(f"{name}: {field}: got a column of {kind}, expected one of strings, or another --field")


def json_lines(file: pq.ParquetFile, name: str, first_row: int = 0, last_row: int | None = None) -> Iterator[bytes]:
    """Yield rows from `first_row` up to `last_row` as lines of JSONL, some at a time. Raises BulkError."""
    import pyarrow as pa

    try:
        for batch in row_batches(file, first_row, last_row):
            yield b"".join(_encode(row) + b"\n" for row in _with_readable_times(batch).to_pylist())
    except (pa.ArrowException, OSError, ValueError, TypeError) as error:
        raise BulkError(
            f"{name}: got Parquet that cannot be read ({_first_line(error)}), expected a whole file"
        ) from None


def row_batches(file: pq.ParquetFile, first_row: int, last_row: int | None) -> Iterator[pa.RecordBatch]:
    """Yield batches of rows, from a row of any group up to another one, or the end."""
    left = (file.metadata.num_rows if last_row is None else last_row) - first_row
    before = 0
    for group in range(file.num_row_groups):
        num_rows = file.metadata.row_group(group).num_rows
        skip = max(0, first_row - before)
        before += num_rows
        if skip >= num_rows:
            continue
        for batch in file.iter_batches(ROWS_AT_ONCE, row_groups=[group], use_threads=False):
            if left <= 0:
                return
            some = batch.slice(min(skip, batch.num_rows), left)
            left -= some.num_rows
            if some.num_rows:
                yield some
            skip = max(0, skip - batch.num_rows)


def _with_readable_times(batch: pa.RecordBatch) -> pa.RecordBatch:
    """Return the batch with points of time as text, which keeps nanoseconds."""
    import pyarrow as pa

    for place, field in enumerate(batch.schema):
        if pa.types.is_timestamp(field.type) or pa.types.is_time(field.type):
            batch = batch.set_column(place, field.name, batch.column(place).cast(pa.string()))
    return batch


@dataclass(frozen=True)
class RowRange:
    """Rows of a Parquet file; `name` stands in messages, `path` may be a URL, and the last row is the end if None."""

    name: str
    path: str
    first_row: int = 0
    last_row: int | None = None

    @contextmanager
    def opened(self) -> Iterator[pq.ParquetFile]:
        """Open the file. Raises BulkError."""
        with open_file(self.path) as file, open_parquet(self.name, file) as parquet:
            yield parquet


def common_schema(ranges: Iterable[RowRange]) -> pa.Schema:
    """Return the columns of several files. Raises BulkError if they differ."""
    first: tuple[str, pa.Schema] | None = None
    for one in ranges:
        with one.opened() as file:
            schema = file.schema_arrow
        first = first or (one.name, schema)
        if not schema.equals(first[1]):
            raise BulkError(f"{one.name}: got other columns than {first[0]} has, expected files of one schema")
    assert first is not None
    return first[1]


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
