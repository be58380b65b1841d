"""The rows of a run together: their states, and their samplers.

Input: sequences, one sampler a row, the result of a run. Output: states, the inputs of a run, and the tokens that it
gave. Must not know: lanes, what becomes of the tokens.

Tokens are chosen inside the graph (graphs/sampler.py), but for rows with a temperature below 0.2, a bias or penalties,
whose logits leave it. A row's token does not depend on the rows beside it.
"""

from __future__ import annotations

from collections.abc import Iterable
from collections.abc import Sequence as SequenceOf
from dataclasses import replace
from functools import lru_cache
from typing import Final, Generic, TypeVar

import numpy as np
import numpy.typing as npt

from meari.runtime.engine.runner import Choices, ReadInputs, Runner, RunResult, StateRow, States, WriteInputs
from meari.runtime.engine.sampling import NO_LIMIT, Floats32, Ids, Sampler, on_grid, redraws_of, uniforms_of
from meari.runtime.engine.sequences import Request, Sequence
from meari.runtime.graphs.sampler import NUM_LIMITS

MAX_STEPS: Final = 2**31
BELOW_ONE: Final = np.float32(1 - 2**-22)
NO_COLUMNS: Final = (0.0, 0.0, NO_LIMIT, NO_LIMIT)
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
        self._initial: StateRow = {name: values[0] for name, values in runner.initial_states(1).items()}

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
        if not len(rows):
            self.clear()
            return
        places = np.asarray(rows, np.int64)
        self.states = {name: values[places] for name, values in self.states.items()}
        self.sequences = sequences

    def join(self, sequences: SequenceOf[S]) -> None:
        """Append a row for each sequence."""
        if not sequences:
            return
        rows = [sequence.state or self._initial for sequence in sequences]
        fresh = {name: np.array([row[name] for row in rows], np.float32) for name in self._initial}
        if self.sequences:
            fresh = {name: np.concatenate([old, fresh[name]]) for name, old in self.states.items()}
        self.states = fresh
        for sequence in sequences:
            sequence.state = None
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


@lru_cache(maxsize=64)
def whole_rows(num_rows: int) -> ReadInputs:
    """Return the inputs of a run of one step that computes the log-probabilities of all tokens in every row."""
    return RowSamplers([None] * num_rows, 0, whole=True).read_inputs(np.arange(num_rows))


