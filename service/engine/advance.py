"""What follows a step: each sequence takes its next token, forced or sampled, and forks, goes on or ends.

The output layer is run only for rows whose distribution somebody asked for.
Owned by the engine's thread.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from service.engine.batch import Batch
from service.engine.calls import Finish, Handle, Scoring
from service.engine.runner import Floats, Runner
from service.engine.sampling import likeliest, on_grid, sample_rows
from service.engine.sequence import Sequence
from service.errors import EngineFailed

log = logging.getLogger(__name__)


@dataclass
class Outcome:
    """Of one step: rows that stay, sequences that wait for a slot of their own, those that ended, handles with news."""

    keep: list[int] = field(default_factory=list)
    forked: list[Sequence] = field(default_factory=list)
    ended: list[Sequence] = field(default_factory=list)
    news: set[Handle] = field(default_factory=set)


@dataclass(frozen=True)
class Branch:
    """A sequence that stands at a row's state: the row's own, or one that forks off it."""

    sequence: Sequence
    row: int  # of the batch
    owns_row: bool


@dataclass(frozen=True)
class Distributions:
    """Of those rows for which somebody asked.

    logits, logprobs   float32 [asked, vocabulary_size]
    """

    logits: Floats
    logprobs: Floats


class Advance:
    """Callable once a step; counts what it did."""

    def __init__(self, runner: Runner, clock: Callable[[], float]) -> None:
        self._runner = runner
        self._clock = clock
        self.output_rows = 0
        self.tokens_sampled = 0

    def __call__(self, batch: Batch, hidden: Floats) -> Outcome:
        """Take the next token of every sequence in `batch`, whose hidden rows are float32 [rows, hidden]."""
        branches = self._branches(batch)
        asking = [b for b in branches if b.sequence.samples_now or b.sequence.target is not None]
        over: set[Sequence] = set()
        outcome = Outcome()
        if asking:
            rows = list(dict.fromkeys(b.row for b in asking))
            place = {row: i for i, row in enumerate(rows)}
            distributions = Distributions(*self._runner.output(hidden if len(rows) == len(hidden) else hidden[rows]))
            self.output_rows += len(rows)
            reporting = [b.sequence for b in asking if not b.sequence.samples_now]
            sampling = [b.sequence for b in asking if b.sequence.samples_now]
            if reporting:
                self._report(reporting, [place[b.row] for b in asking if not b.sequence.samples_now], distributions)
            if sampling:
                over = self._sample(sampling, [place[b.row] for b in asking if b.sequence.samples_now], distributions)
                outcome.news.update(s.request.handle for s in sampling)
        for branch in branches:
            self._settle(branch, branch.sequence in over, batch, outcome)
        return outcome

    def _branches(self, batch: Batch) -> list[Branch]:
        branches = []
        for row, sequence in enumerate(batch.sequences):
            branches.append(Branch(sequence, row, True))
            handle = sequence.request.handle
            if isinstance(handle, Scoring):
                handle.computed_tokens += 1
            if sequence.forks:
                # A child may fork again at the same depth; it then stands at the same row.
                due = sequence.due_forks()
                while due:
                    child = due.pop(0)
                    branches.append(Branch(child, row, False))
                    due.extend(child.due_forks())
        return branches

    def _settle(self, branch: Branch, over: bool, batch: Batch, outcome: Outcome) -> None:
        sequence = branch.sequence
        goes_on = not over if sequence.samples_now else sequence.force_next()
        if not goes_on:
            outcome.ended.append(sequence)
        elif branch.owns_row:
            outcome.keep.append(branch.row)
        else:
            sequence.state = batch.copy_row(branch.row)
            outcome.forked.append(sequence)

    def _report(self, sequences: list[Sequence], places: list[int], distributions: Distributions) -> None:
        """Note the figures of each sequence's forced token; places: its row of `distributions`."""
        targets = np.array([s.target for s in sequences], np.int64)
        rows = distributions.logprobs[places]
        raw = rows[np.arange(len(rows)), targets]
        values = on_grid(raw)
        for i, sequence in enumerate(sequences):
            figures = sequence.log
            assert figures is not None
            at = sequence.fed - figures.start
            figures.logprobs[at] = values[i]
            if figures.ranks is not None:
                figures.ranks[at] = 1 + int(np.count_nonzero(rows[i] > raw[i]))
            if figures.alternative_ids.shape[1]:
                figures.alternative_ids[at], figures.alternative_logprobs[at] = _alternatives(
                    rows[i : i + 1], figures.alternative_ids.shape[1]
                )

    def _sample(self, sequences: list[Sequence], places: list[int], distributions: Distributions) -> set[Sequence]:
        """Sample a token for each sequence; returns those whose sample is over."""
        over = set()
        continuations = [c for s in sequences if (c := s.continuation) is not None]
        logprobs = distributions.logprobs[places]
        tokens = sample_rows([c.sampler for c in continuations], distributions.logits[places], logprobs)
        values = on_grid(logprobs[np.arange(len(tokens)), tokens])
        self.tokens_sampled += len(tokens)
        now = self._clock()
        for i, (sequence, continuation) in enumerate(zip(sequences, continuations, strict=True)):
            if continuation.num_alternatives is not None:
                ids, best = _alternatives(logprobs[i : i + 1], continuation.num_alternatives)
                continuation.sample.alternatives.append((ids.tolist(), best.tolist()))
            sequence.next_token = tokens[i]
            handle = sequence.request.handle
            if handle.first_token_at is None:
                handle.first_token_at = now
            try:
                is_over = continuation.take(tokens[i], float(values[i]), self._runner.end_id)
            except Exception as error:  # a caller's matcher must not hurt other requests
                log.exception("a stop matcher failed")
                continuation.sample.finish = Finish.FAILED
                handle.failure = EngineFailed(f"the stop matcher failed: {type(error).__name__}")
                is_over = True
            if is_over:
                over.add(sequence)
        return over


def _alternatives(logprobs: Floats, count: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
    """The likeliest tokens of one row, float32 [1, vocabulary_size], and their log-probabilities."""
    if count == 0:
        return np.empty(0, np.int64), np.empty(0)
    ids = likeliest(logprobs, count)[0]
    return ids, on_grid(logprobs[0, ids])
