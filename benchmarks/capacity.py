"""Capacity: what a core does, and what so many requests a second need: `python -m benchmarks.capacity --help`.

Input: the measured figures in docs/benchmarks/capacity.json: of models under loads, which `--measure` takes anew, and
of the balancer, the metrics and the answers, from the drill with replicas. Output: the tables of docs/capacity.md, each
between its marks. Must not know: how a load is put on a server.

All figures of cost are CPU-seconds of the service's processes, not time by the clock. `Assumptions` holds what was not
measured: prices, the size of a replica, limits of other programs.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from benchmarks.serving.machine import describe
from benchmarks.serving.plan import BenchmarkPlan, Load, LoadKind, Round
from benchmarks.serving.results import Measurement, Results, results_from_json

DOCS: Final = Path(__file__).parents[1] / "docs"
FIGURES: Final = DOCS / "benchmarks" / "capacity.json"
PAGE: Final = DOCS / "capacity.md"
RATES: Final = (100, 10_000, 1_000_000)
REFERENCE: Final = "lstm-int8"
MODELS: Final = (
    *("lstm-int8", "lstm-fp32", "gru-fp32", "esn-fp32"),
    *("shakespeare-lstm", "shakespeare-gru", "shakespeare-esn", "nsmc-lstm"),
)
WHOLE, STREAM, SCORES = Load(LoadKind.WHOLE, 64), Load(LoadKind.STREAM, 64), Load(LoadKind.SCORE_LIST, 4)
MEASURED: Final = (Load(LoadKind.WHOLE, 1), WHOLE, STREAM, SCORES)
LOADS: Final = tuple(load.name for load in MEASURED)
SECONDS: Final = 3.0  # of a load
SECONDS_A_MONTH: Final = 730 * 3600


@dataclass(frozen=True)
class LoadFigures:
    """One model under one load.

    tokens_per_cpu_second   written or scored, for a CPU-second of all processes of the service
    cpu_ms_a_request        of the same
    answer_ms               median time of an answer under this load
    bytes_a_request         of the answer, heads included
    """

    model: str
    load: str
    tokens_per_cpu_second: float
    cpu_ms_a_request: float
    answer_ms: float
    bytes_a_request: float


@dataclass(frozen=True)
class Assumptions:
    """What the tables assume beside the measured figures; each may be changed on the command line."""

    cpus_a_replica: int = 4
    use: float = 0.7  # of the CPUs, so that peaks and the loss of a replica find room
    dollars_a_cpu_hour: float = 0.04
    proxy_cpus: int = 8  # of one balancer
    proxy_connections: int = 50_000
    series_of_prometheus: int = 10_000_000
    gigabits_of_registry: float = 10.0  # from which replicas fetch bundles
    minutes_of_rollout: float = 5.0  # in which every replica should have a new bundle


@dataclass(frozen=True)
class Figures:
    """All measured figures: of models under loads, of the balancer, the metrics and the bundles.

    about       by model: machine, day, and how quiet it was
    parameters  by model: number of its weights
    """

    about: Mapping[str, str]
    parameters: Mapping[str, int]
    loads: tuple[LoadFigures, ...]
    proxy_cpu_us_a_request: float
    series_a_replica: int
    bundles_mb: float

    def find(self, model: str, load: str) -> LoadFigures | None:
        """Return the figures of a model under a load, None if it was not measured."""
        return next((each for each in self.loads if (each.model, each.load) == (model, load)), None)


def read_figures(path: Path, results: Path | None = None) -> Figures:
    """Read all measured figures; those of models under loads from the results of `make bench`, if they are given."""
    found: dict[str, Any] = json.loads(path.read_text("utf-8"))
    if results is not None:
        found = _with_costs({**found, "about": {}, "loads": []}, results_from_json(results.read_text("utf-8")))
    del found["bytes_an_answer"]
    return Figures(**{**found, "loads": tuple(LoadFigures(**each) for each in found["loads"])})


def measure(path: Path, models: Sequence[str], seconds: float, loads: Sequence[Load] = MEASURED) -> None:
    """Put the loads on the service with each model, and keep what they cost in place of that model's figures.

    Raises SystemExit where a load could not be measured; the models before it are in the file.
    """
    from benchmarks.serving.__main__ import WORK, bundle_of  # they need torch
    from benchmarks.serving.benchmark import Benchmark, granted_cpus

    WORK.mkdir(parents=True, exist_ok=True)
    for model in models:
        results = Results(about={**describe(), "date": f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC"})
        turn = Round(model, ("meari",), tuple(loads))
        benchmark = Benchmark(_plan(turn, seconds), results, bundle_of, WORK, granted_cpus(), math.inf)
        bundle = bundle_of(model)
        benchmark.measure("meari", turn, bundle)
        missing = {load.name for load in loads} - {each.load for each in results.measurements if _is_whole(each)}
        if missing:
            raise SystemExit(f"{model}: not measured: {', '.join(sorted(missing))}; {results.failures or 'too slow'}")
        found = json.loads(path.read_text("utf-8"))
        manifest = json.loads((bundle / "manifest.json").read_text("utf-8"))
        found["parameters"][model] = manifest["sizes"]["parameters"]
        path.write_text(json.dumps(_with_costs(found, results), indent=1, ensure_ascii=False) + "\n", "utf-8")


def _plan(turn: Round, seconds: float) -> BenchmarkPlan:
    return BenchmarkPlan(
        rounds=(turn,),
        closed_seconds=seconds,
        warmup_seconds=0.3 * seconds,
        open_seconds=0.0,
        drain_seconds=6.0,
        raw_seconds=0.0,
        raw_batches=(),
        flat_seconds=0.0,
        budget_seconds=math.inf,
        probe_seconds=0.0,
    )


def _with_costs(found: dict[str, Any], results: Results) -> dict[str, Any]:
    """Return the figures with those of the models in the results, and where and when they were measured."""
    measured = [each for each in results.measurements if each.server == "meari" and each.load in LOADS]
    models = {each.model for each in measured}
    about, others = results.about, max((each.other_cpu_share for each in measured), default=0.0)
    where = f"{about['cpu']}, {about['num_cpus']} CPUs, {about['date'][:10]}"
    where += f"; other processes took at most {others:.0%} of a CPU"
    costs = (_load_figures(each, found["bytes_an_answer"]) for each in measured)
    return {
        **found,
        "about": found["about"] | dict.fromkeys(sorted(models), where),
        "loads": [each for each in found["loads"] if each["model"] not in models]
        + [asdict(each) for each in costs if each is not None],
    }


def _load_figures(measured: Measurement, sizes: Mapping[str, float]) -> LoadFigures | None:
    if not _is_whole(measured):
        return None
    assert measured.cpu_seconds_per_1000 is not None
    assert measured.whole_ms is not None
    tokens_a_request = measured.tokens_per_second / measured.answers_per_second
    return LoadFigures(
        measured.model,
        measured.load,
        round(1000 / measured.cpu_seconds_per_1000, 1),
        round(measured.cpu_seconds_per_1000 * tokens_a_request, 4),
        measured.whole_ms.p50,
        sizes[measured.kind],
    )


def _is_whole(measured: Measurement) -> bool:
    return bool(measured.cpu_seconds_per_1000 and measured.whole_ms is not None and measured.answers_per_second)


# ---- arithmetic ----


@dataclass(frozen=True)
class Fleet:
    """What a rate of requests needs."""

    rate: float
    cpus: float
    replicas: int
    dollars_a_month: float
    in_flight: float
    gigabits: float


def fleet_for(rate: float, load: LoadFigures, assumed: Assumptions) -> Fleet:
    """Return what `rate` requests a second need; in flight by Little's law: rate × time of an answer."""
    cpus = rate * load.cpu_ms_a_request / 1000 / assumed.use
    replicas = max(2, math.ceil(cpus / assumed.cpus_a_replica))
    dollars = replicas * assumed.cpus_a_replica * assumed.dollars_a_cpu_hour * SECONDS_A_MONTH / 3600
    gigabits = rate * load.bytes_a_request * 8 / 1e9
    return Fleet(rate, cpus, replicas, dollars, rate * load.answer_ms / 1000, gigabits)


