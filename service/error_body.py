"""The one body that every error is answered with. Knows nothing of Flask."""

from __future__ import annotations

from typing import Final

from service.errors import MeariError

__all__ = ["error_body"]

INTERNAL_MESSAGE: Final = "an error of the server's own; its log has the details under this request id"


def error_body(error: MeariError, request_id: str) -> dict[str, object]:
    """The body of an error; of the server's own errors nothing is told but that there was one."""
    message = INTERNAL_MESSAGE if error.status == 500 else str(error)
    return {"error": {"code": error.code, "message": message, "request_id": request_id}}
