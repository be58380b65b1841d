"""A frozen nonlinear expansion between the states of a reservoir and its readout.

    f = tanh(G m + b)

In: states of all layers, m. Out: features f, many more of them. Knows nothing of time: every row is on its own.

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
        """Floating [n, H] → [n, F]."""
        seen = m.t()[self.sources].transpose(1, 2)  # [S, n, K]
        sums = torch.baddbmm(self.bias.to(m.dtype), seen, self.weights)
        return torch.tanh(sums).transpose(0, 1).reshape(len(m), self.features)
