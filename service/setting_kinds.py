"""Kinds of a setting's values: the allowed values in words, and text → value.

Input: the text of an environment variable. Output: its value, or ValueError. Must not know: which settings there are.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from msgspec.inspect import IntType

from meari.bundle_format.places import parse_roots
from meari.bundle_format.signatures import parse_public_keys
from meari.paths import expand_home
from meari.validation.explain import describe, in_range

__all__ = [
    "FILE",
    "FOLDER",
    "FOLDERS",
    "HOST",
    "HOSTS",
    "KEYS",
    "MODEL_NAME",
    "ORIGINS",
    "PROTECTED",
    "REDIS_URL",
    "SIGNING_KEYS",
    "STATE_KEYS",
    "ValueKind",
    "choice",
    "integer",
    "seconds",
]

MIN_STATE_KEY_CHARS: Final = 32
MAX_PORT: Final = 65535
_ORIGIN: Final = re.compile(r"([a-z][a-z0-9+.-]*)://(\[[0-9a-f:.]+\]|[a-z0-9][a-z0-9._-]*)(?::([0-9]{1,5}))?")
_NAME: Final = re.compile(r"(?:\*\.)?[a-z0-9_-]+(?:\.[a-z0-9_-]+)*")
BLUEPRINTS: Final = {"metrics": "metrics", "docs": "docs", "page": "web"}  # by the words of MEARI_PROTECT


@dataclass(frozen=True)
class ValueKind:
    """Kind of a setting's values.

    expected  the allowed values in words
    parse     raises ValueError for any other text
    words     the words that a mistyped one may stand for
    """

    expected: str
    parse: Callable[[str], object]
    words: tuple[str, ...] = ()


def integer(low: int, high: int) -> ValueKind:
    """Return the kind of a whole number, written with ASCII digits."""
    bounds = IntType(ge=low, le=high)

    def parse(text: str) -> int:
        digits = text.removeprefix("-")
        if not digits.isascii() or not digits.isdigit() or len(text) > 20 or not in_range(int(text), bounds):
            raise ValueError
        return int(text)

    return ValueKind(describe(bounds), parse)


def seconds(low: float, high: float) -> ValueKind:
    """Return the kind of a finite number of seconds."""

    def parse(text: str) -> float:
        value = float(text)
        if not math.isfinite(value) or not low <= value <= high:
            raise ValueError
        return value

    return ValueKind(f"a number of seconds, {low:g} <= value <= {high:.10g}", parse)


def choice(*words: str) -> ValueKind:
    """Return the kind of a few words, in upper or lower case."""

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
    """Return an origin as a browser writes it: without the default port of its scheme."""
    found = _ORIGIN.fullmatch(text)
    if found is None or int(found[3] or 1) not in range(1, MAX_PORT + 1):
        raise ValueError
    usual = {"http": "80", "https": "443"}.get(found[1])
    return text.removesuffix(f":{usual}") if found[3] == usual else text


def _hosts(text: str) -> tuple[str, ...]:
    names = tuple(each.strip().lower().removesuffix(".") for each in text.split(","))
    if not all(name == "*" or _NAME.fullmatch(name) for name in names):
        raise ValueError
    return names


def _protected(text: str) -> tuple[str, ...]:
    """Return the names of the blueprints."""
    words = [word.strip().lower() for word in text.split(",")]
    if not set(words) <= set(BLUEPRINTS):
        raise ValueError
    return tuple(map(BLUEPRINTS.__getitem__, words))


def _redis_url(text: str) -> str:
    if not text.startswith(("redis://", "rediss://", "unix://")):
        raise ValueError
    return text


def _path(text: str) -> Path:
    return Path(expand_home(text))


def _model_name(text: str) -> str:
    if "/" in text or text in (".", ".."):
        raise ValueError
    return text


PROTECTED: Final = ValueKind("some of metrics, docs, page, separated by commas", _protected)
REDIS_URL: Final = ValueKind("a URL: redis://…, rediss://… or unix://…", _redis_url)
FOLDER: Final = ValueKind("a folder", _path)
FOLDERS: Final = ValueKind("a folder, or several with `:` between them", parse_roots)
FILE: Final = ValueKind("a file", _path)
HOST: Final = ValueKind("a host name or an address", _host)
MODEL_NAME: Final = ValueKind("the name of a bundle's folder", _model_name)
KEYS: Final = ValueKind("keys of printable ASCII without spaces, separated by commas", _keys)
SIGNING_KEYS: Final = ValueKind(
    "a PEM file of Ed25519 public keys, or such keys in base64, separated by commas", parse_public_keys
)
ORIGINS: Final = ValueKind("`*`, or origins (scheme://host, scheme://host:port), separated by commas", _origins)
HOSTS: Final = ValueKind("names without ports, `*.` before one for all below it, or `*`, separated by commas", _hosts)
STATE_KEYS: Final = ValueKind(
    f"keys of at least {MIN_STATE_KEY_CHARS} characters each, separated by commas", _state_keys
)
