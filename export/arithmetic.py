"""Matrix products of a graph: in float32, or in 8-bit integers with one activation scale a row.

Input: values of the graph and float weights. Output: float32 values. Everything between the products is float32 in
both. Must not know: the families.

In float32 a product is one Gemm, the addend being its third input. The weights are constant matrices, so onnxruntime
packs them once at load and runs one kernel for every batch size: rows have the same bits in every batch.

In 8-bit integers:

    scale   = max |x| of the row / 127
    q       = uint8(round(x / scale) + 128)
    product = (q - 128) @ int8 weight        exact, in int32
    result  = product * scale of the column * scale of the row + addend

The column's scale comes first because onnxruntime has one operator for everything up to it, which a server may use.

onnxruntime's own dynamic quantisation takes one scale for the whole batch; one scale a row keeps a row's result
independent of the other rows. Input and recurrent products have a scale each. Activations are unsigned because signed
ones are 10 to 40 times slower on AVX2.

Weights take 7 bits, -63 … 63: on processors without VNNI two products of uint8 x int8 are added in 16 bits,
and 2 * 255 * 63 = 32,130 still fits. So integer results are the same on every processor.
"""

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from meari.bundle_format.names import Precision
from meari.export.graph import GraphBuilder
from meari.export.weights import Floats

WEIGHT_LIMIT = 63
ACTIVATION_LIMIT = 127
ZERO_POINT = 128  # activations are stored as uint8 round(x / scale) + 128, in 1 … 255
MIN_MAGNITUDE = np.float32(1e-30)  # in place of the magnitude of a row of zeros


@dataclass(frozen=True)
class QuantisedColumns:
    """A weight matrix with a scale a column: weight ≈ values * scales.

    values  int8 [inputs, outputs], each in -63 … 63
    scales  float32 [outputs]
    """

    values: NDArray[np.int8]
    scales: Floats


@dataclass(frozen=True)
class QuantisedRows:
    """Activations with a scale a row: x ≈ (values - 128) * scales.

    values  uint8 [rows, columns], each in 1 … 255
    scales  float32 [rows, 1]
    """

    values: NDArray[np.uint8]
    scales: Floats


def quantise_columns(weight: Floats) -> QuantisedColumns:
    """Give each column the scale at which its largest weight is 63.

    weight   float32 [inputs, outputs]

    Clipping the largest weights for a smaller squared error was tried: at 7 bits it changes the perplexity of trained
    models by less than 0.02 %, for the worse as often as for the better.
    """
    magnitude = np.maximum(np.abs(weight).max(axis=0), MIN_MAGNITUDE)
    scales = magnitude / np.float32(WEIGHT_LIMIT)
    values = np.clip(np.rint(weight / scales), -WEIGHT_LIMIT, WEIGHT_LIMIT).astype(np.int8)
    return QuantisedColumns(values, scales)


def quantise_rows(x: Floats) -> QuantisedRows:
    """Quantise the rows of an embedding in advance, as the graph does with activations.

    x   float32 [rows, columns]
    """
    magnitude = np.maximum(np.abs(x).max(axis=1, keepdims=True), MIN_MAGNITUDE)
    scales = magnitude * np.float32(1 / ACTIVATION_LIMIT)
    return QuantisedRows((np.rint(x / scales) + ZERO_POINT).astype(np.uint8), scales)


@dataclass(frozen=True)
class Operand:
    """Left side of a product, prepared once for all products that use it.

    values  [batch, inputs], float32 or uint8
    scales  float32 [batch, 1], or None where values are float32
    """

    values: ir.Value
    scales: ir.Value | None = None


class Arithmetic(Protocol):
    """Operations of one precision. In each of them rows are independent of one another, bit for bit."""

    def operand(self, x: ir.Value) -> Operand:
        """Prepare float32 [batch, inputs] for products."""

    def embedded(self, name: str, token: ir.Value, embedding: Floats) -> Operand:
        """Look up rows of a float32 [V, E] table for int64 [batch] tokens, prepared for products."""

    def rows(self, name: str, token: ir.Value, embedding: Floats) -> ir.Value:
        """Look up the same rows as float32 [batch, E]."""

    def product(self, name: str, x: Operand, weight: Floats, addend: ir.Value | Floats | None = None) -> ir.Value:
        """Return x @ weight + addend, float32 [batch, outputs].

        name     of the constants that are stored; new in the graph
        weight   float32 [inputs, outputs]
        addend   a float32 [batch, outputs] value, or constants float32 [outputs]; None: nothing
        """


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


class Int8Arithmetic:
    def __init__(self, graph: GraphBuilder) -> None:
        self._graph = graph

    def operand(self, x: ir.Value) -> Operand:
        graph = self._graph
        magnitude = graph.op("ReduceMax", graph.op("Abs", x), graph.integers(1), keepdims=1)
        magnitude = graph.op("Max", magnitude, self._float("smallest_magnitude", MIN_MAGNITUDE))
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


def arithmetic_of(precision: Precision, graph: GraphBuilder) -> Arithmetic:
    """Return the arithmetic of this precision, writing into this graph."""
    return Int8Arithmetic(graph) if precision is Precision.INT8 else Fp32Arithmetic(graph)
