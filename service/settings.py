"""The service's settings: environment variables → one frozen `Settings`, with all problems reported together.

Nothing else reads the environment. What a bundle knows is never a setting.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from service.process.cpus import granted_cpus

__all__ = ["Settings", "SettingsError", "load_settings"]

MIB: Final = 1024 * 1024
SECRETS: Final = ("api_keys", "state_key")
MIN_STATE_KEY_CHARS: Final = 32
LOG_LEVELS: Final = ("debug", "info", "warning", "error")


class SettingsError(ValueError):
    """What is wrong with the environment, one line a problem."""

    def __init__(self, problems: list[str]) -> None:
        self.problems = problems
        super().__init__("\n".join(problems))


@dataclass(frozen=True)
class Settings:
    """One field a setting; the variable of `max_slots` is MEARI_MAX_SLOTS. Counts and bytes hold for each worker."""

    host: str = "127.0.0.1"
    port: int = 8000
    bundles: Path = Path("bundles")
    default_model: str | None = None  # None: the first by name
    workers: int = field(default_factory=granted_cpus)
    max_slots: int = 64  # sequences that a model runs in one step
    max_waiting: int = 128  # requests that may wait for a slot of a model
    max_requests: int = 192  # requests in flight, over all models
    max_tokens: int = 4096  # new tokens of one sample
    max_texts: int = 1024  # texts of one /score
    max_text_chars: int = 1_000_000  # characters of one request's texts together
    max_body_bytes: int = 8 * MIB
    max_inflight_bytes: int = 256 * MIB  # bodies being handled and figures being gathered
    cache_bytes: int = 48 * MIB  # states of prefixes, shared out among the models; 0 keeps none
    max_timeout_seconds: float = 300.0
    graceful_timeout_seconds: float = 310.0  # open requests get so long to end after SIGTERM
    drain_seconds: float = 0.0  # at least so long is readiness refused before the listening socket is closed
    api_keys: tuple[str, ...] = field(default=(), repr=False)
    state_key: tuple[str, ...] = field(default=(), repr=False)  # the first signs state tokens, every one verifies
    log_level: str = "info"
    runtime_folder: Path | None = None  # what the workers of one host share: metrics, marks of readiness


Parser = Callable[[str], object]


def load_settings(environment: Mapping[str, str]) -> Settings:
    """Read MEARI_… variables, and HOST and PORT where MEARI_HOST and MEARI_PORT are not set. Empty counts as not set.

    Raises SettingsError with every problem: values out of range, unknown MEARI_ variables, contradictions.
    """
    values: dict[str, object] = {}
    problems: list[str] = []
    for name, parse in _PARSERS.items():
        for variable in _variables(name):
            text = environment.get(variable, "").strip()
            if not text:
                continue
            try:
                values[name] = parse(text)
            except ValueError as problem:
                problems.append(f"{variable}: got {_shown(name, text)}, expected {problem}")
            break
    problems += _unknown_variables(environment)
    if problems:
        raise SettingsError(problems)
    settings = Settings(**values)  # type: ignore[arg-type]
    if contradictions := _contradictions(settings):
        raise SettingsError(contradictions)
    return settings


def _variables(name: str) -> list[str]:
    own = f"MEARI_{name.upper()}"
    return [own, name.upper()] if name in ("host", "port") else [own]


def _shown(name: str, text: str) -> str:
    return "a value that is not shown" if name in SECRETS else repr(text)


def _unknown_variables(environment: Mapping[str, str]) -> list[str]:
    known = [f"MEARI_{name.upper()}" for name in _PARSERS]
    problems = []
    for variable in sorted(environment):
        ours = variable.startswith("MEARI_") and not variable.startswith("MEARI_LOAD_")  # those are the load tests'
        if ours and variable not in known:
            near = difflib.get_close_matches(variable, known, n=1)
            hint = f"; did you mean {near[0]}?" if near else f"; there are {', '.join(sorted(known))}"
            problems.append(f"{variable}: no such setting{hint}")
    return problems


def _contradictions(settings: Settings) -> list[str]:
    problems = []
    if settings.max_inflight_bytes < settings.max_body_bytes:
        problems.append(
            f"MEARI_MAX_INFLIGHT_BYTES: got {settings.max_inflight_bytes}, "
            f"expected at least MEARI_MAX_BODY_BYTES, which is {settings.max_body_bytes}"
        )
    if settings.drain_seconds > settings.graceful_timeout_seconds:
        problems.append(
            f"MEARI_DRAIN_SECONDS: got {settings.drain_seconds:g}, "
            f"expected at most MEARI_GRACEFUL_TIMEOUT_SECONDS, which is {settings.graceful_timeout_seconds:g}"
        )
    name, bundles = settings.default_model, settings.bundles
    if name and bundles.is_dir() and not (bundles / name).is_dir():
        problems.append(f"MEARI_DEFAULT_MODEL: got {name!r}, expected a folder in {bundles}")
    return problems


def _integer(low: int, high: int) -> Parser:
    expected = f"an integer, {low} <= value <= {high}"

    def parse(text: str) -> int:
        if not text.removeprefix("-").isascii() or not text.removeprefix("-").isdigit() or len(text) > 20:
            raise ValueError(expected)
        value = int(text)
        if not low <= value <= high:
            raise ValueError(expected)
        return value

    return parse


def _seconds(low: float, high: float) -> Parser:
    expected = f"a number of seconds, {low:g} <= value <= {high:g}"

    def parse(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            raise ValueError(expected) from None
        if not math.isfinite(value) or not low <= value <= high:
            raise ValueError(expected)
        return value

    return parse


def _log_level(text: str) -> str:
    if text.lower() not in LOG_LEVELS:
        raise ValueError("one of " + ", ".join(LOG_LEVELS))
    return text.lower()


def _api_keys(text: str) -> tuple[str, ...]:
    keys = tuple(key.strip() for key in text.split(","))
    if not all(key and key.isascii() and key.isprintable() and " " not in key for key in keys):
        raise ValueError("keys of printable ASCII without spaces, separated by commas")
    return keys


def _state_keys(text: str) -> tuple[str, ...]:
    keys = _api_keys(text)
    if min(map(len, keys)) < MIN_STATE_KEY_CHARS:
        raise ValueError(f"keys of at least {MIN_STATE_KEY_CHARS} characters each, separated by commas")
    return keys


def _host(text: str) -> str:
    if any(character.isspace() for character in text):
        raise ValueError("a host name or an address")
    return text


def _model_name(text: str) -> str:
    if "/" in text or text in (".", ".."):
        raise ValueError("the name of a bundle's folder")
    return text


_PARSERS: Final[dict[str, Parser]] = {
    "host": _host,
    "port": _integer(0, 65535),
    "bundles": Path,
    "default_model": _model_name,
    "workers": _integer(1, 1024),
    "max_slots": _integer(1, 4096),
    "max_waiting": _integer(1, 100_000),
    "max_requests": _integer(1, 4096),
    "max_tokens": _integer(1, 1_000_000),
    "max_texts": _integer(1, 10_000),
    "max_text_chars": _integer(1, 100_000_000),
    "max_body_bytes": _integer(1024, 1024 * MIB),
    "max_inflight_bytes": _integer(1024, 1024 * 1024 * MIB),
    "cache_bytes": _integer(0, 1024 * 1024 * MIB),
    "max_timeout_seconds": _seconds(0.001, 86_400),
    "graceful_timeout_seconds": _seconds(0, 86_400),
    "drain_seconds": _seconds(0, 3600),
    "api_keys": _api_keys,
    "state_key": _state_keys,
    "log_level": _log_level,
    "runtime_folder": Path,
}
