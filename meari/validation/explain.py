"""Problems of a JSON value, in words derived from the annotation of its field.

Input: the raw JSON of a value and the field's type. Output: a `Problem` for each part that does not fit. Must not know:
any field or limit: both are written once, in the annotations of the structs.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterable, Iterator
from typing import Annotated, Any, Final, Union

import msgspec
from msgspec import inspect

from meari.errors import Problem, did_you_mean
from meari.validation.lenient import is_left_out, members, read_leniently

__all__ = ["describe", "explain_object", "in_range", "kinds_of", "misfit", "shown", "unknown_field", "why_malformed"]

MAX_SHOWN_CHARS = 60
AT_ONCE: Final = 1000  # items
MAX_REREAD_BYTES: Final = 1 << 20  # of malformed JSON, to find half of a surrogate pair
_HALF_PAIR = re.compile("[\ud800-\udfff]")
_ESCAPED_PAIR = re.compile(rb"\\u[dD][89a-fA-F]")
NULL = msgspec.Raw(b"null")
MAX_HINT_BYTES: Final = 1000  # of a word that may be a misspelt one
Number = inspect.IntType | inspect.FloatType
_NUMBERS: Final = (inspect.IntType, inspect.FloatType)
_KINDS: Final[dict[bytes, tuple[type[inspect.Type], ...]]] = {
    b"[": (inspect.ListType,),
    b"{": (inspect.DictType, inspect.StructType),
    b'"': (inspect.StrType, inspect.LiteralType),
    b"t": (inspect.BoolType,),
    b"f": (inspect.BoolType,),
    b"n": (inspect.NoneType,),
}


def _problems(path: str, raw: bytes, info: inspect.Type) -> Iterator[Problem]:
    """Yield the problems of one value; none where it fits.

    path  name of the value in messages, as `texts[3]`
    raw   its JSON as it came
    info  its type
    """
    info = _member(raw, info)
    if isinstance(info, inspect.ListType) and raw[:1] == b"[":
        items = msgspec.json.decode(raw, type=list[msgspec.Raw])
        if not _length_fits(len(items), info):
            yield Problem(path, f"{len(items)} items", describe(info, path))
        for index in _misfits(items, info.item_type):
            yield from _problems(f"{path}[{index}]", bytes(items[index]), info.item_type)
    elif isinstance(info, inspect.DictType) and raw[:1] == b"{":
        found = msgspec.json.decode(raw, type=dict[str, msgspec.Raw])
        if not _length_fits(len(found), info):
            yield Problem(path, f"{len(found)} members", describe(info, path))
        names, values = list(found), list(found.values())
        for index in _misfits(values, info.value_type):
            yield from _problems(f'{path}["{_cut(names[index])}"]', bytes(values[index]), info.value_type)
    elif isinstance(info, inspect.StructType) and raw[:1] == b"{":
        yield from explain_object(path + ".", raw, info)
    elif not _fits(raw, info):
        yield misfit(path, raw, info)


def misfit(path: str, raw: bytes, info: inspect.Type) -> Problem:
    """Return the problem of a value that does not fit its type."""
    info = _member(raw, info)
    return Problem(path, shown(raw), f"{_expected(raw, info, path)}{_hint(raw, info)}")


def _misfits(items: list[msgspec.Raw], info: inspect.Type) -> Iterator[int]:
    """Yield the places of items that may not fit; many that fit are passed over at once."""
    for start in range(0, len(items), AT_ONCE):
        some = items[start : start + AT_ONCE]
        if not _all_fit(some, info):
            yield from range(start, start + len(some))


def _all_fit(items: list[msgspec.Raw], info: inspect.Type) -> bool:
    raw, wanted = b"[" + b",".join(items) + b"]", list[_annotation(info)]  # type: ignore[misc]
    with contextlib.suppress(msgspec.ValidationError):
        msgspec.json.decode(raw, type=wanted)
        return True
    if not _may_fit(bytes(items[0]), info):
        return False
    try:
        msgspec.convert(read_leniently(raw, inspect.ListType(info)), wanted, strict=True)
    except (msgspec.ValidationError, ArithmeticError):
        return False
    return True


def _annotation(info: inspect.Type) -> Any:
    """Return a type with its bounds; for those that no list holds one that nothing fits."""
    match info:
        case inspect.IntType() | inspect.FloatType():
            kind = int if isinstance(info, inspect.IntType) else float
            return Annotated[kind, msgspec.Meta(gt=info.gt, ge=info.ge, lt=info.lt, le=info.le)]  # type: ignore[call-overload]
        case inspect.StrType():
            return Annotated[str, msgspec.Meta(min_length=info.min_length, max_length=info.max_length)]
        case inspect.ListType():
            return list[_annotation(info.item_type)]  # type: ignore[misc]
        case inspect.StructType():
            return info.cls
        case inspect.UnionType() | inspect.Metadata():
            return Union[tuple(map(_annotation, members(info)))]  # noqa: UP007 (made of a tuple)
    return None


def explain_object(prefix: str, raw: bytes, info: inspect.StructType) -> Iterator[Problem]:
    """Yield the problems of an object's fields: unknown ones, missing ones, and those whose value does not fit."""
    values = msgspec.json.decode(raw, type=dict[str, msgspec.Raw])
    fields = {field.encode_name: field for field in info.fields}
    for name in values:
        if name not in fields:
            yield unknown_field(prefix, name, fields)
    for name, field in fields.items():
        if name in values and not (values[name] == NULL and is_left_out(field)):
            yield from _problems(prefix + name, bytes(values[name]), field.type)
        elif field.required and name not in values:
            yield Problem(f"{prefix}{name}", None, describe(field.type, name))


