"""Values → cells and rows of tab-separated values.

The first row names the columns. Inside a cell a tab, a line end and a backslash are written \\t, \\n, \\r and \\\\;
a cell that begins with a quotation mark is quoted as in CSV, so that readers of both kinds find what was meant. What is
missing or null is an empty cell.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final

import msgspec

__all__ = ["cell", "escaped", "json_cell", "row"]

_ESCAPED: Final = {"\t": r"\t", "\n": r"\n", "\r": r"\r", "\\": r"\\"}
_TO_ESCAPE: Final = re.compile(r"[\t\n\r\\]")


def cell(value: object) -> str:
    """One value; floats with all their digits, true and false as in JSON."""
    if value is None:
        return ""
    if not isinstance(value, str):
        return str(value).lower() if isinstance(value, bool) else str(value)
    return f'"{escaped(value, is_quoted=True)}"' if value.startswith('"') else escaped(value)


def escaped(text: str, *, is_quoted: bool = False) -> str:
    """Text as it stands in a cell, or inside the quotes of one."""
    if _TO_ESCAPE.search(text):
        text = _TO_ESCAPE.sub(lambda match: _ESCAPED[match[0]], text)
    return text.replace('"', '""') if is_quoted else text


def json_cell(raw: bytes | None) -> str:
    """A JSON value: a string by its text, null as nothing, all else as it is written."""
    if raw is None or raw == b"null":
        return ""
    return cell(msgspec.json.decode(raw, type=str) if raw[:1] == b'"' else raw.decode("utf-8"))


def row(cells: Iterable[str]) -> bytes:
    """A whole row with its line end."""
    return ("\t".join(cells) + "\n").encode("utf-8")
