"""The service's settings: environment variables → one frozen `Settings`, with all problems reported together.

Input: the environment. Output: `Settings`, or SettingsError with a line for each problem. Must not know: how a setting
is used.

Every MEARI_… variable of the service stands here with its default, its values and its meaning; `docs/operating.md`
lists them for a reader. Nothing else reads them. What a bundle knows is never a setting.
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import MISSING, dataclass
from pathlib import Path
from typing import Any, Final

from meari.bundle_format.folders import Roots, find_bundles, printable
from meari.bundle_format.places import usual_roots
from meari.bundle_format.signatures import PublicKey, verifying_problem
from meari.errors import BundleError, Problem, did_you_mean, rebuild_error
from meari.paths import expand_home
from meari.runtime.machine import granted_cpus, granted_memory
from meari.service.setting_kinds import (
    FILE,
    FOLDER,
    FOLDERS,
    HOST,
    HOSTS,
    KEYS,
    MODEL_NAME,
    ORIGINS,
    PROTECTED,
    REDIS_URL,
    SIGNING_KEYS,
    STATE_KEYS,
    ValueKind,
    choice,
    integer,
    seconds,
)

__all__ = ["SETTINGS", "Setting", "Settings", "SettingsError", "load_settings", "with_settings_file"]

MIB: Final = 1024 * 1024
GIB: Final = 1024 * MIB
WORKER_BYTES: Final = 160 * MIB  # of a worker with the released bundles and its cache, without requests
MIN_INFLIGHT_BYTES: Final = 32 * MIB
MAX_INFLIGHT_BYTES: Final = 256 * MIB
OTHERS: Final = ("MEARI_CLIENT_", "MEARI_LOAD_")  # variables of the command line as a client, and of the load tests
LOG_LEVELS: Final = ("debug", "info", "warning", "error")
LOG_FORMATS: Final = ("auto", "text", "json")


class SettingsError(ValueError):
    """Problems of the environment, one per line."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(map(str, problems)))

    def __reduce__(self) -> tuple[Any, ...]:
        return rebuild_error, (type(self), self.args, vars(self))


@dataclass(frozen=True)
class Setting:
    """An environment variable; `default` in words for a reader."""

    variable: str
    default: str
    kind: ValueKind
    meaning: str
    is_secret: bool


def _setting(
    default: object,
    kind: ValueKind,
    meaning: str,
    *,
    says: str | None = None,
    factory: Callable[[], object] | None = None,
    secret: bool = False,
) -> Any:
    """Declare a field of `Settings`.

    says     the default in words, where the value alone does not tell it
    factory  makes the default at start
    """
    words = str(default) if says is None else says
    return dataclasses.field(
        default=MISSING if factory else default,
        default_factory=factory or MISSING,
        repr=not secret,
        metadata={"kind": kind, "meaning": meaning, "default": words, "secret": secret},
    )  # type: ignore[call-overload]


