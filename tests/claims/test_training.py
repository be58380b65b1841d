import numpy as np
import pytest

from claims.budget import Budget
from claims.held_out import Estimate, held_out_loss, token_losses
from claims.sizes import FULL_MINUTES, Sizes, sizes_for
from claims.training import Plan, Streams, train
from models.config import Family
from tests.claims.benches import TINY, tiny_bench


def test_streams_run_on_from_chunk_to_chunk_and_start_again_at_the_end() -> None:
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


def test_training_lowers_the_loss_and_keeps_the_best_weights() -> None:
    bench = tiny_bench()
    before = held_out_loss(bench.fresh(Family.LSTM), bench.validation).mean
    trained = bench.trained(Family.LSTM)
    best = min(point.loss for point in trained.points)
    assert best < before
    assert held_out_loss(trained.model, bench.validation).mean == pytest.approx(best)
    assert not trained.is_cut
    assert trained.steps == TINY.steps


def test_training_stops_where_the_validation_loss_no_longer_falls() -> None:
    bench = tiny_bench()
    ids = bench.text.training[:60]  # learned by heart at once
    plan = Plan(steps=400, batch_size=4, chunk_length=16, evaluate_every=4, patience=2)
    trained = train(bench.fresh(Family.GRU), ids, bench.validation, plan, bench.budget, seed=1)
    assert trained.steps < 400
    assert not trained.is_cut
    assert [point.loss for point in trained.points][-3] == min(point.loss for point in trained.points)


def test_training_ends_with_the_budget() -> None:
    bench = tiny_bench()
    ticks = iter(range(1000))
    budget = Budget.of(5, lambda: float(next(ticks)))
    plan = Plan(steps=50, batch_size=4, chunk_length=16, evaluate_every=10)
    trained = train(bench.fresh(Family.RNN), bench.text.training, bench.validation, plan, budget, seed=1)
    assert trained.is_cut
    assert trained.steps == 4


def test_part_of_a_budget_leaves_the_rest_to_the_others() -> None:
    budget = Budget.of(100.0, lambda: 0.0)
    assert budget.part(0.25).seconds_left == 25.0
    assert budget.seconds_left == 100.0


def test_fewer_minutes_mean_fewer_steps() -> None:
    assert sizes_for(FULL_MINUTES, is_quick=False) == Sizes()
    assert sizes_for(FULL_MINUTES / 2, is_quick=False).steps == Sizes().steps // 2
    assert sizes_for(2 * FULL_MINUTES, is_quick=False) == Sizes()


def test_untrained_readout_has_the_entropy_of_even_odds() -> None:
    bench = tiny_bench()
    model = bench.fresh(Family.ESN)  # its readout is zero
    losses = token_losses(model, bench.pieces(3, 20))
    assert losses.shape == (3, 19)
    assert np.allclose(losses, np.log(bench.text.vocabulary_size), atol=1e-5)


def test_estimate_has_the_standard_error_of_its_mean() -> None:
    estimate = Estimate.of(np.array([1.0, 2.0, 3.0, 4.0]))
    assert estimate.mean == 2.5
    assert estimate.standard_error == pytest.approx(np.std([1, 2, 3, 4], ddof=1) / 2)
