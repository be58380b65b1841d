"""POST /v1/completions, GET /v1/models: what OpenAI's clients ask for."""

from __future__ import annotations

import time

from flask import Blueprint, Response

from meari.errors import MeariError
from meari.runtime.model import LoadedModel
from meari.runtime.requests import check_num_chars
from meari.service.error_body import openai_error_body
from meari.service.openai.bodies import ModelCard, ModelList
from meari.service.openai.completion import OpenAICompletion, begin_openai_completion
from meari.service.requests.completions import prompts_of
from meari.service.routes.exchange import Exchange, current_exchange, json_response
from meari.service.routes.generate import STREAM_HEADERS
from meari.service.routes.streaming import PING_SECONDS, event_stream
from meari.service.service import Service
from meari.service.watch import Watch

__all__ = ["openai_blueprint"]


def openai_blueprint(service: Service) -> Blueprint:
    """The routes, over the parts of `service`."""
    blueprint = Blueprint("openai", __name__, url_prefix="/v1")

    @blueprint.post("/completions")
    def completions() -> Response:
        exchange = current_exchange()
        request = service.schemas.completions(exchange.read_body())
        exchange.note_request(request)
        exchange.line.stream = bool(request.stream)
        model = exchange.use_model(service.registry.get(request.model_name))
        check_num_chars("prompt", prompts_of(request), service.settings.max_text_chars)
        deadline = model.engine.clock() + service.settings.max_timeout_seconds
        answer_id = f"cmpl-{exchange.request_id}"
        completion = begin_openai_completion(
            request, model, exchange.ticket, deadline, answer_id, int(time.time()), exchange.kept_chars
        )
        exchange.note_work(completion.work)
        watch = exchange.watch(completion.generation, model)
        _await_scores(service, completion, watch)
        return _stream(service, exchange, completion, watch) if request.stream else _whole(completion, watch)

    @blueprint.get("/models")
    def models() -> Response:
        return json_response(ModelList([_card(model) for model in service.registry.all()]))

    @blueprint.get("/models/<name>")
    def model(name: str) -> Response:
        return json_response(_card(service.registry.get(name)))

    return blueprint


def _await_scores(service: Service, completion: OpenAICompletion, watch: Watch) -> None:
    """The prompts' figures come first, in a stream too. Raises ScoreTimeout, NotReady, EngineFailed, ClientGone."""
    if completion.scoring is None:
        return
    watch.await_scores(completion.scoring)
    completion.note_scores()
    service.metrics.scored.labels(completion.model.name).inc(completion.num_scored)


def _whole(completion: OpenAICompletion, watch: Watch) -> Response:
    watch.await_end(completion.generation)
    completion.generation.raise_for_failure()
    return json_response(completion.answer())


def _stream(service: Service, exchange: Exchange, completion: OpenAICompletion, watch: Watch) -> Response:
    """Wait for the first token before the head is sent, so that what fails until then has its own status."""
    watch.await_news(completion.generation, PING_SECONDS)
    completion.generation.raise_for_failure()

    def noted(error: MeariError) -> object:
        exchange.note_error(error)
        return openai_error_body(error)

    events = exchange.stream(event_stream(completion, watch, service.streams, noted))
    return Response(events, mimetype="text/event-stream", headers=STREAM_HEADERS)


def _card(model: LoadedModel) -> ModelCard:
    """`created` is when the bundle was written."""
    return ModelCard(model.name, model.written_at)
