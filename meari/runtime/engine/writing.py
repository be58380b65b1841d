"""A writing turn: sampled tokens, one or some, for every sequence that has read its prompt.

    newcomers   their state came from the cache with the hidden vector, so the first token needs no step of the cell
    joining     they have a token to feed and wait for a row, which they get at the next turn
    batch       one row each

Owned by the engine's thread.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Final

import numpy as np

from meari.runtime.engine.batch import Batch
from meari.runtime.engine.beaming import advance_beams, begin_beams, note_live_states
from meari.runtime.engine.calls import Handle
from meari.runtime.engine.draws import Draws
from meari.runtime.engine.outcome import Outcome, note_alternatives, note_state, take
from meari.runtime.engine.runner import Runner
from meari.runtime.engine.runs import Asked, Floats, Ran, States
from meari.runtime.engine.sampling import Sampler, on_grid
from meari.runtime.engine.scheduler import Request
from meari.runtime.engine.sequence import Sequence, StateRow

MOST_IN_VAIN: Final = 0.04  # of the tokens of a turn, those that are past the end of what they belong to


class Writing:
    """The sequences that write, and a turn of them. Callable once a turn."""

    def __init__(self, runner: Runner, clock: Callable[[], float]) -> None:
        self._runner = runner
        self._clock = clock
        self.batch = Batch(runner)
        self.newcomers: list[Sequence] = []
        self.joining: list[Sequence] = []
        self._draws = Draws([], runner.sorts)
        self._places = np.arange(0)
        self._drawn_for: list[Sequence] | None = None

    def __len__(self) -> int:
        return len(self.batch) + len(self.newcomers) + len(self.joining)

    def drop(self, keeps: Callable[[Sequence], bool]) -> None:
        """Forget the sequences that `keeps` says no to."""
        self.batch.keep([row for row, sequence in enumerate(self.batch.sequences) if keeps(sequence)])
        self.newcomers = [sequence for sequence in self.newcomers if keeps(sequence)]
        self.joining = [sequence for sequence in self.joining if keeps(sequence)]

    def note_states(self, request: Request) -> None:
        """Let the samples of a request that is ended before its time have the states where they stand."""
        if not request.want_state:
            return
        stands = [(s, partial(self.batch.copy_row, row)) for row, s in enumerate(self.batch.sequences)]
        stands += [(sequence, partial(_rows, sequence)) for sequence in self.joining]
        own = [(sequence, copy_rows) for sequence, copy_rows in stands if sequence.request is request]
        if request.beams is not None:
            note_live_states(request, own)
            return
        for sequence, copy_rows in own:
            note_state(sequence, copy_rows)

    def __call__(self, most_steps: int) -> Outcome:
        """Feed each sequence its token and take the next one; up to `most_steps` times where the graph can do so."""
        self.batch.join(self.joining)
        newcomers, self.newcomers, self.joining = self.newcomers, [], []
        sequences = self.batch.sequences
        if newcomers or self._drawn_for is not sequences or self._draws.is_stale:
            self._prepare(sequences, newcomers)
        if self._draws.may_write and not newcomers:
            return self._write(most_steps)
        asked = self._draws.asked(self._places)
        ran = self._run(sequences, newcomers, asked)
        outcome = Outcome(len(sequences), len(self._places))
        tokens, values = self._draws.choose(ran)
        now = self._clock()
        for number, sequence in enumerate(newcomers, len(sequences)):
            handle = sequence.request.handle
            handle.first_token_at = now if handle.first_token_at is None else handle.first_token_at
            rows = sequence.state
            assert rows is not None
            logprobs = None if ran.logprobs is None else ran.logprobs[number : number + 1]
            begin_sample(sequence, rows, (tokens[number], values[number]), logprobs, self._runner.end_id, outcome)
        self._advance(ran, tokens, values, outcome)
        return outcome

    def _write(self, most_steps: int) -> Outcome:
        """Some tokens for every row; what a row would have written past its end is thrown away."""
        batch, end_id = self.batch, self._runner.end_id
        left = [c.num_left for s in batch.sequences if (c := s.continuation) is not None]
        steps = useful_steps(left, min(most_steps, self._draws.most_steps))
        tokens = np.array([sequence.next_token for sequence in batch.sequences], np.int64)
        ran = self._runner.write(tokens, batch.states, self._draws.written(steps))
        assert ran.picked is not None
        assert ran.picked_logprobs is not None
        outcome = Outcome(steps * len(batch), steps * len(batch))
        keep = []
        columns = zip(ran.picked.T.tolist(), on_grid(ran.picked_logprobs).T.tolist(), strict=True)
        for row, (sequence, (written, values)) in enumerate(zip(batch.sequences, columns, strict=True)):
            outcome.news.add(sequence.request.handle)
            continuation = sequence.continuation
            assert continuation is not None
            if continuation.take_all(written, values, end_id):
                sequence.next_token = written[-1]
                sequence.fed += steps
                outcome.sampled += steps
                keep.append(row)
            elif self._take_each(sequence, written, values, partial(row_after, ran, row=row), outcome):
                keep.append(row)
        batch.states = {name: values[-1] for name, values in ran.states.items()}
        batch.keep(keep)
        return outcome

    def _take_each(
        self,
        sequence: Sequence,
        tokens: list[int],
        values: list[float],
        state_after: Callable[[int], StateRow],
        outcome: Outcome,
    ) -> bool:
        """Add one token after another; False when one of them was the last."""
        for step, (token, value) in enumerate(zip(tokens, values, strict=True)):
            sequence.fed += 1
            outcome.sampled += 1
            if take(sequence, token, value, self._runner.end_id, partial(state_after, step)):
                outcome.ended.append(sequence)
                return False
        return True

    def _prepare(self, sequences: list[Sequence], newcomers: list[Sequence]) -> None:
        everyone = [*sequences, *newcomers]
        self._draws = Draws(
            [sampler_of(s) for s in everyone], self._runner.sorts, whole=any(map(wants_whole, everyone))
        )
        self._places = np.arange(len(everyone)) + (0 if sequences else 1)  # a run has a row at least
        self._drawn_for = None if newcomers else sequences

    def _run(self, sequences: list[Sequence], newcomers: list[Sequence], asked: Asked) -> Ran:
        tokens = np.array([[sequence.next_token for sequence in sequences] or [0]], np.int64)
        states = self.batch.states if sequences else self._runner.initial_states(1)
        more = np.stack([s.hidden for s in newcomers if s.hidden is not None]) if newcomers else None
        ran = self._runner.run(tokens, states, asked, more_hidden=more)
        if sequences:
            self.batch.states = {name: values[0] for name, values in ran.states.items()}
        return ran

    def _advance(self, ran: Ran, tokens: list[int], values: list[float], outcome: Outcome) -> None:
        """Give every row its token; rows of beams are given to their search."""
        batch, end_id = self.batch, self._runner.end_id
        keep: list[int] = []
        beams: dict[Handle, list[int]] = {}
        for row, sequence in enumerate(batch.sequences):
            sequence.fed += 1
            continuation = sequence.continuation
            if continuation is None:
                beams.setdefault(sequence.request.handle, []).append(row)
                continue
            if continuation.num_alternatives is not None:
                assert ran.logprobs is not None
                note_alternatives(sequence, ran.logprobs[row : row + 1])
            outcome.sampled += 1
            outcome.news.add(sequence.request.handle)
            if continuation.take_all(tokens[row : row + 1], values[row : row + 1], end_id):
                sequence.next_token = tokens[row]
                keep.append(row)
            elif take(sequence, tokens[row], values[row], end_id, partial(batch.copy_row, row)):
                outcome.ended.append(sequence)
            else:
                keep.append(row)
        if beams:
            self._advance_beams(keep, list(beams.values()), ran.logprobs, outcome)
        else:
            batch.keep(keep)

    def _advance_beams(
        self, keep: list[int], groups: list[list[int]], logprobs: Floats | None, outcome: Outcome
    ) -> None:
        """Rearrange the rows: those that are kept, then those of the hypotheses that go on."""
        assert logprobs is not None
        batch = self.batch
        sequences = [batch.sequences[row] for row in keep]
        for rows in groups:
            parents = [batch.sequences[row] for row in rows]
            states = {name: values[rows] for name, values in batch.states.items()}
            going = advance_beams(parents, logprobs[rows], partial(state_of, states), outcome)
            keep += [rows[parent] for parent, _ in going]
            sequences += [sequence for _, sequence in going]
        batch.rearrange(keep, sequences)


def useful_steps(left: list[int], most_steps: int) -> int:
    """How many steps to run at most where each sequence wants so many more tokens."""
    steps = min(most_steps, max(left))
    while steps > 1 and sum(steps - num for num in left if num < steps) > MOST_IN_VAIN * steps * len(left):
        steps -= 1
    return steps


def begin_sample(
    sequence: Sequence,
    rows: StateRow,
    first: tuple[int, float],
    logprobs: Floats | None,
    end_id: int,
    outcome: Outcome,
) -> None:
    """Give a sequence that has read its prompt its first token, or begin its beam search.

    rows      the state after the prompt
    first     a sampled token and its log-probability
    logprobs  float32 [1, vocabulary_size], where wanted
    """
    outcome.news.add(sequence.request.handle)
    continuation = sequence.continuation
    if continuation is None:
        assert logprobs is not None
        begin_beams(sequence, rows, logprobs, outcome)
        return
    outcome.sampled += 1
    if continuation.num_alternatives is not None:
        assert logprobs is not None
        note_alternatives(sequence, logprobs)
    if take(sequence, *first, end_id, lambda: rows):
        outcome.ended.append(sequence)
    else:
        sequence.state = rows
        outcome.continuing.append(sequence)


def _rows(sequence: Sequence) -> StateRow:
    assert sequence.state is not None
    return sequence.state


def row_after(ran: Ran, step: int, row: int) -> StateRow:
    """The state of one row after a step of a run, as a value of its own."""
    return {name: values[step, row].copy() for name, values in ran.states.items()}


def state_of(states: States, row: int) -> StateRow:
    """One row of some states, as a value of its own."""
    return {name: values[row].copy() for name, values in states.items()}


def sampler_of(sequence: Sequence) -> Sampler | None:
    """What takes its tokens; beams have none."""
    return None if sequence.continuation is None else sequence.continuation.sampler


def wants_whole(sequence: Sequence) -> bool:
    """Whether all log-probabilities are needed: for alternatives or for beams."""
    return sequence.continuation is None or sequence.continuation.num_alternatives is not None
