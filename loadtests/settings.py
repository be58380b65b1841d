"""Settings of a load test, read from the environment.

Input: environment variables, each described at the head of `locustfile.py`. Output: one `LoadSettings`, or one
`SettingsError` with every problem. Must not know: Locust.
"""

import enum
import ipaddress
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeVar
from urllib.parse import urlsplit

from loadtests.shapes import Shape

Choice = TypeVar("Choice", bound=enum.StrEnum)


class SettingsError(Exception):
    """The environment holds invalid values; the message lists all of them."""


@dataclass(frozen=True)
class Thresholds:
    """Bounds that fail the run when broken; None: not checked. Times in ms, ratios of all requests in 0 … 1."""

    max_failure_ratio: float
    max_refused_ratio: float | None
    max_p95_ms: float | None
    max_first_token_p95_ms: float | None
    max_gap_p95_ms: float | None
    min_tokens_per_second: float | None


class Role(enum.StrEnum):
    """What a process of Locust is: alone, or one of many on one machine or several."""

    ALONE = "alone"
    MASTER = "master"
    WORKER = "worker"


class UserKind(enum.StrEnum):
    """The users: see the classes of `locustfile.py`."""

    GENERATE = "generate"
    STREAM = "stream"
    SCORE = "score"


@dataclass(frozen=True)
class LoadSettings:
    """Settings of one run; `model` None means the server's default model, no `shapes` all users from the start."""

    kinds: frozenset[UserKind]
    shapes: tuple[Shape, ...]
    role: Role
    num_workers: int
    master_host: str
    master_port: int
    users: int
    spawn_rate: float
    seconds: int
    model: str | None
    max_tokens: int
    seed: int
    allow_remote: bool
    thresholds: Thresholds


class _Reader:
    """Reads variables one by one and collects their problems."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._environment = environment
        self.problems: list[str] = []

    def text(self, name: str) -> str | None:
        return self._environment.get(f"MEARI_LOAD_{name}", "").strip() or None

    def number(self, name: str, default: float | None, expected: str, fits: Callable[[float], bool]) -> float | None:
        text = self.text(name)
        if text is None:
            return default
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if math.isfinite(value) and fits(value):
            return value
        self.problems.append(f"MEARI_LOAD_{name}: got {text!r}, expected {expected}")
        return default

    def positive(self, name: str, default: float | None) -> float | None:
        return self.number(name, default, "a number above 0", lambda value: value > 0)

    def count(self, name: str, default: int) -> int:
        expected = "a whole number above 0"
        value = self.number(name, default, expected, lambda value: value >= 1 and value == int(value))
        return int(value or default)

    def ratio(self, name: str, default: float | None) -> float | None:
        return self.number(name, default, "a number from 0 to 1", lambda value: 0 <= value <= 1)

    def choice(self, name: str, choices: type[Choice]) -> Choice | None:
        text = self.text(name)
        return None if text is None else self._chosen(name, text, choices)

    def choices(self, name: str, choices: type[Choice]) -> tuple[Choice, ...]:
        parts = [part.strip() for part in (self.text(name) or "").split(",") if part.strip()]
        found = [self._chosen(name, part, choices) for part in parts]
        return tuple(each for each in found if each is not None)

    def _chosen(self, name: str, text: str, choices: type[Choice]) -> Choice | None:
        try:
            return choices(text)
        except ValueError:
            self.problems.append(f"MEARI_LOAD_{name}: got {text!r}, expected {' or '.join(choices)}")
            return None

    def switch(self, name: str) -> bool:
        value = self.number(name, 0, "0 or 1", lambda value: value in {0, 1})
        return value == 1


def read_settings(environment: Mapping[str, str]) -> LoadSettings:
    """Read all settings; raises SettingsError, which names every invalid variable."""
    reader = _Reader(environment)
    settings = LoadSettings(
        kinds=frozenset(reader.choices("KINDS", UserKind) or UserKind),
        shapes=reader.choices("SHAPE", Shape),
        role=reader.choice("ROLE", Role) or Role.ALONE,
        num_workers=reader.count("WORKERS", 1),
        master_host=reader.text("MASTER_HOST") or "127.0.0.1",
        master_port=reader.count("MASTER_PORT", 5557),
        users=reader.count("USERS", 8),
        spawn_rate=reader.positive("SPAWN_RATE", None) or 4.0,
        seconds=reader.count("SECONDS", 60),
        model=reader.text("MODEL"),
        max_tokens=reader.count("MAX_TOKENS", 64),
        seed=reader.count("SEED", 1),
        allow_remote=reader.switch("ALLOW_REMOTE"),
        thresholds=Thresholds(
            max_failure_ratio=reader.ratio("MAX_FAILURE_RATIO", 0.0) or 0.0,
            max_refused_ratio=reader.ratio("MAX_REFUSED_RATIO", None),
            max_p95_ms=reader.positive("MAX_P95_MS", None),
            max_first_token_p95_ms=reader.positive("MAX_FIRST_TOKEN_P95_MS", None),
            max_gap_p95_ms=reader.positive("MAX_GAP_P95_MS", None),
            min_tokens_per_second=reader.positive("MIN_TOKENS_PER_SECOND", None),
        ),
    )
    if reader.problems:
        raise SettingsError("\n".join(reader.problems))
    return settings


def is_loopback(url: str) -> bool:
    """Return whether the URL's host is "localhost" or a loopback address; other names are not resolved."""
    host = urlsplit(url).hostname or ""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def check_target(url: str, settings: LoadSettings) -> None:
    """Raise SettingsError if the target is another machine and `allow_remote` is off."""
    if is_loopback(url) or settings.allow_remote:
        return
    raise SettingsError(
        f"got {url}, expected a loopback address: by default only this machine is load-tested. "
        "Set MEARI_LOAD_ALLOW_REMOTE=1 if you operate that host"
    )
