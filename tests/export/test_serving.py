"""Test bundles with all model options in the engine: exact probabilities and sampling."""

import shutil
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch

from meari.bundle_format.names import Family, Precision
from meari.errors import NotReady
from meari.export.bundle import export_bundle
from meari.models.cells.cell import Cell
from meari.models.checkpoint import load_checkpoint
from meari.models.config import ModelConfig, RecurrentConfig, ReservoirConfig
from meari.models.families import RecurrentLanguageModel
from meari.runtime.bundle import read_gates
from meari.runtime.engine import Sampling
from meari.runtime.model import LoadedModel
from meari.runtime.states import states_answer, states_call
from tests.export.serving import generate, score, served
from tests.export.tiny_models import make_run

ALL_OPTIONS = RecurrentConfig(
    Family.LSTM,
    12,
    layer_sizes=(24, 64),
    layer_norm=True,
    learned_initial_state=True,
    mogrifier_rounds=3,
    adaptive_cutoffs=(5, 9, 12),
)
ADAPTIVE = RecurrentConfig(Family.GRU, 12, 64, adaptive_cutoffs=(50, 300))
MANY_CHARACTERS = tuple(chr(0x4E00 + index) for index in range(800))  # more tokens than the sampler sorts
CONTEXTS: tuple[list[int], ...] = ([], [5], [2, 7, 7, 3, 1, 9, 4])


@pytest.fixture(params=["small vocabulary", "large vocabulary"], scope="module")
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "tiny"
    if request.param == "small vocabulary":
        return make_run(folder, ALL_OPTIONS)
    return make_run(folder, ADAPTIVE, words=MANY_CHARACTERS)


@pytest.fixture(params=Precision, scope="module")
def bundle(run: Path, request: pytest.FixtureRequest) -> Path:
    folder = run.parent / "bundles" / f"tiny-{request.param}"
    export_bundle(run, folder, request.param)
    return folder


def test_probabilities_of_the_whole_vocabulary_sum_to_one_and_match_torch(run: Path, bundle: Path) -> None:
    network = load_checkpoint(run).model
    size = network.vocabulary_size
    with served(bundle) as model, torch.inference_mode():
        for context in CONTEXTS:
            tokens = score(model, [[token] for token in range(1, size)], context, add_end=False)
            (end,) = score(model, [[]], context)
            found = np.array([end.logprobs[0], *(token.logprobs[0] for token in tokens)])
            assert abs(np.exp(found).sum() - 1) < 1e-6
            hidden, _ = network(torch.tensor([[0, *context]]), network.initial_state(1))
            expected = network.logits(hidden[0, -1]).log_softmax(-1).numpy()
            assert np.abs(found - expected).max() < (1e-4 if bundle.name.endswith("fp32") else 0.2)


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(temperature=0.0),
        Sampling(seed=3),
        Sampling(temperature=0.7, top_k=5, top_p=0.9, min_p=0.01, seed=4),
        Sampling(top_p=0.5, logit_bias=((3, 2.0),), repetition_penalty=1.3, seed=5),
    ],
    ids=["greedy", "plain", "limited", "reshaped"],
)
def test_generated_tokens_have_the_logprobs_of_scoring(bundle: Path, sampling: Sampling) -> None:
    with served(bundle) as model:
        sample = generate(model, [4, 2], 30, sampling)
        ended = sample.token_ids[-1] == 0
        text = sample.token_ids[:-1] if ended else sample.token_ids
        (scored,) = score(model, [text], [4, 2], add_end=ended)
        assert sample.logprobs == scored.logprobs.tolist()
        if sampling.temperature == 0:
            everything = score(model, [[token] for token in range(1, model.bundle.runner.vocabulary_size)], [4, 2])
            best = max(figures.logprobs[0] for figures in everything)
            assert sample.logprobs[0] >= best


def test_self_test_finds_rows_isolated(bundle: Path) -> None:
    with served(bundle) as model:
        assert model.bundle.self_test.rows_isolated
        assert model.bundle.self_test.golden_max_difference <= 1e-6


GATED: dict[str, ModelConfig] = {
    "rnn": RecurrentConfig(Family.RNN, 12, 16, num_layers=2),
    "gru": RecurrentConfig(Family.GRU, 12, 16),
    "gru, two layers, tied": RecurrentConfig(Family.GRU, 20, 20, num_layers=2, tied=True, layer_norm=True),
    "lstm, three layers": RecurrentConfig(Family.LSTM, 12, layer_sizes=(16, 40, 24)),
    "lstm, mogrified": RecurrentConfig(Family.LSTM, 12, 16, num_layers=2, layer_norm=True, mogrifier_rounds=3),
    "esn": ReservoirConfig(Family.ESN, units=32, block_size=8),
}


