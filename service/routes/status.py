"""State of the service: GET /healthz, /readyz, /metrics, /models and /v1/models.

Input: the registry, the drain and the metrics. Output: JSON, and Prometheus' text. Must not know: requests to a model.
"""

from __future__ import annotations

from flask import Blueprint, Response

from meari.errors import NotReady
from meari.runtime.inspection import describe_bundle
from meari.runtime.model import LoadedModel
from meari.service.error_body import error_body
from meari.service.metrics import CONTENT_TYPE
from meari.service.openai.bodies import ModelCard, ModelList
from meari.service.routes.exchange import current_exchange, json_response
from meari.service.service import Service

__all__ = ["health_blueprint", "metrics_blueprint", "models_blueprint"]


def health_blueprint(service: Service) -> Blueprint:
    """Make the routes over the parts of `service`."""
    blueprint = Blueprint("health", __name__)

    @blueprint.get("/healthz")
    def healthz() -> Response:
        return json_response({"status": "ok"})

    @blueprint.get("/readyz")
    def readyz() -> Response:
        readiness = service.registry.readiness()
        host = readiness.host
        body: dict[str, object] = {
            "status": "ready" if readiness.ready else "not_ready",
            "reason": readiness.reason or None,
            "models": readiness.models,
            "failed": readiness.failed,
            "workers": {
                "expected": host.expected,
                "ready": host.ready,
                "loading": host.loading,
                "failed": host.failed,
                "draining": host.draining,
            },
        }
        if readiness.ready:
            return json_response(body)
        error = NotReady(readiness.reason)
        response = json_response(error_body(error, current_exchange().request_id) | body, error.status)
        response.headers["Retry-After"] = str(error.retry_after_seconds)
        return response

    return blueprint


def metrics_blueprint(service: Service) -> Blueprint:
    """The route, over the parts of `service`."""
    blueprint = Blueprint("metrics", __name__)

    @blueprint.get("/metrics")
    def metrics() -> Response:
        service.observe()
        return Response(service.metrics.exposition(), content_type=CONTENT_TYPE)

    return blueprint


def models_blueprint(service: Service) -> Blueprint:
    """Make the routes over the parts of `service`."""
    blueprint = Blueprint("models", __name__)

    @blueprint.get("/models")
    def models() -> Response:
        allowed = current_exchange().caller.models
        descriptions = [describe_model(model, service) for model in service.registry.all(allowed)]
        return json_response({"models": descriptions, "default": service.registry.default_of(allowed)})

    @blueprint.get("/models/<name>")
    def model(name: str) -> Response:
        return json_response(describe_model(service.registry.get(name, current_exchange().caller.models), service))

    @blueprint.get("/v1/models")
    def openai_models() -> Response:
        allowed = current_exchange().caller.models
        return json_response(ModelList([_card(model) for model in service.registry.all(allowed)]))

    @blueprint.get("/v1/models/<name>")
    def openai_model(name: str) -> Response:
        return json_response(_card(service.registry.get(name, current_exchange().caller.models)))

    return blueprint


def describe_model(model: LoadedModel, service: Service) -> dict[str, object]:
    """Return the properties, figures and limits of a model."""
    settings, limits = service.settings, model.engine.limits
    return {
        **describe_bundle(model.name, model.bundle.manifest, model.bundle.hash),
        "limits": {
            "max_tokens": settings.max_tokens,
            "max_texts": settings.max_texts,
            "max_prompts": settings.max_texts,
            "max_text_chars": settings.max_text_chars,
            "max_body_bytes": settings.max_body_bytes,
            "max_timeout_seconds": settings.max_timeout_seconds,
            "max_state_chars": service.state_tokens(model.bundle).max_chars,
            "max_top_k": model.tokenizer.vocabulary.size,
            "max_slots": limits.max_slots,
            "max_waiting": limits.max_waiting,
            "cache_bytes": limits.cache_bytes,
        },
        "self_test": model.bundle.self_test,
    }


def _card(model: LoadedModel) -> ModelCard:
    """Return the description of a model; `created` is when its bundle was written."""
    return ModelCard(model.name, model.written_at)
