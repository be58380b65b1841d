"""What a large JSON body holds, before its values are made.

Input: bytes of JSON, the types of an object's fields. Output: the members of the object as they came, the memory that
their values are going to take, and problems of names, kinds and lengths. Must not know: any field.

A body of a few megabytes may hold millions of values, each of which takes fifty times its bytes once it is parsed, and
a single character may make the others of its string four times as wide. So names, kinds and lengths are checked on the
bytes, which takes as much memory as the bytes, and some milliseconds.
"""

from __future__ import annotations

import re
from collections.abc import Container, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import msgspec
from msgspec import inspect

from meari.errors import Problem
from meari.validation.explain import describe, kinds_of, misfit, shown, unknown_field
from meari.validation.lenient import members

__all__ = ["MAX_TEXTS", "NAME_BYTES", "SMALL_BYTES", "VALUE_BYTES", "Members", "Size", "size_of", "text_bytes"]

SMALL_BYTES: Final = 4096  # of a body whose values may be made whatever they are
FEW: Final = 20_000  # values that a field may hold whatever its type says
ANY: Final = 2**63  # values of a field whose type sets no bound
MAX_ITEMS: Final = 10_000  # of a list of single values whose type sets no bound
MAX_TEXTS: Final = "max_texts"  # in `Meta.extra`: items of a list at most if the first is no number, and their name
MAX_DEPTH: Final = 16  # of lists and objects in one another: no field has as many
MAX_UNKNOWN: Final = 8  # names that are told
VALUE_BYTES: Final = 110  # of a value in a list, parsed: an empty string takes 49, its place 8, both twice for a moment
NAME_BYTES: Final = 420  # of a name with its value in an object, twice for a moment
PIECE_BYTES: Final = 1 << 18  # looked at together
WIDE_BYTES: Final = 5  # of a character, decoded: first in one byte, then in four where a later one needs them
MIDDLE_BYTES: Final = 3  # the same without characters beyond U+FFFF
_FROM_F0: Final = bytes(range(0xF0))
_PAIR: Final = re.compile(rb"\\u[dD][89abAB]")


@dataclass(frozen=True)
class Size:
    """Numbers of values, of members of objects among them, of items of a list that is not empty, and of levels."""

    values: int
    names: int
    items: int
    depth: int

    @property
    def num_bytes(self) -> int:
        """Memory that the values take at most while they are parsed, beside the text in their strings."""
        return self.values * VALUE_BYTES + self.name_bytes

    @property
    def name_bytes(self) -> int:
        """The part of it that is for names; of objects in a list it is free again once they are structs."""
        return self.names * NAME_BYTES


def size_of(raw: bytes) -> Size:
    """Count what some JSON holds, at most."""
    import numpy as np

    if b"\\" in raw:
        raw = raw.replace(b"\\\\", b"").replace(b'\\"', b"")
    steps = np.zeros(256, np.int8)
    steps[list(b"[{")], steps[list(b"]}")] = 1, -1
    counts = np.zeros(256, np.int64)
    items, depth, deepest, is_inside = 1, 0, 0, False
    for start in range(0, len(raw), PIECE_BYTES):
        codes = np.frombuffer(raw, np.uint8, min(PIECE_BYTES, len(raw) - start), start)
        inside = np.bitwise_xor.accumulate(codes == ord('"')) ^ is_inside
        is_inside = bool(inside[-1])
        marks = codes[~inside]
        counts += np.bincount(marks, minlength=256)
        depths = depth + np.cumsum(steps[marks], dtype=np.int32)
        items += int(np.count_nonzero((marks == ord(",")) & (depths == 1)))
        if depths.size:
            depth, deepest = int(depths[-1]), max(deepest, int(depths.max()))
    return Size(1 + int(counts[list(b",[{")].sum()), int(counts[ord(":")]), items, deepest)


def text_bytes(raw: bytes) -> int:
    """Return the most memory that the text in the strings of some JSON takes while it is parsed."""
    return len(raw) * _char_bytes(raw)


def _char_bytes(raw: bytes) -> int:
    if raw.translate(None, _FROM_F0) or _PAIR.search(raw):
        return WIDE_BYTES
    return 1 if raw.isascii() and b"\\u" not in raw else MIDDLE_BYTES


class _Enough(Exception):
    """No further member changes the result."""


class _Name:
    """Stands for the name of a member while an object is read."""


