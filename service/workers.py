"""A worker among the workers of its host: its place on the board, and its end.

Input: the board, signals and the time. Output: whether this worker accepts connections, holds clearly more of them than
another, must refuse work, may stop or must end. Must not know: requests, sockets.

All workers wait for new connections on one socket, and the kernel wakes them all: the quickest takes them, often
several in a row, and keeps them as long as their clients send requests. So a worker that holds clearly more than
another lets the others accept first, and a worker that has nothing to answer with accepts none while another one can.
"""

from __future__ import annotations

import contextlib
import os
import resource
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from meari.service.board import BOARD, Board, Report, WorkerState

__all__ = [
    "Drain",
    "Place",
    "allowed_connections",
    "metrics_folder",
    "models_folder",
    "own_place",
    "take_place",
]

LAST_SECONDS: Final = 1.0  # of the grace period, reserved for sending the text so far
CLEARLY_MORE: Final = 1.125  # times as many
OTHER_FILES: Final = 64  # of a worker: its log, its engines, and files that it reads now and then


@dataclass(eq=False)
class Place:
    """One worker's place on the board; without other workers (tests) on a board of its own."""

    board: Board = field(default_factory=Board.of_one)
    slot: int = 0
    _report: Report | None = None
    _written: Report | None = None
    _is_draining: bool = False

    def report(self, report: Report) -> None:
        """Publish the result of loading, and take requests from now on if there is something to serve.

        May be called again whenever the bundles change.
        """
        self._report = report
        self.refresh()

    def refresh(self) -> None:
        """Become ready if nothing speaks against it any more; called often."""
        if self._report is None or self._is_draining:
            return
        problem = self._report.problem
        if not problem and self.state is not WorkerState.READY:
            problem = self._missing()
        found = Report(self._report.models, self._report.failed, problem)
        if found != self._written:
            self._written = found
            self.board.write_report(self.slot, found)
        self._become(WorkerState.FAILED if problem else WorkerState.READY)

    def _become(self, state: WorkerState) -> None:
        self.board.set_state(self.slot, state)
        if self._is_draining:  # by a signal, meanwhile
            self.drain()

    def _missing(self) -> str:
        """Return which bundle this worker could not load while another one serves it: requests for it must not fail."""
        assert self._report is not None
        served = {name for report in self.board.reports(WorkerState.READY) for name in report.models}
        missing = served.intersection(self._report.failed).difference(self._report.models)
        return f"could not load what other workers serve: {', '.join(sorted(missing))}" if missing else ""

    def drain(self) -> None:
        """Note that this worker ends."""
        self._is_draining = True
        self.board.set_state(self.slot, WorkerState.DRAINING)

    @property
    def state(self) -> WorkerState:
        """State of this worker."""
        return self.board.state(self.slot)

    @property
    def accepts(self) -> bool:
        """True while this worker accepts new connections.

        A ready one does. One that is not does only if nobody else would: so probes are answered with the reason at the
        first start, and a worker that ends works on until its successor is ready. While the host drains, everybody
        accepts, and refuses.
        """
        state, board = self.state, self.board
        if state is WorkerState.READY or board.is_draining:
            return True
        if state is WorkerState.DRAINING:
            return not board.has(WorkerState.READY)
        return not board.is_upgrade and not board.has(WorkerState.READY, WorkerState.DRAINING)

    def note_connections(self, count: int) -> None:
        """Note how many connections this worker holds."""
        self.board.set_connections(self.slot, count)

    @property
    def has_clearly_more(self) -> bool:
        """True if this worker holds clearly more connections than some other that accepts them."""
        own, others = self.board.connections(self.slot)
        return own > CLEARLY_MORE * min(others, default=own)


_own: list[Place] = []


def take_place(slot: int) -> None:
    """Give this process its place on the board; called in a new worker."""
    BOARD.set_pid(slot, os.getpid())
    _own[:] = [Place(BOARD, slot)]


def own_place() -> Place:
    """Return the place of this process; on a board of its own if no master gave it one."""
    return _own[0] if _own else Place()


class Drain:
    """The end of a worker, from SIGTERM until its last answer is sent; begun at most once, safe from any thread.

    If the whole host ends, readiness fails first and new work is refused. If one worker ends, it answers whatever
    still comes to it until its successor is ready. Answers in progress are finished; those that are not done when the
    time is up end with the text so far. Plain attributes, so that a signal handler may call `begin`.
    """

    def __init__(
        self,
        min_seconds: float,
        grace_seconds: float,
        place: Place | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._min_seconds = min_seconds
        self._grace_seconds = grace_seconds
        self._place = place or Place()
        self._clock = clock
        self._began_at: float | None = None
        self._awaits_successor = True

    def begin(self, *, awaits_successor: bool = True) -> None:
        """End this worker from now on. awaits_successor: False where it cannot answer what still comes to it."""
        if self._began_at is None:
            self._awaits_successor = awaits_successor
            self._began_at = self._clock()
            self._place.drain()

    @property
    def has_begun(self) -> bool:
        """True while draining."""
        return self._began_at is not None

    @property
    def refuses_work(self) -> bool:
        """True while the whole host ends."""
        return self.has_begun and self._place.board.is_draining

    def may_stop(self, num_requests: int) -> bool:
        """Tell whether the worker may stop: no request is in progress and others serve, or the time is up."""
        if self._began_at is None:
            return False
        waited = self._clock() - self._began_at
        if waited >= self._grace_seconds:
            return True
        board = self._place.board
        no_other = self._awaits_successor and not board.has(WorkerState.READY)
        is_needed = waited < self._min_seconds if board.is_draining else no_other
        return num_requests == 0 and not is_needed

    @property
    def must_end(self) -> bool:
        """True when answers in progress have to end now."""
        if self._began_at is None:
            return False
        return self._clock() - self._began_at >= self._grace_seconds - LAST_SECONDS


def metrics_folder(folder: Path) -> Path:
    """Return the folder of prometheus_client's values."""
    return folder / "metrics"


def models_folder(folder: Path) -> Path:
    """Return the folder of what admins have asked for, and of what each worker serves."""
    return folder / "models"


def allowed_connections(wanted: int) -> int:
    """Ask the system for room for `wanted` connections; return the number that it grants.

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
