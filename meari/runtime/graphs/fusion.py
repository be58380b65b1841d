"""A bundle's graph → the same graph with fewer passes over its products in 8-bit integers.

    MatMulInteger → Cast → Mul by a scale a column
    ─────────────────────────────────────────
    MatMulIntegerToFloat

onnxruntime has this operator, which does all three while a tile of the product is in the cache. It also lays out all
scales anew at every call, which costs 2.5 ns a column: less than the passes do from some twenty rows on, more below. A
bundle keeps to the operators of the ONNX standard, which every runtime has. The bits are the same.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from typing import Any, Final

import numpy as np

from meari.runtime.graphs.onnx_format import FLOAT

__all__ = ["RUNTIME_DOMAIN", "fuse_products", "vectors_of"]

RUNTIME_DOMAIN: Final = "com.microsoft"
ONE: Final = "fused.one"


def vectors_of(graph: Any) -> set[str]:
    """The constants of one dimension of a graph."""
    return {tensor.name for tensor in graph.initializer if len(tensor.dims) == 1}


def fuse_products(graph: Any, vectors: Collection[str]) -> None:
    """Replace every such chain of a graph, an ONNX message, whose links nobody else uses.

    vectors  constants of one dimension, from wherever: one of them are the scales
    """
    users = {name: node for node in graph.node for name in node.input}
    uses = Counter(name for node in graph.node for name in node.input)
    uses.update(info.name for info in graph.output)
    replaced = set()
    for product in graph.node:
        if product.op_type != "MatMulInteger" or uses[product.output[0]] != 1:
            continue
        cast = users[product.output[0]]
        scaled = users.get(cast.output[0])
        if cast.op_type != "Cast" or uses[cast.output[0]] != 1 or scaled is None or scaled.op_type != "Mul":
            continue
        scales = next((name for name in scaled.input if name in vectors), None)
        if scales is not None:
            replaced |= {cast.output[0], scaled.output[0]}
            values, weight, *zero_points = product.input
            product.input[:] = [values, weight, ONE, scales, *zero_points]
            product.output[:] = scaled.output
            product.op_type, product.domain = "MatMulIntegerToFloat", RUNTIME_DOMAIN
    if replaced:
        kept = [n for n in graph.node if n.op_type not in ("Cast", "Mul") or n.output[0] not in replaced]
        del graph.node[:]
        graph.node.extend(kept)
        graph.initializer.add(name=ONE, data_type=FLOAT, raw_data=np.float32(1).tobytes())
