"""Keys of the service, and what the caller who sends one may do.

Input: settings, the `Authorization` header of a request. Output: a `Caller`, or Unauthorized. Must not know: Flask, and
what a request asks for.
"""

from __future__ import annotations

import hmac
from dataclasses import dataclass
from typing import Final

from meari.errors import Forbidden, Problem, Unauthorized
from meari.service.settings import Settings

__all__ = ["ANYBODY", "Caller", "KeyRing"]


@dataclass(frozen=True)
class Caller:
    """Who sent a request, and what they may do.

    name               that of the key, never the key itself; "" for a request without a key
    is_admin           may load and unload models
    models             names of the models that the key is for; None for all
    tokens_per_minute  None for any number
    requests_at_once   None for any number
    """

    name: str = ""
    is_admin: bool = False
    models: tuple[str, ...] | None = None
    tokens_per_minute: int | None = None
    requests_at_once: int | None = None

    def require_admin(self) -> None:
        """Raise Unauthorized where no key that is known came, Forbidden where one came that is no admin key."""
        if self.is_admin:
            return
        if not self.name:
            raise Unauthorized(Problem("Authorization", reason="expected Bearer and an admin key of this service"))
        raise Forbidden(f"the key {self.name} is no admin key")


ANYBODY: Final = Caller()


class KeyRing:
    """All keys that are known; safe from any thread."""

    def __init__(self, api_keys: tuple[str, ...], admin_keys: tuple[str, ...]) -> None:
        self._simple = [(key.encode(), Caller(f"api_keys:{number}")) for number, key in enumerate(api_keys, 1)]
        self._simple += [
            (key.encode(), Caller(f"admin_keys:{number}", is_admin=True)) for number, key in enumerate(admin_keys, 1)
        ]
        self._requires_key = bool(api_keys)

    @classmethod
    def of(cls, settings: Settings) -> KeyRing | None:
        """Return the keys of the settings; None where there are none."""
        if not settings.api_keys and not settings.admin_keys:
            return None
        return cls(settings.api_keys, settings.admin_keys)

    def caller(self, authorization: str | None) -> Caller:
        """Return who sends the header; ANYBODY where no key is needed. Raises Unauthorized."""
        scheme, _, key = (authorization or "").partition(" ")
        found = self._find(key.strip().encode("utf-8", "surrogateescape")) if scheme.lower() == "bearer" else None
        if found is not None:
            return found
        if not self._requires_key:
            return ANYBODY
        came = "no Authorization header" if authorization is None else "a key that is not known"
        raise Unauthorized(Problem("Authorization", came, "Bearer and a key of this service"))

    def _find(self, sent: bytes) -> Caller | None:
        """Compare with every key, each in constant time."""
        found = [caller for key, caller in self._simple if hmac.compare_digest(sent, key)]
        return found[-1] if found else None
