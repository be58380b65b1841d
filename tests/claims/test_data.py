import pytest

from meari.bundle_format.names import Family
from meari.claims.claim import Verdict, verdict
from meari.claims.families import FAMILIES, TOLERANCE, fresh_model, num_trained
from meari.claims.measures.data import CLAIM, Data, Learned
from meari.claims.sizes import Sizes
from tests.claims.workbenches import TINY, tiny_bench


@pytest.mark.parametrize("vocabulary_size", [30, 67, 256])
def test_families_have_the_same_number_of_trained_parameters(vocabulary_size: int) -> None:
    counts = [num_trained(fresh_model(family, vocabulary_size, Sizes(), seed=1)) for family in FAMILIES]
    assert max(counts) <= (1 + TOLERANCE) * min(counts)
    assert min(counts) == pytest.approx(Sizes().parameters, rel=0.1)


def learned(lstm: tuple[float, float]) -> Data:
    others = {Family.RNN: (2.0, 1.8), Family.GRU: (2.0, 1.7), Family.ESN: (1.9, 1.9)}
    losses = others | {Family.LSTM: lstm}
    return Data(
        tuple(
            Learned(family.value, share, 100, loss, 10, 0.0, 1.0)
            for family, pair in losses.items()
            for share, loss in zip((0.1, 1.0), pair, strict=True)
        )
    )


@pytest.mark.parametrize(
    ("lstm", "expected"),
    [
        ((2.1, 1.6), Verdict.HOLDS),
        ((1.5, 1.6), Verdict.IN_PART),
        ((2.3, 1.75), Verdict.IN_PART),
        ((1.8, 2.0), Verdict.DOES_NOT),
    ],
)
def test_criterion(lstm: tuple[float, float], expected: Verdict) -> None:
    assert verdict(CLAIM.judge(learned(lstm))) is expected


def test_share_without_all_families_is_ignored() -> None:
    numbers = learned((2.1, 1.6))
    more = Learned("rnn", 0.3, 30, 1.9, 10, 0.0, 1.0)
    assert Data((*numbers.learned, more)).shares == [0.1, 1.0]


def test_tiny_run_trains_every_family_on_every_share() -> None:
    measured = CLAIM.measure(tiny_bench())
    assert measured.numbers.shares == sorted(TINY.shares)
    assert len(measured.numbers.learned) == len(FAMILIES) * len(TINY.shares)
    assert len(CLAIM.draw([measured.numbers]).axes) == 2


def test_trainings_beyond_the_budget_are_skipped_and_reported() -> None:
    measured = CLAIM.measure(tiny_bench(seconds=0.0))
    assert measured.numbers.shares == [1.0]
    assert "the LSTM on 10%" in measured.left_out
    assert "the LSTM had 0 of 12 training steps" in measured.left_out
    assert not CLAIM.judge(measured.numbers)[1].is_met
    CLAIM.draw([measured.numbers])


def test_loss_that_rises_with_more_text_beyond_the_noise_is_a_measurement_error() -> None:
    def violations(*ends: float) -> list[str]:
        seeds = [learned((2.1, end)) for end in ends]
        return [violation for expectation in CLAIM.expect(seeds) for violation in expectation.violations()]

    assert violations(1.6, 1.7, 1.8) == []
    assert violations(2.05, 2.4, 2.0) == []  # the mean rises within the noise
    assert violations(2.20, 2.21, 2.22) == [
        "held-out loss of the LSTM: got 2.21 ± 0.01 at 100% of the text, expected at most 2.1 ± 0 as at 10% of the text"
    ]
