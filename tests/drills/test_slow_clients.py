"""Slow and silent clients in crowds cost the others nothing."""

from __future__ import annotations

import contextlib
import http.client
import itertools
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from tests.drills.drill import Drill
from tests.drills.open_loop import Load, Request
from tests.drills.processes import held_by, workers_of
from tests.drills.slow_clients import LONG
from tests.service.running import ROOT, Server, running_server
from tests.service.test_server import raw_post

BODY = json.dumps({"text": "abc"}).encode()
STALL_SECONDS = 60


@contextlib.contextmanager
def crowd(server: Server, *counts: int) -> Iterator[subprocess.Popen[str]]:
    """Run that many idle clients, half heads, slow bodies and readers that do not read until the block ends."""
    command = [sys.executable, "-m", "tests.drills.slow_clients", str(server.port), *map(str, counts)]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "open\n"
            yield process
        finally:
            process.kill()


def milliseconds(server: Server, count: int) -> list[float]:
    """Return the times of requests on one connection, and of one in ten on a new one, sorted."""
    times = []
    with contextlib.closing(_connection(server)) as kept:
        for number in range(count):
            if number % 10:
                times.append(_milliseconds(kept))
            else:
                with contextlib.closing(_connection(server)) as fresh:
                    times.append(_milliseconds(fresh))
    return sorted(times)


def _connection(server: Server) -> http.client.HTTPConnection:
    return http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)


def _milliseconds(connection: http.client.HTTPConnection) -> float:
    started = time.perf_counter()
    connection.request("POST", "/score", BODY, {"Content-Type": "application/json"})
    response = connection.getresponse()
    answer = response.read()
    assert response.status == 200, answer
    return 1000 * (time.perf_counter() - started)


def ask_at_once(server: Server, num_clients: int) -> None:
    """Let clients ask like the readers, and read: each whole request has a thread while it is handled."""
    asked = Request(raw_post(LONG, path=b"/score"))
    with Load(server.port) as load:
        outcomes = load.closed_loop(itertools.repeat(asked), num_clients, 1.0)
    assert {outcome.status for outcome in outcomes} == {200}


def p95(times: list[float]) -> float:
    return times[int(0.95 * len(times))]


def test_crowds_of_slow_clients_do_not_delay_others(drill: Drill, letters: Path, tmp_path: Path) -> None:
    counts = drill.pick((200, 100, 60, 10), (5000, 600, 400, 100))
    num_requests, num_rounds = drill.pick((100, 1), (400, 5))
    with running_server(tmp_path, bundles=letters) as server:
        [worker] = workers_of(server.process.pid)
        milliseconds(server, num_requests)
        ask_at_once(server, counts[-1])
        idle, loaded = [p95(milliseconds(server, num_requests))], []
        threads = held_by(worker).num_threads
        for _ in range(num_rounds):
            with crowd(server, *counts):
                loaded += [p95(milliseconds(server, num_requests)) for _ in range(2)]
                more = held_by(worker).num_threads - threads
            idle.append(p95(milliseconds(server, num_requests)))
        assert server.process.poll() is None
    drill.record("idle clients, half heads, slow bodies, readers that do not read", " / ".join(map(str, counts)))
    drill.record("p95 of a normal client alone, ms (median of rounds)", sorted(idle)[len(idle) // 2])
    ratio = sorted(loaded)[len(loaded) // 2] / sorted(idle)[len(idle) // 2]
    drill.record("p95 beside them, ms (median of rounds)", sorted(loaded)[len(loaded) // 2])
    drill.record("ratio", ratio, drill.pick("≤ 20", "≤ 2"))
    drill.record("threads more than for as many clients that ask like the readers, and read", more, "≤ 24")
    assert ratio <= drill.pick(20, 2)
    assert more <= 24


def test_reader_that_stalls_is_let_go_in_time(drill: Drill, letters: Path, tmp_path: Path) -> None:
    """Measure how long a whole answer and a stream are kept for clients that never read."""
    if not drill.is_long:
        return  # tests/service/test_connection.py has it with a short time
    texts = {"texts": ["abc" * 3000], "tokens": True, "top": 20}
    endless = {"prompt": "w", "max_tokens": 1_000_000, "logprobs": 20, "stream": True, "logit_bias": {"0": -100}}
    bodies = {"whole answer": ("/score", texts), "stream": ("/generate", endless)}
    with running_server(tmp_path, bundles=letters, max_tokens=1_000_000, max_inflight_bytes=2**32) as server:
        for name, (path, body) in bodies.items():
            data = json.dumps(body).encode()
            with server.connect() as connection:
                connection.sendall(raw_post(data, path=path.encode()))
                connection.recv(1)
                started = time.monotonic()
                while in_flight(server) and time.monotonic() < started + 2 * STALL_SECONDS:
                    time.sleep(0.05)
            seconds = time.monotonic() - started
            drill.record(f"a {name} is kept, s", seconds, f"{STALL_SECONDS} to {STALL_SECONDS + 5}")
            assert STALL_SECONDS - 1 <= seconds <= STALL_SECONDS + 5


def in_flight(server: Server) -> int:
    text = server.client.get("/metrics").text
    [line] = [line for line in text.splitlines() if "requests_in_flight" in line and not line.startswith("#")]
    return int(float(line.split()[-1]))
