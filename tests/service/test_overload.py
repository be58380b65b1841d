"""Test that overload is distinguished from waiting clients and from bursts, under the test's clock."""

from __future__ import annotations

import contextlib
import heapq
import itertools
import math
import random
import time
from pathlib import Path

import httpx
import pytest

from meari.errors import Bound, Overloaded, TooLarge
from meari.service.requests.admission import FAIR_REQUESTS, SMALL_BYTES, Admission, Level, Ticket
from tests.drills.raw_http import Connection, post
from tests.patience import PATIENCE, until
from tests.service.running import full_server, running_server

SLOTS = 64
SECONDS_ALONE, SECONDS_MORE = 0.0168, 0.008  # of CPU for a request of size 1: alone, and for each one inside
OBSERVE_SECONDS = 0.5  # between two measurements of the level, as in a worker


def test_small_requests_find_room_beside_large_ones() -> None:
    size = 16 * SMALL_BYTES
    admission = Admission(192, size, SLOTS)
    large, small = admission.enter(), admission.enter()
    with pytest.raises(TooLarge, match=f"needs {size} bytes of memory, at most {14 * SMALL_BYTES}"):
        large.take_bytes(size)
    large.take_bytes(14 * SMALL_BYTES)
    small.take_bytes(SMALL_BYTES)
    with pytest.raises(Overloaded) as refused:
        small.take_bytes(1)
    assert refused.value.bound is Bound.BYTES
    with pytest.raises(TooLarge):  # it can never fit, however little is held by others
        large.take_bytes(1)
    large.take_bytes(-2 * SMALL_BYTES)
    small.take_bytes(1)
    large.release()
    small.release()
    assert admission.num_bytes == 0


class Clock:
    """Clock that a test sets."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Worker:
    """Worker behind a gate; the requests inside share its capacity.

    inside  of each: the work at its end, its number, its arrival

    Sizes are 1 on average, at most 4; `spread` is the standard deviation of their logarithms.
    """

    def __init__(self, max_requests: int = 192, seconds_alone: float = SECONDS_ALONE, spread: float = 0.8) -> None:
        self.clock = Clock()
        self.admission = Admission(max_requests, 1000, SLOTS, self.clock)
        self.inside: list[tuple[float, int, float, Ticket]] = []  # a heap
        self._numbers = itertools.count()
        self._sizes = random.Random(7)
        self._spread = spread
        self._alone = seconds_alone
        self._work = 0.0  # work done for each request that is inside all the time
        self._cpu_seconds = self._fixed_seconds = 0.0
        self._observed_at = self.clock.now
        self.waits: list[int | None] = []  # that were asked for, the last ones
        self.seconds: list[float] = []
        self.num_refused = 0
        self.bounds: set[Bound] = set()
        self.most_inside = 0

    def arrive(self, at: float) -> None:
        self.advance(at)
        try:
            self.admission.refuse_early("", is_received=False)
            self.admission.note_received()
            ticket = self.admission.enter()
        except Overloaded as refusal:
            self.num_refused += 1
            self.waits = [*self.waits[-31:], refusal.retry_after_seconds]
            self.bounds.add(refusal.bound)
            return
        size = min(4.0, max(0.125, self._sizes.lognormvariate(-0.47 * self._spread**2, self._spread)))
        heapq.heappush(self.inside, (self._work + size, next(self._numbers), at, ticket))
        self.most_inside = max(self.most_inside, len(self.inside))

    def advance(self, to: float) -> int:
        """Let time pass; return the number of ended requests."""
        ended = 0
        while self.clock.now < to:
            until = min(to, self._observed_at + OBSERVE_SECONDS)
            seconds_of_one = self._alone + SECONDS_MORE * len(self.inside)
            end = self.clock.now + (self.inside[0][0] - self._work) * seconds_of_one if self.inside else math.inf
            if self.inside:
                seconds = min(until, end) - self.clock.now
                self._work = self.inside[0][0] if end <= until else self._work + seconds / seconds_of_one
                self._cpu_seconds += seconds
                self._fixed_seconds += seconds * self._alone / seconds_of_one
            self.clock.now = min(until, end)
            if end <= until:
                _, _, arrived, ticket = heapq.heappop(self.inside)
                ticket.release()
                self.admission.note_done()
                self.seconds.append(end - arrived)
                ended += 1
            elif until == self._observed_at + OBSERVE_SECONDS:
                self._observed_at = until
                self.admission.observe(self._cpu_seconds, self._fixed_seconds)
        return ended


def offer(worker: Worker, rate: float, seconds: float, seed: int = 1) -> int:
    """Let requests arrive independently of responses; return their number."""
    generator, at, count = random.Random(seed), worker.clock.now, 0
    until = at + seconds
    while (at := at + generator.expovariate(rate)) < until:
        worker.arrive(at)
        count += 1
    worker.advance(until)
    return count


def closed_loop(worker: Worker, num_clients: int, seconds: float) -> None:
    """Run clients that send a request after each response."""
    start = worker.clock.now
    for client in range(num_clients):
        worker.arrive(start + client * 0.001)
    while worker.clock.now < start + seconds:
        for _ in range(worker.advance(worker.clock.now + 0.002)):
            worker.arrive(worker.clock.now)


def p95(seconds: list[float]) -> float:
    return sorted(seconds)[int(0.95 * len(seconds))]


CAPACITY = SLOTS / (SECONDS_ALONE + SECONDS_MORE * SLOTS)


@pytest.mark.parametrize("num_clients", [16, 64])
def test_clients_that_wait_for_their_responses_are_never_refused(num_clients: int) -> None:
    worker = Worker()
    closed_loop(worker, num_clients, 10.0)
    assert worker.num_refused == 0
    assert len(worker.seconds) > 500


@pytest.mark.parametrize("size", [64, 150])
def test_burst_is_not_refused(size: int) -> None:
    worker = Worker()
    for number in range(size):
        worker.arrive(100.0 + number * 0.0005)
    worker.advance(110.0)
    assert worker.num_refused == 0
    assert len(worker.seconds) == size


def test_load_below_capacity_is_not_refused() -> None:
    worker = Worker()
    offer(worker, 0.8 * CAPACITY, 60.0)
    assert worker.num_refused == 0


@pytest.mark.parametrize("alone_to_more", [0.2, 0.8, 2.1, 3.8, 6.0])
@pytest.mark.parametrize("spread", [0.0, 0.8], ids=["equal sizes", "mixed sizes"])
def test_half_of_a_double_load_is_admitted_and_answered_soon(alone_to_more: float, spread: float) -> None:
    """Whatever a step's fixed cost is, compared with that of a request in it."""
    busy, flooded = (Worker(seconds_alone=alone_to_more * SECONDS_MORE, spread=spread) for _ in range(2))
    capacity = 1.0 / (SECONDS_MORE * (alone_to_more / SLOTS + 1.0))
    offer(busy, 0.8 * capacity, 60.0)
    offer(flooded, 2 * capacity, 60.0)
    assert busy.num_refused == 0
    assert len(flooded.seconds) >= 0.95 * capacity * 60.0
    assert p95(flooded.seconds) <= 2.1 * p95(busy.seconds), "those of the first second included"