@dataclass
class Members:
    """The members of an object.

    values    of known names, as they came; incomplete where `repeated` is set or `unknown` is full
    unknown   names that are not known, at most MAX_UNKNOWN of them
    repeated  the first known name that came twice, None if none did
    """

    values: dict[str, msgspec.Raw] = field(default_factory=dict)
    unknown: list[str] = field(default_factory=list)
    repeated: str | None = None

    @classmethod
    def of(cls, body: bytes, known: Container[str]) -> Members:
        """Read an object until the result is certain. Raises msgspec.DecodeError, RecursionError."""
        found, keys, rest = cls(), dict[str, _Name](), _Name()

        def note(_: type, name: str) -> _Name:
            if name not in known:
                if name not in found.unknown:
                    found.unknown.append(name)
                if len(found.unknown) == MAX_UNKNOWN:
                    raise _Enough
                return rest
            if name in keys:
                found.repeated = name
                raise _Enough
            return keys.setdefault(name, _Name())

        try:
            values = msgspec.json.decode(body, type=dict[_Name, msgspec.Raw], dec_hook=note)
        except _Enough:
            return found
        found.values = {name: values[key] for name, key in keys.items()}
        return found

    def problems(self, fields: Mapping[str, inspect.Field], prefix: str = "") -> Iterator[Problem]:
        """Yield unknown and repeated names, then values of another kind than their field, or too long."""
        yield from (unknown_field(prefix, name, fields) for name in self.unknown)
        if self.repeated is not None:
            yield Problem(shown(self.repeated.encode()), "the name twice", "it once")
        for name, value in self.values.items():
            if len(memoryview(value)) > SMALL_BYTES:
                yield from _value_problems(prefix + name, bytes(value), fields[name].type)


def _value_problems(name: str, raw: bytes, info: inspect.Type) -> Iterator[Problem]:
    too_short = inspect.LiteralType | inspect.IntType | inspect.FloatType  # for a value of so many bytes
    if not any(isinstance(kind, kinds_of(raw)) and not isinstance(kind, too_short) for kind in members(info)):
        yield misfit(name, raw, info)
        return
    if raw[:1] == b'"':
        return
    size = size_of(raw)
    if size.depth > MAX_DEPTH:
        yield Problem(name, "JSON that is nested too deeply", describe(info, name))
    elif (limit := _max_texts(raw, info)) is not None and size.items > limit[0]:
        yield Problem(name, f"a list of {size.items} {limit[1]}", f"at most {limit[0]}")
    elif came := _too_many(raw, size, info):
        yield Problem(name, came, describe(info, name) + _limit(info))
    elif raw[:1] == b"{":
        for struct in (kind for kind in members(info) if isinstance(kind, inspect.StructType)):
            fields = {field.encode_name: field for field in struct.fields}
            yield from Members.of(raw, fields).problems(fields, f"{name}.")


def _too_many(raw: bytes, size: Size, info: inspect.Type) -> str:
    """Return in words how many values came, "" where a type may hold as many."""
    is_long = raw[:1] == b"[" and size.items > max(kind.max_length or ANY for kind in _lists(info))
    if not is_long and size.values <= max(FEW, _most_values(info)):
        return ""
    if raw[:1] == b"[":
        return f"{size.items} items"
    return f"{size.names} members" if size.names > FEW else f"{size.values} values"


def _max_texts(raw: bytes, info: inspect.Type) -> tuple[int, str] | None:
    """Return the limit of a list whose first item is no number, and the name of its items; None where there is none."""
    extra: dict[str, Any] = (info.extra if isinstance(info, inspect.Metadata) else None) or {}
    is_of_texts = raw[:1] == b"[" and raw[1:SMALL_BYTES].lstrip()[:1] not in b"-0123456789"
    return extra.get(MAX_TEXTS) if is_of_texts else None


def _limit(info: inspect.Type) -> str:
    """Return the limit of a list whose description names none."""
    lists = _lists(info)
    return f", at most {MAX_ITEMS} items" if lists and not any(kind.max_length for kind in lists) else ""


def _lists(info: inspect.Type) -> list[inspect.ListType]:
    return [kind for kind in members(info) if isinstance(kind, inspect.ListType)]


def _most_values(info: inspect.Type) -> int:
    """Return how many values a type holds at most."""
    return max(map(_most_of_one, members(info)))


def _most_of_one(info: inspect.Type) -> int:
    match info:
        case inspect.ListType():
            item = _most_values(info.item_type)
            length = info.max_length or (MAX_ITEMS if item == 1 else ANY)
            return min(ANY, 1 + length * item)
        case inspect.DictType():
            return min(ANY, 1 + (info.max_length or ANY) * _most_values(info.value_type))
        case inspect.StructType():
            return min(ANY, sum(_most_values(field.type) for field in info.fields))
    return 1
