"""Base of the trained recurrences: the weights' names, their initial values, and the two forms.

Input: vectors x and the state before them, as a tuple of tensors in the order of `state_names`.
Output: output vectors and the state after them. Must not know: tokens, training.

Whole sequences run through torch's fused kernels, or, where autocast asks for bfloat16 on a CPU, through
`models/cells/scan.py`, which is faster there. The weights are those of `kernel`, a single-layer torch module. It has,
with G gates stacked along the first axis:

    weight_ih_l0  float32 [G * hidden_size, input_size]     U of the lecture, one block a gate
    weight_hh_l0  float32 [G * hidden_size, hidden_size]    W of the lecture, one block a gate
    bias_ih_l0    float32 [G * hidden_size]                 the biases of both products: kept apart because the
    bias_hh_l0    float32 [G * hidden_size]                 GRU's reset gate acts on the second one alone
"""

from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

CellState = tuple[Tensor, ...]


class Cell(nn.Module):
    """One layer of a recurrence.

    Subclasses name their state tensors and their number of gates, and write `step` out as the lecture does.

    weight_drop   share of the recurrent weights that is zero during a chunk of training, drawn anew for each:
                  Merity et al., "Regularizing and optimizing LSTM language models", 2017 (DropConnect)
    """

    state_names: ClassVar[tuple[str, ...]]
    num_gates: ClassVar[int]

    def __init__(self, kernel: nn.RNNBase) -> None:
        super().__init__()
        self.kernel = kernel
        self.input_size: int = kernel.input_size
        self.hidden_size: int = kernel.hidden_size
        self.weight_drop = 0.0

    def sequence(self, x: Tensor, state: CellState) -> tuple[Tensor, CellState]:
        """Run a whole sequence.

        x        float32 [batch, time, input_size], time >= 1
        state    a tuple of float32 [batch, hidden_size], in the order of `state_names`
        returns  outputs float32 [batch, time, hidden_size] and the state after the last input, shaped as it came
        """
        weights = self._sequence_weights()
        if x.device.type == "cpu" and torch.is_autocast_enabled("cpu"):
            return self._scanned(x, state, weights, torch.get_autocast_dtype("cpu"))
        return self._fused(x, state, weights)

    def _fused(self, x: Tensor, state: CellState, weights: list[Tensor]) -> tuple[Tensor, CellState]:
        """Run `sequence` by torch's kernel; weights in torch's order: input, recurrent, both biases."""
        raise NotImplementedError

    def _scanned(
        self, x: Tensor, state: CellState, weights: list[Tensor], dtype: torch.dtype
    ) -> tuple[Tensor, CellState]:
        """Run `sequence` with products in `dtype`."""
        with torch.autocast("cpu", enabled=False):
            w_in, w_rec, b_in, b_rec = weights
            bias = self._scan_bias(b_in, b_rec)
            products = functional.linear(x.transpose(0, 1).to(dtype), w_in.to(dtype), bias.to(dtype))
            outputs, last = self._scan(products, w_rec.to(dtype), b_rec.to(dtype), state)
            return outputs.transpose(0, 1), last

    def _scan_bias(self, b_in: Tensor, b_rec: Tensor) -> Tensor:
        """Return the bias of the input products."""
        return b_in + b_rec

    def _scan(self, products: Tensor, weight: Tensor, bias: Tensor, state: CellState) -> tuple[Tensor, CellState]:
        """Return outputs [T, B, H] and the last state, from products [T, B, G * H] of the type of weight and bias."""
        raise NotImplementedError

    def _sequence_weights(self) -> list[Tensor]:
        names = ("weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0")
        weights = [self._weight(name) for name in names]
        if self.training and self.weight_drop:
            weights[1] = functional.dropout(weights[1], self.weight_drop)
        return weights

    def step(self, x: Tensor, state: CellState) -> tuple[Tensor, CellState]:
        """Run one step as the equations say.

        x        float32 [batch, input_size]
        state    a tuple of float32 [batch, hidden_size], in the order of `state_names`
        returns  output float32 [batch, hidden_size] and the next state, shaped as it came
        """
        raise NotImplementedError

    def input_products(self, x: Tensor) -> tuple[Tensor, ...]:
        """Return U x + b of every gate, each float32 [batch, hidden_size]."""
        product = functional.linear(x, self._weight("weight_ih_l0"), self._weight("bias_ih_l0"))
        return product.chunk(self.num_gates, dim=-1)

    def state_products(self, h: Tensor) -> tuple[Tensor, ...]:
        """Return W h + b of every gate, each float32 [batch, hidden_size]."""
        product = functional.linear(h, self._weight("weight_hh_l0"), self._weight("bias_hh_l0"))
        return product.chunk(self.num_gates, dim=-1)

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draw new weights from torch's generator: Glorot for U, orthogonal for W, a gate at a time; biases zero."""
        for block in self._weight("weight_ih_l0").chunk(self.num_gates):
            nn.init.xavier_uniform_(block)
        for block in self._weight("weight_hh_l0").chunk(self.num_gates):
            nn.init.orthogonal_(block)
        nn.init.zeros_(self._weight("bias_ih_l0"))
        nn.init.zeros_(self._weight("bias_hh_l0"))

    def _weight(self, name: str) -> Tensor:
        weight = getattr(self.kernel, name)
        assert isinstance(weight, Tensor)
        return weight
