"""The metrics of one worker, and the exposition text for all workers of the host.

Input: the engines' counters, the requests that have ended, the state of the worker. Output: Prometheus' text. Must not
know: Flask. docs/metrics.md describes every metric.

With several workers, prometheus_client keeps the values in files of a shared folder (PROMETHEUS_MULTIPROC_DIR, which
`gunicorn_conf.py` makes and empties), and any worker answers for all. A value there costs a few microseconds, so engine
and requests count in plain numbers, and what was added to those is carried over twice a second and at each scrape.
"""

from __future__ import annotations

import contextlib
import struct
import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.mmap_dict import MmapedDict
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead

from meari.errors import Bound, Overloaded, ScoreTimeout
from meari.runtime.engine import EngineStats, Finish, Generation, Handle, Scoring
from meari.runtime.engine.stats import EMPTY, HistogramCounts
from meari.runtime.engine.stats import Histogram as RequestHistogram
from meari.runtime.machine import resident_bytes
from meari.service.metric_families import (
    DECODE,
    E2E,
    FIRST_TOKEN,
    GENERATION,
    HISTOGRAMS,
    INFERENCE,
    PREFILL,
    PROMPT,
    QUEUE,
    Families,
    HostFamilies,
    Reason,
)
from meari.service.workers import Board

__all__ = ["CONTENT_TYPE", "Metrics", "RequestFigures", "RequestTotals", "WorkerFigures", "fold_metrics"]

REASONS: Final = {
    Finish.END: Reason.STOP,
    Finish.STOP: Reason.STOP,
    Finish.LENGTH: Reason.LENGTH,
    Finish.TIMEOUT: Reason.TIMEOUT,
    Finish.CANCELLED: Reason.ABORT,
    Finish.FAILED: Reason.ERROR,
    None: Reason.ABORT,
}
BROKEN: Final = {Reason.ABORT, Reason.ERROR}  # their durations mean nothing
CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
NOTHING_DONE: Final = EngineStats()
MAX_READS: Final = 100  # of the shared files, while they are exchanged
READ_PAUSE: Final = 0.002
CHANGING: Final = (FileNotFoundError, struct.error)  # a file has gone, or another is only just being made
DEAD: Final = "dead"  # in the place of a process id, for all workers that have ended


@dataclass
class RequestTotals:
    """Figures of the requests of one model.

    tallies  by the names of HISTOGRAMS
    reasons  choices and texts by why they ended
    """

    tallies: dict[str, HistogramCounts] = field(default_factory=dict)
    reasons: dict[Reason, int] = field(default_factory=dict)


