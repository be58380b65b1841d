"""Several calls of one request, waited for, cancelled and failed as one.

A long list takes no more than its share of the queue: what there is no place for waits in a `Backlog`, and the thread
that waits for the list queues it as places come free.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from meari.runtime.engine.calls import Finish, GenerateCall, Generation, Handle, News

if TYPE_CHECKING:
    from meari.runtime.engine.loop import Engine
    from meari.runtime.engine.scheduler import Reservation

__all__ = ["Backlog", "Together"]


class Backlog:
    """Generations of one request for which the queue has had no place yet.

    `feed` and `wait` are for one thread, `end` for any.
    """

    def __init__(self, engine: Engine, calls: Iterable[tuple[GenerateCall, Generation]]) -> None:
        self._engine = engine
        self._calls = deque(calls)
        self._deadline = min((call.deadline for call, _ in self._calls), default=0.0)
        self._queued: list[Generation] = []  # that may not have ended yet
        self._lock = threading.Lock()
        self._room = threading.Event()  # one of those has ended
        for _, handle in self._calls:
            handle.submitted_at = engine.clock()
            handle.on_end = self._room.set

    def feed(self, reservation: Reservation | None = None) -> bool:
        """Queue what there is room for, the first on a reserved place; returns whether some are left. Raises NotReady.

        What is left when its time is up ends without having been queued.
        """
        while self._calls:
            if self._engine.clock() >= self._deadline:
                self.end(Finish.TIMEOUT)
                return False
            place = reservation or self._place()
            reservation = None
            if place is None:
                return True
            with place:
                self._queue_next(place)
        return False

    def wait(self, timeout: float | None) -> bool:
        """Block until there may be room; False after `timeout` seconds."""
        found = self._room.wait(timeout)
        self._room.clear()
        return found

    def end(self, finish: Finish) -> None:
        """End all that are left."""
        with self._lock:
            left = [handle for _, handle in self._calls]
            self._calls.clear()
        for handle in left:
            handle.end(finish, self._engine.clock())

    def _place(self) -> Reservation | None:
        """Any place where none of its own is under way, so that it gets on; else one of those that lists may take."""
        self._queued = [handle for handle in self._queued if not handle.ended]
        return self._engine.try_reserve(for_list=bool(self._queued))

    def _queue_next(self, place: Reservation) -> None:
        with self._lock:
            if not self._calls:
                return  # it was cancelled meanwhile
            call, handle = self._calls.popleft()
        self._queued.append(handle)
        self._engine.generate(call, place, handle)


class Together:
    """Handles whose calls share `news`, from any thread; see `Awaited`. Only one waits where there is a backlog."""

    def __init__(self, handles: Sequence[Handle], news: News, now: float, backlog: Backlog) -> None:
        """now: on the engine's clock, for a request that asks nothing of the engine."""
        self._handles = tuple(handles)
        self._news = news
        self._now = now
        self._backlog = backlog

    @property
    def calls(self) -> tuple[Handle, ...]:
        """All of them."""
        return self._handles

    @property
    def deadline(self) -> float:
        """When the last of them must end."""
        return max((handle.deadline for handle in self._handles), default=self._now)

    @property
    def submitted_at(self) -> float:
        """When the first of them was."""
        return min((handle.submitted_at for handle in self._handles), default=self._now)

    @property
    def started_at(self) -> float | None:
        """When the first of them had a slot."""
        return _earliest(handle.started_at for handle in self._handles)

    @property
    def first_token_at(self) -> float | None:
        """When the first token of all was sampled."""
        return _earliest(handle.first_token_at for handle in self._handles)

    @property
    def cancelled(self) -> bool:
        """True once any of them was."""
        return any(handle.cancelled for handle in self._handles)

    @property
    def ended(self) -> bool:
        """True once all have."""
        return all(handle.ended for handle in self._handles)

    def wait_end(self, timeout: float | None = None) -> bool:
        """Block until all have ended or one has failed, at most `timeout` seconds; returns whether that is so.

        Raises NotReady where the engine takes no more of a list.
        """
        until = None if timeout is None else time.monotonic() + timeout
        while self._backlog.feed():
            if self._any_failed:
                return True
            if not self._backlog.wait(_left(until)):
                return self._any_failed
        for handle in self._handles:
            if not handle.wait_end(_left(until)):
                return self._any_failed
            if handle.failure is not None:
                return True
        return True

    def wait(self, timeout: float | None = None) -> bool:
        """Block until something was added to any of them since the last call, or all have ended. Raises NotReady."""
        self._backlog.feed()
        if not self.ended:
            self._news.wait(timeout)
        news = self._news.is_set()
        self._news.clear()
        return news or self.ended

    def cancel(self) -> None:
        """Ask the engine to drop all of them."""
        for handle in self._handles:
            handle.cancel()
        self._backlog.end(Finish.CANCELLED)

    def raise_for_failure(self) -> None:
        """Raise what ended one of them early."""
        for handle in self._handles:
            handle.raise_for_failure()

    @property
    def _any_failed(self) -> bool:
        return any(handle.failure is not None for handle in self._handles)


def _left(until: float | None) -> float | None:
    """Seconds until then."""
    return None if until is None else max(0.0, until - time.monotonic())


def _earliest(times: Iterable[float | None]) -> float | None:
    return min((time_ for time_ in times if time_ is not None), default=None)
