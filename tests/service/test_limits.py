"""Test limits of keys and addresses: on one host, over several hosts with a real Redis, and as a client sees them."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from meari.errors import RateLimited, TooLarge
from meari.service.requests import limit_stores
from meari.service.requests.keys import Caller
from meari.service.requests.limit_stores import MAX_ENTRIES, WRONG_KEYS_PER_MINUTE, HostStore, RedisStore
from meari.service.requests.limits import AWAY_SECONDS, Limits, Quota
from tests.patience import PATIENCE, until
from tests.service.running import ROOT, Server, free_port, running_server, unread_stream
from tests.service.test_keys import Clock, added, bearer

ALICE = Caller("alice", "0123456789ab", tokens_per_minute=600, requests_at_once=2)
ENDLESS: dict[str, Any] = {"logit_bias": {"0": -100}}
REDIS = shutil.which("redis-server") or shutil.which("redis-check-rdb")  # one program: its name tells it what to be


@contextlib.contextmanager
def running_redis(port: int) -> Iterator[str]:
    """Run a Redis of our own; the URL of it."""
    assert REDIS is not None
    command = ["redis-server", "--port", str(port), "--save", "", "--appendonly", "no", "--bind", "127.0.0.1"]
    with subprocess.Popen(command, executable=REDIS, stdout=subprocess.DEVNULL, cwd="/tmp") as process:
        try:
            import redis

            client = redis.Redis(port=port)

            def answers() -> bool:
                with contextlib.suppress(redis.RedisError):
                    return bool(client.ping())
                return False

            until(answers)
            client.close()
            yield f"redis://127.0.0.1:{port}/0?socket_timeout={PATIENCE}"  # a busy machine is no Redis that is away
        finally:
            process.kill()


@pytest.fixture(scope="module")
def redis_url() -> Iterator[str]:
    if REDIS is None:
        pytest.skip("there is no redis-server")
    with running_redis(free_port()) as url:
        yield url


def quota(limits: Limits, caller: Caller = ALICE) -> Quota:
    found = Quota.of(limits, caller)
    assert found is not None
    return found


def opened(limits: Limits, caller: Caller = ALICE) -> Quota:
    found = quota(limits, caller)
    found.open()
    return found


def refusal(work: Callable[[], object], limit: str) -> RateLimited:
    with pytest.raises(RateLimited) as raised:
        work()
    assert raised.value.limit == limit
    assert raised.value.retry_after_seconds is not None
    return raised.value


# ---- one host ----


def test_unused_tokens_are_given_back_and_used_ones_come_back_with_time(tmp_path: Path) -> None:
    clock = Clock()
    limits = Limits(HostStore(tmp_path, clock))
    first = opened(limits)
    first.take(600)
    assert first.headers()["RateLimit"] == '"tokens";r=0;t=60, "requests";r=1'
    refused = refusal(lambda: opened(limits), "tokens")
    assert refused.retry_after_seconds == 1
    first.close(150)
    second = opened(limits)
    assert "450 of the 600" in str(refusal(lambda: second.take(451), "tokens"))
    second.take(450)
    second.close(450)
    clock.now += 30
    third = opened(limits)
    assert refusal(lambda: third.take(400), "tokens").retry_after_seconds == 10
    third.take(300)


def test_request_that_no_minute_has_tokens_for_is_too_large(tmp_path: Path) -> None:
    found = opened(Limits(HostStore(tmp_path)))
    with pytest.raises(TooLarge, match="601 tokens, and the key alice has 600 a minute"):
        found.take(601)
    found.take(600)


def test_requests_at_once_are_counted_over_workers(tmp_path: Path) -> None:
    one, other = Limits(HostStore(tmp_path)), Limits(HostStore(tmp_path))
    first, second = opened(one), opened(other)
    assert second.headers()["RateLimit"].endswith('"requests";r=0')
    assert refusal(lambda: opened(one), "requests").retry_after_seconds == 1
    first.close(0)
    first.close(0)  # once is enough
    third = opened(other)
    refusal(lambda: opened(one), "requests")
    second.close(0)
    third.close(0)
    opened(one)
    opened(one)


def test_killed_worker_gives_its_requests_back(tmp_path: Path) -> None:
    code = (
        "import sys, time\nfrom pathlib import Path\n"
        "from meari.service.requests.keys import Caller\nfrom meari.service.requests.limits import HostStore\n"
        "store = HostStore(Path(sys.argv[1]))\n"
        "caller = Caller('alice', '0123456789ab', tokens_per_minute=600, requests_at_once=2)\n"
        "assert store.open(caller, '').granted and store.open(caller, '').granted\n"
        "print('open', flush=True)\ntime.sleep(1000)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], cwd=ROOT, stdout=subprocess.PIPE, text=True
    ) as worker:
        assert worker.stdout is not None
        assert worker.stdout.readline() == "open\n"
        limits = Limits(HostStore(tmp_path))
        refusal(lambda: opened(limits), "requests")
        worker.send_signal(signal.SIGKILL)
        os.waitid(os.P_PID, worker.pid, os.WEXITED | os.WNOWAIT)  # it has ended, and its parent has not looked yet
        opened(limits)
        opened(limits)
        refusal(lambda: opened(limits), "requests")


def test_threads_take_exactly_the_tokens_that_there_are(tmp_path: Path) -> None:
    stores = [HostStore(tmp_path, Clock()) for _ in range(4)]
    caller = Caller("bob", "b" * 12, tokens_per_minute=1000)
    with ThreadPoolExecutor(8) as pool:
        granted = list(pool.map(lambda number: stores[number % 4].take(caller, 3).granted, range(500)))
    assert granted.count(True) == 333


def test_wrong_keys_of_an_address_are_slowed_down_in_bounded_memory(tmp_path: Path) -> None:
    clock = Clock()
    store = HostStore(tmp_path, clock)
    for number in range(WRONG_KEYS_PER_MINUTE):
        store.note(f"2001:db8::{number:x}")  # one network
    assert store.are_too_many("2001:db8::ffff")
    assert not store.are_too_many("2001:db8:0:1::1")
    assert refusal(lambda: store.note("2001:db8::1"), "wrong_keys").retry_after_seconds == 3
    clock.now += 3.01
    store.note("2001:db8::1")
    for number in range(MAX_ENTRIES + 100):
        store.note(f"10.0.{number // 256}.{number % 256}")
    assert (tmp_path / limit_stores.SHARED_FILE).stat().st_size < 1024 * 1024
    for _ in range(WRONG_KEYS_PER_MINUTE - 1):
        store.note("::ffff:10.0.16.99")
    assert store.are_too_many("10.0.16.99")


def test_buckets_that_an_earlier_start_of_the_machine_wrote_are_full(tmp_path: Path) -> None:
    clock = Clock()
    clock.now = 1e6
    HostStore(tmp_path, clock).take(ALICE, 600)
    clock.now = 10.0
    assert HostStore(tmp_path, clock).take(ALICE, 600).granted


def test_folder_without_room_leaves_each_worker_to_itself(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("WARNING", "meari.service.limits"):
        assert HostStore(tmp_path / "missing").open(ALICE, "").granted
    assert "limits its requests by itself" in caplog.text


# ---- several hosts ----


def test_limits_hold_over_hosts_with_redis(redis_url: str) -> None:
    caller = Caller("carol", os.urandom(6).hex(), tokens_per_minute=600, requests_at_once=2)
    one, other = Limits(HostStore(), RedisStore(redis_url)), Limits(HostStore(), RedisStore(redis_url))
    first, second = opened(one, caller), opened(other, caller)
    refusal(lambda: opened(one, caller), "requests")
    first.take(500)
    refusal(lambda: second.take(200), "tokens")
    first.close(100)
    second.take(400)
    with pytest.raises(TooLarge):
        second.take(201)
    second.close(400)
    third = opened(one, caller)
    refusal(lambda: third.take(300), "tokens")
    third.take(90)
    third.close(90)


def test_request_of_a_killed_host_counts_until_its_lease_runs_out(
    redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import redis

    monkeypatch.setattr(limit_stores, "LEASE_SECONDS", 3.0)
    monkeypatch.setattr(limit_stores, "RENEW_SECONDS", 0.1)
    caller = Caller("dave", os.urandom(6).hex(), requests_at_once=1)
    killed, living = Limits(HostStore(), RedisStore(redis_url)), Limits(HostStore(), RedisStore(redis_url))
    opened(killed, caller)  # its thread does not run, and so renews nothing
    refusal(lambda: opened(living, caller), "requests")
    living.start()
    until(lambda: _opens(living, caller))
    with redis.Redis.from_url(redis_url) as client:
        [(lease, ends)] = leases(client, caller)
        until(lambda: leases(client, caller) >= [(lease, ends + 1000.0)])  # milliseconds: renewed again and again
    refusal(lambda: opened(killed, caller), "requests")
    living.stop()


def test_lease_runs_out_whose_end_redis_was_not_told(redis_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import redis

    monkeypatch.setattr(limit_stores, "LEASE_SECONDS", 1.0)
    monkeypatch.setattr(limit_stores, "RENEW_SECONDS", 0.1)
    caller = Caller("erin", os.urandom(6).hex(), tokens_per_minute=600, requests_at_once=1)
    store = RedisStore(redis_url)
    limits, other = Limits(HostStore(), store), Limits(HostStore(), RedisStore(redis_url))
    limits.start()
    running = opened(limits, caller)

    def fail(*_: object) -> None:
        raise redis.TimeoutError

    with monkeypatch.context() as patch:  # one slow answer, and Redis is not asked for five seconds
        patch.setattr(store, "take", fail)
        limits.ask(lambda store: store.take(caller, 1))
    running.close(0)
    until(lambda: _opens(other, caller))
    limits.stop()


def test_clock_of_redis_may_be_set_back(redis_url: str) -> None:
    import redis

    caller = Caller("frank", os.urandom(6).hex(), tokens_per_minute=60_000, requests_at_once=1)
    limits = Limits(HostStore(), RedisStore(redis_url))
    first = opened(limits, caller)
    first.take(60_000)
    bucket, leases = (f"meari:{{{caller.key_id}}}:{kind}" for kind in ("tokens", "open"))
    with redis.Redis.from_url(redis_url) as client:
        client.hincrbyfloat(bucket, "at", 3_600_000)
        client.zincrby(leases, 3_600_000, client.zrange(leases, 0, 0)[0])
    until(lambda: _opens(limits, caller))


def leases(client: Any, caller: Caller) -> list[tuple[bytes, float]]:
    """Return the leases of a caller's requests, and when each runs out."""
    return list(client.zrange(f"meari:{{{caller.key_id}}}:open", 0, -1, withscores=True))


