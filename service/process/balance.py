"""How many connections each worker holds, so that all come to hold about as many.

Input: each worker's number of connections, in memory that the master process makes and all workers share. Output:
whether a worker holds clearly more than another, and how many connections a worker may hold at all. Must not know:
sockets.

All workers wait for new connections on one socket, and the kernel wakes them all: the quickest takes them, often
several in a row, and keeps them as long as their clients send requests. So a worker that holds clearly more than
another lets the others accept first.
"""

from __future__ import annotations

import contextlib
import mmap
import resource
from typing import Final

__all__ = ["Spread", "allowed_connections"]

NUM_PLACES: Final = 64  # of workers that live at the same time; where there are more, they share places
NOBODY: Final = -1
CLEARLY: Final = 1.125  # times as many
OTHER_FILES: Final = 64  # of a worker: its log, its engines, and what it reads now and then


class Spread:
    """The connections of all workers, by a worker's number; each writes its own alone."""

    def __init__(self) -> None:
        self._counts = memoryview(mmap.mmap(-1, 4 * NUM_PLACES)).cast("i")
        for place in range(NUM_PLACES):
            self.forget(place)

    def note(self, worker: int, num_connections: int) -> None:
        """What a worker holds now."""
        self._counts[worker % NUM_PLACES] = num_connections

    def forget(self, worker: int) -> None:
        """A worker has ended."""
        self._counts[worker % NUM_PLACES] = NOBODY

    def has_clearly_more(self, worker: int) -> bool:
        """Whether a worker holds clearly more than some other."""
        own = self._counts[worker % NUM_PLACES]
        least = min((count for count in self._counts.tolist() if count != NOBODY), default=own)
        return own > CLEARLY * least


def allowed_connections(wanted: int) -> int:
    """Ask the system for room for `wanted` connections; as many as it gives.

    Called in the master process, whose workers inherit the limit.
    """
    needed = wanted + OTHER_FILES
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= needed:
        return wanted
    with contextlib.suppress(OSError, ValueError):
        soft = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    return max(1, resource.getrlimit(resource.RLIMIT_NOFILE)[0] - OTHER_FILES)
