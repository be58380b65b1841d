"""ONNX graphs: the parts of the file format that are used here, as protobuf messages, and a way to draw graphs.

Input: .onnx files. Output: messages, and graphs drawn node by node. Must not know: onnxruntime, bundles.

Field numbers are those of the ONNX specification's `onnx.proto`. Fields that are not named here are kept when a message
is read, copied and written. (The `onnx` package is larger than all of the serving side.)
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final

import numpy as np
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

__all__ = [
    "BOOL",
    "FLOAT",
    "INT8",
    "INT64",
    "RUNTIME_DOMAIN",
    "UINT8",
    "Drawing",
    "new_message",
    "read_model",
]

Dimensions = Sequence[int | str]
FLOAT: Final = 1  # TensorProto.DataType
UINT8: Final = 2
INT8: Final = 3
INT64: Final = 7
BOOL: Final = 9
DTYPES: Final = {"float32": FLOAT, "int64": INT64, "bool": BOOL}
FLOAT_ATTRIBUTE: Final = 1  # AttributeProto.AttributeType
INT_ATTRIBUTE: Final = 2
GRAPH_ATTRIBUTE: Final = 5
INTS_ATTRIBUTE: Final = 7
EXTERNAL: Final = 1  # TensorProto.DataLocation

RUNTIME_DOMAIN: Final = "com.microsoft"  # of onnxruntime's own operators
_PACKAGE: Final = "meari.onnx"
_FIELDS: Final = {
    "Opset": {"domain": (1, "string"), "version": (2, "int64")},
    "Dimension": {"dim_value": (1, "int64"), "dim_param": (2, "string")},
    "Shape": {"dim": (1, "*Dimension")},
    "TensorType": {"elem_type": (1, "int32"), "shape": (2, "Shape")},
    "Type": {"tensor_type": (1, "TensorType")},
    "ValueInfo": {"name": (1, "string"), "type": (2, "Type")},
    "Tensor": {
        "dims": (1, "*int64"),
        "data_type": (2, "int32"),
        "name": (8, "string"),
        "raw_data": (9, "bytes"),
        "external_data": (13, "*Entry"),
        "data_location": (14, "int32"),
    },
    "Entry": {"key": (1, "string"), "value": (2, "string")},
    "SparseTensor": {"values": (1, "Tensor"), "indices": (2, "Tensor")},
    "Attribute": {
        "name": (1, "string"),
        "f": (2, "float"),
        "i": (3, "int64"),
        "t": (5, "Tensor"),
        "g": (6, "Graph"),
        "ints": (8, "*int64"),
        "tensors": (10, "*Tensor"),
        "graphs": (11, "*Graph"),
        "type": (20, "int32"),
        "sparse_tensor": (22, "SparseTensor"),
        "sparse_tensors": (23, "*SparseTensor"),
    },
    "Node": {
        "input": (1, "*string"),
        "output": (2, "*string"),
        "name": (3, "string"),
        "op_type": (4, "string"),
        "attribute": (5, "*Attribute"),
        "domain": (7, "string"),
    },
    "Graph": {
        "node": (1, "*Node"),
        "name": (2, "string"),
        "initializer": (5, "*Tensor"),
        "input": (11, "*ValueInfo"),
        "output": (12, "*ValueInfo"),
        "sparse_initializer": (15, "*SparseTensor"),
    },
    "Function": {"name": (1, "string")},
    "TrainingInfo": {"initialization": (1, "Graph"), "algorithm": (2, "Graph")},
    "Model": {
        "ir_version": (1, "int64"),
        "graph": (7, "Graph"),
        "opset_import": (8, "*Opset"),
        "training_info": (20, "*TrainingInfo"),
        "functions": (25, "*Function"),
    },
}


def read_model(data: bytes) -> Any:
    """Parse an .onnx file. Raises ValueError where the bytes are none."""
    model = new_message("Model")
    try:
        model.ParseFromString(data)
    except Exception as error:
        raise ValueError("not an ONNX file, or a damaged one") from error
    if not model.HasField("graph"):
        raise ValueError("not an ONNX file, or a damaged one: it holds no graph")
    for part, found in (("functions", model.functions), ("training_info", model.training_info)):
        if found:
            raise ValueError(f"{part}: got {len(found)}, expected none: a bundle's graphs hold operators alone")
    for tensor in _tensors(model.graph):
        if tensor.data_location == EXTERNAL or tensor.external_data:
            raise ValueError(f"tensor {tensor.name[:100]!r}: its data are in another file, expected all in this one")
    return model


def _tensors(graph: Any) -> Iterator[Any]:
    """Yield the constants of a graph and of the graphs in its nodes."""
    yield from graph.initializer
    yield from _parts(graph.sparse_initializer)
    for attribute in (attribute for node in graph.node for attribute in node.attribute):
        yield from (attribute.t, *attribute.tensors)
        yield from _parts((attribute.sparse_tensor, *attribute.sparse_tensors))
        for inner in (attribute.g, *attribute.graphs):
            yield from _tensors(inner)


def _parts(tensors: Iterable[Any]) -> Iterator[Any]:
    for sparse in tensors:
        yield from (sparse.values, sparse.indices)


def new_message(kind: str) -> Any:
    """Return an empty Model, Graph, Node, Attribute, Tensor or ValueInfo."""
    return _CLASSES[kind]()


def _classes() -> dict[str, Any]:
    file = descriptor_pb2.FileDescriptorProto(name="meari/onnx.proto", package=_PACKAGE, syntax="proto2")
    for kind, fields in _FIELDS.items():
        message = file.message_type.add(name=kind)
        for name, (number, described) in fields.items():
            _describe(message.field.add(name=name, number=number), described)
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    find = pool.FindMessageTypeByName
    return {kind: message_factory.GetMessageClass(find(f"{_PACKAGE}.{kind}")) for kind in _FIELDS}


def _describe(field: descriptor_pb2.FieldDescriptorProto, described: str) -> None:
    """described: a scalar's type or a message's name, with a star for repeated fields."""
    kind = described.removeprefix("*")
    field.label = field.LABEL_REPEATED if described.startswith("*") else field.LABEL_OPTIONAL
    if kind in _FIELDS:
        field.type = field.TYPE_MESSAGE
        field.type_name = f".{_PACKAGE}.{kind}"
    else:
        field.type = getattr(field, f"TYPE_{kind.upper()}")


_CLASSES: Final = _classes()


class Drawing:
    """A graph under construction: the outermost one, or with `outside` one in a node of it.

    name  begins the names of its values, so that none hides another: the graph's number, since onnxruntime keeps every
          name several times

    Constants go to the outermost graph, where onnxruntime packs weights once; inner graphs take them from there.
    """

    def __init__(self, name: str, outside: Drawing | None = None) -> None:
        self.graph = new_message("Graph")
        self.graph.name = name
        self.outermost: Drawing = outside.outermost if outside else self
        self._known: set[str] = set()
        self._count = 0
        self.numbers: Iterator[int] = outside.numbers if outside else itertools.count(1)
        self.name = f"g{next(self.numbers)}"

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
        """Add a constant to the outermost graph; equal unnamed ones are stored once."""
        name = name or f"{array.dtype}{list(array.shape)}{array.tobytes().hex()}"
        return self.outermost.store(name, array)

    def integers(self, *values: int) -> str:
        """Add an int64 vector, as operators take axes and shapes."""
        return self.constant(np.array(values, np.int64))

    def number(self, value: int) -> str:
        """Add an int64 scalar."""
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
        """Begin a graph for an attribute of a node of this one."""
        return Drawing(name, self)

    def store(self, name: str, array: np.ndarray[Any, Any]) -> str:
        """Store a constant in this graph."""
        if name not in self._known:
            self._known.add(name)
            kind = DTYPES[array.dtype.name]
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
    tensor.elem_type = DTYPES[dtype]
    tensor.shape.SetInParent()
    for size in shape:
        if isinstance(size, int):
            tensor.shape.dim.add(dim_value=size)
        else:
            tensor.shape.dim.add(dim_param=size)
