"""What every arithmetic can do."""

from dataclasses import dataclass
from typing import Protocol

import onnx_ir as ir

from meari.export.weights import Floats


@dataclass(frozen=True)
class Operand:
    """The left side of a product, made ready once for as many products as use it.

    values  [batch, inputs], float32 or uint8
    scales  float32 [batch, 1], or None where values are float32
    """

    values: ir.Value
    scales: ir.Value | None = None


class Arithmetic(Protocol):
    """Rows are independent of one another, bit for bit, in every operation."""

    def operand(self, x: ir.Value) -> Operand:
        """Make float32 [batch, inputs] ready to be multiplied."""

    def embedded(self, name: str, token: ir.Value, embedding: Floats) -> Operand:
        """The rows of a float32 [V, E] table for int64 [batch] tokens, ready to be multiplied."""

    def rows(self, name: str, token: ir.Value, embedding: Floats) -> ir.Value:
        """The same rows as float32 [batch, E]."""

    def product(self, name: str, x: Operand, weight: Floats, addend: ir.Value | Floats | None = None) -> ir.Value:
        """x @ weight + addend, float32 [batch, outputs].

        name     of the constants that are stored; new in the graph
        weight   float32 [inputs, outputs]
        addend   a float32 [batch, outputs] value, or constants float32 [outputs]; None: nothing
        """
