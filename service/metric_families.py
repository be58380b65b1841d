"""The metrics by name, type, labels and bounds. docs/metrics.md describes each in full.

Input: figures. Output: Prometheus' registry. Must not know: the engine's loop, requests.

`vllm:` stands before what vLLM measures too: the same names, types, units and `model_name` label, so that dashboards,
alerts and autoscalers made for it work here. The bounds are our own: a token takes microseconds here. `meari_` stands
before everything else.
"""

from __future__ import annotations

import enum
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Final, Literal

import prometheus_client
from prometheus_client import CollectorRegistry, Counter, Gauge
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from meari.errors import Bound
from meari.runtime.engine.stats import GAP_SECONDS, HistogramCounts
from meari.service.workers import Board

__all__ = [
    "DECODE",
    "E2E",
    "FIRST_TOKEN",
    "GENERATION",
    "HISTOGRAMS",
    "INFERENCE",
    "PREFILL",
    "PROMPT",
    "QUEUE",
    "Families",
    "Histogram",
    "HostFamilies",
    "Reason",
]

REQUEST_SECONDS: Final = (
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0,
)  # fmt: skip
ROWS: Final = (1, 2, 4, 8, 16, 32, 64, 128, 256)


SECONDS: Final = (
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0,
)  # fmt: skip
TOKENS: Final = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000, 100_000, 1_000_000)
E2E: Final = "e2e_request_latency_seconds"
QUEUE: Final = "request_queue_time_seconds"
FIRST_TOKEN: Final = "time_to_first_token_seconds"  # noqa: S105 (the name of a metric)
PREFILL: Final = "request_prefill_time_seconds"
DECODE: Final = "request_decode_time_seconds"
INFERENCE: Final = "request_inference_time_seconds"
PROMPT: Final = "request_prompt_tokens"
GENERATION: Final = "request_generation_tokens"
HISTOGRAMS: Final[dict[str, tuple[str, tuple[float, ...]]]] = {
    E2E: ("From the request's head to its last token", SECONDS),
    QUEUE: ("From queueing to the first slot", SECONDS),
    FIRST_TOKEN: ("From the request's head to its first token", SECONDS),
    PREFILL: ("From the first slot to the first token", SECONDS),
    DECODE: ("From the first token to the last one", SECONDS),
    INFERENCE: ("From the first slot to the end", SECONDS),
    PROMPT: ("Tokens of a request's prompt, or of its context and texts", TOKENS),
    GENERATION: ("Tokens of a choice", TOKENS),
}


class Reason(enum.StrEnum):
    """Reason why a choice or a scored text ended: vLLM's words, and two that it does not have."""

    STOP = "stop"  # the end token, or a stop string
    LENGTH = "length"
    TIMEOUT = "timeout"
    SCORED = "scored"
    ABORT = "abort"  # the client has gone, or the service had to end
    ERROR = "error"


class Histogram(prometheus_client.Histogram):
    """A histogram that takes counts made elsewhere."""

    def add(self, counts: HistogramCounts) -> None:
        """Add counts that were made with this histogram's bounds."""
        if not any(counts.counts):
            return
        self._sum.inc(counts.total)
        for bucket, count in zip(self._buckets, counts.counts, strict=True):
            if count:
                bucket.inc(count)


