"""The values that settings may have: the text of a variable → a value, or ValueError. Each says what it expects."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

__all__ = ["FOLDER", "HOST", "KEYS", "MODEL_NAME", "ORIGINS", "STATE_KEYS", "ValueKind", "choice", "integer", "seconds"]

MIN_STATE_KEY_CHARS: Final = 32
MAX_PORT: Final = 65535
_ORIGIN: Final = re.compile(r"([a-z][a-z0-9+.-]*)://(\[[0-9a-f:.]+\]|[a-z0-9][a-z0-9._-]*)(?::([0-9]{1,5}))?")


@dataclass(frozen=True)
class ValueKind:
    """`parse` raises ValueError for a text that is not what `expected` says. words: that it may be mistyped for."""

    expected: str
    parse: Callable[[str], object]
    words: tuple[str, ...] = ()


def integer(low: int, high: int) -> ValueKind:
    """A whole number, written with ASCII digits."""

    def parse(text: str) -> int:
        digits = text.removeprefix("-")
        if not digits.isascii() or not digits.isdigit() or len(text) > 20 or not low <= int(text) <= high:
            raise ValueError
        return int(text)

    return ValueKind(f"an integer, {low} <= value <= {high}", parse)


def seconds(low: float, high: float) -> ValueKind:
    """A finite number."""

    def parse(text: str) -> float:
        value = float(text)
        if not math.isfinite(value) or not low <= value <= high:
            raise ValueError
        return value

    return ValueKind(f"a number of seconds, {low:g} <= value <= {high:g}", parse)


def choice(*words: str) -> ValueKind:
    """One of some words, in any case."""

    def parse(text: str) -> str:
        if text.lower() not in words:
            raise ValueError
        return text.lower()

    return ValueKind("one of " + ", ".join(words), parse, words)


def _keys(text: str) -> tuple[str, ...]:
    keys = tuple(key.strip() for key in text.split(","))
    if not all(key and key.isascii() and key.isprintable() and " " not in key for key in keys):
        raise ValueError
    return keys


def _state_keys(text: str) -> tuple[str, ...]:
    keys = _keys(text)
    if min(map(len, keys)) < MIN_STATE_KEY_CHARS:
        raise ValueError
    return keys


def _host(text: str) -> str:
    if any(character.isspace() for character in text):
        raise ValueError
    return text


def _origins(text: str) -> tuple[str, ...]:
    if text == "*":
        return ("*",)
    return tuple(_origin(each.strip().lower()) for each in text.split(","))


def _origin(text: str) -> str:
    """As a browser writes it: without the port that its scheme has anyway."""
    found = _ORIGIN.fullmatch(text)
    if found is None or int(found[3] or 1) not in range(1, MAX_PORT + 1):
        raise ValueError
    usual = {"http": "80", "https": "443"}.get(found[1])
    return text.removesuffix(f":{usual}") if found[3] == usual else text


def _model_name(text: str) -> str:
    if "/" in text or text in (".", ".."):
        raise ValueError
    return text


FOLDER: Final = ValueKind("a folder", Path)
HOST: Final = ValueKind("a host name or an address", _host)
MODEL_NAME: Final = ValueKind("the name of a bundle's folder", _model_name)
KEYS: Final = ValueKind("keys of printable ASCII without spaces, separated by commas", _keys)
ORIGINS: Final = ValueKind("`*`, or origins (scheme://host, scheme://host:port), separated by commas", _origins)
STATE_KEYS: Final = ValueKind(
    f"keys of at least {MIN_STATE_KEY_CHARS} characters each, separated by commas", _state_keys
)
