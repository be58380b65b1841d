"""Test that a cell unrolled over time gives the bits of single steps for every dependency between its states."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime as ort
import pytest

from meari.runtime.graphs.bundle_graph import BundleGraph, Parts, finished
from meari.runtime.graphs.layers import draw_layers, find_layers
from meari.runtime.graphs.onnx_graph import Drawing, new_message

Floats = npt.NDArray[np.float32]
SIZE, VOCABULARY_SIZE, STEPS, ROWS = 3, 7, 6, 4
NAMES = ("h0", "h1")
STATE = dict.fromkeys(NAMES, (SIZE,))


def weights(cell: Drawing, name: str, rows: int = SIZE) -> str:
    values = np.random.default_rng(len(name)).normal(0, 0.8, (rows, SIZE))
    return cell.constant(values.astype(np.float32), name)


def embedded(cell: Drawing) -> str:
    return cell.op("Gather", weights(cell, "table", VOCABULARY_SIZE), "token")


def updated(cell: Drawing, name: str, *driven_by: str) -> str:
    """Add nodes for next_NAME = tanh(NAME · W + inputs)."""
    total = cell.op("MatMul", name, weights(cell, f"recurrent_{name}"))
    for value in driven_by:
        total = cell.op("Add", total, value)
    return cell.op("Tanh", total, outputs=[f"next_{name}"])


def stacked(cell: Drawing) -> None:
    """Add a layer above another."""
    below = updated(cell, "h0", embedded(cell))
    above = updated(cell, "h1", cell.op("MatMul", below, weights(cell, "between")))
    cell.op("Identity", above, outputs=["hidden"])


def late(cell: Drawing) -> None:
    """Make the upper layer read the lower layer's previous state, with computed weights; output both."""
    below = updated(cell, "h0", embedded(cell))
    doubled = cell.op("Add", weights(cell, "half"), weights(cell, "half"))
    above = updated(cell, "h1", cell.op("MatMul", "h0", doubled), cell.op("Mul", "h1", doubled_row(cell)))
    cell.op("Tanh", cell.op("Add", below, above), outputs=["hidden"])


def doubled_row(cell: Drawing) -> str:
    row = cell.constant(np.full(SIZE, 0.1, np.float32), "row")
    return cell.op("Add", row, row)


def upside_down(cell: Drawing) -> None:
    """Put the layer with the first name above the other."""
    below = updated(cell, "h1", embedded(cell))
    updated(cell, "h0", below)
    cell.op("Sub", "next_h0", "h1", outputs=["hidden"])


def remembering(cell: Drawing) -> None:
    """Make one state the embedding of the last token; the other reads it one step later."""
    now = embedded(cell)
    cell.op("Identity", now, outputs=["next_h0"])
    updated(cell, "h1", now, "h0")
    cell.op("Identity", "next_h1", outputs=["hidden"])


def coupled(cell: Drawing) -> None:
    """Make two states drive each other, as one layer."""
    first = updated(cell, "h0", embedded(cell), "h1")
    updated(cell, "h1", first)
    cell.op("Identity", "next_h1", outputs=["hidden"])


def depends_on_the_batch_size(cell: Drawing) -> None:
    """Expand a row to the batch size, which excludes running several steps together."""
    size = cell.op("Shape", embedded(cell))
    row = cell.op("Expand", cell.constant(np.full((1, SIZE), 0.25, np.float32), "stretched"), size)
    below = updated(cell, "h0", embedded(cell), row)
    updated(cell, "h1", below)
    cell.op("Identity", "next_h1", outputs=["hidden"])


CELLS: dict[Callable[[Drawing], None], list[tuple[str, ...]]] = {
    stacked: [("h0",), ("h1",)],
    late: [("h0",), ("h1",)],
    upside_down: [("h1",), ("h0",)],
    remembering: [("h1",)],
    coupled: [NAMES],
    depends_on_the_batch_size: [NAMES],
}


def build_cell(draw: Callable[[Drawing], None]) -> BundleGraph:
    """Build a cell like that of a bundle."""
    cell = Drawing("cell")
    cell.input("token", "int64", ["batch"])
    for name in NAMES:
        cell.input(name, "float32", ["batch", SIZE])
    draw(cell)
    for name in ("hidden", *(f"next_{name}" for name in NAMES)):
        cell.output(name, "float32", ["batch", SIZE])
    return as_model(cell)


def as_model(drawing: Drawing) -> BundleGraph:
    model = new_message("Model")
    model.ir_version = 10
    model.opset_import.add(domain="", version=21)
    model.graph.CopyFrom(drawing.graph)
    return BundleGraph(model.SerializeToString())


def over_time(cell: BundleGraph) -> bytes:
    output = Drawing("output")
    output.input("hidden", "float32", ["batch", SIZE])
    main = Drawing("main")
    main.input("tokens", "int64", ["steps", "batch"])
    for name in NAMES:
        main.input(f"state.{name}", "float32", ["batch", SIZE])
    draw_layers(main, cell.model.graph, STATE)
    for name in ("hidden", *(f"next.{name}" for name in NAMES)):
        main.output(name, "float32", ["steps", "batch", SIZE])
    return finished(main, Parts(cell, as_model(output), STATE, VOCABULARY_SIZE))


@pytest.mark.parametrize("draw", CELLS, ids=lambda draw: draw.__name__)
@pytest.mark.parametrize(("steps", "rows"), [(1, 1), (STEPS, 1), (1, ROWS), (STEPS, ROWS)])
def test_many_steps_equal_single_steps_bit_for_bit(draw: Callable[[Drawing], None], steps: int, rows: int) -> None:
    random = np.random.default_rng(0)
    tokens = random.integers(0, VOCABULARY_SIZE, (steps, rows))
    states: dict[str, Any] = {name: random.normal(0, 1, (rows, SIZE)).astype(np.float32) for name in NAMES}
    cell = build_cell(draw)
    names = ["hidden", *(f"next_{name}" for name in NAMES)]
    feeds = {"tokens": tokens, **{f"state.{name}": values for name, values in states.items()}}
    found = ort.InferenceSession(over_time(cell)).run([n.replace("next_", "next.") for n in names], feeds)
    plain = ort.InferenceSession(cell.model.SerializeToString())
    for step in range(steps):
        expected = plain.run(names, {"token": tokens[step], **states})
        assert all(np.array_equal(got[step], want) for got, want in zip(found, expected, strict=True))
        states = dict(zip(NAMES, expected[1:], strict=True))


@pytest.mark.parametrize("draw", CELLS, ids=lambda draw: draw.__name__)
def test_layers_are_found_from_bottom_to_top(draw: Callable[[Drawing], None]) -> None:
    layers = find_layers(build_cell(draw).model.graph, NAMES)
    assert [layer.state for layer in layers] == CELLS[draw]


def test_nodes_that_need_no_state_are_run_once_for_all_steps() -> None:
    lower, upper = find_layers(build_cell(stacked).model.graph, NAMES)
    assert [node.op_type for node in lower.nodes] == ["MatMul", "Add", "Tanh"]
    assert [node.op_type for node in upper.nodes] == [
        "MatMul",
        "Add",
        "Tanh",
    ]  # excluding the product of the lower layer
