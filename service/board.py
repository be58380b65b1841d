"""The board: numbers and reports of a host's workers, in memory that the master makes before it forks.

Input: memory that all workers share. Output: how many workers are ready, loading, failed or draining, what each of
them serves, and how many connections each holds. Must not know: requests, sockets, what follows from the counts.

The board has a slot for each worker. The master takes and frees slots, a worker writes its own slot alone, everybody
reads; no lock exists that a killed process could leave held. Numbers are 8 bytes, written at once. A text has a
checksum, so that one that is half written counts as none.
"""

from __future__ import annotations

import contextlib
import enum
import mmap
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

import msgspec

__all__ = ["BOARD", "Board", "HostState", "Readiness", "Report", "WorkerState", "readiness"]

MAX_WORKERS: Final = 2048  # alive at the same time: at a reload, old ones beside new ones
TEXT_BYTES: Final = 8192  # of a slot; pages that nobody writes to cost nothing
NUM_HEADER_FIELDS: Final = 16
NUM_SLOT_FIELDS: Final = 4
MAX_REASON_CHARS: Final = 300  # of a bundle, where all reasons together are too long


class WorkerState(enum.IntEnum):
    """State of a worker; FREE where a slot belongs to none."""

    FREE = 0
    LOADING = 1
    READY = 2
    FAILED = 3  # it has loaded, but not what it needs to take requests; its report says why
    DRAINING = 4


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
    WAS_READY = 3


@dataclass(frozen=True)
class HostState:
    """The workers of the host, counted by state.

    expected     workers that there should be
    is_draining  whether the whole host ends
    was_ready    whether any worker was ever ready
    starts       workers started so far
    deaths       workers that ended without having been told to
    """

    expected: int
    ready: int
    loading: int
    failed: int
    draining: int
    is_draining: bool
    was_ready: bool
    starts: int
    deaths: int


class Report(msgspec.Struct, frozen=True):
    """Result of a worker's loading, as the other workers read it.

    models   bundles that it serves
    failed   bundles that it could not load, and why
    problem  why it takes no requests; "" if it may
    """

    models: tuple[str, ...] = ()
    failed: dict[str, str] = {}
    problem: str = ""


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

    def take(self) -> int:
        """Return the slot of a worker that is about to start. Raises BlockingIOError if there are too many workers."""
        for slot in range(self._max_workers):
            if self.state(slot) is WorkerState.FREE:
                self._write_text(slot, b"")
                self._set(slot, _Slot.CONNECTIONS, 0)
                self._set(slot, _Slot.PID, 0)
                self._set(slot, _Slot.WAS_READY, 0)
                self._set(slot, _Slot.STATE, WorkerState.LOADING)
                self._numbers[_Host.NUM_SLOTS] = max(self._numbers[_Host.NUM_SLOTS], slot + 1)
                self._numbers[_Host.STARTS] += 1
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

    def was_ever_ready(self, slot: int) -> bool:
        """Tell whether the worker of a slot has been ready."""
        return bool(self._numbers[self._index(slot, _Slot.WAS_READY)])

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
            self._set(slot, _Slot.WAS_READY, 1)
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
            text = msgspec.json.encode(Report(report.models, short, report.problem[:MAX_REASON_CHARS]))
        if len(text) > room:
            text = msgspec.json.encode(Report(problem=report.problem[:MAX_REASON_CHARS]))
        self._write_text(slot, text)

    # ---- the memory ----

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


@dataclass(frozen=True)
class Readiness:
    """State of the host.

    reason  why it takes no requests; "" if it does
    models  bundles that are served
    failed  bundles that a worker could not load, and why
    host    its workers, counted
    """

    reason: str
    models: tuple[str, ...]
    failed: dict[str, str]
    host: HostState

    @property
    def ready(self) -> bool:
        """True while the host takes requests."""
        return not self.reason


def readiness(board: Board) -> Readiness:
    """Return the state of a host from its board."""
    host = board.host()
    serving = (WorkerState.READY, WorkerState.DRAINING)
    models = {name for report in board.reports(*serving) for name in report.models}
    reports = list(board.reports(*serving, WorkerState.FAILED))
    failed = {name: reason for report in reports for name, reason in report.failed.items()}
    return Readiness(_reason(host, reports), tuple(sorted(models)), failed, host)


def _reason(host: HostState, reports: list[Report]) -> str:
    """Return why the host takes no requests; "" if it does."""
    if host.is_draining:
        return "the service is shutting down"
    if host.ready:
        return ""
    return next((report.problem for report in reports if report.problem), "the bundles are being loaded")


BOARD: Final = Board()  # of this host, made in the master process
