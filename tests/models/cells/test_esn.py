"""The echo state network: both forms, its settings, and the property it is named after."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from models.cells.esn import EchoStateNetwork
from models.config import Family, Pattern, ReservoirConfig
from models.language_model import build_model

VOCABULARY_SIZE = 11
CONFIG = ReservoirConfig(family=Family.ESN, units=96, block_size=16, in_edges=6, spectral_radius=0.9)
BLOCK, RANDOM = CONFIG, replace(CONFIG, pattern=Pattern.RANDOM)
both_patterns = pytest.mark.parametrize("config", [BLOCK, RANDOM], ids=["block", "random"])


def build(config: ReservoirConfig, seed: int = 1) -> EchoStateNetwork:
    model = build_model(config, VOCABULARY_SIZE, seed)
    assert isinstance(model, EchoStateNetwork)
    return model


def draw_tokens(batch: int, length: int) -> Tensor:
    return torch.randint(VOCABULARY_SIZE, (batch, length), generator=torch.Generator().manual_seed(5))


def draw_state(batch: int, units: int, seed: int = 6) -> dict[str, Tensor]:
    return {"s0": torch.rand(batch, units, generator=torch.Generator().manual_seed(seed)) * 2 - 1}


@both_patterns
@pytest.mark.parametrize("batch", [1, 2, 5])
def test_step_and_sequence_agree(config: ReservoirConfig, batch: int) -> None:
    model = build(config)
    tokens, state = draw_tokens(batch, 40), draw_state(batch, config.units)
    hidden, last = model(tokens, state)
    for time in range(40):
        one, state = model.step(tokens[:, time], state)
        torch.testing.assert_close(one, hidden[:, time], atol=1e-5, rtol=0)
    torch.testing.assert_close(state["s0"], last["s0"], atol=1e-5, rtol=0)


@both_patterns
def test_sequence_in_pieces_equals_the_whole(config: ReservoirConfig) -> None:
    model, tokens = build(config), draw_tokens(3, 20)
    whole, _ = model(tokens, model.initial_state(3))
    first, state = model(tokens[:, :7], model.initial_state(3))
    second, _ = model(tokens[:, 7:], state)
    assert torch.equal(torch.cat((first, second), 1), whole)


@both_patterns
def test_a_step_is_the_equation_in_dense_float64(config: ReservoirConfig) -> None:
    model = build(config)
    state, tokens = draw_state(4, config.units), draw_tokens(4, 1)[:, 0]
    w = model.recurrent_weights.sparse().toarray()
    w_in, leak, bias = (x.double().numpy() for x in (model.input_weights, model.leak, model.bias))
    s = state["s0"].double().numpy()
    expected = (1 - leak) * s + leak * np.tanh(s @ w.T + w_in[tokens.numpy()] + bias)
    hidden, _ = model.step(tokens, state)
    np.testing.assert_allclose(hidden.numpy(), expected, atol=1e-6)


@both_patterns
def test_states_given_are_left_as_they_were(config: ReservoirConfig) -> None:
    model, state = build(config), draw_state(2, config.units)
    before = state["s0"].clone()
    model(draw_tokens(2, 5), state)
    model.step(draw_tokens(2, 1)[:, 0], state)
    assert torch.equal(state["s0"], before)


@both_patterns
@pytest.mark.parametrize("radius", [0.5, 0.9])
def test_different_initial_states_are_forgotten_below_radius_one(config: ReservoirConfig, radius: float) -> None:
    model = build(replace(config, spectral_radius=radius))
    tokens = draw_tokens(1, 400)
    _, one = model(tokens, draw_state(1, config.units, seed=1))
    _, other = model(tokens, draw_state(1, config.units, seed=2))
    torch.testing.assert_close(one["s0"], other["s0"], atol=1e-5, rtol=0)


@both_patterns
def test_different_initial_states_are_kept_far_above_radius_one(config: ReservoirConfig) -> None:
    model = build(replace(config, spectral_radius=4.0, input_scale=0.01))
    tokens = draw_tokens(1, 400)
    _, one = model(tokens, draw_state(1, config.units, seed=1))
    _, other = model(tokens, draw_state(1, config.units, seed=2))
    assert (one["s0"] - other["s0"]).abs().max() > 0.1


@both_patterns
def test_the_radius_that_was_set_is_measured(config: ReservoirConfig) -> None:
    model = build(replace(config, spectral_radius=0.7))
    dense = np.linalg.eigvals(model.recurrent_weights.sparse().toarray())
    assert model.measured_spectral_radius() == pytest.approx(0.7, rel=1e-5)
    assert np.abs(dense).max() == pytest.approx(0.7, rel=1e-5)


@both_patterns
def test_a_seed_fixes_every_matrix(config: ReservoirConfig) -> None:
    one, same, other = build(config, 1).state_dict(), build(config, 1).state_dict(), build(config, 2).state_dict()
    assert all(torch.equal(one[name], same[name]) for name in one)
    drawn = [name for name in one if not name.startswith("readout")]
    assert all(not torch.equal(one[name], other[name]) for name in drawn)


def test_a_setting_of_one_matrix_leaves_the_others_as_they_were() -> None:
    plain, other = build(BLOCK).state_dict(), build(replace(BLOCK, block_size=32, input_scale=0.5)).state_dict()
    torch.testing.assert_close(other["input_weights"], plain["input_weights"] * 0.5)
    assert torch.equal(plain["leak"], other["leak"])
    assert torch.equal(plain["bias"], other["bias"])


def test_settings_bound_what_is_drawn() -> None:
    config = replace(BLOCK, units=1024, leak_min=0.2, leak_max=0.6, input_scale=0.3, bias_scale=0.05)
    model = build(config)
    assert 0.2 <= float(model.leak.min()) < 0.21 < 0.59 < float(model.leak.max()) <= 0.6
    assert 0.29 < float(model.input_weights.abs().max()) <= 0.3
    assert 0.049 < float(model.bias.abs().max()) <= 0.05


def test_only_the_readout_is_trained() -> None:
    model = build(BLOCK)
    hidden, _ = model(draw_tokens(2, 3), model.initial_state(2))
    assert not hidden.requires_grad
    assert {name for name, weight in model.named_parameters() if weight.requires_grad} == {
        "readout.weight",
        "readout.bias",
    }


def test_a_fresh_readout_finds_every_token_equally_likely() -> None:
    model = build(BLOCK)
    logits = model.logits(draw_state(2, 96)["s0"])
    assert logits.shape == (2, VOCABULARY_SIZE)
    assert torch.equal(logits, torch.zeros_like(logits))
