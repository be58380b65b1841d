"""Figures counted by size, as a histogram of Prometheus has them, for a price that a busy loop can pay.

Enters: values. Leaves: how many lay between which bounds, and their sum. Knows nothing of Prometheus. Its owner guards
it; a reader of another thread may miss what is being noted, and sees it the next time.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["NONE", "Tallied", "Tally"]


@dataclass(frozen=True)
class Tallied:
    """What a tally held at some moment.

    counts  values in each bucket, not added up: up to its bound, and past the last bound
    total   their sum
    """

    counts: tuple[int, ...] = ()
    total: float = 0.0

    def since(self, before: Tallied) -> Tallied:
        """What has been added to `before`, which may be NONE."""
        if not before.counts:
            return self
        counts = tuple(now - then for now, then in zip(self.counts, before.counts, strict=True))
        return Tallied(counts, self.total - before.total)


NONE = Tallied()


class Tally:
    """A histogram that only counts."""

    __slots__ = ("_bounds", "_counts", "_total")

    def __init__(self, bounds: Sequence[float]) -> None:
        """bounds: the largest value of each bucket, ascending; what is larger than all has a bucket of its own."""
        self._bounds = tuple(bounds)
        self._counts = [0] * (len(self._bounds) + 1)
        self._total = 0.0

    def note(self, value: float, times: int = 1) -> None:
        """Count a value so many times."""
        self._counts[bisect_left(self._bounds, value)] += times
        self._total += value * times

    def read(self) -> Tallied:
        """What has been counted so far."""
        return Tallied(tuple(self._counts), self._total)
