"""Drill: the largest load that `make knee` finds is the capacity that the benchmarks measure.

Both ask the same service for the same texts: users of Locust, ever more of them, and clients in a closed loop.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from benchmarks.serving.answers import read_answers
from benchmarks.serving.driver import Address, LoadRequest, drive_closed
from benchmarks.serving.measured_servers import http_post
from loadtests.prompts import PROMPTS
from tests.drills.drill import Drill
from tests.loadtests.test_run import run_load
from tests.service.running import ROOT, running_server

MODEL: Final = "shakespeare-lstm"
NUM_CLIENTS: Final = 64
PERCENT: Final = 10.0


def test_knee_is_the_capacity_that_the_benchmarks_measure(drill: Drill, tmp_path: Path) -> None:
    """The service has one worker, so that the other CPU is free for those who ask."""
    seconds, max_users = drill.pick(1, 6), drill.pick(4, 256)
    variables = {"MEARI_LOAD_KINDS": "generate", "MEARI_LOAD_USERS": f"{max_users}", "MEARI_LOAD_SECONDS": f"{seconds}"}
    with running_server(tmp_path, bundles=ROOT / "bundles", workers=1, default_model=MODEL) as server:
        before = measured_capacity(server.port, seconds)
        found = run_load(server.port, tmp_path, "loadtests.knee", **variables, MEARI_LOAD_MAX_P95_MS="1000")
        after = measured_capacity(server.port, seconds)
    assert found.returncode == 0 or not drill.is_long, found.stderr
    figures = json.loads((tmp_path / "knee.json").read_text("utf-8"))
    assert figures["steps"]
    if not drill.is_long:
        return
    knee, capacity = figures["knee"], (before + after) / 2
    difference = 100 * (knee["requests_per_second"] / capacity - 1)
    drill.record("users at the knee, 95th percentile of their answers, ms", f"{knee['users']}, {knee['p95_ms']:.0f}")
    drill.record("requests/s at the knee", knee["requests_per_second"])
    drill.record(f"answers/s of {NUM_CLIENTS} clients in a closed loop, before and after", f"{before:.1f}, {after:.1f}")
    drill.record("difference, %", difference, f"± {PERCENT:g}")
    assert abs(difference) <= PERCENT


def measured_capacity(port: int, seconds: float) -> float:
    """Return the answers a second that the clients of the benchmarks' driver get."""

    def asks() -> Iterator[LoadRequest]:
        for number in itertools.count():
            body: dict[str, object] = {"prompt": PROMPTS[number % len(PROMPTS)], "max_tokens": 64}
            yield LoadRequest(http_post("/generate", body), 64)

    driven = drive_closed(
        Address(port),
        asks(),
        num_clients=NUM_CLIENTS,
        seconds=seconds,
        warmup_seconds=0.3 * seconds,
        drain_seconds=30.0,
        edge=lambda *, with_memory: None,
    )
    answers = read_answers(driven.exchanges).whole
    return sum(driven.begin < answer.end <= driven.end for answer in answers) / (driven.end - driven.begin)
