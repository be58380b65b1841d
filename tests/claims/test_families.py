"""Test counts of multiply-adds against values worked by hand and against torch's counter."""

import numpy as np
import pytest
import torch
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from meari.bundle_format.names import Family
from meari.claims.families import (
    THROUGH_TIME,
    NetSizes,
    one_pass,
    readout_step,
    reservoir,
    through_time,
    whitening_setup,
)
from meari.claims.training import Budget, TrainingPlan, train
from meari.models.config import RecurrentConfig
from meari.models.families import build_model

VOCABULARY, EMBEDDING, UNITS, LENGTH, BATCH = 7, 4, 5, 6, 3


def test_elman_step_worked_by_hand() -> None:
    # Each token: 3 · 4 · 5 + 3 · 5 · 5 + 3 · 7 · 5 = 60 + 75 + 105 = 240; 5 · 5 less at the first: 3 · (6 · 240 - 25).
    assert through_time(Family.RNN, NetSizes(7, 5, embedding=4), batch_size=3, length=6) == 4_245


def test_readout_step_worked_by_hand() -> None:
    # Each of 18 tokens: 4 · 16 + 2 · 7 · 16 = 288; whitening by 8 directions: 4 · 7 · 16 · 8 + 7 · 16 = 3,696.
    assert readout_step(NetSizes(7, 16, block=4), num_directions=8, batch_size=3, length=6) == 18 * 288 + 3_696


def test_one_pass_worked_by_hand() -> None:
    # Each of 10 tokens: 4 · 16 + 16 · 16 = 320; each of 2: 64 + 7 · 16 = 176; solution: 7 · 16 · 16 + 7 · 16 = 1,904.
    assert one_pass(NetSizes(7, 16, block=4), num_fitted=10, num_calibrated=2) == 3_200 + 352 + 1_904


@pytest.mark.parametrize("family", THROUGH_TIME)
def test_step_through_time_matches_the_counter_of_torch(family: Family) -> None:
    model = build_model(RecurrentConfig(family, embedding_size=EMBEDDING, hidden_size=UNITS), VOCABULARY, seed=1)
    tokens = torch.randint(0, VOCABULARY, (BATCH, LENGTH + 1), generator=torch.Generator().manual_seed(1))
    state, outputs = model.initial_state(BATCH), []
    with FlopCounterMode(display=False) as counter:
        for time in range(LENGTH):
            hidden, state = model.step(tokens[:, time], state)
            outputs.append(hidden)
        logits = model.logits(torch.stack(outputs, dim=1))
        functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten()).backward()
    sizes = NetSizes(VOCABULARY, UNITS, embedding=EMBEDDING)
    assert counter.get_total_flops() == 2 * through_time(family, sizes, BATCH, LENGTH)


@pytest.mark.parametrize("num_tokens", [700, 3_000])
def test_training_of_a_readout_matches_the_counter_of_torch(num_tokens: int) -> None:
    ids = np.random.default_rng(1).integers(0, VOCABULARY, num_tokens)
    counted = []
    for steps in (1, 2):
        with FlopCounterMode(display=False) as counter:
            plan = TrainingPlan(steps, BATCH, LENGTH)
            model = build_model(reservoir(16, 4, 0.5), VOCABULARY, seed=1)
            train(model, ids, ids, plan, Budget.of(1.0, lambda: 0.0), seed=1)
        counted.append(counter.get_total_flops() // 2)
    net = NetSizes(VOCABULARY, 16, block=4)
    setup, num_directions = whitening_setup(net, num_tokens)
    step = readout_step(net, num_directions, BATCH, LENGTH)
    shift = VOCABULARY * 16  # the counter ignores matrix-vector products and in-place additions
    assert counted[1] - counted[0] == step - shift
    num_states = (num_tokens - 1) // _pieces(num_tokens) - (64 if _pieces(num_tokens) > 1 else 0)
    in_place = 3 * _pieces(num_tokens) * num_states * 16 * num_directions
    assert 2 * counted[0] - counted[1] == setup - in_place


def _pieces(num_tokens: int) -> int:
    return max(1, (num_tokens - 1) // 256)
