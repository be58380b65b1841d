"""Logging: one line an event on stderr, one line a request. Nothing of a request's text is logged."""

from __future__ import annotations

import logging
import sys
from typing import Final
from urllib.parse import quote

__all__ = ["RequestLine", "configure_logging", "log_request"]

_FORMAT: Final = "%(asctime)s %(levelname)s %(process)d %(name)s %(message)s"
_access: Final = logging.getLogger("service.access")


def configure_logging(level: str) -> None:
    """Send the service's records of this level and above to stderr; asking again only changes the level."""
    root = logging.getLogger("service")
    root.setLevel(level.upper())
    root.propagate = False
    if not root.handlers:
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(logging.Formatter(_FORMAT))
        root.addHandler(handler)


class RequestLine:
    """What the line of one request says."""

    __slots__ = ("code", "method", "model", "path", "request_id", "tokens")

    def __init__(self, request_id: str, method: str, path: str) -> None:
        self.request_id = request_id
        self.method = method
        self.path = path
        self.model = ""
        self.tokens = 0
        self.code = ""


def log_request(line: RequestLine, status: int, seconds: float) -> None:
    """Write the line."""
    _access.info(
        "%s %s %d %.1f ms request_id=%s model=%s tokens=%d%s",
        line.method,
        quote(line.path[:200], safe="/"),
        status,
        seconds * 1000,
        line.request_id,
        quote(line.model[:100], safe="") or "-",
        line.tokens,
        f" code={line.code}" if line.code else "",
    )
