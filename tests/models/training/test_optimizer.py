"""Test AdamW, its state in a checkpoint, the mean of the weights and the penalties."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from meari.bundle_format.names import Family
from meari.models.choices import Averaging
from meari.models.config import RecurrentConfig, TrainingConfig
from meari.models.families import RecurrentLanguageModel
from meari.models.language_model import LanguageModel
from meari.models.training.optimizer import (
    COUNT,
    WeightAverage,
    build_optimizer,
    optimizer_tensors,
    penalty,
    restore_optimizer,
)

IDS = np.arange(8, dtype=np.uint16) % 7
CONFIG = TrainingConfig(steps=10, weight_decay=0.1)


def take_step(model: LanguageModel, optimizer: torch.optim.Optimizer) -> None:
    tokens = torch.arange(12).view(2, 6) % 7
    hidden, _ = model(tokens, model.initial_state(2))
    optimizer.zero_grad()
    nn.functional.cross_entropy(model.logits(hidden).flatten(0, 1), tokens.flatten()).backward()
    optimizer.step()


def test_matrices_decay_but_not_biases_or_embeddings() -> None:
    for tied in (False, True):
        model = RecurrentLanguageModel(RecurrentConfig(Family.GRU, 3, 5, 2, tied=tied), 7)
        decay = {
            id(parameter): group["weight_decay"]
            for group in build_optimizer(model, CONFIG, IDS).param_groups
            for parameter in group["params"]
        }
        decayed = {name for name, parameter in model.named_parameters() if decay[id(parameter)]}
        kernels = {f"layers.{layer}.kernel.weight_{part}_l0" for layer in (0, 1) for part in ("ih", "hh")}
        assert decayed == kernels | ({"projection.weight"} if tied else {"output.weight"})
        assert len(decay) == len(list(model.parameters()))


def test_restored_optimizer_takes_the_same_steps() -> None:
    torch.manual_seed(0)
    model = RecurrentLanguageModel(RecurrentConfig(Family.LSTM, 3, 5), 7)
    optimizer = build_optimizer(model, CONFIG, IDS)
    take_step(model, optimizer)
    tensors = {name: value.clone() for name, value in optimizer_tensors(optimizer, model).items()}
    twin = RecurrentLanguageModel(RecurrentConfig(Family.LSTM, 3, 5), 7)
    twin.load_state_dict(model.state_dict())
    twin_optimizer = build_optimizer(twin, CONFIG, IDS)
    restore_optimizer(twin_optimizer, twin, tensors)
    for _ in range(3):
        take_step(model, optimizer)
        take_step(twin, twin_optimizer)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), twin.parameters(), strict=True))


def one_weight(value: float = 0.0) -> nn.Linear:
    model = nn.Linear(1, 1, bias=False)
    nn.init.constant_(model.weight, value)
    return model


def begun(model: nn.Module, kind: Averaging, **settings: Any) -> WeightAverage:
    return WeightAverage(model, TrainingConfig(averaging=kind, **settings))


def moved(model: nn.Linear, average: WeightAverage, *values: float) -> None:
    """Set the weight to each value in turn and average it."""
    for value in values:
        nn.init.constant_(model.weight, value)
        average.add()


def measured(model: nn.Linear, average: WeightAverage) -> float:
    with average.applied():
        return model.weight.item()


def test_without_averaging_the_current_weights_are_measured() -> None:
    model = one_weight()
    average = begun(model, Averaging.NONE)
    moved(model, average, 1.0, 2.0)
    assert measured(model, average) == 2
    assert average.tensors() == {}


def test_decay_of_ema_rises_to_its_setting() -> None:
    model = one_weight(5.0)
    average = begun(model, Averaging.EMA, ema_decay=0.15)
    expected = 5.0
    for count, value in enumerate([1.0, 2.0, 4.0], 1):
        moved(model, average, value)
        decay = min(0.15, count / (10 + count))  # 1/11, then 0.15
        expected = decay * expected + (1 - decay) * value
    assert measured(model, average) == pytest.approx(expected)
    assert model.weight.item() == 4


def test_triggered_mean_begins_when_evaluations_stop_improving() -> None:
    model = one_weight()
    average = begun(model, Averaging.TRIGGERED, trigger_patience=2)
    moved(model, average, 1.0)
    average.evaluated(1)
    moved(model, average, 100.0)
    assert measured(model, average) == 100
    average.evaluated(2)
    moved(model, average, 1.0, 2.0, 6.0)
    assert measured(model, average) == pytest.approx(3)
    average.evaluated(3)  # the mean does not begin again
    assert measured(model, average) == pytest.approx(3)


def test_weights_are_restored_after_an_error() -> None:
    model = one_weight(1.0)
    average = begun(model, Averaging.EMA)
    moved(model, average, 2.0, 3.0)

    def fail() -> None:
        with average.applied():
            assert model.weight.item() != 3
            raise ValueError("failed")

    with pytest.raises(ValueError, match="failed"):
        fail()
    assert model.weight.item() == 3


@pytest.mark.parametrize("kind", [Averaging.EMA, Averaging.TRIGGERED])
def test_restored_mean_continues_bit_for_bit(kind: Averaging) -> None:
    whole, part = one_weight(), one_weight()
    averages = [begun(model, kind, trigger_patience=1) for model in (whole, part)]
    for model, average in zip((whole, part), averages, strict=True):
        average.evaluated(1)
        moved(model, average, 0.1, 0.7)
    kept = {name: tensor.clone() for name, tensor in averages[1].tensors().items()}
    assert int(kept[COUNT]) == 2
    resumed = begun(part, kind, trigger_patience=1)
    resumed.restore(kept)
    moved(whole, averages[0], 0.3, 0.9)
    moved(part, resumed, 0.3, 0.9)
    with averages[0].applied(), resumed.applied():
        assert torch.equal(whole.weight, part.weight)


def test_frozen_weights_are_left_out() -> None:
    model = nn.Sequential(one_weight(), one_weight())
    model[0].requires_grad_(False)
    assert set(begun(model, Averaging.EMA).tensors()) == {"1.weight", COUNT}


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
def test_penalties_match_values_worked_by_hand(activation: float, temporal: float, expected: float) -> None:
    config = TrainingConfig(activation_regularisation=activation, temporal_regularisation=temporal)
    assert float(penalty(torch.tensor(HIDDEN), config)) == pytest.approx(expected)


def test_single_step_has_no_temporal_penalty() -> None:
    assert float(penalty(torch.ones(2, 1, 3), TrainingConfig(temporal_regularisation=1.0))) == 0


def test_gradient_of_the_activation_penalty_is_proportional_to_the_vectors() -> None:
    hidden = torch.tensor(HIDDEN, requires_grad=True)
    (gradient,) = torch.autograd.grad(penalty(hidden, TrainingConfig(activation_regularisation=1.0)), hidden)
    torch.testing.assert_close(gradient, hidden.detach() * 2 / 6)


def test_step_against_the_temporal_gradient_reduces_changes_and_keeps_the_mean() -> None:
    hidden = torch.tensor(HIDDEN, requires_grad=True)
    config = TrainingConfig(temporal_regularisation=1.0)
    before = penalty(hidden, config)
    (gradient,) = torch.autograd.grad(before, hidden)
    torch.testing.assert_close(gradient.sum(1), torch.zeros(1, 2))
    moved = hidden.detach() - 0.1 * gradient
    assert penalty(moved, config) < before.detach()
    assert moved.diff(dim=1).abs().sum() < hidden.detach().diff(dim=1).abs().sum()
