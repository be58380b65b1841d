"""Drill: three replicas behind HAProxy are replaced, killed and given new bundles while clients use them.

The proxy is a real HAProxy with deploy/haproxy/haproxy.cfg. The replicas are processes of this machine and, where a
Docker engine answers, containers of the image. Every answer is compared, bit for bit, with the one before the drill.
"""

from __future__ import annotations

import contextlib
import json
import random
import shutil
import statistics
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Final, Self

import httpx
import pytest

from tests.container.conftest import docker, image
from tests.container.docker import find_docker
from tests.drills.drill import Drill
from tests.drills.replicas import HAPROXY, MISSING, Fleet, running_containers, running_processes
from tests.drills.test_reload import BODIES, BUNDLES, SWAPPED, answer, content_of
from tests.patience import PATIENCE, until
from tests.service.running import ROOT

__all__ = ["docker", "image"]  # fixtures

pytestmark = [pytest.mark.skipif(HAPROXY is None, reason=MISSING), pytest.mark.timeout(1200)]

KINDS: Final = ("processes", pytest.param("containers", marks=pytest.mark.container))
SETTINGS: Final[dict[str, object]] = {"workers": 1, "drain_seconds": 1, "cache_bytes": 4 << 20}
RELOAD_SECONDS: Final = 10.0  # from the rename to the last replica, three of them with 24 clients on two CPUs
CPU_PERCENT: Final = 5.0
NUM_SAMPLES: Final = 16
NUM_TOKENS: Final = 64


@pytest.fixture(scope="module", params=KINDS)
def fleet(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    """Run three replicas. Their long form uses containers where an engine answers, else processes."""
    if request.param == "processes" and request.config.getoption("--long", default=False) and find_docker() is not None:
        pytest.skip("an engine answers: the containers are drilled")
    folder = tmp_path_factory.mktemp("fleet")
    bundles = folder / "bundles"
    for name, bundle in BUNDLES.items():
        shutil.copytree(ROOT / "bundles" / bundle, bundles / name)
    shutil.copytree(bundles / "first", bundles / SWAPPED)
    bundles.chmod(0o755)
    if request.param == "processes":
        with running_processes(folder, bundles, **SETTINGS) as fleet:
            yield fleet
    else:
        engine, built = request.getfixturevalue("docker"), request.getfixturevalue("image")
        with running_containers(folder, bundles, engine, built, **SETTINGS) as fleet:
            yield fleet


@pytest.fixture(scope="module")
def expected(fleet: Fleet) -> dict[tuple[str, int], str]:
    """Return the answers of a replica to every request, by bundle and number."""
    with httpx.Client(base_url=fleet.urls()[0], timeout=PATIENCE, trust_env=False) as client:
        return {(name, which): answer(client, name, which) for name in BUNDLES for which in range(len(BODIES))}


@dataclass
class Clients:
    """Threads that ask through the proxy until the block ends; a request that fails is asked again as a new one.

    failed    id of each request that failed, and the reason
    given_up  requests that did not succeed though they were asked again when `Retry-After` said
    """

    fleet: Fleet
    expected: dict[tuple[str, int], str]
    num_clients: int
    seed: int
    num_answers: int = 0
    failed: dict[str, str] = field(default_factory=dict)
    given_up: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)

    def __enter__(self) -> Self:
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._run, args=(number,)) for number in range(self.num_clients)]
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _run(self, number: int) -> None:
        choice = random.Random(self.seed * 1000 + number)
        with httpx.Client(base_url=self.fleet.url, timeout=PATIENCE, trust_env=False) as client:
            count = 0
            while not self._stop.is_set():
                count += 1
                name, which = choice.choice((SWAPPED, SWAPPED, *BUNDLES)), choice.randrange(len(BODIES))
                self._ask_until_answered(client, f"{self.seed}-{number}-{count}", name, which)

    def _ask_until_answered(self, client: httpx.Client, request: str, name: str, which: int) -> None:
        for attempt in range(5):
            wait = self._ask(client, f"{request}-{attempt}", name, which)
            if wait is None:
                return
            self._stop.wait(wait)
        self.given_up.append(request)

    def _ask(self, client: httpx.Client, request: str, name: str, which: int) -> float | None:
        """Ask once; None if that was answered, else the seconds until the client may ask again."""
        path, body = BODIES[which]
        try:
            response = client.post(path, json={"model": name, **body}, headers={"X-Request-Id": request})
            if response.status_code != 200:
                self.failed[request] = f"{response.status_code} {response.text[:200]}"
                return float(response.headers["Retry-After"])
            found = content_of(response, is_stream=bool(body.get("stream")))
        except (httpx.TransportError, AssertionError) as error:
            self.failed[request] = f"{type(error).__name__} {error}"[:200]
            return 0.0
        self.num_answers += 1
        if found not in [self.expected[each, which] for each in (BUNDLES if name == SWAPPED else (name,))]:
            self.wrong.append(f"{request}: {name} {path}")
        return None


