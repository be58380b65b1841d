"""The mean of the weights: by hand on a model of one weight, applied and taken off, saved and restored."""

from typing import Any

import pytest
import torch
from torch import nn

from meari.models.choices import Averaging
from meari.models.config import TrainingConfig
from meari.models.training.averaging import COUNT, WeightAverage


def one_weight(value: float = 0.0) -> nn.Linear:
    model = nn.Linear(1, 1, bias=False)
    nn.init.constant_(model.weight, value)
    return model


def begun(model: nn.Module, kind: Averaging, **settings: Any) -> WeightAverage:
    return WeightAverage(model, TrainingConfig(averaging=kind, **settings))


def moved(model: nn.Linear, average: WeightAverage, *values: float) -> None:
    """Steps after which the weight has these values."""
    for value in values:
        nn.init.constant_(model.weight, value)
        average.add()


def measured(model: nn.Linear, average: WeightAverage) -> float:
    with average.applied():
        return model.weight.item()


def test_without_averaging_the_weights_are_measured_themselves() -> None:
    model = one_weight()
    average = begun(model, Averaging.NONE)
    moved(model, average, 1.0, 2.0)
    assert measured(model, average) == 2
    assert average.tensors() == {}


def test_the_decay_of_ema_rises_to_what_was_asked_for() -> None:
    model = one_weight(5.0)
    average = begun(model, Averaging.EMA, ema_decay=0.15)
    expected = 5.0
    for count, value in enumerate([1.0, 2.0, 4.0], 1):
        moved(model, average, value)
        decay = min(0.15, count / (10 + count))  # 1/11, then 0.15
        expected = decay * expected + (1 - decay) * value
    assert measured(model, average) == pytest.approx(expected)
    assert model.weight.item() == 4


def test_a_triggered_mean_begins_where_evaluations_stopped_to_improve() -> None:
    model = one_weight()
    average = begun(model, Averaging.TRIGGERED, trigger_patience=2)
    moved(model, average, 1.0)
    average.evaluated(1)
    moved(model, average, 100.0)
    assert measured(model, average) == 100
    average.evaluated(2)
    moved(model, average, 1.0, 2.0, 6.0)
    assert measured(model, average) == pytest.approx(3)
    average.evaluated(3)  # what has begun does not begin again
    assert measured(model, average) == pytest.approx(3)


def test_the_weights_come_back_also_after_an_error() -> None:
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
def test_a_restored_mean_goes_on_bit_for_bit(kind: Averaging) -> None:
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
