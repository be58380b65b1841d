"""Handles of accepted requests: what a caller waits for, reads and cancels.

Input: calls. Output: samples and scores that grow while the engine runs. Must not know: how they are computed.

Threads: the engine's thread alone fills a handle and ends it, exactly once. Every other thread may read what is there
(lists only grow), wait for additions, and cancel.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

from meari.errors import EngineFailed, MeariError, ScoreTimeout
from meari.runtime.engine.calls import (
    Event,
    Finish,
    GenerateCall,
    Reservation,
    Sample,
    ScoreCall,
    TextScore,
    sample_seed,
)


class Waitable(Protocol):
    """One handle, or several as one: something to wait for and to cancel."""

    @property
    def calls(self) -> tuple[Handle, ...]: ...
    @property
    def deadline(self) -> float: ...
    @property
    def submitted_at(self) -> float: ...
    @property
    def started_at(self) -> float | None: ...
    @property
    def first_token_at(self) -> float | None: ...
    @property
    def cancelled(self) -> bool: ...
    @property
    def ended(self) -> bool: ...
    def wait_end(self, timeout: float | None = None) -> bool: ...
    def wait(self, timeout: float | None = None) -> bool: ...
    def cancel(self) -> None: ...
    def raise_for_failure(self) -> None: ...


def _do_nothing() -> None:
    """Be called for nothing."""


class Handle:
    """An accepted request, from any thread: wait for it, cancel it, see why it ended."""

    def __init__(self, deadline: float, num_prompt_tokens: int, event: Event | None = None) -> None:
        self.deadline = deadline
        self.num_prompt_tokens = num_prompt_tokens  # of a prompt, or of a context and its texts
        self.submitted_at = 0.0  # this and the next three on the engine's clock
        self.started_at: float | None = None  # first slot
        self.first_token_at: float | None = None
        self.ended_at: float | None = None
        self.cached_tokens = 0  # tokens of the prompt or context whose state came from the cache
        self.computed_tokens = 0  # prompt, context and text tokens that were run: shared prefixes count once
        self.failure: MeariError | None = None
        self.cancelled = False
        self._event = event or Event()
        self._has_ended = False
        self._running = threading.Lock()  # held until the end: an event takes 1 kB, and a list has a thousand handles
        self._running.acquire()
        self.on_cancel: Callable[[], None] = _do_nothing
        self.on_end: Callable[[], None] = _do_nothing

    @property
    def calls(self) -> tuple[Handle, ...]:
        """The handle itself, as the only one."""
        return (self,)

    @property
    def ended(self) -> bool:
        """True once nothing more will be added."""
        return self._has_ended

    def wait_end(self, timeout: float | None = None) -> bool:
        """Block until the request ended, at most `timeout` seconds; returns whether it did."""
        if not self._has_ended:
            if not self._running.acquire(timeout=-1 if timeout is None else max(0.0, timeout)):
                return False
            self._running.release()
        return True

    def wait(self, timeout: float | None = None) -> bool:
        """Block until something was added since the last call or the request ended; returns False after `timeout`."""
        added = self._event.wait(timeout)
        self._event.clear()
        return added or self.ended

    def cancel(self) -> None:
        """Ask the engine to drop the request; its slots are free within a step."""
        self.cancelled = True
        self.on_cancel()

    def raise_for_failure(self) -> None:
        """Raise the error that ended the request early: EngineFailed, ScoreTimeout."""
        if self.failure is not None:
            raise self.failure

    # ---- the engine's thread only ----

    def notify(self) -> None:
        """Wake who waits for additions."""
        if not self._event.is_set():
            self._event.set()

    def note_first_token(self, now: float) -> None:
        """Keep the time of the first token."""
        if self.first_token_at is None:
            self.first_token_at = now

    def end(self, finish: Finish, now: float, failure: MeariError | None = None) -> None:
        """End the request; `finish` is LENGTH where everything was done."""
        assert not self.ended, "a request ends once"
        self.failure = failure or self.failure
        self._close(finish)
        self.ended_at = now
        self._has_ended = True
        self._running.release()
        self.on_cancel = _do_nothing  # else an engine that is replaced stays in memory as long as its last handles
        self.notify()
        self.on_end()

    def _close(self, finish: Finish) -> None:
        """Bring what is there into its final form."""


class Generation(Handle):
    """The samples of a GenerateCall, growing while the engine runs."""

    def __init__(self, call: GenerateCall) -> None:
        super().__init__(call.deadline, len(call.prompt), call.event)
        seed, is_sampled = call.sampling.seed, call.num_beams == 1
        self.samples = tuple(
            Sample(sample_seed(seed, call.position, index) if is_sampled else seed) for index in range(call.num_samples)
        )

    def _close(self, finish: Finish) -> None:
        for sample in self.samples:
            if sample.finish is None:
                sample.finish = finish


class Searching(Generation):
    """A GenerateCall that searches; its one sample stays empty."""

    def end(self, finish: Finish, now: float, failure: MeariError | None = None) -> None:
        """End the request, with an error where it was cut short."""
        if finish is Finish.TIMEOUT:
            failure = ScoreTimeout("the search did not end within the server's time limit; try again")
        elif finish is Finish.CANCELLED:
            failure = EngineFailed("the request was cancelled")
        super().end(finish, now, failure)


class Scoring(Handle):
    """The figures of a ScoreCall, there once it ended without failure."""

    def __init__(self, call: ScoreCall) -> None:
        super().__init__(call.deadline, len(call.context) + sum(map(len, call.texts)))
        self.num_texts = len(call.texts)
        self.results: list[TextScore] = []

    def end(self, finish: Finish, now: float, failure: MeariError | None = None) -> None:
        """End the request, with an error where it was cut short."""
        if finish is Finish.TIMEOUT:
            failure = ScoreTimeout(
                "the texts were not scored within the server's time limit; send fewer or shorter texts"
            )
        elif finish is Finish.CANCELLED:
            failure = EngineFailed("the request was cancelled")
        super().end(finish, now, failure)


class CallQueue(Protocol):
    """An engine, as far as a backlog needs one."""

    @property
    def clock(self) -> Callable[[], float]: ...
    def try_reserve(self, share: str = "", *, for_list: bool) -> Reservation | None: ...
    def generate(
        self, call: GenerateCall, reservation: Reservation, handle: Generation | None = None
    ) -> Generation: ...


class Backlog:
    """Generations of one request for which the queue has had no place yet.

    A long list takes no more than its share of the queue: the rest waits here, and the thread that waits for the list
    queues it as places come free. `feed` and `wait` are for one thread, `end` for any.
    """

    def __init__(self, engine: CallQueue, calls: Iterable[tuple[GenerateCall, Generation]]) -> None:
        self._engine = engine
        self._calls = deque(calls)
        self._deadline = min((call.deadline for call, _ in self._calls), default=0.0)
        self._share = ""  # that of the first place
        self._queued: list[Generation] = []  # those that may not have ended yet
        self._lock = threading.Lock()
        self._room = threading.Event()  # one of the queued has ended
        for _, handle in self._calls:
            handle.submitted_at = engine.clock()
            handle.on_end = self._room.set

    def feed(self, reservation: Reservation | None = None) -> bool:
        """Queue calls while there is room, the first on a reserved place; returns whether some are left.

        Calls that are left at their deadline end without having been queued. Raises NotReady.
        """
        while self._calls:
            if self._engine.clock() >= self._deadline:
                self.end(Finish.TIMEOUT)
                return False
            if reservation is not None:
                self._share = reservation.share
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
        """End all calls that are left."""
        with self._lock:
            left = [handle for _, handle in self._calls]
            self._calls.clear()
        for handle in left:
            handle.end(finish, self._engine.clock())

    def _place(self) -> Reservation | None:
        """Take any place while no call of the list runs, so that every list proceeds; else one of those for lists."""
        self._queued = [handle for handle in self._queued if not handle.ended]
        return self._engine.try_reserve(self._share, for_list=bool(self._queued))

    def _queue_next(self, place: Reservation) -> None:
        with self._lock:
            if not self._calls:
                return  # the list was cancelled meanwhile
            call, handle = self._calls.popleft()
        self._queued.append(handle)
        self._engine.generate(call, place, handle)


class HandleGroup:
    """Several handles, whose calls share `event`, as one `Waitable`. With a backlog only one thread may wait."""

    def __init__(self, handles: Sequence[Handle], event: Event, now: float, backlog: Backlog) -> None:
        """now: on the engine's clock, for a group of no handles."""
        self._handles = tuple(handles)
        self._event = event
        self._now = now
        self._backlog = backlog

    @property
    def calls(self) -> tuple[Handle, ...]:
        """All handles of the group."""
        return self._handles

    @property
    def deadline(self) -> float:
        """The latest deadline."""
        return max((handle.deadline for handle in self._handles), default=self._now)

    @property
    def submitted_at(self) -> float:
        """The time at which the first call was submitted."""
        return min((handle.submitted_at for handle in self._handles), default=self._now)

    @property
    def started_at(self) -> float | None:
        """The time at which the first call had a slot."""
        return _earliest(handle.started_at for handle in self._handles)

    @property
    def first_token_at(self) -> float | None:
        """The time of the first sampled token of all."""
        return _earliest(handle.first_token_at for handle in self._handles)

    @property
    def cancelled(self) -> bool:
        """True once any of them was cancelled."""
        return any(handle.cancelled for handle in self._handles)

    @property
    def ended(self) -> bool:
        """True once all have ended."""
        return all(handle.ended for handle in self._handles)

    def wait_end(self, timeout: float | None = None) -> bool:
        """Block until all have ended or one has failed, at most `timeout` seconds; returns False after that.

        Raises NotReady where the engine takes no more of a list.
        """
        until = None if timeout is None else time.monotonic() + timeout
        while self._backlog.feed():
            if self._any_failed:
                return True
            if not self._backlog.wait(_seconds_left(until)):
                return self._any_failed
        for handle in self._handles:
            if not handle.wait_end(_seconds_left(until)):
                return self._any_failed
            if handle.failure is not None:
                return True
        return True

    def wait(self, timeout: float | None = None) -> bool:
        """Block until something was added to any of them since the last call, or all have ended. Raises NotReady."""
        self._backlog.feed()
        if not self.ended:
            self._event.wait(timeout)
        added = self._event.is_set()
        self._event.clear()
        return added or self.ended

    def cancel(self) -> None:
        """Ask the engine to drop all of them."""
        for handle in self._handles:
            handle.cancel()
        self._backlog.end(Finish.CANCELLED)

    def raise_for_failure(self) -> None:
        """Raise the error that ended one of them early."""
        for handle in self._handles:
            handle.raise_for_failure()

    @property
    def _any_failed(self) -> bool:
        return any(handle.failure is not None for handle in self._handles)


def _seconds_left(until: float | None) -> float | None:
    return None if until is None else max(0.0, until - time.monotonic())


def _earliest(times: Iterable[float | None]) -> float | None:
    return min((time_ for time_ in times if time_ is not None), default=None)
