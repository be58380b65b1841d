"""Results of a run, as values and as JSON.

Input: exchanges, usage. Output: measurements, percentiles. Must not know: pages.
"""

from __future__ import annotations

import dataclasses
import json
import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from benchmarks.serving.answers import Answers
from benchmarks.serving.driver import LoadResult
from benchmarks.serving.plan import Load

MAX_FIRST_MS, MAX_GAP_MS = 100.0, 50.0  # p95 under a load that counts as goodput
MAX_UNANSWERED = 0.01  # of the answers, likewise
QUIET_SHARE = 0.1  # of one CPU
Usages = Any


@dataclass(frozen=True)
class Spread:
    """Percentiles of some times, in milliseconds, and their number."""

    p50: float
    p95: float
    p99: float
    count: int


def percentile(ordered: list[float], share: float) -> float:
    """Return the value below which that share of the ordered values lies, interpolated."""
    place = share * (len(ordered) - 1)
    low = math.floor(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)


def spread_ms(seconds: Iterable[float]) -> Spread | None:
    """Return percentiles; None without values."""
    ordered = sorted(1000 * value for value in seconds)
    if not ordered:
        return None
    p50, p95, p99 = (round(percentile(ordered, share), 3) for share in (0.50, 0.95, 0.99))
    return Spread(p50, p95, p99, len(ordered))


def overlap_share(begin: float, end: float, window_begin: float, window_end: float) -> float:
    """Return the share of [begin, end] that lies in the window."""
    if end <= begin:
        return float(window_begin <= begin < window_end)
    return max(0.0, min(end, window_end) - max(begin, window_begin)) / (end - begin)


@dataclass(frozen=True)
class Inside:
    """Figures of `raw` or `engine`: `processes` of them at once, each with `batch` rows.

    tokens_per_second of all processes together; tokens_per_cpu_second the mean over processes; step_ms and its parts
    of raw alone
    """

    what: str
    model: str
    processes: int
    batch: int
    tokens_per_second: float
    tokens_per_cpu_second: float
    step_ms: float = 0.0
    cell_ms: float = 0.0
    output_ms: float = 0.0


def mean_of(runs: Sequence[Inside]) -> Inside | None:
    """Return the mean figures of runs that have all else in common; None without runs."""
    if not runs:
        return None
    return dataclasses.replace(
        runs[0],
        tokens_per_second=statistics.fmean(run.tokens_per_second for run in runs),
        tokens_per_cpu_second=statistics.fmean(run.tokens_per_cpu_second for run in runs),
        step_ms=statistics.fmean(run.step_ms for run in runs),
        cell_ms=statistics.fmean(run.cell_ms for run in runs),
        output_ms=statistics.fmean(run.output_ms for run in runs),
    )


@dataclass(frozen=True)
class Measurement:
    """Measurement of one load on one server with one bundle.

    tokens_per_second      generated (or scored) tokens within the window; an answer's tokens lie evenly over its time
    cpu_seconds_per_1000   of all the server's processes, for 1,000 of those tokens
    memory_mb              sum of PSS at the end of the window, the load still on
    offered_per_second     requests, of an open load
    num_late               answers that were not complete when the load had ended; their waiting so far counts as theirs
    driver_cpu_share       of one CPU, used by the driver itself within the window
    other_cpu_share        of one CPU, used by neither server nor driver: a quiet machine has next to nothing
    raw                    the bare loop just before and after the load, the mean of both: a machine that is shared is
                           not as fast a minute later
    """

    server: str
    model: str
    load: str
    kind: str
    clients: int
    share: float
    seconds: float
    tokens_per_second: float
    answers_per_second: float
    cpu_seconds_per_1000: float | None
    memory_mb: float
    driver_cpu_share: float
    other_cpu_share: float
    offered_per_second: float
    num_answers: int
    num_refused: int
    num_failed: int
    num_late: int
    first_ms: Spread | None
    gap_ms: Spread | None
    whole_ms: Spread | None
    refusal_ms: Spread | None
    problems: tuple[str, ...] = ()
    raw: Inside | None = None

    @property
    def is_quick(self) -> bool:
        """True where tokens came as fast as a reader wants them, and hardly any request went without an answer."""
        if self.first_ms is None or self.gap_ms is None:
            return False
        answered = self.num_refused + self.num_failed <= MAX_UNANSWERED * self.num_answers
        return answered and self.first_ms.p95 <= MAX_FIRST_MS and self.gap_ms.p95 <= MAX_GAP_MS

    @property
    def tokens_per_cpu_second(self) -> float | None:
        """Tokens a CPU-second of all the server's processes."""
        return 1000 / self.cpu_seconds_per_1000 if self.cpu_seconds_per_1000 else None

    @property
    def share_of_raw(self) -> float | None:
        """Tokens a CPU-second, against those of the bare loop at the same time."""
        ours = self.tokens_per_cpu_second
        return ours / self.raw.tokens_per_cpu_second if ours and self.raw is not None else None


