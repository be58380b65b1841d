"""Test the capacity page: its tables are those of the measured figures, and the arithmetic is right."""

from __future__ import annotations

import itertools
import json
import re
from pathlib import Path

import pytest

from benchmarks.capacity import (
    DOCS,
    FIGURES,
    LOADS,
    MEASURED,
    MODELS,
    PAGE,
    RATES,
    REFERENCE,
    Assumptions,
    Figures,
    LoadFigures,
    bottlenecks,
    fleet_for,
    main,
    measure,
    read_figures,
    tables,
    with_tables,
)
from benchmarks.serving.plan import ENDLESS

RESULTS = DOCS / "benchmarks" / "results.json"
LOAD = LoadFigures(
    "m", "whole × 64", tokens_per_cpu_second=6400, cpu_ms_a_request=10, answer_ms=500, bytes_a_request=1000
)
FOUND = Figures(
    {"m": "here"}, {"m": 5_000_000}, (LOAD,), proxy_cpu_us_a_request=56, series_a_replica=1000, bundles_mb=6
)


def test_tables_of_the_page_are_those_of_the_measured_figures() -> None:
    page = PAGE.read_text("utf-8")
    assert with_tables(page, tables(read_figures(FIGURES), Assumptions())) == page
    assert len(re.findall("<!-- table: ", page)) == 4


def test_page_is_short() -> None:
    prose = re.sub(r"```.*?```|^\|[^\n]*$", "", PAGE.read_text("utf-8"), flags=re.DOTALL | re.MULTILINE)
    assert len(prose.split()) < 1400


def test_figures_are_those_of_known_models_under_known_loads() -> None:
    found = read_figures(FIGURES)
    assert {(each.model, each.load) for each in found.loads} <= set(itertools.product(MODELS, LOADS))
    assert {each.load for each in found.loads if each.model == REFERENCE} == set(LOADS)
    assert found.about.keys() == {each.model for each in found.loads} >= found.parameters.keys()
    assert found.find("no such model", LOADS[0]) is None
    for each in found.loads:
        if "score" not in each.load and each.model in ENDLESS:
            assert each.tokens_per_cpu_second * each.cpu_ms_a_request / 1000 == pytest.approx(64, rel=0.02)


def test_results_of_the_benchmark_take_the_place_of_the_figures() -> None:
    results = json.loads(RESULTS.read_text("utf-8"))
    [measured] = [
        each
        for each in results["measurements"]
        if (each["server"], each["model"], each["load"]) == ("meari", REFERENCE, LOADS[1])
    ]
    whole = read_figures(FIGURES, RESULTS).find(REFERENCE, LOADS[1])
    assert whole is not None
    assert whole.tokens_per_cpu_second == pytest.approx(1000 / measured["cpu_seconds_per_1000"], rel=1e-3)
    assert whole.answer_ms == measured["whole_ms"]["p50"]


def test_measuring_keeps_the_figures_of_other_models(tmp_path: Path) -> None:
    path, model = tmp_path / "capacity.json", "shakespeare-lstm"
    path.write_text(FIGURES.read_text("utf-8"), "utf-8")
    measure(path, [model], seconds=1.0, loads=[MEASURED[0]])
    before, after = read_figures(FIGURES), read_figures(path)
    assert [each for each in after.loads if each.model != model] == [
        each for each in before.loads if each.model != model
    ]
    measured = [each for each in after.loads if each.model == model]
    assert [each.load for each in measured] == [LOADS[0]]
    assert all(each.tokens_per_cpu_second > 0 < each.answer_ms for each in measured)


def test_fleet_of_a_rate_is_worked_by_hand() -> None:
    """700 requests a second of 10 ms are 7 CPUs, of which 0.7 may be used: 10, so 3 replicas of 4 at $0.04 an hour."""
    fleet = fleet_for(700, LOAD, Assumptions())
    assert fleet.cpus == pytest.approx(10)
    assert fleet.replicas == 3
    assert fleet.dollars_a_month == pytest.approx(3 * 4 * 0.04 * 730)
    assert fleet.in_flight == pytest.approx(350)
    assert fleet.gigabits == pytest.approx(0.0056)
    assert fleet_for(1, LOAD, Assumptions()).replicas == 2, "one may fail"


def test_bottlenecks_of_a_rate_are_worked_by_hand() -> None:
    assumed = Assumptions()
    fleet = fleet_for(10_000, LOAD, assumed)
    assert fleet.replicas == 36
    used = bottlenecks(10_000, FOUND, fleet, assumed)
    assert used["CPU of one balancer"] == pytest.approx(0.1)
    assert used["connections of one balancer"] == pytest.approx(5000 / 50_000)
    assert used["series of one Prometheus"] == pytest.approx(36 * 1000 / 1e7)
    assert used["a bundle to all replicas"] == pytest.approx(36 * 48 / (10_000 * 300))


def test_command_prints_the_tables_for_other_assumptions(capsys: pytest.CaptureFixture[str]) -> None:
    main(["--dollars-a-cpu-hour", "0.08"])
    dear = capsys.readouterr().out
    main([])
    cheap = capsys.readouterr().out
    assert dear != cheap
    assert all(f"{rate:,}" in cheap for rate in RATES)
    assert "| `--dollars-a-cpu-hour` | 0.08 |" in dear


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--use", "0"), "--use: got 0, expected a number above 0"),
        (("--use", "1.5"), "--use: got 1.5, expected a share of the CPUs"),
        (("--use", "nan"), "--use: got nan"),
        (("--cpus-a-replica", "-4"), "--cpus-a-replica: got -4"),
        (("--cpus-a-replica", "2.5"), "--cpus-a-replica: invalid int value: '2.5'"),
        (("--proxy-cpus", "0"), "--proxy-cpus: got 0"),
        (("--minutes-of-rollout", "inf"), "--minutes-of-rollout: got inf"),
        (("--seconds", "0"), "--seconds: got 0"),
        (("--models", "nope"), "invalid choice: 'nope'"),
        (("--figures", "/no/such.json"), "/no/such.json: No such file"),
        (("--results", str(FIGURES)), "capacity.json: got no figures of capacity"),
        (("--figures", str(RESULTS)), "results.json: got no figures of capacity"),
        (("--results", str(PAGE)), "capacity.md: got no figures of capacity"),
    ],
)
def test_command_refuses_what_gives_no_figures(
    words: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(words)
    assert ended.value.code == 2
    assert message in capsys.readouterr().err


def test_results_without_the_reference_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    results = json.loads(RESULTS.read_text("utf-8"))
    results["measurements"] = [each for each in results["measurements"] if each["model"] != REFERENCE]
    (tmp_path / "own.json").write_text(json.dumps(results), "utf-8")
    with pytest.raises(SystemExit):
        main(["--results", str(tmp_path / "own.json")])
    assert f"own.json: got no {REFERENCE} under {LOADS[1]}" in capsys.readouterr().err
