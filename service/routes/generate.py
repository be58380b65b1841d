"""POST /generate: text that continues a prompt, whole or as a stream."""

from __future__ import annotations

from flask import Blueprint, Response
from msgspec import UNSET

from meari.errors import MeariError
from meari.runtime.completion import Completion, begin_completion
from meari.runtime.requests import check_num_chars
from meari.service.error_body import error_body
from meari.service.routes.exchange import Exchange, current_exchange, json_response
from meari.service.routes.streaming import PING_SECONDS, event_stream
from meari.service.service import Service
from meari.service.watch import Watch

__all__ = ["generate_blueprint"]

BYTES_PER_CHAR = 100  # of a prompt while it is tokenized
STREAM_HEADERS = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}


def generate_blueprint(service: Service) -> Blueprint:
    """The route, over the parts of `service`."""
    blueprint = Blueprint("generate", __name__)

    @blueprint.post("/generate")
    def generate() -> Response:
        exchange = current_exchange()
        request = service.schemas.generate(exchange.read_body())
        exchange.note_request(request)
        exchange.line.stream = request.stream
        model = exchange.use_model(service.registry.get(request.model))
        check_num_chars("prompt", [request.prompt], service.settings.max_text_chars)
        exchange.ticket.take_bytes(len(request.prompt) * BYTES_PER_CHAR)
        seconds = service.settings.max_timeout_seconds if request.timeout_seconds is UNSET else request.timeout_seconds
        state_tokens = service.state_tokens(model.bundle)
        deadline = model.engine.clock() + seconds
        completion = begin_completion(request, model, exchange.ticket, deadline, state_tokens, exchange.kept_chars)
        exchange.note_work(completion.work)
        watch = exchange.watch(completion.generation, model)
        return _stream(service, exchange, completion, watch) if request.stream else _whole(completion, watch)

    return blueprint


def _whole(completion: Completion, watch: Watch) -> Response:
    watch.await_end(completion.generation)
    completion.generation.raise_for_failure()
    answer = completion.answer(list(completion.news()))
    answer.usage.generated_tokens = completion.generated_tokens
    return json_response(answer)


def _stream(service: Service, exchange: Exchange, completion: Completion, watch: Watch) -> Response:
    """Wait for the first token before the head is sent, so that what fails until then has its own status."""
    watch.await_news(completion.generation, PING_SECONDS)
    completion.generation.raise_for_failure()

    def noted(error: MeariError) -> object:
        exchange.note_error(error)
        return error_body(error, exchange.request_id)

    events = exchange.stream(event_stream(completion, watch, service.streams, noted))
    return Response(events, mimetype="text/event-stream", headers=STREAM_HEADERS)
