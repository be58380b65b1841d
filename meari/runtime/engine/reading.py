"""Lanes that read: forced tokens of prompts and texts to score, several steps in one run.

Input: sequences with forced tokens to feed. Output: the result of each turn. Must not know: other lanes, the loop.

A run computes only the distributions that are wanted: those of reported tokens, and the one after a prompt, from which
the first token is sampled. Owned by the engine's thread.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from time import thread_time
from typing import Final

import numpy as np

from meari.runtime.engine.batch import (
    Batch,
    RowSamplers,
    all_finite,
    broken_outputs,
    broken_steps,
    with_placeholders,
)
from meari.runtime.engine.calls import EngineLimits
from meari.runtime.engine.prefixes import CachedPrompts
from meari.runtime.engine.runner import Ids, ReadInputs, Runner, RunResult
from meari.runtime.engine.sampling import on_grid
from meari.runtime.engine.sequences import (
    FirstToken,
    GenerationSequence,
    Request,
    Sequence,
    TargetLog,
    TextSequence,
    TurnResult,
)
from meari.runtime.engine.stats import MAX_STEPS, Pace

MAX_TOKENS: Final = 512  # of a turn, steps times rows: their states and hidden vectors are held at once
LIST_ROWS: Final = 16  # of a list that run together: more cost as much a token, and Python works once a row and turn
LIST_TOKENS: Final = 64  # of a list's turn at least, however long they take
MAX_FLOATS: Final = 640_000  # of the distributions of a turn that may have to be handed over as a whole


@dataclass(frozen=True)
class Position:
    """A sequence after step `step` of row `row`: the row's own, or one that forks off it there."""

    sequence: Sequence
    row: int
    step: int


@dataclass
class ReadPlan:
    """The distributions that a turn computes: those of forced tokens, span by span, then those to sample from.

    spans      (log, its first figure, number of figures)
    places     step * batch + row of each forced token, and `targets` the token itself
    to_sample  prompts that are read to their end
    forked     texts that fork off here
    """

    num_rows: int
    spans: list[tuple[TargetLog, int, int]] = field(default_factory=list)
    places: list[int] = field(default_factory=list)
    targets: list[int] = field(default_factory=list)
    to_sample: list[tuple[GenerationSequence, Position]] = field(default_factory=list)
    forked: list[Position] = field(default_factory=list)

    def add(self, sequence: Sequence, row: int, count: int) -> None:
        """Plan to feed `count` tokens of a sequence, and what forks off it on the way."""
        last = sequence.fed + count
        if isinstance(sequence, TextSequence):
            self._add_targets(sequence, row, last)
        elif isinstance(sequence, GenerationSequence) and last == len(sequence.forced):
            self.to_sample.append((sequence, Position(sequence, row, count - 1)))
        while sequence.forks and sequence.forks[-1][0] <= last:
            depth, child = sequence.forks.pop()
            self._add_fork(Position(child, row, depth - sequence.fed - 1), depth)

    @property
    def wants_logprobs(self) -> bool:
        """Return True if any row needs the log-probabilities of all tokens."""
        return any(sequence.wants_logprobs for sequence, _ in self.to_sample)

    def _add_targets(self, sequence: TextSequence, row: int, last: int) -> None:
        """Ask for the forced tokens that are reported; token number d is due after d tokens have been fed."""
        log, fed, forced = sequence.log, sequence.fed, sequence.forced
        first = max(log.start, fed + 1)
        last = min(last, len(forced) - 1)
        if first == last == fed + 1:  # most turns of lists have one step
            self.spans.append((log, first - log.start, 1))
            self.places.append(row)
            self.targets.append(forced[first])
        elif first <= last:
            self.spans.append((log, first - log.start, last - first + 1))
            width = self.num_rows
            self.places.extend(range((first - fed - 1) * width + row, (last - fed) * width, width))
            self.targets.extend(forced[first : last + 1])

    def _add_fork(self, position: Position, depth: int) -> None:
        child = position.sequence
        child.fed = depth
        if isinstance(child, GenerationSequence):
            self.to_sample.append((child, position))
            return
        self.forked.append(position)
        if isinstance(child, TextSequence) and child.log.start <= depth < len(child.forced):
            self.spans.append((child.log, depth - child.log.start, 1))
            self.places.append(position.step * self.num_rows + position.row)
            self.targets.append(child.forced[depth])
        while child.forks and child.forks[-1][0] == depth:  # a fork of a fork at the same depth
            grandchild = child.forks.pop()[1]
            self._add_fork(Position(grandchild, position.row, position.step), depth)


