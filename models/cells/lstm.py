"""Long short-term memory with a forget gate.

Input: vectors x and the state before them. Output: output vectors and the state after them. Must not know: tokens,
training.

    i_t = sigmoid(U_i x_t + W_i h_{t-1} + b_i)   input gate
    f_t = sigmoid(U_f x_t + W_f h_{t-1} + b_f)   forget gate
    g_t = tanh   (U_g x_t + W_g h_{t-1} + b_g)   candidate
    o_t = sigmoid(U_o x_t + W_o h_{t-1} + b_o)   output gate
    c_t = f_t * c_{t-1} + i_t * g_t
    h_t = o_t * tanh(c_t)

symbol                name                                     shape
x_t                   x                                        [batch, input_size]     input
h_t                   h                                        [batch, hidden_size]    hidden state, the output
c_t                   c                                        [batch, hidden_size]    memory
i_t, f_t, g_t, o_t    i, f, g, o                               [batch, hidden_size]
U_i, U_f, U_g, U_o    blocks of weight_ih_l0, in this order    [hidden_size, input_size] each
W_i, W_f, W_g, W_o    blocks of weight_hh_l0, in this order    [hidden_size, hidden_size] each
b_i, b_f, b_g, b_o    blocks of bias_ih_l0 + bias_hh_l0        [hidden_size] each
*                     product of elements

Mogrified, x_t and h_{t-1} gate one another first, in turn, for r rounds:

    x_t = 2 sigmoid(Q_1 h_{t-1}) * x_t, h_{t-1} = 2 sigmoid(R_2 x_t) * h_{t-1}, x_t = 2 sigmoid(Q_3 h_{t-1}) * x_t, …

Q_1, Q_3, …           mogrifiers.0, mogrifiers.2, …            [input_size, hidden_size] each
R_2, R_4, …           mogrifiers.1, mogrifiers.3, …            [hidden_size, input_size] each

Sources: Hochreiter and Schmidhuber, "Long short-term memory", 1997; Gers et al., "Learning to forget", 2000, whose
advice to start with open forget gates (b_f = 1) is followed; Melis et al., "Mogrifier LSTM", 2020.
"""

import torch
from torch import Tensor, nn

from meari.bundle_format.names import STATE_NAMES, Family
from meari.models.cells.cell import Cell, CellState
from meari.models.cells.scan import LstmScan, scan


class LstmCell(Cell):
    """Long short-term memory; its state is (h, c).

    mogrifier_rounds   r above, 0: none
    forget_bias        what b_f is at the start
    """

    state_names = STATE_NAMES[Family.LSTM]
    num_gates = 4

    def __init__(
        self, input_size: int, hidden_size: int, *, mogrifier_rounds: int = 0, forget_bias: float = 1.0
    ) -> None:
        super().__init__(nn.LSTM(input_size, hidden_size, batch_first=True))
        sizes = ((hidden_size, input_size), (input_size, hidden_size))
        self.mogrifiers = nn.ModuleList(nn.Linear(*sizes[index % 2], bias=False) for index in range(mogrifier_rounds))
        self._forget_bias = forget_bias
        self.reset_parameters()

    def sequence(self, x: Tensor, state: CellState) -> tuple[Tensor, CellState]:
        if not self.mogrifiers:
            return super().sequence(x, state)
        weights = self._sequence_weights()
        h, c = state
        outputs = []
        for x_t in x.unbind(1):
            gated, h = self._mogrified(x_t, h)
            h, c = torch.lstm_cell(gated, (h, c), *weights)
            outputs.append(h)
        return torch.stack(outputs, dim=1), (h, c)

    def _fused(self, x: Tensor, state: CellState, weights: list[Tensor]) -> tuple[Tensor, CellState]:
        rows = [tensor.unsqueeze(0) for tensor in state]
        outputs, last_h, last_c = torch.lstm(
            x,
            rows,
            weights,
            has_biases=True,
            num_layers=1,
            dropout=0.0,
            train=self.training,
            bidirectional=False,
            batch_first=True,
        )
        return outputs, (last_h.squeeze(0), last_c.squeeze(0))

    def _scan(self, products: Tensor, weight: Tensor, bias: Tensor, state: CellState) -> tuple[Tensor, CellState]:
        h, c = state
        outputs, last_c = scan(LstmScan, products, weight, h.to(products.dtype), c)
        return outputs, (outputs[-1].to(h.dtype), last_c)

    def step(self, x: Tensor, state: CellState) -> tuple[Tensor, CellState]:
        h, c = state
        x, h = self._mogrified(x, h)
        u_i, u_f, u_g, u_o = self.input_products(x)
        w_i, w_f, w_g, w_o = self.state_products(h)
        i = torch.sigmoid(u_i + w_i)
        f = torch.sigmoid(u_f + w_f)
        g = torch.tanh(u_g + w_g)
        o = torch.sigmoid(u_o + w_o)
        c_next = f * c + i * g
        h_next = o * torch.tanh(c_next)
        return h_next, (h_next, c_next)

    @torch.no_grad()
    def reset_parameters(self) -> None:
        super().reset_parameters()
        forget_bias = self._weight("bias_ih_l0").chunk(self.num_gates)[1]
        nn.init.constant_(forget_bias, self._forget_bias)

    def _mogrified(self, x: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        for index, mogrifier in enumerate(self.mogrifiers):
            if index % 2 == 0:
                x = 2 * torch.sigmoid(mogrifier(h)) * x
            else:
                h = 2 * torch.sigmoid(mogrifier(x)) * h
        return x, h