def _opens(limits: Limits, caller: Caller) -> bool:
    with contextlib.suppress(RateLimited):
        opened(limits, caller)
        return True
    return False


def test_without_redis_each_host_limits_by_itself_and_says_so_once(caplog: pytest.LogCaptureFixture) -> None:
    if REDIS is None:
        pytest.skip("there is no redis-server")
    port, clock, failures = free_port(), Clock(), [0]

    def note_failure() -> None:
        failures[0] += 1

    with running_redis(port) as url:
        limits = Limits(HostStore(clock=clock), RedisStore(url), note_failure, clock)
        before = opened(limits)
        before.take(600)
    with caplog.at_level("INFO", "meari.service.limits"):
        first, second = opened(limits), opened(limits)
        refusal(lambda: opened(limits), "requests")
        first.take(600)
        refusal(lambda: second.take(1), "tokens")
        before.close(0)
        refusal(lambda: opened(limits), "tokens")  # nothing was opened here that could be given back
        clock.now += AWAY_SECONDS
        first.close(0)
        opened(limits)
        assert failures[0] >= 2
        assert len([each for each in caplog.messages if "does not answer" in each]) == 1
        with running_redis(port):
            clock.now += AWAY_SECONDS
            opened(limits)
            opened(limits)
            refusal(lambda: opened(limits), "requests")
        assert [each for each in caplog.messages if "answers again" in each] != []


