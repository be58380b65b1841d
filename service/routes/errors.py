"""Every exception that a route raises → the one error body of the contract, under /v1 OpenAI's.

Input: our own errors, Flask's (404, 405, …) and unexpected ones. Output: an answer, noted in the request's log line.
"""

from __future__ import annotations

import logging
from typing import Final

from flask import Flask, Response, request
from werkzeug.exceptions import HTTPException

from meari.errors import (
    MAY_QUOTE,
    InvalidRequest,
    MeariError,
    MethodNotAllowed,
    NotFound,
    Problem,
    TooLarge,
    Unauthorized,
    UnsupportedMediaType,
)
from meari.service.clients import ClientGone
from meari.service.error_body import error_body, openai_error_body
from meari.service.routes.exchange import CLIENT_GONE, OPEN_BLUEPRINTS, asked_path, current_exchange, json_response

__all__ = ["register_error_handlers"]

BROWSER_LOGIN: Final = 'Basic realm="meari: any user name, the key as password", charset="UTF-8"'
log = logging.getLogger("meari.service.error_handler")  # as operators know it


def register_error_handlers(app: Flask) -> None:
    """Answer every exception that a route raises."""
    app.register_error_handler(MeariError, _meari_error)
    app.register_error_handler(HTTPException, _http_exception)
    app.register_error_handler(ClientGone, _client_gone)
    app.register_error_handler(Exception, _unexpected)


def _meari_error(error: MeariError) -> Response:
    exchange = current_exchange()
    exchange.note_error(error)
    response = json_response(_body(error, exchange.request_id), error.status)
    if error.retry_after_seconds is not None:
        response.headers["Retry-After"] = str(error.retry_after_seconds)
    if isinstance(error, Unauthorized):
        response.headers["WWW-Authenticate"] = "Bearer"
        if request.blueprint in OPEN_BLUEPRINTS:  # protected: a browser asks for the key and sends it with each request
            response.headers.add("WWW-Authenticate", BROWSER_LOGIN)
    if isinstance(error, UnsupportedMediaType):
        response.headers["Accept"], response.headers["Accept-Encoding"] = "application/json", "identity"
    return response


def _client_gone(_: ClientGone) -> Response:
    error = InvalidRequest(Problem("request", reason="the connection was closed before its answer was ready"))
    return json_response(_body(error, current_exchange().request_id), CLIENT_GONE)


def _body(error: MeariError, request_id: str) -> dict[str, object]:
    is_openai = request.path == "/v1" or request.path.startswith("/v1/")
    return openai_error_body(error) if is_openai else error_body(error, request_id)


def _http_exception(error: HTTPException) -> Response:
    response = _meari_error(_translated(error))
    allowed = getattr(error, "valid_methods", None)
    if allowed:
        response.headers["Allow"] = ", ".join(sorted(allowed))
    return response


def _translated(error: HTTPException) -> MeariError:
    path = asked_path(request)[:200]
    if error.code == 404:
        return NotFound(Problem("path", path, "one that the contract names"))
    if error.code == 405:
        methods = ", ".join(sorted(getattr(error, "valid_methods", None) or ()))
        return MethodNotAllowed(Problem("method", f"{request.method} for {path}", f"one of {methods}"))
    if error.code == 413:
        return TooLarge(Problem("body", reason="it is too large"))
    if error.code == 415:
        return UnsupportedMediaType(Problem("Content-Type", reason="expected application/json"))
    if error.code is not None and 400 <= error.code < 500:
        return InvalidRequest(Problem("request", reason=error.description or error.name))
    return MeariError(error.name)


def _unexpected(error: Exception) -> Response:
    log.error("request %s failed", current_exchange().request_id, exc_info=error, extra=MAY_QUOTE)
    return _meari_error(MeariError("unexpected"))