@dataclass(frozen=True)
class Settings:
    """One field a setting; the variable of `max_slots` is MEARI_MAX_SLOTS. Counts and bytes hold for each worker."""

    host: str = _setting("127.0.0.1", HOST, "address to listen on; `HOST` where this is not set")
    port: int = _setting(8000, integer(0, 65535), "port to listen on; `PORT` where this is not set")
    tls_certificate: Path | None = _setting(
        None,
        FILE,
        "certificate in PEM, with those that lead to the root; then only TLS is spoken; taken over when it changes",
        says="none: plain HTTP",
    )
    tls_key: Path | None = _setting(None, FILE, "its key in PEM, without a password", says="none")
    bundles: Roots = _setting(
        None,
        FOLDERS,
        "folder with the bundles to serve, or several with `:` between them; a name belongs to the first that has it",
        says="`bundles`, then the user's data folder; without any bundle there, the one inside the package",
        factory=usual_roots,
    )
    signing_keys: tuple[PublicKey, ...] = _setting(
        (), SIGNING_KEYS, "serve only bundles that the owner of one of these keys has signed", says="none"
    )
    default_model: str | None = _setting(
        None,
        MODEL_NAME,
        "model of requests that name none",
        says="as `DEFAULT` in that folder says, else the first by name",
    )
    workers: int = _setting(
        None,
        integer(1, 1024),
        "worker processes, each with an engine a model",
        says="CPUs granted to the process or container, fewer where its memory is short",
        factory=lambda: granted_workers(granted_memory()),
    )
    max_slots: int = _setting(64, integer(1, 4096), "sequences that a model runs in one step")
    max_waiting: int = _setting(128, integer(1, 100_000), "requests that may wait for a slot of a model; past it 429")
    max_requests: int = _setting(192, integer(1, 4096), "requests in flight, over all models; past it 429")
    max_connections: int = _setting(
        8000,
        integer(16, 1_000_000),
        "connections, idle ones included, which give way first; fewer if few files may be open",
    )
    max_connections_per_address: int = _setting(
        1000,
        integer(1, 1_000_000),
        "connections of one client's address (IPv6: /64 network); past it its idle ones give way, then 429",
    )
    max_tokens: int = _setting(4096, integer(1, 1_000_000), "new tokens of one sample")
    max_texts: int = _setting(1024, integer(1, 10_000), "texts of one `/score`, prompts of one `/v1/completions`")
    max_text_chars: int = _setting(
        1_000_000, integer(1, 100_000_000), "characters of one request's texts together; past it 413"
    )
    max_body_bytes: int = _setting(8 * MIB, integer(1024, GIB), "size of a body; past it 413")
    max_inflight_bytes: int = _setting(
        MAX_INFLIGHT_BYTES,
        integer(1024, 1024 * GIB),
        "what all requests in flight may hold, bodies and figures; past it 429",
        says=f"{MAX_INFLIGHT_BYTES}, less where memory is short",
    )
    cache_bytes: int = _setting(
        20 * MIB,
        integer(0, 1024 * GIB),
        "states of prefixes that are kept for requests to come, of all models together; 0 keeps none",
    )
    max_timeout_seconds: float = _setting(300.0, seconds(0.001, 86_400), "longest a request may take")
    graceful_timeout_seconds: float = _setting(
        310.0, seconds(0, 86_400), "how long open requests may go on after SIGTERM"
    )
    drain_seconds: float = _setting(
        0.0,
        seconds(0, 3600),
        "how long after SIGTERM `/readyz` says 503 before the port is closed, at least",
    )
    api_keys: tuple[str, ...] = _setting(
        (),
        KEYS,
        "secret; then every request but health, metrics and the pages needs `Authorization: Bearer KEY`",
        says="none",
        secret=True,
    )
    keys_file: Path | None = _setting(
        None,
        FILE,
        "file that `meari keys` writes: further keys, each with its models and limits; changes are taken over at once",
        says="none",
    )
    admin_keys: tuple[str, ...] = _setting(
        (),
        KEYS,
        "secret; keys that may also load and unload models; alone they close nothing",
        says="none",
        secret=True,
    )
    protect: tuple[str, ...] = _setting(
        (), PROTECTED, "what needs a key too: `/metrics`, `/docs` with `/openapi.json`, the playground", says="none"
    )
    redis_url: str | None = _setting(
        None,
        REDIS_URL,
        "secret; Redis at which the limits of keys hold for all hosts together (`meari[redis]`)",
        says="none: for each host",
        secret=True,
    )
    cors_origins: tuple[str, ...] = _setting(
        (), ORIGINS, "web pages of these origins may ask from a browser; `*` allows all", says="none"
    )
    allowed_hosts: tuple[str, ...] = _setting(
        (),
        HOSTS,
        "public names under which the service is asked (`Host`); past these 421, and `*` allows all",
        says="addresses and names that are not public",
    )
    trusted_hops: int = _setting(
        0,
        integer(0, 16),
        "proxies in front whose `Forwarded` or `X-Forwarded-…` headers are believed",
    )
    state_key: tuple[str, ...] = _setting(
        (),
        STATE_KEYS,
        "secret that signs state tokens; hosts that share it take each other's; the first signs, all verify",
        says="random at every start",
        secret=True,
    )
    state_seconds: float = _setting(
        0.0,
        seconds(0, 315_360_000),
        "how long a state token is valid; then tokens without an end are refused; 0: for ever",
    )
    log_level: str = _setting("info", choice(*LOG_LEVELS), "least level that is logged; requests are `info`")
    log_format: str = _setting(
        "auto", choice(*LOG_FORMATS), "lines for a person, or JSON; `auto` is text on a terminal, else JSON"
    )
    log_text_chars: int = _setting(
        0,
        integer(0, 1_000_000),
        "characters of a request's prompts, and as many of its answers, that its line shows; 0 shows no text at all",
    )
    settings_file: Path | None = _setting(
        None,
        FILE,
        "file with further settings, `NAME=value` on each line; the environment overrides it, SIGHUP reads it again",
        says="none",
    )
    runtime_folder: Path | None = _setting(
        None, FOLDER, "what the workers of one host share: metrics, marks of readiness", says="made at start"
    )

    @property
    def has_keys(self) -> bool:
        """True where there may be a key to know."""
        return bool(self.api_keys or self.admin_keys) or self.keys_file is not None


