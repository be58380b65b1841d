"""Input of a reservoir's first layer: a row for each token, or frozen embeddings of the last few tokens.

Input: token ids, and the embeddings of the tokens before them. Output: the drive of each unit. Must not know: states.

B batch, T time, N units, V vocabulary_size, E embedding_size, k tokens that are seen.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

Drive = Callable[[int], Tensor]  # time → floating [N, B], which may be overwritten


class TokenRows(nn.Module):
    """Drive W_in[x_t]: `rows`, float32 [V, N]. It has no state."""

    rows: Tensor
    remembered = 0

    def __init__(self, rows: Tensor) -> None:
        super().__init__()
        self.register_buffer("rows", rows)
        self.vocabulary_size, self.units = rows.shape

    def step(self, tokens: Tensor, recent: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Return the drive of one step: floating [B, N]."""
        return self.rows[tokens], recent

    def sequence(
        self, tokens: Tensor, recent: Tensor | None, bias: Tensor, factor: float
    ) -> tuple[Drive, Tensor | None]:
        """Return the drive of every step, with the units' bias [N] added and all of it multiplied by `factor`."""
        table = (factor * (self.rows + bias)).t().contiguous()  # [N, V]
        return lambda time: table.index_select(1, tokens[:, time]), recent


class RecentTokens(nn.Module):
    """Drive W_in [e_t, e_{t-1}, … e_{t-k+1}] with e_t = embedding[x_t].

    embedding   float32 [V, E]
    weights     float32 [k * E, N]
    remembered  (k - 1) * E numbers: e_t … e_{t-k+2} after token t, zeros for those before the first token
    """

    embedding: Tensor
    weights: Tensor

    def __init__(self, embedding: Tensor, weights: Tensor) -> None:
        super().__init__()
        self.register_buffer("embedding", embedding)
        self.register_buffer("weights", weights)
        self.vocabulary_size, self.embedding_size = embedding.shape
        self.units = weights.shape[1]
        self.remembered = weights.shape[0] - self.embedding_size

    def step(self, tokens: Tensor, recent: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Return the drive of one step: floating [B, N]."""
        seen = self._seen(tokens, recent)
        return seen @ self.weights, self._kept(seen)

    def sequence(
        self, tokens: Tensor, recent: Tensor | None, bias: Tensor, factor: float
    ) -> tuple[Drive, Tensor | None]:
        """Return the drive of every step, with the units' bias [N] added and all of it multiplied by `factor`."""
        seen = []
        for time in range(tokens.shape[1]):
            seen.append(self._seen(tokens[:, time], recent))
            recent = self._kept(seen[-1])
        drives = (factor * self.weights.t()) @ torch.stack(seen).transpose(1, 2)  # [T, N, B]
        drives += factor * bias.unsqueeze(1)
        return drives.__getitem__, recent

    def _seen(self, tokens: Tensor, recent: Tensor | None) -> Tensor:
        """Return the embeddings of the last tokens, floating [B, k * E], the newest first."""
        newest = self.embedding[tokens]
        return newest if recent is None else torch.cat((newest, recent), 1)

    def _kept(self, seen: Tensor) -> Tensor | None:
        return seen[:, : self.remembered].clone() if self.remembered else None
