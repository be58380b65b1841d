"""The rows of a run together: their states, and their samplers.

Input: sequences, one sampler a row, the result of a run. Output: states, the inputs of a run, and the tokens that it
gave. Must not know: lanes, what becomes of the tokens.

Most rows are sampled inside the graph (graphs/sampler.py): those with a temperature of at least 0.2, min_p, top_p and,
of a small vocabulary, top_k. The others are sampled here from their log-probabilities, and so are, with a large
vocabulary, the few whose token lies outside its nucleus. A row's token does not depend on the rows beside it.
"""

from __future__ import annotations

from collections.abc import Iterable
from collections.abc import Sequence as SequenceOf
from dataclasses import replace
from typing import Any, Final, Generic, TypeVar

import numpy as np
import numpy.typing as npt

from meari.runtime.engine.runner import ReadInputs, Runner, RunResult, StateRow, States, WriteInputs
from meari.runtime.engine.sampling import (
    NO_LIMIT,
    Floats32,
    Ids,
    Sampler,
    on_grid,
    pick_by_cumulative,
    ranked,
    uniforms_of,
)
from meari.runtime.engine.sequences import Request, Sequence
from meari.runtime.graphs.sampler import NUM_LIMITS

MAX_STEPS: Final = 2**31
BELOW_ONE: Final = np.float32(1 - 2**-22)
NO_COLUMNS: Final = (1.0, 0.0, NO_LIMIT, NO_LIMIT)
Rows = list[tuple[int, Sampler]]
S = TypeVar("S", bound=Sequence)


class Batch(Generic[S]):
    """The sequences that run together, and their recurrent states, dense.

    sequences   row i belongs to sequences[i]
    states      state tensor -> float32 [rows, *shape]

    The states after a run are those before the next one, so nothing is copied while the same sequences run; only when
    some leave or join are the rows gathered again.
    """

    def __init__(self, runner: Runner) -> None:
        self._runner = runner
        self.sequences: list[S] = []
        self.states: States = runner.initial_states(0)

    def __len__(self) -> int:
        return len(self.sequences)

    def keep(self, rows: SequenceOf[int]) -> None:
        """Keep these rows, ascending and distinct, and drop the others."""
        if len(rows) != len(self.sequences):
            self.rearrange(rows, [self.sequences[row] for row in rows])

    def drop(self, request: Request) -> None:
        """Drop the rows of a request."""
        self.keep([row for row, sequence in enumerate(self.sequences) if sequence.request is not request])

    def clear(self) -> None:
        """Drop all rows, whatever state a failed turn has left them in."""
        self.sequences, self.states = [], self._runner.initial_states(0)

    def rearrange(self, rows: SequenceOf[int], sequences: list[S]) -> None:
        """Let sequences[i] continue from the state of row rows[i]; a row may be taken more than once."""
        places = np.asarray(rows, np.int64)
        self.states = {name: values[places] for name, values in self.states.items()}
        self.sequences = sequences

    def join(self, sequences: SequenceOf[S]) -> None:
        """Append a row for each sequence."""
        if not sequences:
            return
        fresh = self._runner.initial_states(len(sequences))
        for row, sequence in enumerate(sequences):
            if sequence.state is not None:
                for name, values in sequence.state.items():
                    fresh[name][row] = values
                sequence.state = None
        if self.sequences:
            fresh = {name: np.concatenate([old, fresh[name]]) for name, old in self.states.items()}
        self.states = fresh
        self.sequences = [*self.sequences, *sequences]

    def copy_row(self, row: int) -> StateRow:
        """Copy the state of one row."""
        return {name: values[row].copy() for name, values in self.states.items()}


def all_finite(values: Iterable[Floats32]) -> bool:
    """Return True if no number is NaN or infinite."""
    return all(np.isfinite(each).all() for each in values)


def broken_steps(values: Iterable[Floats32]) -> npt.NDArray[np.bool_]:
    """Return the steps of each row with a number that is not finite, bool [steps, rows].

    values  float32 [steps, rows, ...] each
    """
    found = [~np.isfinite(each).reshape(*each.shape[:2], -1).all(axis=2) for each in values]
    broken: npt.NDArray[np.bool_] = np.logical_or.reduce(found)
    return broken


def broken_outputs(run: RunResult) -> list[int]:
    """Return the numbers of the computed rows that hold no distribution: with NaN, or a token of infinite weight."""
    tables = [each for each in (run.picked_logprobs[:, None], run.logprobs) if each.size]
    if all(each.max() < np.inf for each in tables):  # False for NaN
        return []
    found: list[int] = np.flatnonzero(~np.logical_and.reduce([each.max(axis=1) < np.inf for each in tables])).tolist()
    return found


def with_placeholders(run: RunResult, outputs: list[int]) -> RunResult:
    """Return a result with zeros in place of some of its computed rows, so that the others can be sampled."""
    copies = {name: getattr(run, name).copy() for name in ("logits", "logprobs", "picked_logprobs")}
    for values in copies.values():
        if values.size:
            values[outputs] = 0.0
    return replace(run, **copies)


