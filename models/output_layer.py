"""Output layers for large vocabularies: the adaptive softmax, and the loss of a linear layer a few rows at a time.

Input: hidden vectors, weights, targets. Output: exact log-probabilities, or the mean loss. Must not know: recurrences,
text, training.

Adaptive softmax. The vocabulary is cut into a head of frequent tokens and clusters of ever rarer ones. The head gives
the frequent tokens and the clusters a probability; within a cluster, hidden vectors are projected to H / 4, H / 16, …
numbers:

    P(token) = P_head(token)                              for a frequent token
    P(token) = P_head(cluster) * P(token | cluster)       for any other

Linear layer. The logits of a whole chunk are by far the largest tensor of a training; computed and discarded a few rows
at a time, they stay in the processor's cache. The gradients are ready when the loss is, so backward only scales them.

Sources: Grave et al., "Efficient softmax approximation for GPUs", 2017; Wijmans et al., "Cut your losses in
large-vocabulary language models", 2025.
"""

from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable

NARROWING = 4.0  # ratio of the vector sizes of one cluster and the next
LOGITS_AT_ONCE = 1 << 20


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
        """Order the tokens by their counts, int64 [vocabulary_size], the most frequent one first."""
        order = torch.from_numpy((-counts).argsort(kind="stable"))
        self.rank[order] = torch.arange(len(order), device=self.rank.device)

    def log_probabilities(self, hidden: Tensor) -> Tensor:
        """Return ln P of every token: float32 [..., H] → [..., V]; each row's probabilities sum to one."""
        rows: Tensor = self.layers.log_prob(hidden.reshape(-1, hidden.shape[-1]))
        return rows.index_select(1, self.rank).view(*hidden.shape[:-1], -1)

    def loss(self, hidden: Tensor, targets: Tensor) -> Tensor:
        """Return the mean of -ln P of the targets: hidden [N, H], targets int64 [N] → a scalar. Always in float32."""
        with torch.autocast(hidden.device.type, enabled=False):
            loss: Tensor = self.layers(hidden.float(), self.rank[targets]).loss
        return loss


def linear_cross_entropy(hidden: Tensor, weight: Tensor, bias: Tensor, targets: Tensor) -> Tensor:
    """Return the mean of -ln softmax(weight h + bias)[target] in nats.

    hidden   [N, H]; its type is that of the products
    weight   float32 [V, H], bias float32 [V]
    targets  int64 [N], each in [0, V)
    """
    loss = _LinearCrossEntropy.apply(hidden, weight, bias, targets)  # type: ignore[no-untyped-call]
    assert isinstance(loss, Tensor)
    return loss


class _LinearCrossEntropy(Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor, targets: Tensor) -> Tensor:
        cast_weight, cast_bias = weight.to(hidden.dtype), bias.to(hidden.dtype)
        grad_hidden = torch.empty_like(hidden)
        grad_weight, grad_bias = torch.zeros_like(weight), torch.zeros_like(bias)
        loss = torch.zeros((), device=weight.device)
        num_rows = max(1, LOGITS_AT_ONCE // len(weight))
        pieces = (torch.split(tensor, num_rows) for tensor in (hidden, targets.unsqueeze(1), grad_hidden))
        for rows, wanted, grad_rows in zip(*pieces, strict=True):
            logits = torch.addmm(cast_bias, rows, cast_weight.t()).float()
            top = logits.amax(1, keepdim=True)
            of_targets = logits.gather(1, wanted)
            sums = logits.sub_(top).exp_().sum(1, keepdim=True)
            loss += (sums.log() + top - of_targets).sum()
            errors = logits.div_(sums * len(hidden)).scatter_add_(1, wanted, torch.full_like(sums, -1 / len(hidden)))
            grad_bias += errors.sum(0)
            cast_errors = errors.to(hidden.dtype)
            torch.mm(cast_errors, cast_weight, out=grad_rows)
            grad_weight += torch.mm(cast_errors.t(), rows)
        ctx.save_for_backward(grad_hidden, grad_weight, grad_bias)
        return loss / len(hidden)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_loss: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        grad_hidden, grad_weight, grad_bias = ctx.saved_tensors
        return grad_hidden * grad_loss.to(grad_hidden.dtype), grad_weight * grad_loss, grad_bias * grad_loss, None
