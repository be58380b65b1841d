"""State that the workers of a host share: the board, a worker's place on it, and the end of a worker.

Input: memory that the master process makes for its workers; signals and the time. Output: how many workers are ready,
loading, failed or draining; who holds clearly more connections than another; whether a worker accepts connections, must
refuse work, may stop or must end. Must not know: requests, sockets.

The board has a slot for each worker. The master takes and frees slots, a worker writes its own slot alone, everybody
reads; no lock exists that a killed process could leave held. Numbers are 8 bytes, written at once. A text has a
checksum, so that one that is half written counts as none.

All workers wait for new connections on one socket, and the kernel wakes them all: the quickest takes them, often
several in a row, and keeps them as long as their clients send requests. So a worker that holds clearly more than
another lets the others accept first, and a worker that has nothing to answer with accepts none while another one can.
"""

from __future__ import annotations

import contextlib
import enum
import mmap
import os
import struct
import time
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Self

import msgspec

from meari.service.host import HostState, Report, WorkerState

__all__ = ["BOARD", "Board", "Drain", "Place", "own_place", "take_place"]

LAST_SECONDS: Final = 1.0  # of the grace period, reserved for sending the text so far
CLEARLY_MORE: Final = 1.125  # times as many
MAX_WORKERS: Final = 2048  # alive at the same time: at a reload, old ones beside new ones
TEXT_BYTES: Final = 8192  # of a slot; pages that nobody writes to cost nothing
NUM_HEADER_FIELDS: Final = 16
NUM_SLOT_FIELDS: Final = 4
MAX_REASON_CHARS: Final = 300  # of a bundle, where all reasons together are too long


class _Host(enum.IntEnum):
    """Numbers of the host, by their place in the header of the board."""

    EXPECTED = 0
    IS_DRAINING = 1
    WAS_READY = 2
    IS_UPGRADE = 3
    STARTS = 4
    DEATHS = 5
    NUM_SLOTS = 6  # that were ever taken
    FOLDS = 7  # begun and finished; odd while the master folds


class _Slot(enum.IntEnum):
    """Numbers of a worker, by their place in its slot."""

    STATE = 0
    PID = 1
    CONNECTIONS = 2
    READY_AT = 3  # of the system's clock that only goes forward, in ns; 0 before


