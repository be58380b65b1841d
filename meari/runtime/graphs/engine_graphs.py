"""A bundle's cell and output layer → the two graphs that the engine runs.

Input: `Parts` of a bundle. Output: two .onnx files, as bytes. Must not know: onnxruntime, sequences.

    token [batch], state → hidden, next state         the cell, a step
    hidden [rows] → logits, log-probabilities         the output layer
    ─────────────────────────────────────────
    reader  tokens [steps, batch], state → hidden and state after every step; for the wanted rows of hidden vectors:
            logits, log-probabilities, a token (a given target, or sampled) and its log-probability
    writer  token [batch], state, uniforms [steps, batch] → the tokens that follow, and the state after every step

The reader's cell becomes a `Scan` for each of its layers, with the bits of single steps (layers.py). Its output layer
is in an `If` behind them: prompts do without, and the rows of many steps share one product.

All of the writer is the body of one `Scan`: every step samples the token that the next one is fed. (The output layer
has to be in the body itself: onnxruntime does not pack the weights of a graph within a graph within a graph.)

Inputs of the reader (a graph of no rows or no sampling ignores some of them; they may have any values then)

    tokens                int64 [steps, batch]         steps, batch >= 1
    state.NAME            float32 [batch, *shape]      before the first step
    more_hidden           float32 [more, H]            hidden rows computed elsewhere, numbered after the run's own
    rows                  int64 [rows]                 step * batch + row of the batch, repeats allowed
    targets               int64 [rows, 1]              the wanted token, or -1: sample one
    uniforms              float32 [rows, 1]            in [0, 1 - 2**-22]
    inverse_temperatures  float32 [rows, 1]            where tempered; at most 5, or all weights might underflow
    limits                float32 [rows, 3]            min_p, top_p, top_k; 0, more than 1, V or more: no limit
    bars                  int64 [rows, 1]              where barred, the token that is not sampled, or -1
    want_rows             bool []                      false: no output layer, `rows` is ignored
    want_samples          bool []                      false: every target is given
    want_tempered         bool []                      whether any row has a temperature or a barred token
    want_bars             bool []                      whether any row has a barred token
    want_limits           bool []                      whether any row has a min_p, or, with a small V, top_p or top_k
    want_masses           bool []                      whether any row has a top_p, with a large V

Outputs of the reader

    hidden                float32 [steps, batch, H]
    next.NAME             float32 [steps, batch, *shape]
    logits, logprobs      float32 [rows, V]
    picked                int64 [rows, 1]              the target, or the sampled token
    picked_logprob        float32 [rows, 1]
    mass_from, mass       float32 [rows, 1]            with want_masses, of a sampled token: see sampler.py

Inputs of the writer

    token                 int64 [batch]                fed in the first step
    state.NAME            float32 [batch, *shape]      before the first step
    uniforms              float32 [steps, batch, 1]    in [0, 1 - 2**-22]
    inverse_temperatures  float32 [batch, 1]           where tempered; at most 5, or all weights might underflow
    bars                  int64 [batch, 1]             where barred, the token that is not taken, or -1
    limits                float32 [batch, 3]           min_p, top_p, top_k; the last two with a small vocabulary alone
    want_samples          bool []                      false: the likeliest token is taken, the lowest of equals
    want_tempered, want_limits  bool []                whether any row has a temperature or a barred token, a limit
    want_bars             bool []                      whether any row has a barred token

Outputs of the writer

    next.NAME             float32 [steps, batch, *shape]
    picked                int64 [steps, batch, 1]
    picked_logprob        float32 [steps, batch, 1]
"""

from __future__ import annotations

from typing import Final

import numpy as np

from meari.runtime.graphs.bundle_graph import Parts, copy_nodes, finished
from meari.runtime.graphs.layers import draw_layers
from meari.runtime.graphs.onnx_graph import Drawing
from meari.runtime.graphs.sampler import NUM_LIMITS, Choice, draw_likeliest, draw_masses, draw_sampler

__all__ = ["READER_WANTS", "reader_graph", "writer_graph"]

READER_WANTS: Final = ("want_rows", "want_samples", "want_tempered", "want_limits", "want_bars", "want_masses")
WRITER_WANTS: Final = ("want_samples", "want_tempered", "want_limits", "want_bars")
CHOICE: Final = ("uniforms", "inverse_temperatures", "limits")
ROW_OUTPUTS: Final = ("logits", "logprobs", "picked", "picked_logprob", "mass_from", "mass")


def reader_graph(parts: Parts) -> bytes:
    """Draw the reader. Raises ValueError where the operator sets of the bundle's graphs do not fit."""
    main = Drawing("reader")
    for name in READER_WANTS:
        main.input(name, "bool", [])
    _draw_steps(main, parts)
    _draw_rows(main, parts)
    return finished(main, parts)


def _draw_steps(main: Drawing, parts: Parts) -> None:
    """Draw the cell: tokens and states → states and hidden vectors of every step."""
    main.input("tokens", "int64", ["steps", "batch"])
    for name, shape in parts.state.items():
        main.input(f"state.{name}", "float32", ["batch", *shape])
    draw_layers(main, parts.cell.model.graph, parts.state)
    main.output("hidden", "float32", ["steps", "batch", parts.hidden_size])
    for name, shape in parts.state.items():
        main.output(f"next.{name}", "float32", ["steps", "batch", *shape])


