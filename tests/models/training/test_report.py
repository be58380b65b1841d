"""Test the picture of a run."""

from pathlib import Path

import numpy as np

from meari.models.figures import figures
from meari.models.training.history import EvaluationRecord, Record, StepRecord
from meari.models.training.report import smoothed, write_report


def test_report_is_drawn_for_runs_of_any_length(tmp_path: Path) -> None:
    for num_steps in (0, 1, 3, 400):
        records: list[Record] = [
            StepRecord(step, 2 + 2 / step, 0.5, 1e-3, float(step)) for step in range(1, num_steps + 1)
        ]
        records += [EvaluationRecord(step, 2.2, float(step)) for step in (num_steps // 2, num_steps) if step]
        write_report(tmp_path / "report.png", "echo", records, figures(10.0, 5, 5, 5, 0))
        assert (tmp_path / "report.png").read_bytes().startswith(b"\x89PNG")
    assert [path.name for path in tmp_path.iterdir()] == ["report.png"]


def test_smoothing_keeps_length_and_mean() -> None:
    values = np.random.default_rng(0).normal(3, 1, 1000)
    assert len(smoothed(values)) == 1000
    assert abs(smoothed(values).mean() - values.mean()) < 0.01
    assert smoothed(values).std() < 0.5 * values.std()
    assert smoothed(np.full(200, 2.0)).tolist() == [2.0] * 200
