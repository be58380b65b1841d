"""Keys of the service, and what the caller who sends one may do.

Input: settings, the file of keys, the `Authorization` header of a request. Output: a `Caller`, or Unauthorized; for
`meari keys`, a changed file. Must not know: Flask, and what a request asks for.

A key of the file is `meari_ID_SECRET`, drawn at random by `meari keys add`; the file has its id and a salted SHA-256 of
it. A slow hash would protect secrets that can be guessed; nobody guesses 256 random bits, however fast the hash, and a
slow one would let every wrong key cost the service milliseconds.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import dataclasses
import fcntl
import hashlib
import hmac
import logging
import os
import re
import secrets
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Annotated, Final, Protocol

import msgspec
from msgspec import Meta

from meari.errors import Forbidden, InvalidRequest, MeariError, Problem, Unauthorized
from meari.service.settings import Settings
from meari.validation.parsing import Parser

__all__ = [
    "ANYBODY",
    "Attempts",
    "Caller",
    "KeyFile",
    "KeyRing",
    "StoredKey",
    "change_keys",
    "is_name",
    "make_key",
    "read_keys",
]

CHECK_SECONDS: Final = 1.0  # between two looks at the file
MAX_FILE_BYTES: Final = 16 * 1024 * 1024
SAFE_CHARS: Final = 32  # of a key of the settings: one as long is not guessed
COPY: Final = "keys.json"  # in the runtime folder: the last file that could be used, for workers that start later
_KEY: Final = re.compile(r"meari_([0-9a-f]{12})_[A-Za-z0-9_-]{43}")
_HASH: Final = re.compile(r"sha256:([0-9a-f]{32}):([0-9a-f]{64})")
_NAME: Final = r"^[A-Za-z0-9][A-Za-z0-9._@-]{0,63}\Z"

log = logging.getLogger("meari.service.keys")  # as operators know it


@dataclass(frozen=True)
class Caller:
    """Who sent a request, and what they may do.

    name               that of the key, never the key itself; "" for a request without a key
    key_id             tells keys of the file apart; "" for others
    is_admin           may load and unload models
    models             names of the models that the key is for; None for all
    tokens_per_minute  None for any number
    requests_at_once   None for any number
    note_wrong_key     counts the key that came, which is not known; None where none came
    """

    name: str = ""
    key_id: str = ""
    is_admin: bool = False
    models: tuple[str, ...] | None = None
    tokens_per_minute: int | None = None
    requests_at_once: int | None = None
    note_wrong_key: Callable[[], None] | None = field(default=None, repr=False, compare=False)

    def require_admin(self) -> None:
        """Raise Unauthorized where no key that is known came, Forbidden where one came that is no admin key."""
        if self.is_admin:
            return
        if self.name:
            raise Forbidden(f"the key {self.name} is no admin key")
        if self.note_wrong_key is not None:
            self.note_wrong_key()
        raise Unauthorized(Problem("Authorization", reason="expected Bearer and an admin key of this service"))


ANYBODY: Final = Caller()


class StoredKey(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """An entry of the file of keys."""

    id: Annotated[str, Meta(pattern="^[0-9a-f]{12}$")]
    name: Annotated[str, Meta(pattern=_NAME)]
    hash: str  # sha256:SALT:DIGEST, in hexadecimal
    created: str = ""
    admin: bool = False
    models: Annotated[list[str], Meta(min_length=1)] | None = None
    tokens_per_minute: Annotated[int, Meta(ge=1, le=10**12)] | None = None
    requests_at_once: Annotated[int, Meta(ge=1, le=10**6)] | None = None

    @property
    def caller(self) -> Caller:
        """The caller who sends this key."""
        models = None if self.models is None else tuple(self.models)
        return Caller(self.name, self.id, self.admin, models, self.tokens_per_minute, self.requests_at_once)


class KeyFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The file of keys."""

    keys: list[StoredKey]


class Attempts(Protocol):
    """Account of the wrong keys that came from an address."""

    def are_too_many(self, address: str) -> bool:
        """Tell whether the address has to wait before its next try."""

    def note(self, address: str) -> None:
        """Count a wrong key. Raises RateLimited if there were too many."""


