"""JSON → JSON on one line, for every reader.

Input: JSON in UTF-8 without line ends outside its strings. Output: the same value. Must not know: its content. A JSON
string may contain U+0085, U+2028 and U+2029, but `str.splitlines` and other readers of lines split there.
"""

from __future__ import annotations

from typing import Final

__all__ = ["escape_line_ends"]

_ESCAPES: Final = tuple((char.encode("utf-8"), f"\\u{ord(char):04x}".encode()) for char in "\x85\u2028\u2029")


def escape_line_ends(data: bytes) -> bytes:
    """Write the line ends that strings hold as escapes; pieces may be cut between any two characters."""
    for raw, escape in _ESCAPES:
        data = data.replace(raw, escape)
    return data
