"""A bundle's cell and output layer → the graph that reads: tokens that are given, several steps in one run.

    token [batch], state → hidden, next state        the cell, a step
    hidden [rows] → logits, log-probabilities         the output layer
    ─────────────────────────────────────────
    tokens [steps, batch], state → hidden and state after every step; for the rows of hidden vectors that are asked for:
    logits, log-probabilities, a token (a target that is given, or sampled) and its log-probability

The cell becomes a `Scan` for each of its layers, with the bits of single steps (layers.py). The output layer stands in
an `If` behind them: prompts do without, and the rows of many steps share one product.

Inputs (what a graph of no rows or no sampling does not look at may have any values)

    tokens                int64 [steps, batch]         steps, batch >= 1
    state.NAME            float32 [batch, *shape]      before the first step
    more_hidden           float32 [more, H]            hidden rows from elsewhere, numbered after those made here
    rows                  int64 [rows]                 step * batch + row of the batch, each as often as one likes
    targets               int64 [rows, 1]              the token asked for, or -1: sample one
    uniforms              float32 [rows, 1]            in [0, 1 - 2**-22]
    inverse_temperatures  float32 [rows, 1]            where tempered; at most 5, or all weights might underflow
    limits                float32 [rows, 3]            min_p, top_p, top_k; 0, more than 1, V or more: no limit
    bars                  int64 [rows, 1]              where barred, the token that is not taken, or -1
    want_rows             bool []                      false: no output layer, `rows` is not looked at
    want_samples          bool []                      false: every target is given
    want_tempered         bool []                      whether any row has a temperature or a barred token
    want_bars             bool []                      whether any row has a barred token
    want_limits           bool []                      whether any row has a min_p, or, with a small V, top_p or top_k
    want_masses           bool []                      whether any row has a top_p, with a large V

Outputs

    hidden                float32 [steps, batch, H]
    next.NAME             float32 [steps, batch, *shape]
    logits, logprobs      float32 [rows, V]
    picked                int64 [rows, 1]              the target, or what was sampled
    picked_logprob        float32 [rows, 1]
    mass_from, mass       float32 [rows, 1]            with want_masses, of a sampled token: see sampler.py
"""

from __future__ import annotations

from typing import Final

import numpy as np

from meari.runtime.graphs.bundle_graph import Parts, copy_nodes, finished
from meari.runtime.graphs.drawing import Drawing
from meari.runtime.graphs.layers import draw_layers
from meari.runtime.graphs.sampler import NUM_LIMITS, Choice, draw_masses, draw_sampler

__all__ = ["reader_graph"]

WANTS: Final = ("want_rows", "want_samples", "want_tempered", "want_limits", "want_bars", "want_masses")
CHOICE: Final = ("uniforms", "inverse_temperatures", "limits")
ROW_OUTPUTS: Final = ("logits", "logprobs", "picked", "picked_logprob", "mass_from", "mass")


def reader_graph(parts: Parts) -> bytes:
    """Put the graph together. Raises ValueError where the operator sets of the bundle's graphs do not fit."""
    main = Drawing("reader")
    for name in WANTS:
        main.input(name, "bool", [])
    _draw_steps(main, parts)
    _draw_rows(main, parts)
    return finished(main, parts)


def _draw_steps(main: Drawing, parts: Parts) -> None:
    """Tokens and states in, states and hidden vectors of every step out."""
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
    """`picked`, `picked_logprob` and the sampler's figures."""
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
