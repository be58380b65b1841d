"""Test the pace of an engine: how long a turn is in which the most tokens that somebody wants are run a second."""

from __future__ import annotations

import pytest

from meari.runtime.engine.stats import FIRST_STEPS, Pace


def _pace(rows: int, step: float, rest: float) -> Pace:
    """Return the pace after a turn of 10 steps."""
    pace = Pace()
    pace.add(rows, 10, 10 * step, 10 * step + rest)
    return pace


def _wanted_a_second(num_left: list[int], steps: int, step: float, rest: float) -> float:
    return sum(min(num, steps) for num in num_left) / (rest + steps * step)


@pytest.mark.parametrize(
    ("num_left", "step", "rest"),
    [
        ([20] * 10, 0.0003, 0.0015),
        ([1, 19, 19, 19, 19, 20], 0.0003, 0.0015),
        ([3, 3, 3, 3, 8, 9, 17, 20, 20, 64], 0.001, 0.0002),
        ([1, 1, 1, 1, 50], 0.002, 0.004),
        ([7], 0.01, 0.0),
    ],
)
def test_turn_has_the_steps_that_run_most_wanted_tokens_a_second(num_left: list[int], step: float, rest: float) -> None:
    found = _pace(len(num_left), step, rest).best_steps(num_left, 64)
    rates = [_wanted_a_second(num_left, steps, step, rest) for steps in range(1, 65)]
    assert rates[found - 1] == pytest.approx(max(rates), rel=1e-9)


def test_costly_turns_are_long_and_cheap_ones_waste_nothing() -> None:
    num_left = [4] * 6 + [16] * 6
    assert _pace(12, 0.001, 0.1).best_steps(num_left, 32) == 16
    assert _pace(12, 0.001, 0.0001).best_steps(num_left, 32) == 4
    assert _pace(12, 0.001, 0.1).best_steps(num_left, 10) == 10, "never more than the most"


def test_turns_are_shorter_where_texts_end_by_themselves() -> None:
    """One text in ten ends at each token, so that a row of a turn of 16 steps would run in vain half of the time."""
    pace, endless = _pace(16, 0.001, 0.001), _pace(16, 0.001, 0.001)
    for _ in range(300):
        pace.add_ends(100, 10)
        endless.add_ends(100, 0)
    assert endless.best_steps([64] * 16, 16) == 16
    rates = [(1 - 0.9**steps) / 0.1 / (0.001 + 0.001 * steps) for steps in range(1, 17)]
    best = pace.best_steps([64] * 16, 16)
    assert rates[best - 1] == pytest.approx(max(rates), rel=1e-6)
    assert 1 < best < 8
    for _ in range(300):
        pace.add_ends(100, 0)
    assert pace.best_steps([64] * 16, 16) == 16, "what was long ago counts no more"


def test_turn_of_unknown_pace_feeds_what_all_rows_need() -> None:
    pace = Pace()
    assert pace.max_steps(12, 0.005) == FIRST_STEPS
    assert pace.best_steps([30] * 12, FIRST_STEPS) == FIRST_STEPS
    instant = _pace(12, 0.0, 0.0)
    assert instant.best_steps([2] * 6 + [30] * 6, 64) == 30, "steps that take no time cost nothing in vain"
