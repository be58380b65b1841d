"""POST /tokenize and POST /detokenize: text ↔ the model's own tokens."""

from __future__ import annotations

from flask import Blueprint, Response

from meari.runtime.answers import Work
from meari.runtime.requests import check_num_chars, checked_ids
from meari.runtime.scores import token_texts
from meari.runtime.text.detokenizer import detokenize, partial_bytes
from meari.service.routes.exchange import current_exchange, json_response
from meari.service.service import Service

__all__ = ["tokenize_blueprint"]

BYTES_PER_CHAR = 250  # of a text while it is tokenized and its tokens are written


def tokenize_blueprint(service: Service) -> Blueprint:
    """The routes, over the parts of `service`."""
    blueprint = Blueprint("tokenize", __name__)

    @blueprint.post("/tokenize")
    def tokenize() -> Response:
        exchange = current_exchange()
        request = service.schemas.tokenize(exchange.read_body())
        exchange.note_request(request)
        model = exchange.use_model(service.registry.get(request.model))
        check_num_chars("text", [request.text], service.settings.max_text_chars)
        exchange.ticket.take_bytes(len(request.text) * BYTES_PER_CHAR)
        tokens = token_texts(model.tokenizer.vocabulary, model.tokenizer.encode(request.text))
        exchange.note_work(lambda: Work(len(tokens), prompts=(request.text,)))
        return json_response({"model": model.name, "tokens": tokens})

    @blueprint.post("/detokenize")
    def detokenize_tokens() -> Response:
        exchange = current_exchange()
        request = service.schemas.detokenize(exchange.read_body())
        exchange.note_request(request)
        model = exchange.use_model(service.registry.get(request.model))
        vocabulary = model.tokenizer.vocabulary
        ids = checked_ids(request.ids, vocabulary.size)
        text, part = detokenize(vocabulary, ids), partial_bytes(vocabulary, ids)
        exchange.note_work(lambda: Work(len(request.tokens), answers=(text,)))
        return json_response({"model": model.name, "text": text, **({} if part is None else {"bytes": part})})

    return blueprint
