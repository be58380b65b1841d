"""The engine's loop: admit → run a turn → settle.

Input: calls, from any thread. Output: handles that fill while the loop runs. Must not know: text, HTTP, JSON.

A turn is one run of a graph for the sequences of one lane: some forced tokens of each that reads, or some sampled
tokens of each that writes.

A row with a number that is not finite fails its request, and an exception fails the requests of its turn, each once;
all others go on. After each such turn the boundary token is run by itself. Where that fails, too, several times in a
row, or where the loop meets an error outside a turn, all requests fail and the engine takes no more: `failure` says
why, and the process has to be replaced.
"""

from __future__ import annotations

import heapq
import itertools
import logging
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Final

from meari.errors import MAY_QUOTE, EngineFailed, MeariError, NotReady
from meari.runtime.engine.beams import BeamRequest, TreeRequest
from meari.runtime.engine.cache import CacheRoom, PrefixCache
from meari.runtime.engine.calls import EngineLimits, Finish, GenerateCall, Reservation, ScoreCall, TokenSearch
from meari.runtime.engine.handles import Generation, Scoring, Searching
from meari.runtime.engine.prefixes import FEW_TEXTS, CachedPrompts, ScoringRequest
from meari.runtime.engine.reading import TokenReader
from meari.runtime.engine.runner import Runner
from meari.runtime.engine.scheduler import Lane, Lanes, RequestQueue
from meari.runtime.engine.sequences import GenerationRequest, LaneKind, Phase, Request, TurnResult, not_finite
from meari.runtime.engine.stats import EngineStats

MAX_FAILED_TRIALS: Final = 3  # in a row, of the boundary token alone
log = logging.getLogger(__name__)


class LiveRequests:
    """The accepted requests that have not ended, by number, and a heap of their deadlines.

    The one caller who claims a request ends it, so it ends exactly once. Any thread; a lock guards it.
    """

    def __init__(self) -> None:
        self._requests: dict[int, Request] = {}
        self._deadlines: list[tuple[float, int]] = []
        self._lock = threading.Lock()

    def add(self, request: Request) -> None:
        """Take a request that has to be ended from now on."""
        with self._lock:
            self._requests[request.number] = request
            heapq.heappush(self._deadlines, (request.handle.deadline, request.number))
            if len(self._deadlines) > 64 + 2 * len(self._requests):
                self._deadlines = [entry for entry in self._deadlines if entry[1] in self._requests]
                heapq.heapify(self._deadlines)

    def claim(self, request: Request) -> bool:
        """Return True for the one caller who is to end the request."""
        with self._lock:
            return self._requests.pop(request.number, None) is not None

    def expired(self, now: float) -> list[Request]:
        """Return the requests whose deadline is past."""
        if not self._deadlines or self._deadlines[0][0] > now:
            return []
        due = []
        with self._lock:
            while self._deadlines and self._deadlines[0][0] <= now:
                number = heapq.heappop(self._deadlines)[1]
                if number in self._requests:
                    due.append(self._requests[number])
        return due

    def cancelled(self) -> list[Request]:
        """Return the requests that their callers gave up."""
        return [request for request in self.everyone() if request.handle.cancelled]

    def everyone(self) -> list[Request]:
        """Return all requests that have not ended."""
        with self._lock:
            return list(self._requests.values())


