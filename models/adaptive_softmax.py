"""The adaptive softmax: an output layer for large vocabularies that spends little on rare tokens.

In: hidden vectors. Out: exact log-probabilities of every token, or the loss of given ones at a fraction of the work.
Knows nothing of recurrences or text.

The vocabulary is cut into a head of frequent tokens and clusters of ever rarer ones. The head gives the frequent
tokens and the clusters a probability; within a cluster, hidden vectors are projected to H / 4, H / 16, … numbers:

    P(token) = P_head(token)                              for a frequent token
    P(token) = P_head(cluster) * P(token | cluster)       for any other

Source: Grave et al., "Efficient softmax approximation for GPUs", 2017.
"""

from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor, nn

NARROWING = 4.0  # each cluster's vectors are so many times as short as those of the one before


class AdaptiveSoftmax(nn.Module):
    """Head and clusters over the tokens in the order of their frequency.

    hidden_size   H
    cutoffs       increasing ranks at which a new cluster begins, below vocabulary_size
    rank          int64 [vocabulary_size]: a token's place in that order. As the ids are until `order_by` is called
    """

    rank: Tensor

    def __init__(self, hidden_size: int, vocabulary_size: int, cutoffs: tuple[int, ...]) -> None:
        super().__init__()
        self.cutoffs = cutoffs
        self.layers = nn.AdaptiveLogSoftmaxWithLoss(
            hidden_size, vocabulary_size, cutoffs, div_value=NARROWING, head_bias=True
        )
        self.register_buffer("rank", torch.arange(vocabulary_size))

    def order_by(self, counts: NDArray[Any]) -> None:
        """Put the tokens into the order of their counts, int64 [vocabulary_size], the most frequent one first."""
        order = torch.from_numpy((-counts).argsort(kind="stable"))
        self.rank[order] = torch.arange(len(order), device=self.rank.device)

    def log_probabilities(self, hidden: Tensor) -> Tensor:
        """ln P of every token: float32 [..., H] → [..., V]; each row's probabilities add up to one."""
        rows: Tensor = self.layers.log_prob(hidden.reshape(-1, hidden.shape[-1]))
        return rows.index_select(1, self.rank).view(*hidden.shape[:-1], -1)

    def loss(self, hidden: Tensor, targets: Tensor) -> Tensor:
        """Mean of -ln P of the targets: hidden [N, H], targets int64 [N] → a scalar. Always in float32."""
        with torch.autocast(hidden.device.type, enabled=False):
            loss: Tensor = self.layers(hidden.float(), self.rank[targets]).loss
        return loss
