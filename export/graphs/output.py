"""Output graph: hidden vectors in, logits and log-probabilities over the vocabulary out.

Input: weights of an output layer. Output: the bytes of an .onnx file. Must not know: torch, cells.

hidden  float32 [batch, H]        logits, logprobs  float32 [batch, V]; exp(logprobs) sums to 1 in each row

Where n-grams are mixed in, the last tokens follow the hidden vector, and logits and log-probabilities are the same.

Adaptive softmax: a token of the head has the log-probability that the head gives it; one of a cluster has the cluster's
plus its own within the cluster. All of it sums to one, so logits and log-probabilities are the same. One product makes
the head's logits and the narrowed hidden vectors of the clusters.
"""

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from meari.bundle_format.names import Precision
from meari.export.arithmetic import Arithmetic, arithmetic_of
from meari.export.graph import GraphBuilder
from meari.export.graphs.esn import expand
from meari.export.graphs.ngram import mixed
from meari.export.ngram import NgramWeights
from meari.export.weights import AdaptiveWeights, Affine, Floats, OutputWeights

Cluster = tuple[Floats, Floats | None]


def output_graph(weights: OutputWeights, precision: Precision, ngram: NgramWeights | None = None) -> bytes:
    """Write the output layer as an .onnx file.

    ngram  a model to mix in
    """
    if weights.adaptive is not None:
        return adaptive_graph(weights.maps[0], weights.adaptive, precision, ngram)
    maps = weights.maps if weights.gated else _folded(weights.maps)
    graph = GraphBuilder("output")
    arithmetic = arithmetic_of(precision, graph)
    size = maps[0].weight.shape[0]
    if weights.expansion is None:
        value, recent = _hidden(graph, size, ngram)
    else:
        size -= weights.expansion.bias.size
        hidden, recent = _hidden(graph, size, ngram)
        value = expand(graph, weights.expansion, hidden, size)
    vocabulary_size = maps[-1].weight.shape[1]
    for index, affine in enumerate(maps):
        addend: ir.Value | Floats = affine.bias
        if index and weights.gated:
            one, other, addend = graph.split(value, [*[affine.weight.shape[0]] * 2, vocabulary_size])
            value = graph.op("Mul", one, other)
        value = arithmetic.product(f"map{index}", arithmetic.operand(value), affine.weight, addend)
    if ngram is None:
        logprobs = graph.op("LogSoftmax", value, axis=-1)
    else:
        value = logprobs = mixed(graph, ngram, recent, graph.op("Softmax", value, axis=-1))
    graph.output("logits", value, [vocabulary_size])
    graph.output("logprobs", logprobs, [vocabulary_size])
    return graph.to_bytes()


def _hidden(graph: GraphBuilder, size: int, ngram: NgramWeights | None) -> Sequence[ir.Value]:
    """Add the input; return the hidden vector, [batch, size], and the last tokens, which are it too without n-grams."""
    if ngram is None:
        hidden = graph.input("hidden", ir.DataType.FLOAT, [size])
        return hidden, hidden
    return graph.split(graph.input("hidden", ir.DataType.FLOAT, [size + ngram.order - 1]), [size, ngram.order - 1])


def _folded(maps: tuple[Affine, ...]) -> tuple[Affine, ...]:
    """Fold a projection and the map after it into one product, unless that is larger than the two."""
    if len(maps) < 2:
        return maps
    first, second = maps
    if first.weight.shape[0] * second.weight.shape[1] > first.weight.size + second.weight.size:
        return maps
    return (Affine(first.weight @ second.weight, first.bias @ second.weight + second.bias),)


def adaptive_graph(
    head: Affine, adaptive: AdaptiveWeights, precision: Precision, ngram: NgramWeights | None = None
) -> bytes:
    """Write an adaptive softmax as an .onnx file.

    head  to the logits of the frequent tokens, then of the clusters
    """
    graph = GraphBuilder("output")
    arithmetic = arithmetic_of(precision, graph)
    hidden, recent = _hidden(graph, head.weight.shape[0], ngram)
    clusters = [_folded_cluster(*cluster) for cluster in adaptive.clusters]
    by_rank = _by_rank(graph, arithmetic, hidden, head, clusters)
    rank = adaptive.rank
    is_in_order = np.array_equal(rank, np.arange(rank.size))
    value = by_rank if is_in_order else graph.op("Gather", by_rank, graph.constant("rank", rank), axis=1)
    if ngram is not None:
        value = mixed(graph, ngram, recent, graph.op("Exp", value))
    for name in ("logits", "logprobs"):
        graph.output(name, value, [rank.size])
    return graph.to_bytes()


def _by_rank(
    graph: GraphBuilder, arithmetic: Arithmetic, hidden: ir.Value, head: Affine, clusters: list[Cluster]
) -> ir.Value:
    """Return log-probabilities of the tokens of the head, then of each cluster, float32 [batch, V]."""
    weight = np.concatenate([head.weight, *(first for first, _ in clusters)], axis=1)
    bias = np.pad(head.bias, (0, weight.shape[1] - head.bias.size))
    products = arithmetic.product("head", arithmetic.operand(hidden), weight, bias)
    sizes = [head.bias.size, *(first.shape[1] for first, _ in clusters)]
    head_logits, *starts = graph.split(products, sizes)
    num_frequent = head.bias.size - len(clusters)
    of_head = graph.op("LogSoftmax", head_logits, axis=-1)
    frequent, *of_clusters = graph.split(of_head, [num_frequent, *[1] * len(clusters)])
    logprobs = [frequent]
    for index, (_, second) in enumerate(clusters):
        logits = starts[index]
        if second is not None:
            logits = arithmetic.product(f"cluster{index}", arithmetic.operand(logits), second)
        logprobs.append(graph.op("Add", graph.op("LogSoftmax", logits, axis=-1), of_clusters[index]))
    return graph.op("Concat", *logprobs, axis=1)


def _folded_cluster(first: Floats, second: Floats) -> Cluster:
    """Fold both products of a cluster into one, unless that is larger than the two."""
    product = first @ second
    return (product, None) if product.size <= first.size + second.size else (first, second)
