"""The lane that writes: sampled tokens, one or several a turn, for every sequence that has read its prompt.

Input: sequences with a token to feed. Output: the result of each turn. Must not know: other lanes, the loop.

    new from cache  their prompt's state came from the cache with the hidden vector: the first token needs no step
    joining         they have a token to feed and wait for a row, which they get at the next turn
    batch           one row each; where all are of one search in a tree, it takes several steps a turn by itself

Owned by the engine's thread.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from time import thread_time
from typing import Final

import numpy as np

from meari.runtime.engine.batch import (
    Batch,
    RowSamplers,
    all_finite,
    broken_outputs,
    broken_steps,
    whole_rows,
    with_placeholders,
)
from meari.runtime.engine.beams import SearchRequest, SearchSequence, TreeRequest
from meari.runtime.engine.prefixes import FEW_TEXTS
from meari.runtime.engine.runner import Floats, ReadInputs, Runner, RunResult, StateRow
from meari.runtime.engine.sampling import on_grid
from meari.runtime.engine.sequences import (
    CopyState,
    FirstToken,
    GenerationSequence,
    Request,
    SampledSequence,
    Sequence,
    TurnResult,
)
from meari.runtime.engine.stats import HistogramCounts, Pace, TokenGaps

MAX_WASTED_SHARE: Final = 0.04  # of what few rows compute: who asked for little does not wait for others' tokens
TURN_SECONDS: Final = 0.002  # of few rows, while others come
LONGEST_TURN_SECONDS: Final = 0.008  # of few rows
FIXED_SECONDS: Final = 0.0004  # that a turn costs whatever its length: Python, cold caches
MAX_TOKENS: Final = 32  # of each sequence in a turn
CROWDED_TURN_SECONDS: Final = 0.016  # of many rows
CROWDED_MAX_TOKENS: Final = 16  # prompts wait for the end of the turn


@dataclass(frozen=True, eq=False)
class CachedStart:
    """A sequence whose prompt is known: the state after it, and the hidden vector, float32 [H]."""

    sequence: GenerationSequence
    state: StateRow
    hidden: Floats


class WritingLane:
    """The sequences that write.

    spent          seconds of the lane's turns
    fixed_seconds  of them, those that do not depend on the number of rows
    """

    def __init__(self, runner: Runner, clock: Callable[[], float]) -> None:
        self._runner = runner
        self._clock = clock
        self._batch: Batch[GenerationSequence] = Batch(runner)
        self._starts: list[CachedStart] = []
        self._joining: list[GenerationSequence] = []
        self._samplers = self._no_samplers = RowSamplers([], runner.vocabulary_size)
        self._places = np.arange(0)
        self._prepared_for: list[GenerationSequence] | None = None
        self._pace = Pace()
        self._gaps = TokenGaps()
        self._undisturbed = 0.0  # seconds of the turns since a sequence came
        self.spent = self.fixed_seconds = 0.0

    def __len__(self) -> int:
        return len(self._batch) + len(self._starts) + len(self._joining)

    @property
    def num_rows(self) -> int:
        """Number of sequences that hold a row."""
        return len(self._batch)

    @property
    def is_crowded(self) -> bool:
        """True if many write, whose turns take up to CROWDED_TURN_SECONDS."""
        return len(self._batch) > FEW_TEXTS

    @property
    def gaps(self) -> HistogramCounts:
        """Times from one token of a sample to the next, in seconds."""
        return self._gaps.read()

    def add_cached(self, root: Sequence, hidden: Floats) -> None:
        """Take a prompt whose state came from the cache, and the samples that fork off it."""
        sequences = [root, *(child for _, child in reversed(root.forks))]
        root.forks.clear()
        for sequence in sequences:
            if isinstance(sequence, GenerationSequence) and root.state is not None:
                sequence.fed = root.fed
                self._starts.append(CachedStart(sequence, root.state, hidden))

    def add(self, sequences: list[GenerationSequence]) -> None:
        """Let sequences with a token to feed wait for a row, before those that wait already."""
        self._joining = sequences + self._joining

    def drop(self, request: Request) -> None:
        """Forget the sequences of a request."""
        self._batch.drop(request)
        self._starts = [start for start in self._starts if start.sequence.request is not request]
        self._joining = [sequence for sequence in self._joining if sequence.request is not request]
        self._forget_ended()

    def clear(self) -> set[Request]:
        """Drop all rows after a turn that failed; returns their requests."""
        everyone = [*self._batch.sequences, *self._joining, *(start.sequence for start in self._starts)]
        self._joining, self._starts = [], []
        self._batch.clear()
        self._forget_ended()
        return {sequence.request for sequence in everyone}

    def store_states(self, request: Request) -> None:
        """Store the current states of a request that ends early, where they are wanted."""
        if not request.want_state:
            return
        rows: list[tuple[GenerationSequence, CopyState]] = [
            (sequence, partial(self._batch.copy_row, row)) for row, sequence in enumerate(self._batch.sequences)
        ]
        rows += [(s, partial(dict, state)) for s in self._joining if (state := s.state) is not None]
        request.store_states([row for row in rows if row[0].request is request])

    def turn(self) -> TurnResult:
        """Run a turn: several tokens of each sequence where a token takes hardly any time."""
        started, run_before = thread_time(), self._runner.run_seconds
        joining, starts = self._joining, self._starts
        self._batch.join(joining)
        self._joining = []
        if joining or starts:
            self._undisturbed = 0.0
        rows = len(self._batch)
        result = self._advance_all(starts, self.plan())
        self._starts = []
        if rows:
            now, steps = self._clock(), result.num_steps
            seconds = thread_time() - started
            self._undisturbed += seconds
            self._pace.add(result.num_rows // steps, steps, self._runner.run_seconds - run_before, seconds)
            self.fixed_seconds += steps * self._runner.fixed_step_seconds + self._pace.fixed_seconds
            num_first = sum(isinstance(start.sequence, SampledSequence) for start in starts)
            self._gaps.add(_gaps_of(joining), result.num_sampled - num_first, steps, now)
        self._forget_ended()
        return result

    def _forget_ended(self) -> None:
        """Keep nothing of the sequences of the last turn, their samples and all that stands in them, once all ended."""
        if not len(self._batch):
            self._samplers, self._prepared_for = self._no_samplers, None

    def plan(self) -> int:
        """Return the maximum number of steps of the turn.

        Turns of few rows grow while nobody comes. A text of T seconds costs T / t turns, and waits for the rest of the
        turn in which it ends, on average t / 2: both are least with t = sqrt(2 * FIXED_SECONDS * T).
        """
        rows = len(self._batch)
        if self.is_crowded:
            return min(CROWDED_MAX_TOKENS, self._pace.max_steps(rows, CROWDED_TURN_SECONDS))
        seconds = max(TURN_SECONDS, math.sqrt(2 * FIXED_SECONDS * self._undisturbed))
        return min(MAX_TOKENS, self._pace.max_steps(rows, min(LONGEST_TURN_SECONDS, seconds)))

    def _steps(self, num_left: list[int], max_steps: int) -> int:
        """Return the number of steps to run where each sequence wants so many more tokens."""
        steps = min(max_steps, max(num_left))
        if len(num_left) > FEW_TEXTS:
            return self._pace.best_steps(num_left, steps)
        while sum(max(0, steps - num) for num in num_left) > MAX_WASTED_SHARE * steps * len(num_left):
            steps -= 1
        return steps

    def _advance_all(self, starts: list[CachedStart], max_steps: int) -> TurnResult:
        """Feed each sequence its token and take the next; up to `max_steps` times where the graph can do so."""
        sequences = self._batch.sequences
        if not starts and (search := _only_search(sequences)) is not None:
            return self._search(search)
        if starts or self._prepared_for is not sequences or self._samplers.is_stale:
            self._prepare(sequences, starts)
        if self._samplers.may_write and not starts:
            return self._write(max_steps)
        run = self._run(sequences, starts, self._samplers.read_inputs(self._places))
        result = TurnResult(len(sequences), len(self._places))
        everyone = [*sequences, *(start.sequence for start in starts)]
        run = self._without_broken(everyone, run, result)
        tokens, values = self._samplers.choose(run)
        result.failed |= {everyone[n].request for n, value in enumerate(values) if not math.isfinite(value)}
        now = self._clock()
        for number, start in enumerate(starts, len(sequences)):
            if start.sequence.request in result.failed:
                continue
            start.sequence.request.handle.note_first_token(now)
            logprobs = run.logprobs[number : number + 1]
            start.sequence.begin(FirstToken(tokens[number], values[number], logprobs, start.state), result)
        self._take_one(run, tokens, values, result)
        return result

    def _prepare(self, sequences: list[GenerationSequence], starts: list[CachedStart]) -> None:
        """Make the samplers of all rows; they are kept while the same sequences run."""
        everyone = [*sequences, *(start.sequence for start in starts)]
        self._samplers = RowSamplers(
            [sequence.row_sampler for sequence in everyone],
            self._runner.vocabulary_size,
            whole=any(sequence.wants_logprobs for sequence in everyone),
        )
        self._places = np.arange(len(everyone)) + (0 if sequences else 1)  # a run has at least one row
        self._prepared_for = None if starts else sequences

    def _run(self, sequences: list[GenerationSequence], starts: list[CachedStart], inputs: ReadInputs) -> RunResult:
        tokens = np.array([[sequence.next_token for sequence in sequences] or [0]], np.int64)
        states = self._batch.states if sequences else self._runner.initial_states(1)
        more = np.stack([start.hidden for start in starts]) if starts else None
        run = self._runner.run(tokens, states, inputs, more_hidden=more)
        if sequences:
            self._batch.states = {name: values[0] for name, values in run.states.items()}
        return run

    def _without_broken(self, everyone: list[GenerationSequence], run: RunResult, result: TurnResult) -> RunResult:
        """Fail the requests of rows with numbers that are not finite; returns the run with placeholders for those."""
        states = list(self._batch.states.values()) if len(self._batch) else []
        if not all_finite(states):
            broken = broken_steps(values[None] for values in states)[0]
            result.failed |= {everyone[row].request for row in np.flatnonzero(broken)}
        outputs = broken_outputs(run)
        result.failed |= {everyone[number].request for number in outputs}
        return with_placeholders(run, outputs) if outputs else run

    def _write(self, max_steps: int) -> TurnResult:
        """Write several tokens in every row; those past the end of a sample are thrown away."""
        batch = self._batch
        samples = [sequence for sequence in batch.sequences if isinstance(sequence, SampledSequence)]
        assert len(samples) == len(batch), "beams want all log-probabilities, which the graph does not write"
        steps = self._steps([sequence.num_left for sequence in samples], min(max_steps, self._samplers.max_steps))
        tokens = np.array([sequence.next_token for sequence in samples], np.int64)
        run = self._runner.write(tokens, batch.states, self._samplers.write_inputs(steps))
        result = TurnResult(steps * len(batch), steps * len(batch), num_steps=steps)
        keep, num_early = [], 0
        sound = _sound_steps(run, steps, len(batch))
        columns = zip(run.picked.T.tolist(), on_grid(run.picked_logprobs).T.tolist(), strict=True)
        for row, (sequence, (written, values)) in enumerate(zip(samples, columns, strict=True)):
            result.changed.add(sequence.request.handle)
            num_sound = sound[row]
            num = sequence.take_all(written[:num_sound], values[:num_sound])
            sequence.fed += num
            result.num_sampled += num
            if num == steps:
                keep.append(row)
                continue
            rest = zip(range(num, num_sound), written[num:], values[num:], strict=False)
            if _take_each(sequence, rest, partial(run.state_after, row=row), result):
                num_early += sequence.num_left > 0
                continue
            if num_sound == steps:
                keep.append(row)
            else:
                result.failed.add(sequence.request)
        self._pace.add_ends(result.num_sampled, num_early)
        batch.states = {name: values[-1] for name, values in run.states.items()}
        batch.keep(keep)
        return result

    def _search(self, request: TreeRequest) -> TurnResult:
        """Run steps of a search that is alone, as many as a turn of few rows may take.

        From one step to the next its places are rows of arrays: to join and leave the batch takes as long as a step.
        """
        batch, result, until = self._batch, TurnResult(num_steps=0), self._clock() + LONGEST_TURN_SECONDS
        one, states = batch.sequences[0], batch.states
        assert isinstance(one, SearchSequence)
        tokens = [sequence.next_token for sequence in batch.sequences]
        while True:
            run = self._runner.run(np.array([tokens], np.int64), states, whole_rows(len(tokens)))
            states = {name: values[0] for name, values in run.states.items()}
            one.fed += 1
            result.num_steps += 1
            result.num_rows += len(tokens)
            result.num_output_rows += len(tokens)
            if not all_finite(states.values()) or broken_outputs(run):
                result.failed.add(request)
                break
            places = request.find(run.logprobs, states, result)
            if not places:
                result.ended.append(one)
                break
            if self._clock() >= until:
                result.continuing += request.rows(places, one)
                break
            tokens, states = [token for _, token in places], request.states_before(places)
        batch.clear()
        return result

    def _take_one(self, run: RunResult, tokens: list[int], values: list[float], result: TurnResult) -> None:
        """Give every row its token; rows of beams are given to their search."""
        batch = self._batch
        keep: list[int] = []
        beams: dict[SearchRequest, list[int]] = {}
        for row, sequence in enumerate(batch.sequences):
            if sequence.request in result.failed:
                continue
            sequence.fed += 1
            if isinstance(sequence, SampledSequence):
                result.num_sampled += 1
                result.changed.add(sequence.request.handle)
                sequence.add_alternatives(run.logprobs[row : row + 1])
                if sequence.take(tokens[row], values[row], partial(batch.copy_row, row)):
                    result.ended.append(sequence)
                else:
                    keep.append(row)
            elif isinstance(sequence, SearchSequence):
                beams.setdefault(sequence.request, []).append(row)
        if beams:
            self._advance_beams(keep, beams, run.logprobs, result)
        else:
            batch.keep(keep)

    def _advance_beams(
        self, keep: list[int], beams: dict[SearchRequest, list[int]], logprobs: Floats, result: TurnResult
    ) -> None:
        """Rearrange the rows: those that are kept, then those of the hypotheses that continue."""
        batch = self._batch
        sequences = [batch.sequences[row] for row in keep]
        for request, rows in beams.items():
            parents = [sequence for row in rows if isinstance(sequence := batch.sequences[row], SearchSequence)]
            is_alone = len(rows) == len(batch)  # then no other row is kept in memory by its states
            states = batch.states if is_alone else {name: values[rows] for name, values in batch.states.items()}
            continuing = request.advance(parents, logprobs[rows], states, result)
            keep += [rows[parent] for parent, _ in continuing]
            sequences += [sequence for _, sequence in continuing]
        batch.rearrange(keep, sequences)


def _only_search(sequences: list[GenerationSequence]) -> TreeRequest | None:
    """Return the search in a tree to which all rows belong, if they do."""
    request = sequences[0].request if sequences else None
    if isinstance(request, TreeRequest) and all(sequence.request is request for sequence in sequences):
        return request
    return None


def _sound_steps(run: RunResult, steps: int, rows: int) -> list[int]:
    """Return the number of steps of each row before the first with a number that is not finite."""
    last = [values[-1] for values in run.states.values()]
    if all_finite((run.picked_logprobs, *last)):
        return [steps] * rows
    broken = broken_steps((run.picked_logprobs[:, :, None], *run.states.values()))
    sound: list[int] = np.where(broken.any(axis=0), broken.argmax(axis=0), steps).tolist()
    return sound


def _take_each(
    sequence: SampledSequence,
    tokens: Iterable[tuple[int, int, float]],
    state_after: Callable[[int], StateRow],
    result: TurnResult,
) -> bool:
    """Add one token after another, (step, token, log-probability); returns True when one of them was the last."""
    for step, token, value in tokens:
        sequence.fed += 1
        result.num_sampled += 1
        if sequence.take(token, value, partial(state_after, step)):
            result.ended.append(sequence)
            return True
    return False


def _gaps_of(joined: Iterable[GenerationSequence]) -> list[tuple[float, int]]:
    """Return when each sample had its first token, and the number of tokens since."""
    return [
        (first, len(sequence.sample.token_ids) - 1)
        for sequence in joined
        if isinstance(sequence, SampledSequence) and (first := sequence.request.handle.first_token_at) is not None
    ]
