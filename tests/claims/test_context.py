import math

import numpy as np
import pytest

from meari.bundle_format.names import Family
from meari.claims.claim import Verdict, verdict
from meari.claims.evaluation import token_losses
from meari.claims.families import FAMILIES
from meari.claims.measures.context import CLAIM, NEAR, Context, cut_losses
from tests.claims.workbenches import TINY, tiny_bench

LENGTHS = (1, 4, 16, 64)


def numbers(**excess: tuple[float, ...]) -> Context:
    return Context(LENGTHS, {family: tuple(2 + value for value in values) for family, values in excess.items()})


SHORT, MIDDLE, LONG = (1.0, 0.01, 0.0, 0.0), (1.0, 0.5, 0.01, 0.0), (1.0, 0.5, 0.4, 0.0)


@pytest.mark.parametrize(
    ("elman", "gru", "esn", "expected"),
    [
        (MIDDLE, LONG, SHORT, Verdict.HOLDS),
        (LONG, MIDDLE, SHORT, Verdict.IN_PART),
        (MIDDLE, SHORT, MIDDLE, Verdict.DOES_NOT),
    ],
)
def test_criterion(elman: tuple[float, ...], gru: tuple[float, ...], esn: tuple[float, ...], expected: Verdict) -> None:
    assert verdict(CLAIM.judge(numbers(rnn=elman, gru=gru, lstm=LONG, esn=esn))) is expected


def test_used_context_is_interpolated_between_two_lengths() -> None:
    halfway = numbers(rnn=(1.0, 2 * NEAR, 0.0, 0.0), gru=(NEAR, 0.0, 0.0, 0.0))
    assert halfway.used(Family.RNN) == pytest.approx(math.sqrt(4 * 16))
    assert halfway.used(Family.GRU) == pytest.approx(1.0)


def test_whole_history_gives_the_loss_of_the_whole_row() -> None:
    bench = tiny_bench()
    model, rows = bench.trained(Family.GRU).model, bench.pieces(5, 13)
    assert np.allclose(cut_losses(model, rows, 12), token_losses(model, rows)[:, -1], atol=1e-5)
    assert np.allclose(cut_losses(model, rows, 1), cut_losses(model, rows[:, -2:], 1))


def test_tiny_run_has_every_length_for_every_family() -> None:
    measured = CLAIM.measure(tiny_bench())
    assert all(len(losses) == len(TINY.contexts) for losses in measured.numbers.losses.values())
    assert all(measured.numbers.excess(family)[-1] == 0 for family in FAMILIES)
    assert len(CLAIM.draw([measured.numbers]).axes) == 2


def test_loss_that_rises_with_history_in_every_seed_is_a_measurement_error() -> None:
    sound = [numbers(rnn=MIDDLE, gru=LONG, lstm=LONG, esn=SHORT) for _ in range(3)]
    assert not any(expectation.violations() for expectation in CLAIM.expect(sound))
    worse = [numbers(rnn=MIDDLE, gru=LONG, lstm=LONG, esn=(1.0, 0.01, 0.0, rise)) for rise in (0.11, 0.12, 0.13)]
    (violation,) = [each for expectation in CLAIM.expect(worse) for each in expectation.violations() if "16" in each]
    assert violation.startswith("loss of the ESN: got 2.12 ± 0.01 at 64 tokens of history, expected at most 2 ± 0")