def test_replicas_are_replaced_one_after_another_without_a_failed_request(
    drill: Drill, fleet: Fleet, expected: dict[tuple[str, int], str]
) -> None:
    rounds = drill.pick(1, 2)
    with Clients(fleet, expected, drill.pick(3, 24), drill.seed) as clients:
        for replica in fleet.replicas * rounds:
            replica.stop()
            replica.start()
            fleet.await_up()
    record(drill, fleet, clients)
    drill.record("replicas replaced", 3 * rounds)
    drill.record("requests failed", len(clients.failed), 0)
    assert clients.failed == {}
    assert clients.wrong == clients.given_up == []
    assert clients.num_answers > 50


def test_killed_replica_loses_only_the_requests_that_it_had(
    drill: Drill, fleet: Fleet, expected: dict[tuple[str, int], str]
) -> None:
    victims = random.Random(drill.seed).choices(range(3), k=drill.pick(1, 4))
    lost: list[int] = []
    elsewhere: list[dict[str, int]] = []
    with Clients(fleet, expected, drill.pick(3, 24), drill.seed + 1) as clients:
        for victim in victims:
            failed, answered, errors = len(clients.failed), clients.num_answers, fleet.proxy.errors()
            until(lambda answered=answered: clients.num_answers > answered + 10)  # type: ignore[misc]
            fleet.replicas[victim].kill()
            until(lambda: fleet.proxy.states().get(f"replica{victim + 1}", "").startswith("DOWN"))  # noqa: B023
            fleet.replicas[victim].start()
            fleet.await_up()
            lost.append(len(clients.failed) - failed)
            now = fleet.proxy.errors()
            elsewhere.append({name: now[name] - errors[name] for name in now if name != f"replica{victim + 1}"})
    record(drill, fleet, clients)
    drill.record("replicas killed", len(victims))
    drill.record("requests that failed with a killed replica", sum(lost), f"≤ {clients.num_clients} each")
    others = sum(sum(each.values()) for each in elsewhere)
    drill.record("requests that other replicas refused or lost", others, 0)
    drill.record("requests that failed for good, asked again after `Retry-After`", len(clients.given_up), 0)
    assert others == 0, elsewhere
    assert max(lost) <= clients.num_clients, clients.failed
    assert clients.wrong == clients.given_up == []


def test_state_of_one_replica_is_continued_on_every_other_with_the_same_bits(drill: Drill, fleet: Fleet) -> None:
    num_states = drill.pick(3, 30)
    clients = [httpx.Client(base_url=url, timeout=PATIENCE, trust_env=False) for url in fleet.urls()]
    different = 0
    for number in range(num_states):
        body = {"model": "first", "prompt": "My lord, ", "seed": number, "logprobs": 2, "logit_bias": {"0": -100}}
        half = {**body, "max_tokens": 15, "return_state": True}
        whole = generated(clients[number % 3], {**body, "max_tokens": 30})
        first = generated(clients[number % 3], half)
        rest = {name: half[name] for name in ("model", "max_tokens", "logprobs", "logit_bias")}
        for client in clients:
            second = generated(client, {**rest, "state": first["state"]})
            joined = (first["text"] + second["text"], first["tokens"] + second["tokens"])
            different += json.dumps(joined) != json.dumps((whole["text"], whole["tokens"]))
    for client in clients:
        client.close()
    drill.record("states made on one replica, continued on each of three", num_states)
    drill.record("continuations with other tokens or log-probabilities", different, 0)
    assert different == 0