def unknown_field(prefix: str, name: str, fields: Iterable[str]) -> Problem:
    """Return the problem of a name that is none of the fields'."""
    known = list(fields)
    hint = did_you_mean(name, known) if len(name) <= MAX_HINT_BYTES else ""
    return Problem(f"{prefix}{_cut(name)}", "an unknown field", f"one of {', '.join(known)}{hint}")


def why_malformed(data: bytes, error: Exception, cut_off: str) -> str:
    """Return the reason why bytes in UTF-8 are no JSON.

    error    msgspec's own
    cut_off  the reason to give for JSON that ends too early
    """
    reason = str(error).removeprefix("JSON is malformed: ")
    half = None
    if _ESCAPED_PAIR.search(data) and len(data) <= MAX_REREAD_BYTES:
        with contextlib.suppress(ValueError, RecursionError):
            # msgspec takes half a surrogate pair for the end of the data, or for something else
            half = _HALF_PAIR.search(json.dumps(json.loads(data), ensure_ascii=False))
    if half is None:
        return reason if "(byte" in reason else cut_off
    return f"\\u{ord(half[0]):04x} is half of a surrogate pair, which stands for no character"


def describe(info: inspect.Type, name: str = "value") -> str:  # noqa: PLR0911 (one line a type)
    """Return a type in words: `an integer, 1 <= n <= 16`, `a list of at most 8 non-empty strings`."""
    match info:
        case inspect.IntType() | inspect.FloatType():
            kind = "an integer" if isinstance(info, inspect.IntType) else "a number"
            bounds = _range_text(info, _last(name))
            return f"{kind}, {bounds}" if bounds else kind
        case inspect.StrType():
            return f"a {_string(info)}"
        case inspect.BoolType():
            return "true or false"
        case inspect.NoneType():
            return "null"
        case inspect.LiteralType():
            return "one of " + ", ".join(msgspec.json.encode(value).decode() for value in info.values)
        case inspect.ListType():
            return f"a {_list(info)}"
        case inspect.DictType():
            return f"an object{_at_most(info)} whose values are each {describe(info.value_type)}"
        case inspect.UnionType() | inspect.Metadata():
            return " or ".join(describe(member, name) for member in members(info))
        case inspect.StructType():
            return "an object with " + ", ".join(field.encode_name for field in info.fields)
    return "a JSON value"


def _range_text(info: Number, name: str) -> str:
    """Return the bounds of a number as an inequality: `0 <= top_p <= 1`, `n >= 1`, or nothing."""
    low = f"{_bound(info.gt)} < " if info.gt is not None else f"{_bound(info.ge)} <= " if info.ge is not None else ""
    high = f" < {_bound(info.lt)}" if info.lt is not None else f" <= {_bound(info.le)}" if info.le is not None else ""
    if low and not high:
        number, sign = low.split()
        return f"{name} {sign.replace('<', '>')} {number}"
    return f"{low}{name}{high}" if high else ""


def shown(raw: bytes) -> str:
    """Return a JSON value as it came, cut where it is long."""
    return _cut(raw[: 4 * MAX_SHOWN_CHARS + 8].decode("utf-8", "replace"))


def _cut(text: str) -> str:
    return text if len(text) <= MAX_SHOWN_CHARS else f"{text[:MAX_SHOWN_CHARS]}…"


