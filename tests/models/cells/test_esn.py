"""Test the echo state network: step and sequence, its settings, and the echo state property."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from meari.bundle_format.names import Family
from meari.models.cells.esn import EchoStateNetwork
from meari.models.cells.reservoir import RecentTokens, TokenRows
from meari.models.cells.reservoir.gated_readout import GatedReadout, Whitening
from meari.models.choices import Pattern, Reach, Spread
from meari.models.config import ReservoirConfig
from meari.models.families import build_model
from meari.models.language_model import State

VOCABULARY_SIZE = 11
CONFIG = ReservoirConfig(family=Family.ESN, units=96, block_size=16, in_edges=6, spectral_radius=0.9)
BLOCK, RANDOM = CONFIG, replace(CONFIG, pattern=Pattern.RANDOM)
SIDE_BY_SIDE = replace(
    CONFIG, reservoirs=3, spectral_radius_min=0.1, leak_min=0.1, leak_spread=Spread.LOG, leak_bands=True
)
STACKED = replace(CONFIG, layers=3, reservoirs=2)
RECENT = replace(CONFIG, input_tokens=4, embedding_size=5)
EVERYTHING = replace(
    RECENT, layers=2, reservoirs=2, input_reach=Reach.STAGGERED, features=64, feature_block=16, readout_rank=3
)
GATED = replace(EVERYTHING, readout_gated=True, readout_dropout=0.5)
VARIANTS = {
    "one reservoir": CONFIG,
    "side by side": SIDE_BY_SIDE,
    "stacked": STACKED,
    "recent tokens": RECENT,
    "one embedded token": replace(RECENT, input_tokens=1),
    "everything": EVERYTHING,
    "gated": GATED,
}
both_patterns = pytest.mark.parametrize("config", [BLOCK, RANDOM], ids=["block", "random"])


def build(config: ReservoirConfig, seed: int = 1) -> EchoStateNetwork:
    model = build_model(config, VOCABULARY_SIZE, seed)
    assert isinstance(model, EchoStateNetwork)
    return model


def draw_tokens(batch: int, length: int) -> Tensor:
    return torch.randint(VOCABULARY_SIZE, (batch, length), generator=torch.Generator().manual_seed(5))


def draw_state(batch: int, units: int, seed: int = 6) -> dict[str, Tensor]:
    return {"s0": torch.rand(batch, units, generator=torch.Generator().manual_seed(seed)) * 2 - 1}


def draw_states(model: EchoStateNetwork, batch: int, seed: int = 6) -> State:
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.rand(state.shape, generator=generator) * 2 - 1 for name, state in model.initial_state(batch).items()
    }


@pytest.mark.parametrize("pattern", list(Pattern))
@pytest.mark.parametrize("batch", [1, 2, 5])
@pytest.mark.parametrize("variant", list(VARIANTS))
def test_step_and_sequence_agree(variant: str, pattern: Pattern, batch: int) -> None:
    model = build(replace(VARIANTS[variant], pattern=pattern))
    tokens, state = draw_tokens(batch, 40), draw_states(model, batch)
    hidden, last = model(tokens, state)
    assert hidden.shape == (batch, 40, model.hidden_size)
    for time in range(40):
        one, state = model.step(tokens[:, time], state)
        torch.testing.assert_close(one, hidden[:, time], atol=1e-5, rtol=0)
    for name in state:
        torch.testing.assert_close(state[name], last[name], atol=1e-5, rtol=0)


@pytest.mark.parametrize("variant", list(VARIANTS))
def test_sequence_in_pieces_equals_the_whole(variant: str) -> None:
    model, tokens = build(VARIANTS[variant]), draw_tokens(3, 20)
    whole, _ = model(tokens, model.initial_state(3))
    first, state = model(tokens[:, :7], model.initial_state(3))
    second, _ = model(tokens[:, 7:], state)
    torch.testing.assert_close(torch.cat((first, second), 1), whole, atol=1e-6, rtol=0)


@both_patterns
def test_step_matches_the_equation_in_dense_float64(config: ReservoirConfig) -> None:
    model = build(config)
    state, tokens = draw_state(4, config.units), draw_tokens(4, 1)[:, 0]
    (layer,) = model.reservoir_layers
    w = layer.matrix.weights.sparse().toarray()
    assert isinstance(model.entering, TokenRows)
    w_in, leak, bias = (x.double().numpy() for x in (model.entering.rows, layer.leak, layer.bias))
    s = state["s0"].double().numpy()
    expected = (1 - leak) * s + leak * np.tanh(s @ w.T + w_in[tokens.numpy()] + bias)
    hidden, _ = model.step(tokens, state)
    np.testing.assert_allclose(hidden.numpy(), expected, atol=1e-6)


@both_patterns
def test_input_state_is_not_modified(config: ReservoirConfig) -> None:
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
def test_different_initial_states_persist_far_above_radius_one(config: ReservoirConfig) -> None:
    model = build(replace(config, spectral_radius=4.0, input_scale=0.01))
    tokens = draw_tokens(1, 400)
    _, one = model(tokens, draw_state(1, config.units, seed=1))
    _, other = model(tokens, draw_state(1, config.units, seed=2))
    assert (one["s0"] - other["s0"]).abs().max() > 0.1


@both_patterns
def test_measured_radius_equals_the_setting(config: ReservoirConfig) -> None:
    model = build(replace(config, spectral_radius=0.7))
    dense = np.linalg.eigvals(model.reservoir_layers[0].matrix.weights.sparse().toarray())
    assert model.measured_spectral_radius() == pytest.approx(0.7, rel=1e-5)
    assert np.abs(dense).max() == pytest.approx(0.7, rel=1e-5)


@pytest.mark.parametrize("pattern", list(Pattern))
def test_seed_determines_every_matrix(pattern: Pattern) -> None:
    config = replace(EVERYTHING, pattern=pattern)
    one, same, other = build(config, 1).state_dict(), build(config, 1).state_dict(), build(config, 2).state_dict()
    assert all(torch.equal(one[name], same[name]) for name in one)
    drawn = [name for name in one if not name.startswith(("readout", "narrowing"))]
    assert all(not torch.equal(one[name], other[name]) for name in drawn)


def test_setting_of_one_matrix_does_not_change_the_others() -> None:
    plain, other = build(BLOCK).state_dict(), build(replace(BLOCK, block_size=32, input_scale=0.5)).state_dict()
    torch.testing.assert_close(other["entering.rows"], plain["entering.rows"] * 0.5)
    assert torch.equal(plain["layers.0.leak"], other["layers.0.leak"])
    assert torch.equal(plain["layers.0.bias"], other["layers.0.bias"])


def test_drawn_values_lie_within_their_settings() -> None:
    config = replace(BLOCK, units=1024, leak_min=0.2, leak_max=0.6, input_scale=0.3, bias_scale=0.05)
    model = build(config)
    (layer,) = model.reservoir_layers
    assert 0.2 <= float(layer.leak.min()) < 0.21 < 0.59 < float(layer.leak.max()) <= 0.6
    assert isinstance(model.entering, TokenRows)
    assert 0.29 < float(model.entering.rows.abs().max()) <= 0.3
    assert 0.049 < float(layer.bias.abs().max()) <= 0.05


@both_patterns
def test_parallel_reservoirs_have_their_own_radii_and_no_edges_between_them(config: ReservoirConfig) -> None:
    settings = replace(config, reservoirs=3, spectral_radius=0.9, spectral_radius_min=0.1)
    w = build(settings).reservoir_layers[0].matrix.weights.sparse().toarray()
    radii = [float(np.abs(np.linalg.eigvals(w[begin : begin + 32, begin : begin + 32])).max()) for begin in (0, 32, 64)]
    assert radii == pytest.approx([0.1, 0.3, 0.9], rel=1e-4)
    for begin in (0, 32, 64):
        w[begin : begin + 32, begin : begin + 32] = 0
    assert not w.any()


def test_reservoirs_have_bands_of_leaks_from_fast_to_slow() -> None:
    leak = build(SIDE_BY_SIDE).reservoir_layers[0].leak
    edges = [1.0, 10 ** (-1 / 3), 10 ** (-2 / 3), 0.1]
    for number, band in enumerate(leak.split(32)):
        assert edges[number + 1] - 1e-6 <= float(band.min()) <= float(band.max()) <= edges[number] + 1e-6


def test_median_of_logarithmic_leaks_is_the_geometric_mean_of_the_range() -> None:
    config = replace(CONFIG, units=4096, block_size=64, leak_min=0.01, leak_max=1.0, leak_spread=Spread.LOG)
    leak = build(config).reservoir_layers[0].leak
    assert float(leak.min()) >= 0.01
    assert float(leak.max()) <= 1.0
    assert 0.08 < float(leak.median()) < 0.12


@both_patterns
def test_upper_layer_is_driven_by_the_layer_below(config: ReservoirConfig) -> None:
    model = build(replace(config, layers=2))
    state, tokens = draw_states(model, 3), draw_tokens(3, 1)[:, 0]
    hidden, next_state = model.step(tokens, state)
    upper = model.reservoir_layers[1]
    assert upper.below is not None
    w, w_below = (matrix.weights.sparse().toarray() for matrix in (upper.matrix, upper.below))
    s, below = state["s1"].double().numpy(), next_state["s0"].double().numpy()
    leak, bias = upper.leak.double().numpy(), upper.bias.double().numpy()
    expected = (1 - leak) * s + leak * np.tanh(s @ w.T + below @ w_below.T + bias)
    np.testing.assert_allclose(next_state["s1"].numpy(), expected, atol=1e-6)
    assert torch.equal(hidden, torch.cat((next_state["s0"], next_state["s1"]), 1))


def test_staggered_unit_reads_its_number_of_tokens() -> None:
    model = build(replace(RECENT, input_reach=Reach.STAGGERED, spectral_radius=0.0, leak_min=1.0))
    for lag in range(6):
        one, other = torch.full((1, 6), 3), torch.full((1, 6), 3)
        other[0, 5 - lag] = 4
        differs = [model(tokens, model.initial_state(1))[0][0, -1] for tokens in (one, other)]
        changed = (differs[0] != differs[1]).nonzero()[:, 0]
        assert changed.tolist() == [unit for unit in range(96) if lag < min(unit % 4 + 1, 4)]


def test_embeddings_before_the_first_token_are_zero() -> None:
    model = build(RECENT)
    assert isinstance(model.entering, RecentTokens)
    _, state = model(torch.tensor([[7]]), model.initial_state(1))
    assert torch.equal(state["recent"][0, :5], model.entering.embedding[7])
    assert not state["recent"][0, 5:].any()


def test_features_match_the_equation_in_dense_float64() -> None:
    model = build(replace(CONFIG, features=64, feature_block=16, feature_edges=8, feature_scale=2.0))
    assert model.expansion is not None
    hidden = draw_state(3, 96)["s0"]
    dense = np.zeros((64, 96))
    for group, sources in enumerate(model.expansion.sources.tolist()):
        dense[16 * group : 16 * group + 16, sources] = model.expansion.weights[group].double().numpy().T
    features = np.tanh(hidden.double().numpy() @ dense.T + model.expansion.bias.double().numpy().ravel())
    seen = model.readout_states(hidden)
    assert torch.equal(seen[:, :96], hidden)
    np.testing.assert_allclose(seen[:, 96:].numpy(), features, atol=1e-6)


def test_low_rank_readout_is_a_product_of_two_matrices() -> None:
    model = build(EVERYTHING)
    assert model.narrowing is not None
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_()
    hidden = torch.rand(3, model.hidden_size)
    weight = model.readout.weight @ model.narrowing.weight
    bias = model.readout.weight @ model.narrowing.bias + model.readout.bias
    expected = model.readout_states(hidden) @ weight.t() + bias
    torch.testing.assert_close(model.logits(hidden), expected, atol=1e-4, rtol=1e-4)
    assert torch.linalg.matrix_rank(weight) == 3


def whitened(model: EchoStateNetwork) -> tuple[GatedReadout, Whitening]:
    """Let a gated readout with random weights count states from where made-up ones vary evenly."""
    assert model.gated is not None
    generator = torch.Generator().manual_seed(7)
    size = model.readout_inputs
    directions = torch.linalg.qr(torch.randn(size, 9, generator=generator))[0]
    measured = Whitening(
        torch.rand(size, generator=generator),
        torch.rand(size, generator=generator) + 0.5,
        directions,
        torch.rand(10, generator=generator) + 0.5,
    )
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_()
    model.gated.whiten(measured)
    return model.gated, measured


def test_gated_readout_multiplies_pairs_of_sums_of_whitened_states() -> None:
    model = build(GATED).eval()
    gated, measured = whitened(model)
    hidden = torch.rand(3, model.hidden_size)
    z = ((model.readout_states(hidden) - measured.mean) / measured.deviation).double()
    rest = measured.gains[-1].double()
    stretched = measured.directions.double() * (measured.gains[:-1].double() - rest)
    z = rest * z + z @ stretched @ measured.directions.double().t()
    sums = z @ gated.factors.weight.double().t() + gated.factors.bias.double()
    expected = (sums[:, :3] * sums[:, 3:6]) @ gated.output.weight.double().t() + sums[:, 6:]
    torch.testing.assert_close(model.logits(hidden).double(), expected, rtol=1e-4, atol=1e-3)
    weight, bias = gated.folded_factors()
    folded = model.readout_states(hidden).double() @ weight.t() + bias
    torch.testing.assert_close(folded, sums, rtol=1e-5, atol=1e-4)


def test_products_of_a_gated_readout_are_dropped_only_while_training() -> None:
    model = build(GATED)
    whitened(model)
    hidden = torch.rand(2, 5, model.hidden_size)
    assert not torch.equal(model.train().logits(hidden), model.logits(hidden))
    assert torch.equal(model.eval().logits(hidden), model.logits(hidden))
    torch.testing.assert_close(model.logits(hidden)[:, 3], model.logits(hidden[:, 3]), rtol=1e-4, atol=1e-3)


def test_only_the_readout_is_trained() -> None:
    model = build(BLOCK)
    hidden, _ = model(draw_tokens(2, 3), model.initial_state(2))
    assert not hidden.requires_grad
    assert {name for name, weight in model.named_parameters() if weight.requires_grad} == {
        "readout.weight",
        "readout.bias",
    }
    assert {name for name, _ in build(GATED).named_parameters()} == {
        "gated.factors.weight",
        "gated.factors.bias",
        "gated.output.weight",
    }


def test_untrained_readout_gives_a_uniform_distribution() -> None:
    model = build(BLOCK)
    logits = model.logits(draw_state(2, 96)["s0"])
    assert logits.shape == (2, VOCABULARY_SIZE)
    assert torch.equal(logits, torch.zeros_like(logits))
    for config in (EVERYTHING, GATED):
        of_two_factors = build(config)
        assert not of_two_factors.logits(torch.rand(2, of_two_factors.hidden_size)).any()


def test_autocast_to_bfloat16_does_not_affect_the_reservoir() -> None:
    model, tokens = build(EVERYTHING), draw_tokens(2, 20)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_()
    expected, _ = model(tokens, model.initial_state(2))
    with torch.autocast("cpu", torch.bfloat16):
        hidden, state = model(tokens, model.initial_state(2))
        logits = model.logits(hidden)
    assert torch.equal(hidden, expected)
    assert all(tensor.dtype == torch.float32 for tensor in state.values())
    assert torch.equal(logits, model.logits(hidden))