class RowSamplers:
    """Prepares runs for some rows, and chooses their tokens."""

    def __init__(self, samplers: SequenceOf[Sampler | None], *, sorts: bool, whole: bool = False) -> None:
        """Sort the rows by how their tokens are chosen.

        samplers  one a row, None for a row of which only the log-probabilities are wanted (then `whole`)
        sorts     whether the graph applies top_p and top_k (Runner.sorts)
        whole     whether log-probabilities of all tokens are wanted
        """
        self._num_rows = len(samplers)
        rows: Rows = [(row, sampler) for row, sampler in enumerate(samplers) if sampler is not None]
        in_graph = {row for row, sampler in rows if sampler.is_warm and (sorts or not sampler.is_top_k)}
        self._in_graph = np.array([row in in_graph for row in range(len(samplers))], bool)
        self._drawing = [sampler for row, sampler in rows if row in in_graph]
        columns = np.array([NO_COLUMNS if s is None else s.columns for s in samplers], np.float32)
        columns = columns.reshape(len(samplers), 1 + NUM_LIMITS)
        self._inverse = np.where(self._in_graph, columns[:, 0], np.float32(1))[:, None]
        self._limits = columns[:, 1:]
        self._top_p = columns[:, 2]
        self._targets = np.where(self._in_graph, -1, 0)[:, None]
        self._barring = [sampler for _, sampler in rows if sampler.num_before_end]
        self._bars = self._barred_tokens(rows) if self._barring else None
        self._tempered = bool((self._inverse != 1.0).any()) or self._bars is not None
        ours = self._limits[self._in_graph]
        self._is_limited = bool((ours[:, 0] > 0).any() or (sorts and (ours[:, 1:] < NO_LIMIT).any()))
        limited = self._in_graph & (self._top_p < 1.0) & (not sorts)
        self._nucleus: Rows = [(row, sampler) for row, sampler in rows if limited[row]]
        self._wants_whole = whole
        self.whole = whole or bool(self._nucleus) or len(in_graph) < len(samplers)
        self._greedy = [row for row, sampler in rows if sampler.is_greedy]
        top_k: Rows = [(row, sampler) for row, sampler in rows if sampler.is_top_k and row not in in_graph]
        self._top_k = [row for row, _ in top_k]
        self._top_k_sampler = TopKSampler([sampler for _, sampler in top_k]) if top_k else None
        elsewhere = {*in_graph, *self._greedy, *self._top_k}
        self._single: Rows = [(row, sampler) for row, sampler in rows if row not in elsewhere]
        self._is_greedy = len(self._greedy) == len(samplers)
        self._counting: Rows = [(row, sampler) for row, sampler in rows if sampler.reshapes]

    def read_inputs(
        self, places: Ids, before: tuple[Ids, Ids] | None = None, *, ranks: bool = False, num_best: int = 0
    ) -> ReadInputs:
        """Return the inputs of a run that computes these rows at `places`.

        places           int64 [rows]
        before           places and targets, int64 [n] each, of rows with given targets that come first
        ranks, num_best  further figures of all rows, see `ReadInputs`
        """
        uniforms = np.zeros((len(places), 1), np.float32)
        if self._drawing:
            uniforms[self._in_graph, 0] = self._drawn(1)[:, 0]
        columns: list[npt.NDArray[Any]] = [self._targets, uniforms, self._inverse, self._limits]
        if before is not None and len(before[0]):
            places = np.concatenate([before[0], places])
            zeros = np.zeros((len(before[0]), 1), np.float32)
            given = (before[1][:, None], zeros, zeros, np.zeros((len(before[0]), NUM_LIMITS), np.float32))
            columns = [np.concatenate([ours, theirs]) for ours, theirs in zip(given, columns, strict=True)]
        targets, numbers, inverse, limits = columns
        wants = (bool(self._nucleus), self.whole, bool(self._single))
        flags = (bool(self._drawing), self._tempered, self._is_limited, *wants)
        bars = self._bars
        if bars is not None:
            bars = np.concatenate([np.full((len(places) - len(bars), 1), -1), bars])
        return ReadInputs(places, targets, numbers, inverse, limits, *flags, bars, ranks=ranks, num_best=num_best)

    @property
    def may_write(self) -> bool:
        """Return True if the graph can sample several tokens of these rows one after another."""
        return bool(self._num_rows) and (not self.whole or (self._is_greedy and not self._wants_whole))

    @property
    def is_stale(self) -> bool:
        """True once a row has to be sampled differently, because its text is now long enough to end."""
        return not all(sampler.num_before_end for sampler in self._barring)

    @property
    def max_steps(self) -> int:
        """The number of tokens a row before the samplers may be stale."""
        return min((sampler.num_before_end for sampler in self._barring), default=MAX_STEPS)

    def write_inputs(self, steps: int) -> WriteInputs:
        """Return the inputs of a run that writes `steps` tokens of every row."""
        uniforms = np.zeros((steps, self._num_rows, 1), np.float32)
        if not self._is_greedy:
            uniforms[:, :, 0] = self._drawn(steps).T
        for sampler in self._barring:
            sampler.advance(steps)
        flags = (not self._is_greedy, self._tempered, self._is_limited)
        return WriteInputs(uniforms, self._inverse, self._limits, *flags, self._bars)

    def _drawn(self, steps: int) -> Floats32:
        """Draw the uniform numbers of the next tokens of the rows that the graph samples, float32 [rows, steps]."""
        bits = b"".join([sampler.take_bits(steps) for sampler in self._drawing])
        drawn = uniforms_of(bits).astype(np.float32).reshape(-1, steps)
        return np.minimum(drawn, BELOW_ONE)

    @np.errstate(over="ignore")  # of a tiny temperature or penalty: exp(-inf) is 0, as it should be
    def choose(self, result: RunResult, first: int = 0) -> tuple[list[int], list[float]]:
        """Return tokens and their log-probabilities, for the computed rows from `first` on."""
        tokens: list[int] = result.picked[first:].tolist()
        raw = result.picked_logprobs[first:]
        if self.whole and tokens:
            logprobs = result.logprobs[first:]
            self._correct(tokens, result, logprobs, first)
            raw = logprobs[np.arange(len(tokens)), tokens]
        for barring in self._barring:
            barring.advance(1)
        for row, sampler in self._counting:
            sampler.count(tokens[row])
        values: list[float] = on_grid(raw).tolist()
        return tokens, values

    def _correct(self, tokens: list[int], result: RunResult, logprobs: Floats32, first: int) -> None:
        """Choose the tokens that the graph does not choose."""
        if self._nucleus:
            weights = np.exp(result.picked_logprobs[first:] * self._inverse[:, 0])
            inside = result.mass_from[first:] - weights < self._top_p * result.mass[first:]
            for row, sampler in self._nucleus:
                if not inside[row]:
                    tokens[row] = sampler.redraw(logprobs[row], tokens[row])
        if self._greedy:
            likely = logprobs[self._greedy]
            if self._bars is not None:
                bars = self._bars[self._greedy, 0]
                likely[bars >= 0, bars[bars >= 0]] = -np.inf
            for row, token in zip(self._greedy, likely.argmax(axis=1).tolist(), strict=True):
                tokens[row] = token
        if self._top_k_sampler is not None:
            chosen = logprobs if len(self._top_k) == len(logprobs) else logprobs[self._top_k]
            for row, token in zip(self._top_k, self._top_k_sampler.pick(chosen).tolist(), strict=True):
                tokens[row] = token
        for row, sampler in self._single:
            tokens[row] = _pick(sampler, result.logits[first + row], logprobs[row])

    def _barred_tokens(self, rows: Rows) -> Ids:
        """Return the token that each row must not be given, or -1: int64 [rows, 1]."""
        bars = np.full((self._num_rows, 1), -1)
        for row, sampler in rows:
            if sampler.num_before_end:
                bars[row] = sampler.end_id
        return bars


