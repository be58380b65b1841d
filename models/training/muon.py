"""Muon for the matrices of a model, AdamW for its other weights.

Input: weights with gradients. Output: weights after a step. Must not know: the training loop, files.

    B_t = m B_{t-1} + (1 - m) G_t              momentum of the gradient
    O_t = orthogonal((1 - m) G_t + m B_t)      Nesterov's form; its singular values become about one
    W_t = (1 - r d) W_{t-1} - r 0.2 sqrt(max(rows, columns)) O_t

symbol   name            shape
G_t      gradient        [rows, columns]
B_t      momentum_buffer [rows, columns]
m        MOMENTUM
r, d     lr, weight_decay of the group

The gates of a cell are stacked in one weight; each is a matrix of its own here, a block of rows. The factor gives an
update the size that AdamW's have, so that both may use similar rates.

`orthogonal` runs a polynomial of odd degree on the matrix, which lifts its small singular values and keeps the large
ones near one. An iteration costs three products of the smaller side; larger batches make that share small.

Sources: Jordan et al., "Muon: an optimizer for hidden layers in neural networks", 2024; the factor: Liu et al., "Muon
is scalable for LLM training", 2025.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn

from meari.models.cells import Cell
from meari.models.choices import TrainingPrecision
from meari.models.config import TrainingConfig

MOMENTUM = 0.95
COEFFICIENTS = (3.4445, -4.7750, 2.0315)
MIN_NORM = 1e-7
BLOCKS = "num_blocks"
MOMENTUM_BUFFER = "momentum_buffer"


class MuonAdamW(torch.optim.AdamW):
    """Optimizer of groups of two kinds: those with `num_blocks` move by Muon, each weight as that many blocks of rows;
    all others by AdamW.

    groups       as torch's, and in a group of Muon `num_blocks`
    precision    type of the products of `orthogonal`
    iterations   of `orthogonal`

    state[weight]   momentum_buffer float32, of the weight's shape, for Muon; AdamW's own for the others
    """

    def __init__(
        self,
        groups: list[dict[str, Any]],
        precision: torch.dtype,
        iterations: int,
        *,
        lr: float,
        betas: tuple[float, float],
    ) -> None:
        super().__init__(groups, lr=lr, betas=betas)
        self._precision, self._iterations = precision, iterations

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Move all weights that have a gradient; those of Muon have none afterwards."""
        assert closure is None, "a step takes the gradients that are there"
        for group in self.param_groups:
            if BLOCKS in group:
                for weight in group["params"]:
                    self._move(weight, group)
        super().step()  # passes over the weights without a gradient

    def _move(self, weight: Tensor, group: dict[str, Any]) -> None:
        gradient, weight.grad = weight.grad, None
        if gradient is None:
            return
        kept = self.state[weight]
        if not kept:
            kept[MOMENTUM_BUFFER] = torch.zeros_like(weight)
        momentum = kept[MOMENTUM_BUFFER].lerp_(gradient, 1 - MOMENTUM)
        update = gradient.lerp(momentum, MOMENTUM)
        weight.mul_(1 - group["lr"] * group["weight_decay"])
        for block, direction in zip(weight.chunk(group[BLOCKS]), update.chunk(group[BLOCKS]), strict=True):
            factor = 0.2 * math.sqrt(max(block.shape))
            block.add_(orthogonal(direction, self._precision, self._iterations), alpha=-group["lr"] * factor)


def orthogonal(matrix: Tensor, precision: torch.dtype, iterations: int) -> Tensor:
    """Return a matrix with the same singular vectors, whose singular values are about one, between 0.7 and 1.2 after
    five iterations: floating [rows, columns] → `precision` [rows, columns].
    """
    a, b, c = COEFFICIENTS
    is_tall = matrix.shape[0] > matrix.shape[1]
    x = matrix.to(precision)
    x = x.T if is_tall else x
    x = x / x.norm().clamp(min=MIN_NORM)
    for _ in range(iterations):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.T if is_tall else x


def muon_groups(model: nn.Module, config: TrainingConfig) -> list[dict[str, Any]]:
    """Return the groups of a recurrent model's matrices: input and recurrent ones a gate at a time, others whole.

    Embeddings and output layers, a row of which belongs to one token, are left to AdamW.
    """
    matrices: dict[int, list[nn.Parameter]] = {}
    for cell in model.modules():
        if isinstance(cell, Cell):
            for name, parameter in cell.named_parameters():
                if parameter.dim() == 2:
                    matrices.setdefault(cell.num_gates if name.startswith("kernel.") else 1, []).append(parameter)
    rate = config.matrix_learning_rate or config.learning_rate
    return [
        {
            "params": parameters,
            "weight_decay": config.weight_decay,
            "rate_factor": rate / config.learning_rate,
            BLOCKS: num_blocks,
        }
        for num_blocks, parameters in sorted(matrices.items())
    ]


def products_of(config: TrainingConfig) -> torch.dtype:
    """Return the type of a training's products."""
    return torch.bfloat16 if config.precision is TrainingPrecision.BFLOAT16 else torch.float32
