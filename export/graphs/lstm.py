"""One step of an LSTM layer, all four gates from one sum.

i, f, o = sigmoid(U x + W h + b)      g = tanh(U_g x + W_g h + b_g)
c' = f * c + i * g
h' = o * tanh(c')

Mogrified, x and h gate one another before: x = 2 sigmoid(Q h) * x, h = 2 sigmoid(R x) * h, …
"""

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from meari.export.arithmetic import Arithmetic
from meari.export.graph import GraphBuilder
from meari.export.graphs.layer_input import HiddenInput, LayerInput
from meari.export.weights import LayerWeights


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
