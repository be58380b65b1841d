"""Drill: at full load, requests end at their deadlines, and those whose clients have left at once.

The turns of the engines and the ends of what was cancelled are noted by a hook in the workers, on the clock of the
load, so that turns between a client's leave and the end of its request can be counted.
"""

from __future__ import annotations

import itertools
import json
import random
import re
import sys
from bisect import bisect_left
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from tests.drills.drill import Drill
from tests.drills.open_loop import Load, Outcome, Request, percentile
from tests.drills.raw_http import post
from tests.drills.test_overload import CLIENTS, Bodies, own_cpu

MAX_SECONDS: Final = 2.0  # of any request: the server's limit
MAX_LATE: Final = 0.1  # seconds
MAX_TURNS: Final = 3
NOTED: Final = """
import os, sys, time
noted = os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
def note(name, number=0):
    os.write(noted, b"%d %s %.6f %d\\n" % (os.getpid(), name, time.monotonic(), number))
def hook():
    from meari.runtime.engine.loop import Engine, Finish
    step, end = Engine.step, Engine._end
    def noted_step(engine):
        step(engine)
        if engine._busy:
            note(b"turn")
    def noted_end(engine, request, finish, failure=None):
        end(engine, request, finish, failure)
        if finish is Finish.CANCELLED:
            note(b"cancelled", request.handle.samples[0].seed)
    Engine.step, Engine._end = noted_step, noted_end
os.register_at_fork(after_in_child=hook)
sys.argv[1:] = ["-c", "python:meari.service.process.gunicorn_conf"]
from gunicorn.app.wsgiapp import run
run()
"""


def endless(choice: random.Random, bodies: Bodies) -> Iterator[Request]:
    """Yield requests of each kind that take longer than they may."""
    long = {"prompt": "to be", "max_tokens": 4096}
    cases: list[tuple[str, str, dict[str, Any], float | None]] = [
        ("/generate", "whole", long, 0.3),
        ("/generate", "stream", long | {"stream": True}, 0.3),
        ("/generate", "whole to the server's limit", long, None),
        ("/score", "list", {"texts": [bodies.text(60) for _ in range(1000)]}, None),
        ("/v1/completions", "whole", long, None),
        ("/v1/completions", "stream", long | {"stream": True}, None),
    ]
    while True:
        choice.shuffle(cases)
        for path, name, body, seconds in cases:
            timed = body if seconds is None else body | {"timeout_seconds": seconds}
            yield Request(post(path, json.dumps(timed).encode()), kind=f"{path} {name}; {seconds or MAX_SECONDS}")


def left(choice: random.Random, seeds: Iterator[int]) -> Iterator[Request]:
    """Yield requests whose clients leave them; the seed tells which one it is."""
    for seed in seeds:
        body = {"prompt": "to be", "max_tokens": 4096, "seed": seed}
        path, more = choice.choice((("/generate", {}), ("/generate", {"stream": True}), ("/v1/completions", {})))
        yield Request(
            post(path, json.dumps(body | more).encode()), kind=f"left {seed}", leaves_after=choice.uniform(0.1, 0.5)
        )


def test_requests_end_at_their_deadlines(drill: Drill, bundle: Path, tmp_path: Path) -> None:
    choice, bodies = random.Random(drill.seed), Bodies(drill.seed)
    seconds = drill.pick(3.0, 20.0)
    is_timed = re.compile("^/").match
    with (
        own_cpu(tmp_path, bundle, max_timeout_seconds=MAX_SECONDS) as (server, num_workers),
        Load(server.port, keep=lambda kind: bool(is_timed(kind))) as load,
    ):
        beside = [endless(random.Random(choice.random()), bodies) for _ in range(4)]
        outcomes = load.closed_loop(iter(bodies), CLIENTS * num_workers, seconds, beside)
        assert server.process.poll() is None
    timed = [each for each in outcomes if is_timed(each.kind)]
    late: dict[str, list[float]] = {}
    for outcome in timed:
        if ended_by_time(outcome):
            kind, _, limit = outcome.kind.partition("; ")
            late.setdefault(kind, []).append(outcome.seconds - float(limit))
    drill.record(
        "requests beside them, tokens/s", sum(each.num_tokens for each in outcomes if not is_timed(each.kind)) / seconds
    )
    for kind, values in sorted(late.items()):
        text = f"{len(values)}; {1000 * percentile(values, 0.5):.0f}; {1000 * max(values):.0f}"
        drill.record(
            f"{kind}: requests; median and most past the deadline, ms", text, drill.pick("", f"≤ {1000 * MAX_LATE:.0f}")
        )
    assert len(late) >= drill.pick(1, 6)
    assert all(value >= -0.002 for values in late.values() for value in values), "nothing ends before its time"
    assert max(itertools.chain(*late.values())) <= drill.pick(10.0, MAX_LATE)


def ended_by_time(outcome: Outcome) -> bool:
    """Tell whether a request has ended at its deadline (OpenAI has no word for it); short models end by themselves."""
    if outcome.kind.startswith("/v1/"):
        return outcome.status == 200 and outcome.seconds >= MAX_SECONDS
    return outcome.status == 504 or (outcome.status == 200 and b'"timeout"' in outcome.body)


def test_request_whose_client_has_left_frees_its_rows(drill: Drill, bundle: Path, tmp_path: Path) -> None:
    choice, bodies, noted = random.Random(drill.seed), Bodies(drill.seed), tmp_path / "noted"
    command = [sys.executable, "-c", NOTED, str(noted)]
    with own_cpu(tmp_path, bundle, started_by=command) as (server, num_workers), Load(server.port) as load:
        seeds = itertools.count(1_000_000)
        beside = [left(random.Random(choice.random()), seeds) for _ in range(2)]
        outcomes = load.closed_loop(iter(bodies), CLIENTS * num_workers, drill.pick(2.0, 15.0), beside)
        assert server.process.poll() is None
    left_at = {
        int(each.kind.split()[1]): each.ended_at
        for each in outcomes
        if each.kind.startswith("left") and not each.status
    }
    turns: dict[int, list[float]] = {}
    ends: dict[int, tuple[int, float]] = {}
    for line in noted.read_text("ascii").splitlines():
        process, name, noted_at, number = line.split()
        if name == "turn":
            turns.setdefault(int(process), []).append(float(noted_at))
        else:
            ends[int(number)] = int(process), float(noted_at)
    counts, delays = [], []
    for seed in left_at.keys() & ends.keys():
        pid, at = ends[seed]
        counts.append(bisect_left(turns[pid], at) - bisect_left(turns[pid], left_at[seed]))
        delays.append(at - left_at[seed])
    drill.record("clients that left, their requests cancelled", f"{len(left_at)}, {len(counts)}")
    drill.record(
        "turns of the engine from then to the end: median, most",
        f"{percentile(counts, 0.5):.0f}, {max(counts)}",
        drill.pick("", f"≤ {MAX_TURNS}"),
    )
    drill.record(
        "time from then to the end: median, most, ms", f"{1000 * percentile(delays, 0.5):.1f}, {1000 * max(delays):.1f}"
    )
    assert counts
    assert max(counts) <= drill.pick(50, MAX_TURNS)
