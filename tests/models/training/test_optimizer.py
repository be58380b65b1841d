"""AdamW: which weights decay, and that its state survives a checkpoint."""

import numpy as np
import torch
from torch import nn

from meari.models.choices import Family
from meari.models.config import RecurrentConfig, TrainingConfig
from meari.models.language_model import LanguageModel, RecurrentLanguageModel
from meari.models.training.optimizer import build_optimizer, optimizer_tensors, restore_optimizer

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


def test_the_restored_optimizer_takes_the_same_steps() -> None:
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
