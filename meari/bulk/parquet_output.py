"""Rows of Parquet files that are written: lines of JSONL → rows, and rows of a corpus → the files of its parts.

Input: JSONL, or rows of Parquet files. Output: Parquet files. Must not know: how lines are scored. pyarrow
(meari[parquet]) is imported only where a file is written.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Self

import msgspec

from meari.bulk.errors import BulkError
from meari.bulk.parquet import RowRange, common_schema, open_parquet, require_pyarrow, row_batches

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["ParquetParts", "read_note", "write_parquet"]

GROUP_BYTES: Final = 1 << 25  # of a row group that is written, unpacked
BATCH_BYTES: Final = 1 << 22  # of JSONL that is turned into rows at a time
MAX_MEMBERS: Final = 256  # of a struct; an object with more names is a map of some kind, and stands as JSON
NOTE: Final = b"meari"  # key of the note in a file's metadata
_encode: Final = msgspec.json.Encoder().encode
_decode: Final = msgspec.json.Decoder(dict[str, Any]).decode


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
    """Files with rows of several Parquet inputs, of their columns and types. A context manager; see `common_schema`."""

    def __init__(self, ranges: Sequence[RowRange], paths: Sequence[Path]) -> None:
        self._ranges = ranges
        self._paths = paths
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        schema = common_schema(self._ranges)
        self._groups = [self._stack.enter_context(RowGroups(path, schema)) for path in self._paths]
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def batches(self) -> Iterator[pa.RecordBatch]:
        """Yield the rows of all inputs in order."""
        for one in self._ranges:
            with one.opened() as file:
                yield from row_batches(file, one.first_row, one.last_row)

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
