"""Fields of config dataclasses with the values that they take, the reader of one table of them, and the writer of TOML.

Input: a table (as from TOML or JSON) and a dataclass whose fields were made here. Output: the values, and a list of
problems, each `section.key: got X, expected Y`; TOML. Must not know: the meaning of the settings.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

_REFUSED = object()
_RULE = "rule"


@dataclass(frozen=True)
class Rule:
    """Rule of a single value: in words, and as a function that returns the value or `_REFUSED`.

    names   valid values, for the hint about a mistyped one
    """

    expected: str
    read: Callable[[object], object]
    names: tuple[str, ...] = ()


@dataclass(frozen=True)
class TableRule:
    """Rule between several values of one table: `check(*values)` returns a problem or None.

    It is called only if each of `keys` has a value that is valid on its own.
    """

    keys: tuple[str, ...]
    check: Callable[..., str | None]


def _field(rule: Rule, default: object) -> Any:
    """Make a dataclass field; without a default the key is required."""
    return dataclasses.field(default=default, metadata={_RULE: rule})


def integer(default: object = dataclasses.MISSING, *, minimum: int = 0, maximum: int | None = None) -> Any:
    """Make a field of a whole number, minimum … maximum, both included; no bool."""
    expected = f"a whole number ≥ {minimum}" if maximum is None else f"a whole number {minimum} … {maximum}"

    def read(value: object) -> object:
        fits = type(value) is int and value >= minimum and (maximum is None or value <= maximum)
        return value if fits else _REFUSED

    return _field(Rule(expected, read), default)


def real(default: object = dataclasses.MISSING, *, expected: str, fits: Callable[[float], bool]) -> Any:
    """Make a field of a finite number, whole or not (no bool), that `fits`; kept as a float."""

    def read(value: object) -> object:
        if isinstance(value, bool) or not isinstance(value, int | float):
            return _REFUSED
        try:
            number = float(value)
        except OverflowError:
            return _REFUSED
        return number if math.isfinite(number) and fits(number) else _REFUSED

    return _field(Rule(f"a number {expected}", read), default)


def switch(default: object = dataclasses.MISSING) -> Any:
    """Make a field of true or false."""
    return _field(Rule("true or false", lambda value: value if isinstance(value, bool) else _REFUSED), default)


def choice(kind: type[StrEnum], default: object = dataclasses.MISSING) -> Any:
    """Make a field of one of the names of an enum, read into its member."""
    names = {member.value: member for member in kind}

    def read(value: object) -> object:
        return names.get(value, _REFUSED) if isinstance(value, str) else _REFUSED

    return _field(Rule("one of " + ", ".join(f'"{name}"' for name in names), read, tuple(names)), default)


def string(default: object = dataclasses.MISSING, *, pattern: str = r"(?s:.*)", expected: str = "a string") -> Any:
    """Make a field of a string that the pattern matches in full."""
    compiled = re.compile(pattern)

    def read(value: object) -> object:
        return value if isinstance(value, str) and compiled.fullmatch(value) else _REFUSED

    return _field(Rule(expected, read), default)


def integers(default: object = dataclasses.MISSING, *, minimum: int = 1) -> Any:
    """Make a field of a list of whole numbers of at least `minimum`; kept as a tuple."""

    def read(value: object) -> object:
        if not isinstance(value, list | tuple):
            return _REFUSED
        return tuple(value) if all(type(entry) is int and entry >= minimum for entry in value) else _REFUSED

    return _field(Rule(f"a list of whole numbers ≥ {minimum}", read), default)


def paths(default: object = dataclasses.MISSING) -> Any:
    """Make a field of a list of paths, none of them empty; kept as a tuple of strings."""

    def read(value: object) -> object:
        is_list = isinstance(value, list | tuple) and all(isinstance(entry, str) and entry for entry in value)
        return tuple(value) if is_list and isinstance(value, list | tuple) else _REFUSED

    return _field(Rule("a list of file or folder names", read), default)


def texts(default: object = dataclasses.MISSING) -> Any:
    """Make a field of a table of names and texts."""

    def read(value: object) -> object:
        is_table = isinstance(value, Mapping) and all(isinstance(entry, str) for entry in value.values())
        return dict(value) if is_table and isinstance(value, Mapping) else _REFUSED

    return _field(Rule("a table of names and texts", read), default)


def show(value: object) -> str:
    """Return a value as it is written in the config file, cut to a line's length."""
    try:
        text = json.dumps(value, ensure_ascii=False)
    except (TypeError, ValueError):
        text = str(value)
    text = text if len(text) <= 80 else text[:77] + "…"
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in text)


def _unknown(section: str, key: str, keys: list[str]) -> str:
    return f"{section}{key}: got an unknown key, expected one of {', '.join(keys)}{did_you_mean(key, keys)}"


def did_you_mean(name: object, names: Iterable[str]) -> str:
    """Return ` (did you mean NAME?)`, or an empty text if no name is near; case is ignored."""
    spelled = {each.lower(): each for each in names}
    near = difflib.get_close_matches(name[:100].lower(), spelled, n=1) if isinstance(name, str) else []
    return f" (did you mean {spelled[near[0]]}?)" if near else ""


def read_table(
    kind: type,
    section: str,
    table: Mapping[str, object],
    rules: tuple[TableRule, ...],
    problems: list[str],
    known: tuple[str, ...] = (),
) -> dict[str, Any]:
    """Read the fields of the dataclass `kind` from a table.

    section   what stands before a key in a problem: "corpus." or, for the top of the file, ""
    problems  appended to
    known     names of tables beside the fields, listed in the message about a mistyped key
    returns   the values that are right, defaults included; incomplete where `problems` grew
    """
    fields = {field.name: field for field in dataclasses.fields(kind) if _RULE in field.metadata}
    problems += [_unknown(section, key, [*fields, *known]) for key in table if key not in fields]
    values: dict[str, Any] = {}
    for name, field in fields.items():
        rule: Rule = field.metadata[_RULE]
        if name not in table:
            if field.default is dataclasses.MISSING:
                problems.append(f"{section}{name}: got nothing, expected {rule.expected}")
            else:
                values[name] = field.default
            continue
        value = rule.read(table[name])
        if value is _REFUSED:
            hint = did_you_mean(table[name], rule.names)
            problems.append(f"{section}{name}: got {show(table[name])}, expected {rule.expected}{hint}")
        else:
            values[name] = value
    for rule_of_table in rules:
        if all(key in values for key in rule_of_table.keys):
            problem = rule_of_table.check(*(values[key] for key in rule_of_table.keys))
            problems += [] if problem is None else [section + problem]
    return values


def to_toml(tables: Mapping[str, Any]) -> str:
    """Write plain tables as TOML: top-level keys first, then the tables."""
    return "".join(_lines("", tables)).lstrip("\n")


def _lines(path: str, table: Mapping[str, Any]) -> list[str]:
    lines = [f"\n[{path}]\n"] if path else []
    lines += [f"{_key(key)} = {_value(value)}\n" for key, value in table.items() if not isinstance(value, Mapping)]
    for key, value in table.items():
        if isinstance(value, Mapping):
            lines += _lines(f"{path}.{_key(key)}" if path else _key(key), value)
    return lines


def _key(key: str) -> str:
    return key if key.replace("_", "").replace("-", "").isalnum() and key.isascii() else json.dumps(key)


def _value(value: object) -> str:
    """Write numbers, truth values, strings and lists, in TOML the same as in JSON except for characters above
    U+FFFF.
    """
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
