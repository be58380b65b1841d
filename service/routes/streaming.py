"""A running completion → its answer, whole or as server-sent events.

Input: a completion of either route. Output: a response. Must not know: the shape of a body.

An event carries the text since the last event of its choice. A lone stream gets each token when it is there; beside
others, tokens that come faster than events are worth their cost go out together, and none waits over 50 ms.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from typing import Final, Protocol

import msgspec
from flask import Response

from meari.errors import MAY_QUOTE, EngineFailed, MeariError
from meari.runtime.engine import Waitable
from meari.service.connection import ClientGone
from meari.service.routes.exchange import Exchange, json_response
from meari.service.watch import Watch

__all__ = ["RunningCompletion", "respond"]

PING_SECONDS: Final = 5.0  # of silence, then a comment keeps the connection alive
EVENTS_PER_SECOND: Final = 800.0  # of a worker, all streams together: about a twentieth of a CPU
MAX_PAUSE_SECONDS: Final = 0.04  # and then a thread has to be woken, and an event written
PING: Final = b": ping\n\n"
DONE: Final = b"data: [DONE]\n\n"
STREAM_HEADERS: Final = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}

log = logging.getLogger(__name__)
ErrorBody = Callable[[MeariError], object]
_encode: Final = msgspec.json.Encoder().encode


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
    except Exception:
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
