"""Drill: workers are killed at random moments while clients use the service.

The clients' answers before the first kill are the measure of every later one, bit for bit. A request may fail only if
its connection was one of the killed worker's, which is looked up while the worker is stopped, just before it is killed.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import random
import re
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from tests.drills.drill import Drill
from tests.drills.processes import is_stopped, workers_of
from tests.patience import PATIENCE, until
from tests.service.running import ROOT, Server, running_server

NUM_CLIENTS: Final = 16
BODIES: Final[tuple[tuple[str, dict[str, Any]], ...]] = (
    ("/generate", {"prompt": "To be", "max_tokens": 40, "seed": 7, "logprobs": 1}),
    ("/generate", {"prompt": "ROMEO:", "max_tokens": 80, "seed": 8, "stream": True, "logprobs": 0}),
    ("/score", {"text": "To be, or not to be", "tokens": True}),
    ("/score", {"texts": ["that is the question", "to sleep", "perchance to dream"] * 4}),
    ("/v1/completions", {"prompt": ["Once", "upon"], "max_tokens": 30, "seed": 10}),
)
MAX_RECOVERY: Final = 3.0  # seconds from a kill until all workers are ready, on a quiet machine
MAX_FAILURE: Final = 1.0  # seconds from a kill until its requests have failed


@dataclass
class Outcomes:
    """Results of the requests; each list is appended to by many threads.

    failed  port of the client's connection, and the time
    """

    num_answers: int = 0
    failed: list[tuple[int, float]] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)


def answer(connection: http.client.HTTPConnection, which: int) -> tuple[int, str]:
    """Ask, and return what must be the same each time: no caches, no ids, no pieces of streams."""
    path, body = BODIES[which]
    connection.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
    response = connection.getresponse()
    text = response.read().decode()
    if response.status == 200 and body.get("stream"):
        events = [json.loads(line[6:]) for line in text.splitlines() if line.startswith("data: {")]
        if any("error" in event for event in events) or not text.endswith("data: [DONE]\n\n"):
            raise http.client.IncompleteRead(text.encode())
        choices = [choice for event in events for choice in event["choices"]]
        logprobs = [token["logprob"] for choice in choices for token in choice.get("tokens", ())]
        return 200, json.dumps(["".join(choice["text"] for choice in choices), logprobs])
    return response.status, re.sub(r'"(id|created|(cached|computed)_tokens|request_id)":("[^"]*"|\d+)', "", text)


def ask(server: Server, expected: list[tuple[int, str]], stop: threading.Event, outcomes: Outcomes, seed: int) -> None:
    choice = random.Random(seed)
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=PATIENCE)
    while not stop.is_set():
        which = choice.randrange(len(BODIES))
        port = 0
        try:
            if connection.sock is None:
                connection.connect()
            port = connection.sock.getsockname()[1]
            found = answer(connection, which)
        except (OSError, http.client.HTTPException):
            outcomes.failed.append((port, time.monotonic()))
            connection.close()
        else:
            outcomes.num_answers += 1
            if found != expected[which]:
                outcomes.wrong.append(f"{BODIES[which][0]}: {found[0]} {found[1][:200]}")
    connection.close()


@contextlib.contextmanager
def clients(server: Server, seed: int) -> Iterator[Outcomes]:
    """Ask at random from many connections until the block ends."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=PATIENCE)
    expected = [answer(connection, which) for which in range(len(BODIES))]
    connection.close()
    assert {status for status, _ in expected} == {200}
    stop, outcomes = threading.Event(), Outcomes()
    threads = [
        threading.Thread(target=ask, args=(server, expected, stop, outcomes, seed + number))
        for number in range(NUM_CLIENTS)
    ]
    for thread in threads:
        thread.start()
    try:
        yield outcomes
    finally:
        stop.set()
        for thread in threads:
            thread.join(PATIENCE)


def client_ports(server: Server, pid: int) -> set[int]:
    """Return the ports of the clients whose connections a process holds."""
    rows = [line.split() for line in Path("/proc/net/tcp").read_text("ascii").splitlines()[1:]]
    peers = {
        f"socket:[{row[9]}]": int(row[2].split(":")[1], 16) for row in rows if row[1].endswith(f"{server.port:04X}")
    }
    held = {str(file.readlink()) for file in Path(f"/proc/{pid}/fd").iterdir()}
    return {port for inode, port in peers.items() if inode in held}


def kill(server: Server, pid: int) -> tuple[set[int], float]:
    """Kill a worker; return the ports of its clients, and the time."""
    os.kill(pid, signal.SIGSTOP)
    until(lambda: is_stopped(pid))  # a moment later: until then it takes more connections
    ports = client_ports(server, pid)
    os.kill(pid, signal.SIGKILL)
    return ports, time.monotonic()


def await_recovery(server: Server, killed: int) -> None:
    """Wait until a worker has taken the place of the killed one."""
    while killed in (workers := workers_of(server.process.pid)) or len(workers) < 2 or not _all_ready(server):
        threading.Event().wait(0.02)


def _all_ready(server: Server) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=PATIENCE)
    connection.request("GET", "/readyz")
    response = connection.getresponse()
    workers = json.loads(response.read())["workers"]
    connection.close()
    assert response.status == 200, "one worker was ready all the time"
    return bool(workers["ready"] == workers["expected"])


def test_only_requests_in_flight_on_a_killed_worker_fail(drill: Drill, tmp_path: Path) -> None:
    choice = random.Random(drill.seed)
    seconds, num_kills = drill.pick(3.0, 300.0), 0
    allowed: list[tuple[set[int], float]] = []
    recoveries: list[float] = []
    settings: dict[str, Any] = {"bundles": ROOT / "bundles" / "shakespeare-gru", "workers": 2, "log_level": "warning"}
    with running_server(tmp_path, **settings) as server, clients(server, drill.seed) as outcomes:
        end = time.monotonic() + seconds
        while num_kills < 2 or time.monotonic() < end:
            threading.Event().wait(choice.uniform(0.2, drill.pick(1.0, 5.0)))
            pid = choice.choice(workers_of(server.process.pid))
            allowed.append(kill(server, pid))
            num_kills += 1
            await_recovery(server, pid)
            recoveries.append(time.monotonic() - allowed[-1][1])
        server_log = server.log
    late = [each for each in outcomes.failed if not any(each[0] in ports for ports, _ in allowed)]
    delays = [min(failed - at for ports, at in allowed if port in ports and failed >= at - 1) for port, failed in
              outcomes.failed if (port, failed) not in late]  # fmt: skip
    drill.record("workers killed", num_kills)
    drill.record("requests answered as without kills, bit for bit", outcomes.num_answers - len(outcomes.wrong))
    drill.record("other answers, 503 among them", len(outcomes.wrong), "0")
    drill.record("requests that failed on the connections of killed workers", len(delays))
    drill.record("requests that failed elsewhere", len(late), "0")
    drill.record("longest time from a kill to such a failure, s", max(delays, default=0.0), f"{MAX_FAILURE:g}")
    drill.record("longest time from a kill until all workers were ready, s", max(recoveries), f"{MAX_RECOVERY:g}")
    assert not outcomes.wrong
    assert not late
    assert "Traceback" not in server_log
    slowness = drill.pick(20.0, 1.0)  # the short form runs beside other tests
    assert max(delays, default=0.0) <= slowness * MAX_FAILURE
    assert max(recoveries) <= slowness * MAX_RECOVERY
