"""Products in 8-bit integers with one activation scale a row.

    scale   = max |x| of the row / 127
    q       = uint8(round(x / scale) + 128)
    product = (q - 128) @ int8 weight        exact, in int32
    result  = product * scale of the column * scale of the row + addend

The column comes before the row because onnxruntime has an operator for all up to there, which a server may use.

A scale a row, where onnxruntime's own dynamic quantisation takes one for the whole batch, is what keeps a
row's result independent of its neighbours. Input and recurrent products have a scale each. Unsigned
activations because signed ones are 10 to 40 times slower on AVX2; weights of 7 bits as `quantisation` says.
"""

import numpy as np
import onnx_ir as ir

from meari.export.arithmetic.arithmetic import Operand
from meari.export.graph import GraphBuilder
from meari.export.quantisation import (
    ACTIVATION_LIMIT,
    SMALLEST_MAGNITUDE,
    ZERO_POINT,
    quantise_columns,
    quantise_rows,
)
from meari.export.weights import Floats


class Int8Arithmetic:
    def __init__(self, graph: GraphBuilder) -> None:
        self._graph = graph

    def operand(self, x: ir.Value) -> Operand:
        graph = self._graph
        magnitude = graph.op("ReduceMax", graph.op("Abs", x), graph.integers(1), keepdims=1)
        magnitude = graph.op("Max", magnitude, self._float("smallest_magnitude", SMALLEST_MAGNITUDE))
        scales = graph.op("Mul", magnitude, self._float("inverse_limit", 1 / ACTIVATION_LIMIT))
        ratio = graph.op("Div", x, scales)
        values = graph.op("QuantizeLinear", ratio, self._float("one", 1.0), self._zero_point())
        return Operand(values, scales)

    def embedded(self, name: str, token: ir.Value, embedding: Floats) -> Operand:
        graph = self._graph
        rows = quantise_rows(embedding)
        values = graph.op("Gather", graph.constant(f"{name}.values", rows.values), token, axis=0)
        scales = graph.op("Gather", graph.constant(f"{name}.scales", rows.scales), token, axis=0)
        return Operand(values, scales)

    def rows(self, name: str, token: ir.Value, embedding: Floats) -> ir.Value:
        graph, rows = self._graph, self.embedded(name, token, embedding)
        assert rows.scales is not None
        values = graph.op("Cast", rows.values, to=ir.DataType.FLOAT.value)
        return graph.op("Mul", graph.op("Sub", values, self._float("float_zero_point", ZERO_POINT)), rows.scales)

    def product(self, name: str, x: Operand, weight: Floats, addend: ir.Value | Floats | None = None) -> ir.Value:
        assert x.scales is not None
        graph = self._graph
        columns = quantise_columns(weight)
        values = graph.constant(f"{name}.weight", columns.values)
        exact = graph.op("MatMulInteger", x.values, values, self._zero_point())
        result = graph.op("Cast", exact, to=ir.DataType.FLOAT.value)
        result = graph.op("Mul", result, graph.constant(f"{name}.scales", columns.scales))
        result = graph.op("Mul", result, x.scales)
        if addend is None:
            return result
        if not isinstance(addend, ir.Value):
            addend = graph.constant(f"{name}.bias", addend)
        return graph.op("Add", result, addend)

    def _zero_point(self) -> ir.Value:
        return self._graph.shared_constant("zero_point", np.array(ZERO_POINT, dtype=np.uint8))

    def _float(self, name: str, value: float | np.float32) -> ir.Value:
        return self._graph.shared_constant(name, np.array(value, dtype=np.float32))
