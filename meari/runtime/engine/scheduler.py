"""Admission of requests, and the choice of the lane that runs next.

Input: requests. Output: the lane of the next turn. Must not know: what a turn computes.

The queue is bounded in requests. A caller reserves its place first, before it does any work such as tokenizing, and is
refused at once when there is none. Callers take turns, each with its requests in the order of their arrival; a request
without room is skipped only for requests of another lane kind, since others would keep it waiting for ever. When all
places are taken, a caller with less than its even share of them still gets one: the others have taken too many.

    writing   one lane of all sequences that have read their prompt
    short     one lane that reads prompts, and texts of requests with few of them
    lists     a lane for each request with many texts

A run of one sequence is several times as fast as a run of sixty-four, so a sentence never runs beside a long list: they
take turns of limited time. The turn goes to the kind of lane that has had the least time (start-time fair queueing,
Goyal et al. 1996); an idle kind gets no credit. So lists, however many, take at most a third of the time while other
kinds want it.

Threads: any thread may reserve, add and release; a lock guards the queue. The rest, and all of `Lanes`, is for the
engine's thread.
"""

from __future__ import annotations

import itertools
import threading
from collections import Counter, OrderedDict, deque
from collections.abc import Callable
from functools import partial
from typing import Final, Protocol

from meari.errors import Bound, Overloaded
from meari.runtime.engine.calls import EngineLimits, Reservation
from meari.runtime.engine.reading import ReadingLane, TokenReader
from meari.runtime.engine.runner import Floats, Runner
from meari.runtime.engine.sequences import LaneKind, Phase, Request, Sequence, TurnResult
from meari.runtime.engine.stats import Pace
from meari.runtime.engine.writing import CROWDED_TURN_SECONDS, WritingLane

KINDS: Final = tuple(LaneKind)
MAX_LISTS: Final = 4
READING_SECONDS: Final = 0.005  # CPU time of a turn
OFFLINE_READING_SECONDS: Final = 0.05  # nobody waits for a turn
MAX_PROMPT_DELAY_TURNS: Final = 8  # writing turns that a prompt waits for others to be read with


