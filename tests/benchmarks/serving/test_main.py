"""Test the command line of `make bench` and one small complete run."""

import dataclasses
import time
from pathlib import Path

import pytest

from benchmarks.serving.__main__ import chosen, parse
from benchmarks.serving.benchmark import Benchmark
from benchmarks.serving.bundles import Recipe, make_bundle
from benchmarks.serving.plan import GOODPUT, Load, LoadKind, Round, full_plan, quick_plan
from benchmarks.serving.results import Results
from meari.bundle_format.names import Family, Precision
from meari.models.config import RecurrentConfig
from tests.patience import PATIENCE

LOADS = (
    Load(LoadKind.WHOLE, 2),
    Load(LoadKind.STREAM, 2),
    Load(LoadKind.MIXED, clients=128),
    Load(LoadKind.MIXED, share=0.5),
    GOODPUT,
    Load(LoadKind.SCORE_LIST, 4),
)


def test_options_select_servers_and_models() -> None:
    options = parse(["--quick", "--only", "raw,meari", "--models", "lstm-int8"])
    plan = chosen(quick_plan(), options.only, options.models)
    assert {turn.model for turn in plan.rounds} == {"lstm-int8"}
    assert {name for turn in plan.rounds for name in turn.servers} == {"raw", "meari"}


def test_time_is_kept_for_probes_only_where_they_are_wanted() -> None:
    plan = quick_plan()
    assert chosen(plan, ("raw", "meari"), None).probe_seconds == 0
    assert chosen(plan, ("raw", "probes"), None).probe_seconds == plan.probe_seconds > 0


def test_unknown_server_is_refused_by_name(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse(["--only", "raw,nginx"])
    assert "got nginx, expected some of raw" in capsys.readouterr().err


def test_time_budgets_are_below_the_documented_durations() -> None:
    assert full_plan().budget_seconds < 40 * 60
    assert quick_plan().budget_seconds < 5 * 60


@pytest.mark.timeout(180)
def test_small_run_measures_raw_and_meari_and_reports_failures(tmp_path: Path) -> None:
    config = RecurrentConfig(Family.LSTM, embedding_size=16, hidden_size=16)
    recipe = Recipe("tiny", config, Precision.FP32, 10_000)
    plan = dataclasses.replace(
        quick_plan(),
        rounds=(Round("tiny", ("raw", "meari", "bentoml"), LOADS), Round("absent", ("raw",), LOADS)),
        closed_seconds=0.3,
        warmup_seconds=0.1,
        open_seconds=0.5,
        raw_seconds=0.02,
        raw_batches=(1, 4),
        start_timeout=PATIENCE,
    )

    def bundle(name: str) -> Path:
        if name == "absent":
            raise FileNotFoundError("bundles/absent")
        return make_bundle(recipe, tmp_path / "served")

    results = Results()
    benchmark = Benchmark(plan, results, bundle, tmp_path, 2, time.monotonic() + PATIENCE)
    benchmark.run()
    assert {(inside.processes, inside.batch) for inside in results.inside} == {(1, 1), (1, 4), (2, 1), (2, 4)}
    found = {m.load: m for m in results.measurements if m.server == "meari"}
    assert list(found) == [load.name for load in LOADS]
    goodput = found["goodput"]
    assert (goodput.tokens_per_second > 0) == goodput.is_quick  # a busy machine may have none
    for measured in found.values():
        assert measured.tokens_per_second > 0 or measured is goodput
        assert measured.num_failed == 0, measured.problems
        assert measured.memory_mb > 10
    with_raw = {load for load, measured in found.items() if measured.raw is not None and measured.share_of_raw}
    assert with_raw == {"mixed × 128", "score list × 4"}, "loads that targets compare with the bare loop"
    assert found["stream × 2"].gap_ms is not None
    assert found["mixed 50%"].offered_per_second > 0
    assert "bundles/absent" in results.failures["all / absent"]
