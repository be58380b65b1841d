"""The cell graph: a token and the state in, the hidden vector and the next state out.

token      int64 [batch]              hidden     float32 [batch, H]
NAME       float32 [batch, *shape]    next_NAME  float32 [batch, *shape], for each tensor of the state
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from export.arithmetic import Arithmetic, arithmetic_of
from export.graph import GraphBuilder
from export.graphs.esn import esn_step
from export.graphs.gru import gru_step
from export.graphs.layer_input import HiddenInput, LayerInput, TokenInput
from export.graphs.lstm import lstm_step
from export.graphs.rnn import rnn_step
from export.precision import Precision
from export.weights import LayerWeights, RecurrentWeights, ReservoirWeights

State = Sequence[ir.Value]
Step = Callable[[GraphBuilder, Arithmetic, str, LayerWeights, LayerInput, State], State]


@dataclass(frozen=True)
class Recurrence:
    """A family's step, and the names of its state tensors, the output first."""

    step: Step
    state_names: tuple[str, ...]


RECURRENCES = {
    "rnn": Recurrence(rnn_step, ("h",)),
    "gru": Recurrence(gru_step, ("h",)),
    "lstm": Recurrence(lstm_step, ("h", "c")),
}


def cell_graph(weights: RecurrentWeights | ReservoirWeights, precision: Precision) -> bytes:
    """Write one step of a model as an .onnx file."""
    if isinstance(weights, ReservoirWeights):
        return _reservoir_graph(weights)
    return _recurrent_graph(weights, precision)


def _reservoir_graph(weights: ReservoirWeights) -> bytes:
    graph = GraphBuilder("esn_cell")
    (units,) = weights.leak.shape
    token = graph.input("token", ir.DataType.INT64)
    s = graph.input("s0", ir.DataType.FLOAT, [units])
    next_s = esn_step(graph, weights, token, s)
    graph.output("hidden", next_s, [units])
    graph.output("next_s0", next_s, [units])
    return graph.to_bytes()


def _recurrent_graph(weights: RecurrentWeights, precision: Precision) -> bytes:
    recurrence = RECURRENCES[weights.family]
    graph = GraphBuilder(f"{weights.family}_cell")
    arithmetic = arithmetic_of(precision, graph)
    size = weights.layers[0].hidden_size
    token = graph.input("token", ir.DataType.INT64)
    layer_input: LayerInput = TokenInput(graph, arithmetic, token, weights.embedding)
    states: list[tuple[str, ir.Value]] = []
    for index, layer in enumerate(weights.layers):
        names = [f"{name}{index}" for name in recurrence.state_names]
        state = [graph.input(name, ir.DataType.FLOAT, [size]) for name in names]
        next_state = recurrence.step(graph, arithmetic, f"layer{index}", layer, layer_input, state)
        states += zip(names, next_state, strict=True)
        if layer is not weights.layers[-1]:
            layer_input = HiddenInput(arithmetic, next_state[0])
    graph.output("hidden", next_state[0], [size])
    for name, value in states:
        graph.output(f"next_{name}", value, [size])
    return graph.to_bytes()
