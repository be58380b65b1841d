"""GET /models and GET /models/NAME: what is being served."""

from __future__ import annotations

from flask import Blueprint, Response

from meari.runtime.inspection import describe_bundle
from meari.runtime.model import LoadedModel
from meari.service.routes.exchange import json_response
from meari.service.service import Service

__all__ = ["models_blueprint"]


def models_blueprint(service: Service) -> Blueprint:
    """The routes, over the parts of `service`."""
    blueprint = Blueprint("models", __name__)

    @blueprint.get("/models")
    def models() -> Response:
        descriptions = [describe_model(model, service) for model in service.registry.all()]
        return json_response({"models": descriptions, "default": service.registry.default})

    @blueprint.get("/models/<name>")
    def model(name: str) -> Response:
        return json_response(describe_model(service.registry.get(name), service))

    return blueprint


def describe_model(model: LoadedModel, service: Service) -> dict[str, object]:
    """What a caller may want to know of a model before asking it anything."""
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
