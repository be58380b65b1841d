"""Test the scans: their gradients, and their agreement with torch's kernels in float32 and bfloat16."""

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck
from torch.autograd.function import Function

from meari.models.cells import Cell, GruCell, LstmCell, RnnCell
from meari.models.cells.scan import GruScan, LstmScan, RnnScan

TIME, BATCH, SIZE = 6, 3, 4
CELLS = (RnnCell, GruCell, LstmCell)


def doubles(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, requires_grad=True)


@pytest.mark.parametrize(
    ("recurrence", "num_gates", "more"),
    [(RnnScan, 1, [(BATCH, SIZE)]), (GruScan, 3, [(SIZE,), (BATCH, SIZE)]), (LstmScan, 4, [(BATCH, SIZE)] * 2)],
)
def test_gradients_agree_with_finite_differences(
    recurrence: type[Function], num_gates: int, more: list[tuple[int, ...]]
) -> None:
    torch.manual_seed(1)
    width = num_gates * SIZE
    inputs = (doubles(TIME, BATCH, width), doubles(width, SIZE), *(doubles(*shape) for shape in more))
    assert gradcheck(recurrence.apply, inputs)


def run(cell: Cell, dtype: torch.dtype | None) -> tuple[Tensor, list[Tensor]]:
    """Return outputs and the gradients of x, state and weights; uses torch's kernel if `dtype` is None."""
    torch.manual_seed(2)
    x = torch.randn(5, 12, cell.input_size, requires_grad=True)
    state = tuple(torch.randn(5, cell.hidden_size, requires_grad=True) for _ in cell.state_names)
    cell.zero_grad()
    with torch.autocast("cpu", dtype, enabled=dtype is not None):
        outputs, last = cell.sequence(x, state)
    (outputs.float().square().sum() + sum(tensor.float().sum() for tensor in last)).backward()
    grads = [tensor.grad for tensor in (x, *state, *cell.parameters())]
    return outputs, [grad for grad in grads if grad is not None]


@pytest.mark.parametrize("kind", CELLS)
@pytest.mark.filterwarnings("ignore:In CPU autocast")
def test_scan_agrees_with_the_kernel_of_torch(kind: type[RnnCell] | type[GruCell] | type[LstmCell]) -> None:
    torch.manual_seed(3)
    cell = kind(7, 16)
    exact, exact_grads = run(cell, None)
    rounded, rounded_grads = run(cell, torch.bfloat16)
    assert rounded.dtype == torch.bfloat16
    assert (rounded - exact).abs().max() < 0.03
    assert len(exact_grads) == len(rounded_grads) == 1 + len(cell.state_names) + 4
    for ours, wanted in zip(rounded_grads, exact_grads, strict=True):
        assert ours.dtype == torch.float32
        assert (ours - wanted).norm() < 0.03 * wanted.norm()


@pytest.mark.parametrize("kind", CELLS)
def test_weight_drop_acts_only_during_training(kind: type[RnnCell] | type[GruCell] | type[LstmCell]) -> None:
    cell = kind(3, 8)
    x, state = torch.randn(2, 5, 3), tuple(torch.randn(2, 8) for _ in cell.state_names)
    whole, _ = cell.eval().sequence(x, state)
    cell.weight_drop = 0.5
    torch.testing.assert_close(cell.sequence(x, state)[0], whole, rtol=0, atol=0)
    dropped = [cell.train().sequence(x, state)[0] for _ in range(2)]
    assert (dropped[0] - whole).abs().max() > 1e-3
    assert (dropped[0] - dropped[1]).abs().max() > 1e-3
