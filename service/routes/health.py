"""GET /healthz: does the process live? GET /readyz: does it take requests?"""

from __future__ import annotations

from flask import Blueprint, Response

from meari.errors import NotReady
from meari.service.error_body import error_body
from meari.service.routes.exchange import current_exchange, json_response
from meari.service.service import Service

__all__ = ["health_blueprint"]


def health_blueprint(service: Service) -> Blueprint:
    """The routes, over the parts of `service`."""
    blueprint = Blueprint("health", __name__)

    @blueprint.get("/healthz")
    def healthz() -> Response:
        return json_response({"status": "ok"})

    @blueprint.get("/readyz")
    def readyz() -> Response:
        readiness = service.registry.readiness()
        reason = "the service is shutting down" if service.drain.has_begun else readiness.reason
        body: dict[str, object] = {
            "status": "not_ready" if reason else "ready",
            "reason": reason or None,
            "models": readiness.models,
            "failed": readiness.failed,
        }
        if not reason:
            return json_response(body)
        error = NotReady(reason)
        response = json_response(error_body(error, current_exchange().request_id) | body, error.status)
        response.headers["Retry-After"] = str(error.retry_after_seconds)
        return response

    return blueprint
