"""Drill: twice as many requests arrive as a service can answer.

Its capacity is measured by clients that each wait for their answer before they ask again; then requests arrive at 80 %
and at 200 % of it, independently of the answers. The load has a CPU of its own where there are several.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import random
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any, Final

import pytest

from benchmarks.serving.processes import machine_seconds
from benchmarks.serving.requests import draw_length, make_text, make_words
from tests.drills.drill import Drill
from tests.drills.open_loop import Load, Outcome, Request, percentile, poisson
from tests.drills.processes import cpu_seconds, workers_of
from tests.drills.raw_http import Connection, post
from tests.service.running import Server, full_server, running_server

KEYS: Final = ("greedy-key-of-more-than-32-characters", "modest-key-of-more-than-32-characters")
CLIENTS: Final = 64  # of a worker, while its capacity is measured
NUM_REFUSALS: Final = 2000


@contextlib.contextmanager
def own_cpu(folder: Path, bundle: Path, **settings: Any) -> Iterator[tuple[Server, int]]:
    """Run a service with a worker for each CPU but one, which the load gets; yields it and their number.

    Where there is one CPU, both share it.
    """
    cpus = sorted(os.sched_getaffinity(0))
    served = cpus[:-1] or cpus
    os.sched_setaffinity(0, served)
    try:
        with running_server(folder, bundles=bundle, workers=len(served), log_level="info", **settings) as server:
            os.sched_setaffinity(0, cpus[-1:])
            yield server, len(served)
    finally:
        os.sched_setaffinity(0, cpus)


class Bodies:
    """Endless requests of all kinds: two in three are whole or streamed answers of 8 to 256 tokens."""

    def __init__(self, seed: int, key: str = "") -> None:
        self._choice = random.Random(seed)
        self._words = make_words()
        self._fields = [f"Authorization: Bearer {key}"] if key else []

    def __iter__(self) -> Iterator[Request]:
        while True:
            yield self.make()

    def make(self) -> Request:
        """Draw a request."""
        kind, path, body = self._choice.choices(
            (
                ("whole", "/generate", self._generate),
                ("stream", "/generate", lambda: self._generate() | {"stream": True}),
                ("openai", "/v1/completions", self._generate),
                ("score", "/score", lambda: {"texts": [self.text(20) for _ in range(8)]}),
            ),
            weights=(35, 35, 15, 15),
        )[0]
        return Request(post(path, json.dumps(body()).encode(), *self._fields), kind=kind)

    def _generate(self) -> dict[str, Any]:
        return {"prompt": self.text(2 + draw_length(self._choice) // 4), "max_tokens": draw_length(self._choice)}

    def text(self, num_words: int) -> str:
        """Draw words."""
        return make_text(self._words, num_words, self._choice)


@dataclass(frozen=True)
class Phase:
    """Outcomes of a load that lasted for some seconds from `start` on, and the CPU time that it took."""

    outcomes: list[Outcome]
    start: float
    seconds: float
    service_seconds: float  # CPU time of all workers
    load_seconds: float  # and of the load itself
    other_seconds: float  # and of all other processes of the machine

    def answered(self, status: int) -> list[Outcome]:
        return [outcome for outcome in self.outcomes if outcome.status == status]

    @property
    def ended(self) -> list[Outcome]:
        """Answers after the first tenth: before that, there are none of long texts."""
        begin, end = self.start + self.seconds / 10, self.start + self.seconds
        return [outcome for outcome in self.answered(200) if begin <= outcome.ended_at < end]

    @property
    def tokens_per_second(self) -> float:
        return sum(outcome.num_tokens for outcome in self.ended) / (0.9 * self.seconds)

    @property
    def tokens_per_cpu_second(self) -> float:
        return sum(outcome.num_tokens for outcome in self.answered(200)) / self.service_seconds

    @property
    def answers_per_second(self) -> float:
        return len(self.ended) / (0.9 * self.seconds)


@dataclass(frozen=True)
class Loaded:
    """A service, its load, and the requests that it sends."""

    load: Load
    bodies: Bodies
    workers: list[int]
    choice: random.Random

    def closed(self, num_clients: int, seconds: float) -> Phase:
        """Let clients each wait for their answers."""
        return self._measured(lambda: self.load.closed_loop(iter(self.bodies), num_clients, seconds), seconds)

    def offered(self, rate: float, seconds: float) -> Phase:
        """Let requests arrive at random."""
        return self._measured(
            lambda: self.load.open_loop(poisson(rate, seconds, self.bodies.make, self.choice)), seconds
        )

    def _measured(self, run: Callable[[], list[Outcome]], seconds: float) -> Phase:
        service, own, start = sum(map(cpu_seconds, self.workers)), time.process_time(), time.monotonic()
        everything = machine_seconds()
        outcomes = run()
        used, load = sum(map(cpu_seconds, self.workers)) - service, time.process_time() - own
        others = (machine_seconds() - everything - used - load) * seconds / (time.monotonic() - start)
        return Phase(outcomes, start, seconds, used, load, others)


def p95_ms(phases: Iterable[Phase]) -> float:
    """Return the 95th percentile of the accepted requests' times."""
    return 1000 * percentile((outcome.seconds for phase in phases for outcome in phase.answered(200)), 0.95)


