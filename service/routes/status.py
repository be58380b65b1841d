"""State of the service: GET /healthz, /readyz, /metrics, /models and /v1/models; and its change by an admin.

Input: the registry, the drain and the metrics. Output: JSON, and Prometheus' text. Must not know: requests to a model.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Final

from flask import Blueprint, Response, request

from meari.bundle_format.folders import find_bundles
from meari.errors import (
    BundleError,
    BundleRefused,
    Forbidden,
    InvalidRequest,
    NotReady,
    Problem,
    UnknownModel,
    did_you_mean,
)
from meari.runtime.inspection import describe_bundle
from meari.runtime.model import LoadedModel
from meari.service.error_body import error_body
from meari.service.metrics import CONTENT_TYPE
from meari.service.openai.bodies import ModelCard, ModelList
from meari.service.routes.exchange import current_exchange, json_response, reading_body
from meari.service.service import Service
from meari.service.wishes import Wishes, WorkerReport

__all__ = ["health_blueprint", "metrics_blueprint", "models_blueprint"]

ANSWER_SECONDS: Final = 5.0  # that an admin waits for all workers
MAX_EMPTY_BYTES: Final = 64


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

    @blueprint.post("/models/<name>/load")
    def load(name: str) -> Response:
        return _change(service, name, lambda wishes: wishes.with_load(name), "loaded")

    @blueprint.post("/models/<name>/unload")
    def unload(name: str) -> Response:
        return _change(service, name, lambda wishes: wishes.with_unload(name), "unloaded")

    return blueprint


def _change(service: Service, name: str, wish: Callable[[Wishes], Wishes], status: str) -> Response:
    """Let all workers of the host load or unload a model, and wait for them; 202 where some need longer."""
    _check_admin(service, name)
    with reading_body():
        body = request.stream.read(MAX_EMPTY_BYTES).strip()
    if body not in (b"", b"{}"):
        raise InvalidRequest(Problem("body", f"{len(body)} bytes or more", "none: the path says everything"))
    if service.drain.has_begun:
        raise NotReady("the service is shutting down")
    wishes = service.registry.wishes
    number = wishes.change(wish).number
    service.registry.wake()
    reports = wishes.await_reports(number, ANSWER_SECONDS)
    done = [report for report in reports if report.wishes >= number]
    if status == "loaded":
        _check_loaded(name, done)
    waiting = [report.pid for report in reports if report.wishes < number]
    body_of = {
        "name": name,
        "status": status,
        "hash": next((report.models[name] for report in done if name in report.models), None),
        "workers": {"done": [report.pid for report in done], "waiting": waiting},
    }
    return json_response(body_of, 200 if done and not waiting else 202)


def _check_admin(service: Service, name: str) -> None:
    """Raise Unauthorized or Forbidden for anybody but an admin, UnknownModel for a name that no bundle has."""
    caller = current_exchange().caller
    if service.keys is None:
        raise Forbidden("only an admin may do this, and the service has no admin key: MEARI_ADMIN_KEYS sets one")
    caller.require_admin()
    names = {model.name for model in service.registry.loaded()}
    with contextlib.suppress(BundleError):  # the folder cannot be read now
        found = find_bundles(service.settings.bundles)
        names |= found.folders.keys() | found.failed.keys()
    known = sorted(each for each in names if caller.models is None or each in caller.models)
    if name not in known:
        raise UnknownModel(Problem("model", repr(name[:100]), f"one of {', '.join(known)}{did_you_mean(name, known)}"))


def _check_loaded(name: str, done: list[WorkerReport]) -> None:
    """Raise BundleRefused if a worker could not load the bundle."""
    for report in done:
        if name in report.failed or name not in report.models:
            reason = report.failed.get(name, "it is not in the folder any more")
            stays = "; the one before is still served" if name in report.models else ""
            raise BundleRefused(f"bundle {name} cannot be served: {reason}{stays}")


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
    """Return the description of a model."""
    return ModelCard(model.name, model.created)
