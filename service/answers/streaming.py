"""A running completion → server-sent events, as bytes.

An event carries the text since the last event of its choice: tokens that come faster than events are worth their cost
go out together. Knows nothing of Flask.
"""

from __future__ import annotations

import logging
import time
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
EVENTS_PER_SECOND: Final = 2500.0  # of a worker, all streams together: about a tenth of a CPU
MAX_PAUSE_SECONDS: Final = 0.05
PING: Final = b": ping\n\n"
DONE: Final = b"data: [DONE]\n\n"

log = logging.getLogger(__name__)
ErrorBody = Callable[[MeariError], object]


def event_stream(
    completion: Completion, watch: Watch, num_requests: Callable[[], int], error_body: ErrorBody
) -> Iterator[bytes]:
    """Pieces of the stream, up to `[DONE]` or an error; closed early, it cancels the completion."""
    generation = completion.generation
    try:
        yield from _choices(completion, watch, num_requests)
        yield _event(completion.answer([])) + DONE
    except ClientGone:
        log.debug("the client of a stream has gone")
    except MeariError as error:
        yield _event(error_body(error))
    except Exception:
        log.exception("a stream failed")
        yield _event(error_body(EngineFailed("the stream failed")))
    finally:
        if not generation.ended:
            generation.cancel()


def _choices(completion: Completion, watch: Watch, num_requests: Callable[[], int]) -> Iterator[bytes]:
    generation = completion.generation
    while not completion.done:
        ended = generation.ended  # before the news: what ended holds everything
        generation.raise_for_failure()
        choices = list(completion.news())
        if choices:
            yield b"".join(_event({"choices": [choice]}) for choice in choices)
            watch.check(generation)
        if ended:
            continue
        if choices:
            time.sleep(min(MAX_PAUSE_SECONDS, num_requests() * len(choices) / EVENTS_PER_SECOND))
        if not watch.await_news(generation, PING_SECONDS):
            yield PING


def _event(body: object | Choice) -> bytes:
    return b"data: %b\n\n" % msgspec.json.encode(body)