@pytest.mark.parametrize("variant", GATED)
@pytest.mark.parametrize("precision", Precision)
def test_gates_and_states_over_time_are_those_of_the_definition(
    variant: str, precision: Precision, tmp_path: Path
) -> None:
    run = make_run(tmp_path / "run", GATED[variant])
    export_bundle(run, tmp_path / "tiny", precision)
    network = load_checkpoint(run).model
    ids = [5, 2, 7, 7, 3]
    with served(tmp_path / "tiny") as model:
        found = _told(model, ids)
        expected = _defined(network, ids) if isinstance(network, RecurrentLanguageModel) else {}
        names = {name for name in found if name[0] not in "hcs"}
        assert names == {name for name in expected if name[0] not in "hc"}
        for name, values in expected.items():
            assert np.abs(found[name] - values).max() < (2e-4 if precision is Precision.FP32 else 0.15), name
        shutil.rmtree(tmp_path / "tiny")
        with pytest.raises(NotReady, match="bundle of tiny was changed"):
            read_gates(model.bundle, ids, {})


def _told(model: LoadedModel, ids: list[int]) -> dict[str, npt.NDArray[np.float64]]:
    """Return all units of all states and gates, float64 [num_tokens, units] each."""
    end_id = model.tokenizer.vocabulary.end_id
    scoring = model.engine.score(states_call(ids, end_id, model.engine.clock() + 100), model.engine.reserve())
    scoring.wait_end()
    answer = states_answer("tiny", model.bundle, ids, scoring, 10_000, with_gates=True)
    assert isinstance(answer.gates, list)
    return {each.name: np.array(each.values) for each in (*answer.tensors, *answer.gates)}


@torch.inference_mode()
def _defined(network: RecurrentLanguageModel, ids: list[int]) -> dict[str, npt.NDArray[np.float64]]:
    """Return the same, computed step by step from the weights by the formulas at the head of `models/cells`."""
    told: dict[str, list[torch.Tensor]] = {}
    cells = [each for each in network.layers if isinstance(each, Cell)]
    states = [(torch.zeros(cell.hidden_size), torch.zeros(cell.hidden_size)) for cell in cells]
    for token in [0, *ids]:
        x = network.embedding.weight[token]
        for index, cell in enumerate(cells):
            step, (h, c) = _step(network.family, cell, x, *states[index])
            states[index] = (h, c)
            for name, values in {**step, "h": h, **({"c": c} if network.family is Family.LSTM else {})}.items():
                told.setdefault(f"{name}{index}", []).append(values)
            x = network.norms[index](h) if len(network.norms) else h
    return {name: torch.stack(values[1:]).double().numpy() for name, values in told.items()}


def _step(
    family: Family, cell: Cell, x: torch.Tensor, h: torch.Tensor, c: torch.Tensor
) -> tuple[dict[str, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]:
    for index, mogrifier in enumerate(getattr(cell, "mogrifiers", [])):
        x, h = (x, 2 * torch.sigmoid(mogrifier(x)) * h) if index % 2 else (2 * torch.sigmoid(mogrifier(h)) * x, h)
    weights = dict(cell.kernel.named_parameters())
    from_x = (weights["weight_ih_l0"] @ x + weights["bias_ih_l0"]).split(len(h))
    from_h = (weights["weight_hh_l0"] @ h + weights["bias_hh_l0"]).split(len(h))
    if family is Family.RNN:
        return {}, (torch.tanh(from_x[0] + from_h[0]), c)
    if family is Family.GRU:
        r, z = (torch.sigmoid(from_x[k] + from_h[k]) for k in (0, 1))
        n = torch.tanh(from_x[2] + r * from_h[2])
        return {"r": r, "z": z, "n": n}, ((1 - z) * n + z * h, c)
    i, f, o = (torch.sigmoid(from_x[k] + from_h[k]) for k in (0, 1, 3))
    g = torch.tanh(from_x[2] + from_h[2])
    c = f * c + i * g
    return {"i": i, "f": f, "g": g, "o": o}, (o * torch.tanh(c), c)
