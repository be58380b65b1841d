"""A frozen nonlinear expansion between the states of a reservoir and its readout.

    f = tanh(G m + b)

In: states of all layers, m. Out: m and features f, many more of them. Knows nothing of time: every row is on its own.

G is as sparse as the hardware likes: O features at a time share K states drawn from all of them, so that a product is
F / O small dense ones. Nothing of it has to be remembered from step to step, so a small state can have a wide readout.

Source: Gallicchio and Micheli, "Architectural and Markovian factors of echo state networks", Neural Networks 24, 2011.
"""

import torch
from torch import Tensor, nn


class Expansion(nn.Module):
    """sources   int64 [S, K], the states that each group of features sees
    weights      float32 [S, K, O], S * O = F
    bias         float32 [S, 1, O]
    """

    sources: Tensor
    weights: Tensor
    bias: Tensor

    def __init__(self, sources: Tensor, weights: Tensor, bias: Tensor) -> None:
        super().__init__()
        self.register_buffer("sources", sources)
        self.register_buffer("weights", weights)
        self.register_buffer("bias", bias)
        self.features = bias.numel()

    def forward(self, m: Tensor) -> Tensor:
        """The states with their features behind them: floating [n, H] → [n, H + F].

        Features come first in memory, [H + F, n]: sources are fetched as whole rows, and nothing has to be turned.
        """
        groups, _, block = self.weights.shape
        states, num_rows = m.shape[1], m.shape[0]
        seen = m.new_empty(states + self.features, num_rows)
        seen[:states].copy_(m.t())
        sums = seen[states:].view(groups, block, num_rows)
        torch.baddbmm(self.bias.transpose(1, 2), self.weights.transpose(1, 2), seen[self.sources], out=sums)
        sums.tanh_()
        return seen.t()
