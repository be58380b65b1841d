"""Drill: a soak with cancellations, time-outs, reloads, swapped bundles and killed workers.

It goes in rounds. In the first part of a round every request must end as it should, while the service gets a SIGHUP or
its bundle is replaced; then the clients stop, and their tally must be that of /metrics, to the request. In the second
part a worker is killed: its requests may fail, and what it had not carried over yet (half a second) may be missing.
A canary compares bits all the while.
"""

from __future__ import annotations

import contextlib
import os
import random
import re
import shutil
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import httpx
import pytest

from tests.drills.drill import Drill
from tests.drills.processes import Held, held_by, workers_of
from tests.patience import PATIENCE
from tests.runtime.tiny_bundle import write_tiny_bundle
from tests.service.running import Server, running_server

NUM_WORKERS: Final = 2
NUM_CLIENTS: Final = 6
LOST_SECONDS: Final = 1.0  # of a killed worker's counts, twice the time between two carries
CANARY: Final = {"prompt": "abc", "max_tokens": 20, "seed": 5, "logprobs": 2}
SUCCESS: Final = re.compile(r"^vllm:request_success_total\{.*\} (\S+)$", re.MULTILINE)
REQUESTS: Final = re.compile(
    r'^meari_requests_total\{route="/(?:generate|score)",status="(\d+)"\} (\S+)$', re.MULTILINE
)


@dataclass
class Tally:
    """What the clients saw: answers by status, streams that they left, time-outs, and failures."""

    statuses: Counter[int] = field(default_factory=Counter)
    left: int = 0
    timeouts: int = 0
    failures: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    ended: list[float] = field(default_factory=list)  # when each answer was complete

    @property
    def num_accepted(self) -> int:
        """Requests that the engine took."""
        return self.statuses[200] + self.left


class Clients:
    """Threads that ask until they are stopped; each request ends in one entry of the tally."""

    def __init__(self, server: Server, expected: str, seed: int) -> None:
        self.server = server
        self.expected = expected
        self.seed = seed
        self.tally = Tally()
        self._stopping = threading.Event()
        self._threads: list[threading.Thread] = []
        self._lock = threading.Lock()

    @contextlib.contextmanager
    def asking(self) -> Iterator[None]:
        """Ask while the block runs; at its end every request has ended."""
        self._stopping.clear()
        works: list[Callable[[httpx.Client, random.Random], None]] = [*NUM_CLIENTS * [self._ask], self._ask_canary]
        self._threads = [threading.Thread(target=self._run, args=work) for work in enumerate(works)]
        for thread in self._threads:
            thread.start()
        try:
            yield
        finally:
            self._stopping.set()
            for thread in self._threads:
                thread.join()

    def _run(self, number: int, work: Callable[[httpx.Client, random.Random], None]) -> None:
        self.seed += 1
        rng = random.Random(self.seed * 100 + number)
        with httpx.Client(base_url=f"http://127.0.0.1:{self.server.port}", timeout=PATIENCE, trust_env=False) as client:
            while not self._stopping.is_set():
                try:
                    work(client, rng)
                except httpx.TransportError as error:
                    with self._lock:
                        self.tally.failures.append(repr(error))

    def _ask_canary(self, client: httpx.Client, rng: random.Random) -> None:
        answer = client.post("/generate", json=CANARY)
        self._count(answer)
        if answer.status_code == 200 and bits_of(answer.text) != self.expected:
            self.tally.wrong.append(answer.text)
        self._stopping.wait(0.02)

    def _ask(self, client: httpx.Client, rng: random.Random) -> None:
        match rng.randrange(6):
            case 0:
                self._count(client.post("/generate", json={"prompt": "ab", "max_tokens": rng.randint(1, 200)}))
            case 1:
                body = (
                    {"prompt": "a", "max_tokens": 20_000, "ignored": 1} if rng.random() < 0.2 else {"text": "abc" * 9}
                )
                self._count(client.post("/score", json=body))
            case 2:
                slow = {"max_tokens": 100_000, "min_tokens": 100_000, "timeout_seconds": 0.05}
                answer = client.post("/generate", json=slow)
                self._count(answer)
                if answer.status_code == 200:
                    self._note_timeout(answer)
            case 3 | 4:
                self._stream(client, rng.randint(1, 100), leaves_after=None)
            case _:
                self._stream(client, 100_000, leaves_after=rng.randint(1, 4))

    def _stream(self, client: httpx.Client, max_tokens: int, leaves_after: int | None) -> None:
        body = {"max_tokens": max_tokens, "min_tokens": max_tokens, "stream": True}
        with client.stream("POST", "/generate", json=body) as answer:
            if answer.status_code != 200:
                answer.read()
                self._count(answer)
                return
            events = []
            for line in answer.iter_lines():
                events += [line] if line else []
                if len(events) == leaves_after:
                    with self._lock:
                        self.tally.left += 1
                    return
        endings = sum('"finish_reason":"' in event for event in events), events.count("data: [DONE]")
        self._count(answer)
        if endings != (1, 1):
            self.tally.wrong.append(f"a stream with {endings} endings: {events[-3:]}")

    def _note_timeout(self, answer: httpx.Response) -> None:
        reason = answer.json()["choices"][0]["finish_reason"]
        with self._lock:
            self.tally.timeouts += 1
        if reason != "timeout":
            self.tally.wrong.append(f"finish_reason {reason}")

    def _count(self, answer: httpx.Response) -> None:
        with self._lock:
            self.tally.statuses[answer.status_code] += 1
            self.tally.ended.append(time.monotonic())


