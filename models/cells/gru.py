"""Gated recurrent unit, with the reset gate applied after the product.

Input: vectors x and the state before them. Output: output vectors and the state after them. Must not know: tokens,
training.

    r_t = sigmoid(U_r x_t + W_r h_{t-1} + b_r)             reset gate
    z_t = sigmoid(U_z x_t + W_z h_{t-1} + b_z)             update gate
    n_t = tanh(U_n x_t + b_n + r_t * (W_n h_{t-1} + c_n))  candidate
    h_t = (1 - z_t) * n_t + z_t * h_{t-1}

symbol          name                                     shape
x_t             x                                        [batch, input_size]     input
h_t             h                                        [batch, hidden_size]    state, and the output
r_t, z_t, n_t   r, z, n                                  [batch, hidden_size]
U_r, U_z, U_n   blocks of weight_ih_l0, in this order    [hidden_size, input_size] each
W_r, W_z, W_n   blocks of weight_hh_l0, in this order    [hidden_size, hidden_size] each
b_r, b_z        blocks of bias_ih_l0 + bias_hh_l0        [hidden_size] each
b_n, c_n        last block of bias_ih_l0, of bias_hh_l0  [hidden_size] each
*               product of elements

Source: Cho et al., "Learning phrase representations using RNN encoder-decoder", 2014, in the form with W_n h before
the reset gate, which runs as one product.
"""

import torch
from torch import Tensor, nn

from meari.bundle_format.names import STATE_NAMES, Family
from meari.models.cells.cell import Cell, CellState
from meari.models.cells.scan import GruScan, scan


class GruCell(Cell):
    """Gated recurrent unit; its state is (h,)."""

    state_names = STATE_NAMES[Family.GRU]
    num_gates = 3

    def __init__(self, input_size: int, hidden_size: int) -> None:
        super().__init__(nn.GRU(input_size, hidden_size, batch_first=True))
        self.reset_parameters()

    def _fused(self, x: Tensor, state: CellState, weights: list[Tensor]) -> tuple[Tensor, CellState]:
        (h,) = state
        outputs, last = torch.gru(
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

    def _scan_bias(self, b_in: Tensor, b_rec: Tensor) -> Tensor:
        gates = 2 * self.hidden_size
        return torch.cat([b_in[:gates] + b_rec[:gates], b_in[gates:]])

    def _scan(self, products: Tensor, weight: Tensor, bias: Tensor, state: CellState) -> tuple[Tensor, CellState]:
        (h,) = state
        (outputs,) = scan(GruScan, products, weight, bias[2 * self.hidden_size :], h.to(products.dtype))
        return outputs, (outputs[-1].to(h.dtype),)

    def step(self, x: Tensor, state: CellState) -> tuple[Tensor, CellState]:
        (h,) = state
        u_r, u_z, u_n = self.input_products(x)
        w_r, w_z, w_n = self.state_products(h)
        r = torch.sigmoid(u_r + w_r)
        z = torch.sigmoid(u_z + w_z)
        n = torch.tanh(u_n + r * w_n)
        h_next = (1 - z) * n + z * h
        return h_next, (h_next,)
