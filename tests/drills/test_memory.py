"""Drill: the memory of a worker under mixed load stays as it is once the prefix cache is full.

One worker serves the released bundles. It shares the pages of the master, which has opened them, until it writes to
one. So what must not grow is its share of all memory but libraries, in which such a page moves from one to the other
and only half of it is new; what must be small is what it holds of its own, without the bytes of its cache, which
/metrics states.
"""

from __future__ import annotations

import json
import random
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from tests.drills.drill import Drill
from tests.drills.processes import Held, held_by, workers_of
from tests.drills.raw_http import Connection, post
from tests.patience import PATIENCE
from tests.service.running import ROOT, Server, running_server

BUNDLES: Final = ROOT / "bundles"
MODELS: Final = sorted(path.parent.name for path in BUNDLES.glob("*/manifest.json"))
TEXT: Final = "All the bells of the town were ringing when the ships came home, and nobody slept that night. "
NUM_CLIENTS: Final = 12
CACHE_BYTES: Final = 20 << 20
FULL: Final = 0.9  # of the cache: then it has begun to forget
MAX_GROWTH: Final = 0.02  # over ten minutes
MAX_SHORT_GROWTH_MB: Final = 16.0  # over seconds, while caches of the libraries are still filling
MAX_OTHER_MB: Final = 120.0  # beside what is shared, and the cache
CACHED: Final = re.compile(r"^meari_cache_bytes\{[^}]*\} (\S+)$", re.MULTILINE)


class Load:
    """Clients that generate, stream, score and tokenize with all models."""

    def __init__(self, server: Server, seed: int) -> None:
        self.failures: list[str] = []
        self.num_answers = 0
        self._server = server
        self._seed = seed
        self._stopping = threading.Event()

    @contextmanager
    def running(self) -> Iterator[None]:
        """Ask while the block runs."""
        clients = [threading.Thread(target=self._ask, args=(number,)) for number in range(NUM_CLIENTS)]
        for client in clients:
            client.start()
        try:
            yield
        finally:
            self._stopping.set()
            for client in clients:
                client.join()

    def _ask(self, number: int) -> None:
        rng, connection = random.Random(self._seed * 1000 + number), Connection(self._server.port)
        while not self._stopping.is_set():
            path, body = self._request(rng)
            answer = connection.ask(post(path, json.dumps(body).encode()))
            if answer.status not in (200, 429):
                self.failures.append(f"{answer.status} {answer.body[:200]!r}")
            self.num_answers += 1
        connection.close()

    @staticmethod
    def _request(rng: random.Random) -> tuple[str, dict[str, Any]]:
        model, start = rng.choice(MODELS), rng.randrange(60)
        kind = rng.random()
        if kind < 0.5:
            length, sampled = rng.choice((5, 20, 60)), rng.choice(({}, {"top_k": 40}, {"num_beams": 3}))
            more = {"seed": rng.randrange(1 << 30), "stream": rng.random() < 0.5, **sampled}
            return "/generate", {"model": model, "prompt": TEXT[start : start + 40], "max_tokens": length, **more}
        if kind < 0.9:
            texts = [TEXT[rng.randrange(60) :] * rng.choice((1, 3)) for _ in range(rng.choice((1, 4, 24)))]
            more = {"tokens": rng.random() < 0.3, "top": 0, "words": rng.random() < 0.3}
            return "/score", {"model": model, "texts": texts, **more}
        return "/tokenize", {"model": model, "text": TEXT * rng.choice((1, 100))}


def cached_bytes(server: Server) -> int:
    """Return the bytes in the caches of all models."""
    return int(sum(map(float, CACHED.findall(server.client.get("/metrics").text))))


def held_over(pid: int, seconds: float) -> Held:
    """Return what a process holds in the median of some seconds."""
    until = time.monotonic() + seconds
    found: list[Held] = []
    pause = threading.Event()
    while not found or time.monotonic() < until:
        found.append(held_by(pid))
        pause.wait(0.2)
    return sorted(found, key=lambda held: held.share_mb)[len(found) // 2]


def test_memory_of_a_busy_worker_is_flat_and_small(drill: Drill, tmp_path: Path) -> None:
    seconds, looks = drill.pick(4.0, 600.0), drill.pick(1.0, 30.0)
    cache_bytes = drill.pick(CACHE_BYTES // 20, CACHE_BYTES)
    with running_server(tmp_path, bundles=BUNDLES, cache_bytes=cache_bytes, log_level="error") as server:
        [pid] = workers_of(server.process.pid)
        idle = held_by(pid).private_mb
        load, pause = Load(server, drill.seed), threading.Event()
        with load.running():
            until = time.monotonic() + PATIENCE
            while cached_bytes(server) < FULL * cache_bytes and time.monotonic() < until:
                pause.wait(0.2)
            pause.wait(drill.pick(2.0, 60.0))
            before, started = held_over(pid, looks), time.monotonic()
            pause.wait(seconds - looks)
            after, took = held_over(pid, looks), time.monotonic() - started
            cached = cached_bytes(server)
        assert workers_of(server.process.pid) == [pid]
    other, growth = after.private_mb - cached / (1 << 20), after.share_mb / before.share_mb - 1
    drill.record("answers", load.num_answers)
    drill.record("private memory of an idle worker, MB", idle)
    drill.record(
        "the same under load with a full cache, at first and at the end, MB",
        f"{before.private_mb:.1f}, {after.private_mb:.1f}",
    )
    drill.record(
        "with its share of what the master has too, without libraries, MB",
        f"{before.share_mb:.1f}, {after.share_mb:.1f}",
    )
    drill.record(f"growth in {took:.0f} s", f"{growth:.2%}", f"≤ {MAX_GROWTH:.0%} in ten minutes")
    drill.record("bytes of the cache, MB", cached / (1 << 20))
    drill.record("private memory beside the cache, MB", other, f"≤ {MAX_OTHER_MB:g}")
    assert load.failures == []
    assert growth <= MAX_GROWTH + drill.pick(MAX_SHORT_GROWTH_MB / before.share_mb, 0.0)
    assert other <= MAX_OTHER_MB