def _draw_rows(main: Drawing, parts: Parts) -> None:
    hidden_size, vocabulary_size = parts.hidden_size, parts.vocabulary_size
    more = main.input("more_hidden", "float32", ["more", hidden_size])
    rows = main.input("rows", "int64", ["rows"])
    main.input("targets", "int64", ["rows", 1])
    for name, width in zip(CHOICE, (1, 1, NUM_LIMITS), strict=True):
        main.input(name, "float32", ["rows", width])
    main.input("bars", "int64", ["barred", 1])
    then, otherwise = main.inside("rows"), main.inside("no_rows")
    made = then.op("Reshape", "hidden", then.integers(-1, hidden_size))
    then.op("Gather", then.op("Concat", made, more, axis=0), rows, outputs=["output.hidden"], axis=0)
    copy_nodes(parts.output.model.graph, then.graph, "output.", {})
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
    """Draw `picked`, `picked_logprob`, `mass_from` and `mass` of the wanted rows."""
    then, otherwise = rows.inside("sampled"), rows.inside("given")
    picked, weights = draw_sampler(then, "output.logprobs", Choice(*CHOICE, "bars"), vocabulary_size)
    masses = draw_masses(then, weights, picked, "limits", vocabulary_size)
    token = then.op("Where", then.op("Less", "targets", then.number(0)), picked, "targets")
    given = [otherwise.op("Identity", name) for name in ("targets", "uniforms", "uniforms")]
    for drawing, values in ((then, [token, *masses]), (otherwise, given)):
        for value, dtype in zip(values, ("int64", "float32", "float32"), strict=True):
            drawing.output(value, dtype, ["rows", 1])
    outputs = [f"{rows.name}.{name}" for name in ("picked", "mass_from", "mass")]
    rows.op("If", "want_samples", outputs=outputs, then_branch=then, else_branch=otherwise)
    logprob = rows.op("GatherElements", "output.logprobs", outputs[0], axis=1)
    return [outputs[0], logprob, *outputs[1:]]


def writer_graph(parts: Parts) -> bytes:
    """Draw the writer. Raises ValueError where the operator sets of the bundle's graphs do not fit."""
    main = Drawing("writer")
    for name in WRITER_WANTS:
        main.input(name, "bool", [])
    main.input("inverse_temperatures", "float32", ["batch", 1])
    main.input("limits", "float32", ["batch", NUM_LIMITS])
    main.input("bars", "int64", ["barred", 1])
    starts = [main.input(f"state.{name}", "float32", ["batch", *shape]) for name, shape in parts.state.items()]
    token = main.input("token", "int64", ["batch"])
    uniforms = main.input("uniforms", "float32", ["steps", "batch", 1])
    new = [f"next.{name}" for name in parts.state]
    outputs = [*(f"last.{name}" for name in (*parts.state, "token")), *new, "picked", "picked_logprob"]
    main.op("Scan", *starts, token, uniforms, outputs=outputs, body=_step_body(main, parts), num_scan_inputs=1)
    for name, shape in zip(new, parts.state.values(), strict=True):
        main.output(name, "float32", ["steps", "batch", *shape])
    main.output("picked", "int64", ["steps", "batch", 1])
    main.output("picked_logprob", "float32", ["steps", "batch", 1])
    return finished(main, parts)


def _step_body(main: Drawing, parts: Parts) -> Drawing:
    """Draw one step: state, token and uniform number → next state and token, and the step's outputs."""
    body = main.inside("step")
    for name, shape in parts.state.items():
        body.input(f"cell.{name}", "float32", ["batch", *shape])
    body.input("cell.token", "int64", ["batch"])
    body.input("step.uniform", "float32", ["batch", 1])
    copy_nodes(parts.cell.model.graph, body.graph, "cell.", {})
    constants = {tensor.name: f"output.{tensor.name}" for tensor in parts.output.model.graph.initializer}
    copy_nodes(parts.output.model.graph, body.graph, "write.", {**constants, "hidden": "cell.hidden"})
    picked = _draw_choice(body, parts.vocabulary_size)
    for name, shape in parts.state.items():
        body.output(f"cell.next_{name}", "float32", ["batch", *shape])
    body.output(body.op("Reshape", picked, body.integers(-1)), "int64", ["batch"])
    for name, shape in parts.state.items():
        body.output(body.op("Identity", f"cell.next_{name}"), "float32", ["batch", *shape])
    body.output(picked, "int64", ["batch", 1])
    body.output(body.op("GatherElements", "write.logprobs", picked, axis=1), "float32", ["batch", 1])
    return body


def _draw_choice(body: Drawing, vocabulary_size: int) -> str:
    """Draw the step's token, int64 [batch, 1]."""
    drawn, likeliest = body.inside("drawn"), body.inside("likeliest")
    choice = Choice("step.uniform", "inverse_temperatures", "limits", "bars")
    drawn.output(draw_sampler(drawn, "write.logprobs", choice, vocabulary_size)[0], "int64", ["batch", 1])
    likeliest.output(draw_likeliest(likeliest, "write.logprobs", "bars", vocabulary_size), "int64", ["batch", 1])
    return body.op("If", "want_samples", then_branch=drawn, else_branch=likeliest)
