"""What of an input line stands in its output record, beside the figures, of which only the names are known here."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import msgspec

from bulk.names import figure_names, text_name
from bulk.options import WorkOptions
from bulk.records import Problem, Record
from bulk.tsv import cell, json_cell, row

__all__ = ["CarriedColumns", "CarriedFields", "carried_columns"]

LINE: Final = "line"
MORE: Final = "more"
ERROR: Final = "error"
_encode: Final = msgspec.json.Encoder().encode


class CarriedFields:
    """Into JSONL: the line's number, then the fields as they were written."""

    def __init__(self, options: WorkOptions) -> None:
        self._key = text_name(options)
        self._taken = {*figure_names(options), *(() if options.with_text else (self._key,))}
        self._with_text = options.with_text

    def opening(self, record: Record) -> bytes:
        """The first members of the record's object, without its closing brace."""
        if record.fields is None:
            members = [b'"%b":%b' % (self._key.encode(), _encode(record.text))] if self._with_text else []
        else:
            members = [
                b"%b:%b" % (_encode(name), raw) for name, raw in record.fields.items() if name not in self._taken
            ]
        if record.fields is None or LINE not in record.fields:
            members.insert(0, b'"line":%d' % record.line)
        return b"{" + b",".join(members)

    def problem(self, problem: Problem) -> bytes:
        """The error record of a bad line."""
        return _encode({LINE: problem.line, ERROR: problem.message}) + b"\n"


class CarriedColumns:
    """Into TSV: the line's number and the columns of `options.columns` left of the figures, the rest right of them.

    with_text  whether the text stands on the right
    """

    def __init__(self, options: WorkOptions, *, with_text: bool) -> None:
        self._key = text_name(options)
        self._columns = options.columns
        self._figures = figure_names(options)
        self._with_more = options.input_format == "jsonl"
        self._with_text = with_text
        self._with_error = options.skip_bad

    def head(self) -> bytes:
        """The row of names."""
        right = [MORE] if self._with_more else []
        right += [self._key] if self._with_text else []
        right += [ERROR] if self._with_error else []
        return row([LINE, *map(cell, self._columns), *self._figures, *right])

    def rows(self, record: Record, figures: Iterable[Iterable[str]]) -> bytes:
        """A row for each group of cells."""
        fields = record.fields or {}
        left = [str(record.line), *(json_cell(fields.get(name)) for name in self._columns)]
        right = [self._more(fields)] if self._with_more else []
        right += [cell(record.text)] if self._with_text else []
        right += [""] if self._with_error else []
        return b"".join(row([*left, *cells, *right]) for cells in figures)

    def problem(self, problem: Problem) -> bytes:
        """The row of a bad line: its number and, in the last column, what is wrong."""
        num_empty = len(self._columns) + len(self._figures) + self._with_more + self._with_text
        return row([str(problem.line), *[""] * num_empty, cell(problem.message)])

    def _more(self, fields: dict[str, bytes]) -> str:
        known = {*self._columns, self._key}
        more = {name: msgspec.Raw(raw) for name, raw in fields.items() if name not in known}
        return cell(_encode(more).decode("utf-8")) if more else ""


def carried_columns(line: bytes, options: WorkOptions) -> tuple[str, ...]:
    """The fields of a first line that are columns of their own: those that no other column is named like."""
    names = {LINE, MORE, ERROR, text_name(options), *figure_names(options)}
    try:
        fields = msgspec.json.decode(line, type=dict[str, msgspec.Raw])
    except (msgspec.DecodeError, UnicodeDecodeError):
        return ()  # it will be met as a bad line
    return tuple(name for name in fields if name not in names)
