"""Search space: ranges and lists of choices, by the name of a setting.

Input: the [search] table of a TOML file, or `NAME=SPEC` from a command line. Output: a `Space`, and configs drawn from
it. Must not know: trials.

    log     {log = [0.01, 1.0]}      0.01..1.0      evenly on a logarithmic scale
    even    {even = [0.0, 0.5]}      0.0~0.5        evenly
    choice  [128, 256, 512]          128,256,512    all equally likely

A setting that takes whole numbers gets the drawn number rounded.
"""

from __future__ import annotations

import math
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from meari.models.config import Config, parse_config
from meari.models.errors import ConfigError
from meari.models.fields import show

SECTIONS = ("model", "training")
MAX_DRAWS = 200  # for one trial: settings drawn independently may exclude each other
Value = float | int | str | bool


@dataclass(frozen=True)
class Range:
    """Range of numbers.

    low, high   both may be drawn; low < high, and low > 0 on a logarithmic scale
    """

    low: float
    high: float
    is_log: bool = True

    def draw(self, generator: np.random.Generator) -> float:
        if not self.is_log:
            return float(generator.uniform(self.low, self.high))
        drawn = math.exp(generator.uniform(math.log(self.low), math.log(self.high)))
        return min(max(drawn, self.low), self.high)

    def described(self) -> dict[str, list[float]]:
        return {"log" if self.is_log else "even": [self.low, self.high]}


@dataclass(frozen=True)
class Choices:
    values: tuple[Value, ...]

    def draw(self, generator: np.random.Generator) -> Value:
        return self.values[int(generator.integers(len(self.values)))]

    def described(self) -> list[Value]:
        return list(self.values)


@dataclass(frozen=True)
class Space:
    """Config and ranges of a search.

    config      settings that all trials share
    varied      ranges by the name of the setting: "model.units"
    """

    config: Config
    varied: Mapping[str, Range | Choices]

    def draw(self, generator: np.random.Generator) -> tuple[dict[str, Value], Config]:
        """Draw the settings of one trial; return them and their config.

        Raises ConfigError if hardly any draw gives settings that fit one another.
        """
        for _ in range(MAX_DRAWS):
            drawn = {name: _rounded(self.config, name, spec.draw(generator)) for name, spec in self.varied.items()}
            try:
                return drawn, with_settings(self.config, drawn)
            except ConfigError as error:
                refused = error
        raise ConfigError("search", [f"{MAX_DRAWS} draws in a row do not fit together:", *refused.problems])

    def described(self) -> dict[str, Any]:
        return {name: spec.described() for name, spec in self.varied.items()}


def with_settings(config: Config, settings: Mapping[str, object]) -> Config:
    """Return the config with some settings changed. Raises ConfigError: unknown, of the wrong kind, out of range."""
    tables = config.to_tables()
    for name, value in settings.items():
        section, key = name.split(".")
        tables[section][key] = value
    return parse_config(tables, "search")


def make_space(config: Config, described: Mapping[str, object]) -> Space:
    """Make a space from `NAME = ranges or choices`, as in TOML. Raises ConfigError with every problem."""
    problems: list[str] = []
    varied: dict[str, Range | Choices] = {}
    for name, spec in described.items():
        found = _read(name, spec, problems)
        if found is not None:
            problems += _refusals(config, name, found)
            varied[name] = found
    if problems:
        raise ConfigError("search", problems)
    return Space(config, varied)


def read_option(text: str) -> tuple[str, object]:
    """Read `NAME=SPEC` of a command line into a name and the value that TOML would hold. Raises ConfigError."""
    name, equals, spec = text.partition("=")
    for separator, kind in (("..", "log"), ("~", "even")):
        low, found, high = spec.partition(separator)
        if found:
            return name.strip(), {kind: [_read_value(low), _read_value(high)]}
    values = [_read_value(part) for part in spec.split(",") if part.strip()]
    if not (equals and name.strip() and values):
        problem = f"--vary: got {show(text)}, expected NAME=LOW..HIGH, NAME=LOW~HIGH or NAME=CHOICE,CHOICE,…"
        raise ConfigError("search", [problem])
    return name.strip(), values


def _read_value(text: str) -> object:
    """Read a number or a truth value as in TOML; anything else is a string."""
    try:
        return tomllib.loads(f"value = {text.strip()}")["value"]
    except tomllib.TOMLDecodeError:
        return text.strip()


def _read(name: str, spec: object, problems: list[str]) -> Range | Choices | None:
    if name.count(".") != 1 or name.partition(".")[0] not in SECTIONS:
        problems.append(f"{name}: got a name that cannot be varied, expected model.SETTING or training.SETTING")
    elif isinstance(spec, list) and spec and all(isinstance(value, bool | int | float | str) for value in spec):
        twice = [value for at, value in enumerate(spec) if value in spec[:at]]
        if not twice:
            return Choices(tuple(spec))
        problems.append(f"{name}: got {show(twice[0])} twice, expected each choice once")
    elif isinstance(spec, Mapping) and len(spec) == 1 and next(iter(spec)) in ("log", "even"):
        ((kind, ends),) = spec.items()
        if _are_ends(ends, is_log=kind == "log"):
            return Range(float(ends[0]), float(ends[1]), kind == "log")
        positive = "0 < low < high" if kind == "log" else "low < high"
        problems.append(f"{name}: got {show(ends)}, expected two finite numbers, {positive}")
    else:
        problems.append(f"{name}: got {show(spec)}, expected {{log = [low, high]}}, {{even = [low, high]}} or a list")
    return None


def _are_ends(ends: object, *, is_log: bool) -> bool:
    if not isinstance(ends, list) or len(ends) != 2:
        return False
    if any(isinstance(end, bool) or not isinstance(end, int | float) or not math.isfinite(end) for end in ends):
        return False
    return bool(ends[0] < ends[1] and (ends[0] > 0 or not is_log))


def _refusals(config: Config, name: str, spec: Range | Choices) -> list[str]:
    """Return the problems of the ends of a range, or of a choice, taken alone."""
    values: tuple[Value, ...] = (spec.low, spec.high) if isinstance(spec, Range) else spec.values
    problems: list[str] = []
    for value in values:
        try:
            with_settings(config, {name: _rounded(config, name, value)})
        except ConfigError as error:
            problems += [problem for problem in error.problems if problem.startswith(f"{name}:")]
    return list(dict.fromkeys(problems))


def _rounded(config: Config, name: str, value: Value) -> Value:
    """Round a drawn number for the setting: whole, or to four digits."""
    if not isinstance(value, float):
        return value
    section, key = name.split(".")
    kind = str(type(getattr(config, section)).__annotations__.get(key, ""))
    return round(value) if kind.startswith("int") else float(f"{value:.4g}")
