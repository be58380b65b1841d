"""The engine's loop: admit → step → advance, one token of every running sequence at a time.

Threads. One thread, started by `start`, owns the sessions, the batch, and every handle until it ends. Other threads
reserve, submit, wait and cancel. Whatever goes wrong in a step fails the requests that are in the engine, each
once, and the engine takes no more: `failure` says why.
"""

from __future__ import annotations

import itertools
import logging
import threading
import time
from collections.abc import Callable

from service.engine.advance import Advance, Outcome
from service.engine.batch import Batch
from service.engine.calls import (
    EngineLimits,
    EngineStats,
    Finish,
    GenerateCall,
    Generation,
    ScoreCall,
    Scoring,
)
from service.engine.live import LiveRequests
from service.engine.prefixes import SharedTexts, generation_sequence
from service.engine.runner import Runner
from service.engine.scheduler import Request, Reservation, Scheduler
from service.errors import EngineFailed, MeariError, NotReady

log = logging.getLogger(__name__)


class Engine:
    """Runs the sequences of one bundle. See the head of this file for who may call what."""

    def __init__(self, runner: Runner, limits: EngineLimits, clock: Callable[[], float] = time.monotonic) -> None:
        self._runner = runner
        self._limits = limits
        self._clock = clock
        self._scheduler = Scheduler(limits.max_waiting)
        self._batch = Batch(runner)
        self._advance = Advance(runner, clock)
        self._keep: list[int] = []  # rows of the batch that go on
        self._live = LiveRequests()
        self._numbers = itertools.count()
        self._any_cancelled = False
        self._steps = self._rows = 0
        self._thread: threading.Thread | None = None
        self.failure: str | None = None

    # ---- any thread ----

    @property
    def clock(self) -> Callable[[], float]:
        """What deadlines are measured on."""
        return self._clock

    @property
    def limits(self) -> EngineLimits:
        """The bounds of this engine."""
        return self._limits

    @property
    def is_ready(self) -> bool:
        """True while requests are taken."""
        return self._scheduler.is_open and self.failure is None

    def start(self) -> None:
        """Start the engine's thread."""
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    def stop(self, timeout_seconds: float = 5.0) -> None:
        """Take no more requests, fail those that are left, and end the thread."""
        self._scheduler.close()
        if self._thread is not None:
            self._thread.join(timeout_seconds)

    def reserve(self) -> Reservation:
        """Take a place in the queue, before any work is done for a request. Raises Overloaded, NotReady."""
        self._check_open()
        return self._scheduler.reserve()

    def generate(self, call: GenerateCall, reservation: Reservation) -> Generation:
        """Queue a continuation. Raises NotReady when the engine has ended meanwhile."""
        handle = Generation(call)
        request = Request(next(self._numbers), handle, num_live=call.num_samples)
        request.ready.append(generation_sequence(call, handle.samples, request, self._runner.end_id))
        self._submit(request, reservation)
        return handle

    def score(self, call: ScoreCall, reservation: Reservation) -> Scoring:
        """Queue texts to score. Raises NotReady when the engine has ended meanwhile."""
        handle = Scoring(call)
        request = Request(next(self._numbers), handle)
        texts = SharedTexts(
            call, request, self._runner.end_id, min(call.num_alternatives, self._runner.vocabulary_size)
        )
        handle.collect = texts.collect
        request.num_live = texts.num_sequences
        if texts.root is None:
            reservation.release()
            handle.end(Finish.LENGTH, self._clock())
            return handle
        request.ready.append(texts.root)
        self._submit(request, reservation)
        return handle

    def stats(self) -> EngineStats:
        """What the engine does now and has done so far."""
        advance = self._advance
        return EngineStats(
            running=len(self._keep),
            waiting=self._scheduler.num_waiting,
            steps=self._steps,
            rows=self._rows,
            output_rows=advance.output_rows,
            tokens_sampled=advance.tokens_sampled,
            requests_refused=self._scheduler.num_refused,
        )

    def _check_open(self) -> None:
        if not self.is_ready:
            raise NotReady(f"the engine takes no requests: {'it failed' if self.failure else 'it is shutting down'}")

    def _submit(self, request: Request, reservation: Reservation) -> None:
        request.handle.submitted_at = self._clock()
        request.handle.on_cancel = self._note_cancel
        self._live.add(request)
        if not self._scheduler.add(request, reservation):
            self._end(request, Finish.FAILED, NotReady("the engine takes no requests any more"))
            self._check_open()

    def _note_cancel(self) -> None:
        self._any_cancelled = True
        self._scheduler.wake()

    # ---- the engine's thread ----

    def _run(self) -> None:
        try:
            while self._scheduler.is_open:
                if not self._keep:
                    self._scheduler.wait_for_work()
                self.step()
            reason: MeariError = NotReady("the service is shutting down")
        except Exception:
            log.exception("the engine failed and takes no more requests")
            self.failure = "the engine's loop failed; see the log"
            self._scheduler.close()
            reason = EngineFailed("the engine failed while this request was running")
        self._end_all(reason)

    def step(self) -> None:
        """One turn of the loop. Without a thread (tests), call it by hand."""
        self._end_cancelled_and_expired()
        joining = self._scheduler.take(self._limits.max_slots - len(self._keep))
        self._batch.change(self._keep, joining)
        if not self._batch.sequences:
            return
        now = self._clock()
        for sequence in joining:
            if sequence.request.handle.started_at is None:
                sequence.request.handle.started_at = now
        hidden = self._batch.step()
        self._steps += 1
        self._rows += len(self._batch)
        self._settle(self._advance(self._batch, hidden))

    def _settle(self, outcome: Outcome) -> None:
        self._keep = outcome.keep
        for sequence in outcome.forked:
            self._scheduler.put_back(sequence)
        for sequence in outcome.ended:
            request = sequence.request
            request.num_live -= 1
            if request.num_live == 0:
                self._end(request, Finish.LENGTH)
        for handle in outcome.news:
            handle.notify()
        if not self._keep:
            self._batch.change([], [])

    def _end_cancelled_and_expired(self) -> None:
        for request in self._live.expired(self._clock()):
            self._drop(request, Finish.TIMEOUT)
        if self._any_cancelled:
            self._any_cancelled = False
            for request in self._live.cancelled():
                self._drop(request, Finish.CANCELLED)

    def _drop(self, request: Request, finish: Finish) -> None:
        self._keep = [row for row in self._keep if self._batch.sequences[row].request is not request]
        self._end(request, finish)

    def _end(self, request: Request, finish: Finish, failure: MeariError | None = None) -> None:
        self._scheduler.remove(request)
        if self._live.claim(request):
            request.handle.end(finish, self._clock(), failure)

    def _end_all(self, reason: MeariError) -> None:
        self._keep = []
        for request in self._live.everyone():
            self._end(request, Finish.FAILED, reason)
