from collections.abc import Callable

import numpy as np
import pytest

from meari.bundle_format.names import Family
from meari.claims.evaluation import held_out_loss, token_losses
from meari.claims.sizes import FULL_MINUTES, QUICK, Sizes, below_judged, sizes_for
from meari.claims.training import MEMORISED_LOSS, Budget, Streams, TrainedModel, TrainingPlan, train, train_fitting
from tests.claims.workbenches import TINY, tiny_bench


def test_streams_continue_across_chunks_and_restart_at_the_end() -> None:
    ids = np.arange(100)
    streams = Streams(ids, batch_size=2, length=10, generator=np.random.default_rng(1))
    rows, _ = streams.next_chunk()
    following, fresh_then = streams.next_chunk()
    for stream in range(2):
        assert np.array_equal(np.diff(rows[stream].numpy()), np.ones(10))
        assert fresh_then[stream] or following[stream, 0] == rows[stream, -1]
    seen = [streams.next_chunk() for _ in range(200)]
    assert max(int(rows.max()) for rows, _ in seen) <= 99
    assert any(bool(fresh.any()) for _, fresh in seen)


def test_training_lowers_the_loss_and_returns_the_final_weights() -> None:
    bench = tiny_bench()
    before = held_out_loss(bench.fresh(Family.LSTM), bench.validation)
    trained = bench.trained(Family.LSTM)
    assert trained.loss < before
    assert held_out_loss(trained.model, bench.validation) == pytest.approx(trained.loss)
    assert not trained.is_cut
    assert trained.steps == TINY.steps


def train_to_overfit(plan: TrainingPlan, fit: Callable[..., TrainedModel]) -> TrainedModel:
    """Train on a text so short that the validation loss soon rises."""
    bench = tiny_bench()
    return fit(lambda: bench.fresh(Family.GRU), bench.text.training[:30], bench.validation, plan, bench.budget, 1)


def test_training_completes_its_schedule_despite_a_rising_validation_loss() -> None:
    plan = TrainingPlan(steps=300, batch_size=4, chunk_length=16, evaluate_every=20)
    trained = train_to_overfit(plan, lambda make, *rest: train(make(), *rest))
    assert trained.steps == trained.points[-1].step == 300
    assert not trained.is_cut
    assert trained.rise > MEMORISED_LOSS


def test_memorised_text_gets_a_shorter_schedule() -> None:
    plan = TrainingPlan(steps=400, batch_size=4, chunk_length=16, evaluate_every=16)
    whole = train_to_overfit(plan, lambda make, *rest: train(make(), *rest))
    fitting = train_to_overfit(plan, train_fitting)
    assert whole.rise > MEMORISED_LOSS
    assert fitting.steps == fitting.points[-1].step < 400
    assert fitting.loss < whole.loss - MEMORISED_LOSS


def test_training_ends_with_the_budget() -> None:
    bench = tiny_bench()
    ticks = iter(range(1000))
    budget = Budget.of(5, lambda: float(next(ticks)))
    plan = TrainingPlan(steps=50, batch_size=4, chunk_length=16, evaluate_every=10)
    trained = train(bench.fresh(Family.RNN), bench.text.training, bench.validation, plan, budget, seed=1)
    assert trained.is_cut
    assert trained.steps == 4


def test_part_of_a_budget_does_not_change_the_whole() -> None:
    budget = Budget.of(100.0, lambda: 0.0)
    assert budget.part(0.25).seconds_left == 25.0
    assert budget.seconds_left == 100.0


def test_fewer_minutes_give_fewer_steps() -> None:
    assert sizes_for(FULL_MINUTES, is_quick=False) == Sizes()
    assert sizes_for(FULL_MINUTES / 2, is_quick=False).steps == Sizes().steps // 2
    assert sizes_for(2 * FULL_MINUTES, is_quick=False) == Sizes()


def test_untrained_readout_has_the_loss_of_a_uniform_distribution() -> None:
    bench = tiny_bench()
    model = bench.fresh(Family.ESN)  # its readout is zero
    losses = token_losses(model, bench.pieces(3, 20))
    assert losses.shape == (3, 19)
    assert np.allclose(losses, np.log(bench.text.vocabulary_size), atol=1e-5)


def test_only_the_sizes_of_a_full_run_are_judged() -> None:
    assert below_judged(Sizes(), 600_000) == ()
    assert (
        below_judged(sizes_for(FULL_MINUTES / 10, is_quick=False), 600_000)[0] == "training steps: 60, judged from 300"
    )
    assert below_judged(Sizes(), 50_000) == ("characters of text: 50,000, judged from 300,000",)
    assert "seeds: 1, judged from 3" in below_judged(QUICK, 600_000)
