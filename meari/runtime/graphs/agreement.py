"""Comparison of `manifest.json` with `cell.onnx` and `output.onnx`, field by field.

Enters: the manifest and the graphs as they were read. Leaves: nothing, or a BundleError. Whether the graphs compute
what they should is another question, which golden figures answer.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from meari.bundle_format.manifest import Manifest, contradiction
from meari.bundle_format.names import RESERVOIR_STATE, STATE_NAMES
from meari.errors import BundleError
from meari.runtime.graphs.bundle_graph import BundleGraph
from meari.runtime.graphs.onnx_format import FLOAT, INT64

__all__ = ["check_graphs"]

TOKEN: Final = "token"
GATES: Final = range(1, 5)  # of a layer, side by side in a table of finished products
INTEGER_OPERATORS: Final = ("MatMulInteger", "QuantizeLinear")
FEWEST: Final = 16  # numbers of a graph that are no weights: limits, ones, zeros


def check_graphs(manifest: Manifest, cell: BundleGraph, output: BundleGraph) -> None:
    """Compare names, shapes, types, sizes, family, precision and operators. Raises BundleError."""
    _check_state(manifest, cell)
    _check_values(manifest, cell, output)
    _check_precision(manifest, cell, output)
    _check_family(manifest, cell)
    _check_embedding(manifest, cell)
    _check_parameters(manifest, cell, output)
    _check_listed(manifest, {"cell": cell, "output": output})


def _check_state(manifest: Manifest, cell: BundleGraph) -> None:
    """`state` has the tensors of the cell's inputs."""
    found = {name: dimensions[1:] for name, dimensions in cell.inputs.items() if name != TOKEN}
    names = [entry.name for entry in manifest.state]
    if set(names) != set(found):
        raise contradiction("state", names, f"{', '.join(found) or 'none'}, the inputs of cell.onnx beside {TOKEN}")
    for entry in manifest.state:
        if list(entry.shape) != found[entry.name]:
            raise contradiction(f"state, {entry.name}: shape", entry.shape, f"{found[entry.name]}, as in cell.onnx")


def _check_values(manifest: Manifest, cell: BundleGraph, output: BundleGraph) -> None:
    """Names, trailing dimensions and types of what enters and leaves; None is one dimension of any size."""
    vocabulary, hidden = [manifest.sizes["vocabulary"]], [manifest.sizes["hidden"]]
    states = {entry.name: list(entry.shape) for entry in manifest.state}
    following = {f"next_{name}": shape for name, shape in states.items()}
    _check_shapes("cell.onnx: input", cell, cell.inputs, {TOKEN: [], **states})
    _check_shapes("cell.onnx: output", cell, cell.outputs, {"hidden": hidden, **following})
    _check_shapes("output.onnx: input", output, output.inputs, {"hidden": hidden})
    _check_shapes("output.onnx: output", output, output.outputs, {"logits": vocabulary, "logprobs": vocabulary})


def _check_shapes(
    where: str, graph: BundleGraph, found: Mapping[str, list[int | str]], expected: Mapping[str, list[int]]
) -> None:
    if set(found) != set(expected):
        raise BundleError(f"{where}s: got {sorted(found)}, expected {sorted(expected)}")
    for name, shape in expected.items():
        batch, *rest = found[name] or [0]
        if isinstance(batch, int) or rest != shape:
            size = {"hidden": "sizes.hidden", "logits": "sizes.vocabulary", "logprobs": "sizes.vocabulary"}.get(name)
            said = f" (manifest.json: {size})" if size else ""
            raise BundleError(f"{where} {name!r}: got shape {found[name]}, expected a free batch, then {shape}{said}")
        dtype = "int64" if name == TOKEN else "float32"
        if graph.dtypes[name] != {"int64": INT64, "float32": FLOAT}[dtype]:
            raise BundleError(f"{where} {name!r}: got ONNX type {graph.dtypes[name]}, expected {dtype}")


def _check_precision(manifest: Manifest, *graphs: BundleGraph) -> None:
    integers = {name for graph in graphs for name in graph.operators() if name in INTEGER_OPERATORS}
    if (manifest.precision == "int8") != bool(integers):
        found = f"the graphs have {', '.join(sorted(integers))}" if integers else "no graph has integer products"
        raise contradiction("precision", manifest.precision, f"{'int8' if integers else 'fp32'}: {found}")


def _check_family(manifest: Manifest, cell: BundleGraph) -> None:
    """As far as it shows: how many states there are a layer, and whether there are gates."""
    family, layers, states = manifest.family, manifest.sizes["layers"], len(manifest.state)
    expected = len(STATE_NAMES.get(family, (RESERVOIR_STATE,))) * layers
    if states != expected and (family != "esn" or states < expected):
        said = f"those that go with the state tensors of cell.onnx, which are {states}"
        raise contradiction("family, sizes.layers", [family, layers], said)
    has_gates = "Sigmoid" in cell.operators()
    if has_gates != (family in ("gru", "lstm")):
        said = f"a family {'with' if has_gates else 'without'} gates: cell.onnx has {'' if has_gates else 'no '}Sigmoid"
        raise contradiction("family", family, said)


def _check_embedding(manifest: Manifest, cell: BundleGraph) -> None:
    """The cell looks tokens up in an embedding, or in a table of its products with the first layer's weights."""
    size = manifest.sizes.get("embedding")
    widths = cell.table_widths(TOKEN)
    products = {gates * entry.shape[-1] for entry in manifest.state for gates in GATES if entry.shape}
    if size is not None and widths and not widths & {size, *products}:
        raise contradiction("sizes.embedding", size, f"{max(widths)}, as in cell.onnx")


def _check_parameters(manifest: Manifest, cell: BundleGraph, output: BundleGraph) -> None:
    """Within what an export may make of them.

    Weights that are used twice stand there twice, integers have scales, and embedding and input weights may have become
    a table of their products.
    """
    sizes = manifest.sizes
    found = cell.num_weights + output.num_weights
    folded = sizes.get("embedding", 0) * (sizes["vocabulary"] + sum(cell.table_widths(TOKEN)))
    if not found // 3 - FEWEST <= sizes["parameters"] <= (found + folded) * 3 // 2:
        raise contradiction("sizes.parameters", sizes["parameters"], f"about {found}, the weights in the graphs")


def _check_listed(manifest: Manifest, graphs: Mapping[str, BundleGraph]) -> None:
    """`graphs` describes the files, as far as it says something."""
    if set(manifest.graphs) != set(graphs):
        raise contradiction("graphs", list(manifest.graphs), "cell and output")
    for name, graph in graphs.items():
        found: dict[str, Any] = {
            "file": f"{name}.onnx",
            "bytes": manifest.files[f"{name}.onnx"].bytes,
            "operators": graph.operators(),
        }
        for key, said in manifest.graphs[name].items():
            if key in found and said != found[key]:
                raise contradiction(f"graphs.{name}.{key}", said, f"{found[key]}, as in {name}.onnx")
