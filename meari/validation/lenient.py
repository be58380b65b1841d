"""JSON values as JSON Schema and OpenAI's clients understand them.

Input: the bytes of a body, or of a value in it, and its type. Output: the value, with integers written as `3.0` or
`3e0` as integers, and without the null of optional fields. Nothing else is converted: `3.5` and `"3"` stay as they are.
Must not know: any field.
"""

from __future__ import annotations

import functools
from decimal import Decimal
from typing import Any, Final

import msgspec
from msgspec import inspect

__all__ = ["is_left_out", "members", "read_leniently"]

MAX_DIGITS: Final = 32  # of an integer written with an exponent: beyond all ranges, and quick to make
CONVERTED: Final = frozenset({Decimal, list, dict})
EXACT_CHARS: Final = 15  # of a number that a float tells from all others of as many
EXACT_BELOW: Final = 1e15
BEYOND: Final = 1e19  # all ranges of integers


def _exact(text: str) -> int | float | Decimal:
    """Return the value of a number with a fraction or an exponent, an integer as such where that is quickly told."""
    if len(text) > EXACT_CHARS:
        return Decimal(text)
    value = float(text)
    if value and -EXACT_BELOW < value < EXACT_BELOW:
        whole = int(value)
        return whole if whole == value else value
    if abs(value) >= BEYOND:
        return value
    return 0 if not value and not float(text.lower().partition("e")[0]) else Decimal(text)


_decode: Final = msgspec.json.Decoder(float_hook=_exact).decode


def read_leniently(raw: bytes, info: inspect.Type) -> Any:
    """Return the value of some JSON, for `msgspec.convert`. Raises msgspec.DecodeError where it is malformed."""
    return _converted(_decode(raw), members(info))


def is_left_out(field: inspect.Field) -> bool:
    """Tell whether null for this field means that it was not sent."""
    return not field.required and not any(isinstance(kind, inspect.NoneType) for kind in members(field.type))


def _converted(value: Any, kinds: tuple[inspect.Type, ...]) -> Any:
    match value:
        case Decimal():
            return _number(value, kinds)
        case list():
            if CONVERTED.isdisjoint(map(type, value)):
                return value
            items = next((kind.item_type for kind in kinds if isinstance(kind, inspect.ListType)), inspect.AnyType())
            of_items = members(items)
            return [_converted(item, of_items) if type(item) in CONVERTED else item for item in value]
        case dict():
            if None not in value.values() and CONVERTED.isdisjoint(map(type, value.values())):
                return value
            struct = next((kind for kind in kinds if isinstance(kind, inspect.StructType)), None)
            return value if struct is None else _fields(value, struct.cls)
    return value


def members(info: inspect.Type) -> tuple[inspect.Type, ...]:
    """Return the members of a union, or the type alone."""
    if isinstance(info, inspect.Metadata):
        return members(info.type)
    if isinstance(info, inspect.UnionType):
        return tuple(part for member in info.types for part in members(member))
    return (info,)


def _number(value: Decimal, kinds: tuple[inspect.Type, ...]) -> int | float:
    if value.adjusted() >= MAX_DIGITS or value != value.to_integral_value():
        return float(value)
    return int(value) if any(isinstance(kind, inspect.IntType) for kind in kinds) else float(value)


def _fields(values: dict[str, Any], struct: type[msgspec.Struct]) -> dict[str, Any]:
    fields = _kinds_of_fields(struct)
    return {
        name: _converted(value, fields[name][0]) if type(value) in CONVERTED and name in fields else value
        for name, value in values.items()
        if value is not None or name not in fields or not fields[name][1]
    }


@functools.cache
def _kinds_of_fields(struct: type[msgspec.Struct]) -> dict[str, tuple[tuple[inspect.Type, ...], bool]]:
    """Return what each field of a struct may be, and whether null means that it was not sent."""
    info = inspect.type_info(struct)
    assert isinstance(info, inspect.StructType)
    return {field.encode_name: (members(field.type), is_left_out(field)) for field in info.fields}
