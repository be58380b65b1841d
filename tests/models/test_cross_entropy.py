"""The fused cross-entropy is torch's, to the last digits of float32, and so are its gradients."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from meari.models import cross_entropy
from meari.models.cross_entropy import linear_cross_entropy


def inputs(num_rows: int, width: int, vocabulary_size: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    torch.manual_seed(4)
    hidden, weight = torch.randn(num_rows, width), torch.randn(vocabulary_size, width)
    targets = torch.randint(vocabulary_size, (num_rows,))
    return hidden.requires_grad_(), weight.requires_grad_(), torch.randn(vocabulary_size, requires_grad=True), targets


@pytest.mark.parametrize("logits_at_once", [1, 100, 1 << 20])
def test_it_is_torchs_loss_with_torchs_gradients(monkeypatch: pytest.MonkeyPatch, logits_at_once: int) -> None:
    monkeypatch.setattr(cross_entropy, "LOGITS_AT_ONCE", logits_at_once)
    hidden, weight, bias, targets = inputs(23, 7, 31)
    ours = linear_cross_entropy(hidden, weight, bias, targets)
    wanted = functional.cross_entropy(functional.linear(hidden, weight, bias), targets)
    torch.testing.assert_close(ours, wanted)
    grads = torch.autograd.grad(3 * ours, (hidden, weight, bias))
    torch.testing.assert_close(grads, torch.autograd.grad(3 * wanted, (hidden, weight, bias)))


def test_large_logits_do_not_overflow() -> None:
    hidden, weight, bias, targets = inputs(5, 4, 6)
    assert torch.isfinite(linear_cross_entropy(hidden * 1e4, weight, bias, targets))


def test_products_in_bfloat16_come_near() -> None:
    hidden, weight, bias, targets = inputs(200, 16, 50)
    exact = linear_cross_entropy(hidden, weight, bias, targets)
    rounded = linear_cross_entropy(hidden.bfloat16(), weight, bias, targets)
    assert rounded.dtype == torch.float32
    assert abs(rounded.item() - exact.item()) < 0.02 * exact.item()
    (grad,) = torch.autograd.grad(rounded, weight)
    (wanted,) = torch.autograd.grad(exact, weight)
    assert (grad - wanted).norm() < 0.02 * wanted.norm()