class Engine:
    """Runs the sequences of one bundle. See the head of the package for who may call what."""

    def __init__(self, runner: Runner, limits: EngineLimits, clock: Callable[[], float] = time.monotonic) -> None:
        self._runner = runner
        runner.keeps_buffers = limits.offline
        self._limits = limits
        self._clock = clock
        self._queue = RequestQueue(limits.max_waiting)
        self._live = LiveRequests()
        self._stats = EngineStats()
        self.share_cache(CacheRoom(limits.cache_bytes))
        self._numbers = itertools.count()
        self._any_cancelled = False
        self._busy = False
        self._num_failed_trials = 0
        self._thread: threading.Thread | None = None
        self.failure: str | None = None

    # ---- any thread ----

    @property
    def clock(self) -> Callable[[], float]:
        """The clock of deadlines, in seconds."""
        return self._clock

    @property
    def limits(self) -> EngineLimits:
        """The bounds of this engine."""
        return self._limits

    @property
    def is_ready(self) -> bool:
        """True while requests are taken."""
        return self._queue.is_open and self.failure is None

    def start(self) -> None:
        """Start the engine's thread."""
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    def share_cache(self, room: CacheRoom) -> None:
        """Keep prefixes in `room`, together with other engines. Only before the first request."""
        runner, shapes = self._runner, {tensor.name: tensor.shape for tensor in self._runner.state_tensors}
        self._cache = PrefixCache(room, shapes, runner.cached_hidden_size) if room.max_bytes else None
        self._cached = CachedPrompts(runner, self._cache, self._stats)
        self._lanes = Lanes(runner, TokenReader(runner, self._cached, self._clock), self._limits)

    def stop(self, timeout_seconds: float = 5.0) -> bool:
        """Take no more requests, fail those that are left, end the thread, and give up the room in the cache.

        Returns False if a run of the graph takes longer than `timeout_seconds`; it may be called again then.
        """
        self._queue.close()
        if self._thread is not None:
            self._thread.join(timeout_seconds)
            if self._thread.is_alive():
                return False
        if self._cache is not None:
            self._cache.clear()
        return True

    def reserve(self, share: str = "") -> Reservation:
        """Take a place in the queue, before any work is done for a request. Raises Overloaded, NotReady.

        share  name of the caller: while several have requests that wait, they take turns
        """
        self._check_open()
        return self._queue.reserve(share)

    def try_reserve(self, share: str = "", *, for_list: bool) -> Reservation | None:
        """Take a place if there is one; for_list: of the half of the queue that long lists share. Raises NotReady."""
        self._check_open()
        return self._queue.try_reserve(share, for_list=for_list)

    def generate(self, call: GenerateCall, reservation: Reservation, handle: Generation | None = None) -> Generation:
        """Queue a continuation; handle: the call's, if it exists already.

        Raises NotReady when the engine has ended meanwhile.
        """
        handle = handle or Generation(call)
        kind = GenerationRequest if call.num_beams == 1 else BeamRequest
        self._submit(kind(next(self._numbers), call, handle, self._runner.end_id), reservation)
        return handle

    def search(self, call: GenerateCall, search: TokenSearch, reservation: Reservation) -> Searching:
        """Queue a search after a prompt, of at most `num_beams` places at a time and `max_tokens` times.

        Raises NotReady when the engine has ended meanwhile.
        """
        handle = Searching(call)
        self._submit(TreeRequest(next(self._numbers), call, handle, self._runner.end_id, search), reservation)
        return handle

    def score(self, call: ScoreCall, reservation: Reservation) -> Scoring:
        """Queue texts to score. Raises NotReady when the engine has ended meanwhile."""
        handle = Scoring(call)
        num_alternatives = min(call.num_alternatives, self._runner.vocabulary_size)
        initial = {name: values[0] for name, values in self._runner.initial_states(1).items()}
        request = ScoringRequest(next(self._numbers), call, handle, self._runner.end_id, num_alternatives, initial)
        if request.num_live > FEW_TEXTS and not self._limits.offline:
            request.lane = LaneKind.LIST
        if request.num_live:
            self._submit(request, reservation)
        else:
            reservation.release()
            request.end(Finish.LENGTH, self._clock())
        return handle

    def stats(self) -> EngineStats:
        """Return the counters since the start, and what runs and waits now."""
        return replace(
            self._stats,
            requests_refused=self._queue.num_refused,
            running=self._lanes.num_rows,
            waiting=self._queue.num_waiting,
            waiting_tokens=self._queue.num_waiting_tokens,
            cache_bytes=self._cache.num_bytes if self._cache is not None else 0,
            fixed_seconds=self._lanes.writing.fixed_seconds,
            token_gaps=self._lanes.writing.gaps,
        )

    def _check_open(self) -> None:
        if not self.is_ready:
            raise NotReady(f"the engine takes no requests: {'it failed' if self.failure else 'it is shutting down'}")

    def _submit(self, request: Request, reservation: Reservation) -> None:
        request.handle.submitted_at = request.handle.submitted_at or self._clock()
        request.handle.on_cancel = self._note_cancel
        request.share = reservation.share
        self._live.add(request)
        if request.handle.cancelled:  # before it was queued
            self._note_cancel()
        if not self._queue.add(request, reservation):
            self._end(request, Finish.FAILED, NotReady("the engine takes no requests any more"))
            self._check_open()

    def _note_cancel(self) -> None:
        self._any_cancelled = True
        self._queue.wake()

    # ---- the engine's thread ----

    def _run(self) -> None:
        try:
            while self._queue.is_open:
                if not self._busy:
                    self._queue.wait_for_work()
                self.step()
            reason: MeariError = NotReady("the service is shutting down")
        except BaseException as error:  # whatever ends this thread must not leave anybody waiting
            log.exception("the engine failed and takes no more requests")
            self.failure = f"its loop ended with {type(error).__name__}; the process has to be replaced"
            self._queue.close()
            reason = EngineFailed("the engine failed while this request was running")
        for request in self._live.everyone():
            self._end(request, Finish.FAILED, reason)

    def step(self) -> None:
        """Run one turn of the loop. Tests without a thread call it themselves."""
        self._end_cancelled_and_expired()
        for request in self._queue.admit(self._lanes.take):
            self._begin(request)
        turn = self._lanes.next()
        self._busy = turn is not None
        if turn is not None:
            kind, lane = turn
            started = self._clock()
            self._settle(self._run_turn(lane))
            self._lanes.charge(kind, lane, self._clock() - started)

    def _begin(self, request: Request) -> None:
        self._stats.requests_running += 1
        request.handle.started_at = self._clock()
        root = request.take_root()
        self._lanes.begin(root, self._cached.look_up(root))

    def _run_turn(self, lane: Lane) -> TurnResult:
        """Run a turn; an exception fails its requests alone. Raises EngineFailed where nothing can be run any more."""
        try:
            result = lane.turn()
        except BaseException:
            log.exception("a turn failed", extra=MAY_QUOTE)
            result = TurnResult()
            for request in lane.clear():
                self._end(request, Finish.FAILED, EngineFailed("the engine failed while this request was running"))
            self._try_boundary_token()
        else:
            if result.failed:
                self._try_boundary_token()
            else:
                self._num_failed_trials = 0
        return result

    def _try_boundary_token(self) -> None:
        """Find out whether the graphs still run. Raises EngineFailed after several trials that failed."""
        try:
            is_sound = self._runner.runs_boundary_token()
        except Exception:
            log.exception("the boundary token alone cannot be run")
            is_sound = False
        self._num_failed_trials = 0 if is_sound else self._num_failed_trials + 1
        if self._num_failed_trials >= MAX_FAILED_TRIALS:
            raise EngineFailed("the graphs do not even run the boundary token")

    def _settle(self, result: TurnResult) -> None:
        """Count the work of a turn, move sequences to the writing lane, and end requests."""
        stats = self._stats
        stats.steps += 1
        stats.rows += result.num_rows
        stats.output_rows += result.num_output_rows
        stats.tokens_sampled += result.num_sampled + result.num_searched
        stats.tokens_written += result.num_sampled
        for request in result.failed:
            log.error("the model computed numbers that are not finite, and a request failed")
            self._end(request, Finish.FAILED, not_finite())
        self._lanes.writing.add([s for s in result.continuing if s.request.phase is Phase.RUNNING])
        for sequence in result.ended:
            request = sequence.request
            request.num_live -= 1
            if request.num_live == 0:
                self._end(request, Finish.LENGTH)
        for handle in result.changed:
            handle.notify()

    def _end_cancelled_and_expired(self) -> None:
        for request in self._live.expired(self._clock()):
            self._end(request, Finish.TIMEOUT)
        if self._any_cancelled:
            self._any_cancelled = False
            for request in self._live.cancelled():
                self._end(request, Finish.CANCELLED)

    def _end(self, request: Request, finish: Finish, failure: MeariError | None = None) -> None:
        """Take a request out of queue and lanes, and end its handle, unless another thread has claimed it."""
        self._queue.remove(request)
        if finish in (Finish.TIMEOUT, Finish.CANCELLED):
            self._lanes.writing.store_states(request)
        if request.phase is Phase.RUNNING:
            self._stats.requests_running -= 1
        self._lanes.leave(request)
        self._cached.release(request)
        if self._live.claim(request):
            self._stats.tokens_written += request.end(finish, self._clock(), failure)
