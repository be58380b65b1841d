"""Nodes and constants, appended to a graph one after another.

Constants go to the outermost graph, where onnxruntime packs the weights once; subgraphs take them from there.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from meari.runtime.graphs.onnx_format import (
    BOOL,
    FLOAT,
    FLOAT_ATTRIBUTE,
    GRAPH_ATTRIBUTE,
    INT64,
    INT_ATTRIBUTE,
    INTS_ATTRIBUTE,
    new_message,
)

__all__ = ["Drawing"]

Dimensions = Sequence[int | str]
_TYPES = {"float32": FLOAT, "int64": INT64, "bool": BOOL}


class Drawing:
    """A graph under construction: the outermost one, or with `outside` one that stands in a node of it.

    Names of values begin with the name of the graph, so that none hides another.
    """

    def __init__(self, name: str, outside: Drawing | None = None) -> None:
        self.name = name
        self.graph = new_message("Graph")
        self.graph.name = name
        self.outermost: Drawing = outside.outermost if outside else self
        self._known: set[str] = set()
        self._count = 0

    def op(self, op_type: str, *inputs: str, outputs: Sequence[str] = (), **attributes: Any) -> str:
        """Append an operator; returns the name of its first output. Attributes: int, float, list of int, a Drawing."""
        node = self.graph.node.add(op_type=op_type)
        node.input.extend(inputs)
        self._count += 1
        node.output.extend(outputs or [f"{self.name}.{self._count}"])
        for name, value in attributes.items():
            _set_attribute(node.attribute.add(name=name), value)
        return str(node.output[0])

    def constant(self, array: np.ndarray[Any, Any], name: str = "") -> str:
        """A constant of the outermost graph; equal small ones are stored once."""
        name = name or f"{array.dtype}{list(array.shape)}{array.tobytes().hex()}"
        return self.outermost.store(name, array)

    def integers(self, *values: int) -> str:
        """An int64 vector, as axes and shapes are given to operators."""
        return self.constant(np.array(values, np.int64))

    def number(self, value: int) -> str:
        """An int64 scalar."""
        return self.constant(np.array(value, np.int64))

    def input(self, name: str, dtype: str, shape: Dimensions) -> str:
        """Declare an input."""
        _declare(self.graph.input.add(name=name), dtype, shape)
        return name

    def output(self, name: str, dtype: str, shape: Dimensions) -> str:
        """Declare a value as an output."""
        _declare(self.graph.output.add(name=name), dtype, shape)
        return name

    def inside(self, name: str) -> Drawing:
        """A graph for an attribute of a node of this one."""
        return Drawing(f"{self.name}/{name}", self)

    def store(self, name: str, array: np.ndarray[Any, Any]) -> str:
        """Keep a constant in this graph."""
        if name not in self._known:
            self._known.add(name)
            kind = _TYPES[array.dtype.name]
            self.graph.initializer.add(name=name, data_type=kind, dims=array.shape, raw_data=array.tobytes())
        return name


def _set_attribute(attribute: Any, value: Any) -> None:
    if isinstance(value, int):
        attribute.type, attribute.i = INT_ATTRIBUTE, value
    elif isinstance(value, float):
        attribute.type, attribute.f = FLOAT_ATTRIBUTE, value
    elif isinstance(value, Drawing):
        attribute.type = GRAPH_ATTRIBUTE
        attribute.g.CopyFrom(value.graph)
    else:
        attribute.type = INTS_ATTRIBUTE
        attribute.ints.extend(value)


def _declare(info: Any, dtype: str, shape: Dimensions) -> None:
    tensor = info.type.tensor_type
    tensor.elem_type = _TYPES[dtype]
    tensor.shape.SetInParent()
    for size in shape:
        if isinstance(size, int):
            tensor.shape.dim.add(dim_value=size)
        else:
            tensor.shape.dim.add(dim_param=size)
