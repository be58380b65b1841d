"""The bytes of a body → a Struct, and JSON → JSON on one line for every reader.

Input: a body. Output: a Struct, or InvalidRequest with every problem; JSON without line ends. Must not know: any field.

The fast path is one decode into the Struct; only a body that fails is read field by field. Then two forms are accepted
that JSON Schema and OpenAI's clients accept: an integer written as `3.0`, and null for an optional field. Of a large
body, names, kinds and lengths are checked, and the memory of its values accounted for, before any value is made.
"""

from __future__ import annotations

import codecs
import json
from collections.abc import Callable
from itertools import islice
from typing import Final, Generic, TypeVar

import msgspec
from msgspec import inspect

from meari.errors import InvalidRequest, Problem
from meari.validation.explain import explain_object, shown, why_malformed
from meari.validation.lenient import read_leniently
from meari.validation.sizes import SMALL_BYTES, Members, size_of, text_bytes

__all__ = ["Parser", "escape_line_ends"]

MAX_PROBLEMS = 8
PIECE_BYTES: Final = 1 << 16
_ESCAPES: Final = tuple((char.encode("utf-8"), f"\\u{ord(char):04x}".encode()) for char in "\x85\u2028\u2029")
TOO_DEEP: Final = Problem("body", "JSON that is nested too deeply", "a JSON object")
Request = TypeVar("Request", bound=msgspec.Struct)


class Parser(Generic[Request]):
    """Parses the bodies of one kind of request; `check` raises InvalidRequest where its fields do not go together."""

    def __init__(self, struct: type[Request], check: Callable[[Request], Request] | None = None) -> None:
        self.struct = struct
        self._check = check
        self._info = inspect.type_info(struct)
        assert isinstance(self._info, inspect.StructType)
        self._fields = {field.encode_name: field for field in self._info.fields}
        self._decoder = msgspec.json.Decoder(struct, strict=True)

    def parse(self, body: bytes, hold: Callable[[int], None] = lambda _: None) -> Request:
        """Parse a body, without a byte-order mark in front (RFC 8259, 8.1). Raises InvalidRequest, and as `hold` does.

        hold  is told the bytes that the values of a large body are going to take, before they are made; after them,
              as a negative number, those that were needed on the way
        """
        body = body.removeprefix(codecs.BOM_UTF8)
        if not body[:1].strip() and not body.strip():
            raise InvalidRequest(Problem("body", "nothing", "a JSON object"))
        _check_utf8(body)
        passing = 0
        try:
            nested = [body]
            if len(body) > SMALL_BYTES:
                nested, passing = self._check_large(body, hold)
            request = self._decoder.decode(body)
        except msgspec.ValidationError as error:
            request = self._read_leniently(body, error)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise InvalidRequest(_malformed(body, error)) from None
        except RecursionError:
            raise InvalidRequest(TOO_DEEP) from None
        for value in nested:
            _check_distinct_names(value)
        if passing:
            hold(-passing)
        return request if self._check is None else self._check(request)

    def _check_large(self, body: bytes, hold: Callable[[int], None]) -> tuple[list[bytes], int]:
        """Check a body before its values are made, and account for them.

        Returns those values that hold objects, and the bytes that are not held any more once all are made. Raises
        msgspec.DecodeError where it is malformed, RecursionError, InvalidRequest, and as `hold` does.
        """
        msgspec.json.decode(body, type=msgspec.Raw)  # malformed JSON comes before wrong values
        if body.lstrip()[:1] != b"{":
            raise InvalidRequest(Problem("body", shown(body.strip()), "a JSON object"))
        hold(text_bytes(body))
        members = Members.of(body, self._fields)
        if problems := list(islice(members.problems(self._fields), MAX_PROBLEMS)):
            raise InvalidRequest(*problems)
        parts = [bytes(value) for value in members.values.values() if bytes(memoryview(value)[:1]) in b"[{"]
        sizes = list(map(size_of, parts))
        hold(sum(size.num_bytes for size in sizes))
        nested = [(part, size) for part, size in zip(parts, sizes, strict=True) if size.names]
        return [part for part, _ in nested], sum(size.name_bytes for part, size in nested if part[:1] == b"[")

    def _read_leniently(self, body: bytes, error: msgspec.ValidationError) -> Request:
        """Parse a body that needs conversion. Raises InvalidRequest with every problem if it does not fit even so."""
        try:
            return msgspec.convert(read_leniently(body, self._info), self.struct, strict=True)
        except (msgspec.MsgspecError, ArithmeticError, RecursionError):
            raise InvalidRequest(*self._problems(body, error)) from None

    def _problems(self, body: bytes, error: msgspec.ValidationError) -> list[Problem]:
        """Return the problems of a body that does not fit: unknown fields first, then values."""
        try:
            msgspec.json.decode(body, type=msgspec.Raw)  # malformed JSON comes before wrong values
            if body.lstrip()[:1] != b"{":
                return [Problem("body", shown(body.strip()), "a JSON object")]
            assert isinstance(self._info, inspect.StructType)
            problems = list(islice(explain_object("", body, self._info), MAX_PROBLEMS))
        except msgspec.DecodeError as malformed:
            return [_malformed(body, malformed)]
        except RecursionError:
            return [TOO_DEEP]
        return problems or [Problem("body", reason=str(error))]


def _check_utf8(body: bytes) -> None:
    """Refuse other bytes, looking at a piece at a time: a character may take four times the memory of its bytes."""
    if body.isascii():
        return
    decoder = codecs.getincrementaldecoder("utf-8")()
    for start in range(0, len(body), PIECE_BYTES):
        waiting = len(decoder.getstate()[0])
        try:
            decoder.decode(body[start : start + PIECE_BYTES], final=start + PIECE_BYTES >= len(body))
        except UnicodeDecodeError as error:
            got = f"bytes that are not UTF-8 at byte {start - waiting + error.start}"
            raise InvalidRequest(Problem("body", got, "UTF-8")) from None


def _check_distinct_names(body: bytes) -> None:
    """Refuse a name that comes twice in an object: it would silently hide a value."""
    try:
        json.loads(body, object_pairs_hook=_distinct)
    except RecursionError:
        raise InvalidRequest(TOO_DEEP) from None


def _distinct(pairs: list[tuple[str, object]]) -> None:
    seen = set()
    for name, _ in pairs:
        if name in seen:
            raise InvalidRequest(Problem(shown(name.encode()), "the name twice", "it once"))
        seen.add(name)


def _malformed(body: bytes, error: Exception) -> Problem:
    reason = why_malformed(body, error, f"it ends too early (byte {len(body)})")
    return Problem("body", "malformed JSON", "a JSON object", reason)


def escape_line_ends(data: bytes) -> bytes:
    """Write the line ends that JSON strings may contain as escapes; pieces may be cut between any two characters.

    `str.splitlines` and other readers of lines split at U+0085, U+2028 and U+2029.
    """
    for raw, escape in _ESCAPES:
        data = data.replace(raw, escape)
    return data