def bottlenecks(rate: float, figures: Figures, fleet: Fleet, assumed: Assumptions) -> dict[str, float]:
    """Return how much of each limit a rate uses, 1 being all of it, for one instance of everything."""
    megabits = figures.bundles_mb * 8 * fleet.replicas
    return {
        "CPU of one balancer": rate * figures.proxy_cpu_us_a_request / 1e6 / (assumed.proxy_cpus * assumed.use),
        "connections of one balancer": fleet.in_flight / assumed.proxy_connections,
        "series of one Prometheus": fleet.replicas * figures.series_a_replica / assumed.series_of_prometheus,
        "a bundle to all replicas": megabits / (assumed.gigabits_of_registry * 1000 * assumed.minutes_of_rollout * 60),
    }


# ---- tables ----


def tables(figures: Figures, assumed: Assumptions) -> dict[str, str]:
    """Return the Markdown of each table by its name."""
    return {
        "a core": _core_table(figures),
        "replicas and cost": _fleet_table(figures, assumed),
        "the next bottleneck": _bottleneck_table(figures, assumed),
        "assumptions": _assumption_table(assumed),
    }


def _table(head: Sequence[str], rows: Iterator[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)])


def _core_table(figures: Figures) -> str:
    def cells(model: str) -> Iterator[str]:
        for load in LOADS:
            found = figures.find(model, load)
            yield "–" if found is None else f"{found.tokens_per_cpu_second:,.0f}"

    def size(model: str) -> str:
        return f"{figures.parameters[model] / 1e6:.1f} M" if model in figures.parameters else "–"

    models = dict.fromkeys(each.model for each in figures.loads)
    head = ("tokens a CPU-second", "parameters", *LOADS)
    table = _table(head, ((f"`{model}`", size(model), *cells(model)) for model in models))
    places: dict[str, list[str]] = {}
    for model in models:
        places.setdefault(figures.about[model], []).append(f"`{model}`")
    return table + "".join(f"\n\n{', '.join(names)}: {where}." for where, names in places.items())


