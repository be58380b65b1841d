"""gunicorn's master process, which starts, replaces and ends the workers of a host.

Input: signals, the ends of workers, the board on which they report. Output: as many workers as there should be. Must
not know: bundles, requests.

gunicorn ends old workers as soon as new ones were started, and then waits for their last requests. Here an old worker
ends when a new one is ready, and the master goes on meanwhile: a worker that drains, for whatever reason, counts no
longer, and another one is started in its place. gunicorn starts a worker again at once if it ends by itself. Here one
that ends before it was ready, or by itself soon after, is followed by a pause, which grows from time to time.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from signal import SIG_BLOCK, SIG_UNBLOCK, SIGABRT, SIGINT, SIGKILL, SIGQUIT, SIGTERM, pthread_sigmask
from typing import Any, Final

from gunicorn.arbiter import Arbiter

from meari.service.host import WorkerState
from meari.service.process.start import StartError
from meari.service.workers import BOARD

__all__ = ["HostArbiter"]

ENDING: Final = (SIGABRT, SIGINT, SIGQUIT, SIGTERM)
LOOK_SECONDS: Final = 0.2  # between two looks at the board
FIRST_PAUSE: Final = 0.25  # seconds, before the next start; doubles each time
MAX_PAUSE: Final = 30.0
LASTING_SECONDS: Final = 2.0  # a worker that ends by itself sooner after it was ready has failed to start, too
SURGE_SHARE: Final = 4  # of the workers one in so many is started beside the old ones, at least one


class HostArbiter(Arbiter):  # type: ignore[misc]
    """gunicorn's master with its own way to replace workers. gunicorn makes it; `adopt` changes its class."""

    num_workers: int
    _generation: int  # of workers: each SIGHUP begins a new one
    _num_failed: int  # starts in a row
    _last_failed: int  # age of the last worker that had been started when the last of them failed
    _next_start: float
    _is_ending: bool  # so that the end of a worker needs no word
    _slot: int | None  # of the worker that is being started
    _steps: Iterator[None] | None  # what is left to do before workers are started
    _look: Callable[[], None]

    @classmethod
    def adopt(cls, arbiter: Arbiter, steps: Iterator[None], look: Callable[[], None]) -> None:
        """Make gunicorn's master one of this class; called before it starts anything.

        steps  what to do before workers are forked, in pieces; one worker is there from the first on, to answer probes
        look   what to do several times a second
        """
        arbiter.__class__ = cls
        arbiter._steps, arbiter._look = steps, look  # noqa: SLF001 (ours, as all below)
        arbiter._generation = arbiter._num_failed = arbiter._last_failed = 0  # noqa: SLF001
        arbiter._next_start, arbiter._slot, arbiter._is_ending = 0.0, None, False  # noqa: SLF001
        BOARD.begin(arbiter.num_workers, is_upgrade=bool(arbiter.master_pid))

    def init_signals(self) -> None:
        """Take signals. Those that came while the service was being started have waited (`meari.cli.serve`)."""
        super().init_signals()
        pthread_sigmask(SIG_UNBLOCK, ENDING)

    def prepare(self, worker: Any) -> None:
        """Give a new worker its slot; called before the fork."""
        self._slot = worker.slot = BOARD.take(counts=self._steps is None)
        worker.generation = self._generation
        worker.is_retired = worker.was_killed = False

    def reap_workers(self) -> None:
        """Take note of the workers that have ended, and of which of them were killed from outside."""
        for pid, worker in self.WORKERS.items():
            end = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            worker.was_killed = end is not None and (end.si_code, end.si_status) == (os.CLD_KILLED, SIGKILL)
        super().reap_workers()

    def forget(self, worker: Any) -> None:
        """Free the slot of a worker that has ended, and put off the next start if its own has failed."""
        was_told = self._is_ending or worker.is_retired or BOARD.state(worker.slot) is WorkerState.DRAINING
        if not was_told:
            BOARD.count_death()
            seconds = BOARD.seconds_since_ready(worker.slot)
            if seconds is None or (seconds < LASTING_SECONDS and not worker.was_killed):
                self._put_off()
        BOARD.free(worker.slot)

    def manage_workers(self) -> None:
        """Start the workers that are missing, and end those whose place is taken; called several times a second."""
        self._look()
        BOARD.expect(self.num_workers)
        if self._steps is not None and self._has_more_to_do(self._steps):
            return
        staying = [worker for worker in self.WORKERS.values() if not self._is_leaving(worker)]
        new = [worker for worker in staying if worker.generation == self._generation]
        old = [worker for worker in staying if worker.generation != self._generation]
        later = [worker.slot for worker in new if worker.age > self._last_failed]
        if any((BOARD.seconds_since_ready(slot) or 0.0) >= LASTING_SECONDS for slot in later):
            self._num_failed = 0
        self._retire(old, new)
        surge = max(1, self.num_workers // SURGE_SHARE) if old else 0
        missing = min(self.num_workers - len(new), self.num_workers + surge - len(staying))
        for _ in range(missing):
            if self._may_start():
                self._start()

    def reload(self) -> None:
        """Take over the settings that may have changed, and replace the workers one after another."""
        self.log.reopen_files()
        try:
            self.cfg.on_reload(self)
        except StartError as problem:
            self.log.error("nothing was reloaded: %s", problem)  # noqa: TRY400 (a mistake of the settings)
            return
        self._generation += 1
        self._next_start = 0.0
        self.manage_workers()

    def stop(self, graceful: bool = True) -> None:  # noqa: FBT001, FBT002 (gunicorn's own)
        """End all workers. Those of another master may have taken over the socket; then these only leave it."""
        self._is_ending = True
        if not self.reexec_pid:
            BOARD.drain()
        super().stop(graceful)

    def wait_for_signals(self, timeout: float = LOOK_SECONDS) -> list[int]:
        """Wait for signals, but not for long: workers report on the board. Not at all while there is more to do."""
        longest = LOOK_SECONDS if self._steps is None else 0.0
        signals: list[int] = super().wait_for_signals(min(timeout, longest))
        return signals

    def _has_more_to_do(self, steps: Iterator[None]) -> bool:
        """Do the next piece of what comes before the workers; return False if that was the last one."""
        if next(steps, self) is not self:
            if not self.WORKERS and self._may_start():
                self._start()
            return True
        self._steps = None
        for worker in self.WORKERS.values():  # the one that has answered probes
            worker.is_retired = True
            BOARD.set_state(worker.slot, WorkerState.DRAINING)  # it may have no application yet that could
            self.kill_worker(worker.pid, SIGTERM)
        return False

    def _is_leaving(self, worker: Any) -> bool:
        return worker.is_retired or BOARD.state(worker.slot) is WorkerState.DRAINING

    def _retire(self, old: list[Any], new: list[Any]) -> None:
        """End old workers: those that are not ready at once, the others as new ones become ready."""
        ready = [worker for worker in old if BOARD.state(worker.slot) is WorkerState.READY]
        num_new = sum(BOARD.state(worker.slot) is WorkerState.READY for worker in new)
        surplus = max(0, len(ready) + num_new - self.num_workers)
        useless = [worker for worker in old if worker not in ready]
        too_many = sorted(new, key=lambda worker: worker.age)[: max(0, len(new) - self.num_workers)]
        for worker in [*useless, *sorted(ready, key=lambda worker: worker.age)[:surplus], *too_many]:
            worker.is_retired = True
            self.kill_worker(worker.pid, SIGTERM)

    def _may_start(self) -> bool:
        """Tell whether a worker may be started now: after one that was of no use, one at a time and not at once."""
        if not self._num_failed:
            return True
        is_trying = any(worker.age > self._last_failed and not self._is_leaving(worker) for worker in self._loading())
        return time.monotonic() >= self._next_start and not is_trying

    def _loading(self) -> list[Any]:
        return [each for each in self.WORKERS.values() if BOARD.state(each.slot) is WorkerState.LOADING]

    def _start(self) -> None:
        """Start a worker. It takes signals once it has handlers of its own: those of this process would lose them."""
        pthread_sigmask(SIG_BLOCK, ENDING)
        try:
            self.spawn_worker()
        except OSError as error:  # in this process: there is no memory, no process, no file to be had
            if self._slot is not None:
                BOARD.free(self._slot)
            self._put_off(error)
        finally:
            pthread_sigmask(SIG_UNBLOCK, ENDING)
        self._slot = None

    def _put_off(self, error: OSError | None = None) -> None:
        pause = min(MAX_PAUSE, FIRST_PAUSE * 2.0**self._num_failed)
        if not self._num_failed:
            reason = f": {error}" if error else " before it was ready or soon after"
            self.log.error("a worker could not be started or ended%s; the pauses before further tries grow", reason)
        self._num_failed += 1
        self._last_failed = self.worker_age
        self._next_start = time.monotonic() + pause
