"""Values → cells and rows of tab-separated values.

The first row names the columns, a line is a row, and readers of CSV with a tab find every cell: one that has a
quotation mark is quoted, its quotation marks doubled. Characters at which a reader might end a cell or a line, and
backslashes, are written as in JSON: \\t, \\n, \\r, \\\\, \\u2028. What is missing or null is an empty cell, as is an
empty text.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final

import msgspec

__all__ = ["cell", "doubled", "escaped", "json_cell", "on_one_line", "row"]

LINE_ENDS: Final = "\n\r\v\f\x1c\x1d\x1e\x85\u2028\u2029"  # where `str.splitlines` cuts
_NAMED: Final = {"\n": r"\n", "\r": r"\r", "\\": r"\\"}
_TO_ESCAPE: Final = re.compile(rf"[\0\\{LINE_ENDS}]")


def cell(value: object) -> str:
    """One value; floats with all their digits, true and false as in JSON."""
    if value is None:
        return ""
    if not isinstance(value, str):
        return str(value).lower() if isinstance(value, bool) else str(value)
    return f'"{doubled(escaped(value))}"' if '"' in value else escaped(value)


def escaped(text: str) -> str:
    """Text as it stands in a cell."""
    return on_one_line(text).replace("\t", r"\t")


def on_one_line(text: str) -> str:
    """Text without line ends of any kind; tabs stay."""
    return _TO_ESCAPE.sub(lambda match: _NAMED.get(match[0]) or f"\\u{ord(match[0]):04x}", text)


def doubled(text: str) -> str:
    """Text as it stands between quotation marks."""
    return text.replace('"', '""')


def json_cell(raw: bytes | None) -> str:
    """A JSON value: a string by its text, null as nothing, all else as it is written."""
    if raw is None or raw == b"null":
        return ""
    return cell(msgspec.json.decode(raw, type=str) if raw[:1] == b'"' else raw.decode("utf-8"))


def row(cells: Iterable[str]) -> bytes:
    """A whole row with its line end."""
    return ("\t".join(cells) + "\n").encode("utf-8")