class RequestQueue:
    """The requests that wait to be admitted, bounded to `max_waiting` places; twice as many if callers share them."""

    def __init__(self, max_waiting: int) -> None:
        self._max_waiting = max_waiting
        self._requests: OrderedDict[str, deque[Request]] = OrderedDict()  # by caller; whose turn it is comes first
        self._places: Counter[str] = Counter()  # that each caller holds
        self._changed = threading.Condition()
        self._num_waiting = 0
        self._num_refused = 0
        self._open = True

    @property
    def num_waiting(self) -> int:
        """Requests that hold a place, reserved or added, and are not admitted yet."""
        return self._num_waiting

    @property
    def num_waiting_tokens(self) -> int:
        """Tokens that the requests added and not admitted yet may need; reserved places have none."""
        with self._changed:
            return sum(request.num_tokens for waiting in self._requests.values() for request in waiting)

    @property
    def num_refused(self) -> int:
        """Requests that found no place."""
        return self._num_refused

    @property
    def is_open(self) -> bool:
        """False once the engine is to end."""
        return self._open

    def reserve(self, share: str = "") -> Reservation:
        """Take a place in the queue for the caller `share`. Raises Overloaded when all are taken."""
        with self._changed:
            if not self._has_room(share, self._max_waiting):
                self._num_refused += 1
                raise Overloaded(
                    f"{self._num_waiting} requests are waiting already, at most {self._max_waiting} may; try again",
                    Bound.QUEUE,
                )
            return self._take_place(share)

    def try_reserve(self, share: str = "", *, for_list: bool) -> Reservation | None:
        """Take a place if there is one; for_list: only of the half of the queue that long lists share."""
        with self._changed:
            if not self._has_room(share, max(1, self._max_waiting // 2) if for_list else self._max_waiting):
                return None
            return self._take_place(share)

    def add(self, request: Request, reservation: Reservation) -> bool:
        """Queue a request on its reserved place; returns False when the queue is closed."""
        reservation.use()
        with self._changed:
            if self._open:
                if request.phase is Phase.WAITING:  # else its time is up already
                    self._requests.setdefault(request.share, deque()).append(request)
                    self._changed.notify()
            elif request.phase is Phase.WAITING:
                self._leave(request, Phase.ENDED)
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
        """Block until a request waits or the queue is closed. A call of `wake` may end it early."""
        with self._changed:
            if not self._requests and self._open:
                self._changed.wait()

    def admit(self, take: Callable[[Request], bool]) -> list[Request]:
        """Admit the waiting requests, in turn, for which `take` finds room and returns True."""
        if not self._requests:
            return []
        admitted = []
        full: set[LaneKind] = set()
        with self._changed:
            rounds = list(itertools.zip_longest(*self._requests.values()))
            for request in itertools.chain.from_iterable(rounds):
                if request is None or request.lane in full:
                    continue
                if not take(request):
                    full.add(request.lane)
                    continue
                self._requests.move_to_end(request.share)
                self._forget(request)
                self._leave(request, Phase.RUNNING)
                admitted.append(request)
        return admitted

    def remove(self, request: Request) -> None:
        """Forget a request that ends, even before it is added."""
        with self._changed:
            if request.phase is Phase.WAITING:
                if request in self._requests.get(request.share, ()):
                    self._forget(request)
                self._leave(request, Phase.ENDED)

    def _has_room(self, share: str, num_places: int) -> bool:
        """Return True if a place is free, or the caller holds less than its even share of all."""
        if self._num_waiting < num_places:
            return True
        num_callers = len(self._places) + (share not in self._places)
        return self._places[share] < num_places // num_callers and self._num_waiting < 2 * num_places

    def _take_place(self, share: str) -> Reservation:
        self._num_waiting += 1
        self._places[share] += 1
        return Reservation(partial(self._release_place, share), share)

    def _forget(self, request: Request) -> None:
        waiting = self._requests[request.share]
        waiting.remove(request)
        if not waiting:
            del self._requests[request.share]

    def _leave(self, request: Request, phase: Phase) -> None:
        request.phase = phase
        self._give_back(request.share)

    def _release_place(self, share: str) -> None:
        with self._changed:
            self._give_back(share)

    def _give_back(self, share: str) -> None:
        self._num_waiting -= 1
        self._places[share] -= 1
        if not self._places[share]:
            del self._places[share]


class Lane(Protocol):
    """Sequences that run together. `spent` is the seconds of its turns."""

    spent: float

    def __len__(self) -> int: ...
    @property
    def num_rows(self) -> int: ...
    def turn(self) -> TurnResult: ...
    def drop(self, request: Request) -> None: ...
    def clear(self) -> set[Request]: ...


class Lanes:
    """All lanes of an engine; at most `max_slots` rows each."""

    def __init__(self, runner: Runner, reader: TokenReader, limits: EngineLimits) -> None:
        self._runner = runner
        self._reader = reader
        self._limits = limits
        self._reading_pace = Pace()
        self.writing = WritingLane(runner, reader.clock)
        self._short = self._reading_lane()
        self._lists: dict[Request, ReadingLane] = {}
        self._spent = dict.fromkeys(KINDS, 0.0)
        self._num_writing_rows = 0  # that admitted requests may come to need
        self._num_short = 0  # admitted requests with few texts
        self._turns_since_short = 0

    @property
    def num_rows(self) -> int:
        """Number of sequences that hold a row."""
        lanes: list[Lane] = [self.writing, self._short, *self._lists.values()]
        return sum(lane.num_rows for lane in lanes)

    def take(self, request: Request) -> bool:
        """Make room for a request; returns False where there is none."""
        if request.lane is LaneKind.WRITING:
            if self._num_writing_rows and self._num_writing_rows + request.num_rows > self._limits.max_slots:
                return False
            self._num_writing_rows += request.num_rows
        elif request.lane is LaneKind.SHORT:
            if self._num_short >= self._limits.max_slots:
                return False
            self._num_short += 1
        elif len(self._lists) >= MAX_LISTS:
            return False
        else:
            lane = self._reading_lane(for_list=True)
            lane.spent = min((other.spent for other in self._lists.values()), default=0.0)
            self._lists[request] = lane
        return True

    def begin(self, root: Sequence, hidden: Floats | None) -> None:
        """Let an admitted request's first sequence wait for a row, or write at once.

        hidden  the hidden vector after its prompt, float32 [H], if that came from the cache as a whole
        """
        if hidden is None:
            self._lists.get(root.request, self._short).add(root)
        else:
            self.writing.add_cached(root, hidden)

    def leave(self, request: Request) -> None:
        """Give back the room of a request, if it was admitted."""
        if request.phase is not Phase.RUNNING:
            return
        request.phase = Phase.ENDED
        if request.lane is LaneKind.WRITING:
            self._num_writing_rows -= request.num_rows
            self.writing.drop(request)
            self._short.drop(request)
        elif request.lane is LaneKind.SHORT:
            self._num_short -= 1
            self._short.drop(request)
        else:
            del self._lists[request]

    def next(self) -> tuple[LaneKind, Lane] | None:
        """Return the lane whose turn it is, None where all are idle."""
        kinds = self._busy_kinds()
        if not len(self._short) or (len(self.writing) and not self._short_is_due()):
            kinds -= {LaneKind.SHORT}
        if not kinds:
            return None
        kind = min(kinds, key=lambda kind: (self._spent[kind], kind))
        self._turns_since_short = 0 if kind is LaneKind.SHORT else self._turns_since_short + (kind is LaneKind.WRITING)
        if kind is LaneKind.LIST:
            return kind, min((lane for lane in self._lists.values() if len(lane)), key=lambda lane: lane.spent)
        return kind, self._short if kind is LaneKind.SHORT else self.writing

    def charge(self, kind: LaneKind, lane: Lane, seconds: float) -> None:
        """Charge a turn to a lane and its kind; idle kinds get no credit for it."""
        lane.spent += seconds
        self._spent[kind] += seconds
        busy = self._busy_kinds()
        least = min(self._spent[kind] for kind in busy or KINDS)
        for other in KINDS:
            if other not in busy:
                self._spent[other] = max(self._spent[other], least)

    def _reading_lane(self, *, for_list: bool = False) -> ReadingLane:
        return ReadingLane(
            self._runner,
            self._reader,
            self._reading_pace,
            self._limits,
            turn_seconds=partial(_reading_seconds, self.writing, self._limits, for_list=for_list),
            for_list=for_list,
        )

    def _busy_kinds(self) -> set[LaneKind]:
        found = {LaneKind.WRITING} if len(self.writing) else set()
        if len(self._short):
            found.add(LaneKind.SHORT)
        if any(len(lane) for lane in self._lists.values()):
            found.add(LaneKind.LIST)
        return found

    def _short_is_due(self) -> bool:
        """Return True if prompts waiting are an eighth of the writing sequences, or have waited for eight turns."""
        enough = len(self._short) * MAX_PROMPT_DELAY_TURNS >= self.writing.num_rows
        return enough or self._turns_since_short >= MAX_PROMPT_DELAY_TURNS


def _reading_seconds(writing: WritingLane, limits: EngineLimits, *, for_list: bool) -> float:
    """Return the CPU time that a turn may take: where many write, whoever comes waits for them as long anyway."""
    if limits.offline:
        return OFFLINE_READING_SECONDS
    return CROWDED_TURN_SECONDS if writing.is_crowded and not for_list else READING_SECONDS