def bits_of(text: str) -> str:
    """Return an answer without what the cache may change."""
    return re.sub(r'"usage":\{[^}]*\}', "", text)


@dataclass(frozen=True)
class Counts:
    """What /metrics has counted of the clients' routes."""

    statuses: Counter[int]
    num_ended: int

    @classmethod
    def of(cls, server: Server) -> Counts:
        """Read them."""
        text = server.client.get("/metrics").text
        statuses: Counter[int] = Counter()
        for status, count in REQUESTS.findall(text):  # of both routes
            statuses[int(status)] += int(float(count))
        return cls(statuses, sum(int(float(count)) for count in SUCCESS.findall(text)))

    def since(self, before: Counts) -> Counts:
        """Return what was added."""
        return Counts(self.statuses - before.statuses, self.num_ended - before.num_ended)


def settled(server: Server, is_right: Callable[[Counts], bool], max_seconds: float) -> Counts:
    """Wait until the workers have carried their counts over: until they are right, or for some seconds."""
    until = time.monotonic() + max_seconds
    while not is_right(counts := Counts.of(server)) and time.monotonic() < until:
        time.sleep(0.1)
    return counts


def await_workers(server: Server) -> list[int]:
    """Wait until all workers are ready; return their process ids."""
    until = time.monotonic() + PATIENCE
    while time.monotonic() < until:
        text = server.client.get("/metrics").text
        if f"meari_ready_workers {NUM_WORKERS}.0" in text and len(workers_of(server.process.pid)) == NUM_WORKERS:
            return workers_of(server.process.pid)
        time.sleep(0.05)
    raise AssertionError(f"no {NUM_WORKERS} ready workers:\n{server.log[-2000:]}")


@dataclass
class Soak:
    """The rounds of a soak, and what they add up to."""

    server: Server
    bundles: Path
    runtime: Path
    clients: Clients
    rng: random.Random
    seconds: float  # of each part of a round
    counts: Counter[str] = field(default_factory=Counter)
    mismatches: list[str] = field(default_factory=list)
    missing: int = 0
    unexplained: list[str] = field(default_factory=list)

    def calm_part(self, number: int) -> None:
        """Reload or swap under load; then both sides must have counted the same."""
        self.clients.tally = Tally()
        before = Counts.of(self.server)
        with self.clients.asking():
            time.sleep(self.seconds * self.rng.uniform(0.2, 0.6))
            if number % 2:
                self._swap()
            else:
                os.kill(self.server.process.pid, signal.SIGHUP)
                self.counts["reloads"] += 1
            time.sleep(self.seconds / 2)
        await_workers(self.server)
        tally = self.clients.tally
        expected = Counter(tally.statuses) + Counter({200: tally.left})

        def is_right(counts: Counts) -> bool:
            added = counts.since(before)
            left = added.statuses[499]  # a stream that was left before its head was sent
            return added.statuses - Counter({499: left}) + Counter({200: left}) == expected and (
                added.num_ended == tally.num_accepted
            )

        added = settled(self.server, is_right, 20).since(before)
        if not is_right(Counts.of(self.server)):
            self.mismatches.append(f"round {number}: clients {expected}, {tally.num_accepted}; service {added}")
        self.mismatches += tally.failures
        self._add(tally)

    def kill_part(self) -> None:
        """Kill a worker under load: only what it had in hand may fail, or be missing in the counts."""
        self.clients.tally = Tally()
        before = Counts.of(self.server)
        with self.clients.asking():
            time.sleep(self.seconds * self.rng.uniform(0.2, 0.6))
            os.kill(self.rng.choice(workers_of(self.server.process.pid)), signal.SIGKILL)
            killed = time.monotonic()
            self.counts["kills"] += 1
            time.sleep(self.seconds / 2)
        await_workers(self.server)
        tally = self.clients.tally
        in_hand = sum(killed - LOST_SECONDS <= at <= killed + LOST_SECONDS for at in tally.ended) + NUM_CLIENTS + 1
        sent = tally.statuses.total() + tally.left + len(tally.failures)

        def is_right(counts: Counts) -> bool:
            return -1 <= sent - counts.since(before).statuses.total() <= in_hand

        settled(self.server, lambda _: False, 2)
        missing = sent - settled(self.server, is_right, PATIENCE).since(before).statuses.total()
        self.missing += max(0, missing)
        if not -1 <= missing <= in_hand:
            self.unexplained.append(f"{missing} of {tally.statuses.total()} missing, {in_hand} in hand")
        if len(tally.failures) > NUM_CLIENTS + 1 or tally.statuses[503]:
            self.unexplained.append(f"{len(tally.failures)} failures, {tally.statuses}: {tally.failures[:3]}")
        self.counts["failed with a killed worker"] += len(tally.failures)
        self._add(tally)

    def held(self) -> tuple[list[Held], Held, int]:
        """Return what the workers and the master hold, and the number of files that they share."""
        pids = await_workers(self.server)
        files = sum(path.is_file() for path in self.runtime.rglob("*"))
        return [held_by(pid) for pid in pids], held_by(self.server.process.pid), files

    def _swap(self) -> None:
        new = self.bundles / "letters.new"
        shutil.copytree(self.bundles / "letters", new)
        (self.bundles / "letters").rename(self.bundles / "letters.old")
        new.rename(self.bundles / "letters")
        shutil.rmtree(self.bundles / "letters.old")
        self.counts["swaps"] += 1

    def _add(self, tally: Tally) -> None:
        self.counts["answers"] += tally.statuses.total()
        self.counts["streams left"] += tally.left
        self.counts["time-outs"] += tally.timeouts
        self.unexplained += tally.wrong
        odd = [status for status in tally.statuses if status not in (200, 400, 429)]
        self.unexplained += [f"{tally.statuses[status]} answers {status}" for status in odd]


