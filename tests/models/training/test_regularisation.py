"""The penalties on hidden vectors: their values by hand, and where their gradients lead."""

import pytest
import torch

from meari.models.config import TrainingConfig
from meari.models.training.regularisation import penalty

HIDDEN = [[[1.0, 2.0], [3.0, 2.0], [0.0, 4.0]]]  # [1, 3, 2]


@pytest.mark.parametrize(
    ("activation", "temporal", "expected"),
    [
        (0.0, 0.0, 0.0),
        (1.0, 0.0, (1 + 4 + 9 + 4 + 0 + 16) / 6),
        (0.0, 1.0, (4 + 0 + 9 + 4) / 4),
        (0.5, 2.0, 0.5 * 34 / 6 + 2 * 17 / 4),
    ],
)
def test_penalties_by_hand(activation: float, temporal: float, expected: float) -> None:
    config = TrainingConfig(activation_regularisation=activation, temporal_regularisation=temporal)
    assert float(penalty(torch.tensor(HIDDEN), config)) == pytest.approx(expected)


def test_one_step_does_not_change() -> None:
    assert float(penalty(torch.ones(2, 1, 3), TrainingConfig(temporal_regularisation=1.0))) == 0


def test_a_step_against_the_gradient_makes_vectors_smaller() -> None:
    hidden = torch.tensor(HIDDEN, requires_grad=True)
    (gradient,) = torch.autograd.grad(penalty(hidden, TrainingConfig(activation_regularisation=1.0)), hidden)
    torch.testing.assert_close(gradient, hidden.detach() * 2 / 6)


def test_a_step_against_the_temporal_gradient_makes_vectors_alike_and_keeps_their_mean() -> None:
    hidden = torch.tensor(HIDDEN, requires_grad=True)
    config = TrainingConfig(temporal_regularisation=1.0)
    before = penalty(hidden, config)
    (gradient,) = torch.autograd.grad(before, hidden)
    torch.testing.assert_close(gradient.sum(1), torch.zeros(1, 2))
    moved = hidden.detach() - 0.1 * gradient
    assert penalty(moved, config) < before.detach()
    assert moved.diff(dim=1).abs().sum() < hidden.detach().diff(dim=1).abs().sum()
