"""One step of a cell → many steps over given tokens, layer by layer.

Input: a cell's graph, an ONNX message. Output: nodes in another graph. Must not know: onnxruntime, sequences.

    token [batch], state → hidden, next state         the cell, a step
    ─────────────────────────────────────────
    tokens [steps, batch], state → hidden and state after every step

A *layer* is a set of state tensors that come to depend on one another from step to step. Its inputs from the token and
from the layers below do not depend on its own state, so they are computed for all steps at once, as steps * batch rows;
the rest of the layer is the body of a `Scan`. A prompt that is read alone thus multiplies matrices by matrices where
single steps would fetch the weights for every token. (Appleyard et al. 2016, arXiv 1604.01946, do so for LSTMs on
GPUs.) Rows do not influence one another (that is checked when a bundle is opened), so the bits are those of single
steps.

Products in 8-bit integers are *fused*:

    MatMulInteger → Cast → Mul by a scale a column
    ─────────────────────────────────────────
    MatMulIntegerToFloat

This operator of onnxruntime does all three while a tile of the product is in the cache. It also copies all scales at
every call, which costs 2.5 ns a column: less than the passes do from about twenty rows on, more below. A bundle keeps
to the operators of the ONNX standard, which every runtime has. The bits are the same.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from meari.runtime.graphs.bundle_graph import copy_node
from meari.runtime.graphs.onnx_graph import FLOAT, RUNTIME_DOMAIN, Drawing

__all__ = ["draw_layers", "find_gates", "fuse_products", "vectors_of"]

ONE: Final = "fused.one"
SEES_THE_BATCH: Final = {"Shape", "Size"}  # operators whose result depends on the number of rows
SPLIT_INTO: Final = {2: ("r", "z", "n"), 4: ("i", "f", "g", "o")}  # of a GRU, whose n stands apart, and of an LSTM
TOKEN: Final = "token"  # noqa: S105 (an input's name)


def draw_layers(main: Drawing, cell: Any, state: Mapping[str, tuple[int, ...]]) -> None:
    """Draw `hidden` and `next.NAME`, float32 [steps, batch, …], from `tokens`, int64 [steps, batch], and `state.NAME`.

    cell   the graph of a step, an ONNX message; its constants are known as cell.NAME
    state  state tensor -> its shape without the batch dimension
    """
    steps = _Steps(main, cell, state)
    for layer in find_layers(cell, state):
        steps.draw_layer(layer)
    steps.draw_results()
    fuse_products(main.graph, {f"cell.{name}" for name in vectors_of(cell)})


@dataclass(frozen=True)
class Layer:
    """State tensors, and the nodes that have to run step by step; the others do not depend on these tensors."""

    state: tuple[str, ...]
    nodes: tuple[Any, ...]


def find_layers(cell: Any, state: Iterable[str]) -> list[Layer]:
    """Return the layers of a cell, the lowest first; the whole cell as one where its operators do not allow more."""
    names = sorted(state)
    if any(n.op_type in SEES_THE_BATCH or any(a.HasField("g") for a in n.attribute) for n in cell.node):
        return [Layer(tuple(names), tuple(cell.node))]
    sources = _sources(cell, names)
    reached = {name: sources[f"next_{name}"] & set(names) | {name} for name in names}
    for _ in names:
        reached = {name: below.union(*(reached[other] for other in below)) for name, below in reached.items()}
    layers = {frozenset(other for other in below if name in reached[other]) for name, below in reached.items()}
    found = []
    for members in sorted(layers, key=lambda members: (len(reached[min(members)]), min(members))):
        needed = _ancestors(cell, {f"next_{name}" for name in members})
        found.append(Layer(tuple(sorted(members)), tuple(n for n in needed if sources[n.output[0]] & members)))
    return [layer for layer in found if layer.nodes]  # a state that does not depend on itself needs no Scan


def _sources(cell: Any, state: Iterable[str]) -> dict[str, frozenset[str]]:
    """Map each value to its sources within a step: state tensors, the token."""
    found = {name: frozenset([name]) for name in (*state, TOKEN)}
    for node in cell.node:
        union = frozenset[str]().union(*(found.get(name, frozenset()) for name in node.input))
        found |= dict.fromkeys(node.output, union)
    return found


def _ancestors(cell: Any, values: set[str]) -> list[Any]:
    """Return the nodes that compute some values, in their order."""
    wanted, nodes = set(values), []
    for node in reversed(cell.node):
        if wanted.intersection(node.output):
            wanted.update(node.input)
            nodes.append(node)
    return nodes[::-1]


def find_gates(cell: Any, state: Iterable[str]) -> dict[str, str]:
    """Return the gates and candidates of a GRU or LSTM cell: name with the number of the layer -> value of the graph.

    They stand on the parts of a sum that `export/graphs/recurrent.py` splits; a cell without such a sum has none.
    """
    found: dict[str, str] = {}
    for layer in find_layers(cell, state):
        numbers = [name[1:] for name in layer.state if name[:1] == "h" and name[1:].isdecimal()]
        parts = next((node.output for node in layer.nodes if node.op_type == "Split"), ())
        if len(numbers) == 1 and len(parts) in SPLIT_INTO:
            functions = [node for node in layer.nodes if node.op_type in ("Sigmoid", "Tanh")]
            values = [next((node.output[0] for node in functions if part in node.input), part) for part in parts]
            values += [node.output[0] for node in functions if len(parts) == 2 and node.op_type == "Tanh"]
            found |= {name + numbers[0]: value for name, value in zip(SPLIT_INTO[len(parts)], values, strict=False)}
    return found


class _Steps:
    """The main graph under construction. A value of the cell is in it

    as a constant     cell.NAME        if it does not depend on token or state
    of every step     `_stacked`       [steps, batch, …]
    of every row      `_flat`          [steps * batch, …]

    or in the body of its layer, where it is called cell.NAME, too.
    """

    def __init__(self, main: Drawing, cell: Any, state: Mapping[str, tuple[int, ...]]) -> None:
        self._main = main
        self._cell = cell
        self._state = state
        self._results = {"hidden": "hidden", **{f"next_{name}": f"next.{name}" for name in state}}
        self._maker = {name: node for node in cell.node for name in node.output}
        self._constants = {tensor.name for tensor in cell.initializer}
        self._sources = _sources(cell, state)
        self._stacked = {TOKEN: "tokens"}
        self._flat: dict[str, str] = {}

    def draw_layer(self, layer: Layer) -> None:
        """Draw the layer's inputs from below, for all steps at once, and the Scan over its own state."""
        made = {name for node in layer.nodes for name in node.output}
        used = dict.fromkeys(name for node in layer.nodes for name in node.input if name)
        taken = [name for name in used if name not in made and name not in layer.state]
        taken = [name for name in taken if not self._is_constant(name)] or [TOKEN]  # a Scan needs something
        outside = {n for node in self._cell.node if node.output[0] not in made for n in node.input} | {*self._results}
        given = [name for node in layer.nodes for name in node.output if name in outside]
        body = self._body(layer, taken, given)
        stacked = [self._results.get(name, f"steps.{name}") for name in given]
        self._main.op(
            "Scan",
            *(f"state.{name}" for name in layer.state),
            *(self._by_step(name) for name in taken),
            outputs=[*(f"last.{name}" for name in layer.state), *stacked],
            body=body,
            num_scan_inputs=len(taken),
        )
        self._stacked |= dict(zip(given, stacked, strict=True))

    def draw_results(self) -> None:
        """Draw the results that no layer has made."""
        for value, name in self._results.items():
            if self._by_step(value) != name:
                self._main.op("Identity", self._by_step(value), outputs=[name])

    def _body(self, layer: Layer, taken: Sequence[str], given: Sequence[str]) -> Drawing:
        body = self._main.inside(f"layer.{layer.state[0]}")
        for name in layer.state:
            body.input(f"cell.{name}", "float32", ["batch", *self._state[name]])
        for name in taken:
            body.graph.input.add(name=f"cell.{name}")
        for node in layer.nodes:
            copy_node(node, body.graph, "cell.")
        for name in layer.state:
            body.output(f"cell.next_{name}", "float32", ["batch", *self._state[name]])
        for name in given:
            body.graph.output.add(name=body.op("Identity", f"cell.{name}"))
        return body

    def _is_constant(self, value: str) -> bool:
        """Return whether a value is constant, after drawing the nodes that compute it."""
        if self._sources.get(value):
            return False
        if value not in self._constants:
            node = self._maker[value]
            self._constants.update(node.output)
            assert all(self._is_constant(name) for name in node.input if name)
            copy_node(node, self._main.graph, "cell.")
        return True

    def _by_step(self, value: str) -> str:
        """Return a value of every step, [steps, batch, …]; of a state tensor the value before the step."""
        if value not in self._stacked:
            if value in self._state:
                self._stacked[value] = self._before(value)
            else:
                rows, main = self._by_row(value), self._main
                shape = main.op("Concat", main.op("Shape", "tokens"), main.op("Shape", rows, start=1), axis=0)
                self._stacked[value] = main.op("Reshape", rows, shape)
        return self._stacked[value]

    def _before(self, name: str) -> str:
        """Return a state tensor of a drawn layer before every step."""
        main = self._main
        first = main.op("Unsqueeze", f"state.{name}", main.integers(0))
        after = self._by_step(f"next_{name}")
        others = main.op("Slice", after, main.integers(0), main.integers(-1), main.integers(0))
        return main.op("Concat", first, others, axis=0)

    def _by_row(self, value: str) -> str:
        """Return a value of every row, [steps * batch, …]."""
        if value not in self._flat:
            main = self._main
            if value in self._stacked or value in self._state:
                steps = self._by_step(value)
                shape = main.op("Concat", main.integers(-1), main.op("Shape", steps, start=2), axis=0)
                self._flat[value] = main.op("Reshape", steps, shape)
            else:
                self._draw_node(self._maker[value])
        return self._flat[value]

    def _draw_node(self, node: Any) -> None:
        """Draw a node for all rows at once."""
        names = {name: f"cell.{name}" if self._is_constant(name) else self._by_row(name) for name in node.input if name}
        self._flat |= {name: f"rows.{name}" for name in node.output}
        copy_node(node, self._main.graph, "rows.", names)


