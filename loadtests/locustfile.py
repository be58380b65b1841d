"""Simulate users of the HTTP API: whole generations, streamed generations and scores.

`make load` runs the users headless against a running server (HOST, PORT) and writes CSV and HTML files to
loadtests/results/. Input: the server's address and the environment variables below. Output: rows of figures and an
exit code. Must not know: the service's code.

    MEARI_LOAD_USERS                   number of concurrent users, 8; of four, one generates, two stream, one scores
    MEARI_LOAD_SPAWN_RATE              users started per second, 4
    MEARI_LOAD_SECONDS                 duration of the run, 60
    MEARI_LOAD_MODEL                   name of a bundle; the server's default model
    MEARI_LOAD_MAX_TOKENS              maximum tokens of a generation, 64
    MEARI_LOAD_SEED                    seed of the users' choices, 1
    MEARI_LOAD_KINDS                   of generate, stream and score those that there are, separated by commas; all
    MEARI_LOAD_SHAPE                   soak: all users (as without it, in one run of Locust); ramp: ever more of them;
                                       spike: a quarter of them, and all in the middle; staircase: five levels;
                                       several, separated by commas, follow one another in equal parts of the run
    MEARI_LOAD_ALLOW_REMOTE            1 allows a target on another machine

More than one process, on this machine or others: one master, which writes the report, and workers, which ask. All have
the same MEARI_LOAD_ variables.

    MEARI_LOAD_ROLE                    master or worker; alone
    MEARI_LOAD_WORKERS                 workers that a master waits for, 1
    MEARI_LOAD_MASTER_HOST             where workers find their master, 127.0.0.1
    MEARI_LOAD_MASTER_PORT             its port, 5557

Thresholds. A broken threshold gives exit code 1; thresholds without a default are not checked unless set:

    MEARI_LOAD_MAX_FAILURE_RATIO       failed requests / all requests, 0
    MEARI_LOAD_MAX_REFUSED_RATIO       requests refused with 429 / all requests
    MEARI_LOAD_MAX_P95_MS              95th percentile of each request row
    MEARI_LOAD_MAX_FIRST_TOKEN_P95_MS  95th percentile of the time from a streamed request to its first text
    MEARI_LOAD_MAX_GAP_P95_MS          95th percentile of the time between two texts of a stream
    MEARI_LOAD_MIN_TOKENS_PER_SECOND   mean tokens/s of a stream

Refused requests (429) have their own row and do not count as failures. Their users wait for the time in Retry-After.
"""

import logging
import os
import random
import sys
import time
from collections.abc import Iterator

import gevent
from locust import FastHttpUser, LoadTestShape, between, constant, events, task
from locust.contrib.fasthttp import FAILURE_EXCEPTIONS, ResponseContextManager
from locust.env import Environment
from locust.runners import WorkerRunner
from locust.stats import CSV_STATS_INTERVAL_SEC

from loadtests.prompts import PROMPTS, TEXTS
from loadtests.settings import SettingsError, UserKind, check_target, read_settings
from loadtests.shapes import users_at
from loadtests.stream import StreamBroken, StreamTimes, read_stream
from loadtests.thresholds import (
    FIRST_TOKEN,
    GAP,
    REFUSED,
    STREAM,
    TOKENS,
    TOKENS_PER_SECOND,
    broken_thresholds,
)

SETTINGS = read_settings(os.environ)
MAX_PAUSE_SECONDS = 5.0
OK = 200
TOO_MANY_REQUESTS = 429

log = logging.getLogger("loadtests")
choose = random.Random(SETTINGS.seed)  # noqa: S311  (the choice of sentences need not be secure)


def request_body(fields: dict[str, object]) -> dict[str, object]:
    """Return the fields, with the model if one is set."""
    return fields if SETTINGS.model is None else {**fields, "model": SETTINGS.model}


class MeariUser(FastHttpUser):
    """Base class of the users; handles refused requests."""

    abstract = True
    wait_time = between(0.0, 0.2)
    network_timeout = 120.0
    connection_timeout = 10.0

    def ask(self, path: str, body: dict[str, object]) -> None:
        """Send one request and read the whole response."""
        with self.client.post(path, json=request_body(body), catch_response=True) as response:
            self.note_refusal(response)
            if response.status_code == OK:
                usage = response.json()["usage"]
                self.fire(TOKENS, usage.get("generated_tokens") or usage.get("scored_tokens"))

    def fire(self, name: str, value: float | None) -> None:
        """Add one value to a separate row; Locust calls every value a response time."""
        if value is not None:
            self.environment.events.request.fire(
                request_type=STREAM,
                name=name,
                response_time=value,
                response_length=0,
                exception=None,
                context={},
            )

    def note_refusal(self, response: ResponseContextManager) -> None:
        """Move a refused request to its own row and wait for the time that the server asks for."""
        if response.status_code != TOO_MANY_REQUESTS:
            return
        response.request_meta["name"] = REFUSED
        response.success()
        gevent.sleep(pause_seconds(response))