# ---- as a client sees them ----


USES: list[tuple[str, dict[str, Any], int]] = [
    ("/generate", {"prompt": "abc", "max_tokens": 7, **ENDLESS}, 10),
    ("/generate", {"prompt": "abc", "max_tokens": 7, "n": 2, "stream": True, **ENDLESS}, 17),
    ("/generate", {"prompt": "a", "max_tokens": 50, "stop": ["c"]}, 3),
    ("/v1/completions", {"prompt": ["abc", "de"], "max_tokens": 2, **ENDLESS}, 9),
    ("/v1/completions", {"prompt": "abc", "max_tokens": 0, "echo": True, "logprobs": 1}, 3),
    ("/score", {"texts": ["abc", "de"], "context": "a"}, 6),
    ("/states", {"text": "abc"}, 3),
    ("/tokenize", {"text": "abcd"}, 4),
    ("/detokenize", {"tokens": [1, 2]}, 2),
]


@dataclass(frozen=True)
class Served:
    """A service with two workers, and its keys by their names."""

    server: Server
    keys: dict[str, str]

    def post(self, name: str, path: str, **body: Any) -> httpx.Response:
        return self.server.client.post(path, json=body, headers=bearer(self.keys[name]))


@pytest.fixture(scope="module")
def served(letters: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("limits")
    path = folder / "keys.json"
    keys = {f"use-{number}": added(path, f"use-{number}", tokens_per_minute=1_000) for number in range(len(USES))}
    keys["small"] = added(path, "small", tokens_per_minute=30)
    keys["narrow"] = added(path, "narrow", requests_at_once=2)
    keys["free"] = added(path, "free")
    long = "long-" + "k" * 40
    with running_server(folder, bundles=letters, keys_file=path, workers=2, api_keys=f"short,{long}") as server:
        yield Served(server, {**keys, "short": "short", "long": long})


@pytest.mark.parametrize("number", range(len(USES)))
def test_tokens_that_were_used_are_counted(served: Served, number: int) -> None:
    path, body, tokens = USES[number]
    began = time.monotonic()
    response = served.post(f"use-{number}", path, **body)
    assert response.status_code == 200, response.text
    assert response.headers["RateLimit-Policy"] == '"tokens";q=1000;w=60'
    while True:  # what was not used is given back when the answer is out
        looked = served.post(f"use-{number}", "/detokenize", tokens=[])
        left = int(looked.headers["x-ratelimit-remaining-tokens"])
        come_back = (time.monotonic() - began) * 1_000 / 60
        if left >= 1_000 - tokens or come_back > 40:  # of the 48 that one of them does not use
            break
    assert 1_000 - tokens <= left <= min(1_000, 1_000 - tokens + come_back + 1)
    assert looked.headers["RateLimit"].startswith(f'"tokens";r={left};t=')


def test_refusal_tells_when_to_come_back_and_in_each_shape_of_error(served: Served) -> None:
    body = {"prompt": "abc", "max_tokens": 20, **ENDLESS}
    assert served.post("small", "/generate", **body).status_code == 200
    refused = served.post("small", "/generate", **body)
    assert refused.status_code == 429
    assert refused.json()["error"]["code"] == "rate_limit_exceeded"
    assert "of the 30 tokens a minute of the key small are left" in refused.json()["error"]["message"]
    assert 1 <= int(refused.headers["Retry-After"]) <= 32
    assert refused.headers["x-ratelimit-limit-tokens"] == "30"
    openai = served.post("small", "/v1/completions", **body)
    assert (openai.status_code, openai.json()["error"]["type"]) == (429, "rate_limit_error")
    large = served.post("small", "/generate", **body | {"max_tokens": 28})
    assert (large.status_code, large.json()["error"]["code"]) == (413, "too_large")
    assert "30 a minute" in large.json()["error"]["message"]
    lines = served.server.client.get("/metrics").text.splitlines()
    limited = [line for line in lines if line.startswith('meari_limited_requests_total{limit="tokens"}')]
    assert sum(float(line.rsplit(" ", 1)[1]) for line in limited) >= 2


def test_requests_at_once_hold_over_workers_and_end_with_each_request(served: Served) -> None:
    body = {"max_tokens": 2000, "logprobs": 20, "stream": True, **ENDLESS}
    headers = bearer(served.keys["narrow"])
    with contextlib.ExitStack() as stack:
        for _ in range(2):
            answer = stack.enter_context(unread_stream(served.server, "/generate", body, headers))
            assert answer.status_code == 200
            assert answer.headers["RateLimit-Policy"] == '"requests";q=2;qu="concurrent-requests"'
        url = f"{served.server.client.base_url}/generate"
        refused = {
            httpx.post(url, json=body, headers=headers, timeout=PATIENCE, trust_env=False).status_code for _ in range(4)
        }
    assert refused == {429}
    until(lambda: served.post("narrow", "/generate", max_tokens=1).status_code == 200)
    for _ in range(5):  # a refused request holds no place, whatever it was refused for
        assert served.post("narrow", "/generate", max_tokens=0).status_code == 400
        assert served.post("narrow", "/generate", max_tokens=1).status_code == 200


def test_wrong_keys_are_slowed_down_and_keys_that_nobody_guesses_are_not(served: Served) -> None:
    client = served.server.client
    statuses = [client.get("/models", headers=bearer(f"wrong-{number}")).status_code for number in range(60)]
    assert statuses[0] == 401
    assert statuses.count(401) < 60
    refused = limited_guess(client)
    assert refused.json()["error"]["code"] == "rate_limit_exceeded"
    assert int(refused.headers["Retry-After"]) >= 1
    assert client.get("/models").status_code == 401  # no key is no wrong key
    found = {name: client.get("/models", headers=bearer(served.keys[name])).status_code for name in ("free", "long")}
    assert found == {"free": 200, "long": 200}

    def short_key_is_limited() -> bool:
        limited_guess(client)
        return client.get("/models", headers=bearer("short")).status_code == 429

    until(short_key_is_limited)  # as if it were a guess; another one may have come due between the two


def limited_guess(client: httpx.Client) -> httpx.Response:
    """Try wrong keys until one is refused unseen: every three seconds one more may be tried."""
    while (answer := client.get("/models", headers=bearer("wrong"))).status_code == 401:
        pass
    assert answer.status_code == 429
    return answer


def test_hosts_share_the_limits_of_a_key_and_answer_without_redis(letters: Path, tmp_path: Path) -> None:
    if REDIS is None:
        pytest.skip("there is no redis-server")
    path, body = tmp_path / "keys.json", {"prompt": "abc", "max_tokens": 37, **ENDLESS}
    headers = bearer(added(path, "alice", tokens_per_minute=60, requests_at_once=2))
    with contextlib.ExitStack() as stack:
        with running_redis(free_port()) as url:
            one, other = (
                stack.enter_context(running_server(tmp_path, bundles=letters, keys_file=path, redis_url=url))
                for _ in range(2)
            )
            assert one.client.post("/generate", json=body, headers=headers).status_code == 200
            assert other.client.post("/generate", json=body, headers=headers).status_code == 429
        for host in (one, other):
            assert host.client.post("/generate", json=body, headers=headers).status_code == 200
            assert host.client.post("/generate", json=body, headers=headers).status_code == 429
            assert host.log.count("Redis does not answer") == 1
            failures = [
                line for line in host.client.get("/metrics").text.splitlines() if "redis_failures_total" in line
            ]
            assert float(failures[-1].rsplit(" ", 1)[1]) >= 1
