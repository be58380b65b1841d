import pytest

from meari.bundle_format.names import Family
from meari.claims.claim import Verdict, verdict
from meari.claims.evaluation import held_out_loss
from meari.claims.measures.series import CLAIM, ONE_PASS, TRAININGS, Cost, Series
from meari.claims.training import Budget, OutOfTime, train_in_one_pass
from meari.claims.workbench import Workbench
from meari.models.cells.esn import EchoStateNetwork
from tests.claims.workbenches import TINY, small_text, tiny_bench


def costs(
    esn: tuple[float, float], through_time: tuple[float, float], best: float, products: tuple[int, int] = (100, 300)
) -> Series:
    """Make costs from CPU-seconds at both lengths; `best` is the final loss of the families trained through time.

    products   multiply-adds of the ESN and of the other families
    """
    found = []
    for name in TRAININGS:
        is_esn = name in ("esn", ONE_PASS)
        for length, seconds in zip((8, 64), esn if is_esn else through_time, strict=True):
            loss = 2.0 if is_esn else best
            found.append(
                Cost(name, length, 4, seconds, products[not is_esn], loss, ((3.0, seconds / 4), (loss, seconds / 2)))
            )
    return Series(1000, tuple(found), {})


@pytest.mark.parametrize(
    ("esn", "through_time", "best", "products", "expected"),
    [
        ((1.0, 1.0), (1.0, 3.0), 2.5, (100, 300), Verdict.HOLDS),
        ((1.0, 1.0), (1.0, 3.0), 2.5, (200, 300), Verdict.IN_PART),
        ((1.0, 1.0), (0.5, 1.2), 2.5, (200, 300), Verdict.IN_PART),
        ((1.0, 3.0), (1.0, 1.0), 1.5, (200, 300), Verdict.DOES_NOT),
    ],
)
def test_criterion(
    esn: tuple[float, float],
    through_time: tuple[float, float],
    best: float,
    products: tuple[int, int],
    expected: Verdict,
) -> None:
    assert verdict(CLAIM.judge(costs(esn, through_time, best, products))) is expected


def test_loss_that_rises_during_training_is_a_measurement_error() -> None:
    sound, faulty = costs((1.0, 1.0), (1.0, 3.0), 2.5), costs((1.0, 1.0), (1.0, 3.0), 3.5)
    assert not any(expectation.violations() for expectation in CLAIM.expect([sound] * 3))
    violated = [expectation.what for expectation in CLAIM.expect([faulty] * 3) if expectation.violations()]
    assert violated == [f"validation loss of the {name} during training" for name in ("Elman", "GRU", "LSTM")]


def test_time_to_a_loss_is_the_time_of_the_first_lower_point() -> None:
    numbers = costs((1.0, 1.0), (2.0, 4.0), 1.5)
    assert numbers.seconds_to("gru", 2.9, 64) == 2.0
    assert numbers.seconds_to("gru", 1.0, 64) == float("inf")


def test_training_in_one_pass_lowers_the_loss() -> None:
    bench = tiny_bench()
    model = bench.fresh(Family.ESN)
    assert isinstance(model, EchoStateNetwork)
    before = held_out_loss(model, bench.text.held_out)
    train_in_one_pass(model, bench.text.training, batch_size=4, length=16)
    assert held_out_loss(model, bench.text.held_out) < before - 1


def test_result_of_one_pass_does_not_depend_on_the_series_length() -> None:
    bench = tiny_bench()
    losses = []
    for length in (7, 50):
        model = bench.fresh(Family.ESN)
        assert isinstance(model, EchoStateNetwork)
        train_in_one_pass(model, bench.text.training[:4_001], batch_size=4, length=length)
        losses.append(held_out_loss(model, bench.text.held_out))
    assert losses[0] == pytest.approx(losses[1], abs=1e-3)


def test_tiny_run_has_every_training_at_every_length_and_memory_curves() -> None:
    measured = CLAIM.measure(tiny_bench())
    assert measured.numbers.lengths == sorted(TINY.lengths)
    curves = {"LSTM", "LSTM, untrained", "ESN", "ESN, radius 0.9", "ESN, radius 0.9, input × 0.1"}
    assert curves <= set(measured.numbers.memory)
    assert len(CLAIM.draw([measured.numbers]).axes) == 4
    assert all(sentence.endswith(".") for sentence in CLAIM.describe([measured.numbers]))


def test_lengths_beyond_the_budget_are_skipped_and_reported() -> None:
    now = [0.0]

    def tell(line: str) -> None:
        if line == "series of 4 tokens":  # the budget ends during these
            now[0] = 2000.0

    bench = Workbench(small_text(), TINY, Budget.of(1000.0, lambda: now[0]), tell, 1)
    measured = CLAIM.measure(bench)
    assert measured.numbers.lengths == [max(TINY.lengths)]
    assert measured.left_out[-1] == "series of 4 tokens"


def test_budget_that_ends_before_the_first_length_raises() -> None:
    with pytest.raises(OutOfTime):
        CLAIM.measure(tiny_bench(seconds=0.0))
