"""A layer of leaky units behind fixed recurrent weights.

    r_t = tanh(W s_{t-1} + u_t + b)
    s_t = (1 - a) * s_{t-1} + a * r_t

In: what drives each unit, u, and the state before. Out: states. Knows nothing of tokens or readouts.

symbol   name     shape
s_t      s        [B, N], or [N, B] where columns are meant
W        matrix   [N, N]
W_below  below    [N, N], from the layer below: u_t = W_below s'_t; None in the first layer
a, b     leak, bias   [N]
"""

import torch
from torch import Tensor, nn

from meari.models.cells.reservoir.matrix import SparseMatrix
from meari.models.cells.reservoir.token_input import Drive
from meari.models.reservoir import RecurrentWeights

# tanh z = 2 sigmoid(2 z) - 1, several times faster in torch; doubling is exact
DOUBLED = 2.0


class ReservoirLayer(nn.Module):
    """weights, below   of either pattern, N units each
    leak, bias          float32 [N], leak in (0, 1]
    """

    leak: Tensor
    bias: Tensor

    def __init__(self, weights: RecurrentWeights, below: RecurrentWeights | None, leak: Tensor, bias: Tensor) -> None:
        super().__init__()
        self.matrix = SparseMatrix(weights)
        self.below = None if below is None else SparseMatrix(below)
        self.register_buffer("leak", leak)
        self.register_buffer("bias", bias)

    def step(self, u: Tensor, s: Tensor) -> Tensor:
        """One step of each row: floating [B, N], all."""
        r = torch.tanh(self.matrix.rows(s) + u + self.bias)
        return (1 - self.leak) * s + self.leak * r

    def sequence(self, drive: Drive, length: int, s: Tensor) -> Tensor:
        """All steps of a sequence: floating [T, N, B].

        drive   of each step, doubled and with the bias
        s       [N, B], contiguous

        Units lie along the first axis, so that the blocks' outputs need no copy to become their next inputs.
        """
        (weights,) = self.matrix.scaled(DOUBLED)
        leak = self.leak.unsqueeze(1)
        states = s.new_empty(length, *s.shape)
        for time in range(length):
            r = self.matrix.add_columns(drive(time), s, weights).sigmoid_().mul_(2).sub_(1)
            s = torch.lerp(s, r, leak, out=states[time])
        return states

    def drive_from(self, states: Tensor) -> Drive:
        """The drive of every step by the layer below, whose states are floating [T, N, B]."""
        assert self.below is not None, "the first layer is driven by tokens"
        length, units, batch = states.shape
        side = states.transpose(0, 1).reshape(units, length * batch)  # [N, T * B]
        drives = (DOUBLED * self.bias).unsqueeze(1).repeat(1, length * batch)
        drives = self.below.add_columns(drives, side, *self.below.scaled(DOUBLED))
        each = drives.view(units, length, batch).transpose(0, 1).contiguous()
        return each.__getitem__
