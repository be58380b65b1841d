"""Cross-origin requests of browsers (https://fetch.spec.whatwg.org/#cors-protocol).

Input: the allowed origins, and headers of a request. Output: headers of its answer. Must not know: Flask.

Keys come in `Authorization`, which a page sets itself, so there are no credentials of the browser's own to allow.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

__all__ = ["cors_headers", "preflight_headers"]

METHODS: Final = "GET, HEAD, POST"
HEADERS: Final = "Authorization, Content-Type, X-Request-Id"
EXPOSED: Final = "X-Request-Id, Retry-After"
MAX_AGE_SECONDS: Final = 3600
_NAMES: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z, -]{1,2000}")


def cors_headers(origins: tuple[str, ...], origin: str | None) -> dict[str, str]:
    """Return headers of every answer, errors and streams included.

    origins  allowed ones; ("*",) allows all, () allows none and adds no header
    origin   of the page, as its browser sent it
    """
    if origins == ("*",):
        return {"Access-Control-Allow-Origin": "*", "Access-Control-Expose-Headers": EXPOSED}
    if origin is None or origin not in origins:
        return {"Vary": "Origin"} if origins else {}
    return {"Access-Control-Allow-Origin": origin, "Access-Control-Expose-Headers": EXPOSED, "Vary": "Origin"}


def preflight_headers(origins: tuple[str, ...], asked: Mapping[str, str]) -> dict[str, str] | None:
    """Return further headers of the answer to a browser's preflight; None for any other OPTIONS.

    asked  headers of the request

    A page may send any headers: only those of the contract mean anything here. Pages of the public network may reach a
    server of a private one if their origin is allowed by name.
    """
    is_allowed = "Access-Control-Allow-Origin" in cors_headers(origins, asked.get("Origin"))
    if not is_allowed or "Origin" not in asked or "Access-Control-Request-Method" not in asked:
        return None
    names = asked.get("Access-Control-Request-Headers", "")
    headers = {
        "Access-Control-Allow-Methods": METHODS,
        "Access-Control-Allow-Headers": names if _NAMES.fullmatch(names) else HEADERS,
        "Access-Control-Max-Age": str(MAX_AGE_SECONDS),
    }
    if asked.get("Access-Control-Request-Private-Network") == "true" and origins != ("*",):
        headers["Access-Control-Allow-Private-Network"] = "true"
    return headers
