"""POST /complete: the likeliest ways to go on from a text that somebody is typing, to the end of a word."""

from __future__ import annotations

from flask import Blueprint, Response

from meari.runtime.word_completion import BYTES_PER_CHAR, begin_word_completion
from meari.service.routes.exchange import current_exchange, json_response
from meari.service.service import Service

__all__ = ["complete_blueprint"]


def complete_blueprint(service: Service) -> Blueprint:
    """Make the route over the parts of `service`."""
    blueprint = Blueprint("complete", __name__)

    @blueprint.post("/complete")
    def complete() -> Response:
        exchange = current_exchange()
        request, model = exchange.accept(service.schemas.complete)
        exchange.hold_texts("text", [request.text], BYTES_PER_CHAR)
        deadline = exchange.deadline(service.settings.max_timeout_seconds)
        completion = begin_word_completion(request, model, exchange.ticket, deadline)
        exchange.note_work(completion.work)
        exchange.watch(completion.handle, model).await_scores(completion.handle)
        return json_response(completion.answer())

    return blueprint
