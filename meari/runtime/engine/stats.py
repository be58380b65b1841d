"""Counters and measurements of an engine.

Input: numbers. Output: `EngineStats`, `HistogramCounts`, the pace of its runs. Must not know: sequences, Prometheus.

Owned by the engine's thread. Other threads may read: they may miss what is being counted, and see it the next time.
"""

from __future__ import annotations

import operator
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

GAP_SECONDS: Final = (
    0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0,
)  # fmt: skip
FIRST_STEPS: Final = 8  # of a turn, while the time of a step is unknown
MAX_STEPS: Final = 64  # of a turn, when a step takes no measurable time
SHORTEST: Final = 1e-6  # seconds
MEMORY: Final = 0.98  # share of what was counted before that still counts a turn later


@dataclass(frozen=True)
class HistogramCounts:
    """The content of a histogram at some moment.

    counts  values in each bucket, not cumulative: up to its bound, and past the last bound
    total   sum of the values
    """

    counts: tuple[int, ...] = ()
    total: float = 0.0

    def since(self, before: HistogramCounts) -> HistogramCounts:
        """Return what has been added to `before`, which may be `EMPTY`."""
        if not before.counts:
            return self
        counts = tuple(now - then for now, then in zip(self.counts, before.counts, strict=True))
        return HistogramCounts(counts, self.total - before.total)

    def plus(self, other: HistogramCounts) -> HistogramCounts:
        """Return both together; either may be `EMPTY`."""
        if not self.counts or not other.counts:
            return self if self.counts else other
        counts = tuple(map(operator.add, self.counts, other.counts))
        return HistogramCounts(counts, self.total + other.total)


EMPTY: Final = HistogramCounts()


class Histogram:
    """Counts of values by size, cheap enough for a busy loop. Its owner guards it."""

    __slots__ = ("_bounds", "_counts", "_total")

    def __init__(self, bounds: Sequence[float]) -> None:
        """bounds: the largest value of each bucket, ascending; values above all have a bucket of their own."""
        self._bounds = tuple(bounds)
        self._counts = [0] * (len(self._bounds) + 1)
        self._total = 0.0

    def add(self, value: float, times: int = 1) -> None:
        """Count a value `times` times."""
        self._counts[bisect_left(self._bounds, value)] += times
        self._total += value * times

    def read(self) -> HistogramCounts:
        """Return the counts so far."""
        return HistogramCounts(tuple(self._counts), self._total)


@dataclass
class EngineStats:
    """Counters since the start, kept by the engine's thread; and, in a copy that `Engine.stats` returns, gauges."""

    steps: int = 0  # runs of the graph: a token of every sequence that writes, or some of those that read
    rows: int = 0  # tokens fed, over all steps
    output_rows: int = 0  # distributions computed
    tokens_sampled: int = 0  # those of every hypothesis of a beam search included
    tokens_written: int = 0  # of samples; of a beam search those of its results
    cache_queries: int = 0  # requests that looked for their prefix in the cache
    cache_hits: int = 0  # requests that found at least one token there
    cached_tokens: int = 0  # tokens that were taken from the cache, not run
    looked_up_tokens: int = 0  # tokens whose state was looked for in the cache
    requests_running: int = 0  # admitted and not ended
    requests_refused: int = 0
    running: int = 0  # sequences that hold a row
    waiting: int = 0  # requests that hold a place in the queue
    waiting_tokens: int = 0  # that those may need
    cache_bytes: int = 0  # in use
    fixed_seconds: float = 0.0  # CPU time of all writing turns, whatever the number of their rows
    token_gaps: HistogramCounts = EMPTY  # seconds from one token of a sample to the next

    def plus(self, other: EngineStats) -> EngineStats:
        """Return the sums of two engines' counters and gauges."""
        ours, theirs = vars(self), vars(other)
        sums = {name: ours[name] + theirs[name] for name in ours.keys() - {"token_gaps"}}
        return EngineStats(**sums, token_gaps=self.token_gaps.plus(other.token_gaps))


class TokenGaps:
    """Times that samples wait from one token to the next.

    Counted once a turn, not once a token: the tokens of a turn share the time since the turn before it evenly. A sample
    that has just joined has waited since its first token. Tokens of beams are not counted: they come all at once, at
    the end.
    """

    def __init__(self) -> None:
        self._histogram = Histogram(GAP_SECONDS)
        self._turn_ended_at = 0.0

    def add(self, joined: Iterable[tuple[float, int]], num_tokens: int, steps: int, now: float) -> None:
        """Count the gaps of a turn that ended `now`.

        joined      (time of its first token, tokens since) of each sample whose only token came before this turn
        num_tokens  of all samples in this turn, their first ones left out
        steps       tokens of each sample that did not end
        """
        for first_token_at, count in joined:
            self._histogram.add((now - first_token_at) / steps, count)
            num_tokens -= count
        if num_tokens > 0:
            self._histogram.add((now - self._turn_ended_at) / steps, num_tokens)
        self._turn_ended_at = now

    def read(self) -> HistogramCounts:
        """Return the gaps so far."""
        return self._histogram.read()


class Pace:
    """CPU time of a step by the number of rows, that of the rest of a turn, and how often texts end, as observed.

    Time on the clock would say more about a busy machine than about a step: turns would become small where every turn
    waits for the interpreter or for a CPU, and so cost more.
    """

    def __init__(self) -> None:
        self._seconds: dict[int, tuple[float, float]] = {}  # by the bit length of the number of rows: step, rest
        self._num_tokens = self._num_ends = 0.0

    def add(self, rows: int, steps: int, run_seconds: float, turn_seconds: float) -> None:
        """Take the time of a turn into account, of which `run_seconds` went into its steps."""
        size = rows.bit_length()
        step, rest = run_seconds / steps, max(0.0, turn_seconds - run_seconds)
        old_step, old_rest = self._seconds.get(size, (step, rest))
        self._seconds[size] = 0.75 * old_step + 0.25 * step, 0.75 * old_rest + 0.25 * rest

    @property
    def fixed_seconds(self) -> float:
        """CPU time that a turn takes beside its steps, whatever the number of its rows: that of the fewest seen."""
        return min((rest for _, rest in self._seconds.values()), default=0.0)

    def max_steps(self, rows: int, turn_seconds: float) -> int:
        """Return the number of steps that fit into a turn."""
        if rows.bit_length() not in self._seconds:
            return FIRST_STEPS
        step, rest = self._seconds[rows.bit_length()]
        return max(1, int((turn_seconds - rest) / step)) if step > 0 else MAX_STEPS

    def add_ends(self, num_tokens: int, num_ends: int) -> None:
        """Take into account how many of a turn's tokens ended a text that could have had more."""
        self._num_tokens = MEMORY * self._num_tokens + num_tokens
        self._num_ends = MEMORY * self._num_ends + num_ends

    def best_steps(self, num_left: Sequence[int], max_steps: int) -> int:
        """Return the number of steps of a turn in which the most tokens that somebody wants are run a second.

        num_left   tokens that each row has left; in steps past them, or past the end of its text, it runs in vain
        max_steps  the most steps to return

        A longer turn spreads its fixed cost over more tokens, and runs more of them in vain.
        """
        step, rest = self._seconds.get(len(num_left).bit_length(), (1.0, 1.0))
        steps = np.arange(1, max_steps + 1)
        going_on = (1.0 - self._num_ends / max(1.0, self._num_tokens)) ** (steps - 1)
        wanted = (np.array(num_left)[:, None] >= steps).sum(axis=0) * going_on
        return int((wanted.cumsum() / (max(rest, SHORTEST) + step * steps)).argmax()) + 1
