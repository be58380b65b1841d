"""Test the benchmark page: JSON of the results, targets, tables and pictures."""

import dataclasses
from pathlib import Path

from benchmarks.serving.page import write_page
from benchmarks.serving.plan import CAPACITY, GOODPUT, Load, LoadKind
from benchmarks.serving.results import Inside, Measurement, Results, Spread, mean_of, results_from_json
from benchmarks.serving.tables import rates_table, table
from benchmarks.serving.targets import target_rows

TIMES = Spread(10.0, 20.0, 30.0, 100)


def measured(server: str, load: Load, tokens_per_second: float, cpu: float = 0.1) -> Measurement:
    return Measurement(
        server=server,
        model="lstm-int8",
        load=load.name,
        kind=str(load.kind),
        clients=load.clients,
        share=load.share,
        seconds=5.0,
        tokens_per_second=tokens_per_second,
        answers_per_second=tokens_per_second / 64,
        cpu_seconds_per_1000=cpu,
        memory_mb=200.0,
        driver_cpu_share=0.05,
        other_cpu_share=0.01,
        offered_per_second=0.0,
        num_answers=100,
        num_refused=0,
        num_failed=0,
        num_late=0,
        first_ms=TIMES,
        gap_ms=None,
        whole_ms=TIMES,
        refusal_ms=None,
    )


def beside(batch: int, tokens_per_cpu_second: float) -> Inside:
    return Inside("raw", "lstm-int8", 2, batch, 2 * tokens_per_cpu_second, tokens_per_cpu_second, 0.2, 0.1, 0.1)


def some_results() -> Results:
    alone, many = Load(LoadKind.WHOLE, 1), Load(LoadKind.WHOLE, 64)
    return Results(
        about={"cpu": "a CPU", "num_cpus": 2, "versions": {"meari": "0.1.0"}, "command": "make bench"},
        inside=[
            Inside("raw", "lstm-int8", 1, 1, 5000.0, 5000.0, 0.2, 0.1, 0.1),
            Inside("raw", "lstm-int8", 2, 64, 24_000.0, 12_000.0, 5.3, 2.3, 3.0),
        ],
        measurements=[
            dataclasses.replace(measured("meari", alone, 4000.0), raw=beside(1, 5000.0)),
            dataclasses.replace(measured("meari", many, 20_000.0, 1 / 11), raw=beside(64, 12_000.0)),
            dataclasses.replace(measured("meari", CAPACITY, 15_000.0, 0.08), raw=beside(64, 20_000.0)),
            measured("meari", Load(LoadKind.MIXED, share=0.8), 12_000.0),
            measured("flask-torch", alone, 100.0),
            dataclasses.replace(measured("mosec", CAPACITY, 10_000.0), raw=beside(64, 25_000.0)),
            measured("mosec", Load(LoadKind.MIXED, share=0.8), 8_000.0),
        ],
        failures={"ray / lstm-int8": "it ended with code 1\nand its log"},
        probes={"start": {"seconds": 2.5, "bundles": 5, "of": [2.5]}},
    )


def test_results_survive_json() -> None:
    results = some_results()
    assert results_from_json(results.to_json()) == results


def test_targets_are_met_missed_or_not_measured() -> None:
    rows = {row.what: row for row in target_rows(some_results())}
    flask = rows["one client, against Flask + PyTorch, int8"]
    assert (flask.met, flask.figure) == (True, "40.0 × (4,000 against 100)")
    whole = rows["64 clients, whole: tokens per server CPU-second against raw, lstm-int8"]
    assert (whole.met, whole.figure) == (True, "92% (11,000 of 12,000)")
    mixed = rows["mixed load: tokens per CPU-second against the best other"]
    assert (mixed.met, mixed.figure) == (True, "1.56 × (62% of raw against 40% of mosec)"), "in CPU-seconds 1.25 ×"
    assert rows["start to ready, five bundles"].met is False
    assert rows["one client, against Flask + PyTorch, fp32"].met is None
    assert rows["memory of a worker"].figure == "not measured"


def test_a_bound_is_met_at_the_bound_and_never_by_other_bits() -> None:
    results = some_results()
    for warm_ms, equal, met in ((5.0, True, True), (5.1, True, False), (1.0, False, False)):
        results.probes["seen prompt"] = {"warm_ms": warm_ms, "warm_worst_ms": 6.0, "cold_ms": 50.0, "equal": equal}
        row = next(row for row in target_rows(results) if row.what.startswith("a prompt of 1,000 tokens"))
        assert (row.target, row.met) == ("≤ 5 ms, same text", met)


def test_overhead_over_raw_excludes_the_steps_of_the_prompt() -> None:
    row = next(row for row in target_rows(some_results()) if "beyond the raw" in row.what)
    # of 10 ms: 68 steps of the cell and 64 of the output layer, 0.1 ms each
    assert row.figure.startswith("-3.20 ms (10.00 of which 13.20 are steps)")


