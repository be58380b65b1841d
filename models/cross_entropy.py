"""Cross-entropy of a linear output layer, computed a few rows at a time, with its gradients on the way.

In: hidden vectors, the output layer's weights, targets. Out: the mean loss. Knows nothing of models.

Logits of a whole chunk are the largest tensor of a training by far; made, squashed and thrown away some rows at a time,
they stay in the processor's cache. The gradients are ready when the loss is, so backward only scales them.
Source of the method: Wijmans et al., "Cut your losses in large-vocabulary language models", 2025.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

LOGITS_AT_ONCE = 1 << 20


def linear_cross_entropy(hidden: Tensor, weight: Tensor, bias: Tensor, targets: Tensor) -> Tensor:
    """Mean of -ln softmax(weight h + bias)[target] in nats.

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