def pause_seconds(response: ResponseContextManager) -> float:
    """Return the seconds in `Retry-After`, at most MAX_PAUSE_SECONDS; 1 if the header is missing or not a number."""
    text = str(response.headers.get("Retry-After", "")) if response.headers else ""
    return min(float(text), MAX_PAUSE_SECONDS) if text.isdecimal() else 1.0


class GenerateUser(MeariUser):
    """User that generates texts without streaming."""

    weight = 1

    @task
    def generate(self) -> None:
        """Generate one continuation of a sentence."""
        body: dict[str, object] = {"prompt": choose.choice(PROMPTS), "max_tokens": SETTINGS.max_tokens}
        self.ask("/generate", body)


class StreamUser(MeariUser):
    """User that generates texts as streams."""

    weight = 2

    @task
    def generate_streamed(self) -> None:
        """Generate one streamed continuation; its response time ends with the last event."""
        body = {"prompt": choose.choice(PROMPTS), "max_tokens": SETTINGS.max_tokens, "stream": True}
        started = time.perf_counter()
        with self.client.post(
            "/generate", json=request_body(body), name="/generate (stream)", stream=True, catch_response=True
        ) as response:
            if response.status_code == OK:
                self._read(response, started)
            self.note_refusal(response)

    def _read(self, response: ResponseContextManager, started: float) -> None:
        try:
            times = read_stream(lines_of(response), started, time.perf_counter)
        except (StreamBroken, *FAILURE_EXCEPTIONS) as error:
            response.failure(error)
        else:
            self._fire_rows(times)
        response.request_meta["response_time"] = (time.perf_counter() - started) * 1000

    def _fire_rows(self, times: StreamTimes) -> None:
        self.fire(FIRST_TOKEN, times.first_token_ms)
        for gap_ms in times.gaps_ms:
            self.fire(GAP, gap_ms)
        self.fire(TOKENS_PER_SECOND, times.tokens_per_second)
        self.fire(TOKENS, times.num_tokens)


def lines_of(response: ResponseContextManager) -> Iterator[bytes]:
    """Yield each line of a body as soon as it arrives."""
    while line := response.stream.readline(b"\n"):
        yield line


class ScoreUser(MeariUser):
    """User that scores texts."""

    weight = 1
    wait_time = constant(0.1)

    @task(2)
    def score_one(self) -> None:
        """Score one text, with figures for each token."""
        self.ask("/score", {"text": choose.choice(TEXTS), "tokens": True})

    @task(1)
    def score_many(self) -> None:
        """Score several texts in one request; some share prefixes."""
        self.ask("/score", {"texts": list(TEXTS)})


KINDS = {UserKind.GENERATE: GenerateUser, UserKind.STREAM: StreamUser, UserKind.SCORE: ScoreUser}
for kind in UserKind:
    KINDS[kind].abstract = kind not in SETTINGS.kinds

if SETTINGS.shapes:  # Locust takes any such class in place of --users and --run-time

    class Load(LoadTestShape):
        """The shapes of the settings."""

        def tick(self) -> tuple[int, float] | None:
            """Return the number of users now and how many may start in a second; None at the end."""
            users = users_at(SETTINGS.shapes, self.get_run_time(), SETTINGS.seconds, SETTINGS.users)
            return None if users is None else (users, max(SETTINGS.spawn_rate, SETTINGS.users / SETTINGS.seconds))


@events.init.add_listener
def refuse_other_machines(environment: Environment, **_: object) -> None:
    """End the run if the target is another machine and none is allowed; workers hear of it at the start of the test."""
    if not isinstance(environment.runner, WorkerRunner):
        _check(environment)


@events.test_start.add_listener
def begin(environment: Environment, **_: object) -> None:
    """Check the target again, which Locust's web page can change, and let workers make different choices."""
    _check(environment)
    if isinstance(environment.runner, WorkerRunner):
        choose.seed(f"{SETTINGS.seed} {environment.runner.worker_index}")


def _check(environment: Environment) -> None:
    try:
        check_target(environment.host or "", SETTINGS)
    except SettingsError as error:
        sys.exit(f"loadtests: {error}")


@events.quitting.add_listener
def judge(environment: Environment, **_: object) -> None:
    """Wait until Locust has written its last CSV rows, then set the exit code from the thresholds."""
    if isinstance(environment.runner, WorkerRunner):  # it has seen only its own part
        return
    gevent.sleep(CSV_STATS_INTERVAL_SEC + 0.5)
    broken = broken_thresholds(environment.stats, SETTINGS.thresholds)
    for line in broken:
        log.error("threshold broken: %s", line)
    environment.process_exit_code = 1 if broken else 0
