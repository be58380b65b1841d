"""A chunk of lines → records, and bad lines by their number.

Input: bytes. Output: a `Record` or a `Problem` a line, in order. Must not know: what is done with a record.

A line of text is a text as it stands, without its line end ("\\n" or "\\r\\n"); an empty one is an empty text. A line
of JSONL is an object whose `key` field is the text; its other fields are kept as they were written.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace
from typing import Final

import msgspec

from meari.bulk.options import InputFormat
from meari.file_kinds import likely_encoding
from meari.validation.explain import shown, why_malformed

__all__ = [
    "Problem",
    "Reader",
    "Record",
    "clashing_names",
    "guess_encoding",
    "is_like_object",
    "not_utf8",
    "up_to_bad",
]

CONTEXT: Final = "context"
NOT_UTF8: Final = "got bytes that are not UTF-8"
_decode_object: Final = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_decode_string: Final = msgspec.json.Decoder(str).decode


@dataclass(frozen=True, slots=True)
class Record:
    """One line of the input.

    text     to be scored or continued
    context  text before it, None if the line names none
    fields   its fields as they were written, JSON by name; None for a line of text
    file     its file, "" if records name no file
    """

    line: int
    text: str
    context: str | None = None
    fields: dict[str, bytes] | None = None
    file: str = ""

    @property
    def is_blank(self) -> bool:
        """True for white space alone, which counts for no text of a corpus."""
        return not self.text.strip()


@dataclass(frozen=True, slots=True)
class Problem:
    """A bad line. The message says what came and what was expected."""

    line: int
    message: str
    file: str = ""

    def __str__(self) -> str:
        return f"line {self.line}: {self.message}"


class Reader:
    """Reads chunks of one input.

    key    the field of the text
    taken  names that the output needs
    """

    def __init__(self, input_format: InputFormat, key: str, *, with_context: bool, taken: Collection[str] = ()) -> None:
        self._is_text = input_format == "text"
        self._key = key
        self._with_context = with_context and key != CONTEXT
        self._taken = frozenset(taken)

    def read(self, data: bytes, first_line: int, file: str = "") -> list[Record | Problem]:
        """Return the lines of a chunk of a file."""
        lines = self._lines(data, first_line)
        return [replace(line, file=file) for line in lines] if file else lines

    def _lines(self, data: bytes, first_line: int) -> list[Record | Problem]:
        lines = split_lines(data)
        if self._is_text:
            with contextlib.suppress(UnicodeDecodeError):
                texts = b"\n".join(lines).decode("utf-8").split("\n") if lines else []
                return [Record(number, text) for number, text in enumerate(texts, first_line)]
        return [self.line(line, number) for number, line in enumerate(lines, first_line)]

    def line(self, line: bytes, number: int) -> Record | Problem:
        """Read one line, given without its line end."""
        try:
            text = line.decode("utf-8")
        except UnicodeDecodeError as error:
            return not_utf8(number, error.start)
        return Record(number, text) if self._is_text else self._object(line, number)

    def _object(self, line: bytes, number: int) -> Record | Problem:
        wanted = f'expected a JSON object with "{self._key}"'
        try:
            fields = {name: bytes(raw) for name, raw in _decode_object(line).items()}
        except msgspec.ValidationError:
            return Problem(number, f"got {shown(line.strip())}, {wanted}")
        except msgspec.DecodeError as error:
            reason = why_malformed(line, error, "it is cut off")
            return Problem(
                number, f"got malformed JSON ({reason}), {wanted}" if line.strip() else f"got nothing, {wanted}"
            )
        except RecursionError:
            return Problem(number, f"got JSON that is nested too deeply, {wanted}")
        return self._record(line, number, fields)

    def _record(self, line: bytes, number: int, fields: dict[str, bytes]) -> Record | Problem:
        if len(fields) < line.count(b'":') + line.count(b'" :') and (twice := _name_that_comes_twice(line)) is not None:
            return Problem(number, f"{shown(twice.encode())}: got the name twice, expected it once")
        try:
            strings = {name: _decode_string(fields[name]) for name in self._strings(fields)}
        except msgspec.DecodeError:
            name = next(name for name in self._strings(fields) if not _is_string(fields[name]))
            return Problem(number, f"{name}: got {shown(fields[name])}, expected a string")
        if self._key not in strings:
            return Problem(number, f"{self._key}: missing, expected a string")
        if clash := clashing_names(fields, self._taken):
            return Problem(number, clash)
        return Record(number, strings[self._key], strings.get(CONTEXT), fields)

    def _strings(self, fields: dict[str, bytes]) -> list[str]:
        names = [self._key] if self._key in fields else []
        if self._with_context and fields.get(CONTEXT, b"null") != b"null":
            names.append(CONTEXT)
        return names


def clashing_names(fields: Iterable[str], taken: Collection[str]) -> str:
    """Return the problem of fields that are named like figures of the output, "" if there is none."""
    names = [name for name in fields if name in taken]
    if not names:
        return ""
    return (
        f"{', '.join(names)}: got what the output has as well, expected other names, or --prefix NAME_ for the figures"
    )


def up_to_bad(lines: list[Record | Problem], *, skips_bad: bool) -> list[Record | Problem]:
    """Return all lines, or without `skips_bad` those up to the first bad one."""
    if skips_bad:
        return lines
    return lines[: next((i for i, line in enumerate(lines, 1) if isinstance(line, Problem)), len(lines))]


def split_lines(data: bytes) -> list[bytes]:
    """Return the lines without their ends; the last one needs none."""
    lines = data.replace(b"\r\n", b"\n").split(b"\n")
    return lines if lines[-1] else lines[:-1]


def not_utf8(line: int, start: int) -> Problem:
    """Return the problem of a line that is not UTF-8. start: its first bad byte, from 0."""
    return Problem(line, f"{NOT_UTF8} at byte {start + 1}, expected UTF-8")


def guess_encoding(problem: str, chunks: Iterable[bytes], file: str) -> str:
    """Return the end of a message about a bad line: the encoding that its file is probably in, and how to convert it.

    problem  what is wrong with the line; "" is returned unless it is not UTF-8
    chunks   parts of the file that begin with whole lines, the one with that line among the first
    file     its name in messages
    """
    if NOT_UTF8 not in problem:
        return ""
    for data in chunks:
        try:
            data.decode("utf-8")
        except UnicodeDecodeError as error:
            kind = likely_encoding(data[data.rfind(b"\n", 0, error.start) + 1 :])
            place = "-" if file == "standard input" else file
            return kind.guess(place, is_gzip=file.endswith(".gz")) if kind else ""
    return ""


def is_like_object(line: bytes) -> bool:
    """Return whether a first line looks like the beginning of JSONL."""
    return line.lstrip()[:1] == b"{" and line.lstrip()[1:].lstrip()[:1] in (b'"', b"}")


def _is_string(raw: bytes) -> bool:
    try:
        _decode_string(raw)
    except msgspec.DecodeError:
        return False
    return True


def _name_that_comes_twice(line: bytes) -> str | None:
    """Return a name that any object in the line has twice: its second value would silently hide the first."""
    found: list[str] = []

    def look(pairs: list[tuple[str, object]]) -> None:
        names = [name for name, _ in pairs]
        found.extend(name for name in names if names.count(name) > 1)

    json.loads(line, object_pairs_hook=look)
    return found[0] if found else None
