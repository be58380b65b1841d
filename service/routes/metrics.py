"""GET /metrics: for Prometheus."""

from __future__ import annotations

from flask import Blueprint, Response

from meari.service.metrics import CONTENT_TYPE
from meari.service.service import Service

__all__ = ["metrics_blueprint"]


def metrics_blueprint(service: Service) -> Blueprint:
    """The route, over the parts of `service`."""
    blueprint = Blueprint("metrics", __name__)

    @blueprint.get("/metrics")
    def metrics() -> Response:
        service.observe()
        return Response(service.metrics.exposition(), content_type=CONTENT_TYPE)

    return blueprint
