import pytest
import torch

from claims.claim import Verdict, verdict
from claims.measures.exploding import CLAIM, Course, Exploding, scale_recurrence
from models.config import Family, RecurrentConfig
from models.language_model import RecurrentLanguageModel, build_model
from tests.claims.benches import TINY, tiny_bench


def test_recurrent_weights_get_the_spectral_radius_asked_for() -> None:
    model = build_model(RecurrentConfig(Family.RNN, embedding_size=4, hidden_size=12), 5, seed=1)
    scale_recurrence(model, 2.5)
    assert isinstance(model, RecurrentLanguageModel)
    weight = model.cells[0].kernel.weight_hh_l0
    assert isinstance(weight, torch.Tensor)
    assert float(torch.linalg.eigvals(weight.detach()).abs().max()) == pytest.approx(2.5, rel=1e-5)


def numbers(large_norm: float, loose: float | None, clipped: float) -> Exploding:
    def course(radius: float, is_clipped: bool, norm: float, loss: float | None) -> Course:
        return Course(radius, is_clipped, norm, (3.0, 3.0, loss), (norm, norm, None if loss is None else norm))

    return Exploding(
        1_500,
        16,
        (
            course(1.0, False, 1.0, 2.0),
            course(1.0, True, 1.0, 2.0),
            course(3.0, False, large_norm, loose),
            course(3.0, True, large_norm, clipped),
        ),
    )


@pytest.mark.parametrize(
    ("large_norm", "loose", "clipped", "expected"),
    [
        (100.0, 3.0, 2.0, Verdict.HOLDS),
        (100.0, None, 2.0, Verdict.HOLDS),
        (100.0, 2.0, 2.0, Verdict.IN_PART),
        (2.0, 3.0, 2.0, Verdict.DOES_NOT),
    ],
)
def test_criterion(large_norm: float, loose: float | None, clipped: float, expected: Verdict) -> None:
    assert verdict(CLAIM.judge(numbers(large_norm, loose, clipped))) is expected


def test_training_that_broke_off_is_said_and_drawn() -> None:
    broken = numbers(100.0, None, 2.0)
    assert "2.00, not finite nats a token without clipping" in CLAIM.describe(broken)[1]
    assert len(CLAIM.draw(broken).axes) == 3


def test_tiny_run_has_every_radius_with_and_without_clipping() -> None:
    measured = CLAIM.measure(tiny_bench())
    assert measured.numbers.radii == sorted(TINY.radii)
    assert len(measured.numbers.courses) == 2 * len(TINY.radii)
    CLAIM.draw(measured.numbers)


def test_what_the_budget_does_not_reach_is_left_out_and_named() -> None:
    measured = CLAIM.measure(tiny_bench(seconds=0.0))
    assert measured.numbers.radii == [1.0]
    assert measured.left_out == ("the spectral radius 3", "the spectral radius 0.5")
    CLAIM.judge(measured.numbers)
