"""POST /score: how likely texts are."""

from __future__ import annotations

from flask import Blueprint, Response
from msgspec import UNSET

from meari.runtime.answers import Work
from meari.runtime.engine import ScoreCall, Scoring
from meari.runtime.model import LoadedModel
from meari.runtime.requests import ScoreRequest
from meari.runtime.scores import ScoreAnswer, ScoredText
from meari.runtime.state_tokens import StateTokens, TextState
from meari.runtime.text.detokenizer import NO_TEXT
from meari.runtime.text.tokenizer import Encoded
from meari.runtime.text.words import num_words, require_segmenter
from meari.service.routes.exchange import Exchange, current_exchange
from meari.service.service import Service

__all__ = ["score_blueprint"]

BYTES_PER_TOKEN = 100  # of a text: its ids and places, then its figures
BYTES_PER_ALTERNATIVE = 24  # kept, and once more in part while a turn hands them over
BYTES_PER_WORD = 800  # of the text whose words are written
BYTES_PER_TEXT = 6000  # of any length, beside the state at which it forks off another one
TOKENS_PER_CHAR = 4  # at most: bytes of UTF-8


def score_blueprint(service: Service) -> Blueprint:
    """The route, over the parts of `service`."""
    blueprint = Blueprint("score", __name__)

    @blueprint.post("/score")
    def score() -> Response:
        exchange = current_exchange()
        request, model = exchange.accept(service.schemas.score)
        if request.words == "unicode":
            require_segmenter()
        held = exchange.hold_texts("texts", [request.context, *request.all_texts], _bytes_per_token(request))
        exchange.ticket.take_bytes(len(request.all_texts) * (BYTES_PER_TEXT + model.bundle.runner.state_bytes))
        exchange.ticket.take_bytes(BYTES_PER_WORD * max(num_words(text, request.words) for text in request.all_texts))
        state_tokens = service.state_tokens(model.bundle)
        start = None if request.state is None else state_tokens.decode(request.state)
        if request.return_state:
            exchange.ticket.take_bytes(_state_bytes(request, start, state_tokens))
        deadline = exchange.deadline(service.settings.max_timeout_seconds)
        encoded, scoring, num_unknown = _begin(request, start, model, exchange, deadline, held)
        exchange.watch(scoring, model).await_scores(scoring)
        answer = ScoreAnswer(
            model.name,
            request.log_base,
            _scored_texts(request, start, model, encoded, scoring),
            request.tokens,
            bool(request.words),
            scoring.computed_tokens,
            scoring.cached_tokens,
            num_unknown,
            state_tokens if request.return_state else None,
        )
        service.metrics.scored.labels(model.name).inc(answer.scored_tokens)
        pieces = answer.pieces()
        body = exchange.stream(pieces) if answer.is_long else b"".join(pieces)
        return Response(body, mimetype="application/json")

    return blueprint


def _state_bytes(request: ScoreRequest, start: TextState | None, state_tokens: StateTokens) -> int:
    """Return the most bytes that the states after the texts may take."""
    before = TOKENS_PER_CHAR * len(request.context) if start is None else len(start.value.seen)
    return sum(state_tokens.memory_bytes(before + TOKENS_PER_CHAR * len(text)) for text in request.all_texts)


def _bytes_per_token(request: ScoreRequest) -> int:
    return BYTES_PER_TOKEN + BYTES_PER_ALTERNATIVE * request.top


def _begin(
    request: ScoreRequest, start: TextState | None, model: LoadedModel, exchange: Exchange, deadline: float, held: int
) -> tuple[list[Encoded], Scoring, int]:
    """Queue the texts; the number: of tokens that the model does not know. Raises RateLimited, Overloaded, NotReady.

    held  bytes that are held for as many tokens as the texts may have; of those, places take a half, figures the other
    """
    with model.engine.reserve(exchange.ticket.share) as reservation:
        tokenizing_bytes = max(map(model.tokenizer.tokenizing_bytes, [request.context, *request.all_texts]))
        tokenizing_bytes = max(0, tokenizing_bytes - held // 2)
        exchange.ticket.take_bytes(tokenizing_bytes)
        encoded = [model.tokenizer.encode_with_offsets(text) for text in request.all_texts]
        context = model.tokenizer.encode(request.context)
        num_tokens = len(context) + sum(len(text.ids) for text in encoded)
        exchange.ticket.take_bytes(min(0, num_tokens * _bytes_per_token(request) - held) - tokenizing_bytes)
        call = ScoreCall(
            context=context,
            texts=[text.ids for text in encoded],
            deadline=deadline,
            add_end=model.bundle.manifest.has_ends if request.add_end is UNSET else request.add_end,
            num_alternatives=request.top,
            want_ranks=request.tokens,
            start=None if start is None else start.value,
            want_state=request.return_state,
        )
        exchange.ticket.take_tokens(num_tokens)
        scoring = model.engine.score(call, reservation)
    texts = (request.context, *request.all_texts) if request.context else tuple(request.all_texts)
    exchange.note_work(lambda: _work(scoring, num_tokens, texts))
    num_unknown = sum(map(model.tokenizer.vocabulary.num_unknown, (call.context, *call.texts)))
    return encoded, scoring, num_unknown


def _work(scoring: Scoring, num_tokens: int, texts: tuple[str, ...]) -> Work:
    """For the log; num_tokens: in the context and the texts."""
    scored = sum(len(result.logprobs) for result in scoring.results)
    return Work(num_tokens, scoring.cached_tokens, scored_tokens=scored, prompts=texts)


def _scored_texts(
    request: ScoreRequest, start: TextState | None, model: LoadedModel, encoded: list[Encoded], scoring: Scoring
) -> list[ScoredText]:
    vocabulary = model.tokenizer.vocabulary
    before = (NO_TEXT if start is None else start.text_end).then(request.context)
    is_seeded = start is not None and start.is_seeded
    return [
        ScoredText(
            text,
            scores,
            vocabulary,
            request.log_base,
            None if scores.state is None else TextState(scores.state, before.then(text.text), is_seeded),
            request.words,
        )
        for text, scores in zip(encoded, scoring.results, strict=True)
    ]
