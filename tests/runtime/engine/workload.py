"""Random requests, and engines that run them together or alone.

The clock advances by a random amount at each reading, which ends turns at random points.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from hypothesis import strategies as st

from meari.runtime.bundle import Bundle
from meari.runtime.engine import (
    Engine,
    EngineLimits,
    GenerateCall,
    Generation,
    Sampling,
    ScoreCall,
    Scoring,
    StateValue,
)

NEVER = 1e12
MAX_TURNS = 3000


@dataclass
class Ticking:
    """Clock that advances at each reading."""

    tick: float
    now: float = 0.0

    def __call__(self) -> float:
        self.now += self.tick
        return self.now


@dataclass
class Ends:
    """Stop matcher that matches any token of a set."""

    tokens: frozenset[int]

    def __call__(self, token: int, /) -> bool:
        return token in self.tokens

    def fork(self) -> Ends:
        return self


@dataclass(frozen=True)
class Job:
    """Request with its arrival, the job whose state it continues, and its cancellation.

    follows    number that selects an earlier job; None continues no job
    cancelled  turns from arrival to cancellation
    lifetime   ticks of the engine's clock until the deadline
    """

    call: GenerateCall | ScoreCall
    arrives: int
    follows: int | None = None
    cancelled: int | None = None
    lifetime: int | None = None

    @property
    def is_cut(self) -> bool:
        return self.cancelled is not None or self.lifetime is not None


@dataclass
class SubmittedJob:
    """Job in the engine with its submitted call and its handle."""

    job: Job
    call: GenerateCall | ScoreCall
    handle: Generation | Scoring
    arrived: int

    @property
    def state(self) -> StateValue | None:
        """Return the state of the last sample or text to continue from."""
        if isinstance(self.handle, Generation):
            return self.handle.samples[-1].state
        return self.handle.results[-1].state if self.handle.results else None


def submit(engine: Engine, call: GenerateCall | ScoreCall) -> Generation | Scoring:
    with engine.reserve() as reservation:
        return engine.generate(call, reservation) if isinstance(call, GenerateCall) else engine.score(call, reservation)


def run_alone(bundle: Bundle, call: GenerateCall | ScoreCall) -> Generation | Scoring:
    engine = Engine(bundle.runner, EngineLimits(16, 4), lambda: 0.0)
    handle = submit(engine, dataclasses.replace(call, deadline=NEVER))
    for _ in range(MAX_TURNS):
        if handle.ended:
            return handle
        engine.step()
    raise AssertionError("did not end alone")


def run_together(engine: Engine, clock: Ticking, jobs: list[Job]) -> list[SubmittedJob]:
    """Run all jobs in one engine; return them in order of arrival."""
    ran: list[SubmittedJob] = []
    waiting = sorted(jobs, key=lambda job: job.arrives)
    for turn in range(MAX_TURNS):
        for job in [job for job in waiting if job.arrives <= turn]:
            leader = ran[job.follows % len(ran)] if job.follows is not None and ran else None
            if leader is not None and not leader.handle.ended:
                continue
            waiting.remove(job)
            call = job.call
            if leader is not None and leader.state is not None:
                call = dataclasses.replace(call, start=leader.state)
                call = dataclasses.replace(call, context=[]) if isinstance(call, ScoreCall) else call
            if job.lifetime is not None:
                call = dataclasses.replace(call, deadline=clock.now + job.lifetime * clock.tick)
            ran.append(SubmittedJob(job, call, submit(engine, call), turn))
        for one in ran:
            if one.job.cancelled is not None and turn == one.arrived + one.job.cancelled:
                one.handle.cancel()
        engine.step()
        if not waiting and all(one.handle.ended for one in ran):
            return ran
    raise AssertionError(f"not ended: {[one.call for one in ran if not one.handle.ended]}, {waiting}")


TRUNKS = ([2, 3, 4, 5, 6, 7] * 20, [9] * 30, [5, 2, 20, 11, 12, 3, 25])
tokens = st.integers(1, 27)
texts = st.builds(
    lambda trunk, length, tail: [*trunk[:length], *tail],
    st.sampled_from(TRUNKS),
    st.sampled_from([0, 1, 2, 7, 30, 64, 100]),
    st.lists(tokens, max_size=3),
)
samplings = st.builds(
    Sampling,
    temperature=st.sampled_from([0.0, 1e-3, 0.3, 1.0, 1.0, 3.0]),
    top_k=st.sampled_from([0, 0, 0, 1, 5]),
    top_p=st.sampled_from([1.0, 1.0, 0.9, 0.3]),
    min_p=st.sampled_from([0.0, 0.0, 0.05]),
    repetition_penalty=st.sampled_from([1.0, 1.0, 1.0, 1.3]),
    frequency_penalty=st.sampled_from([0.0, 0.0, 0.0, 1.5, -0.7]),
    presence_penalty=st.sampled_from([0.0, 0.0, 0.0, 2.0, -1.0]),
    min_tokens=st.sampled_from([0, 0, 0, 1, 4, 12]),
    logit_bias=st.sampled_from([(), (), ((0, -100.0),), ((5, 3.0), (7, -2.0))]),
    seed=st.integers(0, 3),
)
ticks = st.sampled_from([0.0, 1e-4, 2e-3, 1.0])
stops = st.sampled_from([None, None, lambda: Ends(frozenset({8, 15})), lambda: Ends(frozenset(range(3, 28, 2)))])
generations = st.builds(
    GenerateCall,
    prompt=texts,
    max_tokens=st.sampled_from([1, 2, 5, 12, 25]),
    deadline=st.just(NEVER),
    sampling=samplings,
    num_samples=st.integers(1, 3),
    num_alternatives=st.sampled_from([None, None, 0, 3]),
    stop=stops,
    want_state=st.booleans(),
    ignores_end=st.sampled_from([False, False, True]),
)
calls = st.one_of(
    generations,
    st.builds(
        GenerateCall,
        prompt=texts,
        max_tokens=st.sampled_from([1, 3, 10]),
        deadline=st.just(NEVER),
        sampling=st.builds(Sampling, min_tokens=st.sampled_from([0, 0, 2, 5])),
        num_samples=st.integers(1, 2),
        num_alternatives=st.sampled_from([None, 3]),
        stop=stops,
        want_state=st.booleans(),
        num_beams=st.integers(2, 5),
    ),
    st.builds(
        ScoreCall,
        context=texts,
        texts=st.lists(texts, min_size=1, max_size=7),
        deadline=st.just(NEVER),
        add_end=st.booleans(),
        num_alternatives=st.sampled_from([0, 0, 2]),
        want_ranks=st.booleans(),
        want_state=st.booleans(),
    ),
)
never = st.none()
jobs = st.builds(
    Job,
    calls,
    arrives=st.integers(0, 12),
    follows=never | st.integers(0, 7),
    cancelled=never | never | st.integers(0, 10),
    lifetime=never | never | st.integers(0, 60),
)
limits = st.builds(
    EngineLimits,
    max_slots=st.sampled_from([1, 2, 5, 16]),
    max_waiting=st.just(64),
    cache_bytes=st.sampled_from([0, 3_000, 40_000, 10**7]),
)