def with_settings_file(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the environment and what MEARI_SETTINGS_FILE adds to it. Raises SettingsError."""
    path = environment.get("MEARI_SETTINGS_FILE", "").strip()
    if not path:
        return dict(environment)
    try:
        text = Path(expand_home(path)).read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = (error.strerror or "cannot be read") if isinstance(error, OSError) else "it is not UTF-8"
        raise SettingsError([Problem("MEARI_SETTINGS_FILE", reason=f"{path}: {reason}")]) from None
    added: dict[str, str] = {}
    problems = []
    for number, line in enumerate(map(str.strip, text.splitlines()), 1):
        name, equals, value = map(str.strip, line.partition("="))
        if not line or line.startswith("#"):
            continue
        if not equals or not name.startswith("MEARI_") or name in (*added, "MEARI_SETTINGS_FILE"):
            expected = "MEARI_…=value, each name once, or a comment that begins with #"
            problems.append(Problem("MEARI_SETTINGS_FILE", f"{name[:100]!r} on line {number} of {path}", expected))
        is_quoted = len(value) > 1 and value[0] == value[-1] and value[0] in "\"'"
        added[name] = value[1:-1] if is_quoted else value
    if problems:
        raise SettingsError(problems)
    return {**added, **environment}


def load_settings(environment: Mapping[str, str]) -> Settings:
    """Read MEARI_… variables, and HOST and PORT where MEARI_HOST and MEARI_PORT are not set. Empty counts as not set.

    Raises SettingsError with every problem: values out of range, unknown MEARI_ variables, contradictions.
    """
    values: dict[str, object] = {}
    problems: list[Problem] = []
    for name, setting in SETTINGS.items():
        for variable in _variables(name):
            text = environment.get(variable, "").strip()
            if not text:
                continue
            try:
                values[name] = setting.kind.parse(text)
            except ValueError:
                came = "a value that is not shown" if setting.is_secret else repr(text)
                hint = did_you_mean(text, setting.kind.words)
                problems.append(Problem(variable, came, f"{setting.kind.expected}{hint}"))
            break
    problems += _unknown_variables(environment)
    if problems:
        raise SettingsError(problems)
    settings = _fitted(Settings(**values), granted_memory(), values)  # type: ignore[arg-type]
    if contradictions := list(_contradictions(settings)):
        raise SettingsError(contradictions)
    return settings


def granted_workers(memory: int) -> int:
    """Return the number of workers for the CPUs granted and for so many bytes of memory."""
    return max(1, min(granted_cpus(), memory // (WORKER_BYTES + MIN_INFLIGHT_BYTES)))


def _fitted(settings: Settings, memory: int, given: Mapping[str, object]) -> Settings:
    """Bound what requests may hold by each worker's share of the memory, unless the bound was given."""
    if "max_inflight_bytes" in given:
        return settings
    share = max(MIN_INFLIGHT_BYTES, settings.max_body_bytes, memory // settings.workers - WORKER_BYTES)
    return dataclasses.replace(settings, max_inflight_bytes=min(settings.max_inflight_bytes, share))


def _variables(name: str) -> list[str]:
    own = SETTINGS[name].variable
    return [own, name.upper()] if name in ("host", "port") else [own]


def _unknown_variables(environment: Mapping[str, str]) -> Iterator[Problem]:
    known = [setting.variable for setting in SETTINGS.values()]
    for variable in sorted(environment):
        ours = variable.startswith("MEARI_") and not variable.startswith(OTHERS)
        if ours and variable not in known:
            near = difflib.get_close_matches(variable, known, n=1)
            hint = f"; did you mean {near[0]}?" if near else f"; there are {', '.join(sorted(known))}"
            yield Problem(variable, reason=f"no such setting{hint}")


def _contradictions(settings: Settings) -> Iterator[Problem]:
    if settings.max_inflight_bytes < settings.max_body_bytes:
        expected = f"at least MEARI_MAX_BODY_BYTES, which is {settings.max_body_bytes}"
        yield Problem("MEARI_MAX_INFLIGHT_BYTES", str(settings.max_inflight_bytes), expected)
    if (settings.tls_certificate is None) != (settings.tls_key is None):
        missing, set_one = ("KEY", "CERTIFICATE") if settings.tls_key is None else ("CERTIFICATE", "KEY")
        yield Problem(f"MEARI_TLS_{missing}", None, f"a file, because MEARI_TLS_{set_one} is set")
    elif settings.tls_certificate is not None and settings.max_inflight_bytes < MIB:  # half of it is for connections
        yield Problem("MEARI_MAX_INFLIGHT_BYTES", str(settings.max_inflight_bytes), f"at least {MIB} with TLS")
    if settings.drain_seconds > settings.graceful_timeout_seconds:
        expected = f"at most MEARI_GRACEFUL_TIMEOUT_SECONDS, which is {settings.graceful_timeout_seconds:g}"
        yield Problem("MEARI_DRAIN_SECONDS", f"{settings.drain_seconds:g}", expected)
    if settings.signing_keys and (problem := verifying_problem()):
        yield Problem("MEARI_SIGNING_KEYS", reason=problem)
    if settings.protect and not settings.has_keys:
        yield Problem(
            "MEARI_PROTECT", reason="there are no keys: set MEARI_KEYS_FILE, MEARI_API_KEYS or MEARI_ADMIN_KEYS"
        )
    if settings.redis_url and settings.keys_file is None:
        yield Problem("MEARI_REDIS_URL", reason="only keys of a file have limits: set MEARI_KEYS_FILE")
    if settings.default_model:
        yield from _unknown_default(settings.default_model, settings.bundles)


def _unknown_default(name: str, bundles: Roots) -> Iterator[Problem]:
    """Yield the problem of a name that no bundle has. A folder that cannot be read is a problem of the start."""
    try:
        names = find_bundles(bundles).folders
    except BundleError:
        return
    if name not in names:
        expected = f"the name of a bundle in {printable(bundles)}{did_you_mean(name, names)}"
        yield Problem("MEARI_DEFAULT_MODEL", repr(name), expected)


SETTINGS: Final = {
    field.name: Setting(
        f"MEARI_{field.name.upper()}",
        field.metadata["default"],
        field.metadata["kind"],
        field.metadata["meaning"],
        field.metadata["secret"],
    )
    for field in dataclasses.fields(Settings)
}