def vectors_of(graph: Any) -> set[str]:
    """Return the names of a graph's constants of one dimension."""
    return {tensor.name for tensor in graph.initializer if len(tensor.dims) == 1}


def fuse_products(graph: Any, vectors: Collection[str]) -> None:
    """Replace every such chain of a graph, an ONNX message, whose links no other node uses.

    vectors  constants of one dimension, of this graph or one around it: the scales must be one of them
    """
    users = {name: node for node in graph.node for name in node.input}
    uses = Counter(name for node in graph.node for name in node.input)
    uses.update(info.name for info in graph.output)
    replaced = set()
    for product in graph.node:
        if product.op_type != "MatMulInteger" or uses[product.output[0]] != 1:
            continue
        cast = users[product.output[0]]
        scaled = users.get(cast.output[0])
        if cast.op_type != "Cast" or uses[cast.output[0]] != 1 or scaled is None or scaled.op_type != "Mul":
            continue
        scales = next((name for name in scaled.input if name in vectors), None)
        if scales is not None:
            replaced |= {cast.output[0], scaled.output[0]}
            values, weight, *zero_points = product.input
            product.input[:] = [values, weight, ONE, scales, *zero_points]
            product.output[:] = scaled.output
            product.op_type, product.domain = "MatMulIntegerToFloat", RUNTIME_DOMAIN
    if replaced:
        kept = [n for n in graph.node if n.op_type not in ("Cast", "Mul") or n.output[0] not in replaced]
        del graph.node[:]
        graph.node.extend(kept)
        graph.initializer.add(name=ONE, data_type=FLOAT, raw_data=np.float32(1).tobytes())