class RequestFigures:
    """Counts the requests of one model; safe from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._histograms = {name: RequestHistogram(bounds) for name, (_, bounds) in HISTOGRAMS.items()}
        self._reasons = dict.fromkeys(Reason, 0)

    def note(self, calls: Iterable[Handle], arrived_at: float) -> None:
        """Count the calls of a finished request; a prompt that was scored and continued counts once.

        arrived_at  time of the request's head, on the engine's clock
        """
        everyone = list(calls)
        for call in [call for call in everyone if isinstance(call, Generation)] or everyone:
            values, reasons = list(_values(call, arrived_at)), _reasons(call)
            with self._lock:
                for name, value in values:
                    self._histograms[name].add(value)
                for reason in reasons:
                    self._reasons[reason] += 1

    def read(self) -> RequestTotals:
        """Return the counts so far."""
        with self._lock:
            return RequestTotals(
                {name: histogram.read() for name, histogram in self._histograms.items()}, dict(self._reasons)
            )


def _values(call: Handle, arrived_at: float) -> Iterator[tuple[str, float]]:
    """Yield the name of each histogram and the value to put in."""
    started, first, ended = call.started_at, call.first_token_at, call.ended_at
    is_whole = not BROKEN.intersection(_reasons(call))
    if started is not None:
        yield QUEUE, started - call.submitted_at
    if first is not None:
        yield FIRST_TOKEN, first - arrived_at
        if started is not None:
            yield PREFILL, first - started
    if first is not None or (isinstance(call, Scoring) and is_whole and call.failure is None):
        yield PROMPT, call.num_prompt_tokens
    if ended is None or not is_whole:
        return
    yield E2E, ended - arrived_at
    if started is not None:
        yield INFERENCE, ended - started
    if first is not None:
        yield DECODE, ended - first
    if isinstance(call, Generation):
        for sample in call.samples:
            yield GENERATION, len(sample.token_ids)


def _reasons(call: Handle) -> list[Reason]:
    """Return the reason of each choice, or of each text."""
    if isinstance(call, Generation):
        return [REASONS[sample.finish] for sample in call.samples]
    assert isinstance(call, Scoring)
    if not call.ended or call.cancelled:
        reason = Reason.ABORT
    elif call.failure is None:
        reason = Reason.SCORED
    else:
        reason = Reason.TIMEOUT if isinstance(call.failure, ScoreTimeout) else Reason.ERROR
    return [reason] * call.num_texts


@dataclass(frozen=True)
class WorkerFigures:
    """State of a worker."""

    failed_bundles: frozenset[str]
    requests_in_flight: int
    inflight_bytes: int


class ObservedModel:
    """Figures of one model that have been copied to Prometheus."""

    def __init__(self) -> None:
        self.stats = NOTHING_DONE
        self.requests = RequestFigures()
        self.totals = RequestTotals()


class Metrics:
    """The metrics of one worker; safe from any thread."""

    def __init__(self, board: Board | None = None, multiprocess_folder: Path | None = None) -> None:
        self._board = board or Board.of_one()
        self._folder = multiprocess_folder
        self._lock = threading.Lock()
        self._models: dict[str, ObservedModel] = {}
        self._families = Families()
        self._ever_failed: frozenset[str] = frozenset()
        self._cpu_seconds = 0.0
        self._refused: dict[tuple[Bound, str], int] = {}  # by bound and route, since the last look
        self._refused_lock = threading.Lock()

    # ---- counted at once ----

    @property
    def requests(self) -> Counter:
        """Answers by route and status."""
        return self._families.requests

    @property
    def refusals(self) -> Counter:
        """Answers with 429 by model and bound."""
        return self._families.refusals

    @property
    def limited(self) -> Counter:
        """Answers with 429 by the limit of a key or an address."""
        return self._families.limited

    @property
    def redis_failures(self) -> Counter:
        """Questions that Redis did not answer."""
        return self._families.redis_failures

    @property
    def seconds(self) -> Histogram:
        """Durations of requests by route and model."""
        return self._families.seconds

    @property
    def scored(self) -> Counter:
        """Log-probabilities reported, by model."""
        return self._families.scored

    # ---- counted in plain numbers, copied later ----

    def note_refused(self, bound: Bound, route: str = "") -> None:
        """Count a request that was refused before anything else was done for it. route: "" if its head was not read."""
        with self._refused_lock:
            self._refused[bound, route] = self._refused.get((bound, route), 0) + 1

    def note_request(self, model: str, calls: Iterable[Handle], arrived_at: float) -> None:
        """Count a finished request: its calls of the engine, and when its head arrived, on the engine's clock."""
        self._model(model).requests.note(calls, arrived_at)

    def observe_engines(
        self, served: Collection[str], num_slots: int, read_stats: Callable[[], dict[str, EngineStats]]
    ) -> None:
        """Copy the counters of the models' engines, read under the lock: no reading is older than the one before.

        served      names of the models that are served now
        num_slots   of each of them
        read_stats  by the names of all models that were ever served
        """
        with self._lock:
            for model, stats in read_stats().items():
                seen = self._begun(model)
                before, seen.stats = seen.stats, stats
                totals_before, seen.totals = seen.totals, seen.requests.read()
                self._families.slots.labels(model).set(num_slots if model in served else 0)
                self._carry_requests(model, totals_before, seen.totals)
                if before != stats:
                    self._carry_engine(model, before, stats)

    def observe_worker(self, figures: WorkerFigures) -> None:
        """Copy the worker's state."""
        families = self._families
        families.failed_bundles.set(len(figures.failed_bundles))
        self._ever_failed |= figures.failed_bundles
        for name in self._ever_failed:
            families.bundle_failed.labels(name).set(name in figures.failed_bundles)
        families.in_flight.set(figures.requests_in_flight)
        families.in_flight_bytes.set(figures.inflight_bytes)
        families.memory_bytes.set(resident_bytes())
        self._carry_refusals()
        with self._lock:
            before, self._cpu_seconds = self._cpu_seconds, time.process_time()
            families.cpu_seconds.inc(self._cpu_seconds - before)

    def observe_certificate(self, expires_at: float | None) -> None:
        """Note when the certificate of new connections expires, in Unix seconds; None if that is not known."""
        if expires_at is not None:
            self._families.certificate_expiry.set(expires_at)

    def exposition(self) -> bytes:
        """Return the text of /metrics, for all workers of this host."""
        for _ in range(MAX_READS):
            before = self._board.num_folds
            with contextlib.suppress(*CHANGING):
                text = self._read_all()
                if before % 2 == 0 and self._board.num_folds == before:
                    return text
            time.sleep(READ_PAUSE)
        return self._read_all()

    def _read_all(self) -> bytes:
        everyone = CollectorRegistry()
        everyone.register(HostFamilies(self._board))
        if self._folder is None:
            everyone.register(self._families.registry)
        else:
            MultiProcessCollector(everyone, path=str(self._folder))  # type: ignore[no-untyped-call]
        return generate_latest(everyone)

    def _model(self, name: str) -> ObservedModel:
        with self._lock:
            return self._begun(name)

    def _begun(self, name: str) -> ObservedModel:
        if name not in self._models:
            self._models[name] = ObservedModel()
            self._families.begin(name)
        return self._models[name]

    def _carry_refusals(self) -> None:
        with self._refused_lock:
            refused, self._refused = self._refused, {}
        for (bound, route), count in refused.items():
            self._families.refusals.labels("", bound).inc(count)
            if route:
                self._families.requests.labels(route, str(Overloaded.status)).inc(count)

    def _carry_requests(self, model: str, before: RequestTotals, totals: RequestTotals) -> None:
        families = self._families
        for name, counts in totals.tallies.items():
            added = counts.since(before.tallies.get(name, EMPTY))
            families.of_requests[name].labels(model).add(added)
            if name == PROMPT:
                families.prompt_tokens.labels(model).inc(added.total)
        for reason, count in totals.reasons.items():
            if new := count - before.reasons.get(reason, 0):
                families.success.labels(model, reason.value).inc(new)

    def _carry_engine(self, model: str, before: EngineStats, stats: EngineStats) -> None:
        families = self._families
        steps, rows = stats.steps - before.steps, stats.rows - before.rows
        for counter, added in (
            (families.steps, steps),
            (families.computed, rows),
            (families.output_rows, stats.output_rows - before.output_rows),
            (families.generated, stats.tokens_sampled - before.tokens_sampled),
            (families.generation_tokens, stats.tokens_written - before.tokens_written),
            (families.cache_queries, stats.cache_queries - before.cache_queries),
            (families.cache_hits, stats.cache_hits - before.cache_hits),
            (families.cached, stats.cached_tokens - before.cached_tokens),
            (families.prefix_cache_queries, stats.looked_up_tokens - before.looked_up_tokens),
            (families.prefix_cache_hits, stats.cached_tokens - before.cached_tokens),
        ):
            counter.labels(model).inc(added)
        families.cache_bytes.labels(model).set(stats.cache_bytes)
        families.running.labels(model).set(stats.running)
        families.waiting.labels(model).set(stats.waiting)
        families.waiting_tokens.labels(model).set(stats.waiting_tokens)
        families.requests_running.labels(model).set(stats.requests_running)
        families.requests_waiting.labels(model).set(stats.waiting)
        families.token_gaps.labels(model).add(stats.token_gaps.since(before.token_gaps))
        if steps:
            families.step_rows.labels(model).observe(rows / steps)


