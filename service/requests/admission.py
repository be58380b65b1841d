"""Admission of requests: bounds on their number and bytes, and fewer requests under overload.

Input: arriving requests, the bytes that each is about to hold, and when each ends. Output: a ticket, or Overloaded or
TooLarge. Must not know: models, and what a request asks for.

With N requests inside and X answered per second, each takes N / X seconds (Little's law). Beyond some N X hardly
grows, so every further request only makes all of them wait longer. Yet a limit on N alone would refuse sixty clients
that each wait for their answer before they send the next request, or a burst that is soon over. Overload differs from
both in how N grows: theirs grows at once and then stays, because one request arrives as another leaves; under overload
it keeps growing.

At each bound on N, a caller with fewer requests inside than its even share of the bound is let in all the same, up to
FAIR_REQUESTS beyond: one that sends a hundred requests at once does not keep out one that sends a single one.
"""

from __future__ import annotations

import itertools
import math
import random
import threading
import time
from collections import Counter, deque
from collections.abc import Callable
from typing import Final

from meari.errors import Bound, Overloaded, TooLarge
from meari.service.requests.limits import Quota

__all__ = ["FAIR_REQUESTS", "Admission", "Ticket"]

SLICE: Final = 8  # departures
NUM_SLICES: Final = 48
BURST_SLICES: Final = 4  # the ones that grew most are not counted: a burst falls into as many
GROWTH: Final = 8  # requests, in all other slices together: more than chance
STEEP_SLICES: Final = 6  # of late: if even the calmer half of them
STEEP_GROWTH: Final = 2  # has grown by more than this together, it is no burst, whatever was before
IDLE_SECONDS: Final = 0.25  # without a request: what came before says nothing any more
CALM_RATIO: Final = 1.05  # arrivals to departures: the engine keeps up
CALM_SLICES: Final = 6  # that tell so once no request is inside
SILENCE: Final = 16  # departures and mean gaps between arrivals, without one, tell so, too
STORM_SLICES: Final = 4
STORM_RATIO: Final = 8  # arrivals to departures: clients do not wait before they ask again
LIGHT_LOAD: Final = 0.8  # of the rate of all slots: what still counts as no overload
LATENESS: Final = 2.0  # of an answer under overload, to one under light load
LEAST_RATE: Final = 0.95  # of that of all slots: so much is answered under overload, even if it is later then
FIRST_RATIO: Final = 2.0  # of a step's fixed cost to that of a request in it, until it is measured
MEMORY: Final = 0.8  # share of what was measured before, at every measurement
MAX_SHARE: Final = 0.85  # of the slots
BUSY_SHARE: Final = 0.5  # of a CPU: with less, a measurement says little
RETRY_SPREAD: Final = 2.0  # times as late as others, the last clients should ask again
MIN_INSIDE: Final = 8  # requests: with fewer, chance leaves a worker without work too often
MAX_RETRY_SECONDS: Final = 60
FAIR_REQUESTS: Final = 16  # half of the threads beyond the bound
SMALL_BYTES: Final = 1 << 20  # of a request: only such ones may hold the last eighth of the bound on bytes


