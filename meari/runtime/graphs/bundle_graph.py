"""A bundle's graphs, and how their nodes get into another graph.

Input: the bytes of cell.onnx and output.onnx. Output: `BundleGraph`, `Parts`, copies of nodes. Must not know: the
manifest, onnxruntime.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final

from meari.runtime.graphs.onnx_graph import FLOAT, INT8, RUNTIME_DOMAIN, UINT8, Drawing, new_message, read_model

__all__ = ["BundleGraph", "Parts", "copy_node", "copy_nodes", "finished"]

MIN_OPSET: Final = 18
WEIGHT_TYPES: Final = (FLOAT, UINT8, INT8)
NGRAMS: Final = "ngram"  # names of the constants of an n-gram model begin with it
NO_NAMES: Final[Mapping[str, str]] = MappingProxyType({})


class BundleGraph:
    """One of a bundle's graphs. Raises ValueError where the bytes are no ONNX file.

    inputs, outputs  name -> dimensions, a free one by its name
    dtypes           name of one of those -> TensorProto.DataType of its numbers
    """

    def __init__(self, data: bytes) -> None:
        self.model = read_model(data)
        constants = {tensor.name for tensor in self.model.graph.initializer}
        self.inputs = {info.name: _dimensions(info) for info in self.model.graph.input if info.name not in constants}
        self.outputs = {info.name: _dimensions(info) for info in self.model.graph.output}
        values = (*self.model.graph.input, *self.model.graph.output)
        self.dtypes = {info.name: info.type.tensor_type.elem_type for info in values}

    @property
    def num_weights(self) -> int:
        """Number of values in its constants, without tables of n-grams and other integers."""
        weights = (t for t in self.model.graph.initializer if not t.name.startswith(NGRAMS))
        return sum(math.prod(tensor.dims) for tensor in weights if tensor.data_type in WEIGHT_TYPES)

    def table_widths(self, index: str) -> set[int]:
        """Return the widths of the constant tables in which an input looks up rows, scales left out."""
        dims = {tensor.name: tuple(tensor.dims) for tensor in self.model.graph.initializer}
        tables = [node.input[0] for node in self.model.graph.node if node.op_type == "Gather" and index in node.input]
        return {dims[name][1] for name in tables if len(dims.get(name, ())) == 2 and dims[name][1] > 1}

    def operators(self) -> dict[str, int]:
        """Count the nodes of each operator, the most frequent first."""
        counts = Counter(node.op_type for node in self.model.graph.node)
        return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def _dimensions(info: Any) -> list[int | str]:
    dims = info.type.tensor_type.shape.dim
    return [dim.dim_value if dim.HasField("dim_value") else dim.dim_param for dim in dims]


@dataclass(frozen=True)
class Parts:
    """The parts of a bundle that compute.

    cell              `cell.onnx`
    output            `output.onnx`
    state             state tensor -> its shape without the batch dimension
    vocabulary_size   V
    """

    cell: BundleGraph
    output: BundleGraph
    state: Mapping[str, tuple[int, ...]]
    vocabulary_size: int

    @property
    def hidden_size(self) -> int:
        """Size of the hidden vector, H."""
        return int(self.output.inputs["hidden"][1])


def finished(drawing: Drawing, parts: Parts) -> bytes:
    """Return the .onnx file of a graph that uses the bundle's constants as `cell.NAME` and `output.NAME`.

    Raises ValueError where the operator sets of the bundle's graphs differ or are too old.
    """
    sources = {"cell.": parts.cell.model, "output.": parts.output.model}
    model = new_message("Model")
    model.ir_version = parts.cell.model.ir_version
    model.opset_import.add(domain="", version=_opset(*sources.values()))
    model.opset_import.add(domain=RUNTIME_DOMAIN, version=1)
    model.graph.CopyFrom(drawing.graph)
    for prefix, source in sources.items():
        for tensor in source.graph.initializer:
            kept = model.graph.initializer.add()
            kept.CopyFrom(tensor)
            kept.name = prefix + tensor.name
    data: bytes = model.SerializeToString()
    return data


def _opset(*models: Any) -> int:
    versions = {entry.version for model in models for entry in model.opset_import if not entry.domain}
    if len(versions) != 1 or min(versions) < MIN_OPSET:
        raise ValueError(f"operator sets: got {sorted(versions)}, expected one of at least {MIN_OPSET}")
    version: int = versions.pop()
    return version


def copy_nodes(source: Any, target: Any, prefix: str, names: Mapping[str, str]) -> None:
    """Append the nodes of a graph, every value under its name in `names`, else under its own with a prefix."""
    for node in source.node:
        copy_node(node, target, prefix, names)


def copy_node(node: Any, target: Any, prefix: str, names: Mapping[str, str] = NO_NAMES) -> None:
    """Append one node, likewise."""

    def renamed(name: str) -> str:
        return names.get(name, prefix + name) if name else ""

    copy = target.node.add()
    copy.CopyFrom(node)
    copy.name = prefix + node.name if node.name else ""
    _rename_node(copy, renamed)


def _rename_node(node: Any, renamed: Callable[[str], str]) -> None:
    node.input[:] = [renamed(name) for name in node.input]
    node.output[:] = [renamed(name) for name in node.output]
    for attribute in node.attribute:
        if attribute.HasField("g"):
            for inner in attribute.g.node:
                _rename_node(inner, renamed)
            for named in (*attribute.g.initializer, *attribute.g.input, *attribute.g.output):
                named.name = renamed(named.name)
