"""Who waits to be admitted.

The queue is bounded in requests. A caller reserves its place first, before it does any work such as tokenizing, and
is refused at once when there is none. Requests are admitted in the order of their arrival; one that there is no room
for lets those pass that need a lane of another kind (see lanes.py), and no others: they would keep it waiting for ever.

Threads: `reserve` and `add` from any thread, the rest from the engine's thread; one lock guards the queue and the
counts.
"""

from __future__ import annotations

import enum
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from types import TracebackType
from typing import Final, Self

import numpy as np
import numpy.typing as npt

from meari.errors import Overloaded
from meari.runtime.engine.beams import BeamSearch
from meari.runtime.engine.calls import Handle
from meari.runtime.engine.sequence import Sequence

FEW_TEXTS: Final = 4


class Kind(enum.Enum):
    """What kind of lane a request needs; of two that have had as much time the first comes first."""

    BRIEF = 0  # to score few texts
    WRITING = 1
    LIST = 2


@dataclass(eq=False)
class Request:
    """A call inside the engine: its handle, and the sequence from which all of its others fork off."""

    number: int
    handle: Handle
    num_rows: int = 1  # sequences that may want a row at the same time
    num_live: int = 0  # sequences that have not ended yet, forks to come included
    samples: bool = False  # a generation; else a scoring
    want_state: bool = False  # at the end of each sample
    is_list: bool = False  # many texts, which have a lane of their own
    root: Sequence | None = None
    beams: BeamSearch | None = None
    waiting: bool = True  # in the queue
    admitted: bool = False  # in the lanes
    kept: list[npt.NDArray[np.int64]] = field(default_factory=list)  # rows of the cache that are in no text of it yet

    @property
    def kind(self) -> Kind:
        """Of the lane that it needs first."""
        if self.samples:
            return Kind.WRITING
        return Kind.LIST if self.is_list else Kind.BRIEF


class Reservation:
    """A place in the queue. Use it as a context manager: what is not used is given back."""

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler: Scheduler | None = scheduler

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()

    def use(self) -> None:
        """Hand the place over to the request that is added now."""
        if self._scheduler is None:
            raise ValueError("reservation: already used or released, expected a fresh one for each call")
        self._scheduler = None

    def release(self) -> None:
        """Give the place back, unless it was used."""
        if self._scheduler is not None:
            self._scheduler.release_place()
            self._scheduler = None


class Scheduler:
    """The queue of waiting requests, bounded to `max_waiting` places."""

    def __init__(self, max_waiting: int) -> None:
        self._max_waiting = max_waiting
        self._queue: deque[Request] = deque()
        self._changed = threading.Condition()
        self._num_waiting = 0  # reserved or added, without a slot so far
        self._num_refused = 0
        self._open = True

    @property
    def num_waiting(self) -> int:
        """Requests that hold a place and have no slot yet."""
        return self._num_waiting

    @property
    def num_refused(self) -> int:
        """Requests that found no place."""
        return self._num_refused

    @property
    def is_open(self) -> bool:
        """False once the engine is to end."""
        return self._open

    def reserve(self) -> Reservation:
        """Take a place in the queue. Raises Overloaded when all are taken."""
        with self._changed:
            if self._num_waiting >= self._max_waiting:
                self._num_refused += 1
                raise Overloaded(
                    f"{self._num_waiting} requests are waiting already, at most {self._max_waiting} may; try again"
                )
            self._num_waiting += 1
        return Reservation(self)

    def try_reserve(self, for_list: bool) -> Reservation | None:
        """A place where there is one; for_list: only of the half of the queue that long lists share."""
        with self._changed:
            if self._num_waiting >= (max(1, self._max_waiting // 2) if for_list else self._max_waiting):
                return None
            self._num_waiting += 1
        return Reservation(self)

    def release_place(self) -> None:
        """A place of the queue is free again."""
        with self._changed:
            self._num_waiting -= 1

    def add(self, request: Request, reservation: Reservation) -> bool:
        """Queue a request on its reserved place; False when the scheduler is closed."""
        reservation.use()
        with self._changed:
            if self._open:
                if request.waiting:  # else its time is up already
                    self._queue.append(request)
                    self._changed.notify()
            elif request.waiting:
                self._leave_queue(request)
            return self._open

    def wake(self) -> None:
        """Let `wait_for_work` return."""
        with self._changed:
            self._changed.notify()

    def close(self) -> None:
        """Take no more requests and wake the engine's thread."""
        with self._changed:
            self._open = False
            self._changed.notify()

    def wait_for_work(self) -> None:
        """Block until a request waits or the scheduler is closed. A call of `wake` may end it early."""
        with self._changed:
            if not self._queue and self._open:
                self._changed.wait()

    def admit(self, has_room: Callable[[Request], bool]) -> list[Request]:
        """Take the waiting requests, first come first, for which `has_room` says yes; it counts those it lets in."""
        if not self._queue:
            return []
        admitted = []
        full: set[Kind] = set()
        with self._changed:
            for request in list(self._queue):
                if request.kind in full:
                    continue
                if not has_room(request):
                    full.add(request.kind)
                    continue
                self._queue.remove(request)
                self._leave_queue(request)
                request.admitted = True
                admitted.append(request)
        return admitted

    def remove(self, request: Request) -> None:
        """Forget a request that has ended, be it before it was added."""
        with self._changed:
            if request.waiting:
                if request in self._queue:
                    self._queue.remove(request)
                self._leave_queue(request)

    def _leave_queue(self, request: Request) -> None:
        request.waiting = False
        self._num_waiting -= 1
