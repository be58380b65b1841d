"""Admission of requests: bounds on their number and bytes, and fewer requests under overload.

Input: arriving requests, the bytes that each is about to hold, and when each ends. Output: a ticket, or Overloaded or
TooLarge. Must not know: models, and what a request asks for.

With N requests inside and X answered per second, each takes N / X seconds (Little's law). X hardly grows once the
engine's batch has reached its knee, so every further request only makes all of them wait longer. Yet a limit on N alone
would refuse sixty clients that each wait for their answer before they send the next request, or a burst that is soon
over. Overload differs from both in how N grows: theirs grows at once and then stays, because one request arrives as
another leaves; under overload it keeps growing.

At each bound on N, a caller with fewer requests inside than its even share of the bound is let in all the same, up to
FAIR_REQUESTS beyond: one that sends a hundred requests at once does not keep out one that sends a single one.
"""

from __future__ import annotations

import math
import threading
import time
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from meari.errors import Overloaded, TooLarge
from meari.service.requests.limits import Quota

__all__ = ["Admission", "OverloadGate", "Ticket"]

SLICE_SECONDS: Final = 0.1
NUM_SLICES: Final = 30
BURST_SLICES: Final = 3  # the ones that grew most are not counted: a burst falls into as many
GROWTH: Final = 8  # requests, in all other slices together: more than chance
CALM_RATIO: Final = 1.05  # arrivals to departures: the engine keeps up
MAX_RETRY_SECONDS: Final = 60
FAIR_REQUESTS: Final = 16  # half of the threads beyond the bound
SMALL_BYTES: Final = 1 << 20  # of a request: only such ones may hold the last eighth of the bound on bytes


@dataclass
class Slice:
    """Arrivals and departures within SLICE_SECONDS."""

    number: int
    arrived: int = 0
    left: int = 0


class OverloadGate:
    """Detects overload by how the number of requests inside grows. Not thread-safe: its owner holds a lock."""

    def __init__(self, num_free: int, clock: Callable[[], float] = time.monotonic) -> None:
        """Let in `num_free` requests at any time, until there is overload."""
        self._num_free = num_free
        self._clock = clock
        self._slices: deque[Slice] = deque()
        self.is_limiting = False

    def bound(self, num_inside: int, knee: Callable[[], int]) -> int | None:
        """Note an arrival, and return how many requests may be inside; None where that is not limited.

        num_inside   number of requests that were let in and have not ended
        knee         number of them at which the engine runs best
        """
        self._now().arrived += 1
        if self.is_limiting:
            self.is_limiting = not self._is_calm()
        else:
            self.is_limiting = num_inside > self._num_free and self._is_growing()
        return knee() if self.is_limiting else None

    def note_left(self) -> None:
        """Note that a request that was let in has ended."""
        self._now().left += 1

    def retry_after_seconds(self) -> int:
        """Return when a refused request may be sent again: the more requests arrive, the later."""
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


class Admission:
    """The bounds of one worker; safe from any thread.

    knee  returns the number of requests at which the engine runs best
    """

    def __init__(self, max_requests: int, max_bytes: int, gate: OverloadGate, knee: Callable[[], int]) -> None:
        self._max_requests = max_requests
        self._max_bytes = max_bytes
        self._gate = gate
        self._knee = knee
        self._lock = threading.Lock()
        self._requests = 0
        self._inside: Counter[str] = Counter()  # requests by caller
        self._bytes = 0
        self.num_waiting_bytes = 0  # held for requests that have not come whole, as the worker's loop last said

    @property
    def num_requests(self) -> int:
        """Requests in flight, from their admission until their answer is sent."""
        return self._requests

    @property
    def num_bytes(self) -> int:
        """Bytes that the requests in flight hold."""
        return self._bytes

    def enter(self, share: str = "") -> Ticket:
        """Admit a request of the caller `share`; its ticket must be released. Raises Overloaded."""
        with self._lock:
            bound = self._gate.bound(self._requests, self._knee)
            if bound is not None and not self._has_room(share, bound):
                seconds = self._gate.retry_after_seconds()
                error = Overloaded(f"the service is overloaded; retry after {seconds} s")
                error.retry_after_seconds = seconds
                raise error
            if not self._has_room(share, self._max_requests):
                raise Overloaded(
                    f"{self._requests} requests are being handled, at most {self._max_requests} may; try again"
                )
            self._requests += 1
            self._inside[share] += 1
        return Ticket(self, share)

    def refuse_early(self, share: str) -> None:
        """Refuse a request that `enter` would refuse, before anything else is done for it. Raises Overloaded."""
        with self._lock:
            bound = self._knee() if self._gate.is_limiting else self._max_requests
            has_room = self._has_room(share, min(bound, self._max_requests))
        if not has_room:
            self.enter(share).release()  # it counts the arrival; seldom there is room again by now

    def _has_room(self, share: str, bound: int) -> bool:
        """Return True if the bound is not reached, or the caller has less than its even share of it inside."""
        if self._requests < bound:
            return True
        num_callers = len(self._inside) + (share not in self._inside)
        return self._inside[share] < bound // num_callers and self._requests < bound + FAIR_REQUESTS

    def take(self, count: int, held: int = 0) -> None:
        """Account for bytes about to be held. Raises TooLarge if they can never fit, Overloaded if not now.

        held  by the same request already
        """
        total = held + count
        bound = self._max_bytes if total <= SMALL_BYTES else self._max_bytes - self._max_bytes // 8
        with self._lock:
            if total > bound:
                raise TooLarge(
                    f"the request needs {total} bytes of memory, at most {bound} may be used: ask for less at once"
                )
            if count > 0 and self._bytes + self.num_waiting_bytes + count > bound:
                raise Overloaded(
                    f"{self._bytes} bytes of requests are being handled, no room for {count} more; try again"
                )
            self._bytes += count

    def give_back(self, share: str, count: int) -> None:
        """Undo `enter` and `take`; called by tickets."""
        with self._lock:
            self._requests -= 1
            self._inside[share] -= 1
            if not self._inside[share]:
                del self._inside[share]
            self._bytes -= count
            self._gate.note_left()


class Ticket:
    """The share of an admitted request; releasing it again does nothing.

    share  name of the caller, or its address
    quota  what its caller may still take; None for a caller without limits
    """

    def __init__(self, admission: Admission, share: str) -> None:
        self._admission: Admission | None = admission
        self.share = share
        self._bytes = 0
        self.quota: Quota | None = None

    def take_bytes(self, count: int) -> None:
        """Hold `count` bytes more, or fewer. Raises TooLarge, Overloaded."""
        assert self._admission is not None, "a released ticket holds nothing"
        self._admission.take(count, self._bytes)
        self._bytes += count

    def take_tokens(self, count: int) -> None:
        """Take tokens of the caller's minute. Raises TooLarge, RateLimited."""
        if self.quota is not None:
            self.quota.take(count)

    def release(self) -> None:
        """Release the request and its bytes."""
        admission, self._admission = self._admission, None
        if admission is not None:
            admission.give_back(self.share, self._bytes)