def _fleet_table(figures: Figures, assumed: Assumptions) -> str:
    def rows() -> Iterator[Sequence[str]]:
        for load in (figures.find(REFERENCE, name) for name in LOADS[1:]):
            for rate in RATES if load is not None else ():
                assert load is not None
                fleet = fleet_for(rate, load, assumed)
                yield (
                    f"{load.load}, {load.cpu_ms_a_request:.2f} ms",
                    f"{rate:,}",
                    _rounded(fleet.cpus),
                    f"{fleet.replicas:,}",
                    _rounded(fleet.dollars_a_month),
                    _rounded(fleet.in_flight),
                    _rounded(fleet.gigabits),
                )

    head = (
        "load, CPU a request",
        "requests/s",
        "CPUs",
        "replicas",
        "$ a month",
        "requests in flight",
        "Gbit/s of answers",
    )
    return _table(head, rows())


def _bottleneck_table(figures: Figures, assumed: Assumptions) -> str:
    load = figures.find(REFERENCE, WHOLE.name)
    assert load is not None, "the benchmark's main load"
    used = {rate: bottlenecks(rate, figures, fleet_for(rate, load, assumed), assumed) for rate in RATES}

    def rows() -> Iterator[Sequence[str]]:
        for name in used[RATES[0]]:
            full = _rate_where(name, figures, load, assumed)
            yield (name, *(f"{_rounded(100 * used[rate][name])} %" for rate in RATES), f"{_rounded(full)} requests/s")

    return _table(("limit of one", *(f"used at {rate:,}/s" for rate in RATES), "full at"), rows())


