"""Test verdicts, and figures with the noise of their seeds."""

import pytest

from meari.claims.claim import Condition, Expectation, Verdict, around, between, shared_verdict


def test_figures_are_formatted_with_their_spread_over_seeds() -> None:
    assert around([1.0, 2.0, 3.0]) == "2.00 ± 1.00"
    assert around([1.0, 2.0, 3.0], "+.1f") == "+2.0 ± 1.0"
    assert around([1.5]) == "1.50"
    assert between([1e-3, 5e-3, 2e-3]) == "2.0e-03 (1.0e-03 … 5.0e-03)"
    assert between([1e-3]) == "1.0e-03"


def falling(*rows: tuple[float, ...]) -> list[str]:
    return Expectation("loss", ("a", "b", "c"), rows, least=0.01).violations()


def test_falling_figures_are_no_violation() -> None:
    assert falling((3.0, 2.0, 1.0), (3.1, 2.1, 1.1), (2.9, 1.9, 0.9)) == []


def test_rise_within_the_noise_of_the_seeds_is_no_violation() -> None:
    assert falling((1.0, 1.3, 1.0), (1.0, 0.9, 1.0), (1.0, 1.0, 1.0)) == []


def test_rise_below_the_minimum_is_no_violation() -> None:
    assert falling((1.0, 1.005, 1.0), (1.0, 1.005, 1.0), (1.0, 1.005, 1.0)) == []


def test_rise_of_every_seed_is_reported_with_its_position() -> None:
    reported = falling((1.0, 0.5, 0.8), (1.1, 0.6, 0.91), (1.2, 0.7, 1.02))
    assert reported == ["loss: got 0.91 ± 0.11 at c, expected at most 0.6 ± 0.1 as at b"]


def test_single_seed_is_never_a_violation() -> None:
    assert falling((1.0, 2.0, 3.0)) == []


MET, UNMET = Condition("what", True, ""), Condition("what", False, "")


@pytest.mark.parametrize(
    ("seeds", "expected"),
    [
        ([[MET], [MET], [MET]], Verdict.HOLDS),
        ([[UNMET], [UNMET], [UNMET]], Verdict.DOES_NOT),
        ([[MET, UNMET], [MET, UNMET], [UNMET, MET]], Verdict.IN_PART),
        ([[MET], [MET], [UNMET]], Verdict.NOT_SETTLED),
        ([[MET, MET], [MET, UNMET], [MET, MET]], Verdict.NOT_SETTLED),
    ],
)
def test_verdict_that_changes_with_the_seed_is_not_settled(seeds: list[list[Condition]], expected: Verdict) -> None:
    assert shared_verdict(seeds) is expected
