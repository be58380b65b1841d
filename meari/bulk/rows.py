"""Fields of an input line and values of figures → members of JSON objects, and cells of tab-separated values.

Input: records, bad lines, values. Output: bytes. Must not know: how figures are made.

Of TSV the first row names the columns, a line is a row, and readers of CSV with a tab find every cell: one that has a
quotation mark is quoted, its quotation marks doubled. Characters at which a reader might end a cell or a line, and
backslashes, are written as in JSON: \\t, \\n, \\r, \\\\, \\u2028. A value that is missing or null is an empty cell, as
is an empty text.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final

import msgspec

from meari.bulk.options import ERROR, FILE, WorkOptions, figure_names, new_names, text_name
from meari.bulk.records import Problem, Record

__all__ = ["CarriedColumns", "CarriedFields", "carried_columns", "cell", "doubled", "escaped", "on_one_line"]

LINE: Final = "line"
MORE: Final = "more"
LINE_ENDS: Final = "\n\r\v\f\x1c\x1d\x1e\x85\u2028\u2029"  # where `str.splitlines` cuts
_NAMED: Final = {"\n": r"\n", "\r": r"\r", "\\": r"\\"}
_TO_ESCAPE: Final = re.compile(rf"[\0\\{LINE_ENDS}]")
_encode: Final = msgspec.json.Encoder().encode


class CarriedFields:
    """JSON members that come from the input: the file if there are several, the line's number, then its own fields."""

    def __init__(self, options: WorkOptions) -> None:
        self._key = text_name(options)
        self._with_text = options.with_text
        self._file, self._error = options.prefix + FILE, options.prefix + ERROR

    def opening(self, record: Record) -> bytes:
        """Return the first members of the record's object, without its closing brace."""
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
        """Return the error record of a bad line."""
        error = b'"line":%d,%b:%b' % (problem.line, _encode(self._error), _encode(problem.message))
        return b"{" + b",".join([*self._file_of(problem), error]) + b"}\n"

    def _file_of(self, line: Record | Problem) -> list[bytes]:
        return [b"%b:%b" % (_encode(self._file), _encode(line.file))] if line.file else []


class CarriedColumns:
    """TSV columns that come from the input: line number and `options.columns` left of the figures, the rest right.

    with_text  the text stands on the right
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
        """Return the row of names."""
        left = [self._file, LINE] if self._file else [LINE]
        right = [MORE] if self._with_more else []
        right += [self._key] if self._with_text else []
        right += [self._error] if self._error else []
        return row(map(cell, [*left, *self._columns, *self._figures, *right]))

    def rows(self, record: Record, figures: Iterable[Iterable[str]]) -> bytes:
        """Return a row for each group of cells."""
        fields = record.fields or {}
        left = [*self._position(record), *(json_cell(fields.get(name)) for name in self._columns)]
        right = [self._more(fields)] if self._with_more else []
        right += [cell(record.text)] if self._with_text else []
        right += [""] if self._error else []
        return b"".join(row([*left, *cells, *right]) for cells in figures)

    def problem(self, problem: Problem) -> bytes:
        """Return the row of a bad line: its number and, in the last column, the problem."""
        num_empty = len(self._columns) + len(self._figures) + self._with_more + self._with_text
        return row([*self._position(problem), *[""] * num_empty, cell(problem.message)])

    def _position(self, line: Record | Problem) -> list[str]:
        return [cell(line.file), str(line.line)] if self._file else [str(line.line)]

    def _more(self, fields: dict[str, bytes]) -> str:
        known = {*self._columns, self._key}
        more = {name: msgspec.Raw(raw) for name, raw in fields.items() if name not in known}
        return cell(_encode(more).decode("utf-8")) if more else ""


def carried_columns(line: bytes, options: WorkOptions) -> tuple[str, ...]:
    """Return the fields of a first line that get columns of their own: those that no other column is named like."""
    names = {LINE, MORE, text_name(options), *new_names(options)}
    try:
        fields = msgspec.json.decode(line, type=dict[str, msgspec.Raw])
    except (msgspec.DecodeError, UnicodeDecodeError):
        return ()  # the run reports it as a bad line
    return tuple(name for name in fields if name not in names)


def cell(value: object) -> str:
    """Return one value as a cell; floats with all their digits, true and false as in JSON."""
    if value is None:
        return ""
    if not isinstance(value, str):
        return str(value).lower() if isinstance(value, bool) else str(value)
    return f'"{doubled(escaped(value))}"' if '"' in value else escaped(value)


def escaped(text: str) -> str:
    """Return text as it stands in a cell."""
    return on_one_line(text).replace("\t", r"\t")


def on_one_line(text: str) -> str:
    """Return text with its line ends of any kind escaped; tabs stay."""
    return _TO_ESCAPE.sub(lambda match: _NAMED.get(match[0]) or f"\\u{ord(match[0]):04x}", text)


def doubled(text: str) -> str:
    """Return text as it stands between quotation marks."""
    return text.replace('"', '""')


def json_cell(raw: bytes | None) -> str:
    """Return a JSON value as a cell: a string by its text, null empty, all else as it is written."""
    if raw is None or raw == b"null":
        return ""
    return cell(msgspec.json.decode(raw, type=str) if raw[:1] == b'"' else raw.decode("utf-8"))


def row(cells: Iterable[str]) -> bytes:
    """Return a whole row with its line end."""
    return ("\t".join(cells) + "\n").encode("utf-8")
