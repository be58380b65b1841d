"""Drill: twice as many requests arrive as a service can answer.

Its capacity is measured first, by clients that each wait for their answer before they ask again; then requests arrive
at 80 % and at 200 % of it, independently of the answers. The load has a CPU of its own where there are several.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pytest

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
    """Outcomes of a load that lasted for some seconds from `start` on."""

    outcomes: list[Outcome]
    start: float
    seconds: float

    def answered(self, status: int) -> list[Outcome]:
        return [outcome for outcome in self.outcomes if outcome.status == status]

    @property
    def _ended(self) -> list[Outcome]:
        """Answers after the first tenth: before that, there are none of long texts."""
        begin, end = self.start + self.seconds / 10, self.start + self.seconds
        return [outcome for outcome in self.answered(200) if begin <= outcome.ended_at < end]

    @property
    def tokens_per_second(self) -> float:
        return sum(outcome.num_tokens for outcome in self._ended) / (0.9 * self.seconds)

    @property
    def answers_per_second(self) -> float:
        return len(self._ended) / (0.9 * self.seconds)

    def p95_ms(self) -> float:
        return 1000 * percentile((outcome.seconds for outcome in self.answered(200)), 0.95)


def capacity(load: Load, bodies: Bodies, num_clients: int, seconds: float) -> Phase:
    start = time.monotonic()
    return Phase(load.closed_loop(iter(bodies), num_clients, seconds), start, seconds)


def offered(load: Load, bodies: Bodies, rate: float, seconds: float, choice: random.Random) -> Phase:
    start = time.monotonic()
    return Phase(load.open_loop(poisson(rate, seconds, bodies.make, choice)), start, seconds)


@pytest.mark.parametrize("has_keys", [False, True], ids=["without keys", "with keys"])
def test_double_load_leaves_capacity_and_answers_soon(
    drill: Drill, bundle: Path, tmp_path: Path, has_keys: bool
) -> None:
    choice = random.Random(drill.seed)
    bodies = Bodies(drill.seed, KEYS[0] if has_keys else "")
    settings = {"api_keys": ",".join(KEYS)} if has_keys else {}
    with own_cpu(tmp_path, bundle, **settings) as (server, num_workers), Load(server.port) as load:
        clients = CLIENTS * num_workers
        capacity(load, bodies, 8, drill.pick(0.3, 2.0))
        before = capacity(load, bodies, clients, drill.pick(1.0, 8.0))
        rate = before.answers_per_second
        busy = offered(load, bodies, 0.8 * rate, drill.pick(1.0, 16.0), choice)
        flooded = offered(load, bodies, 2 * rate, drill.pick(2.5, 50.0), choice)
        after = capacity(load, bodies, clients, drill.pick(1.0, 8.0))
        assert server.process.poll() is None
    most = (before.tokens_per_second + after.tokens_per_second) / 2
    delivered = flooded.tokens_per_second / most
    ratio = flooded.p95_ms() / busy.p95_ms()
    refused = [1000 * outcome.seconds for outcome in flooded.answered(429)]
    all_outcomes = [*before.outcomes, *busy.outcomes, *flooded.outcomes, *after.outcomes]
    drill.record("capacity, tokens/s (mean of before and after)", most)
    drill.record("requests at 80 %, refused", f"{len(busy.outcomes):,}, {len(busy.answered(429)):,}")
    drill.record("p95 of an answer at 80 %, ms", busy.p95_ms())
    drill.record("requests at 200 %, refused", f"{len(flooded.outcomes):,}, {len(refused):,}")
    drill.record("delivered at 200 %, share of capacity", delivered, drill.pick("≥ 0.2", "≥ 0.95"))
    drill.record("p95 of what was accepted, to that at 80 %", ratio, drill.pick("", "≤ 2"))
    drill.record("p99 of the refusals, ms", percentile(refused, 0.99), drill.pick("≤ 5000", "≤ 10"))
    drill.record("answers that are neither 200 nor 429", sum(each.status not in (200, 429) for each in all_outcomes), 0)
    assert all(outcome.status in (200, 429) for outcome in all_outcomes)
    assert not before.answered(429), "clients that wait for their answers are not refused"
    assert not after.answered(429)
    assert delivered >= drill.pick(0.2, 0.95)
    assert percentile(refused, 0.99) <= drill.pick(5000.0, 10.0)
    if drill.is_long:
        assert ratio <= 2


def test_client_with_many_requests_at_once_does_not_starve_another(drill: Drill, bundle: Path, tmp_path: Path) -> None:
    """Send a hundred at once again and again with one key, and one after the other with another key."""
    greedy, modest = Bodies(drill.seed, KEYS[0]), Bodies(drill.seed + 1, KEYS[1])
    seconds = drill.pick(1.5, 10.0)
    with own_cpu(tmp_path, bundle, api_keys=",".join(KEYS)) as (server, num_workers), Load(server.port) as load:
        alone = load.closed_loop(iter(modest), 1, seconds / 3)
        crowd = 100 * num_workers
        named = (Request(each.data, kind=f"greedy {each.kind}") for each in greedy)
        outcomes = load.closed_loop(named, crowd, seconds, [iter(modest)])
    few = [each for each in outcomes if not each.kind.startswith("greedy")]
    many = [each for each in outcomes if each.kind.startswith("greedy")]
    medians = [1000 * percentile((each.seconds for each in group), 0.5) for group in (alone, few, many)]
    drill.record("requests of one client at once, beside another that sends one", crowd)
    drill.record("median answer of the one: alone, beside the others, ms", f"{medians[0]:.0f}, {medians[1]:.0f}")
    drill.record("median answer of the others, ms", medians[2])
    drill.record("refused of the one", sum(each.status != 200 for each in few), 0)
    assert few
    assert all(each.status == 200 for each in few)
    assert medians[1] <= drill.pick(2.0, 1.0) * medians[2]


@pytest.mark.parametrize("has_keys", [False, True], ids=["without keys", "with keys"])
def test_refusal_costs_little(drill: Drill, letters: Path, tmp_path: Path, has_keys: bool) -> None:
    """Refuse many requests while a client that does not read holds the only place."""
    fields = [f"Authorization: Bearer {KEYS[0]}"] if has_keys else []
    asked = post("/generate", json.dumps({"prompt": "abc" * 30, "max_tokens": 50}).encode(), *fields)
    count = drill.pick(200, 5000)
    with full_server(tmp_path, letters, KEYS[0] if has_keys else "") as server:
        connection = Connection(server.port)
        [worker] = workers_of(server.process.pid)
        before = cpu_seconds(worker)
        statuses = {connection.ask(asked).status for _ in range(count)}
        micros = 1e6 * (cpu_seconds(worker) - before) / count
        connection.close()
    drill.record("CPU of a refusal, µs", micros, drill.pick("", "≤ 150"))
    assert statuses == {429}
    if drill.is_long:
        assert micros <= 150
