"""Builder of one ONNX graph, node by node.

Input: named inputs, constant arrays and operators in the order in which they run. Output: the bytes of an .onnx file.
Must not know: language models.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from meari.export.errors import InvalidGraph

OPSET = 21
IR_VERSION = 10
BATCH = "batch"  # the name of the free first dimension of every input and output


class GraphBuilder:
    """A graph under construction. Every input and output has a free first dimension, the batch."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._tape = ir.tape.Tape()
        self._inputs: list[ir.Value] = []
        self._outputs: list[ir.Value] = []
        self._constants: dict[str, ir.Value] = {}

    def input(self, name: str, dtype: ir.DataType, shape: Sequence[int] = ()) -> ir.Value:
        """Add an input of shape [batch, *shape]."""
        value = ir.Value(name=name, shape=ir.Shape((BATCH, *shape)), type=ir.TensorType(dtype))
        self._inputs.append(value)
        return value

    def constant(self, name: str, array: np.ndarray[Any, Any]) -> ir.Value:
        """Add a constant that is stored in the file. Its name must be new. Raises InvalidGraph for numbers beyond
        float32.
        """
        assert name not in self._constants, name
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise InvalidGraph(f"{name}: has numbers that float32 cannot hold")
        value = self._tape.initializer(ir.tensor(np.asarray(array, order="C"), name=name))
        self._constants[name] = value
        return value

    def shared_constant(self, name: str, array: np.ndarray[Any, Any]) -> ir.Value:
        """Return a small constant that many nodes use: the same name always stands for the same array."""
        return self._constants.get(name) or self.constant(name, array)

    def integers(self, *values: int) -> ir.Value:
        """Return an int64 vector, the form in which operators take axes and shapes."""
        name = "int64_" + "_".join(str(value).replace("-", "minus") for value in values)
        return self.shared_constant(name, np.array(values, dtype=np.int64))

    def op(self, op_type: str, *inputs: ir.Value, **attributes: float | str | Sequence[int] | ir.Graph) -> ir.Value:
        """Append an operator of one output."""
        return self._tape.op(op_type, inputs, attributes=attributes)

    def split(self, value: ir.Value, sizes: Sequence[int], axis: int = -1) -> Sequence[ir.Value]:
        """Cut an axis into pieces of these sizes."""
        return self._tape.op_multi_out(
            "Split", [value, self.integers(*sizes)], attributes={"axis": axis}, num_outputs=len(sizes)
        )

    def output(self, name: str, value: ir.Value, shape: Sequence[int]) -> None:
        """Make a value a float32 output of shape [batch, *shape]; a value that is an output already is copied."""
        if value.name is not None:
            value = self.op("Identity", value)
        value.name = name
        value.type = ir.TensorType(ir.DataType.FLOAT)
        value.shape = ir.Shape((BATCH, *shape))
        self._outputs.append(value)

    def to_bytes(self) -> bytes:
        """Return the finished graph as an .onnx file."""
        graph = ir.Graph(
            self._inputs,
            self._outputs,
            nodes=self._tape.nodes,
            initializers=self._tape.initializers,
            opset_imports={"": OPSET},
            name=self._name,
        )
        model = ir.Model(graph, ir_version=IR_VERSION, producer_name="meari")
        return bytes(ir.serde.serialize_model(model).SerializeToString(deterministic=True))
