"""What came of a turn of the engine's loop, and what both kinds of turns have in common."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from meari.errors import MAY_QUOTE, EngineFailed
from meari.runtime.engine.calls import Finish, Handle, StateValue
from meari.runtime.engine.ranking import likeliest
from meari.runtime.engine.runs import Floats
from meari.runtime.engine.sampling import on_grid
from meari.runtime.engine.sequence import Sequence, StateRow

log = logging.getLogger(__name__)


@dataclass
class Outcome:
    """Of one turn.

    rows          tokens fed
    output_rows   distributions computed
    sampled       tokens added to samples
    searched      tokens added to hypotheses of beam searches
    forked        sequences that wait for a row, with forced tokens to feed
    continuing    sequences whose prompt is read, with a token to feed
    ended         sequences that are done
    news          handles to which something was added
    """

    rows: int = 0
    output_rows: int = 0
    sampled: int = 0
    searched: int = 0
    forked: list[Sequence] = field(default_factory=list)
    continuing: list[Sequence] = field(default_factory=list)
    ended: list[Sequence] = field(default_factory=list)
    news: set[Handle] = field(default_factory=set)


def take(sequence: Sequence, token: int, logprob: float, end_id: int, copy_rows: Callable[[], StateRow]) -> bool:
    """Add a sampled token to its sample; True when that is over. copy_rows: the state before the token."""
    continuation = sequence.continuation
    assert continuation is not None
    sequence.next_token = token
    try:
        finish = continuation.take(token, logprob, end_id)
    except Exception as error:  # a caller's matcher must not hurt other requests
        log.exception("a stop matcher failed", extra=MAY_QUOTE)
        finish = Finish.FAILED
        sequence.request.handle.failure = EngineFailed(f"the stop matcher failed: {type(error).__name__}")
    if finish is not None:
        note_state(sequence, copy_rows)
        continuation.sample.finish = finish  # last: who sees it sees all the rest
    return finish is not None


def note_state(sequence: Sequence, copy_rows: Callable[[], StateRow]) -> None:
    """Give a sample, if that is wanted, the state where it stands: before its last token, which is pending."""
    continuation = sequence.continuation
    if continuation is None or not continuation.want_state or not continuation.sample.token_ids:
        return
    start = sequence.start
    before = start.seen if start is not None else frozenset[int]()
    token_ids = continuation.sample.token_ids
    continuation.sample.state = StateValue(
        rows=copy_rows(),
        token=token_ids[-1],
        position=sequence.position,
        seed=continuation.sampler.seed,
        seen=before.union(sequence.forced[1:], token_ids),
        generated=StateValue.counted(start, token_ids),
    )


def alternatives(logprobs: Floats, count: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
    """The likeliest tokens of one row, float32 [1, vocabulary_size], and their log-probabilities."""
    if count == 0:
        return np.empty(0, np.int64), np.empty(0)
    ids = likeliest(logprobs, count)[0]
    return ids, on_grid(logprobs[0, ids])


def note_alternatives(sequence: Sequence, logprobs: Floats) -> None:
    """Add to a sample what else its token could have been. logprobs: float32 [1, vocabulary_size]."""
    continuation = sequence.continuation
    assert continuation is not None
    assert continuation.num_alternatives is not None
    ids, best = alternatives(logprobs, continuation.num_alternatives)
    continuation.sample.alternatives.append((ids.tolist(), best.tolist()))
