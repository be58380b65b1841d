"""May this caller ask? Compares a bearer key with the service's keys, in constant time. Knows nothing of Flask."""

from __future__ import annotations

import hmac

from meari.errors import Unauthorized

__all__ = ["check_key"]


def check_key(authorization: str | None, keys: tuple[str, ...]) -> None:
    """Raises Unauthorized, unless no keys are set or the header carries one of them."""
    if not keys:
        return
    scheme, _, key = (authorization or "").partition(" ")
    sent = key.strip().encode("utf-8", "surrogateescape")
    matches = [hmac.compare_digest(sent, known.encode()) for known in keys]
    if scheme.lower() != "bearer" or not any(matches):
        came = "no Authorization header" if authorization is None else "a key that is not known"
        raise Unauthorized(f"Authorization: got {came}, expected Bearer and a key of this service")
