"""The parts of ONNX' file format that are read and written here, as protobuf messages.

Field numbers are those of the ONNX specification's `onnx.proto`. Whatever is not named here is kept as it is when a
message is read, copied and written. (The `onnx` package would be larger than all of the serving side together.)
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

__all__ = [
    "BOOL",
    "FLOAT",
    "FLOAT_ATTRIBUTE",
    "GRAPH_ATTRIBUTE",
    "INT8",
    "INT64",
    "INTS_ATTRIBUTE",
    "INT_ATTRIBUTE",
    "UINT8",
    "new_message",
    "read_model",
]

FLOAT: Final = 1  # TensorProto.DataType
UINT8: Final = 2
INT8: Final = 3
INT64: Final = 7
BOOL: Final = 9
FLOAT_ATTRIBUTE: Final = 1  # AttributeProto.AttributeType
INT_ATTRIBUTE: Final = 2
GRAPH_ATTRIBUTE: Final = 5
INTS_ATTRIBUTE: Final = 7
EXTERNAL: Final = 1  # TensorProto.DataLocation

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
        "data_location": (14, "int32"),
    },
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
    "Model": {"ir_version": (1, "int64"), "graph": (7, "Graph"), "opset_import": (8, "*Opset")},
}


def read_model(data: bytes) -> Any:
    """Parse an .onnx file. Raises ValueError where it is none."""
    model = new_message("Model")
    try:
        model.ParseFromString(data)
    except Exception as error:
        raise ValueError("not an ONNX file, or a damaged one") from error
    if not model.HasField("graph"):
        raise ValueError("not an ONNX file, or a damaged one: it holds no graph")
    outside = next((t.name for t in _tensors(model.graph) if t.data_location == EXTERNAL), None)
    if outside is not None:
        raise ValueError(f"tensor {outside[:100]!r}: its data are in another file, expected all in this one")
    return model


def _tensors(graph: Any) -> Iterator[Any]:
    """The constants of a graph and of those in its nodes."""
    yield from graph.initializer
    for sparse in graph.sparse_initializer:
        yield from (sparse.values, sparse.indices)
    for attribute in (attribute for node in graph.node for attribute in node.attribute):
        yield from (attribute.t, *attribute.tensors)
        for inner in (attribute.g, *attribute.graphs):
            yield from _tensors(inner)


def new_message(kind: str) -> Any:
    """An empty Model, Graph, Node, Attribute, Tensor or ValueInfo."""
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
    """`described` is a scalar's type or a message's name, with a star where there may be many."""
    kind = described.removeprefix("*")
    field.label = field.LABEL_REPEATED if described.startswith("*") else field.LABEL_OPTIONAL
    if kind in _FIELDS:
        field.type = field.TYPE_MESSAGE
        field.type_name = f".{_PACKAGE}.{kind}"
    else:
        field.type = getattr(field, f"TYPE_{kind.upper()}")


_CLASSES: Final = _classes()