@pytest.mark.parametrize("seed", range(1, 6))
@pytest.mark.parametrize("alone_to_more", [0.2, 0.8, 2.1])
def test_requests_that_leave_together_do_not_end_an_overload(alone_to_more: float, seed: int) -> None:
    """Equal requests that came within a moment end within one: then a worker is empty, and its load goes on."""
    worker = Worker(seconds_alone=alone_to_more * SECONDS_MORE, spread=0.0)
    rate = 2.0 / (SECONDS_MORE * (alone_to_more / SLOTS + 1.0))
    offer(worker, rate, 1.5, seed)
    assert worker.admission.is_limiting
    worker.most_inside = 0
    offer(worker, rate, 10.0, seed + 100)
    assert worker.most_inside < SLOTS


def test_overloaded_worker_keeps_its_level() -> None:
    worker = Worker()
    offer(worker, 0.8 * CAPACITY, 30.0)
    offer(worker, 2 * CAPACITY, 20.0)
    assert worker.admission.is_limiting
    assert worker.bounds == {Bound.OVERLOAD}
    assert len(worker.inside) <= worker.admission.level == 25  # answers twice as late as at 80 %


def test_all_requests_are_admitted_after_an_overload() -> None:
    worker = Worker()
    offer(worker, 3 * CAPACITY, 10.0)
    offer(worker, 0.5 * CAPACITY, 5.0)
    assert not worker.admission.is_limiting
    before = worker.num_refused
    closed_loop(worker, 64, 5.0)
    assert worker.num_refused == before


def test_retry_after_grows_with_the_overload() -> None:
    for load, possible in ((1.5, {2, 3, 4}), (5.0, set(range(5, 13)))):
        worker = Worker()
        offer(worker, load * CAPACITY, 10.0)
        assert worker.admission.is_limiting
        offer(worker, load * CAPACITY, 1.0)
        assert set(worker.waits) <= possible
        assert len(set(worker.waits)) > 1, "those who are refused together do not come again together"


