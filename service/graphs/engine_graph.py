"""A bundle's cell and output layer → the one graph that the engine runs.

    token [batch], state → hidden, next state        the cell, a step
    hidden [rows] → logits, log-probabilities         the output layer
    ─────────────────────────────────────────
    tokens [steps, batch], state → hidden and state after every step
        reading   the tokens are given; for the rows of hidden vectors that are asked for: logits, log-probabilities, a
                  token (a target that is given, or sampled) and its log-probability
        writing   each step samples the token that the next one is fed

The cell becomes the body of a `Scan`, whose bits are those of single steps. The output layer stands in an `If`, so
that prompts do without it: once in the body, for writing, and once behind the `Scan`, where the rows of many steps
share one product. The cell's weights are packed and held once, those of the output layer twice.

Inputs (what a graph of no rows or no sampling does not look at may have any values)

    tokens                int64 [steps, batch]         steps, batch >= 1; below 0: what the step before has sampled
    carried               int64 [batch]                anything; where the tokens of the first step are below 0: those
    state.NAME            float32 [batch, *shape]      before the first step
    step.uniforms         float32 [steps, batch, 1]    in [0, 1 - 2**-22], as all uniform numbers here
    step.inverse_temperatures, step.least_shares   float32 [batch, 1]
    more_hidden           float32 [more, H]            hidden rows from elsewhere, numbered after those made here
    rows                  int64 [rows]                 step * batch + row of the batch, each as often as one likes
    targets               int64 [rows, 1]              the token asked for, or -1: sample one
    uniforms              float32 [rows, 1]
    inverse_temperatures  float32 [rows, 1]            where tempered; at most 5, or all weights might underflow
    least_shares          float32 [rows, 1]            min_p, where shared
    want_writing          bool []                      whether every step samples
    want_drawing          bool []                      writing at random; else the likeliest tokens
    want_rows             bool []                      false: no output layer behind the steps, `rows` is not looked at
    want_samples          bool []                      false: every target is given
    want_tempered, want_shares, want_masses  bool []   whether any row has a temperature, min_p, top_p

Outputs

    hidden                float32 [steps, batch, H]
    next.NAME             float32 [steps, batch, *shape]
    written               int64 [steps, batch, 1]      with want_writing, and
    written_logprob       float32 [steps, batch, 1]
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
from service.graphs.sampler import Choice, draw_masses, draw_sampler

__all__ = ["BundleGraph", "engine_graph"]

LEAST_OPSET: Final = 18
ROW_INPUTS: Final = ("uniforms", "inverse_temperatures", "least_shares")
STEP_INPUTS: Final = ("step.inverse_temperatures", "step.least_shares")
WANTS: Final = (
    "want_writing",
    "want_drawing",
    "want_rows",
    "want_samples",
    "want_tempered",
    "want_shares",
    "want_masses",
)
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
    for name in WANTS:
        main.input(name, "bool", [])
    body = main.inside("step")
    _draw_cell(body, cell_model.graph, state, hidden_size)
    _draw_writing(body, output_model.graph, vocabulary_size)
    _draw_steps(main, body, state, hidden_size)
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


def _draw_cell(body: Drawing, cell: Any, state: Mapping[str, tuple[int, ...]], hidden_size: int) -> None:
    """A step: the state and the token that are carried, then the step's own token, in; `cell.hidden` and more out."""
    for name, shape in state.items():
        body.input(f"cell.{name}", "float32", ["batch", *shape])
    carried = body.input("step.carried", "int64", ["batch"])
    given = body.input("step.token", "int64", ["batch"])
    body.input("step.uniform", "float32", ["batch", 1])
    body.op("Where", body.op("Less", given, body.number(0)), carried, given, outputs=["cell.token"])
    _copy_nodes(cell, body.graph, "cell.", {})
    for name, shape in state.items():
        body.output(f"cell.next_{name}", "float32", ["batch", *shape])
    body.output("step.next_carried", "int64", ["batch"])
    body.output("cell.hidden", "float32", ["batch", hidden_size])
    for name, shape in state.items():
        body.output(body.op("Identity", f"cell.next_{name}"), "float32", ["batch", *shape])
    body.output("step.written", "int64", ["batch", 1])
    body.output("step.logprob", "float32", ["batch", 1])


