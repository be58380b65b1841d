"""Readout of a reservoir whose weights depend on what it reads, and the coordinates in which states vary evenly.

    z = P D (m - mean)                      whitened states
    y = V ((A z + a) * (B z + b)) + U z + c       (V diag(B z + b) A + U) z + …: the weights of z depend on z

Input: states, with the features of an expansion. Output: logits. Must not know: tokens, the training.

A product of two sums of states is large where both are: a conjunction, of characters say, that no linear readout of the
same states has. Everything before it is fixed, so the states are whitened once, on a sample of the training text, and
its matrices are trained like those of any other layer.

symbol   name                      shape
m        seen                      [..., M]
P D      whitening                 see `Whitening`
A, B, U  factors.weight            [2 R + V, M], one above the other; a, b, c in its bias
V        output                    [V, R]
*        product of elements

Source of readouts whose weights are a function of the states: Köster and Uchida, "Reservoir computing as a language
model", arXiv 2507.15779, 2025.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from meari.models.dropout import BatchShare, drop

NUM_DIRECTIONS = 256


@dataclass(frozen=True)
class Whitening:
    """Coordinates in which the states vary evenly.

    mean, deviation      float32 [N]
    directions           float32 [N, r], orthonormal columns
    gains                float32 [r + 1]: one a direction, and last the one of all that is left
    """

    mean: Tensor
    deviation: Tensor
    directions: Tensor
    gains: Tensor

    def weights(self, coordinates: Tensor) -> Tensor:
        """Return W for coordinates Z, both float32 [V, N]."""
        return self._transformed(coordinates) / self.deviation

    def gradient(self, weight_gradient: Tensor, bias_gradient: Tensor) -> Tensor:
        """Return the gradient for Z from those for W, float32 [V, N], and for the bias, float32 [V]."""
        centred = weight_gradient - torch.outer(bias_gradient, self.mean)
        return self._transformed(centred / self.deviation)

    def bias_shift(self, weights: Tensor) -> Tensor:
        """Return W m, float32 [V]: the part of the bias that makes states count from their mean."""
        return weights @ self.mean

    def states(self, seen: Tensor) -> Tensor:
        """Return whitened states: floating [n, N] → [n, N]."""
        return self._transformed((seen - self.mean) / self.deviation)

    def _transformed(self, rows: Tensor) -> Tensor:
        rest = self.gains[-1]
        along = (rows @ self.directions) * (self.gains[:-1] - rest)
        return torch.addmm(rows * rest, along, self.directions.t())


class GatedReadout(nn.Module):
    """Readout y of `inputs` states; `whiten` sets what it counts from, before that they are taken as they are.

    dropout   share of the products that is zero while training
    """

    mean: Tensor
    deviation: Tensor
    directions: Tensor
    gains: Tensor

    def __init__(self, inputs: int, rank: int, vocabulary_size: int, dropout: float) -> None:
        super().__init__()
        num_directions = max(1, min(NUM_DIRECTIONS, inputs // 2))
        self.register_buffer("mean", torch.zeros(inputs))
        self.register_buffer("deviation", torch.ones(inputs))
        self.register_buffer("directions", torch.zeros(inputs, num_directions))
        self.register_buffer("gains", torch.ones(num_directions + 1))
        self.factors = nn.Linear(inputs, 2 * rank + vocabulary_size)
        self.output = nn.Linear(rank, vocabulary_size, bias=False)
        nn.init.normal_(self.factors.weight, std=inputs**-0.5)
        for zero in (self.factors.weight[2 * rank :], self.factors.bias, self.output.weight):
            nn.init.zeros_(zero)
        self._sizes = [rank, rank, vocabulary_size]
        self.dropout = dropout
        self.rows = BatchShare()

    @property
    def whitening(self) -> Whitening:
        return Whitening(self.mean, self.deviation, self.directions, self.gains)

    @torch.no_grad()
    def whiten(self, measured: Whitening) -> None:
        """Count states in these coordinates from now on."""
        found = measured.directions.shape[1]
        self.mean.copy_(measured.mean)
        self.deviation.copy_(measured.deviation)
        self.directions.zero_()[:, :found] = measured.directions
        self.gains.fill_(measured.gains[-1])[:found] = measured.gains[:-1]

    def forward(self, seen: Tensor) -> Tensor:
        """Return logits: floating [..., M] → [..., V]; products run in the type that autocast asks for."""
        with torch.autocast(seen.device.type, enabled=False):
            z = self.whitening.states(seen.flatten(0, -2)).view(seen.shape)
        one, other, linear = self.factors(z).split(self._sizes, dim=-1)
        products = one * other
        if self.training and seen.dim() == 3:
            products = drop(products, self.dropout, self.rows)
        logits: Tensor = self.output(products) + linear
        return logits

    @torch.no_grad()
    def folded_factors(self) -> tuple[Tensor, Tensor]:
        """Return weight and bias of `factors` for states as they are, worked out in float64."""
        exact = Whitening(*(each.double() for each in (self.mean, self.deviation, self.directions, self.gains)))
        weight = exact.weights(self.factors.weight.double())
        return weight, self.factors.bias.double() - exact.bias_shift(weight)
