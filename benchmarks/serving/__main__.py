"""`make bench`: measure meari beside other servers and write docs/benchmarks/.

make bench                       everything, at most 40 minutes
make bench ARGS=--quick          the int8 LSTM under a few loads, at most 5 minutes
make bench ARGS="--only meari,raw --models lstm-int8"
"""

from __future__ import annotations

import argparse
import dataclasses
import shlex
import shutil
import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from benchmarks.serving.benchmark import Benchmark, granted_cpus, say
from benchmarks.serving.machine import describe
from benchmarks.serving.page import write_page
from benchmarks.serving.plan import CHOICES, RANDOM, RELEASED, BenchmarkPlan, full_plan, quick_plan
from benchmarks.serving.probes import Probes
from benchmarks.serving.results import Results
from benchmarks.serving.tables import targets_table
from benchmarks.serving.targets import target_rows

WORK = Path("build/bench")
RELEASES = Path("bundles")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the benchmark."""
    options = parse(arguments)
    plan = chosen(quick_plan() if options.quick else full_plan(), options.only, options.models)
    if options.minutes is not None:
        plan = dataclasses.replace(plan, budget_seconds=60 * options.minutes)
    command = shlex.join(["make", "bench", *([f"ARGS={shlex.join(sys.argv[1:])}"] if sys.argv[1:] else [])])
    results = Results(about={**describe(), "command": command, "date": f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC"})
    WORK.mkdir(parents=True, exist_ok=True)
    begin = time.monotonic()
    benchmark = Benchmark(plan, results, bundle_of, WORK, granted_cpus(), begin + plan.budget_seconds)
    probes = Probes(plan, bundle_of, RELEASES, WORK, benchmark.num_cpus, benchmark.deadline)
    try:
        benchmark.run()
        benchmark.probe(probes, [name for name in probes.by_name() if _is_wanted(name, options)])
    finally:
        results.about["minutes"] = round((time.monotonic() - begin) / 60, 1)
        write_page(results, options.output)
        say(targets_table(target_rows(results)))
        say(f"{results.about['minutes']} minutes; the page is {options.output / 'README.md'}")


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Parse the options of the command line."""
    parser = argparse.ArgumentParser(
        prog="make bench", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="a few loads, at most 5 minutes")
    parser.add_argument("--only", type=_names(CHOICES), default=CHOICES, help=f"of {','.join(CHOICES)}")
    parser.add_argument("--models", type=_names((*RANDOM, *RELEASED)), help=f"of {','.join((*RANDOM, *RELEASED))}")
    parser.add_argument("--minutes", type=float, help="at most; what does not fit is named as not measured")
    parser.add_argument(
        "--output", type=Path, help="folder of the page  [docs/benchmarks; with --quick build/bench/quick]"
    )
    options = parser.parse_args(arguments)
    options.output = options.output or (WORK / "quick" if options.quick else Path("docs/benchmarks"))
    return options


def chosen(plan: BenchmarkPlan, servers: Sequence[str], models: Sequence[str] | None) -> BenchmarkPlan:
    """Return the plan reduced to the requested servers and models; without probes no time is kept for them."""
    rounds = tuple(
        dataclasses.replace(turn, servers=tuple(name for name in turn.servers if name in servers))
        for turn in plan.rounds
        if models is None or turn.model in models
    )
    probe_seconds = plan.probe_seconds if {"probes", "kenlm"} & set(servers) else 0.0
    return dataclasses.replace(plan, rounds=rounds, probe_seconds=probe_seconds)


def _is_wanted(probe: str, options: argparse.Namespace) -> bool:
    return ("kenlm" if probe == "kenlm" else "probes") in options.only


def bundle_of(name: str) -> Path:
    """Return a folder that holds one bundle alone: a random one is made, a released one copied."""
    from benchmarks.serving.bundles import RECIPES, copy_bundle, make_bundle

    alone = WORK / "served" / name
    if name in RECIPES:
        return make_bundle(RECIPES[name], alone)
    if not (alone / name).exists() or _manifest(RELEASES / name) != _manifest(alone / name):
        shutil.rmtree(alone, ignore_errors=True)
        copy_bundle(RELEASES / name, alone)
    return alone / name


def _manifest(folder: Path) -> bytes:
    return (folder / "manifest.json").read_bytes()


def _names(known: Sequence[str]):  # type: ignore[no-untyped-def]
    def parse_names(text: str) -> tuple[str, ...]:
        names = tuple(text.split(","))
        unknown = [name for name in names if name not in known]
        if unknown:
            raise argparse.ArgumentTypeError(f"got {', '.join(unknown)}, expected some of {', '.join(known)}")
        return names

    return parse_names


if __name__ == "__main__":
    main()
