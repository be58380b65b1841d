"""A bundle's cell and output layer → the graph that writes: every step samples the token that the next one is fed.

    token [batch], state → hidden, next state        the cell, a step
    hidden [rows] → logits, log-probabilities         the output layer
    ─────────────────────────────────────────
    token [batch], state, uniforms [steps, batch] → the tokens that follow, and the state after every step

All of it is the body of one `Scan`. (The output layer has to stand in the body itself: onnxruntime does not pack the
weights of a graph within a graph within a graph.)

Inputs

    token                 int64 [batch]                fed in the first step
    state.NAME            float32 [batch, *shape]      before the first step
    uniforms              float32 [steps, batch, 1]    in [0, 1 - 2**-22]
    inverse_temperatures  float32 [batch, 1]           where tempered; at most 5, or all weights might underflow
    bars                  int64 [batch, 1]             where barred, the token that is not taken, or -1
    limits                float32 [batch, 3]           min_p, top_p, top_k; the last two with a small vocabulary alone
    want_samples          bool []                      false: the likeliest token is taken, the lowest of equals
    want_tempered, want_limits  bool []                whether any row has a temperature or a barred token, a limit
    want_bars             bool []                      whether any row has a barred token

Outputs

    next.NAME             float32 [steps, batch, *shape]
    picked                int64 [steps, batch, 1]
    picked_logprob        float32 [steps, batch, 1]
"""

from __future__ import annotations

from typing import Final

from meari.runtime.graphs.bundle_graph import Parts, copy_nodes, finished
from meari.runtime.graphs.drawing import Drawing
from meari.runtime.graphs.sampler import NUM_LIMITS, Choice, draw_likeliest, draw_sampler

__all__ = ["writer_graph"]

WANTS: Final = ("want_samples", "want_tempered", "want_limits", "want_bars")


def writer_graph(parts: Parts) -> bytes:
    """Put the graph together. Raises ValueError where the operator sets of the bundle's graphs do not fit."""
    main = Drawing("writer")
    for name in WANTS:
        main.input(name, "bool", [])
    main.input("inverse_temperatures", "float32", ["batch", 1])
    main.input("limits", "float32", ["batch", NUM_LIMITS])
    main.input("bars", "int64", ["barred", 1])
    starts = [main.input(f"state.{name}", "float32", ["batch", *shape]) for name, shape in parts.state.items()]
    token = main.input("token", "int64", ["batch"])
    uniforms = main.input("uniforms", "float32", ["steps", "batch", 1])
    new = [f"next.{name}" for name in parts.state]
    outputs = [*(f"last.{name}" for name in (*parts.state, "token")), *new, "picked", "picked_logprob"]
    main.op("Scan", *starts, token, uniforms, outputs=outputs, body=_body(main, parts), num_scan_inputs=1)
    for name, shape in zip(new, parts.state.values(), strict=True):
        main.output(name, "float32", ["steps", "batch", *shape])
    main.output("picked", "int64", ["steps", "batch", 1])
    main.output("picked_logprob", "float32", ["steps", "batch", 1])
    return finished(main, parts)


def _body(main: Drawing, parts: Parts) -> Drawing:
    """One step: the state, the token and a uniform number in; the next state, token and what there is to tell out."""
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
    """The step's token, int64 [batch, 1]."""
    drawn, likeliest = body.inside("drawn"), body.inside("likeliest")
    choice = Choice("step.uniform", "inverse_temperatures", "limits", "bars")
    drawn.output(draw_sampler(drawn, "write.logprobs", choice, vocabulary_size)[0], "int64", ["batch", 1])
    likeliest.output(draw_likeliest(likeliest, "write.logprobs", "bars", vocabulary_size), "int64", ["batch", 1])
    return body.op("If", "want_samples", then_branch=drawn, else_branch=likeliest)
