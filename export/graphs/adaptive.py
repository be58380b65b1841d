"""The output graph of an adaptive softmax: exact log-probabilities of every token, in the order of the vocabulary.

A token of the head has the log-probability that the head gives it; one of a cluster has the cluster's plus its own
within the cluster. All of it sums to one, so logits and log-probabilities are the same.

One product makes the head's logits and what the clusters start from.
"""

import numpy as np
import onnx_ir as ir

from meari.export.arithmetic import Arithmetic, arithmetic_of
from meari.export.graph import GraphBuilder
from meari.export.precision import Precision
from meari.export.weights import AdaptiveWeights, Affine, Floats

Cluster = tuple[Floats, Floats | None]


def adaptive_graph(head: Affine, adaptive: AdaptiveWeights, precision: Precision) -> bytes:
    """Write an adaptive softmax as an .onnx file; see `output`.

    head  to the logits of the frequent tokens, then of the clusters
    """
    graph = GraphBuilder("output")
    arithmetic = arithmetic_of(precision, graph)
    hidden = graph.input("hidden", ir.DataType.FLOAT, [head.weight.shape[0]])
    clusters = [_folded(*cluster) for cluster in adaptive.clusters]
    by_rank = _by_rank(graph, arithmetic, hidden, head, clusters)
    rank = adaptive.rank
    is_in_order = np.array_equal(rank, np.arange(rank.size))
    value = by_rank if is_in_order else graph.op("Gather", by_rank, graph.constant("rank", rank), axis=1)
    for name in ("logits", "logprobs"):
        graph.output(name, value, [rank.size])
    return graph.to_bytes()


def _by_rank(
    graph: GraphBuilder, arithmetic: Arithmetic, hidden: ir.Value, head: Affine, clusters: list[Cluster]
) -> ir.Value:
    """Log-probabilities of the tokens of the head, then of each cluster, float32 [batch, V]."""
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


def _folded(first: Floats, second: Floats) -> Cluster:
    """Both products of a cluster as one, where that is not larger than the two."""
    product = first @ second
    return (product, None) if product.size <= first.size + second.size else (first, second)
