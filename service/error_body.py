"""The bodies that errors are answered with: one everywhere, OpenAI's under /v1. Knows nothing of Flask."""

from __future__ import annotations

import re
from collections.abc import Container
from typing import Final

from meari.errors import MeariError

__all__ = ["SAFE_HEADERS", "error_body", "openai_error_body", "wrong_field"]

SAFE_HEADERS: Final = (("X-Content-Type-Options", "nosniff"), ("Cache-Control", "no-store"))  # unless a route sets them
INTERNAL_MESSAGE: Final = "an error of the server's own; its log has the details under this request id"
NOT_FIELDS: Final = ("body", "request", "path", "method")
OPENAI_TYPES: Final = {401: "authentication_error", 429: "rate_limit_error"}
_FIELD: Final = re.compile(r"([a-z_]+)[^: ]*: ")


def error_body(error: MeariError, request_id: str) -> dict[str, object]:
    """The body of an error; of the server's own errors nothing is told but that there was one."""
    return {"error": {"code": error.code, "message": _message(error), "request_id": request_id}}


def openai_error_body(error: MeariError) -> dict[str, object]:
    """The same in OpenAI's shape: `code` is ours, `type` is OpenAI's, `param` the first field that is wrong."""
    kind = "invalid_request_error" if error.status < 500 else "server_error"
    message = _message(error)
    error_type = OPENAI_TYPES.get(error.status, kind)
    return {"error": {"message": message, "type": error_type, "param": _named_field(error), "code": error.code}}


def wrong_field(error: MeariError, known: Container[str]) -> str | None:
    """The first field that is wrong, if it is a known one: the name of any other is the caller's own text."""
    field = _named_field(error)
    return field if field is not None and field in known else None


def _named_field(error: MeariError) -> str | None:
    found = _FIELD.match(_message(error)) if error.status in (400, 404, 413) else None
    return None if found is None or found[1] in NOT_FIELDS else found[1]


def _message(error: MeariError) -> str:
    return INTERNAL_MESSAGE if error.status == 500 else str(error)