class Families:
    """All metrics, in one registry."""

    def __init__(self) -> None:
        own = self.registry = CollectorRegistry()
        self._engine(own)
        self._edge(own)
        self._worker(own)

    def _engine(self, own: CollectorRegistry) -> None:
        self.requests_running = _vllm_gauge("num_requests_running", "Requests that hold a slot", own)
        self.requests_waiting = _vllm_gauge("num_requests_waiting", "Requests that wait for their first slot", own)
        self.generation_tokens = _vllm_counter("generation_tokens", "Tokens written, of all choices", own)
        self.prompt_tokens = _vllm_counter("prompt_tokens", "Tokens of prompts, contexts and scored texts", own)
        self.prefix_cache_queries = _vllm_counter("prefix_cache_queries", "Tokens looked for in the prefix cache", own)
        self.prefix_cache_hits = _vllm_counter("prefix_cache_hits", "Tokens found in the prefix cache", own)
        self.success = Counter(
            "vllm:request_success",
            "Choices and texts by why they ended",
            ["model_name", "finished_reason"],
            registry=own,
        )
        self.token_gaps = _vllm_histogram(
            "inter_token_latency_seconds", "From one token of a choice to the next", GAP_SECONDS, own
        )
        self.of_requests = {
            name: _vllm_histogram(name, text, bounds, own) for name, (text, bounds) in HISTOGRAMS.items()
        }
        self.generated = _counter("generated_tokens", "Tokens sampled, those of dropped beams included", own)
        self.computed = _counter("computed_tokens", "Tokens run through the cell, forced and sampled", own)
        self.output_rows = _counter("output_rows", "Distributions computed", own)
        self.steps = _counter("steps", "Runs of the graph", own)
        self.cache_queries = _counter("cache_queries", "Requests that looked for their prefix in the cache", own)
        self.cache_hits = _counter("cache_hits", "Requests that found at least a token there", own)
        self.cached = _counter("cached_tokens", "Tokens taken from the prefix cache, not run", own)
        self.cache_bytes = _gauge("cache_bytes", "What the prefix cache holds", own)
        self.running = _gauge("running_sequences", "Sequences that hold a row of a batch", own)
        self.waiting = _gauge("waiting_requests", "As vllm:num_requests_waiting", own)
        self.waiting_tokens = _gauge("waiting_tokens", "Tokens that those may need", own)
        self.slots = _gauge("slots", "Sequences that may hold a row at most", own)
        self.step_rows = Histogram(
            "meari_step_rows",
            "Mean number of sequences in a step, between two looks at the engine",
            ["model"],
            buckets=ROWS,
            registry=own,
        )

    def _edge(self, own: CollectorRegistry) -> None:
        self.requests = Counter("meari_requests", "Requests answered", ["route", "status"], registry=own)
        self.refusals = Counter(
            "meari_refusals", "Requests refused with 429 by the bound they met", ["model", "reason"], registry=own
        )
        for bound in Bound:
            self.refusals.labels("", bound)
        self.limited = Counter(
            "meari_limited_requests",
            "Requests refused with 429 by a limit of a key or an address",
            ["limit"],
            registry=own,
        )
        for limit in ("tokens", "requests", "wrong_keys"):
            self.limited.labels(limit)
        self.redis_failures = Counter("meari_redis_failures", "Questions that Redis did not answer", registry=own)
        self.seconds = Histogram(
            "meari_request_seconds",
            "From the request's head to the last byte of its answer",
            ["route", "model"],
            buckets=REQUEST_SECONDS,
            registry=own,
        )
        self.scored = _counter("scored_tokens", "Log-probabilities reported to clients", own)

    def _worker(self, own: CollectorRegistry) -> None:
        self.failed_bundles = _worker_gauge("failed_bundles", "Bundles that could not be loaded", own, "livemax")
        self.bundle_failed = Gauge(
            "meari_bundle_failed",
            "1 while a bundle cannot be loaded",
            ["bundle"],
            registry=own,
            multiprocess_mode="livemax",
        )
        self.in_flight = _worker_gauge("requests_in_flight", "Requests from admission to the end of the answer", own)
        self.in_flight_bytes = _worker_gauge("inflight_bytes", "Bytes that requests in flight may come to hold", own)
        self.memory_bytes = _worker_gauge("resident_memory_bytes", "Resident memory of the worker processes", own)
        self.cpu_seconds = Counter("meari_cpu_seconds", "CPU time of the worker processes", registry=own)

    def begin(self, model: str) -> None:
        """Make every metric of a model appear at 0, before anything has happened."""
        for family in (
            self.requests_running, self.requests_waiting, self.generation_tokens, self.prompt_tokens,
            self.prefix_cache_queries, self.prefix_cache_hits, self.token_gaps, *self.of_requests.values(),
            self.generated, self.computed, self.output_rows, self.steps, self.cache_queries, self.cache_hits,
            self.cached, self.cache_bytes, self.running, self.waiting, self.waiting_tokens, self.slots, self.step_rows,
            self.scored,
        ):  # fmt: skip
            family.labels(model)
        for reason in Reason:
            self.success.labels(model, reason.value)
        for bound in (Bound.QUEUE, Bound.BYTES):  # the others are met before the model is known
            self.refusals.labels(model, bound)

    @cached_property
    def certificate_expiry(self) -> Gauge:
        """Make the gauge when it is first set: a service without TLS has none, and a 0 would be a date."""
        return _worker_gauge(
            "tls_certificate_expiry_timestamp_seconds",
            "When the first certificate of MEARI_TLS_CERTIFICATE expires, in Unix time",
            self.registry,
            "livemin",
        )


class HostFamilies(Collector):
    """The counts of the host's workers, as any of them reads them from the board."""

    def __init__(self, board: Board) -> None:
        self._board = board

    def collect(self) -> Iterator[Metric]:
        """Yield every metric."""
        host = self._board.host()
        for name, text, value in (
            ("workers", "Worker processes that there should be", host.expected),
            ("ready_workers", "Worker processes that take requests", 0 if host.is_draining else host.ready),
            ("loading_workers", "Worker processes that load their bundles", host.loading),
            ("failed_workers", "Worker processes that could not load what they need to take requests", host.failed),
            ("draining_workers", "Worker processes that finish their last requests", host.draining),
        ):
            yield GaugeMetricFamily(f"meari_{name}", text, value)
        yield CounterMetricFamily("meari_worker_starts", "Worker processes started", host.starts)
        yield CounterMetricFamily("meari_worker_deaths", "Worker processes that ended by themselves", host.deaths)


def _vllm_counter(name: str, text: str, registry: CollectorRegistry) -> Counter:
    return Counter(f"vllm:{name}", text, ["model_name"], registry=registry)


def _vllm_gauge(name: str, text: str, registry: CollectorRegistry) -> Gauge:
    return Gauge(f"vllm:{name}", text, ["model_name"], registry=registry, multiprocess_mode="livesum")


def _vllm_histogram(name: str, text: str, bounds: Sequence[float], registry: CollectorRegistry) -> Histogram:
    return Histogram(f"vllm:{name}", text, ["model_name"], buckets=bounds, registry=registry)


def _counter(name: str, text: str, registry: CollectorRegistry) -> Counter:
    return Counter(f"meari_{name}", text, ["model"], registry=registry)


def _gauge(name: str, text: str, registry: CollectorRegistry) -> Gauge:
    return Gauge(f"meari_{name}", text, ["model"], registry=registry, multiprocess_mode="livesum")


def _worker_gauge(
    name: str, text: str, registry: CollectorRegistry, mode: Literal["livesum", "livemax", "livemin"] = "livesum"
) -> Gauge:
    return Gauge(f"meari_{name}", text, registry=registry, multiprocess_mode=mode)