@pytest.mark.parametrize(
    ("num_slots", "ratio", "size"), [(1, 2, 8), (16, 2, 14), (64, 0.5, 14), (64, 1, 18), (64, 3.8, 35), (256, 4, 58)]
)
def test_level_makes_answers_twice_as_late_and_keeps_the_rate(num_slots: int, ratio: float, size: int) -> None:
    level = Level(num_slots)
    for second in range(1, 40):
        level.observe(float(second), 20.0 * second, float(second), second * ratio / (ratio + 20.0))
    assert level.size == size
    level.observe(50.0, 1.0, 39.5, 39.4)  # hardly anything was done: nothing can be said
    assert level.size == size


@pytest.mark.parametrize("num_slots", [32, 64, 256])
@pytest.mark.parametrize("ratio", [0.2, 0.8, 2.0, 4.0])
def test_level_is_the_one_of_a_shared_worker_under_light_load(num_slots: int, ratio: float) -> None:
    """Sums over a birth and death process, whose rate with N requests is N / (ratio + N), say the same."""
    level = Level(num_slots)
    for second in range(1, 60):
        level.observe(float(second), 20.0 * second, float(second), second * ratio / (ratio + 20.0))
    highest = num_slots / (ratio + num_slots)
    light = 0.8 * highest
    weights = list(
        itertools.accumulate(range(1, 5000), lambda weight, n: weight * light * (ratio + n) / n, initial=1.0)
    )
    units = sum(n * weight for n, weight in enumerate(weights)) / sum(weights) / light  # by Little's law
    twice = 2.0 * units - ratio
    needed = next(n for n in itertools.count(1) if n / (ratio + n) >= 0.95 * highest)
    assert level.size == pytest.approx(min(max(twice, needed), 0.85 * num_slots), abs=0.6), "a whole number"


def test_chance_that_empties_a_flooded_worker_does_not_end_its_overload() -> None:
    worker = Worker(seconds_alone=0.2 * SECONDS_MORE)  # few are inside
    offer(worker, 3 * CAPACITY, 10.0)
    while worker.inside:
        worker.advance(worker.clock.now + 0.001)
    assert worker.admission.is_limiting
    worker.advance(worker.clock.now + 0.2)
    worker.arrive(worker.clock.now)
    assert worker.admission.is_limiting
    worker.advance(worker.clock.now + 1.0)
    worker.admission.observe(0.0, 0.0)  # looking at an idle worker does not make it busy
    worker.arrive(worker.clock.now)
    assert not worker.admission.is_limiting, "a load that came to its end says nothing about the next one"


def test_clients_that_ask_again_at_once_are_let_in() -> None:
    """After an overload, clients that do not wait before they try again keep no worker refusing."""
    worker = Worker()
    offer(worker, 3 * CAPACITY, 10.0)
    assert worker.admission.is_limiting
    waiting = 64
    until = worker.clock.now + 20.0
    while worker.clock.now < until:
        waiting += worker.advance(worker.clock.now + 0.002)
        for _ in range(waiting):
            before = worker.num_refused
            worker.arrive(worker.clock.now)
            waiting -= worker.num_refused == before
    assert waiting == 0
    assert not worker.admission.may_refuse


def test_burst_beyond_the_bound_of_a_worker_is_refused() -> None:
    worker = Worker(max_requests=100)
    for number in range(150):
        worker.arrive(100.0 + number * 1e-6)
    assert (len(worker.inside), worker.num_refused) == (100, 50)


def test_caller_that_sends_many_requests_does_not_keep_out_others() -> None:
    worker = Worker(max_requests=100)
    tickets = []
    with contextlib.suppress(Overloaded):
        while True:
            tickets.append(worker.admission.enter("greedy"))
    assert len(tickets) == 100
    modest = [worker.admission.enter(f"modest {number}") for number in range(FAIR_REQUESTS)]
    with pytest.raises(Overloaded):
        worker.admission.enter("greedy")
    with pytest.raises(Overloaded):
        worker.admission.enter("one too many")
    for ticket in modest + tickets:
        ticket.release()
    assert worker.admission.num_requests == 0


def test_overload_by_one_caller_is_refused_to_that_caller_first() -> None:
    worker = Worker()
    offer(worker, 3 * CAPACITY, 10.0)
    assert worker.admission.is_limiting
    with contextlib.suppress(Overloaded):
        while True:
            worker.admission.enter()
    for _ in range(FAIR_REQUESTS):
        worker.admission.enter("modest")
    with pytest.raises(Overloaded):
        worker.admission.enter("modest")


