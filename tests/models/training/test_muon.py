"""Test Muon: its steps are those of torch's own, a gate at a time, beside AdamW's for the other weights."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from meari.bundle_format.names import Family
from meari.models.choices import Optimizer, TrainingPrecision
from meari.models.config import Config, RecurrentConfig, ReservoirConfig, TrainingConfig, parse_config
from meari.models.errors import ConfigError
from meari.models.families import RecurrentLanguageModel
from meari.models.training.muon import BLOCKS, orthogonal
from meari.models.training.optimizer import BETAS, build_optimizer, set_learning_rate
from tests.models.training.tiny_runs import tiny_config

IDS = np.arange(8, dtype=np.uint16) % 7
MUON = TrainingConfig(
    steps=10,
    learning_rate=0.01,
    weight_decay=0.1,
    optimizer=Optimizer.MUON,
    matrix_learning_rate=0.03,
    precision=TrainingPrecision.BFLOAT16,
)
GATES = {Family.RNN: 1, Family.GRU: 3, Family.LSTM: 4}


def blocks_of(model: nn.Module, gates: int) -> dict[str, tuple[torch.Tensor, ...]]:
    """Return copies of the gates' matrices."""
    kernels = {name: weight for name, weight in model.named_parameters() if "kernel.weight" in name}
    return {name: tuple(each.clone() for each in weight.detach().chunk(gates)) for name, weight in kernels.items()}


@pytest.mark.parametrize("family", GATES)
def test_steps_are_those_of_torch_for_every_gate_and_every_other_weight(family: Family) -> None:
    torch.manual_seed(0)
    gates = GATES[family]
    model = RecurrentLanguageModel(RecurrentConfig(family, 6, 16, 2), 7)
    optimizer = build_optimizer(model, MUON, IDS)
    twins = {name: [nn.Parameter(each) for each in each_gate] for name, each_gate in blocks_of(model, gates).items()}
    others = {
        name: nn.Parameter(weight.detach().clone()) for name, weight in model.named_parameters() if name not in twins
    }
    muon = torch.optim.Muon(
        [block for blocks in twins.values() for block in blocks],
        lr=0.03, weight_decay=0.1, momentum=0.95, ns_steps=5, adjust_lr_fn="match_rms_adamw",
    )  # fmt: skip
    adamw = torch.optim.AdamW(
        [
            {"params": [others["output.weight"]], "weight_decay": 0.1},
            {"params": [each for name, each in others.items() if name != "output.weight"], "weight_decay": 0.0},
        ],
        lr=0.01,
        betas=BETAS,
    )
    for share in (1.0, 0.5, 0.25):
        set_learning_rate(optimizer, 0.01 * share)
        muon.param_groups[0]["lr"] = 0.01 * share * (0.03 / 0.01)
        for group in adamw.param_groups:
            group["lr"] = 0.01 * share
        for name, weight in model.named_parameters():
            weight.grad = torch.randn_like(weight)
            if name in twins:
                for block, gradient in zip(twins[name], weight.grad.chunk(gates), strict=True):
                    block.grad = gradient.clone()
            else:
                others[name].grad = weight.grad.clone()
        for each in (optimizer, muon, adamw):
            each.step()
    for name, weight in model.named_parameters():
        expected = torch.cat([each.data for each in twins[name]]) if name in twins else others[name]
        assert torch.equal(weight, expected), name


@pytest.mark.parametrize("shape", [(24, 24), (24, 8), (8, 24)])
def test_singular_values_become_about_one(shape: tuple[int, int]) -> None:
    torch.manual_seed(0)
    matrix = torch.randn(shape)
    u, values, v = torch.linalg.svd(matrix, full_matrices=False)
    spread = u @ torch.diag(torch.linspace(1, 0.05, len(values))) @ v
    reached = torch.linalg.svdvals(orthogonal(100 * spread, torch.float32, 5))
    assert reached.min() > 0.65
    assert reached.max() < 1.25
    assert orthogonal(torch.zeros(shape), torch.float32, 5).abs().max() == 0


def test_matrices_of_cells_move_by_muon_and_nothing_else() -> None:
    model = RecurrentLanguageModel(
        RecurrentConfig(Family.LSTM, 6, 16, tied=True, mogrifier_rounds=2, layer_norm=True), 7
    )
    groups = build_optimizer(model, MUON, IDS).param_groups
    num_blocks = {id(weight): group[BLOCKS] for group in groups if BLOCKS in group for weight in group["params"]}
    assert {name: num_blocks[id(weight)] for name, weight in model.named_parameters() if id(weight) in num_blocks} == {
        "layers.0.kernel.weight_ih_l0": 4,
        "layers.0.kernel.weight_hh_l0": 4,
        "layers.0.mogrifiers.0.weight": 1,
        "layers.0.mogrifiers.1.weight": 1,
    }
    assert sum(len(group["params"]) for group in groups) == len(list(model.parameters()))


def test_one_rate_serves_all_weights_unless_matrices_have_their_own() -> None:
    model = RecurrentLanguageModel(RecurrentConfig(Family.GRU, 6, 16), 7)
    for own, expected in ((0.0, 0.002), (0.03, 0.006)):
        optimizer = build_optimizer(model, replace(MUON, matrix_learning_rate=own), IDS)
        set_learning_rate(optimizer, 0.002)
        assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([expected, 0.002, 0.002])


def refused(config: Config, **training: object) -> str:
    tables = config.to_tables()
    tables["training"] |= training
    with pytest.raises(ConfigError) as caught:
        parse_config(tables)
    return str(caught.value)


def test_settings_of_muon_are_refused_where_they_would_do_nothing(tmp_path: Path) -> None:
    config = tiny_config(tmp_path)
    assert 'matrix_learning_rate: got 0.01 with optimizer "adamw"' in refused(config, matrix_learning_rate=0.01)
    reservoir = replace(config, model=ReservoirConfig(Family.ESN, units=64))
    assert 'optimizer: got "muon" for family "esn"' in refused(reservoir, optimizer="muon")