def fold_metrics(board: Board, folder: Path, pid: int) -> None:
    """Add the counts of a worker that has ended to those of all that ended before it, and remove its files.

    Called by the master. Readers see the files before or after, never in between (`Board.folding`). Raises OSError.
    """
    mark_process_dead(pid, str(folder))  # type: ignore[no-untyped-call]
    own = {kind: folder / f"{kind}_{pid}.db" for kind in ("counter", "histogram")}
    sums = {kind: folder / f"{kind}_{DEAD}.db" for kind in own}
    made = {kind: _write_sum(sums[kind], own[kind]) for kind in own if own[kind].exists()}
    with board.folding():
        for kind, new in made.items():
            new.replace(sums[kind])
            own[kind].unlink()


def _write_sum(total: Path, added: Path) -> Path:
    """Write the sums of two files of values, of which the first need not exist, to a new file.

    prometheus_client would map the new file into memory: on a full file system that ends the process.
    """
    values: dict[str, float] = {}
    for file in (total, added):
        with contextlib.suppress(*CHANGING, RuntimeError):  # there is none, or its worker died while it made it
            for key, value, *_ in MmapedDict.read_all_values_from_file(file):  # type: ignore[no-untyped-call]
                values[key] = values.get(key, 0.0) + value
    entries = []
    for key, value in values.items():
        name = key.encode()
        room = 8 - (len(name) + 4) % 8  # so that the value begins at a multiple of 8
        entries.append(struct.pack(f"i{len(name)}s{room}sdd", len(name), name, b" " * room, value, 0.0))
    content = b"".join(entries)
    new = total.with_suffix(".new")
    new.write_bytes(struct.pack("ii", 8 + len(content), 0) + content)
    return new