def _draw_writing(body: Drawing, output: Any, vocabulary_size: int) -> None:
    """Sample the step's token, where that is wanted, and carry it to the next step."""
    then, otherwise = body.inside("writing"), body.inside("reading")
    constants = {tensor.name: f"output.{tensor.name}" for tensor in output.initializer}
    _copy_nodes(output, then.graph, "write.", {**constants, "hidden": "cell.hidden"})
    drawn, likeliest = then.inside("drawn"), then.inside("likeliest")
    choice = Choice("step.uniform", *STEP_INPUTS)
    drawn.output(draw_sampler(drawn, "write.logprobs", choice, vocabulary_size)[0], "int64", ["batch", 1])
    likeliest.output(likeliest.op("ArgMax", "write.logprobs", axis=1, keepdims=1), "int64", ["batch", 1])
    token = then.op("If", "want_drawing", then_branch=drawn, else_branch=likeliest)
    results = [
        (then, token, then.op("GatherElements", "write.logprobs", token, axis=1)),
        (
            otherwise,
            otherwise.op("Unsqueeze", "cell.token", otherwise.integers(1)),
            otherwise.op("Identity", "step.uniform"),
        ),
    ]
    for drawing, written, logprob in results:
        drawing.output(written, "int64", ["batch", 1])
        drawing.output(logprob, "float32", ["batch", 1])
    body.op("If", "want_writing", outputs=["step.written", "step.logprob"], then_branch=then, else_branch=otherwise)
    body.op("Reshape", "step.written", body.integers(-1), outputs=["step.next_carried"])


def _draw_steps(main: Drawing, body: Drawing, state: Mapping[str, tuple[int, ...]], hidden_size: int) -> None:
    """The Scan of a finished body."""
    starts = [main.input(f"state.{name}", "float32", ["batch", *shape]) for name, shape in state.items()]
    carried = main.input("carried", "int64", ["batch"])
    tokens = main.input("tokens", "int64", ["steps", "batch"])
    uniforms = main.input("step.uniforms", "float32", ["steps", "batch", 1])
    for name in STEP_INPUTS:
        main.input(name, "float32", ["batch", 1])
    new = [f"next.{name}" for name in state]
    last = [f"last.{name}" for name in (*state, "carried")]
    outputs = [*last, "hidden", *new, "written", "written_logprob"]
    main.op("Scan", *starts, carried, tokens, uniforms, outputs=outputs, body=body, num_scan_inputs=2)
    main.output("hidden", "float32", ["steps", "batch", hidden_size])
    for name, shape in zip(new, state.values(), strict=True):
        main.output(name, "float32", ["steps", "batch", *shape])
    main.output("written", "int64", ["steps", "batch", 1])
    main.output("written_logprob", "float32", ["steps", "batch", 1])


def _draw_rows(main: Drawing, output: Any, hidden_size: int, vocabulary_size: int) -> None:
    more = main.input("more_hidden", "float32", ["more", hidden_size])
    rows = main.input("rows", "int64", ["rows"])
    main.input("targets", "int64", ["rows", 1])
    for name in ROW_INPUTS:
        main.input(name, "float32", ["rows", 1])
    then, otherwise = main.inside("rows"), main.inside("no_rows")
    made = then.op("Reshape", "hidden", then.integers(-1, hidden_size))
    then.op("Gather", then.op("Concat", made, more, axis=0), rows, outputs=["output.hidden"], axis=0)
    _copy_nodes(output, then.graph, "output.", {})
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
    picked, weights = draw_sampler(then, "output.logprobs", Choice(*ROW_INPUTS), vocabulary_size)
    masses = draw_masses(then, weights, picked, vocabulary_size)
    token = then.op("Where", then.op("Less", "targets", then.number(0)), picked, "targets")
    given = [otherwise.op("Identity", name) for name in ("targets", "least_shares", "least_shares")]
    for drawing, values in ((then, [token, *masses]), (otherwise, given)):
        for value, dtype in zip(values, ("int64", "float32", "float32"), strict=True):
            drawing.output(value, dtype, ["rows", 1])
    outputs = [f"{rows.name}.{name}" for name in ("picked", "mass_from", "mass")]
    rows.op("If", "want_samples", outputs=outputs, then_branch=then, else_branch=otherwise)
    logprob = rows.op("GatherElements", "output.logprobs", outputs[0], axis=1)
    return [outputs[0], logprob, *outputs[1:]]


def _copy_nodes(source: Any, target: Any, prefix: str, names: Mapping[str, str]) -> None:
    """Append the nodes of a graph, every value under its name in `names`, else under its own with a prefix."""

    def renamed(name: str) -> str:
        return names.get(name, prefix + name) if name else ""

    for node in source.node:
        copy = target.node.add()
        copy.CopyFrom(node)
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
