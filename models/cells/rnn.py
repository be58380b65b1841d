"""Elman recurrence.

Input: vectors x and the state before them. Output: output vectors and the state after them. Must not know: tokens,
training.

    s_t = tanh(U x_t + W s_{t-1} + b)

symbol   name          shape
x_t      x             [batch, input_size]     input
s_t      h             [batch, hidden_size]    state, and at the same time the output
U        weight_ih_l0  [hidden_size, input_size]
W        weight_hh_l0  [hidden_size, hidden_size]
b        bias_ih_l0 + bias_hh_l0               [hidden_size]

Source: Elman, "Finding structure in time", 1990. The output y_t = softmax(V s_t) belongs to the language model.
"""

import torch
from torch import Tensor, nn

from meari.bundle_format.names import STATE_NAMES, Family
from meari.models.cells.cell import Cell, CellState
from meari.models.cells.scan import RnnScan, scan


class RnnCell(Cell):
    """Elman recurrence with tanh; its state is (h,)."""

    state_names = STATE_NAMES[Family.RNN]
    num_gates = 1

    def __init__(self, input_size: int, hidden_size: int) -> None:
        super().__init__(nn.RNN(input_size, hidden_size, nonlinearity="tanh", batch_first=True))
        self.reset_parameters()

    def _fused(self, x: Tensor, state: CellState, weights: list[Tensor]) -> tuple[Tensor, CellState]:
        (h,) = state
        outputs, last = torch.rnn_tanh(
            x,
            h.unsqueeze(0),
            weights,
            has_biases=True,
            num_layers=1,
            dropout=0.0,
            train=self.training,
            bidirectional=False,
            batch_first=True,
        )
        return outputs, (last.squeeze(0),)

    def _scan(self, products: Tensor, weight: Tensor, bias: Tensor, state: CellState) -> tuple[Tensor, CellState]:
        (h,) = state
        (outputs,) = scan(RnnScan, products, weight, h.to(products.dtype))
        return outputs, (outputs[-1].to(h.dtype),)

    def step(self, x: Tensor, state: CellState) -> tuple[Tensor, CellState]:
        (h,) = state
        (u_x,) = self.input_products(x)
        (w_h,) = self.state_products(h)
        h_next = torch.tanh(u_x + w_h)
        return h_next, (h_next,)
