"""The samplers of the rows of a run together: what the run is asked for them, and the tokens that come of it.

Most rows are sampled inside the graph (runtime/graphs/sampler.py): those with a temperature of at least 0.2, min_p,
top_p and, of a small vocabulary, top_k. The others are picked here from their log-probabilities, and so are, with a
large vocabulary, the few whose pick lies outside its nucleus. A row's token does not depend on the rows beside it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from meari.runtime.engine.ranking import ranked
from meari.runtime.engine.runs import Asked, Ran, Written
from meari.runtime.engine.sampling import NO_LIMIT, Floats32, Ids, Sampler, on_grid, pick_by_cumulative
from meari.runtime.graphs.sampler import NUM_LIMITS

MOST_STEPS: Final = 2**31
BELOW_ONE: Final = np.float32(1 - 2**-22)
NO_COLUMNS: Final = (1.0, 0.0, NO_LIMIT, NO_LIMIT)


class Draws:
    """The samplers of some rows together: what a run is asked for them, and the tokens that come of it."""

    def __init__(self, samplers: Sequence[Sampler | None], sorts: bool, whole: bool = False) -> None:
        """samplers: one a row, None for a row of which only the log-probabilities are wanted (`whole`).

        sorts  whether the graph applies top_p and top_k (Runner.sorts)
        """
        self._samplers = samplers
        in_graph = [s is not None and s.is_warm and (sorts or not s.is_top_k) for s in samplers]
        self._in_graph = np.array(in_graph, bool)
        self._drawing = [s for s, used in zip(samplers, in_graph, strict=True) if s is not None and used]
        columns = np.array([NO_COLUMNS if s is None else s.columns for s in samplers], np.float32)
        columns = columns.reshape(len(samplers), 1 + NUM_LIMITS)
        self._inverse = np.where(self._in_graph, columns[:, 0], np.float32(1))[:, None]
        self._limits = columns[:, 1:]
        self._top_p = columns[:, 2]
        self._targets = np.where(self._in_graph, -1, 0)[:, None]
        self._limited = self._in_graph & (self._top_p < 1.0) & (not sorts)
        self._barring = [s for s in samplers if s is not None and s.num_before_end]
        self._bars = self._barred_tokens() if self._barring else None
        self._tempered = bool((self._inverse != 1.0).any()) or self._bars is not None
        ours = self._limits[self._in_graph]
        self._is_limited = bool((ours[:, 0] > 0).any() or (sorts and (ours[:, 1:] < NO_LIMIT).any()))
        self._masses = bool(self._limited.any())
        self._wants_whole = whole
        self.whole = whole or self._masses or not all(in_graph)
        self._greedy = [row for row, s in enumerate(samplers) if s is not None and s.is_greedy]
        self._top_k = [row for row, s in enumerate(samplers) if s is not None and s.is_top_k and not in_graph[row]]
        self._pick_of_top_k = TopK([self._sampler(row) for row in self._top_k]) if self._top_k else None
        elsewhere = {*self._greedy, *self._top_k}
        self._single = [
            row for row, s in enumerate(samplers) if s is not None and not in_graph[row] and row not in elsewhere
        ]
        self._is_greedy = len(self._greedy) == len(samplers)
        self._tracking = [row for row, s in enumerate(samplers) if s is not None and s.reshapes]

    def asked(self, places: Ids, before: tuple[Ids, Ids] | None = None) -> Asked:
        """What to ask of a run for these rows at `places`, after rows with given targets (places and targets, [n])."""
        uniforms = np.zeros((len(places), 1), np.float32)
        if self._drawing:
            drawn = np.array([sampler.uniform() for sampler in self._drawing], np.float32)
            uniforms[self._in_graph, 0] = np.minimum(drawn, BELOW_ONE)
        columns: list[npt.NDArray[Any]] = [self._targets, uniforms, self._inverse, self._limits]
        if before is not None and len(before[0]):
            places = np.concatenate([before[0], places])
            nothing = np.zeros((len(before[0]), 1), np.float32)
            given = (before[1][:, None], nothing, nothing, np.zeros((len(before[0]), NUM_LIMITS), np.float32))
            columns = [np.concatenate([ours, theirs]) for ours, theirs in zip(given, columns, strict=True)]
        targets, numbers, inverse, limits = columns
        flags = (bool(self._drawing), self._tempered, self._is_limited, self._masses, self.whole)
        bars = self._bars
        if bars is not None:
            bars = np.concatenate([np.full((len(places) - len(bars), 1), -1), bars])
        return Asked(places, targets, numbers, inverse, limits, *flags, bars)

    @property
    def may_write(self) -> bool:
        """Whether the graph can take several tokens of these rows one after another."""
        return bool(self._samplers) and (not self.whole or (self._is_greedy and not self._wants_whole))

    @property
    def is_stale(self) -> bool:
        """True once a row is to be sampled in another way: its text is now long enough to end."""
        return not all(sampler.num_before_end for sampler in self._barring)

    @property
    def most_steps(self) -> int:
        """After so many tokens of each row, if not before, they are stale."""
        return min((sampler.num_before_end for sampler in self._barring), default=MOST_STEPS)

    def written(self, steps: int) -> Written:
        """How the next `steps` tokens of every row are taken."""
        uniforms = np.zeros((steps, len(self._samplers), 1), np.float32)
        if not self._is_greedy:
            drawn = np.array([s.uniforms(steps) for s in self._drawing], np.float32)
            uniforms[:, :, 0] = np.minimum(drawn, BELOW_ONE).T
        for sampler in self._barring:
            sampler.advance(steps)
        draws = not self._is_greedy
        return Written(uniforms, self._inverse, self._limits, draws, self._tempered, self._is_limited, self._bars)

    @np.errstate(over="ignore")  # of a tiny temperature or penalty: exp(-inf) is 0, as it should be
    def choose(self, ran: Ran, first: int = 0) -> tuple[list[int], list[float]]:
        """Tokens and their log-probabilities, for the rows from `first` on of what was asked for."""
        assert ran.picked is not None
        assert ran.picked_logprobs is not None
        tokens: list[int] = ran.picked[first:].tolist()
        raw = ran.picked_logprobs[first:]
        if self.whole and tokens:
            assert ran.logits is not None
            assert ran.logprobs is not None
            logprobs = ran.logprobs[first:]
            self._correct(tokens, ran, ran.logits[first:], logprobs, first)
            raw = logprobs[np.arange(len(tokens)), tokens]
        for barring in self._barring:
            barring.advance(1)
        for row in self._tracking:
            sampler = self._samplers[row]
            assert sampler is not None
            sampler.saw(tokens[row])
        values: list[float] = on_grid(raw).tolist()
        return tokens, values

    def _correct(self, tokens: list[int], ran: Ran, logits: Floats32, logprobs: Floats32, first: int) -> None:
        """Take the tokens that the graph does not take."""
        if self._masses:
            assert ran.mass is not None
            assert ran.mass_from is not None
            assert ran.picked_logprobs is not None
            weights = np.exp(ran.picked_logprobs[first:] * self._inverse[:, 0])
            inside = ran.mass_from[first:] - weights < self._top_p * ran.mass[first:]
            for row in np.flatnonzero(self._limited & ~inside).tolist():
                tokens[row] = self._sampler(row).settle(logprobs[row], tokens[row])
        if self._greedy:
            likely = logprobs[self._greedy]
            if self._bars is not None:
                bars = self._bars[self._greedy, 0]
                likely[bars >= 0, bars[bars >= 0]] = -np.inf
            for row, token in zip(self._greedy, likely.argmax(axis=1).tolist(), strict=True):
                tokens[row] = token
        if self._pick_of_top_k is not None:
            chosen = logprobs if len(self._top_k) == len(logprobs) else logprobs[self._top_k]
            for row, token in zip(self._top_k, self._pick_of_top_k(chosen).tolist(), strict=True):
                tokens[row] = token
        for row in self._single:
            tokens[row] = self._sampler(row).pick(logits[row])

    def _barred_tokens(self) -> Ids:
        """Return the token that each row must not be given, or -1: int64 [rows, 1]."""
        return np.array([[-1 if s is None or not s.num_before_end else s.end_id] for s in self._samplers], np.int64)

    def _sampler(self, row: int) -> Sampler:
        sampler = self._samplers[row]
        assert sampler is not None
        return sampler


class TopK:
    """Samplers with a top_k, and maybe a min_p and a top_p of what these leave. Callable once a run."""

    def __init__(self, samplers: Sequence[Sampler]) -> None:
        self._samplers = samplers
        settings = [sampler.settings for sampler in samplers]
        self._counts = np.array([s.top_k for s in settings])
        columns = np.array([(s.temperature, s.top_p, s.min_p) for s in settings])[:, :, None]
        self._temperatures, self._top_p, self._min_p = columns.transpose(1, 0, 2)

    def __call__(self, logprobs: Floats32) -> Ids:
        """A token for each sampler's row; logprobs: float32 [rows, vocabulary_size], returns int64 [rows]."""
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
