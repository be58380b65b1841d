"""Layer of leaky units behind fixed recurrent weights, its sparse product, and the expansion of its states.

    r_t = tanh(W s_{t-1} + u_t + b)
    s_t = (1 - a) * s_{t-1} + a * r_t
    f   = tanh(G m + d)                    the expansion: features of the states m of all layers

Input: the drive of each unit, u, and the state before. Output: states; of the expansion, states and features.
Must not know: tokens, readouts.

symbol   name     shape
s_t      s        [B, N], or [N, B] where columns are meant
W        matrix   [N, N]
W_below  below    [N, N], from the layer below: u_t = W_below s'_t; None in the first layer
a, b     leak, bias   [N]
G, d     weights, bias of the expansion

G is as sparse as the hardware likes: O features at a time share K states drawn from all of them, so that a product is
F / O small dense ones. The expansion has no state, so a small state can have a wide readout.

Source of the expansion: Gallicchio and Micheli, "Architectural and Markovian factors of echo state networks", Neural
Networks 24, 2011.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from meari.models.cells.reservoir.token_input import Drive
from meari.models.cells.reservoir.weights import BlockWeights, EdgeWeights, RecurrentWeights
from meari.models.choices import Pattern

# tanh z = 2 sigmoid(2 z) - 1, several times faster in torch; doubling is exact
DOUBLED = 2.0


class SparseMatrix(nn.Module):
    """Fixed matrix W, float32 [N, N], with few nonzero weights.

    blocks      pattern "block": float32 [R, S, K, K], used as x @ block
    in_index    pattern "random": int64 [N, k], the units that each unit's edges come from
    in_weight   pattern "random": float32 [N, k]
    """

    blocks: Tensor
    in_index: Tensor
    in_weight: Tensor

    def __init__(self, weights: RecurrentWeights) -> None:
        super().__init__()
        self.units = weights.units
        self.pattern = Pattern.BLOCK if isinstance(weights, BlockWeights) else Pattern.RANDOM
        if isinstance(weights, BlockWeights):
            blocks = torch.from_numpy(weights.blocks).clone()
            self.register_buffer("blocks", blocks.view(weights.num_reservoirs, -1, *blocks.shape[1:]))
        else:
            self.register_buffer("in_index", torch.from_numpy(weights.in_index).clone())
            self.register_buffer("in_weight", torch.from_numpy(weights.in_weight).clone())

    @property
    def weights(self) -> RecurrentWeights:
        """W as it is now, loaded from a checkpoint or not."""
        if self.pattern is Pattern.BLOCK:
            return BlockWeights(self.blocks.flatten(0, 1).cpu().numpy(), self.blocks.shape[0])
        return EdgeWeights(self.in_index.cpu().numpy(), self.in_weight.cpu().numpy())

    def rows(self, s: Tensor) -> Tensor:
        """Return W s of each row: floating [B, N] → [B, N]."""
        if self.pattern is Pattern.RANDOM:
            return (s[:, self.in_index] * self.in_weight).sum(-1)  # [B, N, k] → [B, N]
        reservoirs, blocks, size, _ = self.blocks.shape
        dealt = s.view(-1, reservoirs, size, blocks).permute(1, 3, 0, 2)  # [R, S, B, K]
        return (dealt @ self.blocks).permute(2, 0, 1, 3).reshape(-1, self.units)

    def scaled(self, factor: float) -> tuple[Tensor, ...]:
        """Return the weights times a factor, for `add_columns`: one weight an edge, or blocks as [R, S, out, in]."""
        return (factor * (self.blocks.transpose(2, 3) if self.pattern is Pattern.BLOCK else self.in_weight),)

    def add_columns(self, r: Tensor, s: Tensor, weights: Tensor) -> Tensor:
        """Return r + W s with `weights` from `scaled`: floating [N, X], both. The storage of r may be reused."""
        if self.pattern is Pattern.RANDOM:
            return r.add_(functional.embedding_bag(self.in_index, s, mode="sum", per_sample_weights=weights))
        reservoirs, blocks, size, _ = weights.shape
        dealt = s.view(reservoirs, size, blocks, -1).transpose(1, 2)  # [R, S, K, X]
        if reservoirs > 1:
            return r.add_((weights @ dealt).view_as(r))
        sums = r.view(blocks, size, -1)
        return torch.baddbmm(sums, weights[0], dealt[0], out=sums).view_as(r)


class ReservoirLayer(nn.Module):
    """Layer of leaky units.

    weights, below      of either pattern, N units each
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
        """Run one step of each row: floating [B, N], all."""
        r = torch.tanh(self.matrix.rows(s) + u + self.bias)
        return (1 - self.leak) * s + self.leak * r

    def sequence(self, drive: Drive, length: int, s: Tensor) -> Tensor:
        """Run all steps of a sequence: floating [T, N, B].

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
        """Return the drive of every step by the layer below, whose states are floating [T, N, B]."""
        assert self.below is not None, "the first layer is driven by tokens"
        length, units, batch = states.shape
        side = states.transpose(0, 1).reshape(units, length * batch)  # [N, T * B]
        drives = (DOUBLED * self.bias).unsqueeze(1).repeat(1, length * batch)
        drives = self.below.add_columns(drives, side, *self.below.scaled(DOUBLED))
        each = drives.view(units, length, batch).transpose(0, 1).contiguous()
        return each.__getitem__


class Expansion(nn.Module):
    """Frozen nonlinear expansion of states.

    sources      int64 [S, K], the states that each group of features sees
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
        """Return the states followed by their features: floating [n, H] → [n, H + F].

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
