"""Is more asked for than can be done? Then fewer requests are let in, so that those inside are answered soon.

Enters: when requests arrive and when they leave. Leaves: whether one that arrives is let in. Knows nothing of models.

With N requests inside and X answered a second, each takes N / X seconds (Little's law). X hardly grows any more once
the engine's batch has reached its knee, so beyond it every further request only makes all wait longer. Yet a limit
on N alone would refuse sixty clients that each wait for their answer before they ask again, or a burst that is soon
over. What tells them from overload is how N grows: theirs grows at once and then stays, for one request arrives
as one leaves; under overload it goes on growing.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

__all__ = ["OverloadGate"]

SLICE_SECONDS: Final = 0.1
NUM_SLICES: Final = 30
BURST_SLICES: Final = 3  # of the window are not counted, those that grew the most: a burst falls into as many
GROWTH: Final = 8  # requests, in all other slices together: more than chance
CALM_RATIO: Final = 1.05  # of what arrived to what left: what is asked for can be done
MAX_RETRY_SECONDS: Final = 60


@dataclass
class Slice:
    """What happened in a stretch of SLICE_SECONDS."""

    number: int
    arrived: int = 0
    left: int = 0


class OverloadGate:
    """Not safe by itself: its owner holds a lock around every call."""

    def __init__(self, num_free: int, clock: Callable[[], float] = time.monotonic) -> None:
        """`num_free` requests are let in whatever happens, until there is overload."""
        self._num_free = num_free
        self._clock = clock
        self._slices: deque[Slice] = deque()
        self.is_limiting = False

    def admits(self, num_inside: int, knee: Callable[[], int]) -> bool:
        """Note an arrival; true where it is let in.

        num_inside   requests that were let in and have not left
        knee         so many of them are enough to keep the engine at its best
        """
        self._now().arrived += 1
        if self.is_limiting:
            self.is_limiting = not self._is_calm()
        else:
            self.is_limiting = num_inside > self._num_free and self._is_growing()
        return not self.is_limiting or num_inside < knee()

    def note_left(self) -> None:
        """Note that a request that was let in has ended."""
        self._now().left += 1

    def retry_after_seconds(self) -> int:
        """When one that is refused may ask again: the later, the more is asked for."""
        arrived, left = self._totals()
        return min(MAX_RETRY_SECONDS, math.ceil(arrived / left)) if arrived > left > 0 else 1

    def _now(self) -> Slice:
        number = int(self._clock() / SLICE_SECONDS)
        while self._slices and self._slices[0].number <= number - NUM_SLICES:
            self._slices.popleft()
        if not self._slices or self._slices[-1].number != number:
            self._slices.append(Slice(number))
        return self._slices[-1]

    def _is_growing(self) -> bool:
        growth = sorted(piece.arrived - piece.left for piece in self._slices)
        return sum(growth[:-BURST_SLICES]) > GROWTH

    def _is_calm(self) -> bool:
        arrived, left = self._totals()
        return arrived <= CALM_RATIO * left

    def _totals(self) -> tuple[int, int]:
        return sum(piece.arrived for piece in self._slices), sum(piece.left for piece in self._slices)
