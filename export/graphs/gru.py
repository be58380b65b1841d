"""One step of a GRU layer, the reset gate applied after the product, as torch does.

    r  = sigmoid(U_r x + W_r h + b_r)
    z  = sigmoid(U_z x + W_z h + b_z)
    n  = tanh(U_n x + b_n + r * (W_n h + c_n))
    h' = n + z * (h - n)

r and z are one product over [W_r W_z]; n is another, because r stands before its sum.
"""

from collections.abc import Sequence

import onnx_ir as ir

from meari.export.arithmetic import Arithmetic
from meari.export.graph import GraphBuilder
from meari.export.graphs.layer_input import LayerInput
from meari.export.weights import LayerWeights


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
