"""Test the memory curve on networks of known memory."""

import numpy as np
import pytest
import torch
from torch import Tensor

from meari.bundle_format.manifest import StateEntry
from meari.bundle_format.names import STATE_DTYPE
from meari.claims.families import reservoir
from meari.claims.memory import memory_curve
from meari.models.families import build_model
from meari.models.language_model import LanguageModel, State

VOCABULARY = 4


class DelayLine(LanguageModel):
    """Network whose state holds the last `length` tokens, one-hot."""

    def __init__(self, length: int) -> None:
        super().__init__()
        self.length = length
        self.state_tensors = (StateEntry("line", (length, VOCABULARY), STATE_DTYPE),)

    @property
    def device(self) -> torch.device:
        return torch.device("cpu")

    def step(self, tokens: Tensor, state: State) -> tuple[Tensor, State]:
        newest = torch.nn.functional.one_hot(tokens, VOCABULARY).float().unsqueeze(1)
        line = torch.cat((newest, state["line"][:, :-1]), dim=1)
        return line.flatten(1), {"line": line}


def test_delay_line_remembers_its_length_and_nothing_more() -> None:
    curve = memory_curve(DelayLine(3), np.array([1.0, 2.0, 3.0, 4.0]), num_tokens=6_400, num_delays=8, seed=1)
    assert curve.r_squared[:3] == pytest.approx((1.0, 1.0, 1.0), abs=1e-4)
    assert max(curve.r_squared[3:]) < 0.01
    assert curve.capacity == pytest.approx(2.0, abs=0.02)  # delays 1 and 2; the current token does not count as memory
    assert curve.num_states == 3 * VOCABULARY


def test_tokens_of_zero_frequency_are_allowed() -> None:
    curve = memory_curve(DelayLine(1), np.array([0.0, 0.0, 1.0, 1.0]), num_tokens=3_200, num_delays=2, seed=1)
    assert curve.r_squared[0] == pytest.approx(1.0, abs=1e-4)


def test_reservoir_with_weaker_input_remembers_longer() -> None:
    def capacity(scale: float) -> float:
        model = build_model(reservoir(64, 16, 0.9, scale), VOCABULARY, seed=1)
        return memory_curve(model, np.ones(VOCABULARY), num_tokens=6_400, num_delays=20, seed=1).capacity

    assert capacity(0.1) > capacity(1.0) > capacity(10.0)
