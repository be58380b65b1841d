"""Cell graph: a token and the state in, the hidden vector and the next state out.

Input: weights of a cell. Output: the bytes of an .onnx file. Must not know: torch, the output layer.

token      int64 [batch]              hidden     float32 [batch, H]
NAME       float32 [batch, *shape]    next_NAME  float32 [batch, *shape], for each tensor of the state

Where the output layer mixes in n-grams, the last tokens are a tensor of the state, and follow the hidden vector.

A state of zeros is the one before any token, so that a runner of the graph need not know more. If the initial state was
learned, the graph's inputs and outputs are differences from it.
"""

from collections.abc import Callable, Sequence

import onnx_ir as ir

from meari.bundle_format.names import RECENT_STATE, RESERVOIR_STATE, STATE_NAMES, Family, Precision
from meari.export.arithmetic import Arithmetic, arithmetic_of
from meari.export.graph import GraphBuilder
from meari.export.graphs.esn import esn_step, remembered
from meari.export.graphs.ngram import remember_tokens
from meari.export.graphs.recurrent import HiddenInput, LayerInput, TokenInput, gru_step, lstm_step, rnn_step
from meari.export.ngram import NgramWeights
from meari.export.weights import LayerWeights, NormWeights, RecurrentWeights, ReservoirWeights

State = Sequence[ir.Value]
Step = Callable[[GraphBuilder, Arithmetic, str, LayerWeights, LayerInput, State], State]


STEPS: dict[Family, Step] = {Family.RNN: rnn_step, Family.GRU: gru_step, Family.LSTM: lstm_step}


def cell_graph(
    weights: RecurrentWeights | ReservoirWeights, precision: Precision, ngram: NgramWeights | None = None
) -> bytes:
    """Write one step of a model as an .onnx file.

    ngram  the model that the output layer mixes in: the last tokens then follow the hidden vector
    """
    num_tokens = 0 if ngram is None else ngram.order - 1
    if isinstance(weights, ReservoirWeights):
        return _reservoir_graph(weights, num_tokens)
    return _recurrent_graph(weights, precision, num_tokens)


def _reservoir_graph(weights: ReservoirWeights, num_tokens: int) -> bytes:
    graph = GraphBuilder("esn_cell")
    token = graph.input("token", ir.DataType.INT64)
    recent = None
    if num_recent := remembered(weights):
        recent = graph.input(RECENT_STATE, ir.DataType.FLOAT, [num_recent])
    units = [layer.leak.shape[0] for layer in weights.layers]
    names = [f"{RESERVOIR_STATE}{index}" for index in range(len(units))]
    states = [graph.input(name, ir.DataType.FLOAT, [size]) for name, size in zip(names, units, strict=True)]
    after = esn_step(graph, weights, token, recent, states)
    hidden = after.states[0] if len(units) == 1 else graph.op("Concat", *after.states, axis=1)
    _write_hidden(graph, token, hidden, sum(units), num_tokens)
    if after.recent is not None:
        graph.output(f"next_{RECENT_STATE}", after.recent, [num_recent])
    for name, state, size in zip(names, after.states, units, strict=True):
        graph.output(f"next_{name}", state, [size])
    return graph.to_bytes()


def _recurrent_graph(weights: RecurrentWeights, precision: Precision, num_tokens: int) -> bytes:
    state_names = STATE_NAMES[weights.family]
    graph = GraphBuilder(f"{weights.family}_cell")
    arithmetic = arithmetic_of(precision, graph)
    token = graph.input("token", ir.DataType.INT64)
    layer_input: LayerInput = TokenInput(graph, arithmetic, token, weights.embedding)
    states: list[tuple[str, ir.Value]] = []
    for index, layer in enumerate(weights.layers):
        names = [f"{name}{index}" for name in state_names]
        inputs = [graph.input(name, ir.DataType.FLOAT, [layer.hidden_size]) for name in names]
        initial = [graph.constant(f"{name}.initial", value) for name, value in zip(names, layer.initial, strict=False)]
        state = _with_initial(graph, "Add", inputs, initial)
        next_state = STEPS[weights.family](graph, arithmetic, f"layer{index}", layer, layer_input, state)
        states += zip(names, _with_initial(graph, "Sub", next_state, initial), strict=True)
        hidden = _normalised(graph, f"layer{index}", layer.norm, next_state[0])
        layer_input = HiddenInput(arithmetic, hidden)
    _write_hidden(graph, token, hidden, weights.layers[-1].hidden_size, num_tokens)
    sizes = [layer.hidden_size for layer in weights.layers for _ in state_names]
    for (name, value), size in zip(states, sizes, strict=True):
        graph.output(f"next_{name}", value, [size])
    return graph.to_bytes()


def _write_hidden(graph: GraphBuilder, token: ir.Value, hidden: ir.Value, size: int, num_tokens: int) -> None:
    """Write the output `hidden`, with as many of the last tokens behind it."""
    if num_tokens:
        hidden = remember_tokens(graph, token, hidden, num_tokens)
    graph.output("hidden", hidden, [size + num_tokens])


def _with_initial(graph: GraphBuilder, op_type: str, state: State, initial: State) -> State:
    """Add or subtract the initial state, tensor by tensor."""
    return [graph.op(op_type, *pair) for pair in zip(state, initial, strict=True)] if initial else state


def _normalised(graph: GraphBuilder, name: str, norm: NormWeights | None, x: ir.Value) -> ir.Value:
    if norm is None:
        return x
    scale, shift = graph.constant(f"{name}.norm.scale", norm.scale), graph.constant(f"{name}.norm.shift", norm.shift)
    return graph.op("LayerNormalization", x, scale, shift, axis=-1, epsilon=norm.epsilon)
