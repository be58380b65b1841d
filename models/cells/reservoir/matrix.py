"""A fixed sparse matrix of either pattern, as `meari.models.reservoir` lays them out, and its product with states.

In: states of N units, one row or one column a sequence. Out: their products. Knows nothing of leaks, tokens or layers.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from meari.models.choices import Pattern
from meari.models.reservoir import BlockWeights, EdgeWeights, RecurrentWeights


class SparseMatrix(nn.Module):
    """W, float32 [N, N] with few weights that are not zero.

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
        """W s of each row: floating [B, N] → [B, N]."""
        if self.pattern is Pattern.RANDOM:
            return (s[:, self.in_index] * self.in_weight).sum(-1)  # [B, N, k] → [B, N]
        reservoirs, blocks, size, _ = self.blocks.shape
        dealt = s.view(-1, reservoirs, size, blocks).permute(1, 3, 0, 2)  # [R, S, B, K]
        return (dealt @ self.blocks).permute(2, 0, 1, 3).reshape(-1, self.units)

    def scaled(self, factor: float) -> tuple[Tensor, ...]:
        """The weights times a factor, as `add_columns` takes them: one weight an edge, or blocks as [R, S, out, in]."""
        return (factor * (self.blocks.transpose(2, 3) if self.pattern is Pattern.BLOCK else self.in_weight),)

    def add_columns(self, r: Tensor, s: Tensor, weights: Tensor) -> Tensor:
        """r + W s with `weights` of `scaled`: floating [N, X], both. The storage of r may be used again."""
        if self.pattern is Pattern.RANDOM:
            return r.add_(functional.embedding_bag(self.in_index, s, mode="sum", per_sample_weights=weights))
        reservoirs, blocks, size, _ = weights.shape
        dealt = s.view(reservoirs, size, blocks, -1).transpose(1, 2)  # [R, S, K, X]
        if reservoirs > 1:
            return r.add_((weights @ dealt).view_as(r))
        sums = r.view(blocks, size, -1)
        return torch.baddbmm(sums, weights[0], dealt[0], out=sums).view_as(r)
