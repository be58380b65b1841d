"""Test the language models: step and sequence agree, the equations are right, and families share one interface."""

import math

import pytest
import torch
from torch import Tensor, nn

from meari.bundle_format.names import Family
from meari.models.cells import LstmCell
from meari.models.config import ModelConfig, RecurrentConfig, ReservoirConfig
from meari.models.dropout import dropout_mask
from meari.models.families import RecurrentLanguageModel, build_model
from meari.models.language_model import LanguageModel, State

VOCABULARY = 37


def recurrent(family: str, num_layers: int = 1, *, tied: bool = False, dropout: float = 0.0) -> RecurrentConfig:
    return RecurrentConfig(Family(family), 13, 29, num_layers, dropout, tied)


OPTIONS = {
    "layer sizes": RecurrentConfig(Family.GRU, 13, layer_sizes=(40, 16, 27)),
    "layer norm": RecurrentConfig(Family.RNN, 13, 29, 2, layer_norm=True),
    "initial state": RecurrentConfig(Family.LSTM, 13, 29, 2, learned_initial_state=True),
    "mogrifier": RecurrentConfig(Family.LSTM, 13, 29, 2, mogrifier_rounds=5),
    "adaptive softmax": RecurrentConfig(Family.GRU, 13, 29, adaptive_cutoffs=(8, 20)),
    "all of them": RecurrentConfig(
        Family.LSTM,
        13,
        layer_sizes=(24, 29),
        layer_norm=True,
        learned_initial_state=True,
        mogrifier_rounds=4,
        adaptive_cutoffs=(8, 20),
    ),
}


def nonzero_model(config: RecurrentConfig) -> RecurrentLanguageModel:
    """Make a model without zero weights, biases or initial states."""
    model = build_model(config, VOCABULARY, seed=3).eval()
    assert isinstance(model, RecurrentLanguageModel)
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def run_steps(model: LanguageModel, tokens: Tensor, state: State) -> tuple[Tensor, State]:
    hidden = []
    for time in range(tokens.shape[1]):
        row, state = model.step(tokens[:, time], state)
        hidden.append(row)
    return torch.stack(hidden, dim=1), state


def random_state(model: LanguageModel, batch: int) -> State:
    return {tensor.name: torch.randn(batch, *tensor.shape) * 0.5 for tensor in model.state_tensors}


@pytest.mark.parametrize("num_layers", [1, 3])
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("family", ["rnn", "gru", "lstm"])
@torch.no_grad()
def test_step_agrees_with_the_whole_sequence(family: str, tied: bool, num_layers: int) -> None:
    torch.manual_seed(0)
    model = build_model(recurrent(family, num_layers, tied=tied, dropout=0.3), VOCABULARY, seed=3).eval()
    tokens = torch.randint(VOCABULARY, (3, 700))
    state = random_state(model, 3)
    hidden, last = model(tokens, state)
    stepped, stepped_last = run_steps(model, tokens, state)
    assert (hidden - stepped).abs().max() < 1e-5
    assert (model.logits(hidden) - model.logits(stepped)).abs().max() < 1e-5
    assert list(last) == [tensor.name for tensor in model.state_tensors] == list(stepped_last)
    assert all((last[name] - stepped_last[name]).abs().max() < 1e-5 for name in last)


@pytest.mark.parametrize("name", OPTIONS)
@torch.no_grad()
def test_step_agrees_with_the_sequence_with_every_option(name: str) -> None:
    model = nonzero_model(OPTIONS[name])
    tokens = torch.arange(3 * 90).view(3, 90) * 7 % VOCABULARY
    hidden, last = model(tokens, model.initial_state(3))
    stepped, stepped_last = run_steps(model, tokens, model.initial_state(3))
    assert hidden.shape == (3, 90, model.hidden_size)
    assert (hidden - stepped).abs().max() < 1e-5
    assert all((last[name] - stepped_last[name]).abs().max() < 1e-5 for name in last)
    assert [(tensor.name, tensor.shape) for tensor in model.state_tensors] == [
        (name, tuple(tensor.shape[1:])) for name, tensor in last.items()
    ]


@pytest.mark.parametrize("name", OPTIONS)
@torch.no_grad()
def test_sequence_in_bfloat16_is_close_to_float32(name: str) -> None:
    model = nonzero_model(OPTIONS[name])
    tokens = torch.arange(3 * 40).view(3, 40) * 7 % VOCABULARY
    expected = model.logits(model(tokens, model.initial_state(3))[0]).log_softmax(-1)
    with torch.autocast("cpu", torch.bfloat16):
        hidden, last = model(tokens, model.initial_state(3))
        loss = model.loss(hidden, tokens)
    logprobs = model.logits(hidden.float()).log_softmax(-1)
    assert (logprobs - expected).abs().max() < 0.1
    assert loss.item() == pytest.approx(-expected.gather(2, tokens[..., None]).mean().item(), abs=0.02)
    assert all(tensor.dtype == torch.float32 for tensor in last.values())