@pytest.fixture
def soak(drill: Drill, tmp_path: Path) -> Iterator[Soak]:
    """Run two workers over a bundle that can be replaced."""
    bundles, runtime = tmp_path / "bundles", tmp_path / "runtime"
    runtime.mkdir()
    write_tiny_bundle(bundles / "letters", peak=1.0)
    settings = {"max_tokens": 200_000, "cache_bytes": 1 << 20, "log_level": "error"}
    with running_server(
        tmp_path,
        bundles=bundles,
        workers=NUM_WORKERS,
        runtime_folder=runtime,
        **settings,  # type: ignore[arg-type]
    ) as server:
        expected = bits_of(server.post("/generate", **CANARY).text)
        clients = Clients(server, expected, drill.seed)
        yield Soak(server, bundles, runtime, clients, random.Random(drill.seed), drill.pick(2.0, 10.0))


def test_nothing_grows_and_every_request_ends_once(drill: Drill, soak: Soak) -> None:
    until = time.monotonic() + drill.pick(0.0, 60 * drill.soak_minutes)
    number, first = 0, None
    while number < 2 or time.monotonic() < until:
        soak.calm_part(number)
        soak.kill_part()
        number += 1
        first = first or soak.held()
    workers, master, files = soak.held()
    assert first is not None
    before, master_before, files_before = first
    memory, memory_before = (sum(each.private_mb for each in held) for held in (workers, before))
    drill.record("minutes", f"{drill.soak_minutes:g}", "30 in full")
    drill.record("rounds", number)
    for name, count in soak.counts.items():
        drill.record(name, count)
    drill.record("failed, or counted otherwise by one side, where no worker was killed", len(soak.mismatches), 0)
    drill.record("answers of killed workers that the service has not counted", soak.missing)
    drill.record("other bits, a second ending, more lost than a killed worker had in hand", len(soak.unexplained), 0)
    drill.record("private memory of the workers, first round and end, MB", f"{memory_before:.1f}, {memory:.1f}")
    drill.record("the same of the master, MB", f"{master_before.private_mb:.1f}, {master.private_mb:.1f}")
    threads = [max(each.num_threads for each in held) for held in (before, workers)]
    drill.record("threads of a worker", f"{threads[0]}, {threads[1]}")
    descriptors = [max(each.num_descriptors for each in held) for held in (before, workers)]
    drill.record("descriptors of a worker", f"{descriptors[0]}, {descriptors[1]}")
    drill.record("descriptors of the master", f"{master_before.num_descriptors}, {master.num_descriptors}")
    drill.record("shared files", f"{files_before}, {files}")
    assert soak.mismatches == []
    assert soak.unexplained == []
    assert memory <= 1.1 * memory_before + 4
    assert master.private_mb <= master_before.private_mb + 4
    assert threads[1] <= threads[0] + NUM_CLIENTS
    assert descriptors[1] <= descriptors[0] + NUM_CLIENTS
    assert master.num_descriptors <= master_before.num_descriptors + 2
    assert files <= files_before + 4
