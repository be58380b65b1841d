"""One step of a reservoir: s' = s + leak * (tanh(W s + input[token] + bias) - s), W kept sparse.

Always float32, also in an int8 bundle, where the readout alone is quantised: the readout was fitted to the states that
float32 gives, errors of rounding feed back into later states, and no training adapts the reservoir to them. At 4,096
units the blocks are 1 MB and their product half of a step.
"""

import numpy as np
import onnx_ir as ir

from export.graph import GraphBuilder
from export.weights import BlockPattern, RandomPattern, ReservoirWeights


def esn_step(graph: GraphBuilder, weights: ReservoirWeights, token: ir.Value, s: ir.Value) -> ir.Value:
    """Write one step.

    token    int64 [batch]
    s        float32 [batch, N]
    returns  the next state, float32 [batch, N]
    """
    table = graph.constant("input.table", weights.input + weights.bias)
    from_input = graph.op("Gather", table, token, axis=0)
    if isinstance(weights.pattern, BlockPattern):
        from_state = _block_product(graph, weights.pattern, s)
    else:
        from_state = _edge_product(graph, weights.pattern, s)
    target = graph.op("Tanh", graph.op("Add", from_state, from_input))
    change = graph.op("Mul", graph.op("Sub", target, s), graph.constant("leak", weights.leak))
    return graph.op("Add", s, change)


def _block_product(graph: GraphBuilder, pattern: BlockPattern, s: ir.Value) -> ir.Value:
    """Each block of units times its own matrix, units dealt to the blocks like cards.

    A row of zeros is carried along: onnxruntime takes another kernel for a batched product of one row, whose
    rounding differs, so a lone row would not equal the same row in company.
    """
    num_blocks, block_size, _ = pattern.blocks.shape
    units = num_blocks * block_size
    zero_row = graph.constant("zero_row", np.zeros((1, units), dtype=np.float32))
    x = graph.op("Concat", s, zero_row, axis=0)
    x = graph.op("Reshape", x, graph.integers(-1, block_size, num_blocks))  # [batch + 1, K, S]
    x = graph.op("Transpose", x, perm=[2, 0, 1])  # [S, batch + 1, K]
    x = graph.op("MatMul", x, graph.constant("blocks", pattern.blocks))
    x = graph.op("Transpose", x, perm=[1, 0, 2])  # [batch + 1, S, K]
    x = graph.op("Reshape", x, graph.integers(-1, units))
    return graph.op("Slice", x, graph.integers(0), graph.integers(-1), graph.integers(0))


def _edge_product(graph: GraphBuilder, pattern: RandomPattern, s: ir.Value) -> ir.Value:
    """The sum over a unit's incoming edges, one edge of all units at a time.

    Units come first, [N, batch], so that fetching a source copies a whole row of the batch. Elementwise sums
    in a fixed order keep rows exact; a reduction would pick its order by the batch size.
    """
    by_unit = graph.op("Transpose", s, perm=[1, 0])
    total: ir.Value | None = None
    for edge in range(pattern.sources.shape[1]):
        sources = graph.constant(f"edge{edge}.sources", pattern.sources[:, edge])
        weights = graph.constant(f"edge{edge}.weights", pattern.weights[:, edge : edge + 1])
        term = graph.op("Mul", graph.op("Gather", by_unit, sources, axis=0), weights)
        total = term if total is None else graph.op("Add", total, term)
    assert total is not None
    return graph.op("Transpose", total, perm=[1, 0])