def test_learned_initial_state_gets_a_gradient_and_starts_every_text() -> None:
    model = nonzero_model(OPTIONS["initial state"])
    tokens = torch.arange(12).view(2, 6)
    hidden, state = model(tokens, model.initial_state(2))
    model.loss(hidden, tokens).backward()
    for name, parameter in model.initial.items():
        assert isinstance(parameter, Tensor)
        assert parameter.grad is not None
        assert parameter.grad.abs().min() > 0, name
        assert torch.equal(model.initial_state(2)[name], torch.stack([parameter, parameter]))
    restarted = model.restarted(state, torch.tensor([False, True]))
    assert torch.equal(restarted["c1"][0], state["c1"][0])
    assert torch.equal(restarted["c1"][1], model.initial["c1"])


@torch.no_grad()
def test_untrained_layer_norm_gives_outputs_of_mean_zero_and_variance_one() -> None:
    model = build_model(RecurrentConfig(Family.GRU, 13, 29, 2, layer_norm=True), VOCABULARY, seed=1)
    hidden, state = model(torch.arange(20).view(2, 10), model.initial_state(2))
    torch.testing.assert_close(hidden.mean(-1), torch.zeros(2, 10), atol=1e-5, rtol=0)
    torch.testing.assert_close(hidden.var(-1, unbiased=False), torch.ones(2, 10), atol=0.05, rtol=0)
    assert (state["h1"] - hidden[:, -1]).abs().max() > 0.1  # the state is not normalised


@torch.no_grad()
def test_mogrifier_matches_the_equations_of_the_paper_worked_by_hand() -> None:
    cell = LstmCell(1, 1, mogrifier_rounds=3)
    for mogrifier, weight in zip(cell.mogrifiers.parameters(), (0.5, -1.0, 2.0), strict=True):
        mogrifier.fill_(weight)
    x, h = 0.8, 0.3
    x *= 2 / (1 + math.exp(-0.5 * h))
    h *= 2 / (1 + math.exp(1.0 * x))
    x *= 2 / (1 + math.exp(-2.0 * h))
    plain = LstmCell(1, 1)
    plain.kernel.load_state_dict(cell.kernel.state_dict())
    c = torch.tensor([[-0.4]])
    expected = plain.step(torch.tensor([[x]]), (torch.tensor([[h]]), c))[1]
    found = cell.step(torch.tensor([[0.8]]), (torch.tensor([[0.3]]), c))[1]
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)


def test_each_layer_has_its_configured_size() -> None:
    model = build_model(RecurrentConfig(Family.RNN, 13, layer_sizes=(40, 16, 27)), VOCABULARY, seed=1)
    assert [tensor.shape for tensor in model.state_tensors] == [(40,), (16,), (27,)]
    assert model.hidden_size == 27


@pytest.mark.parametrize("family", ["rnn", "gru", "lstm"])
@torch.no_grad()
def test_sequence_in_pieces_equals_the_whole_sequence(family: str) -> None:
    model = build_model(recurrent(family, 2), VOCABULARY, seed=1).eval()
    tokens = torch.arange(90).view(2, 45) % VOCABULARY
    whole, last = model(tokens, model.initial_state(2))
    first, middle = model(tokens[:, :20], model.initial_state(2))
    second, end = model(tokens[:, 20:], middle)
    torch.testing.assert_close(torch.cat([first, second], dim=1), whole, atol=1e-6, rtol=0)
    torch.testing.assert_close(end, last, atol=1e-6, rtol=0)


@pytest.mark.parametrize("family", ["rnn", "gru", "lstm"])
def test_gradients_of_both_forms_agree(family: str) -> None:
    model = build_model(recurrent(family, 2, tied=True), VOCABULARY, seed=1)
    tokens = torch.arange(22).view(2, 11) % VOCABULARY
    gradients = []
    for run in (model.forward, lambda ids, state: run_steps(model, ids, state)):
        model.zero_grad()
        hidden, _ = run(tokens, model.initial_state(2))
        nn.functional.cross_entropy(model.logits(hidden).flatten(0, 1), tokens.flatten()).backward()
        gradients.append([parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None])
    torch.testing.assert_close(gradients[0], gradients[1], atol=1e-6, rtol=1e-4)


@torch.no_grad()
def test_elman_step_matches_the_equation_worked_by_hand() -> None:
    model = RecurrentLanguageModel(RecurrentConfig(Family.RNN, 1, 1), 2)
    kernel = model.cells[0].kernel
    model.embedding.weight.copy_(torch.tensor([[1.0], [2.0]]))
    for name, value in (("weight_ih_l0", 0.5), ("weight_hh_l0", -0.25), ("bias_ih_l0", 0.1), ("bias_hh_l0", 0.0)):
        getattr(kernel, name).fill_(value)
    hidden, _ = model.step(torch.tensor([1]), {"h0": torch.tensor([[0.4]])})
    assert hidden.item() == pytest.approx(0.7615941559557649)  # tanh(0.5 * 2 - 0.25 * 0.4 + 0.1) = tanh(1)


