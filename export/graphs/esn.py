"""Step of a reservoir, s' = s + leak * (tanh(W s + u + bias) - s) in each layer with W kept sparse, and the frozen
expansion of its states for the readout.

Input: a graph under construction and weights. Output: values of the graph. Must not know: torch, precisions.

Always float32, also in an int8 bundle, where only the readout is quantised: the readout was fitted to the states of
float32, rounding errors feed back into later states, and no training adapts the reservoir to them. At 4,096 units the
blocks are 1 MB and their product half of a step.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from meari.export.arithmetic import Fp32Arithmetic
from meari.export.graph import GraphBuilder
from meari.export.graphs.recurrent import TokenInput
from meari.export.weights import (
    BlockPattern,
    ExpansionWeights,
    Floats,
    RandomPattern,
    RecentTokensWeights,
    ReservoirWeights,
    Sparse,
)


@dataclass(frozen=True)
class ReservoirState:
    """State of a reservoir in the graph.

    recent      float32 [batch, (k - 1) * E], the embeddings of the last tokens, or None where none are remembered
    states      float32 [batch, N], one a layer
    """

    recent: ir.Value | None
    states: Sequence[ir.Value]


def remembered(weights: ReservoirWeights) -> int:
    """Return the size of the last tokens' embeddings in the state."""
    entering = weights.entering
    if not isinstance(entering, RecentTokensWeights):
        return 0
    return int(entering.weights.shape[0] - entering.embedding.shape[1])


def esn_step(
    graph: GraphBuilder,
    weights: ReservoirWeights,
    token: ir.Value,
    recent: ir.Value | None,
    states: Sequence[ir.Value],
) -> ReservoirState:
    """Write one step.

    token    int64 [batch]
    recent   as in `ReservoirState`, like the states
    returns  both after the token
    """
    first = weights.layers[0]
    if isinstance(weights.entering, RecentTokensWeights):
        drive, next_recent = _drive_of_recent(graph, weights.entering, first.bias, token, recent)
    else:
        table = graph.constant("input.table", weights.entering + first.bias)
        drive, next_recent = graph.op("Gather", table, token, axis=0), None
    next_states: list[ir.Value] = []
    for index, (layer, s) in enumerate(zip(weights.layers, states, strict=True)):
        name = f"layer{index}"
        if layer.below is not None:
            from_below = _product(graph, f"{name}.below", layer.below, next_states[-1])
            drive = graph.op("Add", from_below, graph.constant(f"{name}.bias", layer.bias))
        target = graph.op("Tanh", graph.op("Add", _product(graph, name, layer.pattern, s), drive))
        change = graph.op("Mul", graph.op("Sub", target, s), graph.constant(f"{name}.leak", layer.leak))
        next_states.append(graph.op("Add", s, change))
    return ReservoirState(next_recent, next_states)


def expand(graph: GraphBuilder, weights: ExpansionWeights, hidden: ir.Value, size: int) -> ir.Value:
    """Write the hidden vector of `size` numbers, H, followed by its features: float32 [batch, H] → [batch, H + F]."""
    groups, edges = weights.sources.shape
    x = _with_zero_row(graph, hidden, np.zeros((1, size), np.float32))
    x = graph.op("Gather", x, graph.constant("expansion.sources", weights.sources.ravel()), axis=1)
    x = graph.op("Reshape", x, graph.integers(-1, groups, edges))
    x = graph.op("Transpose", x, perm=[1, 0, 2])  # [S, batch + 1, K]
    x = graph.op("MatMul", x, graph.constant("expansion.weights", weights.weights))
    x = graph.op("Transpose", x, perm=[1, 0, 2])  # [batch + 1, S, outputs]
    x = _without_last_row(graph, graph.op("Reshape", x, graph.integers(-1, weights.bias.size)))
    x = graph.op("Add", x, graph.constant("expansion.bias", weights.bias.ravel()))
    return graph.op("Concat", hidden, graph.op("Tanh", x), axis=1)


