"""The bytes of a body → a Struct, or InvalidRequest that says where and why not.

The fast way is one decode into the Struct; only a body that fails is looked at field by field. Then two things are
taken that JSON's own schema and OpenAI's clients take: an integer written as `3.0`, and null for a field that need not
come. Knows nothing of the fields.
"""

from __future__ import annotations

import codecs
import json
from typing import Generic, TypeVar

import msgspec
from msgspec import inspect

from meari.errors import InvalidRequest
from meari.validation.explain import explain_object, shown, why_malformed
from meari.validation.lenient import read_leniently

__all__ = ["Parser"]

MAX_PROBLEMS = 8
Request = TypeVar("Request", bound=msgspec.Struct)


class Parser(Generic[Request]):
    """Parses the bodies of one kind of request."""

    def __init__(self, struct: type[Request]) -> None:
        self.struct = struct
        self._info = inspect.type_info(struct)
        self._decoder = msgspec.json.Decoder(struct, strict=True)

    def parse(self, body: bytes) -> Request:
        """A byte-order mark in front is passed over (RFC 8259, 8.1). Raises InvalidRequest."""
        body = body.removeprefix(codecs.BOM_UTF8)
        if not body.strip():
            raise InvalidRequest("body: got nothing, expected a JSON object")
        _check_utf8(body)
        try:
            request = self._decoder.decode(body)
        except msgspec.ValidationError as error:
            request = self._read_leniently(body, error)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise InvalidRequest(_malformed(body, error)) from None
        except RecursionError:
            raise InvalidRequest("body: got JSON that is nested too deeply, expected a JSON object") from None
        _check_distinct_names(body)
        return request

    def _read_leniently(self, body: bytes, error: msgspec.ValidationError) -> Request:
        """Raises InvalidRequest with every problem where the body does not fit even so."""
        try:
            return msgspec.convert(read_leniently(body, self._info), self.struct, strict=True)
        except (msgspec.MsgspecError, ArithmeticError, RecursionError):
            raise InvalidRequest(self._problems(body, error)) from None

    def _problems(self, body: bytes, error: msgspec.ValidationError) -> str:
        """Every problem of a body that is not of this kind: unknown fields first, then those that do not fit."""
        try:
            msgspec.json.decode(body, type=msgspec.Raw)  # malformed JSON comes before wrong values
            if body.lstrip()[:1] != b"{":
                return f"body: got {shown(body.strip())}, expected a JSON object"
            assert isinstance(self._info, inspect.StructType)
            problems = list(explain_object("", body, self._info))
        except msgspec.DecodeError as malformed:
            return _malformed(body, malformed)
        except RecursionError:
            return "body: got JSON that is nested too deeply, expected a JSON object"
        return "; ".join(problems[:MAX_PROBLEMS]) or f"body: {error}"


def _check_utf8(body: bytes) -> None:
    try:
        body.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InvalidRequest(f"body: got bytes that are not UTF-8 at byte {error.start}, expected UTF-8") from None


def _check_distinct_names(body: bytes) -> None:
    """A name that comes twice in an object would silently hide a value."""
    try:
        json.loads(body, object_pairs_hook=_distinct)
    except RecursionError:
        raise InvalidRequest("body: got JSON that is nested too deeply, expected a JSON object") from None


def _distinct(pairs: list[tuple[str, object]]) -> None:
    seen = set()
    for name, _ in pairs:
        if name in seen:
            raise InvalidRequest(f"{shown(name.encode())}: got the name twice, expected it once")
        seen.add(name)


def _malformed(body: bytes, error: Exception) -> str:
    reason = why_malformed(body, error, f"it ends too early (byte {len(body)})")
    return f"body: got malformed JSON, expected a JSON object: {reason}"
