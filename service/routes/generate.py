"""POST /generate: text that continues a prompt, whole or as a stream."""

from __future__ import annotations

from flask import Blueprint, Response
from msgspec import UNSET

from meari.runtime.completion import begin_completion
from meari.service.error_body import error_body
from meari.service.routes.exchange import current_exchange
from meari.service.routes.streaming import respond
from meari.service.service import Service

__all__ = ["generate_blueprint"]

BYTES_PER_CHAR = 100  # of a prompt while it is tokenized


def generate_blueprint(service: Service) -> Blueprint:
    """The route, over the parts of `service`."""
    blueprint = Blueprint("generate", __name__)

    @blueprint.post("/generate")
    def generate() -> Response:
        exchange = current_exchange()
        request, model = exchange.accept(service.schemas.generate)
        exchange.line.stream = request.stream
        exchange.hold_texts("prompt", [request.prompt], BYTES_PER_CHAR)
        seconds = service.settings.max_timeout_seconds if request.timeout_seconds is UNSET else request.timeout_seconds
        deadline = model.engine.clock() + seconds
        state_tokens = service.state_tokens(model.bundle)
        completion = begin_completion(request, model, exchange.ticket, deadline, state_tokens, exchange.kept_chars)
        exchange.note_work(completion.work)
        watch = exchange.watch(completion.generation, model)
        return respond(completion, exchange, watch, lambda error: error_body(error, exchange.request_id))

    return blueprint
