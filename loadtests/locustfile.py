"""Simulated users of the HTTP interface: whole answers, streamed answers and scores.

`make load` runs them headless against a running server (HOST, PORT) and writes CSV and HTML into
loadtests/results/.

Input: the server's address and the environment below. Output: rows of figures and an exit code. Must not know: the
service behind the HTTP contract.

    MEARI_LOAD_USERS                   users at once, 8; of four, one generates, two stream, one scores
    MEARI_LOAD_SPAWN_RATE              users started a second, 4
    MEARI_LOAD_SECONDS                 length of the run, 60
    MEARI_LOAD_MODEL                   name of a bundle; the server's default model
    MEARI_LOAD_MAX_TOKENS              tokens of a generation, 64
    MEARI_LOAD_SEED                    of the users' choices, 1
    MEARI_LOAD_ALLOW_REMOTE            1: the target may be another machine than this one

Thresholds. A broken one ends the run with exit code 1; unset ones are not checked:

    MEARI_LOAD_MAX_FAILURE_RATIO       failed requests of all, 0
    MEARI_LOAD_MAX_REFUSED_RATIO       requests refused with 429 of all
    MEARI_LOAD_MAX_P95_MS              95th percentile of each request row
    MEARI_LOAD_MAX_FIRST_TOKEN_P95_MS  95th percentile from a streamed request to its first text
    MEARI_LOAD_MAX_GAP_P95_MS          95th percentile from one text of a stream to the next
    MEARI_LOAD_MIN_TOKENS_PER_SECOND   tokens/s of one stream, on average

A refused request (429) is a row of its own and not a failure; its user retries after the time that the server asked
for.
"""

import logging
import os
import random
import sys
import time
from collections.abc import Iterator

import gevent
from locust import FastHttpUser, between, constant, events, task
from locust.contrib.fasthttp import FAILURE_EXCEPTIONS, ResponseContextManager
from locust.env import Environment
from locust.stats import CSV_STATS_INTERVAL_SEC

from loadtests.prompts import PROMPTS, TEXTS
from loadtests.settings import SettingsError, check_target, read_settings
from loadtests.stream import StreamBroken, StreamTimes, read_stream
from loadtests.thresholds import (
    FIRST_TOKEN,
    GAP,
    REFUSED,
    STREAM,
    TOKENS_PER_SECOND,
    broken_thresholds,
)

SETTINGS = read_settings(os.environ)
MAX_PAUSE_SECONDS = 5.0
OK = 200
TOO_MANY_REQUESTS = 429

log = logging.getLogger("loadtests")
choose = random.Random(SETTINGS.seed)  # noqa: S311  (which sentence a user says is no secret)


def request_body(fields: dict[str, object]) -> dict[str, object]:
    """Return the fields, with the model if one was asked for."""
    return fields if SETTINGS.model is None else {**fields, "model": SETTINGS.model}


class MeariUser(FastHttpUser):
    """Base of all users: the treatment of a refusal."""

    abstract = True
    wait_time = between(0.0, 0.2)
    network_timeout = 120.0
    connection_timeout = 10.0

    def ask(self, path: str, body: dict[str, object]) -> None:
        """Send one request and read the whole answer."""
        with self.client.post(path, json=request_body(body), catch_response=True) as response:
            self.note_refusal(response)

    def note_refusal(self, response: ResponseContextManager) -> None:
        """Move a refused request to its own row, and wait as the server asked."""
        if response.status_code != TOO_MANY_REQUESTS:
            return
        response.request_meta["name"] = REFUSED
        response.success()
        gevent.sleep(pause_seconds(response))


def pause_seconds(response: ResponseContextManager) -> float:
    """Return the pause that `Retry-After` asks for, within reason; one second if it is unusable."""
    text = str(response.headers.get("Retry-After", "")) if response.headers else ""
    return min(float(text), MAX_PAUSE_SECONDS) if text.isdecimal() else 1.0


class GenerateUser(MeariUser):
    """User that asks for a text and waits for all of it."""

    weight = 1

    @task
    def generate(self) -> None:
        """Ask for one continuation of a sentence."""
        body: dict[str, object] = {"prompt": choose.choice(PROMPTS), "max_tokens": SETTINGS.max_tokens}
        self.ask("/generate", body)


class StreamUser(MeariUser):
    """User that reads a text while it is written."""

    weight = 2

    @task
    def generate_streamed(self) -> None:
        """Stream one continuation; its row counts until the last event."""
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
        self._fire(FIRST_TOKEN, times.first_token_ms)
        for gap_ms in times.gaps_ms:
            self._fire(GAP, gap_ms)
        self._fire(TOKENS_PER_SECOND, times.tokens_per_second)

    def _fire(self, name: str, value: float | None) -> None:
        """Add one value to a row of its own; Locust calls every value a response time."""
        if value is not None:
            self.environment.events.request.fire(
                request_type=STREAM,
                name=name,
                response_time=value,
                response_length=0,
                exception=None,
                context={},
            )


def lines_of(response: ResponseContextManager) -> Iterator[bytes]:
    """Yield the lines of a body, each as soon as it has arrived."""
    while line := response.stream.readline(b"\n"):
        yield line


class ScoreUser(MeariUser):
    """User that asks for log-probabilities of texts."""

    weight = 1
    wait_time = constant(0.1)

    @task(2)
    def score_one(self) -> None:
        """Score one text, token by token."""
        self.ask("/score", {"text": choose.choice(TEXTS), "tokens": True})

    @task(1)
    def score_many(self) -> None:
        """Score several texts in one request, which may share prefixes."""
        self.ask("/score", {"texts": list(TEXTS)})


@events.init.add_listener
def refuse_other_machines(environment: Environment, **_: object) -> None:
    """End at once if the target is not this machine."""
    try:
        check_target(environment.host or "", SETTINGS)
    except SettingsError as error:
        sys.exit(f"loadtests: {error}")


@events.test_start.add_listener
def refuse_target_of_the_web_page(environment: Environment, **_: object) -> None:
    """Refuse a target from Locust's web page, which can change it after the start."""
    refuse_other_machines(environment)


@events.quitting.add_listener
def judge(environment: Environment, **_: object) -> None:
    """Turn broken thresholds into the exit code, and leave Locust the time to write its last CSV rows."""
    gevent.sleep(CSV_STATS_INTERVAL_SEC + 0.5)
    broken = broken_thresholds(environment.stats, SETTINGS.thresholds)
    for line in broken:
        log.error("threshold broken: %s", line)
    environment.process_exit_code = 1 if broken else 0