class OverloadGate:
    """Detects overload by how the number of requests inside grows. Not thread-safe: its owner holds a lock.

    Time is counted in departures. However slow a worker is, a burst arrives between a few of them.

    num_inside   requests that a thread has, and that have not ended
    is_limiting  True under overload
    """

    def __init__(self, num_free: int, clock: Callable[[], float]) -> None:
        """num_free: requests that may be inside whether or not their number grows."""
        self._num_free = num_free
        self._clock = clock
        self._arrivals: deque[int]  # between SLICE departures each; the last one goes on
        self._starts: deque[float]  # times at which they began
        self._num_left: int  # departures in the last one
        self._num_left_alone: int  # since the last arrival
        self.is_limiting: bool
        self._changed_at = self._arrived_at = self._left_at = clock()
        self._inside_seconds = 0.0
        self.num_inside = 0
        self._begin()

    def inside_seconds(self) -> float:
        """Return the seconds that all requests have been inside so far, added up."""
        now = self._clock()
        self._inside_seconds += self.num_inside * (now - self._changed_at)
        self._changed_at = now
        return self._inside_seconds

    def note_arrival(self) -> None:
        """Note a request before it is let in or not. After a pause it is the first one of a new load."""
        if not self.num_inside and self._clock() - self._left_at > IDLE_SECONDS:
            self._begin()

    def note_entered(self) -> None:
        """Note a request that is let in."""
        self.note_arrival()
        self.inside_seconds()
        self._note_one(self._changed_at)
        self.num_inside += 1
        self.is_limiting = self.is_limiting or (self.num_inside > self._num_free and self._is_growing())

    def note_refused(self) -> None:
        """Note a request that is not let in.

        Clients that ask again at once, whatever they are told, are no independent arrivals: there are only so many of
        them, and as long as they are refused they keep the worker from its work. It lets them in up to its bounds.
        """
        self._note_one(self._clock())
        if self.is_limiting and self._arrived_lately(STORM_SLICES) > STORM_RATIO * STORM_SLICES * SLICE:
            self._begin()

    def note_left(self) -> None:
        """Note the end of a request that was let in."""
        self.inside_seconds()
        self._left_at = self._changed_at
        self.num_inside -= 1
        self._num_left += 1
        self._num_left_alone += 1
        if not self.num_inside and (self._is_silent() or self._is_calm()):
            self._begin()
        elif self._num_left == SLICE:
            arrived, left = self._totals()
            self.is_limiting = self.is_limiting and arrived > CALM_RATIO * left
            self._arrivals.append(0)
            self._starts.append(self._left_at)
            self._num_left = 0

    def retry_after_seconds(self) -> int:
        """Return when a refused request may be sent again: the more requests arrive, the later.

        Requests that are refused together should not come again together, so it is drawn from a range.
        """
        arrived, left = self._totals()
        ratio = arrived / left if arrived > left > 0 else 1.0
        return min(MAX_RETRY_SECONDS, math.ceil(ratio * random.uniform(1.0, RETRY_SPREAD)))  # noqa: S311 (no secret)

    def _begin(self) -> None:
        self._arrivals, self._starts = deque([0], NUM_SLICES), deque([self._clock()], NUM_SLICES)
        self._num_left = self._num_left_alone = 0
        self.is_limiting = False

    def _note_one(self, now: float) -> None:
        self._arrivals[-1] += 1
        self._num_left_alone = 0
        self._arrived_at = now

    def _is_silent(self) -> bool:
        return self._num_left_alone >= SILENCE and self._is_long(self._arrived_at)

    def _is_calm(self) -> bool:
        since = self._starts[-min(CALM_SLICES, len(self._starts))]
        return self._arrived_lately(CALM_SLICES) <= CALM_RATIO * CALM_SLICES * SLICE and self._is_long(since)

    def _is_long(self, since: float) -> bool:
        """Tell whether chance alone would have brought several arrivals since then.

        Requests that came together leave together: how many have left says nothing about the load, then.
        """
        mean_gap = (self._arrived_at - self._starts[0]) / max(1, sum(self._arrivals))
        return self._left_at - since > SILENCE * mean_gap

    def _is_growing(self) -> bool:
        growth = [arrived - SLICE for arrived in itertools.islice(self._arrivals, len(self._arrivals) - 1)]
        lately = sorted(growth[-STEEP_SLICES:])
        if len(lately) == STEEP_SLICES and sum(lately[: STEEP_SLICES // 2]) > STEEP_GROWTH:
            return True
        return sum(sorted(growth)[:-BURST_SLICES]) > GROWTH

    def _arrived_lately(self, num_slices: int) -> int:
        return sum(itertools.islice(reversed(self._arrivals), num_slices))

    def _totals(self) -> tuple[int, int]:
        return sum(self._arrivals), SLICE * (len(self._arrivals) - 1) + self._num_left


class Level:
    """The number of requests that make an answer twice as late as under light load, or more if the rate needs them.

    With N requests inside, a step takes a + b N seconds of CPU: a for the graph's weights and the turn, b for each
    request's share of everything else, its parsing and sending included. With r = a / b the rate is N / (r + N) of that
    of infinitely many, and an answer takes r + N units of time. The ratio is that of a model and a machine; it is found
    from the fixed part of all turns, the CPU time of the process, and how many requests were inside meanwhile, so it is
    measured at any load.

    At a share q of the highest rate (Poisson, the worker shared evenly), r + 1 and q make a negative binomial
    distribution of N, whose mean is (r + 1) q / (1 - q). An answer takes (r + 1) / (1 - q) units then, by Little's law.

    size  the number
    """

    def __init__(self, num_slots: int) -> None:
        self._num_slots = num_slots
        self._before = (0.0, 0.0, 0.0, 0.0)
        self._fixed, self._rest = FIRST_RATIO, 1.0  # CPU seconds of late: fixed ones times requests inside, all others

    @property
    def size(self) -> int:
        ratio = self._fixed / self._rest
        highest = self._num_slots / (ratio + self._num_slots)
        late = LATENESS * (ratio + 1.0) / (1.0 - LIGHT_LOAD * highest) - ratio
        needed = ratio * LEAST_RATE * highest / (1.0 - LEAST_RATE * highest)
        return max(MIN_INSIDE, round(min(max(late, needed), MAX_SHARE * self._num_slots)))

    def observe(self, now: float, inside_seconds: float, cpu_seconds: float, fixed_seconds: float) -> None:
        """Take what has been counted so far: all but `now` are totals since the start."""
        figures = (now, inside_seconds, cpu_seconds, fixed_seconds)
        seconds, inside, cpu, fixed = (new - old for new, old in zip(figures, self._before, strict=True))
        self._before = figures
        if 0.0 < fixed < cpu and cpu > BUSY_SHARE * seconds:
            self._fixed = MEMORY * self._fixed + inside / seconds * fixed
            self._rest = MEMORY * self._rest + cpu - fixed


class Admission:
    """The bounds of one worker; safe from any thread.

    max_requests  at any time
    num_slots     sequences that run in one step; more requests than that are inside before there can be overload
    """

    def __init__(
        self, max_requests: int, max_bytes: int, num_slots: int, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._max_requests = max_requests
        self._max_bytes = max_bytes
        self._gate = OverloadGate(num_slots, clock)
        self._clock = clock
        self._level = Level(num_slots)
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

    @property
    def level(self) -> int:
        """Requests that are let in under overload."""
        return self._level.size

    def observe(self, cpu_seconds: float, fixed_seconds: float) -> None:
        """Measure the level under overload; called now and then.

        cpu_seconds    of this process since its start
        fixed_seconds  of them, what all steps took whatever the number of their rows
        """
        with self._lock:
            self._level.observe(self._clock(), self._gate.inside_seconds(), cpu_seconds, fixed_seconds)

    @property
    def is_limiting(self) -> bool:
        """True under overload, while fewer requests are let in than the bounds allow."""
        return self._gate.is_limiting

    @property
    def may_refuse(self) -> bool:
        """True if `refuse_early` may refuse a request: it is to be asked before any work is done for one."""
        return self._gate.is_limiting or self._requests >= self._max_requests

    def note_received(self) -> None:
        """Note that a thread gets a request; `note_done` follows."""
        with self._lock:
            self._gate.note_entered()

    def note_done(self) -> None:
        """Note that a thread is done with a request, whatever became of it."""
        with self._lock:
            self._gate.note_left()

    def refuse_early(self, share: str, *, is_received: bool) -> None:
        """Refuse a request before anything else is done for it. Raises Overloaded.

        share        name of its caller, or its address
        is_received  a thread has it already
        """
        with self._lock:
            self._gate.note_arrival()
            is_overload = self._gate.is_limiting
            num_inside = self._gate.num_inside - is_received if is_overload else self._requests
            bound = min(self.level, self._max_requests) if is_overload else self._max_requests
            if self._has_room(share, num_inside, bound):
                return
            if not is_received:
                self._gate.note_refused()
            seconds = self._gate.retry_after_seconds()
        if not is_overload:
            raise self._full()
        error = Overloaded(f"the service is overloaded; retry after {seconds} s", Bound.OVERLOAD)
        error.retry_after_seconds = seconds
        raise error

    def enter(self, share: str = "") -> Ticket:
        """Admit a request of the caller `share`; its ticket must be released. Raises Overloaded."""
        with self._lock:
            if not self._has_room(share, self._requests, self._max_requests):
                raise self._full()
            self._requests += 1
            self._inside[share] += 1
        return Ticket(self, share)

    def _full(self) -> Overloaded:
        return Overloaded(f"{self._requests} requests are being handled, at most {self._max_requests} may; try again")

    def _has_room(self, share: str, num_inside: int, bound: int) -> bool:
        """Return True if the bound is not reached, or the caller has less than its even share of it inside."""
        if num_inside < bound:
            return True
        num_callers = len(self._inside) + (share not in self._inside)
        return self._inside[share] < bound // num_callers and num_inside < bound + FAIR_REQUESTS

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
                    f"{self._bytes} bytes of requests are being handled, no room for {count} more; try again",
                    Bound.BYTES,
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
