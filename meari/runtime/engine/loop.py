"""The engine's loop: admit → run a turn → settle.

A turn is one run of a graph for the sequences of one lane (lanes.py): some forced tokens of each that reads, or some
sampled ones of each that writes.

Threads. One thread, started by `start`, owns the session, the lanes, the cache, and every handle until it ends. Other
threads reserve, submit, wait and cancel. Whatever goes wrong in a turn fails the requests that are in the engine, each
once, and the engine takes no more: `failure` says why.
"""

from __future__ import annotations

import itertools
import logging
import threading
import time
from collections.abc import Callable

from meari.errors import EngineFailed, MeariError, NotReady
from meari.runtime.engine.beaming import finish_beams, num_written
from meari.runtime.engine.beams import BeamSearch
from meari.runtime.engine.cache import CacheRoom, PrefixCache
from meari.runtime.engine.calls import (
    EngineLimits,
    EngineStats,
    Finish,
    GenerateCall,
    Generation,
    ScoreCall,
    Scoring,
)
from meari.runtime.engine.lanes import Lanes, ReadingLane
from meari.runtime.engine.live import LiveRequests
from meari.runtime.engine.outcome import Outcome
from meari.runtime.engine.prefixes import SharedTexts, generation_sequence
from meari.runtime.engine.reading import Reading
from meari.runtime.engine.runner import Runner
from meari.runtime.engine.scheduler import FEW_TEXTS, Request, Reservation, Scheduler
from meari.runtime.engine.sequence import Sequence

log = logging.getLogger(__name__)


