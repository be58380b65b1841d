"""Steps and learning rates."""

import pytest

from meari.models.config import TrainingConfig
from meari.models.training.schedule import chunk_length, learning_rate, num_steps


def test_warmup_is_a_straight_line_up_to_the_peak() -> None:
    config = TrainingConfig(steps=100, learning_rate=0.4, warmup_steps=4)
    assert [learning_rate(config, step, 100) for step in range(4)] == pytest.approx([0.1, 0.2, 0.3, 0.4])


def test_cosine_falls_from_the_peak_over_half_to_the_floor() -> None:
    config = TrainingConfig(steps=110, learning_rate=0.5, min_learning_rate=0.1, warmup_steps=10)
    assert learning_rate(config, 10, 110) == pytest.approx(0.5)
    assert learning_rate(config, 60, 110) == pytest.approx(0.3)
    assert learning_rate(config, 109, 110) == pytest.approx(0.1, abs=1e-3)


def test_without_warmup_the_first_step_takes_the_peak() -> None:
    assert learning_rate(TrainingConfig(steps=10, learning_rate=0.5, warmup_steps=0), 0, 10) == pytest.approx(0.5)


def test_warmup_longer_than_the_run_is_cut() -> None:
    config = TrainingConfig(steps=2, learning_rate=0.5, warmup_steps=100)
    assert [learning_rate(config, step, 2) for step in range(2)] == pytest.approx([0.25, 0.5])


def test_epochs_become_steps() -> None:
    config = TrainingConfig(epochs=1.5, batch_size=4, chunk_length=10)
    assert num_steps(config, 1000) == 38  # 1,500 targets, 40 a step
    assert num_steps(TrainingConfig(steps=7), 1000) == 7


def test_a_chunk_is_never_longer_than_the_corpus() -> None:
    assert chunk_length(TrainingConfig(steps=1, chunk_length=64), 5) == 5