def _drive_of_recent(
    graph: GraphBuilder, weights: RecentTokensWeights, bias: Floats, token: ir.Value, recent: ir.Value | None
) -> tuple[ir.Value, ir.Value | None]:
    arithmetic = Fp32Arithmetic(graph)
    if recent is None:
        drive = TokenInput(graph, arithmetic, token, weights.embedding).product("input", weights.weights, bias)
        return drive, None
    newest = graph.op("Gather", graph.constant("input.embedding", weights.embedding), token, axis=0)
    seen = graph.op("Concat", newest, recent, axis=1)
    size = weights.weights.shape[0] - weights.embedding.shape[1]
    kept = graph.op("Slice", seen, graph.integers(0), graph.integers(size), graph.integers(1))
    return arithmetic.product("input", arithmetic.operand(seen), weights.weights, bias), kept


def _product(graph: GraphBuilder, name: str, pattern: Sparse, s: ir.Value) -> ir.Value:
    if isinstance(pattern, BlockPattern):
        return _block_product(graph, name, pattern, s)
    return _edge_product(graph, name, pattern, s)


def _block_product(graph: GraphBuilder, name: str, pattern: BlockPattern, s: ir.Value) -> ir.Value:
    """Multiply each block of units by its own matrix; units are dealt to the blocks like cards, within each
    reservoir.
    """
    reservoirs, num_blocks, size, _ = pattern.blocks.shape
    units = reservoirs * num_blocks * size
    x = _with_zero_row(graph, s, np.zeros((1, units), dtype=np.float32))
    if reservoirs == 1:
        x = graph.op("Reshape", x, graph.integers(-1, size, num_blocks))  # [batch + 1, K, S]
        x = graph.op("Transpose", x, perm=[2, 0, 1])  # [S, batch + 1, K]
    else:
        x = graph.op("Reshape", x, graph.integers(-1, reservoirs, size, num_blocks))  # [batch + 1, R, K, S]
        x = graph.op("Transpose", x, perm=[1, 3, 0, 2])  # [R, S, batch + 1, K]
        x = graph.op("Reshape", x, graph.integers(reservoirs * num_blocks, -1, size))
    x = graph.op("MatMul", x, graph.constant(f"{name}.blocks", pattern.blocks.reshape(-1, size, size)))
    x = graph.op("Transpose", x, perm=[1, 0, 2])  # [batch + 1, R * S, K]
    return _without_last_row(graph, graph.op("Reshape", x, graph.integers(-1, units)))


def _with_zero_row(graph: GraphBuilder, x: ir.Value, zeros: Floats) -> ir.Value:
    """Append a row of zeros: onnxruntime takes another kernel, which rounds differently, for a batched product of one
    row, so a lone row would differ from the same row in a batch.
    """
    return graph.op("Concat", x, graph.shared_constant(f"zero_row_{zeros.shape[1]}", zeros), axis=0)


def _without_last_row(graph: GraphBuilder, x: ir.Value) -> ir.Value:
    return graph.op("Slice", x, graph.integers(0), graph.integers(-1), graph.integers(0))


def _edge_product(graph: GraphBuilder, name: str, pattern: RandomPattern, s: ir.Value) -> ir.Value:
    """Sum over a unit's incoming edges, one edge of all units at a time.

    Units come first, [N, batch], so that fetching a source copies a whole row of the batch. Elementwise sums
    in a fixed order keep rows exact; a reduction would pick its order by the batch size.
    """
    by_unit = graph.op("Transpose", s, perm=[1, 0])
    total: ir.Value | None = None
    for edge in range(pattern.sources.shape[1]):
        sources = graph.constant(f"{name}.edge{edge}.sources", pattern.sources[:, edge])
        weights = graph.constant(f"{name}.edge{edge}.weights", pattern.weights[:, edge : edge + 1])
        term = graph.op("Mul", graph.op("Gather", by_unit, sources, axis=0), weights)
        total = term if total is None else graph.op("Add", total, term)
    assert total is not None
    return graph.op("Transpose", total, perm=[1, 0])
