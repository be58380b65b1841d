"""Seeded mutations: valid values and bytes → slightly or badly wrong ones.

Input: a valid value, and a random generator. Output: another value. Must not know: what the value means.

Everything is drawn from the generator, so that a seed repeats every case. Speed matters: a million cases are made in a
minute.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from typing import Any, Final

__all__ = ["mutated_bytes", "mutated_json", "mutated_tree"]

MARK: Final = "@raw@"
# JSON that no Python value stands for, or whose spelling matters.
RAW: Final = (
    "NaN", "Infinity", "-Infinity", "1e999", "-1e999", "1e-999", "-0", "-0.0", "01", "0x10", "1.", ".5", "+1", "'a'",
    "", "9" * 400, "-" + "9" * 400, "0." + "1" * 400, "1e" + "9" * 50, "undefined", "truE", "None", "[" * 2000,
    '{"a":' * 500, '"\\ud800"', '"\\udc00\\ud800"', '"\\u0000"', '"\\x41"', '"\t"', '"', "[1,]", "{,}",
    '{"a":1,"a":2}', "/**/1", "null null",
)  # fmt: skip
ODD: Final[tuple[Any, ...]] = (
    None, True, False, 0, -1, 1, 2, 3, 16, 17, 27, 28, 29, 255, 2**31 - 1, 2**31, 2**32, 2**53, 2**63 - 1, 2**63,
    2**64, -(2**31), -(2**63), -(2**63) - 1, 10**30, 0.0, 0.5, -0.5, 1.5, 1e-9, 5e-324, 1e308, -1e308, 1.0, 2.0, 16.0,
    "", "a", "abc", " ", "\0", "\n", "é", "e\u0301", "한글", "😀", "\ufeff", "\u202e", "\ufffd", "\ud800", "<|end|>",
    "<|unk|>", "1", "0.5", "null", "true", "letters", "../letters", "nothing", "a" * 300, "a" * 5000, "é" * 3000,
    "\ud83d", [], [[]], [None], [0], [1, 2, 3], [0] * 50, ["a"], ["a"] * 9, ["a", 1], [["a"]], ["", ""], [1.5],
    [2**40], [-1], {}, {"a": 1}, {"": ""}, {"0": 1}, {"0": 1000}, {"-1": 1}, {"99999999999999999999": 0},
    {"a": {"b": {"c": []}}},
)  # fmt: skip
Change = Callable[[dict[str, Any], list[str], random.Random], None]


def mutated_json(fields: dict[str, Any], names: list[str], rng: random.Random) -> bytes:
    """Return the body of a request with a few fields changed, and now and then its bytes too.

    fields  a valid body
    names   of all fields that some body may have
    """
    body = dict(fields)
    for _ in range(1 + (rng.random() < 0.3)):
        rng.choice(_CHANGES)(body, names, rng)
    text = json.dumps(body, ensure_ascii=rng.random() < 0.5)
    while f'"{MARK}"' in text:
        text = text.replace(f'"{MARK}"', rng.choice(RAW), 1)
    data = text.encode("utf-8", "surrogatepass")
    return data if rng.random() < 0.8 else mutated_bytes(data, rng)


def _replace(body: dict[str, Any], names: list[str], rng: random.Random) -> None:
    body[rng.choice(list(body) or names)] = rng.choice(ODD)


def _add(body: dict[str, Any], names: list[str], rng: random.Random) -> None:
    body[rng.choice(names)] = rng.choice(ODD)


def _remove(body: dict[str, Any], names: list[str], rng: random.Random) -> None:
    body.pop(rng.choice(list(body) or names), None)


def _unknown(body: dict[str, Any], names: list[str], rng: random.Random) -> None:
    name = rng.choice(names)
    body[rng.choice((name.upper(), name + "s", name[:-1], f" {name}", "", "__class__", "a" * 200, "é"))] = 1


def _raw(body: dict[str, Any], names: list[str], rng: random.Random) -> None:
    body[rng.choice(names)] = MARK


def _nested(body: dict[str, Any], names: list[str], rng: random.Random) -> None:
    name = rng.choice(names)
    body[name] = rng.choice(([rng.choice(ODD)], {name: rng.choice(ODD)}, [rng.choice(ODD) for _ in range(5)]))


_CHANGES: Final[tuple[Change, ...]] = (_replace, _replace, _add, _add, _remove, _unknown, _raw, _nested)


def mutated_tree(value: Any, rng: random.Random) -> Any:
    """Return a copy of a JSON value with one place of it changed, removed or doubled."""
    copy = json.loads(json.dumps(value))
    holders = [holder for holder in _holders(copy) if holder]
    if not holders:
        return rng.choice(ODD)
    holder = rng.choice(holders)
    key = rng.choice(list(holder) if isinstance(holder, dict) else range(len(holder)))
    match rng.randrange(6):
        case 0:
            del holder[key]
        case 1 if isinstance(holder, dict):
            holder[rng.choice(("", f"{key}s", "__proto__", "é"))] = holder[key]
        case 2 if isinstance(holder, list):
            holder.append(holder[key])
        case 3 if isinstance(holder[key], int | float):
            holder[key] = rng.choice((holder[key] + 1, -holder[key], holder[key] * 1000, str(holder[key])))
        case _:
            holder[key] = rng.choice(ODD)
    return copy


def _holders(value: Any) -> list[Any]:
    """Return all objects and lists in a value, the outermost first."""
    found, places = [value], iter([value])
    while (place := next(places, None)) is not None:
        inner = list(place.values()) if isinstance(place, dict) else place if isinstance(place, list) else []
        more = [each for each in inner if isinstance(each, dict | list)]
        found += more
        places = iter([*places, *more])
    return [each for each in found if isinstance(each, dict | list)]


def mutated_bytes(data: bytes, rng: random.Random) -> bytes:
    """Return the bytes with one to three flips, cuts, doubled or foreign pieces."""
    changed = bytearray(data)
    for _ in range(rng.randint(1, 3)):
        place = rng.randrange(len(changed) + 1)
        match rng.randrange(7):
            case 0 if place < len(changed):
                changed[place] ^= 1 << rng.randrange(8)
            case 1:
                del changed[place : place + rng.randint(1, 8)]
            case 2:
                changed[place:place] = rng.randbytes(rng.randint(1, 4))
            case 3:
                changed[place:place] = changed[place : place + rng.randint(1, 32)]
            case 4:
                del changed[place:]
            case 5 if place < len(changed):
                changed[place] = rng.choice((0, 0x22, 0x5C, 0x7B, 0x7D, 0x7F, 0x80, 0xC0, 0xED, 0xFF))
            case _:
                other = rng.randrange(len(changed) + 1)
                changed[place:place] = changed[other : other + rng.randint(1, 16)]
    return bytes(changed)
