"""Test the number of rows at which an engine reaches its best throughput, from the cost of its runs."""

from __future__ import annotations

import pytest

from meari.runtime.engine.stats import Pace


def seen(**seconds: float) -> Pace:
    """Record runs of one step each; `r16=0.001` is a run of 16 rows in 0.001 s."""
    pace = Pace()
    for rows, taken in seconds.items():
        for _ in range(20):
            pace.add_cost(int(rows[1:]), 1, taken)
    return pace


def test_knee_is_unknown_before_the_first_run() -> None:
    assert Pace().knee == 0


@pytest.mark.parametrize("steps", [1, 7])
def test_knee_is_the_smallest_batch_with_nearly_the_best_throughput(steps: int) -> None:
    pace = Pace()
    for rows, step_seconds in [(1, 195e-6), (4, 302e-6), (12, 770e-6), (20, 1240e-6), (40, 2600e-6), (64, 4378e-6)]:
        pace.add_cost(rows, steps, steps * step_seconds)
    assert pace.knee == 16


def test_knee_is_the_largest_batch_if_more_rows_always_help() -> None:
    assert seen(r1=0.001, r8=0.001, r64=0.001).knee == 128


def test_knee_is_the_smallest_batch_if_batches_do_not_help() -> None:
    assert seen(r1=0.001, r8=0.008, r64=0.064).knee == 2


def test_recent_runs_replace_older_ones() -> None:
    pace = seen(r8=0.001, r32=0.002)
    assert pace.knee == 64
    for _ in range(30):
        pace.add_cost(32, 1, 0.02)
    assert pace.knee == 16