def test_refusal_is_complete_and_keeps_the_connection(letters: Path, tmp_path: Path) -> None:
    endless = {"prompt": "a", "max_tokens": 200_000, "logit_bias": {"0": -100}, "temperature": 0, "stream": True}
    page = "https://page.example"
    with running_server(tmp_path, bundles=letters, max_requests=1, max_tokens=200_000, cors_origins=page) as server:
        with server.client.stream("POST", "/generate", json=endless) as stream:
            pieces = stream.iter_bytes()
            next(pieces)
            with httpx.Client(base_url=server.client.base_url, timeout=PATIENCE, trust_env=False) as client:
                headers = {"X-Request-Id": "mine", "Origin": "https://page.example"}
                refused = client.post("/generate", json={"prompt": "a" * 100_000}, headers=headers)
                assert (refused.status_code, refused.json()["error"]["code"]) == (429, "overloaded")
                assert refused.json()["error"]["request_id"] == refused.headers["X-Request-Id"] == "mine"
                assert int(refused.headers["Retry-After"]) >= 1
                assert refused.headers["Access-Control-Allow-Origin"] == "https://page.example"
                assert refused.headers["X-Content-Type-Options"] == "nosniff"
                assert refused.headers.get("Connection") != "close"
                openai = client.post("/v1/completions", json={"prompt": "a"})
                assert (openai.status_code, openai.json()["error"]["type"]) == (429, "rate_limit_error")
                assert client.get("/healthz").status_code == 200
                assert client.post("/nowhere", json={}).status_code == 404
                metrics = client.get("/metrics").text
                assert 'meari_requests_total{route="/generate",status="429"} 1.0' in metrics
                assert 'meari_refusals_total{model="",reason="requests"} 2.0' in metrics
        deadline = time.monotonic() + PATIENCE
        while (answer := server.post("/generate", prompt="a", max_tokens=1)).status_code == 429:
            assert time.monotonic() < deadline
        assert answer.status_code == 200
        until(lambda: '"request_id":"mine"' in server.log)
        assert '"outcome":"refused"' in server.log


def test_request_is_refused_by_its_head_and_its_body_is_skipped(letters: Path, tmp_path: Path) -> None:
    request = post("/generate", b'{"prompt": "%s"}' % (b"a" * 50_000))
    head = request.index(b"\r\n\r\n") + 4
    with full_server(tmp_path, letters) as server:
        connection = Connection(server.port)
        connection.send(request[:head])
        assert connection.answer().status == 429
        connection.send(request[head:-10])
        connection.send(request[-10:] + b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert connection.answer().status == 200
        assert connection.ask(post("/score", b"{}")).status == 429
        connection.send(post("/score", b"{}") * 100)  # in a row, before any answer
        assert [connection.answer().status for _ in range(100)] == [429] * 100
        connection.close()


@pytest.mark.parametrize(
    ("fields", "body"),
    [
        (("Transfer-Encoding: chunked",), b"2\r\n{}\r\n0\r\n\r\n"),
        (("Content-Length: 2", "Expect: 100-continue"), b""),
        (("Content-Length: 2", "Connection: close"), b"{}"),
        (("Content-Length: 2", "X-Doubled: 1", "X-Doubled: 2"), b"{}"),
        (("Content-Length: 2", "X_Other: 1"), b"{}"),
    ],
    ids=["chunked", "expect", "close", "doubled", "underscore"],
)
def test_request_of_another_form_is_refused_too(
    letters: Path, tmp_path: Path, fields: tuple[str, ...], body: bytes
) -> None:
    lines = ["POST /generate HTTP/1.1", "Host: localhost", "Content-Type: application/json", *fields, "", ""]
    with full_server(tmp_path, letters) as server:
        connection = Connection(server.port)
        answer = connection.ask("\r\n".join(lines).encode() + body)
        assert answer.status == 429
        assert answer.fields["retry-after"]
        connection.close()


def test_malformed_request_is_no_matter_of_room(letters: Path, tmp_path: Path) -> None:
    twice = b"POST /generate HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\n{}"
    with full_server(tmp_path, letters) as server:
        for request in (twice, post("/generate", b"{}", "Bad Name: 1")):
            connection = Connection(server.port)
            assert connection.ask(request).status == 400
            connection.close()
        assert server.client.get("/generate").status_code == 405


def test_key_is_looked_at_before_a_refusal(letters: Path, tmp_path: Path) -> None:
    key = "a-key-of-more-than-thirty-two-characters"
    with full_server(tmp_path, letters, key) as server:
        connection = Connection(server.port)
        assert connection.ask(post("/generate", b"{}", f"Authorization: Bearer {key}")).status == 429
        assert connection.ask(post("/generate", b"{}", "Authorization: Bearer another")).status == 401
        assert connection.ask(post("/generate", b"{}")).status == 401
        connection.close()
        until(lambda: '"outcome":"refused","client_address":"127.0.0.1","key":"api_keys:1"' in server.log)