def generated(client: httpx.Client, body: dict[str, Any]) -> dict[str, Any]:
    response = client.post("/generate", json=body)
    assert response.status_code == 200, response.text
    choice: dict[str, Any] = response.json()["choices"][0]
    return choice


def test_changed_bundle_is_taken_over_by_all_replicas_under_load(
    drill: Drill, fleet: Fleet, expected: dict[tuple[str, int], str]
) -> None:
    num_swaps = drill.pick(2, 10)
    seconds = []
    with Clients(fleet, expected, drill.pick(3, 24), drill.seed + 2) as clients:
        for number in range(num_swaps):
            seconds.append(swapped_in(fleet, ("second", "first")[number % 2]))
    record(drill, fleet, clients)
    drill.record("bundles replaced by a rename", num_swaps)
    drill.record("requests failed", len(clients.failed), 0)
    drill.record("from the rename to the last of three replicas, s, longest", max(seconds), f"≤ {RELOAD_SECONDS:g}")
    assert clients.failed == {}
    assert clients.wrong == []
    if drill.is_long:
        assert max(seconds) <= RELOAD_SECONDS


def swapped_in(fleet: Fleet, name: str) -> float:
    """Put a bundle in the place of the swapped one; return the seconds until every replica serves it."""
    folder = fleet.bundles
    new, old = folder / f"{SWAPPED}.new", folder / f".{SWAPPED}.old"
    shutil.copytree(folder / name, new)
    (folder / SWAPPED).rename(old)
    new.rename(folder / SWAPPED)
    renamed = time.monotonic()
    shutil.rmtree(old)

    def hashes(url: str) -> list[object]:
        found = [httpx.get(f"{url}/models/{model}", trust_env=False, timeout=PATIENCE) for model in (SWAPPED, name)]
        return [each.json().get("hashes") for each in found]

    for url in fleet.urls():
        until(lambda url=url: len({json.dumps(each) for each in hashes(url)}) == 1)  # type: ignore[misc]
    return time.monotonic() - renamed


def test_proxy_passes_events_on_at_once_and_keeps_a_session_on_its_replica(drill: Drill, fleet: Fleet) -> None:
    body = {"model": "first", "max_tokens": 4096, "stream": True, "seed": 1, "logit_bias": {"0": -100}}
    with httpx.Client(base_url=fleet.url, timeout=PATIENCE, trust_env=False) as client:
        with client.stream("POST", "/generate", json=body) as response:
            times = [time.monotonic() for _ in response.iter_raw()]
        for number in range(12):
            headers = {"X-Request-Id": f"session-{number % 3}-{number}", "X-Session-Id": f"client {number % 3}"}
            assert client.post("/score", json={"text": "to be"}, headers=headers).status_code == 200
    drill.record("pieces of a stream of 4,096 tokens", len(times))
    assert len(times) > 10
    until(lambda: sum(key.startswith("session-") for key in fleet.proxy.log()) == 12)
    passed = fleet.proxy.log()
    for session in range(3):
        assert len({passed[f"session-{session}-{number}"].server for number in range(session, 12, 3)}) == 1


