"""Drill: a bundle is replaced again and again while clients use it.

Two released bundles take turns under one name. Beside it both are served under names of their own: what they answer
there before the first swap is the measure of every later answer, bit for bit.
"""

from __future__ import annotations

import itertools
import json
import random
import shutil
import statistics
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Self

import httpx

from meari.service.wishes import HostWishes
from tests.drills.drill import Drill
from tests.drills.processes import Held, held_by, workers_of
from tests.patience import PATIENCE, until
from tests.service.running import ROOT, Server, running_server

BUNDLES: Final = {"first": "shakespeare-gru", "second": "shakespeare-rnn"}
SWAPPED: Final = "swapped"
BODIES: Final[tuple[tuple[str, dict[str, Any]], ...]] = (
    ("/generate", {"prompt": "To be", "max_tokens": 40, "seed": 7, "logprobs": 1}),
    ("/generate", {"prompt": "ROMEO:", "max_tokens": 80, "seed": 8, "stream": True, "logprobs": 0}),
    ("/generate", {"prompt": "O", "max_tokens": 10, "seed": 9, "n": 4}),
    ("/score", {"texts": ["To be, or not to be", "that is the question"], "tokens": True}),
    ("/v1/completions", {"prompt": "Once", "max_tokens": 30, "seed": 10, "stream": True}),
)
DEADLINE: Final = 5.0  # seconds from the rename to the last worker


@dataclass
class Clients:
    """Threads that ask at random until they are stopped, and compare every answer."""

    server: Server
    expected: dict[tuple[str, int], str]
    seed: int
    stopping: threading.Event = field(default_factory=threading.Event)
    counts: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)

    def run(self, number: int) -> None:
        choice = random.Random(self.seed * 1000 + number)
        with httpx.Client(base_url=f"http://127.0.0.1:{self.server.port}", timeout=PATIENCE, trust_env=False) as client:
            while not self.stopping.is_set():
                name, which = choice.choice((SWAPPED, SWAPPED, *BUNDLES)), choice.randrange(len(BODIES))
                try:
                    found = answer(client, name, which)
                except (httpx.HTTPError, AssertionError) as error:
                    self.wrong.append(f"{name} {BODIES[which][0]}: {error!r}")
                    continue
                self.counts[name] += 1
                if found not in [self.expected[each, which] for each in (BUNDLES if name == SWAPPED else (name,))]:
                    self.wrong.append(f"{name} {BODIES[which][0]}: other bits")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stopping.set()


def test_bundles_are_swapped_under_load(drill: Drill, tmp_path: Path) -> None:
    """100 swaps under 64 clients (short: 5 under 8): no request fails, no bit changes, and nothing grows."""
    num_swaps, num_clients = drill.pick(5, 100), drill.pick(8, 64)
    folder, runtime = tmp_path / "bundles", tmp_path / "runtime"
    for name, bundle in BUNDLES.items():
        shutil.copytree(ROOT / "bundles" / bundle, folder / name)
    shutil.copytree(folder / "first", folder / SWAPPED)
    runtime.mkdir()
    with running_server(tmp_path, bundles=folder, workers=2, runtime_folder=runtime, cache_bytes=4 << 20) as server:
        expected = {
            (name, which): answer(server.client, name, which) for name in BUNDLES for which in range(len(BODIES))
        }
        clients = Clients(server, expected, drill.seed)
        threads = [threading.Thread(target=clients.run, args=(number,)) for number in range(num_clients)]
        with clients:
            for thread in threads:
                thread.start()
            seconds, held = [], []
            for _, name in zip(range(num_swaps), itertools.cycle(("second", "first")), strict=False):
                seconds.append(swapped_in(folder, runtime, name))
                held.append(held_by_workers(server))
        for thread in threads:
            thread.join()
        gone = [line for line in server.log.splitlines() if "cannot be" in line]
    before, after = held[num_swaps // 5], held[-1]
    memory = [sum(each.private_mb for each in workers) for workers in held]
    # A single value depends on which of the two bundles is served and whether the last one has left: so medians.
    tenth = max(2, num_swaps // 10)
    tenths = [statistics.median(memory[begin : begin + tenth]) for begin in range(0, num_swaps, tenth)]
    growth = 100 * (tenths[-1] / tenths[len(tenths) // 5] - 1)
    drill.record("swaps, clients", f"{num_swaps}, {num_clients}")
    drill.record("requests, of them for the swapped bundle", f"{clients.counts.total():,}, {clients.counts[SWAPPED]:,}")
    drill.record("failed or wrong", len(clients.wrong), 0)
    drill.record("from the rename to the last of two workers, s, median", sorted(seconds)[num_swaps // 2])
    drill.record("the same, longest", max(seconds), f"≤ {DEADLINE:g}")
    drill.record(
        "memory of the workers, medians of tenths of the swaps, MB", ", ".join(f"{each:.1f}" for each in tenths)
    )
    drill.record("growth of that from the third to the last, %", growth, "≤ 5" if drill.is_long else "")
    drill.record("threads then and at the end", f"{num_threads(before)}, {num_threads(after)}")
    drill.record("descriptors then and at the end", f"{num_descriptors(before)}, {num_descriptors(after)}")
    assert clients.wrong[:5] == []
    assert gone == []
    assert clients.counts[SWAPPED] > num_swaps
    assert num_descriptors(after) <= num_descriptors(before) + num_clients
    if drill.is_long:
        assert max(seconds) <= DEADLINE
        assert growth <= 5
        assert num_threads(after) <= num_threads(before) + num_clients


def swapped_in(folder: Path, runtime: Path, name: str) -> float:
    """Put a copy of a bundle in the place of the swapped one; return the seconds until all workers serve it."""
    new = folder / f"{SWAPPED}.new"
    shutil.copytree(folder / name, new)
    (folder / SWAPPED).rename(folder / f".{SWAPPED}.old")
    new.rename(folder / SWAPPED)
    renamed = time.monotonic()
    shutil.rmtree(folder / f".{SWAPPED}.old")
    until(lambda: all(each.models[SWAPPED] == each.models[name] for each in HostWishes(runtime).reports()))
    return time.monotonic() - renamed


def answer(client: httpx.Client, name: str, which: int) -> str:
    """Return what a model answers, without its name and what else may differ. Raises AssertionError if it refuses."""
    path, body = BODIES[which]
    return content_of(client.post(path, json={"model": name, **body}), is_stream=bool(body.get("stream")))


def content_of(response: httpx.Response, *, is_stream: bool) -> str:
    """Return an answer without the model's name and what else may differ. Raises AssertionError if it refuses."""
    assert response.status_code == 200, response.text
    if is_stream:
        assert response.text.endswith("data: [DONE]\n\n"), response.text[-300:]
        events = [json.loads(line.removeprefix("data: ")) for line in response.text.splitlines() if "{" in line]
        return json.dumps(joined(events))
    found = response.json()
    return json.dumps(found.get("choices") or found["results"])


def joined(events: list[dict[str, Any]]) -> list[object]:
    """Return text and tokens of a stream, wherever its events were cut."""
    choices = [choice for event in events for choice in event.get("choices", ())]
    tokens = [token for choice in choices for token in choice.get("tokens", ())]
    return ["".join(choice.get("text", "") for choice in choices), tokens, choices[-1]["finish_reason"]]


def held_by_workers(server: Server) -> list[Held]:
    return [held_by(pid) for pid in workers_of(server.process.pid)]


def num_threads(held: list[Held]) -> int:
    return sum(each.num_threads for each in held)


def num_descriptors(held: list[Held]) -> int:
    return sum(each.num_descriptors for each in held)
