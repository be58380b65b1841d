"""Which sequences run together, and whose turn it is.

    writing      one lane of all sequences that have read their prompt
    brief        one lane that reads prompts, and texts of requests with few of them
    lists        a lane for each request with many texts

A run of one sequence is several times as fast as a run of sixty-four, so a sentence never runs beside a long list: they
take turns, each turn as long as `TURN_SECONDS` allows. The turn goes to the kind of lane that has had the least time
(start-time fair queueing, Goyal et al. 1996); a kind that had nothing to do gets no credit for it. So lists, however
many, never take more than a third of what there is while others want it.

Owned by the engine's thread.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable
from typing import Final

from meari.runtime.engine.batch import Batch
from meari.runtime.engine.calls import EngineLimits
from meari.runtime.engine.gaps import TokenGaps
from meari.runtime.engine.outcome import Outcome
from meari.runtime.engine.runner import Runner
from meari.runtime.engine.scheduler import FEW_TEXTS, Kind, Request
from meari.runtime.engine.sequence import Sequence
from meari.runtime.engine.writing import Writing

TURN_SECONDS: Final = 0.005
LONG_TURN_SECONDS: Final = 0.05  # where nobody waits for a turn
MOST_STEPS: Final = 64  # of a reading turn
MOST_TOKENS: Final = 512  # of a reading turn, steps times rows: their states and hidden vectors are held at once
MOST_FLOATS: Final = 640_000  # of the distributions of a reading turn
MOST_FLOATS_ALONE: Final = 2_560_000  # likewise, in a process that does nothing else
MOST_LISTS: Final = 4
WRITING_SECONDS: Final = 0.002
MOST_WRITTEN: Final = 32  # tokens of each sequence in a writing turn
CROWDED_SECONDS: Final = 0.016  # where many sequences write, what is done once a turn weighs more
CROWDED_WRITTEN: Final = 8  # and those that end before the turn does are carried along for nothing
PATIENCE: Final = 8  # a prompt waits at most for so many writing turns until some more are there to be read with it
NEARLY: Final = 0.95  # of the most tokens a CPU-second
FIRST_STEPS: Final = 8  # where it is not known yet how long a step takes


class Pace:
    """How long a step takes and what it costs by the number of rows, as observed."""

    def __init__(self) -> None:
        self._seconds: dict[int, float] = {}  # by the rows' number of binary digits, as are the next
        self._tokens_per_cpu_second: dict[int, float] = {}

    def note(self, rows: int, steps: int, seconds: float) -> None:
        """Take into account how long a run took."""
        size, found = rows.bit_length(), seconds / steps
        self._seconds[size] = 0.75 * self._seconds.get(size, found) + 0.25 * found

    def note_cost(self, rows: int, steps: int, cpu_seconds: float) -> None:
        """Take into account what a run cost its thread: other threads make it longer, at random, but not dearer."""
        if cpu_seconds > 0:
            size, rate = rows.bit_length(), rows * steps / cpu_seconds
            self._tokens_per_cpu_second[size] = 0.75 * self._tokens_per_cpu_second.get(size, rate) + 0.25 * rate

    def most_steps(self, rows: int, turn_seconds: float) -> int:
        """How many steps fit into a turn."""
        seconds = self._seconds.get(rows.bit_length())
        if seconds is None:
            return FIRST_STEPS
        return max(1, int(turn_seconds / seconds)) if seconds > 0 else MOST_STEPS

    @property
    def knee(self) -> int:
        """So many rows, a power of two, that fewer would clearly give fewer tokens a CPU-second than the most does.

        As far as was seen; 0 before the first run.
        """
        rates = dict(self._tokens_per_cpu_second)
        most = max(rates.values(), default=0.0)
        return min((2**size for size, rate in rates.items() if rate >= NEARLY * most), default=0)


class ReadingLane:
    """Sequences with forced tokens to feed: rows that run, and sequences that wait for a row."""

    def __init__(self, runner: Runner, pace: Pace, limits: EngineLimits) -> None:
        self.batch = Batch(runner)
        self.waiting: deque[Sequence] = deque()
        self.spent = 0.0
        self._pace = pace
        self._max_rows = limits.max_slots
        self._turn_seconds = LONG_TURN_SECONDS if limits.has_one_caller else TURN_SECONDS
        most_floats = MOST_FLOATS_ALONE if limits.has_one_caller else MOST_FLOATS
        self._most_rows = max(64, min(MOST_TOKENS, most_floats // runner.vocabulary_size))

    def __len__(self) -> int:
        return len(self.batch) + len(self.waiting)

    def fill(self) -> list[Sequence]:
        """Give free rows to those that wait; returns the sequences that got one."""
        free = min(self._max_rows - len(self.batch), len(self.waiting))
        joined = [self.waiting.popleft() for _ in range(free)]
        self.batch.join(joined)
        return joined

    def plan(self) -> int:
        """How many steps to run now: as many as fit into a turn without feeding much that nobody needs."""
        needs = [sequence.num_to_feed for sequence in self.batch.sequences]
        rows = len(needs)
        in_time = self._pace.most_steps(rows, self._turn_seconds)
        steps = min(max(needs), MOST_STEPS, max(1, MOST_TOKENS // rows), in_time)
        if any(sequence.log is not None for sequence in self.batch.sequences):
            steps = min(steps, max(1, self._most_rows // rows))
        useful = 0.9 if rows > FEW_TEXTS else 0.5  # few rows cost hardly more than one
        while steps > 1 and sum(min(need, steps) for need in needs) < useful * steps * rows:
            steps -= 1
        return steps

    def drop(self, keeps: Callable[[Sequence], bool]) -> None:
        """Forget the sequences that `keeps` says no to."""
        self.batch.keep([row for row, sequence in enumerate(self.batch.sequences) if keeps(sequence)])
        self.waiting = deque(sequence for sequence in self.waiting if keeps(sequence))


class Lanes:
    """All lanes of an engine; at most `max_slots` rows each."""

    def __init__(self, runner: Runner, limits: EngineLimits, clock: Callable[[], float]) -> None:
        self._runner = runner
        self._limits = limits
        self._clock = clock
        self.pace = Pace()  # of reading
        self._writing_pace = Pace()
        self.gaps = TokenGaps()
        self.writing = Writing(runner, clock)
        self.brief = ReadingLane(runner, self.pace, limits)
        self.lists: dict[Request, ReadingLane] = {}
        self._spent = dict.fromkeys(Kind, 0.0)
        self._num_writers = 0  # rows of writing that admitted requests may come to need
        self._num_brief = 0  # admitted requests with few texts
        self._since_brief = 0

    @property
    def num_rows(self) -> int:
        """Sequences that hold a row."""
        return len(self.writing) + sum(len(lane.batch) for lane in self.reading)

    @property
    def knee(self) -> int:
        """Rows that write nearly as many tokens a CPU-second as can be written, see `Pace.knee`."""
        return self._writing_pace.knee

    @property
    def reading(self) -> Iterable[ReadingLane]:
        """All lanes of forced tokens."""
        return (self.brief, *self.lists.values())

    def has_room(self, request: Request) -> bool:
        """Whether a request can be admitted; it then is."""
        if request.kind is Kind.WRITING:
            if self._num_writers and self._num_writers + request.num_rows > self._limits.max_slots:
                return False
            self._num_writers += request.num_rows
            return True
        if request.kind is Kind.BRIEF:
            if self._num_brief >= self._limits.max_slots:
                return False
            self._num_brief += 1
            return True
        if len(self.lists) >= MOST_LISTS:
            return False
        self.lists[request] = ReadingLane(self._runner, self.pace, self._limits)
        self.lists[request].spent = min((lane.spent for lane in self.lists.values()), default=0.0)
        return True

    def write(self) -> Outcome:
        """A turn of writing: several tokens of each sequence where a token takes no time to speak of."""
        joining, newcomers = self.writing.joining, self.writing.newcomers
        rows = len(self.writing.batch) + len(joining)
        crowded = rows > FEW_TEXTS
        most, seconds = (CROWDED_WRITTEN, CROWDED_SECONDS) if crowded else (MOST_WRITTEN, WRITING_SECONDS)
        started, cpu_started = self._clock(), time.thread_time()
        outcome = self.writing(min(most, self._writing_pace.most_steps(rows, seconds)))
        if rows:
            now, steps = self._clock(), max(1, outcome.rows // rows)
            self._writing_pace.note(rows, steps, now - started)
            self._writing_pace.note_cost(rows, steps, time.thread_time() - cpu_started)
            num_first = sum(sequence.continuation is not None for sequence in newcomers)
            self.gaps.note(joining, outcome.sampled - num_first, steps, now)
        return outcome

    def lane_of(self, request: Request) -> ReadingLane:
        """Where the forced tokens of an admitted request are fed."""
        return self.lists.get(request, self.brief)

    def leave(self, request: Request) -> None:
        """Give back what a request holds, if it was admitted."""

        def keeps(sequence: Sequence) -> bool:
            return sequence.request is not request

        if not request.admitted:
            return
        request.admitted = False
        if request.samples:
            self._num_writers -= request.num_rows
            self.writing.drop(keeps)
            self.brief.drop(keeps)
        elif request in self.lists:
            del self.lists[request]
        else:
            self._num_brief -= 1
            self.brief.drop(keeps)

    def clear(self) -> None:
        """Forget everything."""
        self.lists.clear()
        self.brief.drop(lambda _: False)
        self.writing.drop(lambda _: False)

    def next(self) -> Writing | ReadingLane | None:
        """Whose turn it is, None where there is nothing to do."""
        kinds = self._busy()
        if not len(self.brief) or (len(self.writing) and not self._brief_is_due()):
            kinds -= {Kind.BRIEF}
        if not kinds:
            return None
        kind = min(kinds, key=lambda kind: (self._spent[kind], kind.value))
        self._since_brief = 0 if kind is Kind.BRIEF else self._since_brief + (kind is Kind.WRITING)
        if kind is Kind.LIST:
            return min((lane for lane in self.lists.values() if len(lane)), key=lambda lane: lane.spent)
        return self.brief if kind is Kind.BRIEF else self.writing

    def note_time(self, lane: Writing | ReadingLane, seconds: float) -> None:
        """Charge a turn to a lane and its kind; a kind that has nothing to do gets no credit for it."""
        kind = Kind.WRITING if isinstance(lane, Writing) else Kind.BRIEF if lane is self.brief else Kind.LIST
        if isinstance(lane, ReadingLane):
            lane.spent += seconds
        self._spent[kind] += seconds
        busy = self._busy()
        least = min(self._spent[kind] for kind in busy or Kind)
        for idle in set(Kind) - busy:
            self._spent[idle] = max(self._spent[idle], least)

    def _busy(self) -> set[Kind]:
        """The kinds that have something to do."""
        found = {Kind.WRITING} if len(self.writing) else set()
        if len(self.brief):
            found.add(Kind.BRIEF)
        if any(len(lane) for lane in self.lists.values()):
            found.add(Kind.LIST)
        return found

    def _brief_is_due(self) -> bool:
        """Prompts are read as soon as an eighth as many wait as write, or have waited for eight turns of writing."""
        return len(self.brief) * PATIENCE >= len(self.writing.batch) or self._since_brief >= PATIENCE
