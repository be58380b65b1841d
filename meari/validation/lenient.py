"""JSON values as JSON Schema and OpenAI's clients understand them.

Input: the bytes of a body, or of a value in it, and its type. Output: the value, with integers written as `3.0` or
`3e0` as integers, and without the null of optional fields. Nothing else is converted: `3.5` and `"3"` stay as they are.
Must not know: any field.
"""

from __future__ import annotations

from decimal import Decimal
from typing import Any, Final

import msgspec
from msgspec import inspect

__all__ = ["is_left_out", "members", "read_leniently"]

MAX_DIGITS: Final = 400  # of an integer written with an exponent: beyond all ranges, and quick to make
_decode: Final = msgspec.json.Decoder(float_hook=Decimal).decode


def read_leniently(raw: bytes, info: inspect.Type) -> Any:
    """Return the value of some JSON, for `msgspec.convert`. Raises msgspec.DecodeError where it is malformed."""
    return _converted(_decode(raw), info)


def is_left_out(field: inspect.Field) -> bool:
    """Tell whether null for this field means that it was not sent."""
    return not field.required and not any(isinstance(kind, inspect.NoneType) for kind in members(field.type))


def _converted(value: Any, info: inspect.Type) -> Any:
    kinds = members(info)
    match value:
        case Decimal():
            return _number(value, kinds)
        case list():
            items = next((kind.item_type for kind in kinds if isinstance(kind, inspect.ListType)), inspect.AnyType())
            return [_converted(item, items) for item in value]
        case dict():
            struct = next((kind for kind in kinds if isinstance(kind, inspect.StructType)), None)
            return value if struct is None else _fields(value, struct)
    return value


def members(info: inspect.Type) -> tuple[inspect.Type, ...]:
    """Return the members of a union, or the type alone."""
    if isinstance(info, inspect.Metadata):
        return members(info.type)
    if isinstance(info, inspect.UnionType):
        return tuple(part for member in info.types for part in members(member))
    return (info,)


def _number(value: Decimal, kinds: tuple[inspect.Type, ...]) -> int | float:
    is_integer = any(isinstance(kind, inspect.IntType) for kind in kinds)
    if is_integer and value.adjusted() < MAX_DIGITS and value == value.to_integral_value():
        return int(value)
    return float(value)


def _fields(values: dict[str, Any], struct: inspect.StructType) -> dict[str, Any]:
    fields = {field.encode_name: field for field in struct.fields}
    return {
        name: _converted(value, fields[name].type) if name in fields else value
        for name, value in values.items()
        if value is not None or name not in fields or not is_left_out(fields[name])
    }