class Engine:
    """Runs the sequences of one bundle. See the head of this file for who may call what."""

    def __init__(self, runner: Runner, limits: EngineLimits, clock: Callable[[], float] = time.monotonic) -> None:
        self._runner = runner
        self._limits = limits
        self._clock = clock
        self._scheduler = Scheduler(limits.max_waiting)
        self._lanes = Lanes(runner, limits, clock)
        self._cache = self._cache_in(CacheRoom(limits.cache_bytes))
        self._read = Reading(runner, self._cache, clock)
        self._live = LiveRequests()
        self._numbers = itertools.count()
        self._any_cancelled = False
        self._steps = self._rows = self._output_rows = self._sampled = self._written = self._running = 0
        self._cache_queries = self._cache_hits = self._cached_tokens = self._looked_up_tokens = 0
        self._busy = False
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

    def share_cache(self, room: CacheRoom) -> None:
        """Keep prefixes in that room, with other engines, in place of one's own; before the first request alone."""
        self._cache = self._cache_in(room)
        self._read = Reading(self._runner, self._cache, self._clock)

    def stop(self, timeout_seconds: float = 5.0) -> None:
        """Take no more requests, fail those that are left, and end the thread."""
        self._scheduler.close()
        if self._thread is not None:
            self._thread.join(timeout_seconds)

    def reserve(self) -> Reservation:
        """Take a place in the queue, before any work is done for a request. Raises Overloaded, NotReady."""
        self._check_open()
        return self._scheduler.reserve()

    def try_reserve(self, for_list: bool) -> Reservation | None:
        """A place where there is one; for_list: of the half of the queue that long lists share. Raises NotReady."""
        self._check_open()
        return self._scheduler.try_reserve(for_list)

    def generate(self, call: GenerateCall, reservation: Reservation, handle: Generation | None = None) -> Generation:
        """Queue a continuation; handle: that of the call, where it was made before.

        Raises NotReady when the engine has ended meanwhile.
        """
        handle = handle or Generation(call)
        request = Request(next(self._numbers), handle, call.num_samples, call.num_samples, True, call.want_state)
        if call.num_beams > 1:
            request.num_rows, request.num_live = call.num_beams, 1
            request.beams = BeamSearch(
                call.num_beams,
                call.num_samples,
                call.max_tokens,
                self._runner.end_id,
                call.num_alternatives,
                call.stop,
                call.sampling.min_tokens,
            )
        request.root = generation_sequence(call, handle.samples, request, self._runner.end_id)
        self._submit(request, reservation)
        return handle

    def score(self, call: ScoreCall, reservation: Reservation) -> Scoring:
        """Queue texts to score. Raises NotReady when the engine has ended meanwhile."""
        handle = Scoring(call)
        request = Request(next(self._numbers), handle)
        num_alternatives = min(call.num_alternatives, self._runner.vocabulary_size)
        initial = {name: values[0] for name, values in self._runner.initial_states(1).items()}
        texts = SharedTexts(call, request, self._runner.end_id, num_alternatives, initial)
        handle.collect = texts.collect
        request.num_live = texts.num_sequences
        request.is_list = request.num_live > FEW_TEXTS and not self._limits.has_one_caller
        if texts.root is None:
            reservation.release()
            handle.end(Finish.LENGTH, self._clock())
            return handle
        request.root = texts.root
        self._submit(request, reservation)
        return handle

    @property
    def knee(self) -> int:
        """So many running sequences keep the engine at its best, as far as was seen; more make each wait longer."""
        return self._lanes.knee

    def stats(self) -> EngineStats:
        """What the engine does now and has done so far."""
        return EngineStats(
            running=self._lanes.num_rows,
            waiting=self._scheduler.num_waiting,
            steps=self._steps,
            rows=self._rows,
            output_rows=self._output_rows,
            tokens_sampled=self._sampled,
            requests_refused=self._scheduler.num_refused,
            cache_queries=self._cache_queries,
            cache_hits=self._cache_hits,
            cached_tokens=self._cached_tokens,
            cache_bytes=self._cache.num_bytes if self._cache is not None else 0,
            requests_running=self._running,
            tokens_written=self._written,
            looked_up_tokens=self._looked_up_tokens,
            token_gaps=self._lanes.gaps.read(),
        )

    def _cache_in(self, room: CacheRoom) -> PrefixCache | None:
        if not room.max_bytes:
            return None
        shapes = {tensor.name: tensor.shape for tensor in self._runner.state_tensors}
        return PrefixCache(room, shapes, self._runner.cached_hidden_size)

    def _check_open(self) -> None:
        if not self.is_ready:
            raise NotReady(f"the engine takes no requests: {'it failed' if self.failure else 'it is shutting down'}")

    def _submit(self, request: Request, reservation: Reservation) -> None:
        request.handle.submitted_at = request.handle.submitted_at or self._clock()
        request.handle.on_cancel = self._note_cancel
        self._live.add(request)
        if request.handle.cancelled:  # before it was queued
            self._note_cancel()
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
                if not self._busy:
                    self._scheduler.wait_for_work()
                self.step()
            reason: MeariError = NotReady("the service is shutting down")
        except Exception as error:
            log.exception("the engine failed and takes no more requests")
            self.failure = f"its loop ended with {type(error).__name__}; the process has to be started again"
            self._scheduler.close()
            reason = EngineFailed("the engine failed while this request was running")
        self._end_all(reason)

    def step(self) -> None:
        """One turn of the loop. Without a thread (tests), call it by hand."""
        self._end_cancelled_and_expired()
        for request in self._scheduler.admit(self._lanes.has_room):
            self._running += 1
            self._begin(request)
        lane = self._lanes.next()
        if lane is not None:
            started = self._clock()
            if isinstance(lane, ReadingLane):
                self._turn_of_reading(lane, started)
            else:
                self._settle(self._lanes.write())
            self._lanes.note_time(lane, self._clock() - started)
        self._busy = lane is not None

    def _begin(self, request: Request) -> None:
        """Let an admitted request's first sequence wait for a row, or take its prompt from the cache altogether."""
        root, request.root = request.root, None
        assert root is not None
        request.handle.started_at = self._clock()
        self._look_up(root)
        if root.hidden is None:
            self._lanes.lane_of(request).waiting.append(root)
            return
        self._lanes.writing.newcomers.append(root)
        while root.forks:
            child = root.forks.pop()[1]
            child.fed, child.state, child.hidden = root.fed, root.state, root.hidden
            self._lanes.writing.newcomers.append(child)

    def _look_up(self, root: Sequence) -> None:
        """Start from the longest prefix whose state is known. A text's last token of context is run in any case."""
        if self._cache is None or not root.num_to_cache:
            return
        self._looked_up_tokens += root.num_to_cache - 1  # without the boundary token
        root.num_to_cache = min(root.num_to_cache, self._cache.most_tokens)
        handle = root.request.handle
        assert isinstance(handle, Generation | Scoring)
        self._cache_queries += 1
        most = root.num_to_cache if root.goes_on else min(root.num_to_cache - 1, len(root.forced) - 2)
        match = self._cache.longest(root.forced[:most])
        if match is None:
            return
        root.fed, root.state = match.length, match.states
        while root.snapshots and root.snapshots[-1][0] == root.fed:
            root.snapshots.pop()[1].state = {name: values.copy() for name, values in match.states.items()}
        if root.request.samples and match.length == len(root.forced):
            kept = self._runner.hidden_state
            root.hidden = match.hidden if kept is None else match.states[kept]
        handle.cached_tokens = match.length - 1  # the boundary token is none of the prompt's
        self._cached_tokens += handle.cached_tokens
        self._cache_hits += handle.cached_tokens > 0

    def _turn_of_reading(self, lane: ReadingLane, started: float) -> None:
        lane.fill()
        rows, steps = len(lane.batch), lane.plan()
        self._settle(self._read(lane.batch, steps))
        self._lanes.pace.note(rows, steps, self._clock() - started)

    def _settle(self, outcome: Outcome) -> None:
        self._steps += 1
        self._rows += outcome.rows
        self._output_rows += outcome.output_rows
        self._sampled += outcome.sampled + outcome.searched
        self._written += outcome.sampled
        for sequence in outcome.forked:
            self._lanes.lane_of(sequence.request).waiting.appendleft(sequence)
        self._lanes.writing.joining = outcome.continuing + self._lanes.writing.joining
        for sequence in outcome.ended:
            request = sequence.request
            request.num_live -= 1
            if request.num_live == 0:
                self._end(request, Finish.LENGTH)
        for handle in outcome.news:
            handle.notify()

    def _end_cancelled_and_expired(self) -> None:
        for request in self._live.expired(self._clock()):
            self._end(request, Finish.TIMEOUT)
        if self._any_cancelled:
            self._any_cancelled = False
            for request in self._live.cancelled():
                self._end(request, Finish.CANCELLED)

    def _end(self, request: Request, finish: Finish, failure: MeariError | None = None) -> None:
        self._scheduler.remove(request)
        if finish in (Finish.TIMEOUT, Finish.CANCELLED):
            self._lanes.writing.note_states(request)
        if request.admitted:
            self._running -= 1
        self._lanes.leave(request)
        self._read.let_go(request)
        if self._live.claim(request):
            if request.beams is not None:
                if finish is not Finish.LENGTH:
                    finish_beams(request, finish)
                self._written += num_written(request)
            request.handle.end(finish, self._clock(), failure)

    def _end_all(self, reason: MeariError) -> None:
        for request in self._live.everyone():
            self._end(request, Finish.FAILED, reason)
        self._lanes.clear()
