"""POST /v1/completions, GET /v1/models: the routes of OpenAI's clients."""

from __future__ import annotations

import time

from flask import Blueprint, Response

from meari.runtime.model import LoadedModel
from meari.service.error_body import openai_error_body
from meari.service.openai.bodies import ModelCard, ModelList
from meari.service.openai.completion import OpenAICompletion, begin_openai_completion
from meari.service.requests.completions import prompts_of
from meari.service.routes.exchange import current_exchange, json_response
from meari.service.routes.streaming import respond
from meari.service.service import Service
from meari.service.watch import Watch

__all__ = ["openai_blueprint"]


def openai_blueprint(service: Service) -> Blueprint:
    """The routes, over the parts of `service`."""
    blueprint = Blueprint("openai", __name__, url_prefix="/v1")

    @blueprint.post("/completions")
    def completions() -> Response:
        exchange = current_exchange()
        request, model = exchange.accept(service.schemas.completions)
        exchange.line.stream = bool(request.stream)
        exchange.hold_texts("prompt", prompts_of(request), 0)  # the completion takes the memory
        deadline = model.engine.clock() + service.settings.max_timeout_seconds
        answer_id = f"cmpl-{exchange.request_id}"
        completion = begin_openai_completion(
            request, model, exchange.ticket, deadline, answer_id, int(time.time()), exchange.kept_chars
        )
        exchange.note_work(completion.work)
        watch = exchange.watch(completion.generation, model)
        _await_scores(service, completion, watch)
        return respond(completion, exchange, watch, openai_error_body)

    @blueprint.get("/models")
    def models() -> Response:
        return json_response(ModelList([_card(model) for model in service.registry.all()]))

    @blueprint.get("/models/<name>")
    def model(name: str) -> Response:
        return json_response(_card(service.registry.get(name)))

    return blueprint


def _await_scores(service: Service, completion: OpenAICompletion, watch: Watch) -> None:
    """Wait for the prompts' figures, which come first. Raises ScoreTimeout, NotReady, EngineFailed, ClientGone."""
    if completion.scoring is None:
        return
    watch.await_scores(completion.scoring)
    completion.note_scores()
    service.metrics.scored.labels(completion.model.name).inc(completion.num_scored)


def _card(model: LoadedModel) -> ModelCard:
    """Return the description of a model; `created` is when its bundle was written."""
    return ModelCard(model.name, model.written_at)
