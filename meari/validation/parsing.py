"""The bytes of a body → a Struct, and JSON → JSON on one line for every reader.

Input: a body. Output: a Struct, or InvalidRequest with every problem; JSON without line ends. Must not know: any field.

The fast path is one decode into the Struct; only a body that fails is read field by field. Then two forms are accepted
that JSON Schema and OpenAI's clients accept: an integer written as `3.0`, and null for an optional field.
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
from meari.validation.sizes import FEW, Heads, size_of

__all__ = ["Parser", "escape_line_ends"]

MAX_PROBLEMS = 8
_ESCAPES: Final = tuple((char.encode("utf-8"), f"\\u{ord(char):04x}".encode()) for char in "\x85\u2028\u2029")
TOO_DEEP: Final = Problem("body", "JSON that is nested too deeply", "a JSON object")
Request = TypeVar("Request", bound=msgspec.Struct)


class Parser(Generic[Request]):
    """Parses the bodies of one kind of request; `check` raises InvalidRequest where its fields do not go together."""

    def __init__(self, struct: type[Request], check: Callable[[Request], Request] | None = None) -> None:
        self.struct = struct
        self._check = check
        self._info = inspect.type_info(struct)
        self._decoder = msgspec.json.Decoder(struct, strict=True)

    def parse(self, body: bytes, hold: Callable[[int], None] | None = None) -> Request:
        """Parse a body, without a byte-order mark in front (RFC 8259, 8.1). Raises InvalidRequest, and as `hold` does.

        hold  is told the bytes that the values are going to take, before they are made, if they are many
        """
        body = body.removeprefix(codecs.BOM_UTF8)
        if not body[:1].strip() and not body.strip():
            raise InvalidRequest(Problem("body", "nothing", "a JSON object"))
        _check_utf8(body)
        if _may_hold_many(body):
            self._check_size(body, hold)
        try:
            request = self._decoder.decode(body)
        except msgspec.ValidationError as error:
            request = self._read_leniently(body, error)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise InvalidRequest(_malformed(body, error)) from None
        except RecursionError:
            raise InvalidRequest(TOO_DEEP) from None
        _check_distinct_names(body)
        return request if self._check is None else self._check(request)

    def _check_size(self, body: bytes, hold: Callable[[int], None] | None) -> None:
        size = size_of(body)
        try:
            problems = list(islice(Heads(self._info).problems(body), MAX_PROBLEMS)) if size.values > FEW else []
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise InvalidRequest(_malformed(body, error)) from None
        except RecursionError:
            raise InvalidRequest(TOO_DEEP) from None
        if problems:
            raise InvalidRequest(*problems)
        if hold is not None:
            hold(size.num_bytes)

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


def _may_hold_many(body: bytes) -> bool:
    """Tell whether a body may hold so many values that they have to be counted; a comma in a string counts as well."""
    return body.count(b",") + body.count(b"[") + body.count(b"{") > FEW


def _check_utf8(body: bytes) -> None:
    try:
        body.decode("utf-8")
    except UnicodeDecodeError as error:
        got = f"bytes that are not UTF-8 at byte {error.start}"
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