def _expected(raw: bytes, info: inspect.Type, path: str) -> str:
    """Describe the type, or only its range where a number of the right kind is out of it."""
    if isinstance(info, inspect.IntType) and raw.lstrip(b"-").isdigit():
        return _range_text(info, _last(path)) or describe(info)
    if isinstance(info, inspect.FloatType) and raw[:1] in b"-0123456789":
        return _range_text(info, _last(path)) or "a number that a 64-bit float holds"
    return describe(info, path)


def _hint(raw: bytes, info: inspect.Type) -> str:
    """Return a hint at the nearest of the words that the field takes, where a word came."""
    words = [word for kind in members(info) if isinstance(kind, inspect.LiteralType) for word in kind.values]
    if not words or raw[:1] != b'"' or len(raw) > MAX_HINT_BYTES:
        return ""
    return did_you_mean(msgspec.json.decode(raw, type=str), map(str, words))


def _member(raw: bytes, info: inspect.Type) -> inspect.Type:
    """Return the member of a union that a list, an object or a number was meant for: the message explains that one."""
    choices = members(info)
    meant = [] if raw[:1] == b'"' else [member for member in choices if isinstance(member, kinds_of(raw))]
    if len(meant) == 1:
        return meant[0]
    return choices[0] if len(choices) == 1 else info


def kinds_of(raw: bytes) -> tuple[type[inspect.Type], ...]:
    """Return the types that take values of this kind, which the first byte tells."""
    return _KINDS.get(raw[:1], _NUMBERS)


def _may_fit(raw: bytes, info: inspect.Type) -> bool:
    return any(isinstance(kind, kinds_of(raw)) for kind in members(info))


def _fits(raw: bytes, info: inspect.Type) -> bool:
    choices = members(info)
    if not _may_fit(raw, info):
        return False
    if len(choices) > 1:
        return any(_fits(raw, member) for member in choices)
    try:
        value = msgspec.convert(read_leniently(raw, info), _python_type(info), strict=True)
    except (msgspec.MsgspecError, ArithmeticError):
        return False
    if isinstance(info, inspect.LiteralType):
        return value in info.values
    if isinstance(info, inspect.IntType | inspect.FloatType):
        return in_range(value, info)
    return _length_fits(len(value), info) if isinstance(info, inspect.StrType) else True


def _python_type(info: inspect.Type) -> object:
    kinds: dict[type[inspect.Type], object] = {
        inspect.IntType: int,
        inspect.FloatType: float,
        inspect.StrType: str,
        inspect.BoolType: bool,
        inspect.NoneType: None,
        inspect.ListType: list,
        inspect.DictType: dict,
        inspect.LiteralType: str,
        inspect.StructType: dict,
    }
    return kinds[type(info)]


def in_range(value: float, info: Number) -> bool:
    """Tell whether a number lies within the bounds of its type."""
    return (
        (info.gt is None or value > info.gt)
        and (info.ge is None or value >= info.ge)
        and (info.lt is None or value < info.lt)
        and (info.le is None or value <= info.le)
    )


def _length_fits(length: int, info: inspect.StrType | inspect.ListType | inspect.DictType) -> bool:
    return (info.min_length or 0) <= length and (info.max_length is None or length <= info.max_length)


def _bound(value: float) -> str:
    return str(int(value)) if value == int(value) else f"{value:.10g}"


def _last(path: str) -> str:
    return "value" if path.endswith("]") else path.rpartition(".")[2]


def _string(info: inspect.StrType) -> str:
    return "non-empty string" if info.min_length else "string"


def _plural(info: inspect.Type) -> str:
    match info:
        case inspect.StrType():
            return f"{_string(info)}s"
        case inspect.IntType():
            return "integers"
        case inspect.ListType():
            return f"lists of {_plural(info.item_type)}"
        case inspect.UnionType():
            return " or ".join(_plural(member) for member in members(info))
        case inspect.StructType():
            return "objects with " + ", ".join(field.encode_name for field in info.fields)
    return "items"


def _at_most(info: inspect.DictType) -> str:
    return "" if info.max_length is None else f" with at most {info.max_length} members"


def _list(info: inspect.ListType) -> str:
    items = _plural(info.item_type)
    if info.max_length is None:
        return f"{'non-empty ' if info.min_length else ''}list of {items}"
    bounds = f"{info.min_length} to" if info.min_length else "at most"
    return f"list of {bounds} {info.max_length} {items}"
