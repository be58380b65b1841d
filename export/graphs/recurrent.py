"""Steps of the trained layers (Elman, GRU, LSTM), and the input of a layer: tokens of the first, hidden vectors of the
others.

Input: a graph under construction, weights of a layer, values of the state. Output: values of the next state.
Must not know: torch, precisions: a layer asks for `input @ weight + bias`, whichever input it has.

    Elman   h' = tanh(U x + W h + b)

    GRU     r = sigmoid(U_r x + W_r h + b_r), z = sigmoid(U_z x + W_z h + b_z)      one product over [W_r W_z]
            n = tanh(U_n x + b_n + r * (W_n h + c_n))          another product: r is applied before its sum, as in torch
            h' = n + z * (h - n)

    LSTM    i, f, o = sigmoid(U x + W h + b), g = tanh(U_g x + W_g h + b_g)         all four from one sum
            c' = f * c + i * g
            h' = o * tanh(c')

A mogrified LSTM first gates x and h by one another: x = 2 sigmoid(Q h) * x, h = 2 sigmoid(R x) * h, …
"""

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import onnx_ir as ir

from meari.export.arithmetic import Arithmetic, Operand
from meari.export.graph import GraphBuilder
from meari.export.weights import Floats, LayerWeights


class LayerInput(Protocol):
    def product(self, name: str, weight: Floats, bias: Floats) -> ir.Value:
        """Return input @ weight + bias, float32 [batch, outputs]; weight float32 [inputs, outputs], bias [outputs]."""

    def vectors(self) -> ir.Value:
        """Return the input itself, float32 [batch, inputs]; called once, and then products are not."""


class TokenInput:
    """Input of tokens: looked up in an embedding and multiplied, or in a table of finished products if that is
    smaller.
    """

    def __init__(self, graph: GraphBuilder, arithmetic: Arithmetic, token: ir.Value, embedding: Floats) -> None:
        self._graph = graph
        self._arithmetic = arithmetic
        self._token = token
        self._embedding = embedding
        self._operand: Operand | None = None

    def product(self, name: str, weight: Floats, bias: Floats) -> ir.Value:
        table_size = self._embedding.shape[0] * weight.shape[1]
        if table_size <= self._embedding.size + weight.size:
            table = self._embedding.astype(np.float64) @ weight + bias
            constant = self._graph.constant(f"{name}.table", table.astype(np.float32))
            return self._graph.op("Gather", constant, self._token, axis=0)
        if self._operand is None:
            self._operand = self._arithmetic.embedded("embedding", self._token, self._embedding)
        return self._arithmetic.product(name, self._operand, weight, bias)

    def vectors(self) -> ir.Value:
        return self._arithmetic.rows("embedding", self._token, self._embedding)


class HiddenInput:
    """Input from the layer below, float32 [batch, hidden]."""

    def __init__(self, arithmetic: Arithmetic, hidden: ir.Value) -> None:
        self._arithmetic = arithmetic
        self._hidden = hidden
        self._operand: Operand | None = None

    def product(self, name: str, weight: Floats, bias: Floats) -> ir.Value:
        if self._operand is None:
            self._operand = self._arithmetic.operand(self._hidden)
        return self._arithmetic.product(name, self._operand, weight, bias)

    def vectors(self) -> ir.Value:
        return self._hidden


def rnn_step(
    graph: GraphBuilder,
    arithmetic: Arithmetic,
    name: str,
    layer: LayerWeights,
    layer_input: LayerInput,
    state: Sequence[ir.Value],
) -> tuple[ir.Value, ...]:
    """Write one step; the state is (h,), float32 [batch, H]. Returns the next state."""
    (h,) = state
    from_input = layer_input.product(f"{name}.input", layer.input, layer.bias)
    return (graph.op("Tanh", arithmetic.product(f"{name}.state", arithmetic.operand(h), layer.state, from_input)),)


def gru_step(
    graph: GraphBuilder,
    arithmetic: Arithmetic,
    name: str,
    layer: LayerWeights,
    layer_input: LayerInput,
    state: Sequence[ir.Value],
) -> tuple[ir.Value, ...]:
    """Write one step; the state is (h,), float32 [batch, H]. Returns the next state."""
    (h,) = state
    size = layer.hidden_size
    gates, candidate = layer.gates(0, 2), layer.gates(2, 3)
    operand = arithmetic.operand(h)
    from_input = layer_input.product(f"{name}.gates.input", gates.input, gates.bias)
    gate_sums = arithmetic.product(f"{name}.gates.state", operand, gates.state, from_input)
    r, z = graph.split(graph.op("Sigmoid", gate_sums), [size, size])
    from_input = layer_input.product(f"{name}.candidate.input", candidate.input, candidate.input_bias)
    from_state = arithmetic.product(f"{name}.candidate.state", operand, candidate.state, candidate.state_bias)
    n = graph.op("Tanh", graph.op("Add", from_input, graph.op("Mul", r, from_state)))
    return (graph.op("Add", n, graph.op("Mul", z, graph.op("Sub", h, n))),)


def lstm_step(
    graph: GraphBuilder,
    arithmetic: Arithmetic,
    name: str,
    layer: LayerWeights,
    layer_input: LayerInput,
    state: Sequence[ir.Value],
) -> tuple[ir.Value, ...]:
    """Write one step; the state is (h, c), float32 [batch, H] each. Returns the next state."""
    h, c = state
    if layer.mogrifiers:
        x, h = _mogrified(graph, arithmetic, name, layer, layer_input.vectors(), h)
        layer_input = HiddenInput(arithmetic, x)
    from_input = layer_input.product(f"{name}.input", layer.input, layer.bias)
    sums = arithmetic.product(f"{name}.state", arithmetic.operand(h), layer.state, from_input)
    i, f, g, o = graph.split(sums, [layer.hidden_size] * 4)
    kept = graph.op("Mul", graph.op("Sigmoid", f), c)
    added = graph.op("Mul", graph.op("Sigmoid", i), graph.op("Tanh", g))
    next_c = graph.op("Add", kept, added)
    next_h = graph.op("Mul", graph.op("Sigmoid", o), graph.op("Tanh", next_c))
    return next_h, next_c


def _mogrified(
    graph: GraphBuilder, arithmetic: Arithmetic, name: str, layer: LayerWeights, x: ir.Value, h: ir.Value
) -> tuple[ir.Value, ir.Value]:
    two = graph.shared_constant("two", np.array(2, dtype=np.float32))
    for index, weight in enumerate(layer.mogrifiers):
        from_other = arithmetic.operand(x if index % 2 else h)
        gate = graph.op("Sigmoid", arithmetic.product(f"{name}.mogrifier{index}", from_other, weight))
        gate = graph.op("Mul", gate, two)
        if index % 2:
            h = graph.op("Mul", gate, h)
        else:
            x = graph.op("Mul", gate, x)
    return x, h
