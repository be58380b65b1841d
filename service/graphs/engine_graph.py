"""A bundle's cell and output layer → the one graph that the engine runs.

    token [batch], state → hidden, next state        the cell, a step
    hidden [rows] → logits, log-probabilities         the output layer
    ─────────────────────────────────────────
    tokens [steps, batch], state → hidden and state after every step; for the rows that are asked for: logits,
    log-probabilities, a token (a target that is given, or sampled) and its log-probability

The cell becomes the body of a `Scan`, whose bits are those of single steps. The output layer stands in an `If`, so
that prompts do without it, the sampler in another. Every weight belongs to one node: it is packed and held once.

Inputs (what a graph of no rows or no sampling does not look at may have any values)

    tokens                int64 [steps, batch]         steps, batch >= 1
    state.NAME            float32 [batch, *shape]      before the first step
    more_hidden           float32 [more, H]            hidden rows from elsewhere, numbered after those made here
    rows                  int64 [rows]                 step * batch + row of the batch, each as often as one likes
    targets               int64 [rows, 1]              the token asked for, or -1: sample one
    uniforms              float32 [rows, 1]            in [0, 1)
    inverse_temperatures  float32 [rows, 1]            where tempered; at most 5, or all weights might underflow
    least_shares          float32 [rows, 1]            min_p, where shared
    want_rows             bool []                      false: no output layer, `rows` is not looked at
    want_samples          bool []                      false: every target is given
    want_tempered, want_shares, want_masses  bool []   whether any row has a temperature, min_p, top_p

Outputs

    hidden                float32 [steps, batch, H]
    next.NAME             float32 [steps, batch, *shape]
    logits, logprobs      float32 [rows, V]
    picked                int64 [rows, 1]              the target, or what was sampled
    picked_logprob        float32 [rows, 1]
    mass_from, mass       float32 [rows, 1]            with want_masses, of a sampled token: see sampler.py
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

import numpy as np

from service.graphs.drawing import Drawing
from service.graphs.onnx_format import new_message, read_model
from service.graphs.sampler import draw_sampler

__all__ = ["BundleGraph", "engine_graph"]

LEAST_OPSET: Final = 18
ROW_INPUTS: Final = ("uniforms", "inverse_temperatures", "least_shares")
WANTS: Final = ("want_rows", "want_samples", "want_tempered", "want_shares", "want_masses")
ROW_OUTPUTS: Final = ("logits", "logprobs", "picked", "picked_logprob", "mass_from", "mass")


class BundleGraph:
    """One of a bundle's graphs, as it was read. Raises ValueError where the bytes are no ONNX file.

    inputs, outputs  name -> dimensions, a free one by its name
    """

    def __init__(self, data: bytes) -> None:
        self.model = read_model(data)
        constants = {tensor.name for tensor in self.model.graph.initializer}
        self.inputs = {info.name: _dimensions(info) for info in self.model.graph.input if info.name not in constants}
        self.outputs = {info.name: _dimensions(info) for info in self.model.graph.output}

    @property
    def hidden_size(self) -> int:
        """H, of an output layer."""
        return int(self.inputs["hidden"][1])


def _dimensions(info: Any) -> list[int | str]:
    dims = info.type.tensor_type.shape.dim
    return [dim.dim_value if dim.HasField("dim_value") else dim.dim_param for dim in dims]


def engine_graph(
    cell: BundleGraph, output: BundleGraph, state: Mapping[str, tuple[int, ...]], vocabulary_size: int
) -> bytes:
    """Put the graph together.

    cell, output     the bundle's graphs
    state            state tensor -> its shape without the batch dimension
    vocabulary_size  V

    Raises ValueError where the operator sets differ or are too old.
    """
    cell_model, output_model, hidden_size = cell.model, output.model, output.hidden_size
    opset = _opset(cell_model, output_model)
    main = Drawing("engine")
    _draw_steps(main, cell_model.graph, state, hidden_size)
    _draw_rows(main, output_model.graph, hidden_size, vocabulary_size)
    for prefix, source in (("cell.", cell_model.graph), ("output.", output_model.graph)):
        for tensor in source.initializer:
            kept = main.graph.initializer.add()
            kept.CopyFrom(tensor)
            kept.name = prefix + tensor.name
    model = new_message("Model")
    model.ir_version = cell_model.ir_version
    model.opset_import.add(domain="", version=opset)
    model.graph.CopyFrom(main.graph)
    data: bytes = model.SerializeToString()
    return data


def _opset(*models: Any) -> int:
    versions = {entry.version for model in models for entry in model.opset_import if not entry.domain}
    if len(versions) != 1 or min(versions) < LEAST_OPSET:
        raise ValueError(f"operator sets: got {sorted(versions)}, expected one of at least {LEAST_OPSET}")
    version: int = versions.pop()
    return version


def _draw_steps(main: Drawing, cell: Any, state: Mapping[str, tuple[int, ...]], hidden_size: int) -> None:
    """The inputs of the steps, and the Scan over them."""
    tokens = main.input("tokens", "int64", ["steps", "batch"])
    starts = [main.input(f"state.{name}", "float32", ["batch", *shape]) for name, shape in state.items()]
    body = main.inside("step")
    for name, shape in state.items():
        body.input(f"cell.{name}", "float32", ["batch", *shape])
    body.input("cell.token", "int64", ["batch"])
    _copy_nodes(cell, body.graph, lambda name: f"cell.{name}")
    for name, shape in state.items():
        body.output(f"cell.next_{name}", "float32", ["batch", *shape])
    body.output("cell.hidden", "float32", ["batch", hidden_size])
    for name, shape in state.items():
        body.output(body.op("Identity", f"cell.next_{name}"), "float32", ["batch", *shape])
    last = [f"last.{name}" for name in state]
    main.op(
        "Scan",
        *starts,
        tokens,
        outputs=[*last, "hidden", *(f"next.{name}" for name in state)],
        body=body,
        num_scan_inputs=1,
    )
    main.output("hidden", "float32", ["steps", "batch", hidden_size])
    for name, shape in state.items():
        main.output(f"next.{name}", "float32", ["steps", "batch", *shape])


def _draw_rows(main: Drawing, output: Any, hidden_size: int, vocabulary_size: int) -> None:
    more = main.input("more_hidden", "float32", ["more", hidden_size])
    rows = main.input("rows", "int64", ["rows"])
    main.input("targets", "int64", ["rows", 1])
    for name in ROW_INPUTS:
        main.input(name, "float32", ["rows", 1])
    for name in WANTS:
        main.input(name, "bool", [])
    then, otherwise = main.inside("rows"), main.inside("no_rows")
    made = then.op("Reshape", "hidden", then.integers(-1, hidden_size))
    then.op("Gather", then.op("Concat", made, more, axis=0), rows, outputs=["output.hidden"], axis=0)
    _copy_nodes(output, then.graph, lambda name: f"output.{name}")
    values = ["output.logits", "output.logprobs", *_draw_tokens(then, vocabulary_size)]
    for drawing, sources in ((then, values), (otherwise, [""] * len(values))):
        for name, value in zip(ROW_OUTPUTS, sources, strict=True):
            width = vocabulary_size if name in ("logits", "logprobs") else 1
            dtype = "int64" if name == "picked" else "float32"
            nothing = drawing.constant(np.zeros((0, width), dtype), f"none.{name}")
            drawing.output(value or drawing.op("Identity", nothing), dtype, ["rows", width])
            if drawing is then:
                main.output(name, dtype, ["rows", width])
    main.op("If", "want_rows", outputs=ROW_OUTPUTS, then_branch=then, else_branch=otherwise)


def _draw_tokens(rows: Drawing, vocabulary_size: int) -> list[str]:
    """`picked`, `picked_logprob` and the sampler's figures."""
    then, otherwise = rows.inside("sampled"), rows.inside("given")
    picked, *masses = draw_sampler(then, "output.logprobs", vocabulary_size)
    token = then.op("Where", then.op("Less", "targets", then.number(0)), picked, "targets")
    given = [otherwise.op("Identity", name) for name in ("targets", "least_shares", "least_shares")]
    for drawing, values in ((then, [token, *masses]), (otherwise, given)):
        for value, dtype in zip(values, ("int64", "float32", "float32"), strict=True):
            drawing.output(value, dtype, ["rows", 1])
    outputs = [f"{rows.name}.{name}" for name in ("picked", "mass_from", "mass")]
    rows.op("If", "want_samples", outputs=outputs, then_branch=then, else_branch=otherwise)
    logprob = rows.op("GatherElements", "output.logprobs", outputs[0], axis=1)
    return [outputs[0], logprob, *outputs[1:]]


def _copy_nodes(source: Any, target: Any, renamed: Callable[[str], str]) -> None:
    """Append the nodes of a graph, every value under a new name; subgraphs that its nodes hold included."""
    for node in source.node:
        copy = target.node.add()
        copy.CopyFrom(node)
        copy.input[:] = [renamed(name) if name else "" for name in node.input]
        copy.output[:] = [renamed(name) if name else "" for name in node.output]
        for attribute in copy.attribute:
            if attribute.HasField("g"):
                _rename(attribute.g, renamed)


def _rename(graph: Any, renamed: Callable[[str], str]) -> None:
    for node in graph.node:
        node.input[:] = [renamed(name) if name else "" for name in node.input]
        node.output[:] = [renamed(name) if name else "" for name in node.output]
        for attribute in node.attribute:
            if attribute.HasField("g"):
                _rename(attribute.g, renamed)
    for named in (*graph.initializer, *graph.input, *graph.output):
        named.name = renamed(named.name)
