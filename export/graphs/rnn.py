"""One step of an Elman layer: h' = tanh(U x + W h + b)."""

from collections.abc import Sequence

import onnx_ir as ir

from meari.export.arithmetic import Arithmetic
from meari.export.graph import GraphBuilder
from meari.export.graphs.layer_input import LayerInput
from meari.export.weights import LayerWeights


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