class RowSamplers:
    """Prepares runs for some rows, and chooses their tokens."""

    def __init__(self, samplers: SequenceOf[Sampler | None], vocabulary_size: int, *, whole: bool = False) -> None:
        """Sort the rows by how their tokens are chosen.

        samplers  one a row, None for a row of which only the log-probabilities are wanted (then `whole`)
        whole     whether log-probabilities of all tokens are wanted
        """
        self._num_rows = len(samplers)
        rows = [(row, sampler) for row, sampler in enumerate(samplers) if sampler is not None]
        self._drawing = [(row, sampler) for row, sampler in rows if sampler.is_drawn]
        self._places = np.array([row for row, _ in self._drawing], np.int64)
        self._single = [(row, sampler) for row, sampler in rows if not (sampler.is_drawn or sampler.is_greedy)]
        self._counting = [(row, sampler) for row, sampler in rows if sampler.reshapes]
        self._barring = [sampler for _, sampler in rows if sampler.num_before_end]
        self.whole = whole or bool(self._single)
        self._num_redraws = 0
        self._choices = self._sorted(samplers, rows, vocabulary_size) if rows else None

    def _sorted(
        self, samplers: SequenceOf[Sampler | None], rows: list[tuple[int, Sampler]], vocabulary_size: int
    ) -> Choices:
        bars = self._barred_tokens(rows) if self._barring else None
        columns = np.array([s.columns if s is not None and s.is_drawn else NO_COLUMNS for s in samplers], np.float32)
        columns = columns.reshape(len(samplers), 1 + NUM_LIMITS)
        inverse, min_p, top_p, top_k = columns.T
        top_k[top_k >= vocabulary_size] = NO_LIMIT
        is_ranked = top_k < NO_LIMIT
        unranked = [sampler for row, sampler in self._drawing if not is_ranked[row]]
        self._num_redraws = max((sampler.num_redraws for sampler in unranked), default=0)
        return Choices(
            inverse_temperatures=columns[:, :1],
            limits=columns[:, 1:],
            samples=bool(self._drawing),
            likeliest=len(self._drawing) < len(samplers),
            num_ranked=int(top_k[is_ranked].max(initial=0)),
            unranked=bool(unranked),
            tempered=bool((inverse[~is_ranked] != 1.0).any()) or bars is not None,
            min_p=bool((min_p[~is_ranked] > 0).any()),
            nucleus=bool((top_p[~is_ranked] < NO_LIMIT).any()),
            bars=bars,
        )

    def read_inputs(
        self, places: Ids, before: tuple[Ids, Ids] | None = None, *, ranks: bool = False, num_best: int = 0
    ) -> ReadInputs:
        """Return the inputs of a run that computes these rows at `places`.

        places           int64 [rows]
        before           places and targets, int64 [n] each, of rows with given targets that come first
        ranks, num_best  further figures of all rows, see `ReadInputs`
        """
        choices = self._choices
        targets = np.full((len(places), 1), 0 if choices is None else -1)  # any token where none is chosen
        uniforms, redraws = (numbers[0] for numbers in self._drawn(1))
        if before is not None and (num_given := len(before[0])):
            places = np.concatenate([before[0], places])
            targets = np.concatenate([before[1][:, None], targets])
            uniforms, redraws = (np.pad(numbers, ((num_given, 0), (0, 0))) for numbers in (uniforms, redraws))
            choices = None if choices is None else choices.after(num_given)
        wants = (self.whole, bool(self._single))
        return ReadInputs(places, targets, uniforms, redraws, choices, *wants, ranks=ranks, num_best=num_best)

    @property
    def may_write(self) -> bool:
        """Return True if the graph can choose several tokens of these rows one after another."""
        return bool(self._num_rows) and not self.whole

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
        uniforms, redraws = self._drawn(steps)
        for sampler in self._barring:
            sampler.advance(steps)
        assert self._choices is not None, "a run that writes chooses its tokens"
        return WriteInputs(uniforms, redraws, self._choices)

    def _drawn(self, steps: int) -> tuple[Floats32, Floats32]:
        """Draw the random numbers of the next tokens, float32 [steps, rows, 1] and [steps, rows, redraws]."""
        uniforms = np.zeros((steps, self._num_rows, 1), np.float32)
        if not self._drawing:
            return uniforms, uniforms
        bits = b"".join([sampler.take_bits(steps) for _, sampler in self._drawing])
        numbers = uniforms_of(bits).astype(np.float32).reshape(-1, steps)
        uniforms[:, self._places, 0] = np.minimum(numbers, BELOW_ONE).T
        if not self._num_redraws:
            return uniforms, uniforms
        redraws = np.zeros((steps, self._num_rows, self._num_redraws), np.float32)
        more = redraws_of(bits, self._num_redraws).astype(np.float32).reshape(-1, steps, self._num_redraws)
        redraws[:, self._places] = np.minimum(more, BELOW_ONE).transpose(1, 0, 2)
        return uniforms, redraws

    def choose(self, result: RunResult, first: int = 0) -> tuple[list[int], list[float]]:
        """Return tokens and their log-probabilities, for the computed rows from `first` on.

        Where nothing is sampled, the latter are those of the likeliest tokens, and the tokens mean nothing.
        """
        tokens: list[int] = result.picked[first:].tolist()
        raw = result.logprobs[first:].max(axis=1) if self._choices is None else result.picked_logprobs[first:]
        if self._single:
            raw = raw.copy()
            for row, sampler in self._single:
                logprobs = result.logprobs[first + row]
                tokens[row] = _pick(sampler, result.logits[first + row], logprobs)
                raw[row] = logprobs[tokens[row]]
        for barring in self._barring:
            barring.advance(1)
        for row, sampler in self._counting:
            sampler.count(tokens[row])
        values: list[float] = on_grid(raw).tolist()
        return tokens, values

    def _barred_tokens(self, rows: list[tuple[int, Sampler]]) -> Ids:
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