def share(flooded: list[Phase], full: list[Phase], figure: Callable[[Phase], float]) -> float:
    """Return a figure of each flood as a share of that at capacity just before and after it, on average."""
    around = [fmean(map(figure, pair)) for pair in itertools.pairwise(full)]
    return fmean(figure(phase) / most for phase, most in zip(flooded, around, strict=True))


@pytest.mark.parametrize("has_keys", [False, True], ids=["without keys", "with keys"])
def test_double_load_leaves_capacity_and_answers_soon(
    drill: Drill, bundle: Path, tmp_path: Path, has_keys: bool
) -> None:
    """Measure capacity, 80 % and 200 % of it in turn, several times: its own speed changes within a minute."""
    bodies = Bodies(drill.seed, KEYS[0] if has_keys else "")
    settings = {"api_keys": ",".join(KEYS)} if has_keys else {}
    with own_cpu(tmp_path, bundle, **settings) as (server, num_workers), Load(server.port) as load:
        clients, seconds = CLIENTS * num_workers, drill.pick(2.0, 8.0)
        loaded = Loaded(load, bodies, workers_of(server.process.pid), random.Random(drill.seed))
        loaded.closed(8, drill.pick(0.3, 2.0))
        full, busy, flooded = [loaded.closed(clients, seconds)], [], []
        while len(full[0].ended) < 16:  # what else runs may leave the short form little of the machine
            seconds *= 2
            full = [loaded.closed(clients, seconds)]
        stretch = seconds / drill.pick(2.0, 8.0)
        for _ in range(drill.size(1, 2)):
            rate = full[-1].answers_per_second
            busy.append(loaded.offered(0.8 * rate, stretch * drill.pick(1.0, 12.0)))
            flooded.append(loaded.offered(2 * rate, stretch * drill.pick(2.5, 30.0)))
            full.append(loaded.closed(clients, seconds))
        assert server.process.poll() is None
    delivered = share(flooded, full, lambda phase: phase.tokens_per_second)
    ratio = p95_ms(flooded) / p95_ms(busy)
    refused = [1000 * outcome.seconds for phase in flooded for outcome in phase.answered(429)]
    record_phases(drill, full, busy, flooded)
    drill.record("delivered at 200 %, share of capacity", delivered, drill.pick("≥ 0.2", "≥ 0.97"))
    per_cpu = share(flooded, full, lambda phase: phase.tokens_per_cpu_second)
    drill.record("delivered at 200 % for a CPU-second of the service, share of that at capacity", per_cpu)
    drill.record("p95 of what was accepted, to that at 80 %", ratio, drill.pick("", "≤ 2"))
    drill.record("p99 of the refusals, ms", percentile(refused, 0.99), drill.pick("≤ 5000", "≤ 10"))
    odd = [each for phase in (*full, *busy, *flooded) for each in phase.outcomes if each.status not in (200, 429)]
    drill.record("answers that are neither 200 nor 429", len(odd), 0)
    assert not odd
    assert not any(phase.answered(429) for phase in full), "clients that wait for their answers are not refused"
    assert delivered >= drill.pick(0.2, 0.97)
    assert percentile(refused, 0.99) <= drill.pick(5000.0, 10.0)
    if drill.is_long:
        assert ratio <= 2


