"""What enters a layer from below: tokens into the first, hidden vectors into the others.

A layer asks for `input @ weight + bias` and need not know which of the two it gets.
"""

from typing import Protocol

import numpy as np
import onnx_ir as ir

from meari.export.arithmetic import Arithmetic, Operand
from meari.export.graph import GraphBuilder
from meari.export.weights import Floats


class LayerInput(Protocol):
    def product(self, name: str, weight: Floats, bias: Floats) -> ir.Value:
        """Input @ weight + bias, float32 [batch, outputs]; weight float32 [inputs, outputs], bias
        [outputs].
        """

    def vectors(self) -> ir.Value:
        """The input itself, float32 [batch, inputs]; asked for once, and then no products are."""


class TokenInput:
    """Tokens: looked up in an embedding and multiplied, or in a table of finished products where that is
    smaller.
    """

    def __init__(self, graph: GraphBuilder, arithmetic: Arithmetic, token: ir.Value, embedding: Floats) -> None:
        self._graph = graph
        self._arithmetic = arithmetic
        self._token = token
        self._embedding = embedding
        self._operand: Operand | None = None

    def product(self, name: str, weight: Floats, bias: Floats) -> ir.Value:
        table_size = self._embedding.shape[0] * weight.shape[1]
        if table_size <= self._embedding.size + weight.size:
            table = self._embedding.astype(np.float64) @ weight + bias
            constant = self._graph.constant(f"{name}.table", table.astype(np.float32))
            return self._graph.op("Gather", constant, self._token, axis=0)
        if self._operand is None:
            self._operand = self._arithmetic.embedded("embedding", self._token, self._embedding)
        return self._arithmetic.product(name, self._operand, weight, bias)

    def vectors(self) -> ir.Value:
        return self._arithmetic.rows("embedding", self._token, self._embedding)


class HiddenInput:
    """The float32 [batch, hidden] output of the layer below."""

    def __init__(self, arithmetic: Arithmetic, hidden: ir.Value) -> None:
        self._arithmetic = arithmetic
        self._hidden = hidden
        self._operand: Operand | None = None

    def product(self, name: str, weight: Floats, bias: Floats) -> ir.Value:
        if self._operand is None:
            self._operand = self._arithmetic.operand(self._hidden)
        return self._arithmetic.product(name, self._operand, weight, bias)

    def vectors(self) -> ir.Value:
        return self._hidden
