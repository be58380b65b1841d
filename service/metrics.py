"""What Prometheus is told. Enters: counts and seconds. Leaves: the exposition text. Knows nothing of Flask.

With several workers, prometheus_client keeps the values in files of a shared folder (PROMETHEUS_MULTIPROC_DIR, which
`gunicorn_conf.py` makes and empties), and any worker answers for all. The engines' own counters are plain numbers;
`observe_engine` carries over what was added since it was last called.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector

from service.engine import EngineStats

__all__ = ["CONTENT_TYPE", "Metrics"]

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
FAST_SECONDS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)
NOTHING_DONE: Final = EngineStats(0, 0, 0, 0, 0, 0, 0)
ROWS: Final = (1, 2, 4, 8, 16, 32, 64, 128, 256)


class Metrics:
    """The metrics of one worker; safe from any thread."""

    def __init__(self, multiprocess_folder: Path | None = None) -> None:
        self._folder = multiprocess_folder
        self._lock = threading.Lock()
        self._seen: dict[str, EngineStats] = {}
        own = self._own = CollectorRegistry()
        self.requests = Counter("meari_requests", "Requests answered", ["route", "status"], registry=own)
        self.refusals = Counter("meari_refusals", "Requests refused with 429", ["model"], registry=own)
        self.seconds = Histogram(
            "meari_request_seconds",
            "From the request's head to the last byte of its answer",
            ["route", "model"],
            buckets=FAST_SECONDS,
            registry=own,
        )
        self.first_token_seconds = Histogram(
            "meari_first_token_seconds",
            "From queueing to the first sampled token",
            ["model"],
            buckets=FAST_SECONDS,
            registry=own,
        )
        self.queue_seconds = Histogram(
            "meari_queue_seconds", "From queueing to the first slot", ["model"], buckets=FAST_SECONDS, registry=own
        )
        self._generated = _counter("meari_generated_tokens", "Tokens sampled", own)
        self.scored = _counter("meari_scored_tokens", "Log-probabilities reported by /score", own)
        self._computed = _counter("meari_computed_tokens", "Tokens run through the cell, forced and sampled", own)
        self._output_rows = _counter("meari_output_rows", "Distributions computed", own)
        self._steps = _counter("meari_steps", "Steps of the engine", own)
        self._cache_queries = _counter("meari_cache_queries", "Requests that looked for their prefix in the cache", own)
        self._cache_hits = _counter("meari_cache_hits", "Requests that found at least a token there", own)
        self._cached = _counter("meari_cached_tokens", "Tokens taken from the prefix cache, not run", own)
        self._cache_bytes = _gauge("meari_cache_bytes", "What the prefix cache holds", own)
        self._running = _gauge("meari_running_sequences", "Sequences that hold a slot", own)
        self._waiting = _gauge("meari_waiting_requests", "Requests that wait for a first slot", own)
        self._batch = Histogram(
            "meari_step_rows",
            "Mean number of sequences in a step, observed between two looks at the engine",
            ["model"],
            buckets=ROWS,
            registry=own,
        )

    def observe_engine(self, model: str, read_stats: Callable[[], EngineStats]) -> None:
        """Carry over an engine's counters; they are read under the lock, so that no look is older than one before."""
        with self._lock:
            before, stats = self._seen.get(model, NOTHING_DONE), read_stats()
            self._seen[model] = stats
        if before == stats:
            return
        steps, rows = stats.steps - before.steps, stats.rows - before.rows
        self._steps.labels(model).inc(steps)
        self._computed.labels(model).inc(rows)
        self._output_rows.labels(model).inc(stats.output_rows - before.output_rows)
        self._generated.labels(model).inc(stats.tokens_sampled - before.tokens_sampled)
        self._cache_queries.labels(model).inc(stats.cache_queries - before.cache_queries)
        self._cache_hits.labels(model).inc(stats.cache_hits - before.cache_hits)
        self._cached.labels(model).inc(stats.cached_tokens - before.cached_tokens)
        self._cache_bytes.labels(model).set(stats.cache_bytes)
        self._running.labels(model).set(stats.running)
        self._waiting.labels(model).set(stats.waiting)
        if steps:
            self._batch.labels(model).observe(rows / steps)

    def exposition(self) -> bytes:
        """The text of /metrics, for all workers of this host."""
        if self._folder is None:
            return generate_latest(self._own)
        everyone = CollectorRegistry()
        MultiProcessCollector(everyone, path=str(self._folder))  # type: ignore[no-untyped-call]
        return generate_latest(everyone)


def _counter(name: str, text: str, registry: CollectorRegistry) -> Counter:
    return Counter(name, text, ["model"], registry=registry)


def _gauge(name: str, text: str, registry: CollectorRegistry) -> Gauge:
    return Gauge(name, text, ["model"], registry=registry, multiprocess_mode="livesum")