def record_phases(drill: Drill, full: list[Phase], busy: list[Phase], flooded: list[Phase]) -> None:
    speeds = ", ".join(f"{phase.tokens_per_second:,.0f}" for phase in full)
    drill.record("capacity, tokens/s, again and again", speeds)
    drill.record("delivered at 200 %, tokens/s", ", ".join(f"{phase.tokens_per_second:,.0f}" for phase in flooded))
    for name, phases in (("80 %", busy), ("200 %", flooded)):
        sent = sum(len(phase.outcomes) for phase in phases)
        drill.record(f"requests at {name}, refused", f"{sent:,}, {sum(len(each.answered(429)) for each in phases):,}")
    drill.record("p95 of an answer at 80 %, ms", p95_ms(busy))
    drill.record(
        "CPU of the load at 200 %, share of its own", fmean(each.load_seconds / each.seconds for each in flooded)
    )
    others = [phase.other_seconds / phase.seconds for phase in (*full, *busy, *flooded)]
    drill.record("CPU of other processes, of one CPU: mean, most in a phase", f"{fmean(others):.2f}, {max(others):.2f}")
    late = [1000 * (each.sent_at - each.due) for phase in flooded for each in phase.answered(429)]
    drill.record("p99 of how late the load itself sends what is refused, ms", percentile(late, 0.99))


def equal_requests(seed: int, key: str, kind: str) -> Iterator[Request]:
    """Yield requests that cost the same, whoever sends them."""
    bodies = Bodies(seed)
    while True:
        body = {"prompt": bodies.text(8), "max_tokens": 16, "min_tokens": 16}
        yield Request(post("/generate", json.dumps(body).encode(), f"Authorization: Bearer {key}"), kind=kind)


def test_client_with_many_requests_at_once_does_not_starve_another(drill: Drill, bundle: Path, tmp_path: Path) -> None:
    """Send a hundred at once again and again with one key, and equal ones one after the other with another key."""
    greedy, modest = (equal_requests(drill.seed, key, key) for key in KEYS)
    seconds = drill.pick(1.5, 20.0)
    with own_cpu(tmp_path, bundle, api_keys=",".join(KEYS)) as (server, num_workers), Load(server.port) as load:
        alone = load.closed_loop(modest, 1, seconds / 6)
        crowd = 100 * num_workers
        outcomes = load.closed_loop(greedy, crowd, seconds, [modest])
    many, few = ([each for each in outcomes if each.kind == key] for key in KEYS)
    medians = [1000 * percentile((each.seconds for each in group), 0.5) for group in (alone, few, many)]
    drill.record("requests of one client at once, beside another that sends one", crowd)
    drill.record("answers: of the one, of the others", f"{len(few):,}, {len(many):,}")
    drill.record("median answer of the one: alone, beside the others, ms", f"{medians[0]:.0f}, {medians[1]:.0f}")
    drill.record("median answer of the others, ms", medians[2])
    drill.record("refused of the one", sum(each.status != 200 for each in few), 0)
    assert len(few) >= drill.pick(1, 30)
    assert all(each.status == 200 for each in few)
    assert medians[1] <= drill.pick(2.0, 1.0) * medians[2]


@pytest.mark.parametrize("has_keys", [False, True], ids=["without keys", "with keys"])
def test_refusal_costs_little(drill: Drill, letters: Path, tmp_path: Path, has_keys: bool) -> None:
    """Refuse many requests while a client that does not read holds the only place."""
    fields = [f"Authorization: Bearer {KEYS[0]}"] if has_keys else []
    asked = post("/generate", json.dumps({"prompt": "abc" * 30, "max_tokens": 50}).encode(), *fields)
    count = drill.pick(200, 5000)
    arrivals = poisson(
        drill.pick(50, 200), drill.pick(0.5, 10.0), itertools.repeat(Request(asked)).__next__, random.Random(drill.seed)
    )
    with full_server(tmp_path, letters, KEYS[0] if has_keys else "") as server, Load(server.port) as load:
        connection = Connection(server.port)
        [worker] = workers_of(server.process.pid)
        before = cpu_seconds(worker)
        statuses = {connection.ask(asked).status for _ in range(count)}
        micros = 1e6 * (cpu_seconds(worker) - before) / count
        connection.close()
        alone = [1000 * each.seconds for each in load.open_loop(arrivals)]
    drill.record("CPU of a refusal, µs", micros, drill.pick("", "≤ 100"))
    drill.record(
        "p99 of refusals where nothing else runs, ms: what the load itself, the system and a refusal take",
        percentile(alone, 0.99),
    )
    assert statuses == {429}
    if drill.is_long:
        assert micros <= 100