class Board:
    """Numbers and reports of all workers in shared memory, made by the master before it forks."""

    def __init__(self, max_workers: int = MAX_WORKERS) -> None:
        num_fields = NUM_HEADER_FIELDS + NUM_SLOT_FIELDS * max_workers
        self._memory = memoryview(mmap.mmap(-1, 8 * num_fields + TEXT_BYTES * max_workers))
        self._numbers = self._memory[: 8 * num_fields].cast("q")
        self._texts = self._memory[8 * num_fields :]
        self._max_workers = max_workers

    @classmethod
    def of_one(cls) -> Self:
        """Make the board of a worker without a master."""
        board = cls(max_workers=1)
        board.begin(expected=1)
        board.take()
        return board

    # ---- by the master ----

    def begin(self, expected: int, *, is_upgrade: bool = False) -> None:
        """Set how many workers there should be.

        is_upgrade  whether the workers of another master still answer on the same socket
        """
        self.expect(expected)
        self._numbers[_Host.IS_UPGRADE] = is_upgrade

    def expect(self, num_workers: int) -> None:
        """Set how many workers there should be."""
        self._numbers[_Host.EXPECTED] = num_workers

    def take(self, *, counts: bool = True) -> int:
        """Return the slot of a worker that is about to start. Raises BlockingIOError if there are too many workers.

        counts  whether it is one of those that serve
        """
        for slot in range(self._max_workers):
            if self.state(slot) is WorkerState.FREE:
                self._write_text(slot, b"")
                for number in (_Slot.CONNECTIONS, _Slot.PID, _Slot.READY_AT):
                    self._set(slot, number, 0)
                self._set(slot, _Slot.STATE, WorkerState.LOADING)
                self._numbers[_Host.NUM_SLOTS] = max(self._numbers[_Host.NUM_SLOTS], slot + 1)
                self._numbers[_Host.STARTS] += counts
                return slot
        raise BlockingIOError(f"there are already {self._max_workers} workers")

    def free(self, slot: int) -> None:
        """Forget a worker that has ended."""
        self._set(slot, _Slot.STATE, WorkerState.FREE)

    def count_death(self) -> None:
        """Count a worker that ended without having been told to."""
        self._numbers[_Host.DEATHS] += 1

    def drain(self) -> None:
        """Note that the host ends."""
        self._numbers[_Host.IS_DRAINING] = 1

    @contextlib.contextmanager
    def folding(self) -> Iterator[None]:
        """Mark the time in which files of metrics are exchanged for others."""
        self._numbers[_Host.FOLDS] |= 1
        yield
        self._numbers[_Host.FOLDS] += 1

    # ---- by everybody ----

    def host(self) -> HostState:
        """Return the counts."""
        states = self._all(_Slot.STATE)
        return HostState(
            expected=self._numbers[_Host.EXPECTED],
            ready=states.count(WorkerState.READY),
            loading=states.count(WorkerState.LOADING),
            failed=states.count(WorkerState.FAILED),
            draining=states.count(WorkerState.DRAINING),
            is_draining=self.is_draining,
            was_ready=self.was_ready,
            starts=self._numbers[_Host.STARTS],
            deaths=self._numbers[_Host.DEATHS],
        )

    @property
    def is_draining(self) -> bool:
        """True once the whole host ends."""
        return bool(self._numbers[_Host.IS_DRAINING])

    @property
    def was_ready(self) -> bool:
        """True once any worker has been ready."""
        return bool(self._numbers[_Host.WAS_READY])

    @property
    def is_upgrade(self) -> bool:
        """True while the workers of another master may answer on the same socket."""
        return bool(self._numbers[_Host.IS_UPGRADE]) and not self.was_ready

    @property
    def num_folds(self) -> int:
        """Number that changes when files of metrics are exchanged for others; odd while they are."""
        return int(self._numbers[_Host.FOLDS])

    def living(self) -> list[int]:
        """Return the process ids of all workers that have a slot and live."""
        slots = zip(self._all(_Slot.STATE), self._all(_Slot.PID), strict=True)
        return [pid for state, pid in slots if state and pid and Path(f"/proc/{pid}").exists()]

    def has(self, *states: WorkerState) -> bool:
        """Tell whether any worker is in one of these states."""
        return not set(states).isdisjoint(self._all(_Slot.STATE))

    def state(self, slot: int) -> WorkerState:
        """Return the state of a worker."""
        return WorkerState(self._numbers[self._index(slot, _Slot.STATE)])

    def seconds_since_ready(self, slot: int) -> float | None:
        """Return how long ago the worker of a slot became ready for the first time; None if it never was."""
        ready_at = self._numbers[self._index(slot, _Slot.READY_AT)]
        return (time.monotonic_ns() - ready_at) / 1e9 if ready_at else None

    def reports(self, *states: WorkerState) -> Iterator[Report]:
        """Yield the reports of the workers in one of these states."""
        for slot, state in enumerate(self._all(_Slot.STATE)):
            if state in states and (report := self._report(slot)) is not None:
                yield report

    def connections(self, slot: int) -> tuple[int, list[int]]:
        """Return how many connections a worker holds, and how many each of those that are ready."""
        counts = self._all(_Slot.CONNECTIONS)
        states = zip(self._all(_Slot.STATE), counts, strict=True)
        return counts[slot], [count for state, count in states if state == WorkerState.READY]

    # ---- by one worker, in its own slot ----

    def set_state(self, slot: int, state: WorkerState) -> None:
        """Set the state of a worker."""
        if state is WorkerState.READY:
            if not self._numbers[self._index(slot, _Slot.READY_AT)]:
                self._set(slot, _Slot.READY_AT, time.monotonic_ns())
            self._numbers[_Host.WAS_READY] = 1
        self._set(slot, _Slot.STATE, state)

    def set_pid(self, slot: int, pid: int) -> None:
        """Note a worker's process."""
        self._set(slot, _Slot.PID, pid)

    def set_connections(self, slot: int, count: int) -> None:
        """Note how many connections a worker holds."""
        self._set(slot, _Slot.CONNECTIONS, count)

    def write_report(self, slot: int, report: Report) -> None:
        """Write a worker's report, with reasons cut, or left out, if it is too long."""
        room = TEXT_BYTES - 8
        text = msgspec.json.encode(report)
        if len(text) > room:
            short = {name: reason[:MAX_REASON_CHARS] for name, reason in report.failed.items()}
            report = msgspec.structs.replace(report, failed=short, problem=report.problem[:MAX_REASON_CHARS])
            text = msgspec.json.encode(report)
        if len(text) > room:
            text = msgspec.json.encode(Report(problem=report.problem))
        self._write_text(slot, text)

    def _index(self, slot: int, which: _Slot) -> int:
        return NUM_HEADER_FIELDS + NUM_SLOT_FIELDS * slot + which

    def _set(self, slot: int, which: _Slot, value: int) -> None:
        self._numbers[self._index(slot, which)] = value

    def _all(self, which: _Slot) -> list[int]:
        used = self._numbers[_Host.NUM_SLOTS]
        return self._numbers[self._index(0, which) : self._index(used, which) : NUM_SLOT_FIELDS].tolist()

    def _write_text(self, slot: int, text: bytes) -> None:
        begin = TEXT_BYTES * slot
        self._texts[begin + 8 : begin + 8 + len(text)] = text
        self._texts[begin : begin + 8] = struct.pack("II", len(text), zlib.crc32(text))

    def _report(self, slot: int) -> Report | None:
        begin = TEXT_BYTES * slot
        length, checksum = struct.unpack("II", self._texts[begin : begin + 8])
        text = bytes(self._texts[begin + 8 : begin + 8 + length])
        if not text or zlib.crc32(text) != checksum:
            return None
        return msgspec.json.decode(text, type=Report)


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
        found = msgspec.structs.replace(self._report, problem=problem)
        if found != self._written:
            self._written = found
            self.board.write_report(self.slot, found)
        self._become(WorkerState.FAILED if problem else WorkerState.READY)

    def _become(self, state: WorkerState) -> None:
        self.board.set_state(self.slot, state)
        if self._is_draining:  # by a signal, meanwhile
            self.drain()

    def _missing(self) -> str:
        """Return which bundle this worker could not load while another one serves it: requests for it must not fail.

        Workers for which other keys sign serve what this one must not.
        """
        assert self._report is not None
        reports, signers = self.board.reports(WorkerState.READY), self._report.signers
        served = {name for report in reports if report.signers == signers for name in report.models}
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


BOARD: Final = Board()  # of this host, made in the master process
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
