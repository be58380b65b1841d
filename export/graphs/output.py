"""The output graph: hidden vectors in, logits and log-probabilities over the vocabulary out.

hidden  float32 [batch, H]        logits, logprobs  float32 [batch, V]; exp(logprobs) sums to 1 in each row
"""

import onnx_ir as ir

from meari.export.arithmetic import arithmetic_of
from meari.export.graph import GraphBuilder
from meari.export.graphs.adaptive import adaptive_graph
from meari.export.graphs.esn import expand
from meari.export.precision import Precision
from meari.export.weights import Affine, OutputWeights


def output_graph(weights: OutputWeights, precision: Precision) -> bytes:
    """Write the output layer as an .onnx file."""
    if weights.adaptive is not None:
        return adaptive_graph(weights.maps[0], weights.adaptive, precision)
    maps = _folded(weights.maps)
    graph = GraphBuilder("output")
    arithmetic = arithmetic_of(precision, graph)
    if weights.expansion is None:
        value = graph.input("hidden", ir.DataType.FLOAT, [maps[0].weight.shape[0]])
    else:
        size = maps[0].weight.shape[0] - weights.expansion.bias.size
        value = expand(graph, weights.expansion, graph.input("hidden", ir.DataType.FLOAT, [size]))
    for index, affine in enumerate(maps):
        value = arithmetic.product(f"map{index}", arithmetic.operand(value), affine.weight, affine.bias)
    vocabulary_size = maps[-1].weight.shape[1]
    graph.output("logits", value, [vocabulary_size])
    graph.output("logprobs", graph.op("LogSoftmax", value, axis=-1), [vocabulary_size])
    return graph.to_bytes()


def _folded(maps: tuple[Affine, ...]) -> tuple[Affine, ...]:
    """A projection and what follows it as one product, where that is not larger than the two."""
    if len(maps) < 2:
        return maps
    first, second = maps
    if first.weight.shape[0] * second.weight.shape[1] > first.weight.size + second.weight.size:
        return maps
    return (Affine(first.weight @ second.weight, first.bias @ second.weight + second.bias),)
