"""How much a JSON body holds, before it is parsed.

Input: bytes of JSON, the types of an object's fields. Output: counts, and problems of fields that hold far more than
their types allow. Must not know: any field.

A body of a few megabytes may hold millions of values, each of which takes fifty times its bytes once it is parsed. So
the values are counted first, by a look at the bytes, which needs as much memory as the bytes and some milliseconds.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import msgspec
from msgspec import UNSET, inspect

from meari.errors import Problem
from meari.validation.explain import describe, shown
from meari.validation.lenient import members

__all__ = ["FEW", "NAME_BYTES", "VALUE_BYTES", "Heads", "Size", "size_of"]

FEW: Final = 20_000  # values that need no further look
ANY: Final = 2**63  # values of a field whose type sets no bound
MAX_ITEMS: Final = 10_000  # of a list of single values whose type sets no bound
VALUE_BYTES: Final = 110  # of a value in a list, parsed: an empty string takes 49, its place 8, both twice for a moment
PIECE_BYTES: Final = 1 << 18  # looked at together
NAME_BYTES: Final = 420  # of a name with its value in an object, twice for a moment


@dataclass(frozen=True)
class Size:
    """Numbers of values, of members of objects among them, and of items, if it is a list that is not empty."""

    values: int
    names: int
    items: int

    @property
    def num_bytes(self) -> int:
        """Memory that the values take at most while they are parsed, beside the text in their strings."""
        return self.values * VALUE_BYTES + self.names * NAME_BYTES


def size_of(raw: bytes) -> Size:
    """Count what some JSON holds, at most."""
    import numpy as np

    if b"\\" in raw:
        raw = raw.replace(b"\\\\", b"").replace(b'\\"', b"")
    steps = np.zeros(256, np.int8)
    steps[list(b"[{")], steps[list(b"]}")] = 1, -1
    counts = np.zeros(256, np.int64)
    items, depth, is_inside = 1, 0, False
    for start in range(0, len(raw), PIECE_BYTES):
        codes = np.frombuffer(raw, np.uint8, min(PIECE_BYTES, len(raw) - start), start)
        inside = np.bitwise_xor.accumulate(codes == ord('"')) ^ is_inside
        is_inside = bool(inside[-1])
        marks = codes[~inside]
        counts += np.bincount(marks, minlength=256)
        depths = depth + np.cumsum(steps[marks], dtype=np.int32)
        items += int(np.count_nonzero((marks == ord(",")) & (depths == 1)))
        depth = int(depths[-1]) if depths.size else depth
    return Size(1 + int(counts[list(b",[{")].sum()), int(counts[ord(":")]), items)


class Heads:
    """Looks at the fields of an object without parsing their values."""

    def __init__(self, info: inspect.Type) -> None:
        assert isinstance(info, inspect.StructType)
        self._fields = {field.encode_name: field for field in info.fields}
        fields: list[tuple[str, Any, Any]] = [(name, msgspec.Raw, UNSET) for name in self._fields]
        self._decode = msgspec.json.Decoder(msgspec.defstruct("Heads", fields, forbid_unknown_fields=True)).decode
        self._decode_any = msgspec.json.Decoder(msgspec.defstruct("AnyHeads", [])).decode

    def problems(self, body: bytes) -> Iterator[Problem]:
        """Yield the problems of an object that holds many values: an unknown field, fields with too many of them.

        Raises msgspec.DecodeError where it is malformed.
        """
        if body.lstrip()[:1] != b"{":
            yield Problem("body", shown(body.strip()), "a JSON object")
            return
        try:
            found = self._decode(body)
        except msgspec.ValidationError as error:
            self._decode_any(body)  # malformed JSON comes before wrong fields
            name = str(error).partition("`")[2].rpartition("`")[0]
            yield Problem(shown(name.encode()), "an unknown field", f"one of {', '.join(self._fields)}")
            return
        for name, field in self._fields.items():
            value = getattr(found, name)
            raw = b"" if value is UNSET else bytes(value)
            if len(raw) > FEW and (came := _too_many(raw, field.type)):
                yield Problem(name, came, describe(field.type, name) + _limit(field.type))


def _too_many(raw: bytes, info: inspect.Type) -> str:
    """Return in words how many values came, "" where a type may hold as many."""
    size, lists = size_of(raw), _lists(info)
    if raw[:1] != b"[" or not lists:
        return f"{size.values} values" if size.values > max(FEW, _most_values(info)) else ""
    is_long = size.items > max(kind.max_length or ANY for kind in lists)
    return f"{size.items} items" if is_long or size.values > max(FEW, _most_values(info)) else ""


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
            return ANY
        case inspect.StructType():
            return min(ANY, sum(_most_values(field.type) for field in info.fields))
    return 1
