"""How matrix products are written into a graph: in float32, or in 8-bit integers.

In: values of the graph and float weights. Out: float32 values. Everything between the products is float32 and
the same in both. Knows nothing of the families.
"""

from meari.export.arithmetic.arithmetic import Arithmetic, Operand
from meari.export.arithmetic.fp32 import Fp32Arithmetic
from meari.export.arithmetic.int8 import Int8Arithmetic
from meari.export.graph import GraphBuilder
from meari.export.precision import Precision

__all__ = ["Arithmetic", "Operand", "arithmetic_of"]


def arithmetic_of(precision: Precision, graph: GraphBuilder) -> Arithmetic:
    """The arithmetic of this precision, writing into this graph."""
    return Int8Arithmetic(graph) if precision is Precision.INT8 else Fp32Arithmetic(graph)
