"""Writes a config as the TOML file that `meari.models.config` reads.

In: a config. Out: text. Settings that are absent stay absent.
"""

import json
from collections.abc import Mapping
from typing import Any

from meari.models.config import Config


def to_toml(config: Config) -> str:
    """The whole config: top-level keys first, then its tables."""
    return "".join(_lines("", config.to_tables())).lstrip("\n")


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
    """Numbers, truth values, strings and lists are written in TOML as in JSON, but for characters above U+FFFF."""
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
