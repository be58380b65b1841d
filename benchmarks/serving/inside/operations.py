"""Operations of a token in a bundle's matrix products. `python -m benchmarks.serving.inside.operations BUNDLE`.

A multiplication and an addition count as two operations. Products with a constant matrix (MatMul, Gemm,
MatMulInteger) are counted; all else is little beside them.
"""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path

import onnx

PRODUCTS = frozenset({"MatMul", "Gemm", "MatMulInteger"})


def operations_per_token(folder: Path) -> int:
    """Count the operations of the cell and the output layer together."""
    return sum(_operations(onnx.load(str(folder / f"{name}.onnx")).graph) for name in ("cell", "output"))


def _operations(graph: onnx.GraphProto) -> int:
    sizes = {tensor.name: math.prod(tensor.dims) for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type == "Constant":
            sizes[node.output[0]] = math.prod(node.attribute[0].t.dims)
    products = (node for node in graph.node if node.op_type in PRODUCTS)
    return sum(2 * max((sizes.get(name, 0) for name in node.input[:2]), default=0) for node in products)


def main() -> None:
    """Argument: the bundle."""
    sys.stdin.readline()
    print(json.dumps({"operations_per_token": operations_per_token(Path(sys.argv[1]))}), flush=True)  # noqa: T201


if __name__ == "__main__":
    main()