@torch.no_grad()
def test_gru_and_lstm_steps_agree_with_the_cells_of_torch() -> None:
    for family, oracle in (("gru", nn.GRUCell(13, 29)), ("lstm", nn.LSTMCell(13, 29))):
        model = RecurrentLanguageModel(RecurrentConfig(Family(family), 13, 29), VOCABULARY)
        kernel: nn.Module = model.cells[0].kernel
        weights = {name.removesuffix("_l0"): value for name, value in kernel.named_parameters()}
        for name, parameter in oracle.named_parameters():
            parameter.copy_(weights[name])
        tokens, state = torch.tensor([4, 9]), random_state(model, 2)
        x = model.embedding(tokens)
        expected = oracle(x, state["h0"]) if family == "gru" else oracle(x, (state["h0"], state["c0"]))[0]
        torch.testing.assert_close(model.step(tokens, state)[0], expected, atol=1e-6, rtol=0)


def test_seed_determines_the_weights_without_changing_the_generator_of_torch() -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first, second, other = (build_model(recurrent("lstm"), VOCABULARY, seed) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(first.parameters(), other.parameters(), strict=True))


def test_lstm_starts_with_open_forget_gates() -> None:
    model = build_model(recurrent("lstm"), VOCABULARY, seed=1)
    kernel = model.get_submodule("layers.0.kernel")
    assert isinstance(kernel, nn.LSTM)
    biases = dict(kernel.named_parameters())
    assert torch.equal(biases["bias_ih_l0"].chunk(4)[1] + biases["bias_hh_l0"].chunk(4)[1], torch.ones(29))


def test_state_tensors_name_every_layer() -> None:
    names = [tensor.name for tensor in build_model(recurrent("lstm", 2), VOCABULARY, seed=1).state_tensors]
    assert names == ["h0", "c0", "h1", "c1"]
    state = build_model(recurrent("gru", 2), VOCABULARY, seed=1).initial_state(4)
    assert {name: tuple(value.shape) for name, value in state.items()} == {"h0": (4, 29), "h1": (4, 29)}
    assert not any(value.any() for value in state.values())


def test_dropout_acts_only_during_training() -> None:
    model = build_model(recurrent("gru", dropout=0.5), VOCABULARY, seed=1)
    tokens = torch.arange(20).view(1, 20)
    state = model.initial_state(1)
    model.train()
    assert not torch.equal(model(tokens, state)[0], model(tokens, state)[0])
    model.eval()
    assert torch.equal(model(tokens, state)[0], model(tokens, state)[0])


@pytest.mark.parametrize("share", [0.001, 0.3, 0.9, 1 - 1e-9])
def test_dropout_mask_drops_its_share_and_keeps_the_mean(share: float) -> None:
    torch.manual_seed(1)
    mask = dropout_mask((3, 70_001), share, torch.zeros((), dtype=torch.float32))
    assert mask.shape == (3, 70_001)
    kept = 2**-16 if share > 0.9999 else 1 - share
    assert mask.unique().tolist() == pytest.approx([0.0, 1 / kept], rel=1e-3)
    spread = math.sqrt(kept * (1 - kept) / mask.numel())
    assert (mask > 0).float().mean().item() == pytest.approx(kept, abs=4 * spread)
    neighbours = (mask[:, 1:] > 0) & (mask[:, :-1] > 0)
    assert neighbours.float().mean().item() == pytest.approx(kept**2, abs=8 * spread)


def test_tied_output_shares_the_embedding() -> None:
    same = RecurrentLanguageModel(RecurrentConfig(Family.RNN, 29, 29, tied=True), VOCABULARY)
    assert same.projection is None
    assert same.output is None
    wider = RecurrentLanguageModel(RecurrentConfig(Family.RNN, 13, 29, tied=True), VOCABULARY)
    hidden = torch.randn(5, 29)
    assert wider.projection is not None
    assert wider.output_bias is not None
    expected = hidden @ wider.projection.weight.T @ wider.embedding.weight.T + wider.output_bias
    torch.testing.assert_close(wider.logits(hidden), expected)


def test_input_state_is_not_modified() -> None:
    model = build_model(recurrent("lstm"), VOCABULARY, seed=1)
    state = random_state(model, 2)
    copy = {name: value.clone() for name, value in state.items()}
    model(torch.tensor([[1, 2], [3, 4]]), state)
    model.step(torch.tensor([1, 2]), state)
    assert all(torch.equal(state[name], copy[name]) for name in state)


@pytest.mark.parametrize("config", [recurrent("rnn"), ReservoirConfig(Family.ESN, units=64, block_size=8)])
def test_every_family_has_the_same_interface(config: ModelConfig) -> None:
    model = build_model(config, VOCABULARY, seed=1)
    hidden, state = model(torch.tensor([[0, 5]]), model.initial_state(1))
    assert model.family == config.family
    assert hidden.shape == (1, 2, model.hidden_size)
    assert model.logits(hidden).shape == (1, 2, model.vocabulary_size)
    assert list(state) == [tensor.name for tensor in model.state_tensors]
