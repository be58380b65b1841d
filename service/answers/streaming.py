"""A running completion → server-sent events, as bytes.

An event carries the text since the last event of its choice. A lone stream gets each token when it is there; beside
others, tokens that come faster than events are worth their cost go out together, and none waits over 50 ms. Knows
nothing of Flask.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from typing import Final

import msgspec

from service.answers.bodies import Choice
from service.answers.completion import Completion
from service.errors import EngineFailed, MeariError
from service.process.client import ClientGone
from service.process.watch import Watch

__all__ = ["PING_SECONDS", "event_stream"]

PING_SECONDS: Final = 5.0  # of silence, then a comment keeps the connection alive
EVENTS_PER_SECOND: Final = 800.0  # of a worker, all streams together: about a twentieth of a CPU
MAX_PAUSE_SECONDS: Final = 0.04  # and then a thread has to be woken, and an event written
PING: Final = b": ping\n\n"
DONE: Final = b"data: [DONE]\n\n"

log = logging.getLogger(__name__)
ErrorBody = Callable[[MeariError], object]
_encode: Final = msgspec.json.Encoder().encode


def event_stream(completion: Completion, watch: Watch, streams: set[object], error_body: ErrorBody) -> Iterator[bytes]:
    """Pieces of the stream, up to `[DONE]` or an error; closed early, it cancels the completion.

    `streams` holds all that are open in this worker, this one among them while it lasts.
    """
    generation = completion.generation
    streams.add(completion)
    try:
        yield from _choices(completion, watch, streams)
    except ClientGone:
        log.debug("the client of a stream has gone")
    except MeariError as error:
        yield _event(error_body(error))
    except Exception:
        log.exception("a stream failed")
        yield _event(error_body(EngineFailed("the stream failed")))
    finally:
        streams.discard(completion)
        if not generation.ended:
            generation.cancel()


def _choices(completion: Completion, watch: Watch, streams: set[object]) -> Iterator[bytes]:
    generation = completion.generation
    while True:
        generation.raise_for_failure()
        choices = list(completion.news())
        events = b"".join(_event({"choices": [choice]}) for choice in choices)
        if completion.done:
            yield events + _event(completion.answer([])) + DONE
            return
        if events:
            yield events
            watch.end_if_draining(generation)
        generation.wait_end(pause_seconds(len(choices), len(streams)))
        if not watch.await_news(generation, PING_SECONDS):
            yield PING


def pause_seconds(num_choices: int, num_streams: int) -> float:
    """How long a stream waits after an event for `num_choices` choices, where `num_streams` are open."""
    if num_choices * num_streams <= 1:
        return 0.0
    return min(MAX_PAUSE_SECONDS, num_choices * num_streams / EVENTS_PER_SECOND)


def _event(body: object | Choice) -> bytes:
    return b"data: %b\n\n" % _encode(body)
