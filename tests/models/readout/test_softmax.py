"""Test states, their whitening, and the optimizer that steps in whitened coordinates."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from meari.bundle_format.names import Family
from meari.models.cells.esn import EchoStateNetwork, build_esn
from meari.models.cells.reservoir.gated_readout import Whitening
from meari.models.config import ReservoirConfig, TrainingConfig
from meari.models.readout.softmax import DAMPING, ReadoutAdamW, measure_whitening, readout_optimizer
from meari.models.readout.states import state_chunks

UNITS, VOCABULARY_SIZE = 64, 9
RANK = UNITS // 2


def build() -> EchoStateNetwork:
    return build_esn(ReservoirConfig(family=Family.ESN, units=UNITS, block_size=16), VOCABULARY_SIZE, 1)


def draw_ids(length: int) -> np.ndarray:
    return np.random.default_rng(2).integers(VOCABULARY_SIZE, size=length).astype(np.uint16)


def all_states(model: EchoStateNetwork, ids: np.ndarray) -> Tensor:
    return torch.cat([states for states, _ in state_chunks(model, ids)])


def test_short_text_gives_every_state() -> None:
    model, ids = build(), draw_ids(300)
    tokens = torch.from_numpy(ids.astype(np.int64))
    expected, _ = model(tokens[None, :-1], model.initial_state(1))
    chunks = list(state_chunks(model, ids))
    torch.testing.assert_close(torch.cat([states for states, _ in chunks]), expected[0])
    assert torch.equal(torch.cat([targets for _, targets in chunks]), tokens[1:])


def test_long_text_gives_most_states_in_bounded_chunks() -> None:
    model, ids = build(), draw_ids(50_000)
    chunks = list(state_chunks(model, ids))
    assert max(len(states) for states, _ in chunks) <= 4096
    assert sum(len(targets) for _, targets in chunks) > 0.9 * len(ids) - 64 * 64


def test_whitening_finds_the_leading_directions() -> None:
    model, ids = build(), draw_ids(20_000)
    whitening = measure_whitening(model, ids, 0)
    states = all_states(model, ids)
    standard = ((states - states.mean(0)) / states.std(0, correction=0)).double()
    values = torch.linalg.eigvalsh(standard.t() @ standard / len(standard)).flip(0)
    torch.testing.assert_close(whitening.mean, states.mean(0), atol=1e-5, rtol=0)
    found = whitening.gains[-9:-1].double() ** -2 - DAMPING  # the last one is the gain of all other directions
    torch.testing.assert_close(found.sort(descending=True).values, values[:8], atol=0, rtol=0.05)
    identity = torch.eye(RANK)
    torch.testing.assert_close(whitening.directions.t() @ whitening.directions, identity, atol=1e-5, rtol=0)


def test_whitening_reduces_the_condition_number_of_the_states() -> None:
    model, ids = build(), draw_ids(20_000)
    whitening = measure_whitening(model, ids, 0)
    states = all_states(model, ids)
    # The weights of each row of the identity give one whitened direction.
    whitened = (states - whitening.mean) @ whitening.weights(torch.eye(UNITS)).t()
    before = torch.linalg.cond(torch.cov(states.t()))
    assert torch.linalg.cond(torch.cov(whitened.t())) < before / 10


def draw_whitening() -> Whitening:
    generator = torch.Generator().manual_seed(3)
    mean, deviation = torch.randn(UNITS, generator=generator), torch.rand(UNITS, generator=generator) + 0.5
    directions = torch.linalg.qr(torch.randn(UNITS, 4, generator=generator))[0]
    return Whitening(mean, deviation, directions, torch.tensor([0.2, 0.4, 0.6, 0.8, 2.0]))


def test_gradient_matches_that_of_the_whitened_coordinates() -> None:
    whitening = draw_whitening()
    coordinates = torch.randn(VOCABULARY_SIZE, UNITS, requires_grad=True)
    free_bias = torch.randn(VOCABULARY_SIZE, requires_grad=True)
    weight = whitening.weights(coordinates)
    bias = free_bias - whitening.bias_shift(weight)
    weight.retain_grad()
    bias.retain_grad()
    states, targets = torch.randn(50, UNITS), torch.randint(VOCABULARY_SIZE, (50,))
    functional.cross_entropy(functional.linear(states, weight, bias), targets).backward()
    assert weight.grad is not None
    assert bias.grad is not None
    # weight.grad includes the path through the bias, which the optimizer does not see.
    direct = weight.grad + torch.outer(bias.grad, whitening.mean)
    torch.testing.assert_close(whitening.gradient(direct, bias.grad), coordinates.grad, atol=1e-6, rtol=1e-4)
    torch.testing.assert_close(bias.grad, free_bias.grad)


def test_steps_without_whitening_match_adamw_of_torch() -> None:
    plain = Whitening(torch.zeros(UNITS), torch.ones(UNITS), torch.eye(UNITS)[:, :1], torch.ones(2))
    ours, theirs = nn.Linear(UNITS, VOCABULARY_SIZE), nn.Linear(UNITS, VOCABULARY_SIZE)
    for layer in (ours, theirs):
        nn.init.zeros_(layer.weight)
        nn.init.zeros_(layer.bias)
    one = ReadoutAdamW(ours, lambda: plain, lr=0.05, betas=(0.9, 0.99), weight_decay=0.1)
    groups = [{"params": [theirs.weight], "weight_decay": 0.1}, {"params": [theirs.bias], "weight_decay": 0.0}]
    other = torch.optim.AdamW(groups, lr=0.05, betas=(0.9, 0.99), eps=1e-10)
    generator = torch.Generator().manual_seed(1)
    for _ in range(5):
        states = torch.randn(30, UNITS, generator=generator)
        targets = torch.randint(VOCABULARY_SIZE, (30,), generator=generator)
        for layer, optimizer in ((ours, one), (theirs, other)):
            optimizer.zero_grad()
            functional.cross_entropy(layer(states), targets).backward()
            optimizer.step()
    torch.testing.assert_close(ours.weight, theirs.weight, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(ours.bias, theirs.bias, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("steps", [60])
def test_whitened_steps_learn_faster_than_plain_ones(steps: int) -> None:
    model, ids = build(), draw_ids(4000)
    ids[2::2] = ids[1:-1:2]  # every second token repeats its predecessor
    states = all_states(model, ids)
    targets = torch.cat([targets for _, targets in state_chunks(model, ids)])

    def loss_after(optimizer: torch.optim.Optimizer, layer: nn.Linear) -> float:
        nn.init.zeros_(layer.weight)
        nn.init.zeros_(layer.bias)
        for _ in range(steps):
            optimizer.zero_grad()
            functional.cross_entropy(layer(states), targets).backward()
            optimizer.step()
        return functional.cross_entropy(layer(states), targets).item()

    whitened, plain = model.readout, nn.Linear(UNITS, VOCABULARY_SIZE)
    ours = ReadoutAdamW(
        whitened, lambda: measure_whitening(model, ids, 0), lr=0.02, betas=(0.9, 0.99), weight_decay=0.0
    )
    theirs = torch.optim.AdamW(plain.parameters(), lr=0.02, betas=(0.9, 0.99), weight_decay=0.0)
    assert loss_after(ours, whitened) < loss_after(theirs, plain)


def test_low_rank_readout_trains_both_matrices() -> None:
    config = ReservoirConfig(family=Family.ESN, units=UNITS, block_size=16, readout_rank=4)
    model, ids = build_esn(config, VOCABULARY_SIZE, 1), draw_ids(4000)
    ids[2::2] = ids[1:-1:2]  # every second token repeats its predecessor
    optimizer = readout_optimizer(model, ids, TrainingConfig(steps=60, learning_rate=0.02, weight_decay=0.0))
    tokens = torch.from_numpy(ids.astype(np.int64))[None]
    hidden, _ = model(tokens[:, :-1], model.initial_state(1))
    losses = []
    for _ in range(60):
        optimizer.zero_grad()
        loss = functional.cross_entropy(model.logits(hidden)[0], tokens[0, 1:])
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[0] == pytest.approx(np.log(VOCABULARY_SIZE), rel=1e-4)
    assert losses[-1] < losses[0] - 0.1