class TokenReader:
    """Feeds forced tokens and reports on them; shared by the reading lanes of an engine."""

    def __init__(self, runner: Runner, cached: CachedPrompts, clock: Callable[[], float]) -> None:
        self._runner = runner
        self._cached = cached
        self.clock = clock

    def read(self, batch: Batch[Sequence], needs: list[int], steps: int) -> TurnResult:
        """Feed up to `steps` forced tokens to every sequence of a batch, and drop the sequences that are done.

        needs  number of tokens that each sequence has to feed
        """
        sequences = batch.sequences
        counts = [min(steps, need) for need in needs]
        plan = ReadPlan(len(sequences))
        for row, (sequence, count) in enumerate(zip(sequences, counts, strict=True)):
            plan.add(sequence, row, count)
        samplers = self._samplers(plan) if plan.to_sample else None
        inputs = _inputs(plan, samplers)
        wants_hidden = self._cached.wants_hidden(sequences)
        tokens = _tokens(sequences, counts, steps)
        run = self._runner.run(tokens, batch.states, inputs, want_hidden=wants_hidden)
        result = TurnResult(sum(counts), len(inputs.places))
        run = _without_broken(sequences, counts, inputs.places, run, result)
        _report(plan, run)
        _take_snapshots(sequences, counts, run)
        self._cached.keep(sequences, counts, run, result.failed)
        _advance(batch, needs, counts, run, result)
        if samplers is not None:
            self._sample(plan, samplers, run, result)
        _fork(plan, run, result)
        return result

    def _samplers(self, plan: ReadPlan) -> RowSamplers:
        rows = [sequence.row_sampler for sequence, _ in plan.to_sample]
        return RowSamplers(rows, self._runner.vocabulary_size, whole=plan.wants_logprobs)

    def _sample(self, plan: ReadPlan, samplers: RowSamplers, run: RunResult, result: TurnResult) -> None:
        """Take the first token after each prompt that has been read."""
        first = len(plan.places)
        tokens, values = samplers.choose(run, first)
        now = self.clock()
        for number, (sequence, position) in enumerate(plan.to_sample):
            if not math.isfinite(values[number]):
                result.failed.add(sequence.request)
            if sequence.request in result.failed:
                continue
            sequence.request.handle.note_first_token(now)
            state = run.state_after(position.step, position.row)
            logprobs = run.logprobs[first + number : first + number + 1]
            sequence.begin(FirstToken(tokens[number], values[number], logprobs, state), result)


