import math

import pytest
import torch

from meari.bundle_format.names import Family
from meari.claims.claim import Verdict, verdict
from meari.claims.measures.exploding import CLAIM, Exploding, Run, scale_recurrence
from meari.models.config import RecurrentConfig
from meari.models.families import RecurrentLanguageModel, build_model
from tests.claims.workbenches import TINY, tiny_bench

RATES = (0.1, 1.0, 10.0)
WORKS, FAILS = 2.0, 5.0
Arm = tuple[float | None, float | None, float | None]


def test_recurrent_weights_are_scaled_to_the_spectral_radius() -> None:
    model = build_model(RecurrentConfig(Family.RNN, embedding_size=4, hidden_size=12), 5, seed=1)
    scale_recurrence(model, 2.5)
    assert isinstance(model, RecurrentLanguageModel)
    weight = model.cells[0].kernel.weight_hh_l0
    assert isinstance(weight, torch.Tensor)
    assert float(torch.linalg.eigvals(weight.detach()).abs().max()) == pytest.approx(2.5, rel=1e-5)


def numbers(large_norm: float, loose: Arm, clipped: Arm) -> Exploding:
    runs = (
        Run(radius, rate, is_clipped, loss)
        for radius in (1.0, 3.0)
        for is_clipped, arm in ((False, loose), (True, clipped))
        for rate, loss in zip(RATES, arm, strict=True)
    )
    return Exploding(1_500, 16, 100, 3.3, (1.0, 3.0), RATES, (1.0, large_norm), tuple(runs))


ONE, TWO, SHIFTED = (WORKS, FAILS, None), (WORKS, WORKS, FAILS), (FAILS, WORKS, FAILS)


@pytest.mark.parametrize(
    ("large_norm", "loose", "clipped", "expected"),
    [
        (100.0, ONE, TWO, Verdict.HOLDS),
        (100.0, (FAILS, None, None), ONE, Verdict.HOLDS),
        (100.0, ONE, SHIFTED, Verdict.IN_PART),  # larger rates work, but not more rates
        (100.0, TWO, TWO, Verdict.IN_PART),
        (2.0, TWO, ONE, Verdict.DOES_NOT),
    ],
)
def test_criterion(large_norm: float, loose: Arm, clipped: Arm, expected: Verdict) -> None:
    assert verdict(CLAIM.judge(numbers(large_norm, loose, clipped))) is expected


def test_each_arm_is_reported_at_its_own_best_rate() -> None:
    found = numbers(100.0, (2.6, 4.0, None), (4.0, 3.2, 3.0))
    assert (found.best(3.0, is_clipped=False), found.best(3.0, is_clipped=True)) == (2.6, 3.0)
    assert "radius 3 2.60 and 3.00 nats a token" in CLAIM.describe([found])[1]


def test_arm_that_diverges_at_every_rate_is_reported_and_drawn() -> None:
    broken = numbers(100.0, (None, None, None), TWO)
    assert broken.best(1.0, is_clipped=False) == math.inf
    assert "radius 3 not finite and 2.00 nats a token" in CLAIM.describe([broken])[1]
    assert len(CLAIM.draw([broken]).axes) == 3


def test_gradient_that_falls_with_the_radius_is_a_measurement_error() -> None:
    sound, faulty = numbers(100.0, ONE, TWO), numbers(0.01, ONE, TWO)
    assert CLAIM.expect([sound, sound, sound])[0].violations() == []
    assert len(CLAIM.expect([faulty, faulty, faulty])[0].violations()) == 1


def test_tiny_run_has_every_radius_and_rate_in_both_arms() -> None:
    measured = CLAIM.measure(tiny_bench())
    assert list(measured.numbers.radii) == sorted(TINY.radii)
    for radius in TINY.radii:
        for is_clipped in (False, True):
            assert tuple(run.rate for run in measured.numbers.of(radius, is_clipped=is_clipped)) == TINY.rates
    CLAIM.draw([measured.numbers])


def test_radii_beyond_the_budget_are_skipped_and_reported() -> None:
    measured = CLAIM.measure(tiny_bench(seconds=0.0))
    assert measured.numbers.radii == (1.0,)
    assert measured.left_out == ("the spectral radius 3", "the spectral radius 0.5")
    CLAIM.judge(measured.numbers)