def test_ratios_to_the_bare_loop_are_those_of_the_loop_beside_a_load() -> None:
    """The loop was faster when the run began; without one beside it a load is not judged."""
    results = some_results()
    results.inside = [dataclasses.replace(inside, tokens_per_cpu_second=30_000.0) for inside in results.inside]
    rows = {row.what: row for row in target_rows(results)}
    whole = "64 clients, whole: tokens per server CPU-second against raw, lstm-int8"
    assert rows[whole].figure == "92% (11,000 of 12,000)"
    results.measurements = [dataclasses.replace(m, raw=None) for m in results.measurements]
    row = next(row for row in target_rows(results) if row.what == whole)
    assert (row.met, row.figure) == (None, "not measured (raw, lstm-int8)")


def test_loop_beside_a_load_is_the_mean_of_its_runs() -> None:
    assert mean_of([]) is None
    assert mean_of([beside(64, 10_000.0), beside(64, 14_000.0)]) == beside(64, 12_000.0)


def test_bulk_is_compared_with_the_bare_loop_beside_it() -> None:
    results = some_results()
    results.probes["bulk"] = {
        "score_tokens_per_cpu_second": 11_760,
        "score_raw": 12_000,
        "generate_tokens_per_cpu_second": 8_000,
        "generate_raw": 10_000,
    }
    rows = {row.what: row for row in target_rows(results)}
    score, generate = rows["`meari score` of a file, likewise"], rows["`meari generate` over prompts, likewise"]
    assert (score.met, score.figure) == (True, "98% (11,760 of 12,000)")
    assert (generate.met, generate.figure) == (False, "80% (8,000 of 10,000)")


def test_short_run_gives_no_verdict_on_memory_growth() -> None:
    results = some_results()
    results.probes["memory"] = {"growth": 0.0, "seconds": 60, "beyond_weights_mb": 90.0, "largest_mb": 104.0}
    rows = {row.what: row for row in target_rows(results)}
    assert rows["memory of a worker"].met is True
    assert rows["growth of a worker under mixed load"].met is None


def test_table_has_a_row_for_each_server_and_a_column_for_each_load() -> None:
    lines = rates_table(some_results(), "lstm-int8").splitlines()
    assert lines[0].count("|") == 2 + 4
    assert lines[1] == "| --- | ---: | ---: | ---: | ---: |"
    assert [line.split(" | ")[0].strip("| ") for line in lines[2:]] == ["meari", "flask-torch", "mosec"]
    assert "20,000 (0.091)" in lines[2]


def test_numbers_are_right_aligned() -> None:
    assert table(("a", "b"), [("x", "1")]) == "| a | b |\n| --- | ---: |\n| x | 1 |"


def test_page_shows_targets_tables_pictures_and_failures(tmp_path: Path) -> None:
    write_page(some_results(), tmp_path)
    page = (tmp_path / "README.md").read_text("utf-8")
    for part in ("## Targets", "## lstm-int8", "throughput.png", "first-token.png", "ray / lstm-int8: it ended"):
        assert part in page
    assert "and its log" not in page
    assert (tmp_path / "details.md").read_text("utf-8").count("| meari |") == 4
    assert all((tmp_path / name).stat().st_size > 5000 for name in ("throughput.png", "cpu.png", "first-token.png"))
    assert results_from_json((tmp_path / "results.json").read_text("utf-8")) == some_results()


def test_goodput_is_that_of_quick_tokens_and_compared_with_the_best_that_streams() -> None:
    ours = dataclasses.replace(measured("meari", GOODPUT, 9_000.0), gap_ms=TIMES)
    assert ours.is_quick
    assert not dataclasses.replace(ours, gap_ms=None).is_quick
    assert not dataclasses.replace(ours, gap_ms=Spread(1.0, 50.1, 60.0, 9)).is_quick
    assert not dataclasses.replace(ours, first_ms=Spread(1.0, 100.1, 101.0, 9)).is_quick
    assert not dataclasses.replace(ours, num_refused=2).is_quick
    results = some_results()
    results.measurements += [ours, measured("mosec", GOODPUT, 3_000.0), measured("ray", GOODPUT, 0.0)]
    row = next(row for row in target_rows(results) if row.what.startswith("goodput"))
    assert (row.met, row.figure) == (True, "3.00 × (9,000 against 3,000 of mosec)")


def test_page_reports_a_busy_machine(tmp_path: Path) -> None:
    results = some_results()
    write_page(results, tmp_path)
    assert "not quiet" not in (tmp_path / "README.md").read_text("utf-8")
    results.measurements = [dataclasses.replace(m, other_cpu_share=0.5) for m in results.measurements]
    write_page(results, tmp_path)
    page = (tmp_path / "README.md").read_text("utf-8")
    assert "other processes took 50% of a CPU" in page
    assert "| met |" not in page
    assert {row.met for row in target_rows(results)} == {None}


def test_results_without_the_main_models_make_a_page_without_pictures(tmp_path: Path) -> None:
    results = some_results()
    results.measurements = [dataclasses.replace(m, model="nsmc-lstm") for m in results.measurements]
    write_page(results, tmp_path)
    assert not list(tmp_path.glob("*.png"))
