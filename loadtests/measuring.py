"""Measure loads one after another in one run of Locust.

Input: settings, the target's URL. Output: a function from a number of users to a `Step`. Must not know: the search.

Importing this module replaces the sockets of the process by gevent's. As a master the process waits for its workers,
whose figures come with a delay of up to three seconds.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import gevent
from locust import User, events
from locust.env import Environment
from locust.runners import MasterRunner, Runner

from loadtests.knee import WARMUP_SHARE, Step
from loadtests.locustfile import KINDS
from loadtests.settings import LoadSettings, Role
from loadtests.thresholds import POST, REFUSED, STREAM, TOKENS, broken_thresholds

MAX_WAIT_SECONDS = 300.0  # for workers


@contextmanager
def running_locust(settings: LoadSettings, url: str) -> Iterator[Callable[[int], Step]]:
    """Run Locust until the block ends, and yield what measures a load."""
    classes: list[type[User]] = [KINDS[kind] for kind in sorted(settings.kinds)]
    environment = Environment(user_classes=classes, host=url, events=events, stop_timeout=30)
    if settings.role is Role.MASTER:
        runner: Runner = environment.create_master_runner("*", settings.master_port)
    else:
        runner = environment.create_local_runner()
    events.init.fire(environment=environment, runner=runner, web_ui=None)  # type: ignore[no-untyped-call]
    try:
        if isinstance(runner, MasterRunner):
            _await_workers(runner, settings.num_workers)
        yield lambda users: _measure(environment, runner, settings, users)
    finally:
        runner.quit()


def _await_workers(runner: MasterRunner, num_workers: int) -> None:
    until = time.monotonic() + MAX_WAIT_SECONDS
    while runner.worker_count < num_workers:
        if time.monotonic() > until:
            raise SystemExit(f"loadtests: {runner.worker_count} workers came, expected {num_workers}")
        gevent.sleep(0.1)


def _measure(environment: Environment, runner: Runner, settings: LoadSettings, users: int) -> Step:
    """Bring the number of users to `users`, let them settle, and measure."""
    runner.start(users, spawn_rate=users)
    while runner.user_count != users:
        gevent.sleep(0.05)
    gevent.sleep(WARMUP_SHARE * settings.seconds)
    environment.stats.reset_all()
    began = time.perf_counter()
    gevent.sleep(settings.seconds)
    seconds = time.perf_counter() - began
    stats = environment.stats
    rows = [row for row in stats.entries.values() if row.method == POST and row.name != REFUSED and row.num_requests]
    return Step(
        users=users,
        requests_per_second=sum(row.num_requests - row.num_failures for row in rows) / seconds,
        tokens_per_second=stats.get(TOKENS, STREAM).total_response_time / seconds,
        p50_ms=max((row.get_response_time_percentile(0.5) for row in rows), default=0.0),
        p95_ms=max((row.get_response_time_percentile(0.95) for row in rows), default=0.0),
        broken=tuple(broken_thresholds(stats, settings.thresholds)),
    )
