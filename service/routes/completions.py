"""POST /generate and POST /v1/completions: text that continues prompts, whole or as server-sent events.

Input: a request of either shape. Output: a response. Must not know: the shape of a body, but for the error in a stream.

An event carries the text since the last event of its choice. A lone stream gets each token when it is there; beside
others, tokens that come faster than events are worth their cost go out together, and none waits over 50 ms.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Final, Protocol

import msgspec
from flask import Blueprint, Response
from msgspec import UNSET

from meari.errors import MAY_QUOTE, EngineFailed, MeariError
from meari.runtime.completion import begin_completion
from meari.runtime.engine import Waitable
from meari.runtime.requests import stop_strings
from meari.service.clients import PING, ClientGone, Watch
from meari.service.error_body import error_body, openai_error_body
from meari.service.openai.completion import OpenAICompletion, begin_openai_completion
from meari.service.requests.completions import prompts_of
from meari.service.routes.exchange import Exchange, current_exchange, json_response
from meari.service.service import Service

__all__ = ["RunningCompletion", "generate_blueprint", "openai_blueprint", "respond"]

PROMPT_BYTES_PER_CHAR = 100  # of a prompt while it is tokenized
STOP_BYTES_PER_CHAR = 12  # of a stop string in its normal form, with the table of its search
PING_SECONDS: Final = 5.0  # of silence, then a comment keeps the connection alive
EVENTS_PER_SECOND: Final = 800.0  # of a worker, all streams together: about a twentieth of a CPU
MAX_PAUSE_SECONDS: Final = 0.04  # and then a thread has to be woken, and an event written
DONE: Final = b"data: [DONE]\n\n"
STREAM_HEADERS: Final = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
log = logging.getLogger("meari.service.routes.streaming")  # as operators know it
ErrorBody = Callable[[MeariError], object]
_encode: Final = msgspec.json.Encoder().encode


def generate_blueprint(service: Service) -> Blueprint:
    """Make the route of /generate over the parts of `service`."""
    blueprint = Blueprint("generate", __name__)

    @blueprint.post("/generate")
    def generate() -> Response:
        exchange = current_exchange()
        request, model = exchange.accept(service.schemas.generate)
        exchange.line.stream = request.stream
        exchange.hold_texts("prompt", [request.prompt], PROMPT_BYTES_PER_CHAR)
        exchange.hold_texts("stop", request.stops, STOP_BYTES_PER_CHAR)
        seconds = service.settings.max_timeout_seconds if request.timeout_seconds is UNSET else request.timeout_seconds
        deadline = exchange.deadline(seconds)
        state_tokens = service.state_tokens(model.bundle)
        completion = begin_completion(request, model, exchange.ticket, deadline, state_tokens, exchange.kept_chars)
        exchange.note_work(completion.work)
        watch = exchange.watch(completion.generation, model)
        return respond(completion, exchange, watch, lambda error: error_body(error, exchange.request_id))

    return blueprint


def openai_blueprint(service: Service) -> Blueprint:
    """Make the route of /v1/completions over the parts of `service`."""
    blueprint = Blueprint("openai", __name__)

    @blueprint.post("/v1/completions")
    def completions() -> Response:
        exchange = current_exchange()
        request, model = exchange.accept(service.schemas.completions)
        exchange.line.stream = bool(request.stream)
        exchange.hold_texts("prompt", prompts_of(request), 0)  # the completion takes the memory
        exchange.hold_texts("stop", stop_strings(request.stop), STOP_BYTES_PER_CHAR)
        deadline = exchange.deadline(service.settings.max_timeout_seconds)
        answer_id = f"cmpl-{exchange.request_id}"
        completion = begin_openai_completion(
            request, model, exchange.ticket, deadline, answer_id, int(time.time()), exchange.kept_chars
        )
        exchange.note_work(completion.work)
        watch = exchange.watch(completion.generation, model)
        _await_scores(service, completion, watch)
        return respond(completion, exchange, watch, openai_error_body)

    return blueprint


def _await_scores(service: Service, completion: OpenAICompletion, watch: Watch) -> None:
    """Wait for the prompts' figures, which come first. Raises ScoreTimeout, NotReady, EngineFailed, ClientGone."""
    if completion.scoring is None:
        return
    watch.await_scores(completion.scoring)
    completion.note_scores()
    service.metrics.scored.labels(completion.model.name).inc(completion.num_scored)


class RunningCompletion(Protocol):
    """A completion of one call of the engine, or of several."""

    @property
    def generation(self) -> Waitable: ...
    @property
    def done(self) -> bool:
        """True once everything but the last events has been given out."""
        ...

    def answer(self) -> object:
        """Return the body of the whole answer, once the generation has ended."""
        ...

    def events(self) -> Sequence[object]:
        """Return bodies of events for the text since the last call."""
        ...

    def last_events(self) -> Sequence[object]:
        """Return bodies of the events that end the stream."""
        ...


def respond(completion: RunningCompletion, exchange: Exchange, watch: Watch, error_body: ErrorBody) -> Response:
    """Answer whole or as a stream, as the request asks.

    A stream waits for the first token before its head is sent, so that an error until then has its own status.
    error_body  the body of an error in the middle of a stream
    """
    generation = completion.generation
    if not exchange.line.stream:
        watch.await_end(generation)
        generation.raise_for_failure()
        return json_response(completion.answer())
    watch.await_news(generation, PING_SECONDS)
    generation.raise_for_failure()

    def noted(error: MeariError) -> object:
        exchange.note_error(error)
        return error_body(error)

    events = exchange.stream(event_stream(completion, watch, exchange.open_streams, noted))
    return Response(events, mimetype="text/event-stream", headers=STREAM_HEADERS)


def event_stream(
    completion: RunningCompletion, watch: Watch, streams: set[object], error_body: ErrorBody
) -> Iterator[bytes]:
    """Yield pieces of the stream, up to `[DONE]` or an error; closed early, it cancels the completion.

    Raises ClientGone.
    streams  open in this worker; this one is among them while it lasts
    """
    generation = completion.generation
    streams.add(completion)
    try:
        yield from _choices(completion, watch, streams)
    except ClientGone:
        raise
    except MeariError as error:
        yield _event(error_body(error))
    except GeneratorExit:
        raise
    except BaseException:  # a panic of Rust code is no Exception
        log.exception("a stream failed", extra=MAY_QUOTE)
        yield _event(error_body(EngineFailed("the stream failed")))
    finally:
        streams.discard(completion)
        if not generation.ended:
            generation.cancel()


def _choices(completion: RunningCompletion, watch: Watch, streams: set[object]) -> Iterator[bytes]:
    generation = completion.generation
    while True:
        generation.raise_for_failure()
        bodies = completion.events()
        events = b"".join(map(_event, bodies))
        if completion.done:
            yield events + b"".join(map(_event, completion.last_events())) + DONE
            return
        if events:
            yield events
            watch.end_if_draining(generation)
        generation.wait_end(pause_seconds(len(bodies), len(streams)))
        if not watch.await_news(generation, PING_SECONDS):
            yield PING


def pause_seconds(num_choices: int, num_streams: int) -> float:
    """Return how long a stream waits after an event for `num_choices` choices while `num_streams` are open."""
    if num_choices * num_streams <= 1:
        return 0.0
    return min(MAX_PAUSE_SECONDS, num_choices * num_streams / EVENTS_PER_SECOND)


def _event(body: object) -> bytes:
    return b"data: %b\n\n" % _encode(body)
