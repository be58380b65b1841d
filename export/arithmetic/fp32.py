"""Products in float32: one Gemm each, the addend being its third input.

The weights are constant matrices, so onnxruntime packs them once at load, and then runs one kernel for every
batch size: rows come out the same bit for bit.
"""

import onnx_ir as ir

from meari.export.arithmetic.arithmetic import Operand
from meari.export.graph import GraphBuilder
from meari.export.weights import Floats


class Fp32Arithmetic:
    def __init__(self, graph: GraphBuilder) -> None:
        self._graph = graph

    def operand(self, x: ir.Value) -> Operand:
        return Operand(x)

    def embedded(self, name: str, token: ir.Value, embedding: Floats) -> Operand:
        return Operand(self.rows(name, token, embedding))

    def rows(self, name: str, token: ir.Value, embedding: Floats) -> ir.Value:
        return self._graph.op("Gather", self._graph.constant(name, embedding), token, axis=0)

    def product(self, name: str, x: Operand, weight: Floats, addend: ir.Value | Floats | None = None) -> ir.Value:
        matrix = self._graph.constant(f"{name}.weight", weight)
        if addend is None:
            return self._graph.op("Gemm", x.values, matrix)
        if not isinstance(addend, ir.Value):
            addend = self._graph.constant(f"{name}.bias", addend)
        return self._graph.op("Gemm", x.values, matrix, addend)
