"""Parquet in and out: rows → lines of JSONL, lines of JSONL → rows, and rows of a corpus → its parts.

Input: Parquet files, JSONL. Output: chunks of lines as a JSONL file of the same rows has them, Parquet files. Must not
know: how lines are scored. pyarrow (meari[parquet]) is imported only where a Parquet file is opened or written.

A row is read as the JSON object of its columns: null as null, so that a text that is null is a bad line as in JSONL;
lists and structs as arrays and objects; dates, times and decimals as text; bytes as base64. Pages are decoded as they
are needed, so row groups of any size take the same memory.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Self

import msgspec

from meari.bulk.errors import BulkError
from meari.bulk.lines import Chunk, LineCutter
from meari.file_kinds import HEAD_BYTES, PARQUET

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

__all__ = [
    "PARQUET_SUFFIX",
    "ParquetInput",
    "ParquetParts",
    "check_text_column",
    "is_parquet",
    "json_lines",
    "open_parquet",
    "read_note",
    "require_pyarrow",
    "write_parquet",
]

PARQUET_SUFFIX: Final = ".parquet"
ROWS_AT_ONCE: Final = 128
BUFFER_BYTES: Final = 1 << 19
PAGE_BUFFER_BYTES: Final = 1 << 18
GROUP_BYTES: Final = 1 << 25  # of a row group that is written, unpacked
BATCH_BYTES: Final = 1 << 22  # of JSONL that is turned into rows at a time
MAX_MEMBERS: Final = 256  # of a struct; an object with more names is a map of some kind, and stands as JSON
NOTE: Final = b"meari"  # key of the note in a file's metadata
_encode: Final = msgspec.json.Encoder().encode
_decode: Final = msgspec.json.Decoder(dict[str, Any]).decode


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

    left = (file.metadata.num_rows if last_row is None else last_row) - first_row
    try:
        for batch in _batches(file, first_row):
            if left <= 0:
                return
            some = _with_readable_times(batch.slice(0, left))
            left -= some.num_rows
            yield b"".join(_encode(row) + b"\n" for row in some.to_pylist())
    except (pa.ArrowException, OSError, ValueError, TypeError) as error:
        raise BulkError(
            f"{name}: got Parquet that cannot be read ({_first_line(error)}), expected a whole file"
        ) from None


def _batches(file: pq.ParquetFile, first_row: int) -> Iterator[pa.RecordBatch]:
    """Yield batches of rows, beginning with a row of any group."""
    before = 0
    for group in range(file.num_row_groups):
        num_rows = file.metadata.row_group(group).num_rows
        skip = max(0, first_row - before)
        before += num_rows
        if skip >= num_rows:
            continue
        for batch in file.iter_batches(ROWS_AT_ONCE, row_groups=[group], use_threads=False):
            if skip < batch.num_rows:
                yield batch.slice(skip)
            skip = max(0, skip - batch.num_rows)


def _with_readable_times(batch: pa.RecordBatch) -> pa.RecordBatch:
    """Return the batch with points of time as text, which keeps nanoseconds."""
    import pyarrow as pa

    for place, field in enumerate(batch.schema):
        if pa.types.is_timestamp(field.type) or pa.types.is_time(field.type):
            batch = batch.set_column(place, field.name, batch.column(place).cast(pa.string()))
    return batch


def write_parquet(lines: Path, path: Path, figures: Mapping[str, type], note: bytes) -> None:
    """Write a JSONL file as Parquet, whole or not at all: it is read twice, first for the types of its fields.

    figures  types of fields of which no line needs to have a value
    note     kept in the file, for `read_note`
    Raises BulkError.
    """
    require_pyarrow()
    import pyarrow as pa

    fresh = path.with_name(path.name + ".tmp")
    schema = _schema_of(lines, figures).with_metadata({NOTE: note})
    try:
        while misfit := _write_rows(lines, fresh, schema):
            schema = schema.set(schema.get_field_index(misfit), pa.field(misfit, pa.string()))
        _sync(fresh)
        fresh.rename(path)
    except OSError as error:
        raise BulkError(f"{path}: {error.strerror or error}, expected a place to write Parquet to") from None


def _write_rows(lines: Path, path: Path, schema: pa.Schema) -> str:
    """Write all rows; return the name of a column with a value that does not fit its type exactly, "" if all do."""
    import pyarrow as pa

    with RowGroups(path, schema) as groups:
        for rows in _rows_of(lines):
            columns = []
            for field in schema:
                try:
                    columns.append(_column([row.get(field.name) for row in rows], field.type))
                except (pa.ArrowException, OverflowError, ValueError, TypeError):
                    return str(field.name)
            groups.add(pa.record_batch(columns, schema=schema))
    return ""


def read_note(path: Path) -> bytes:
    """Return the note in a Parquet file, b"" without one. Raises BulkError."""
    opened = open_parquet(str(path))
    with opened:
        return bytes((opened.schema_arrow.metadata or {}).get(NOTE, b""))


class RowGroups:
    """A Parquet file under way: batches are gathered to row groups of a good size. A context manager."""

    def __init__(self, path: Path, schema: pa.Schema) -> None:
        import pyarrow.parquet as pq

        self._schema = schema
        self._writer = pq.ParquetWriter(path, schema, compression="zstd")
        self._held: list[pa.RecordBatch] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._flush()
        self._writer.close()

    def add(self, batch: pa.RecordBatch) -> None:
        """Add some rows."""
        if batch.num_rows:
            self._held.append(batch)
        if sum(one.nbytes for one in self._held) >= GROUP_BYTES:
            self._flush()

    def _flush(self) -> None:
        import pyarrow as pa

        if self._held:
            self._writer.write_table(pa.Table.from_batches(self._held, self._schema))
            self._held = []


class ParquetParts:
    """Files with rows of several Parquet inputs, of their columns and types. A context manager.

    Raises BulkError if the inputs differ in their columns.
    """

    def __init__(self, names: Sequence[str], paths: Sequence[Path]) -> None:
        self._names = names
        self._paths = paths
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        schemas = []
        for name in self._names:
            with open_parquet(name) as file:
                schemas.append(file.schema_arrow)
        for name, schema in zip(self._names, schemas, strict=True):
            if not schema.equals(schemas[0]):
                raise BulkError(f"{name}: got other columns than {self._names[0]} has, expected files of one schema")
        self._groups = [self._stack.enter_context(RowGroups(path, schemas[0])) for path in self._paths]
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def batches(self) -> Iterator[pa.RecordBatch]:
        """Yield the rows of all inputs in order."""
        for name in self._names:
            with open_parquet(name) as file:
                yield from _batches(file, 0)

    def add(self, batch: pa.RecordBatch, parts: Iterable[int]) -> None:
        """Write each row to the file of its part; a row of no file to none."""
        import pyarrow as pa

        of_row = list(parts)
        for part, groups in enumerate(self._groups):
            groups.add(batch.filter(pa.array([own == part for own in of_row], pa.bool_())))


def _rows_of(lines: Path) -> Iterator[list[dict[str, Any]]]:
    """Yield the objects of a JSONL file, some at a time."""
    with lines.open("rb") as file:
        while some := file.readlines(BATCH_BYTES):
            yield [_decode(line) for line in some]


def _schema_of(lines: Path, figures: Mapping[str, type]) -> pa.Schema:
    """Return a type for every field that a line of the file has, in order; text as JSON where values differ in kind."""
    import pyarrow as pa

    kinds: dict[str, pa.DataType] = {}
    for rows in _rows_of(lines):
        for name in dict.fromkeys(name for row in rows for name in row):
            values = [row.get(name) for row in rows]
            found = _kind_of(values)
            kinds[name] = found if name not in kinds else _both(kinds[name], found)
    known = {int: pa.int64(), float: pa.float64(), str: pa.string()}
    kinds |= {name: known[kind] for name, kind in figures.items()}
    return pa.schema([(name, _writable(kind) or pa.string()) for name, kind in kinds.items()])


def _kind_of(values: list[Any]) -> pa.DataType:
    """Return the type of some values, that of text if they have none in common."""
    import pyarrow as pa

    try:
        return pa.array(values).type
    except (pa.ArrowException, OverflowError, ValueError, TypeError):
        return pa.string()


def _both(one: pa.DataType, other: pa.DataType) -> pa.DataType:
    """Return a type that holds the values of both."""
    import pyarrow as pa

    if one == other:
        return one
    try:
        schemas = [pa.schema([("value", kind)]) for kind in (one, other)]
        return pa.unify_schemas(schemas, promote_options="permissive").field("value").type
    except pa.ArrowException:
        return pa.string()


def _writable(kind: pa.DataType) -> pa.DataType | None:
    """Return a type with text where no value told the type; None if it has structs of no members, or of very many."""
    import pyarrow as pa

    if pa.types.is_null(kind):
        return pa.string()
    if pa.types.is_list(kind):
        values = _writable(kind.value_type)
        return values and pa.list_(values)
    if pa.types.is_struct(kind):
        members = [(field.name, _writable(field.type)) for field in kind]
        is_good = 0 < len(members) <= MAX_MEMBERS and all(member for _, member in members)
        return pa.struct(members) if is_good else None
    return kind


def _column(values: list[Any], kind: pa.DataType) -> pa.Array:
    """Return values as a column; in one of text all that is no text stands as JSON."""
    import pyarrow as pa

    if pa.types.is_string(kind) and not all(value is None or isinstance(value, str) for value in values):
        values = [v if v is None or isinstance(v, str) else _encode(v).decode("utf-8") for v in values]
    return pa.array(values, kind)


def _sync(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
