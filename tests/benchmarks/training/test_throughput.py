"""Test the training benchmark: every loop runs, and the page shows the results."""

import json
from pathlib import Path

import pytest

from benchmarks.training.throughput import Case, main, measure
from benchmarks.training.throughput_page import BFLOAT16, FLOAT32, PLAIN, page
from meari.bundle_format.names import Family


def cost(cpu_seconds: float, operators: dict[str, float] | None = None) -> dict[str, object]:
    return {
        "cpu_seconds": cpu_seconds,
        "wall_seconds": 2 * cpu_seconds,
        "first_cpu_seconds": 9.0,
        "operators": operators or {},
    }


def test_every_loop_is_measured_and_the_page_is_written(tmp_path: Path) -> None:
    results = tmp_path / "training.json"
    main(["--family", "gru", "--hidden", "8", "--vocabulary", "30", "--rounds", "1", "--results", str(results)])
    costs = json.loads(results.read_text("utf-8"))["gru 8 30"]["costs"]
    assert set(costs) == {PLAIN, FLOAT32, BFLOAT16}
    assert all(0 < entry["cpu_seconds"] < 60 for entry in costs.values())
    assert "| gru | 8 | 30 |" in (tmp_path / "training.md").read_text("utf-8")


def test_operator_shares_sum_to_one_for_large_vocabularies() -> None:
    costs = measure(Case(Family.RNN, 4, 150), 1, compiled=False, profiled=True)
    for entry in costs.values():
        assert 0.5 < sum(entry.operators.values()) <= 1.001


def test_page_shows_ratios_verdict_and_operator_shares() -> None:
    operators = {"aten::mkldnn_rnn_layer": 0.5, "aten::mul": 0.25, "Optimizer.step#AdamW.step": 0.05, "aten::odd": 0.1}
    costs = {PLAIN: cost(2.0, operators), FLOAT32: cost(1.6, operators), BFLOAT16: cost(1.0, operators)}
    text = page({"lstm 512 65": {"machine": "a machine", "rounds": 3, "costs": costs}})
    assert "| lstm | 512 | 65 | 2,048 | 2,560 | 1.25 × | 4,096 | 2.00 × | 4.00 / 3.20 / 2.00 | 3 |" in text
    assert "reaches it in 1 of 1 cases" in text
    assert "| lstm 512 65 | plain | 5 % | 50 % | 0 % | 25 % | 20 % |" in text
    assert "torch.compile" not in text
    with pytest.raises(KeyError):
        page({"lstm 512 65": {"machine": "a machine", "rounds": 3, "costs": {}}})