def _pick(sampler: Sampler, logits: Floats32, logprobs: Floats32) -> int:
    """Pick a token of one row by its logits; where those hold none, the log-probabilities become NaN, too."""
    if not logits.max() < np.inf:  # False for NaN
        logprobs[:] = np.nan
    return sampler.pick(logits)


class TopKSampler:
    """Samplers with a top_k, and maybe a min_p and a top_p of the tokens that it leaves."""

    def __init__(self, samplers: SequenceOf[Sampler]) -> None:
        self._samplers = samplers
        settings = [sampler.settings for sampler in samplers]
        self._counts = np.array([s.top_k for s in settings])
        columns = np.array([(s.temperature, s.top_p, s.min_p) for s in settings])[:, :, None]
        self._temperatures, self._top_p, self._min_p = columns.transpose(1, 0, 2)

    def pick(self, logprobs: Floats32) -> Ids:
        """Pick a token for each sampler's row; logprobs: float32 [rows, vocabulary_size], returns int64 [rows]."""
        counts = np.minimum(self._counts, logprobs.shape[1])
        scores, tokens = ranked(logprobs, counts)
        kth = np.take_along_axis(scores, counts[:, None] - 1, axis=1)
        weights = np.exp((scores - scores[:, :1]) / self._temperatures)
        weights[(scores < kth) | (weights < self._min_p)] = 0.0
        running = np.cumsum(weights, axis=1)  # in order, so that a row's sums do not depend on the longest row
        outside = (running - weights >= self._top_p * running[:, -1:]) & (self._top_p < 1.0)
        outside[:, 0] = False
        weights[outside] = 0.0
        chosen = pick_by_cumulative(weights, np.array([sampler.uniform() for sampler in self._samplers]))
        picked: Ids = tokens[np.arange(len(tokens)), chosen]
        return picked
