"""The end of a worker: from SIGTERM until its last answer is sent.

Readiness fails first and new work is refused, while answers under way are finished; what is not done when the time is
up ends with what it has. Plain attributes, so that a signal handler may call `begin`.
"""

from __future__ import annotations

import time
from collections.abc import Callable

__all__ = ["Drain"]

LAST_SECONDS = 1.0  # kept of the grace for sending what is there


class Drain:
    """Begun at most once; every thread may ask."""

    def __init__(self, least_seconds: float, grace_seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._least_seconds = least_seconds
        self._grace_seconds = grace_seconds
        self._clock = clock
        self._began_at: float | None = None

    def begin(self) -> None:
        """Refuse new work from now on."""
        if self._began_at is None:
            self._began_at = self._clock()

    @property
    def has_begun(self) -> bool:
        """True while draining."""
        return self._began_at is not None

    def may_stop(self, num_requests: int) -> bool:
        """True once the worker need not take connections any more: nothing is under way, or time is up."""
        if self._began_at is None:
            return False
        waited = self._clock() - self._began_at
        return waited >= self._grace_seconds or (num_requests == 0 and waited >= self._least_seconds)

    @property
    def must_end(self) -> bool:
        """True when answers under way have to end now."""
        if self._began_at is None:
            return False
        return self._clock() - self._began_at >= self._grace_seconds - LAST_SECONDS
