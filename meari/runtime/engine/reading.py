"""A reading turn: forced tokens of prompts and texts to score, several steps in one run.

The run is asked for the distributions that somebody wants: those of reported tokens, and the one after a prompt, from
which the first token is sampled. Owned by the engine's thread.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from meari.runtime.engine.batch import Batch
from meari.runtime.engine.cache import EDGE_TOKENS, PrefixCache
from meari.runtime.engine.calls import Scoring
from meari.runtime.engine.draws import Draws
from meari.runtime.engine.outcome import Outcome, alternatives
from meari.runtime.engine.runner import Runner
from meari.runtime.engine.runs import Floats, Ran, States
from meari.runtime.engine.sampling import on_grid
from meari.runtime.engine.scheduler import Request
from meari.runtime.engine.sequence import Sequence
from meari.runtime.engine.writing import begin_sample, row_after, sampler_of, wants_whole

Ids = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Stand:
    """A sequence that stands after step `step` of row `row`: the row's own, or one that forks off it there."""

    sequence: Sequence
    row: int
    step: int


@dataclass
class Wanted:
    """Which distributions are asked for: those of forced tokens, span by span, and those to sample from.

    spans  (sequence, its first figure, how many)
    """

    spans: list[tuple[Sequence, int, int]] = field(default_factory=list)
    places: list[int] = field(default_factory=list)
    targets: list[int] = field(default_factory=list)
    to_sample: list[Stand] = field(default_factory=list)
    forked: list[Stand] = field(default_factory=list)


class Reading:
    """Callable once a turn."""

    def __init__(self, runner: Runner, cache: PrefixCache | None, clock: Callable[[], float]) -> None:
        self._runner = runner
        self._cache = cache
        self._clock = clock

    def __call__(self, batch: Batch, steps: int) -> Outcome:
        """Feed up to `steps` forced tokens to every sequence of `batch`, and drop those that are done with them."""
        counts = [min(steps, sequence.num_to_feed) for sequence in batch.sequences]
        wanted = self._wanted(batch.sequences, counts)
        samplers = [sampler_of(stand.sequence) for stand in wanted.to_sample]
        draws = Draws(samplers, self._runner.sorts, whole=_whole(wanted))
        asked = draws.asked(
            np.array([stand.step * len(batch) + stand.row for stand in wanted.to_sample], np.int64),
            (np.array(wanted.places, np.int64), np.array(wanted.targets, np.int64)),
        )
        keeps = self._cache is not None and any(s.fed < s.num_to_cache for s in batch.sequences)
        keeps = keeps and self._runner.hidden_state is None
        ran = self._runner.run(_tokens(batch.sequences, counts, steps), batch.states, asked, want_hidden=keeps)
        outcome = Outcome(sum(counts), len(asked.places))
        self._report(wanted, ran)
        self._keep_states(batch.sequences, counts, ran)
        self._settle(batch, counts, ran, outcome)
        self._sample(wanted, draws, ran, outcome)
        self._fork(wanted, ran, outcome)
        return outcome

    def _wanted(self, sequences: list[Sequence], counts: list[int]) -> Wanted:
        wanted = Wanted()
        width = len(sequences)
        for row, (sequence, count) in enumerate(zip(sequences, counts, strict=True)):
            last = sequence.fed + count
            if sequence.log is not None:
                _want_targets(wanted, sequence, row, width, max(sequence.log.start, sequence.fed + 1), last)
            if sequence.goes_on and last == len(sequence.forced):
                wanted.to_sample.append(Stand(sequence, row, count - 1))
            while sequence.forks and sequence.forks[-1][0] <= last:
                depth, child = sequence.forks.pop()
                self._want_fork(wanted, child, Stand(child, row, depth - sequence.fed - 1), depth, width)
        return wanted

    def _want_fork(self, wanted: Wanted, child: Sequence, stand: Stand, depth: int, width: int) -> None:
        child.fed = depth
        if child.goes_on:
            wanted.to_sample.append(stand)
            return
        wanted.forked.append(stand)
        if child.log is not None and child.log.start <= depth < len(child.forced):
            wanted.spans.append((child, depth - child.log.start, 1))
            wanted.places.append(stand.step * width + stand.row)
            wanted.targets.append(child.forced[depth])
        while child.forks and child.forks[-1][0] == depth:  # a fork of a fork at the same depth
            grandchild = child.forks.pop()[1]
            self._want_fork(wanted, grandchild, Stand(grandchild, stand.row, stand.step), depth, width)

    def _report(self, wanted: Wanted, ran: Ran) -> None:
        """Note the figures of forced tokens."""
        if not wanted.spans:
            return
        assert ran.picked_logprobs is not None
        values = on_grid(ran.picked_logprobs[: len(wanted.places)])
        first = 0
        for sequence, at, count in wanted.spans:
            figures = sequence.log
            assert figures is not None
            figures.logprobs[at : at + count] = values[first : first + count]
            if not figures.is_plain:
                assert ran.logprobs is not None
                for i in range(count):
                    row = ran.logprobs[first + i]
                    if figures.ranks is not None:
                        figures.ranks[at + i] = 1 + int(np.count_nonzero(row > ran.picked_logprobs[first + i]))
                    if figures.num_alternatives:
                        found = alternatives(row[None], figures.num_alternatives)
                        figures.alternative_ids[at + i], figures.alternative_logprobs[at + i] = found
            first += count

    def _settle(self, batch: Batch, counts: list[int], ran: Ran, outcome: Outcome) -> None:
        """Let the sequences go that have no forced tokens left."""
        keep = []
        for row, (sequence, count) in enumerate(zip(batch.sequences, counts, strict=True)):
            sequence.fed += count
            if isinstance(sequence.request.handle, Scoring):
                sequence.request.handle.computed_tokens += count
            if sequence.num_to_feed > 0:
                keep.append(row)
            elif not sequence.goes_on:
                outcome.ended.append(sequence)
        if keep:
            last = np.array(counts, np.int64) - 1
            even = (last == last[0]).all()
            rows = np.arange(len(counts))
            batch.states = {k: v[last[0]] if even else v[last, rows] for k, v in ran.states.items()}
        batch.keep(keep)

    def _keep_states(self, sequences: list[Sequence], counts: list[int], ran: Ran) -> None:
        """Copy the states that somebody wants: snapshots, and those of prompts for the cache."""
        for row, (sequence, count) in enumerate(zip(sequences, counts, strict=True)):
            fed = sequence.fed
            while sequence.snapshots and fed < (depth := sequence.snapshots[-1][0]) <= fed + count:
                sequence.snapshots.pop()[1].state = row_after(ran, depth - fed - 1, row)
        fresh = [max(0, min(s.fed + n, s.num_to_cache) - s.fed) for s, n in zip(sequences, counts, strict=True)]
        if self._cache is None or not any(fresh):
            return
        places = self._cache.keep(*_rows_of(ran, np.array(fresh, np.int64)))
        for sequence, num in zip(sequences, fresh, strict=True):
            if num:
                self._note_kept(self._cache, sequence, num, places[:num])
                places = places[num:]

    def _note_kept(self, cache: PrefixCache, sequence: Sequence, num: int, places: Ids) -> None:
        """Take up the cached rows of a prompt's next `num` tokens; they join the tree many at a time, which is slow."""
        kept = sequence.request.kept
        kept.append(places)
        last = sequence.fed + len(places)
        if len(places) < num:
            sequence.num_to_cache = last
        num_kept = sum(map(len, kept))
        if last >= sequence.num_to_cache or num_kept >= EDGE_TOKENS:
            cache.insert(sequence.forced, last - num_kept, np.concatenate(kept))
            kept.clear()

    def let_go(self, request: Request) -> None:
        """Drop what is kept of a prompt that will not be read to its end."""
        while request.kept and self._cache is not None:
            self._cache.drop(request.kept.pop())

    def _sample(self, wanted: Wanted, draws: Draws, ran: Ran, outcome: Outcome) -> None:
        """Take the first token after each prompt that has been read."""
        if not wanted.to_sample:
            return
        first = len(wanted.places)
        tokens, values = draws.choose(ran, first)
        now = self._clock()
        for number, stand in enumerate(wanted.to_sample):
            sequence = stand.sequence
            handle = sequence.request.handle
            handle.first_token_at = now if handle.first_token_at is None else handle.first_token_at
            rows = row_after(ran, stand.step, stand.row)
            logprobs = None if ran.logprobs is None else ran.logprobs[first + number : first + number + 1]
            begin_sample(sequence, rows, (tokens[number], values[number]), logprobs, self._runner.end_id, outcome)

    def _fork(self, wanted: Wanted, ran: Ran, outcome: Outcome) -> None:
        for stand in wanted.forked:
            sequence = stand.sequence
            if sequence.num_to_feed > 0:
                sequence.state = row_after(ran, stand.step, stand.row)
                outcome.forked.append(sequence)
            else:
                outcome.ended.append(sequence)


