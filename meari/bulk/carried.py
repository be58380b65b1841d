"""What of an input line stands in its output record, beside the figures, of which only the names are known here."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import msgspec

from meari.bulk.names import ERROR, FILE, figure_names, new_names, text_name
from meari.bulk.options import WorkOptions
from meari.bulk.records import Problem, Record
from meari.bulk.tsv import cell, json_cell, row

__all__ = ["CarriedColumns", "CarriedFields", "carried_columns"]

LINE: Final = "line"
MORE: Final = "more"
_encode: Final = msgspec.json.Encoder().encode


class CarriedFields:
    """Into JSONL: the file where there are several, the line's number, then the fields as they were written."""

    def __init__(self, options: WorkOptions) -> None:
        self._key = text_name(options)
        self._with_text = options.with_text
        self._file, self._error = options.prefix + FILE, options.prefix + ERROR

    def opening(self, record: Record) -> bytes:
        """The first members of the record's object, without its closing brace."""
        members = self._file_of(record)
        if record.fields is None or LINE not in record.fields:
            members.append(b'"line":%d' % record.line)
        if record.fields is None:
            members += [b"%b:%b" % (_encode(self._key), _encode(record.text))] if self._with_text else []
        else:
            fields = record.fields.items()
            members += [b"%b:%b" % (_encode(name), raw) for name, raw in fields if self._with_text or name != self._key]
        return b"{" + b",".join(members)

    def problem(self, problem: Problem) -> bytes:
        """The error record of a bad line."""
        error = b'"line":%d,%b:%b' % (problem.line, _encode(self._error), _encode(problem.message))
        return b"{" + b",".join([*self._file_of(problem), error]) + b"}\n"

    def _file_of(self, line: Record | Problem) -> list[bytes]:
        return [b"%b:%b" % (_encode(self._file), _encode(line.file))] if line.file else []


class CarriedColumns:
    """Into TSV: the line's number and the columns of `options.columns` left of the figures, the rest right of them.

    with_text  whether the text stands on the right
    """

    def __init__(self, options: WorkOptions, *, with_text: bool) -> None:
        self._key = text_name(options)
        self._columns = options.columns
        self._figures = figure_names(options)
        self._file = options.prefix + FILE if options.with_file else ""
        self._with_more = options.input_format == "jsonl"
        self._with_text = with_text
        self._error = options.prefix + ERROR if options.skip_bad else ""

    def head(self) -> bytes:
        """The row of names."""
        left = [self._file, LINE] if self._file else [LINE]
        right = [MORE] if self._with_more else []
        right += [self._key] if self._with_text else []
        right += [self._error] if self._error else []
        return row(map(cell, [*left, *self._columns, *self._figures, *right]))

    def rows(self, record: Record, figures: Iterable[Iterable[str]]) -> bytes:
        """A row for each group of cells."""
        fields = record.fields or {}
        left = [*self._place(record), *(json_cell(fields.get(name)) for name in self._columns)]
        right = [self._more(fields)] if self._with_more else []
        right += [cell(record.text)] if self._with_text else []
        right += [""] if self._error else []
        return b"".join(row([*left, *cells, *right]) for cells in figures)

    def problem(self, problem: Problem) -> bytes:
        """The row of a bad line: its number and, in the last column, what is wrong."""
        num_empty = len(self._columns) + len(self._figures) + self._with_more + self._with_text
        return row([*self._place(problem), *[""] * num_empty, cell(problem.message)])

    def _place(self, line: Record | Problem) -> list[str]:
        return [cell(line.file), str(line.line)] if self._file else [str(line.line)]

    def _more(self, fields: dict[str, bytes]) -> str:
        known = {*self._columns, self._key}
        more = {name: msgspec.Raw(raw) for name, raw in fields.items() if name not in known}
        return cell(_encode(more).decode("utf-8")) if more else ""


def carried_columns(line: bytes, options: WorkOptions) -> tuple[str, ...]:
    """The fields of a first line that are columns of their own: those that no other column is named like."""
    names = {LINE, MORE, text_name(options), *new_names(options)}
    try:
        fields = msgspec.json.decode(line, type=dict[str, msgspec.Raw])
    except (msgspec.DecodeError, UnicodeDecodeError):
        return ()  # it will be met as a bad line
    return tuple(name for name in fields if name not in names)