@dataclass
class Results:
    """All results of one run, growing while it runs."""

    about: dict[str, Any] = field(default_factory=dict)
    inside: list[Inside] = field(default_factory=list)
    measurements: list[Measurement] = field(default_factory=list)
    ready_seconds: dict[str, float] = field(default_factory=dict)  # "server / model"
    failures: dict[str, str] = field(default_factory=dict)  # "server / model", or a probe's name
    probes: dict[str, dict[str, Any]] = field(default_factory=dict)

    @property
    def other_cpu_share(self) -> float:
        """Share of one CPU that other processes took in the mean while loads were on."""
        shares = [measured.other_cpu_share for measured in self.measurements]
        return sum(shares) / len(shares) if shares else 0.0

    @property
    def is_quiet(self) -> bool:
        """False where other processes took so much that no target can be judged."""
        return self.other_cpu_share < QUIET_SHARE

    def find(self, server: str, model: str, load: Load) -> Measurement | None:
        """Return the measurement of a load, None if there is none."""
        found = (m for m in self.measurements if (m.server, m.model, m.load) == (server, model, load.name))
        return next(found, None)

    def best_inside(self, what: str, model: str, *, processes: int | None = None) -> Inside | None:
        """Return the batch size with most tokens per CPU-second, with as many processes as there were, or so many."""
        fitting = [i for i in self.inside if (i.what, i.model) == (what, model)]
        wanted = processes or max((inside.processes for inside in fitting), default=0)
        fitting = [inside for inside in fitting if inside.processes == wanted]
        return max(fitting, key=lambda inside: inside.tokens_per_cpu_second, default=None)

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self), ensure_ascii=False, indent=1) + "\n"


def results_from_json(text: str) -> Results:
    """Read what `to_json` wrote."""
    tables = json.loads(text)
    return Results(
        tables["about"],
        [Inside(**entry) for entry in tables["inside"]],
        [_measurement(entry) for entry in tables["measurements"]],
        tables["ready_seconds"],
        tables["failures"],
        tables["probes"],
    )


def _measurement(entry: dict[str, Any]) -> Measurement:
    for name in ("first_ms", "gap_ms", "whole_ms", "refusal_ms"):
        entry[name] = Spread(**entry[name]) if entry[name] else None
    raw = Inside(**entry["raw"]) if entry.get("raw") else None
    return Measurement(**{**entry, "problems": tuple(entry["problems"]), "raw": raw})


def summarise(
    server: str, model: str, load: Load, driven: LoadResult[Usages], answers: Answers, offered_per_second: float
) -> Measurement:
    """Compute the figures of the window. Times of answers are those of answers that lie in it at least in part."""
    seconds = driven.end - driven.begin
    shares = [overlap_share(answer.begin, answer.end, driven.begin, driven.end) for answer in answers.whole]
    tokens = sum(share * answer.tokens for share, answer in zip(shares, answers.whole, strict=True))
    counted = [answer for share, answer in zip(shares, answers.whole, strict=True) if share > 0]
    if load.share:
        counted = answers.whole  # of an open load every arrival counts, however late its answer came
    cpu = driven.last.cpu_seconds - driven.first.cpu_seconds
    other = driven.last.machine_seconds - driven.first.machine_seconds - cpu - driven.driver_cpu_seconds
    return Measurement(
        server=server,
        model=model,
        load=load.name,
        kind=str(load.kind),
        clients=load.clients,
        share=load.share,
        seconds=round(seconds, 2),
        tokens_per_second=round(tokens / seconds, 1),
        answers_per_second=round(sum(shares) / seconds, 2),
        cpu_seconds_per_1000=round(1000 * cpu / tokens, 4) if tokens else None,
        memory_mb=round(driven.last.memory_mb, 1),
        driver_cpu_share=round(driven.driver_cpu_seconds / seconds, 3),
        other_cpu_share=round(max(0.0, other) / seconds, 3),
        offered_per_second=round(offered_per_second, 2),
        num_answers=len(counted),
        num_refused=len(answers.refusal_seconds),
        num_failed=answers.num_failed,
        num_late=len(answers.late),
        first_ms=spread_ms([*(answer.first for answer in counted), *(first for first, _ in answers.late)]),
        gap_ms=spread_ms(gap for answer in counted for gap in answer.gaps),
        whole_ms=spread_ms([*(answer.seconds for answer in counted), *(whole for _, whole in answers.late)]),
        refusal_ms=spread_ms(answers.refusal_seconds),
        problems=answers.problems,
    )
