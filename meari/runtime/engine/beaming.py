"""Beam search in the batch: hypotheses as rows. The search itself is in beams.py. Owned by the engine's thread."""

from __future__ import annotations

import logging
from collections.abc import Callable
from collections.abc import Sequence as SequenceOf
from dataclasses import replace

from meari.errors import MAY_QUOTE, EngineFailed
from meari.runtime.engine.beams import BeamSearch
from meari.runtime.engine.calls import Finish, Generation, StateValue, sample_seed
from meari.runtime.engine.outcome import Outcome
from meari.runtime.engine.runs import Floats
from meari.runtime.engine.scheduler import Request
from meari.runtime.engine.sequence import Sequence, StateRow

log = logging.getLogger(__name__)


def begin_beams(root: Sequence, rows: StateRow, logprobs: Floats, outcome: Outcome) -> None:
    """From a prompt that has been read to the first hypotheses, which wait for rows.

    rows      the state after the prompt
    logprobs  float32 [1, vocabulary_size]
    """
    for _, sequence in advance_beams([root], logprobs, lambda _: rows, outcome):
        sequence.state = rows
        outcome.continuing.append(sequence)


def advance_beams(
    parents: list[Sequence], logprobs: Floats, copy_state: Callable[[int], StateRow], outcome: Outcome
) -> list[tuple[int, Sequence]]:
    """One step of a search.

    parents     its live hypotheses, in the search's order
    logprobs    float32 [parents, vocabulary_size]
    copy_state  of a parent by number
    returns     the hypotheses that go on, each with the number of its parent
    """
    request = parents[0].request
    search = _search(request)
    outcome.news.add(request.handle)
    try:
        going = search.advance(logprobs)
    except Exception as error:  # a caller's matcher must not hurt other requests
        log.exception("a stop matcher failed", extra=MAY_QUOTE)
        _fail(request, EngineFailed(f"the stop matcher failed: {type(error).__name__}"))
        outcome.ended.append(parents[0])
        return []
    outcome.searched += len(going)
    for parent, hypothesis in search.just_finished if request.want_state else ():
        hypothesis.state = _state(parents[parent], hypothesis.token_ids, copy_state(parent))
    if not going:
        finish_beams(request, Finish.LENGTH)
        outcome.ended.append(parents[0])
    rows = []
    for parent, token in going:
        rows.append((parent, replace(parents[parent], next_token=token, state=None, hidden=None)))
    return rows


def note_live_states(request: Request, stands: SequenceOf[tuple[Sequence, Callable[[], StateRow]]]) -> None:
    """Let the live hypotheses have the states where they stand: each has a row, and the state before its last token."""
    for hypothesis, (sequence, copy_rows) in zip(_search(request).live, stands, strict=False):
        hypothesis.state = _state(sequence, hypothesis.token_ids, copy_rows())


def finish_beams(request: Request, unfinished: Finish) -> None:
    """Make the best hypotheses the samples of the request; `unfinished` is why those that still run end."""
    handle = request.handle
    assert isinstance(handle, Generation)
    found = _search(request).results(unfinished)
    for rank, (sample, hypothesis) in enumerate(zip(handle.samples, found, strict=False)):
        sample.alternatives.extend(hypothesis.alternatives)
        sample.logprobs.extend(hypothesis.logprobs)
        sample.token_ids.extend(hypothesis.token_ids)  # after their figures: who sees a token looks for these
        if (state := hypothesis.state) is not None:
            sample.state = replace(state, seed=sample_seed(sample.seed, state.position, rank))
        sample.finish = hypothesis.finish  # last: who sees it sees all the rest


def num_written(request: Request) -> int:
    """Tokens of the samples, once the best hypotheses have become those."""
    handle = request.handle
    assert isinstance(handle, Generation)
    return sum(len(sample.token_ids) for sample in handle.samples)


def _fail(request: Request, failure: EngineFailed) -> None:
    handle = request.handle
    assert isinstance(handle, Generation)
    handle.failure = failure
    for sample in handle.samples:
        sample.finish = Finish.FAILED


def _search(request: Request) -> BeamSearch:
    assert request.beams is not None
    return request.beams


def _state(parent: Sequence, token_ids: SequenceOf[int], rows: StateRow) -> StateValue:
    start = parent.start
    before = start.seen if start is not None else frozenset[int]()
    return StateValue(
        rows=rows,
        token=token_ids[-1],
        position=parent.position,
        seen=before.union(parent.forced[1:], token_ids),
        generated=StateValue.counted(start, token_ids),
    )