class ReadingLane:
    """Sequences with forced tokens to feed: rows that run, and sequences that wait for a row.

    spent  seconds of the lane's turns
    """

    def __init__(
        self,
        runner: Runner,
        reader: TokenReader,
        pace: Pace,
        limits: EngineLimits,
        *,
        turn_seconds: Callable[[], float],
        for_list: bool = False,
    ) -> None:
        """turn_seconds: the CPU time that a turn may take."""
        self._runner = runner
        self._batch: Batch[Sequence] = Batch(runner)
        self._waiting: deque[Sequence] = deque()
        self._reader = reader
        self._pace = pace
        self._max_rows = min(limits.max_slots, LIST_ROWS) if for_list else limits.max_slots
        self._min_tokens = LIST_TOKENS if for_list else 1
        self._turn_seconds = turn_seconds
        self._max_whole_rows = max(64, min(MAX_TOKENS, MAX_FLOATS // runner.vocabulary_size))
        self.spent = 0.0

    def __len__(self) -> int:
        return len(self._batch) + len(self._waiting)

    @property
    def num_rows(self) -> int:
        """Number of sequences that hold a row."""
        return len(self._batch)

    def add(self, root: Sequence) -> None:
        """Let the first sequence of a request wait for a row."""
        self._waiting.append(root)

    def drop(self, request: Request) -> None:
        """Forget the sequences of a request."""
        self._batch.drop(request)
        self._waiting = deque(sequence for sequence in self._waiting if sequence.request is not request)

    def clear(self) -> set[Request]:
        """Drop all rows after a turn that failed; returns their requests."""
        requests = {sequence.request for sequence in self._batch.sequences}
        self._batch.clear()
        return requests

    def turn(self) -> TurnResult:
        """Run a turn: some steps of all rows."""
        started, run_before = thread_time(), self._runner.run_seconds
        free = min(self._max_rows - len(self._batch), len(self._waiting))
        self._batch.join([self._waiting.popleft() for _ in range(free)])
        needs = [sequence.num_to_feed for sequence in self._batch.sequences]
        rows, steps = len(needs), self._plan(needs)
        result = self._reader.read(self._batch, needs, steps)
        self._waiting.extendleft(result.forked)  # before those that have not begun
        self._pace.add(rows, steps, self._runner.run_seconds - run_before, thread_time() - started)
        return result

    def _plan(self, needs: list[int]) -> int:
        """Return the number of steps to run: those that fit into a turn and feed the most tokens a second."""
        rows = len(needs)
        in_time = self._pace.max_steps(rows, self._turn_seconds())
        steps = min(max(needs), MAX_STEPS, max(1, MAX_TOKENS // rows), max(in_time, self._min_tokens // rows))
        if steps == 1:
            return 1
        kinds = {isinstance(sequence, TextSequence) for sequence in self._batch.sequences}
        if len(kinds) > 1:  # where a first token needs its whole distribution, the run hands over those of all targets
            steps = min(steps, max(1, self._max_whole_rows // rows))
        return self._pace.best_steps(needs, steps)


def _inputs(plan: ReadPlan, samplers: RowSamplers | None) -> ReadInputs:
    logs = [log for log, _, _ in plan.spans if not log.is_plain]
    ranks, num_best = any(log.ranks is not None for log in logs), max((log.num_alternatives for log in logs), default=0)
    places, targets = np.array(plan.places, np.int64), np.array(plan.targets, np.int64)
    if samplers is None:
        return ReadInputs.for_targets(places, targets, ranks=ranks, num_best=num_best)
    sampled = [position.step * plan.num_rows + position.row for _, position in plan.to_sample]
    return samplers.read_inputs(np.array(sampled, np.int64), (places, targets), ranks=ranks, num_best=num_best)


def _tokens(sequences: list[Sequence], counts: list[int], steps: int) -> Ids:
    """Return the tokens to feed, int64 [steps, batch], padded with 0 after each sequence's own."""
    if steps == 1:
        return np.array([[sequence.forced[sequence.fed] for sequence in sequences]], np.int64)
    tokens = np.zeros((steps, len(sequences)), np.int64)
    for row, (sequence, count) in enumerate(zip(sequences, counts, strict=True)):
        tokens[:count, row] = sequence.forced[sequence.fed : sequence.fed + count]
    return tokens


def _without_broken(
    sequences: list[Sequence], counts: list[int], places: Ids, run: RunResult, result: TurnResult
) -> RunResult:
    """Fail the requests of rows with numbers that are not finite, within the tokens that are the row's own.

    places   int64 [computed rows], step * batch + row
    returns  the run with placeholders for their distributions
    """
    tensors = [values for values in (*run.states.values(), run.hidden) if values.size]
    if not all_finite(tensors):
        broken = broken_steps(tensors)
        result.failed |= {s.request for row, s in enumerate(sequences) if broken[: counts[row], row].any()}
    outputs = broken_outputs(run)
    result.failed |= {sequences[place % len(sequences)].request for place in places[outputs].tolist()}
    return with_placeholders(run, outputs) if outputs else run


def _report(plan: ReadPlan, run: RunResult) -> None:
    """Write the figures of forced tokens into their logs."""
    if not plan.spans:
        return
    values = on_grid(run.picked_logprobs[: len(plan.places)])
    first = 0
    for log, at, count in plan.spans:
        if count == 1:
            log.logprobs[at] = values[first]
        else:
            log.logprobs[at : at + count] = values[first : first + count]
        if log.ranks is not None:
            log.ranks[at : at + count] = run.ranks[first : first + count]
        if num := log.num_alternatives:
            log.alternative_ids[at : at + count] = run.best[first : first + count, :num]
            log.alternative_logprobs[at : at + count] = on_grid(run.best_logprobs[first : first + count, :num])
        first += count


def _take_snapshots(sequences: list[Sequence], counts: list[int], run: RunResult) -> None:
    for row, (sequence, count) in enumerate(zip(sequences, counts, strict=True)):
        fed = sequence.fed
        while sequence.snapshots and fed < (depth := sequence.snapshots[-1][0]) <= fed + count:
            sequence.snapshots.pop()[1].state = run.state_after(depth - fed - 1, row)


def _advance(batch: Batch[Sequence], needs: list[int], counts: list[int], run: RunResult, result: TurnResult) -> None:
    """Count the tokens as fed, and drop the sequences that have no forced tokens left."""
    keep = []
    for row, (sequence, need, count) in enumerate(zip(batch.sequences, needs, counts, strict=True)):
        sequence.fed += count
        sequence.request.handle.computed_tokens += count
        if need > count:
            keep.append(row)
        elif not sequence.has_continuation:
            result.ended.append(sequence)
    if keep:
        last = np.array(counts, np.int64) - 1
        even = (last == last[0]).all()
        rows = np.arange(len(counts))
        batch.states = {k: v[last[0]] if even else v[last, rows] for k, v in run.states.items()}
    batch.keep(keep)


def _fork(plan: ReadPlan, run: RunResult, result: TurnResult) -> None:
    """Let the texts that have forked off wait for a row, where they have tokens of their own to feed."""
    for position in plan.forked:
        sequence = position.sequence
        if sequence.num_to_feed > 0:
            sequence.state = run.state_after(position.step, position.row)
            result.forked.append(sequence)
        else:
            result.ended.append(sequence)