def _rate_where(name: str, figures: Figures, load: LoadFigures, assumed: Assumptions) -> float:
    """Return the rate at which a limit is all used; all grow in proportion to the rate once there are many replicas."""
    rate = 1e9
    return rate / bottlenecks(rate, figures, fleet_for(rate, load, assumed), assumed)[name]


def _assumption_table(assumed: Assumptions) -> str:
    rows = ((f"`--{name.replace('_', '-')}`", f"{value:,}") for name, value in asdict(assumed).items())
    return _table(("option", "assumed"), rows)


def _rounded(value: float) -> str:
    """Return three digits."""
    if value == 0:
        return "0"
    digits = 2 - math.floor(math.log10(abs(value)))
    return f"{round(value, digits):,.{max(0, digits)}f}"


def with_tables(page: str, made: Mapping[str, str]) -> str:
    """Return the page with each table between its marks."""
    for name, table in made.items():
        begin, end = f"<!-- table: {name} -->", "<!-- end of the table -->"
        before, mark, rest = page.partition(begin)
        if not mark or end not in rest:
            raise ValueError(f"docs/capacity.md: got no mark {begin} with an end, expected one")
        page = f"{before}{begin}\n\n{table}\n\n{end}{rest.partition(end)[2]}"
    return page


def _above_zero(kind: type[int | float]) -> Callable[[str], int | float]:
    """Return a reader of finite numbers above zero."""

    def read(text: str) -> int | float:
        value = kind(text)
        if not 0 < value < math.inf:
            raise argparse.ArgumentTypeError(f"got {text}, expected a number above 0")
        return value

    read.__name__ = kind.__name__  # argparse says "invalid int value"
    return read


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the tables, or write them into the page."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.capacity", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--figures", type=Path, default=FIGURES, help="measured figures as JSON")
    parser.add_argument(
        "--results", type=Path, help="results of `make bench` as JSON, in place of the token costs there"
    )
    parser.add_argument("--measure", action="store_true", help="measure the token costs first: a few minutes, all CPUs")
    parser.add_argument("--models", nargs="+", choices=MODELS, default=MODELS, help="to be measured; default all")
    parser.add_argument("--seconds", type=_above_zero(float), default=SECONDS, help=f"of a load; default {SECONDS:g}")
    parser.add_argument("--write", action="store_true", help="write the tables into docs/capacity.md")
    for name, value in asdict(Assumptions()).items():
        kind = _above_zero(type(value))
        parser.add_argument(f"--{name.replace('_', '-')}", type=kind, default=value, help=f"default {value:g}")
    options = vars(parser.parse_args(arguments))
    assumed = Assumptions(**{name: options[name] for name in asdict(Assumptions())})
    if assumed.use > 1:
        parser.error(f"--use: got {assumed.use:g}, expected a share of the CPUs, at most 1")
    if options["measure"]:
        measure(options["figures"], options["models"], options["seconds"])
    try:
        figures = read_figures(options["figures"], options["results"])
    except OSError as error:
        parser.error(f"{error.filename}: {error.strerror}")
    except (ValueError, KeyError, TypeError) as error:
        parser.error(f"{options['results'] or options['figures']}: got no figures of capacity ({error!r})")
    if figures.find(REFERENCE, WHOLE.name) is None:
        parser.error(f"{options['results'] or options['figures']}: got no {REFERENCE} under {WHOLE.name}")
    made = tables(figures, assumed)
    if options["write"]:
        PAGE.write_text(with_tables(PAGE.read_text("utf-8"), made), "utf-8")
    else:
        sys.stdout.write("\n\n".join(f"{name}\n\n{table}" for name, table in made.items()) + "\n")


if __name__ == "__main__":
    main()
