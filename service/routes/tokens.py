"""A look inside a model: POST /tokenize and /detokenize, text ↔ tokens; POST /states, the state after each token.

/states is for looking at short texts and is no part of the contract.
"""

from __future__ import annotations

from flask import Blueprint, Response

from meari.errors import InvalidRequest, Problem
from meari.runtime.answers import Work, token_texts
from meari.runtime.engine import Scoring
from meari.runtime.model import LoadedModel
from meari.runtime.requests import checked_ids
from meari.runtime.states import MAX_CHARS, MAX_TOKENS, states_answer, states_bytes, states_call
from meari.runtime.text.detokenizer import detokenize, partial_bytes
from meari.service.requests.schema import StatesRequest
from meari.service.routes.exchange import Exchange, current_exchange, json_response
from meari.service.service import Service

__all__ = ["states_blueprint", "tokenize_blueprint"]

BYTES_PER_TOKEN = 250  # of a text whose tokens are written
BYTES_PER_BYTE = 20  # of a text that is written: its characters, and a list of bytes where it has parts of characters


def tokenize_blueprint(service: Service) -> Blueprint:
    """Make the routes over the parts of `service`."""
    blueprint = Blueprint("tokenize", __name__)

    @blueprint.post("/tokenize")
    def tokenize() -> Response:
        exchange = current_exchange()
        request, model = exchange.accept(service.schemas.tokenize)
        held = exchange.hold_texts("text", [request.text], BYTES_PER_TOKEN)
        tokenizing_bytes = max(0, model.tokenizer.tokenizing_bytes(request.text) - held)  # they come later
        exchange.ticket.take_bytes(tokenizing_bytes)
        ids = model.tokenizer.encode(request.text)
        exchange.ticket.take_bytes(min(0, len(ids) * BYTES_PER_TOKEN - held) - tokenizing_bytes)
        exchange.ticket.take_tokens(len(ids))
        tokens = token_texts(model.tokenizer.vocabulary, ids)
        exchange.note_work(lambda: Work(len(tokens), prompts=(request.text,)))
        return json_response({"model": model.name, "tokens": tokens})

    @blueprint.post("/detokenize")
    def detokenize_tokens() -> Response:
        exchange = current_exchange()
        request, model = exchange.accept(service.schemas.detokenize)
        vocabulary = model.tokenizer.vocabulary
        exchange.ticket.take_tokens(len(request.tokens))
        ids = checked_ids(request.ids, vocabulary.size)
        exchange.ticket.take_bytes(BYTES_PER_BYTE * sum(len(vocabulary.pieces[token]) for token in ids))
        text, part = detokenize(vocabulary, ids), partial_bytes(vocabulary, ids)
        exchange.note_work(lambda: Work(len(request.tokens), answers=(text,)))
        return json_response({"model": model.name, "text": text, **({} if part is None else {"bytes": part})})

    return blueprint


def states_blueprint(service: Service) -> Blueprint:
    """Make the route over the parts of `service`."""
    blueprint = Blueprint("states", __name__)

    @blueprint.post("/states")
    def states() -> Response:
        exchange = current_exchange()
        request, model = exchange.accept(service.schemas.states)
        exchange.hold_texts("text", [request.text], 0, MAX_CHARS)
        deadline = exchange.deadline(service.settings.max_timeout_seconds)
        ids, scoring = _begin(request, model, exchange, deadline)
        exchange.watch(scoring, model).await_scores(scoring)
        units, with_gates = request.units, request.gates
        return json_response(states_answer(model.name, model.bundle, ids, scoring, units, with_gates=with_gates))

    return blueprint


def _begin(
    request: StatesRequest, model: LoadedModel, exchange: Exchange, deadline: float
) -> tuple[list[int], Scoring]:
    """Queue the text. Raises InvalidRequest, Overloaded, NotReady."""
    with model.engine.reserve(exchange.ticket.share) as reservation:
        ids = model.tokenizer.encode(request.text)
        if len(ids) > MAX_TOKENS:
            raise InvalidRequest(Problem("text", f"{len(ids)} tokens", f"at most {MAX_TOKENS}"))
        exchange.ticket.take_tokens(len(ids))
        exchange.ticket.take_bytes(states_bytes(len(ids), model.bundle, request.units, with_gates=request.gates))
        scoring = model.engine.score(states_call(ids, model.tokenizer.vocabulary.end_id, deadline), reservation)
        scoring.num_prompt_tokens, scoring.num_texts = len(ids), 1  # the prefixes that it scores are one text
    exchange.note_work(lambda: Work(len(ids), scoring.cached_tokens, prompts=(request.text,)))
    return ids, scoring
