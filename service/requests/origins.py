"""Where a request comes from: the page in a browser, the client's address, and the name it used for the service.

Input: settings, and headers of a request. Output: headers of its answer for pages of other origins (CORS,
https://fetch.spec.whatwg.org/#cors-protocol); the client's address, scheme and host as trusted proxies report them;
whether the host's name may be answered. Must not know: Flask.

Keys come in `Authorization`, which a page sets itself, so there are no credentials of the browser's own to allow.

A page of `evil.example` may let that name point to the address of this service (DNS rebinding). Its browser then takes
the service for the page's own origin, and lets the page read answers. Only the `Host` header shows it. An attacker
needs a public name for that, so names that nobody can register are always answered.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping, MutableMapping
from functools import lru_cache
from typing import Any, Final, TypeVar

__all__ = [
    "CAME_AT",
    "HEAD_BYTES",
    "SENT_HOST",
    "believe_proxies",
    "client_network",
    "cors_headers",
    "may_answer",
    "may_answer_host",
    "preflight_headers",
]

CAME_AT: Final = "meari.came_at"  # in WSGI's environment: when the worker's loop gave the request to a thread
HEAD_BYTES: Final = "meari.head_bytes"  # in it, too: the size of the head
SENT_HOST: Final = "meari.sent_host"  # the `Host` of a request whose proxy reports another one
METHODS: Final = "GET, HEAD, POST"
HEADERS: Final = "Authorization, Content-Type, X-Request-Id"
EXPOSED: Final = (
    "X-Request-Id, Retry-After, RateLimit, RateLimit-Policy, "
    "x-ratelimit-limit-tokens, x-ratelimit-remaining-tokens, x-ratelimit-reset-tokens"
)
MAX_AGE_SECONDS: Final = 3600
_NAMES: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z, -]{1,2000}")
Value = TypeVar("Value")
NOT_PUBLIC: Final = (".localhost", ".local", ".internal")  # no registry sells names that end so
_HOST: Final = re.compile(r"(\[[0-9a-f:.]+\]|[^:]*)(?::[0-9]*)?", re.IGNORECASE)
_FORWARDED: Final = re.compile(r"""\s*([!#$%&'*+.^_`|~0-9A-Za-z-]+)=("(?:[^"\\]|\\.)*"\s*|[^;,"]*)([;,]|$)""")


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


@lru_cache(maxsize=256)
def may_answer(host: str, sent_host: str, allowed: tuple[str, ...]) -> bool:
    """Tell whether a request is answered under its `Host`, and under the one that a trusted proxy's report replaced.

    A proxy that reports none may pass on what the client wrote in its place. A name that is absent is "".
    """
    return may_answer_host(host, allowed) and may_answer_host(sent_host, allowed)


def may_answer_host(host: str, allowed: tuple[str, ...]) -> bool:
    """Tell whether a request with this `Host` is answered.

    host     the header, "" where there is none
    allowed  names in lower case; `*.example.com` stands for every name below it, and `*` for all

    Always answered are addresses, `localhost`, names without a dot, and names below NOT_PUBLIC.
    """
    found = _HOST.fullmatch(host.strip())
    if "*" in allowed or not host.strip():
        return True
    if found is None:
        return False
    name = found[1].lower().removesuffix(".")
    if "." not in name or _address(name) is not None or name.endswith(NOT_PUBLIC):
        return True
    return name in allowed or any(each.startswith("*.") and name.endswith(each[1:]) for each in allowed)


def believe_proxies(environ: MutableMapping[str, Any], trusted_hops: int) -> None:
    """Write what the outermost of the trusted proxies saw to REMOTE_ADDR, wsgi.url_scheme and HTTP_HOST.

    trusted_hops  proxies in front of the service, each of which appends what it saw

    It is in `Forwarded` (RFC 7239) or in the X-Forwarded-… headers. Where both came, only what both say is taken: a
    proxy that writes one kind passes the other on as the client wrote it. Neither is an address taken that is none.
    """
    if trusted_hops <= 0:
        return
    seen = _seen_by_proxies(environ, trusted_hops)
    if seen.get("for"):
        environ["REMOTE_ADDR"] = seen["for"]
    if seen.get("proto") in ("http", "https"):
        environ["wsgi.url_scheme"] = seen["proto"]
    if seen.get("host"):
        environ.setdefault(SENT_HOST, environ.get("HTTP_HOST", ""))
        environ["HTTP_HOST"] = seen["host"]


def _seen_by_proxies(environ: Mapping[str, Any], trusted_hops: int) -> dict[str, str]:
    """Return `for`, `proto` and `host` as the outermost trusted proxy wrote them."""
    kinds = []
    if "HTTP_FORWARDED" in environ:
        kinds.append(_outermost(_forwarded(environ["HTTP_FORWARDED"]), trusted_hops) or {})
    named = {name: environ.get(f"HTTP_X_FORWARDED_{name.upper()}", "") for name in ("for", "proto", "host")}
    lists = {name: [each.strip() for each in value.split(",")] for name, value in named.items() if value}
    if lists:
        kinds.append({name: _outermost(values, trusted_hops) or "" for name, values in lists.items()})
    alike = [
        {**kind, "for": _address(kind.get("for", "")) or "", "proto": kind.get("proto", "").lower()} for kind in kinds
    ]
    return {name: value for name, value in alike[0].items() if value == alike[-1].get(name)} if alike else {}


def _outermost(values: list[Value], trusted_hops: int) -> Value | None:
    """Return the value of the outermost trusted proxy. With fewer values than proxies, trusted ones wrote them all."""
    return values[-trusted_hops:][0] if values else None


def _forwarded(header: str) -> list[dict[str, str]]:
    """Return the elements of a `Forwarded` header; none at all if it is malformed."""
    elements: list[dict[str, str]] = [{}]
    position = 0
    while position < len(header):
        found = _FORWARDED.match(header, position)
        if found is None:
            return []
        value = found[2].strip()
        elements[-1][found[1].lower()] = re.sub(r"\\(.)", r"\1", value[1:-1]) if value.startswith('"') else value
        if found[3] == ",":
            elements.append({})
        position = found.end()
    return elements


def _address(text: str) -> str | None:
    """Return the IP address in `1.2.3.4`, `1.2.3.4:80`, `[::1]:80` or `::1`; None for any other text."""
    found = _HOST.fullmatch(text)
    bare = text if found is None else found[1].strip("[]")
    try:
        return str(ipaddress.ip_address(bare))
    except ValueError:
        return None


@lru_cache(maxsize=4096)
def client_network(address: str) -> str:
    """Return the part of a client's address under which its requests and connections are counted.

    An IPv4 address counts alone. A client of IPv6 usually has a whole /64 network, so that is what counts.
    """
    try:
        parsed = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if parsed.version == 4:
        return str(parsed)
    if parsed.ipv4_mapped is not None:
        return str(parsed.ipv4_mapped)
    return str(ipaddress.ip_network((parsed, 64), strict=False))