def _rows_of(ran: Ran, counts: Ids) -> tuple[States, Floats]:
    """States and hidden vectors after the first counts[row] steps of every row, row after row; [sum(counts), …]."""
    rows = np.repeat(np.arange(len(counts)), counts)
    steps = np.arange(len(rows)) - np.repeat(np.cumsum(counts) - counts, counts)
    hidden = np.empty((len(rows), 0), np.float32) if ran.hidden is None else ran.hidden[steps, rows]
    return {name: values[steps, rows] for name, values in ran.states.items()}, hidden


def _want_targets(wanted: Wanted, sequence: Sequence, row: int, width: int, first: int, last: int) -> None:
    """Ask for the forced tokens number `first` to `last`, both included; token d is due after d have been fed."""
    assert sequence.log is not None
    last = min(last, len(sequence.forced) - 1)
    if first > last:
        return
    wanted.spans.append((sequence, first - sequence.log.start, last - first + 1))
    step = first - sequence.fed - 1
    wanted.places.extend(range(step * width + row, (last - sequence.fed) * width, width))
    wanted.targets.extend(sequence.forced[first : last + 1])


def _whole(wanted: Wanted) -> bool:
    """Whether somebody wants more than the log-probability of one token."""
    figures = any(sequence.log is not None and not sequence.log.is_plain for sequence, _, _ in wanted.spans)
    return figures or any(wants_whole(stand.sequence) for stand in wanted.to_sample)


def _tokens(sequences: list[Sequence], counts: list[int], steps: int) -> Ids:
    """int64 [steps, batch]; what a sequence has not got is filled up, and nobody looks at what comes of it."""
    tokens = np.zeros((steps, len(sequences)), np.int64)
    for row, (sequence, count) in enumerate(zip(sequences, counts, strict=True)):
        tokens[:count, row] = sequence.forced[sequence.fed : sequence.fed + count]
    return tokens