def test_tokens_cost_the_same_cpu_time_on_one_replica_and_on_three(drill: Drill, fleet: Fleet) -> None:
    """Count CPU-seconds, not tokens a second: three replicas and their clients share the CPUs of one machine.

    One client asks for sixteen samples at a time. HAProxy passes its requests to three replicas in turn, or to one, of
    which the client then asks a third as often: a replica has the same load in both, and does the same work in the same
    batches. That matters because a process that idles for a quarter of a second needs 7 to 10 % more CPU time for its
    next request, whether something else runs meanwhile or not. No two replicas compete for the caches and the memory of
    the machine; that they do when each has a client of its own is recorded beside it: it is the machine's price, not
    that of replicas, and three machines do not pay it.

    A shared CPU takes up to half as long again for single requests, a few in a row. So one replica and three are
    compared by the medians of many requests, in short stretches in turn.
    """
    stretches, num_requests = drill.pick(1, 40), 6
    in_turn: dict[int, list[list[float]]] = {1: [], 3: []}
    proxy_seconds = 0.0
    for number in range(stretches):
        for num_replicas in (1, 3) if number % 2 else (3, 1):
            fleet.pick(num_replicas)
            before = fleet.proxy.cpu_seconds()
            in_turn[num_replicas] += token_costs(fleet, num_replicas, 1, num_requests, rests=3 - num_replicas)
            proxy_seconds += fleet.proxy.cpu_seconds() - before
    drill.record("a request", f"{NUM_SAMPLES} samples of {NUM_TOKENS} tokens")
    change = recorded_change(drill, "the same load a replica", in_turn, f"± {CPU_PERCENT:g}")
    of_replicas = [sum(costs) for costs in zip(*in_turn[3], strict=True)]
    least, most = (pick(of_replicas) / sum(of_replicas) for pick in (min, max))
    drill.record("share of a replica of the tokens' CPU time in that, least and most", f"{least:.2f}, {most:.2f}")
    drill.record("CPU time of HAProxy a request, µs", 1e6 * proxy_seconds / sum(map(len, in_turn.values())))
    if drill.is_long:
        at_once: dict[int, list[list[float]]] = {1: [], 3: []}
        for num_replicas in 2 * (1, 3):
            fleet.pick(num_replicas)
            at_once[num_replicas] += token_costs(fleet, num_replicas, num_replicas, 40, rests=0)
        recorded_change(drill, "a client a replica, on two CPUs in all", at_once, "")
    fleet.pick(3)
    if drill.is_long:
        assert least > 0.2
        assert abs(change) <= CPU_PERCENT


def recorded_change(drill: Drill, load: str, costs: dict[int, list[list[float]]], bar: str) -> float:
    """Note what a token cost under a load on one replica and on three; return the change in percent."""
    one, three = (statistics.median(map(sum, found)) for found in costs.values())
    change = 100 * (three / one - 1)
    drill.record(f"{load}: CPU time of the replicas a token, µs, on one and on three", f"{one:.1f}, {three:.1f}")
    drill.record(f"{load}: change, %", change, bar)
    return change


def token_costs(
    fleet: Fleet, num_replicas: int, num_clients: int, num_requests: int, *, rests: int
) -> list[list[float]]:
    """Let clients ask at once, so many times; return each time the CPU time of a token on each replica, in µs.

    rests  how many times as long as for their answers they wait before they ask again
    """
    replicas = fleet.replicas[:num_replicas]
    body = {"model": "first", "n": NUM_SAMPLES, "max_tokens": NUM_TOKENS, "logit_bias": {"0": -100}}

    def ask(client: httpx.Client, seed: int) -> int:
        response = client.post("/generate", json={**body, "seed": seed})
        assert response.status_code == 200, response.text
        return int(response.json()["usage"]["generated_tokens"])

    costs = []
    with contextlib.ExitStack() as opened, ThreadPoolExecutor(num_clients) as pool:
        connect = lambda: httpx.Client(base_url=fleet.url, timeout=PATIENCE, trust_env=False)  # noqa: E731
        clients = [opened.enter_context(connect()) for _ in range(num_clients)]
        for number in range(num_requests):
            before, began = [replica.cpu_seconds() for replica in replicas], time.monotonic()
            seeds = range(number * num_clients, (number + 1) * num_clients)
            num_tokens = sum(pool.map(ask, clients, seeds))
            used = [replica.cpu_seconds() - begun for replica, begun in zip(replicas, before, strict=True)]
            costs.append([1e6 * seconds / num_tokens for seconds in used])
            time.sleep(rests * (time.monotonic() - began))
    return costs


def record(drill: Drill, fleet: Fleet, clients: Clients) -> None:
    """Note what all drills under load have in common."""
    drill.record("replicas", f"3 {fleet.kind} of one worker behind HAProxy")
    drill.record("clients, answers", f"{clients.num_clients}, {clients.num_answers:,}")
    drill.record("answers with other bits", len(clients.wrong), 0)