class KeyRing:
    """All keys that are known; safe from any thread.

    The file is looked at again while requests come, at most once a second. One that cannot be used changes nothing.
    """

    def __init__(
        self, settings: Settings, attempts: Attempts | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._simple = [
            (key.encode(), Caller(f"{kind}:{number}", is_admin=kind == "admin_keys"))
            for kind, keys in (("api_keys", settings.api_keys), ("admin_keys", settings.admin_keys))
            for number, key in enumerate(keys, 1)
        ]
        self._requires_key = bool(settings.api_keys) or settings.keys_file is not None
        self._attempts = attempts
        self._clock = clock
        self._path = settings.keys_file
        self._copy = settings.runtime_folder / COPY if settings.runtime_folder else None
        self._stored: dict[str, tuple[bytes, bytes, Caller]] = {}  # by id: salt, digest; replaced whole
        self._nobody = (secrets.token_bytes(16), secrets.token_bytes(32), ANYBODY)
        self._lock = threading.Lock()
        self._seen: bytes | str | None = None  # the file, or why it could not be read, at the last look
        self._check_at = clock() + CHECK_SECONDS
        if self._path is not None and not self._read(self._path):
            self._take_copy()

    def caller(self, authorization: str | None, address: str = "", *, must_know: bool = False) -> Caller:
        """Return who sends the header; ANYBODY where no key is needed. Raises Unauthorized, RateLimited.

        address    of the client
        must_know  a key is needed even where other requests need none
        """
        self._look()
        key, is_basic = _sent_key(authorization)
        found = None if key is None else self._find(key, address)
        if found is not None:  # a browser sends Basic by itself, also where another page makes it ask
            return dataclasses.replace(found, is_admin=False) if is_basic else found
        note = partial(self._attempts.note, address) if key is not None and self._attempts is not None else None
        if not self._requires_key and not must_know:
            return dataclasses.replace(ANYBODY, note_wrong_key=note) if note else ANYBODY
        if note is not None:
            note()
        came = "no Authorization header" if authorization is None else "a key that is not known"
        raise Unauthorized(Problem("Authorization", came, "Bearer and a key of this service"))

    def known(self, authorization: str | None, address: str = "") -> Caller | None:
        """Return the caller as `caller` does, None where that would raise; nothing is counted, no file is read."""
        key, _ = _sent_key(authorization)
        found = None if key is None else self._find(key, address)
        return ANYBODY if found is None and not self._requires_key else found

    def _find(self, key: bytes, address: str) -> Caller | None:
        """Compare with the key of that id, and with every key of the settings; each in constant time."""
        parts = _KEY.fullmatch(key.decode("utf-8", "replace"))
        salt, digest, caller = self._stored.get(parts[1], self._nobody) if parts else self._nobody
        if hmac.compare_digest(hashlib.sha256(salt + key).digest(), digest):
            return caller
        matches = [caller for known, caller in self._simple if hmac.compare_digest(key, known)]
        guessed = len(key) < SAFE_CHARS and self._attempts is not None and self._attempts.are_too_many(address)
        return matches[-1] if matches and not guessed else None

    def _look(self) -> None:
        """Read the file again, if it is time and no other thread does."""
        if self._path is None or self._clock() < self._check_at or not self._lock.acquire(blocking=False):
            return
        try:
            self._check_at = self._clock() + CHECK_SECONDS
            self._read(self._path)
        finally:
            self._lock.release()

    def _read(self, path: Path) -> bool:
        """Take the keys of a file that has changed, or say once why it cannot be used; return whether it could be."""
        seen: bytes | str
        try:
            seen = _bytes_of(path)
        except OSError as error:
            seen = error.strerror or type(error).__name__
        if seen == self._seen:
            return False
        self._seen = seen
        try:
            if isinstance(seen, str):
                raise InvalidRequest(seen)  # noqa: TRY301 (said in one place)
            keys = _parsed(seen)
        except InvalidRequest as error:
            log.error("%s cannot be used, the keys known before stay valid: %s", path, error)  # noqa: TRY400
            return False
        self._use(keys)
        log.info("%d keys of %s are valid", len(keys), path)
        if self._copy is not None:
            with contextlib.suppress(OSError):  # needed only by a worker that starts while the file is broken
                _write(self._copy, keys)
        return True

    def _take_copy(self) -> None:
        """Begin with the keys that the workers beside this one know."""
        if self._copy is not None:
            with contextlib.suppress(OSError, InvalidRequest):
                self._use(_parsed(_bytes_of(self._copy)))

    def _use(self, keys: list[StoredKey]) -> None:
        found = {}
        for key in keys:
            parts = _HASH.fullmatch(key.hash)
            assert parts is not None, "checked when the file was parsed"
            found[key.id] = bytes.fromhex(parts[1]), bytes.fromhex(parts[2]), key.caller
        self._stored = found


def _sent_key(authorization: str | None) -> tuple[bytes | None, bool]:
    """Return the key of the header, None if it has none; and whether it came as a browser's login (RFC 7617)."""
    scheme, _, sent = (authorization or "").partition(" ")
    key = sent.strip().encode("utf-8", "surrogateescape")
    if scheme.lower() == "bearer":
        return key or None, False
    if scheme.lower() != "basic":
        return None, False
    try:
        user, _, password = base64.b64decode(key, validate=True).partition(b":")
    except binascii.Error:
        return None, True
    return password or user or None, True


# ---- the file ----


def make_key(
    name: str,
    *,
    admin: bool = False,
    models: list[str] | None = None,
    tokens_per_minute: int | None = None,
    requests_at_once: int | None = None,
    created: str = "",
) -> tuple[str, StoredKey]:
    """Draw a new key; return it with its entry of the file."""
    key_id, salt = secrets.token_hex(6), secrets.token_bytes(16)
    key = f"meari_{key_id}_{secrets.token_urlsafe(32)}"
    digest = hashlib.sha256(salt + key.encode()).hexdigest()
    text = f"sha256:{salt.hex()}:{digest}"
    return key, StoredKey(key_id, name, text, created, admin, models, tokens_per_minute, requests_at_once)


def is_name(name: str) -> bool:
    """Tell whether a key may have that name."""
    return re.match(_NAME, name) is not None


def read_keys(path: Path) -> list[StoredKey]:
    """Return the entries of a file. Raises OSError, MeariError with the file and the problem."""
    try:
        return _parsed(_bytes_of(path))
    except InvalidRequest as error:
        raise MeariError(f"{path}: {error}") from None


def change_keys(path: Path, change: Callable[[list[StoredKey]], list[StoredKey]]) -> None:
    """Change the entries of a file, which is made if it is missing; safe beside others who do the same.

    Raises OSError, MeariError if the file cannot be used, and what `change` raises.
    """
    path = path.resolve()  # a link stays a link
    with _locked(path):
        keys = change(read_keys(path) if path.exists() else [])
        _parsed(_encoded(keys))
        _write(path, keys)


def _bytes_of(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(MAX_FILE_BYTES + 1)


_parse: Final = Parser(KeyFile).parse


def _parsed(data: bytes) -> list[StoredKey]:
    """Return the entries. Raises InvalidRequest, which never shows a hash: it may be a key in a wrong place."""
    if len(data) > MAX_FILE_BYTES:
        raise InvalidRequest(Problem("body", f"more than {MAX_FILE_BYTES} bytes", "a smaller file"))
    keys = _parse(data).keys
    for number, key in enumerate(keys):
        if not _HASH.fullmatch(key.hash):
            raise InvalidRequest(
                Problem(f"keys[{number}].hash", "a value that is not shown", "one that `meari keys add` wrote")
            )
    for counts in (Counter(key.id for key in keys), Counter(key.name for key in keys)):
        if twice := [value for value, count in counts.items() if count > 1]:
            raise InvalidRequest(Problem("keys", f"{twice[0]} twice", "it once"))
    return keys


def _encoded(keys: list[StoredKey]) -> bytes:
    return msgspec.json.format(msgspec.json.encode(KeyFile(keys)), indent=2) + b"\n"


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Keep out others who change the file; the lock ends with its process."""
    descriptor = os.open(path.with_name(f".{path.name}.lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _write(path: Path, keys: list[StoredKey]) -> None:
    """Write a file whole or not at all, for its owner alone, who stays the same."""
    new = path.with_name(f".{path.name}.new")  # always the same: what a killed process left is replaced
    new.unlink(missing_ok=True)
    descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(_encoded(keys))
            file.flush()
            os.fsync(file.fileno())
            with contextlib.suppress(OSError):
                before = path.stat()
                os.fchown(file.fileno(), before.st_uid, before.st_gid)
        new.replace(path)
    finally:
        new.unlink(missing_ok=True)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
