"""Time that may be spent. In: seconds and a clock. Out: what is left, and a smaller budget for a part of the work."""

from collections.abc import Callable
from dataclasses import dataclass

Clock = Callable[[], float]


class OutOfTime(Exception):
    """The budget ended before there was anything to judge a claim by."""


@dataclass(frozen=True)
class Budget:
    """end   when the time is up, on the clock's scale, in seconds"""

    end: float
    clock: Clock

    @staticmethod
    def of(seconds: float, clock: Clock) -> "Budget":
        """A budget that begins now."""
        return Budget(clock() + seconds, clock)

    @property
    def seconds_left(self) -> float:
        """Never below zero."""
        return max(0.0, self.end - self.clock())

    @property
    def is_spent(self) -> bool:
        return self.seconds_left <= 0

    def part(self, share: float) -> "Budget":
        """A budget of so large a share of what is left; what a part does not need stays with the whole."""
        return Budget(self.clock() + share * self.seconds_left, self.clock)
