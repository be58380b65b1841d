"""Bodies of errors: one everywhere, OpenAI's under /v1.

Input: a MeariError and the id of its request. Output: a body, and the name of the field that is wrong. Must not know:
Flask.
"""

from __future__ import annotations

from collections.abc import Container
from typing import Final

from meari.errors import MeariError

__all__ = ["SAFE_HEADERS", "error_body", "openai_error_body", "wrong_field"]

SAFE_HEADERS: Final = (("X-Content-Type-Options", "nosniff"), ("Cache-Control", "no-store"))  # unless a route sets them
INTERNAL_MESSAGE: Final = "an error of the server's own; its log has the details under this request id"
FIELD_STATUSES: Final = (400, 404, 413)
NOT_FIELDS: Final = ("body", "request", "path")  # other parts of a request that a problem may be about
OPENAI_TYPES: Final = {401: "authentication_error", 429: "rate_limit_error"}


def error_body(error: MeariError, request_id: str) -> dict[str, object]:
    """Return the body of an error; a fault of the server is named as such, without details."""
    return {"error": {"code": error.code, "message": _message(error), "request_id": request_id}}


def openai_error_body(error: MeariError) -> dict[str, object]:
    """Return the same in OpenAI's shape: `code` is ours, `type` is OpenAI's, `param` the first field that is wrong."""
    kind = "invalid_request_error" if error.status < 500 else "server_error"
    message = _message(error)
    error_type = OPENAI_TYPES.get(error.status, kind)
    return {"error": {"message": message, "type": error_type, "param": _named_field(error), "code": error.code}}


def wrong_field(error: MeariError, known: Container[str]) -> str | None:
    """Return the first field that is wrong, if it is a known one: the name of any other is the caller's own text."""
    field = _named_field(error)
    return field if field is not None and field in known else None


def _named_field(error: MeariError) -> str | None:
    if error.status not in FIELD_STATUSES or not error.problems:
        return None
    name = error.problems[0].name
    return None if name in NOT_FIELDS else name


def _message(error: MeariError) -> str:
    return INTERNAL_MESSAGE if error.status == 500 else str(error)
