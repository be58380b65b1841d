"""A bundle's cell and output layer → the two graphs that the engine runs.

Input: `Parts` of a bundle. Output: two .onnx files, as bytes. Must not know: onnxruntime, sequences.

    token [batch], state → hidden, next state         the cell, a step
    hidden [rows] → logits, log-probabilities         the output layer
    ─────────────────────────────────────────
    reader  tokens [steps, batch], state → hidden and state after every step; for the wanted rows of hidden vectors:
            a token (a given target, or sampled), its log-probability, and on demand more
    writer  token [batch], state, uniforms [steps, batch] → the tokens that follow, and the state after every step

The reader's cell becomes a `Scan` for each of its layers, with the bits of single steps (layers.py). Its output layer
is the body of a `Scan` over slices of the wanted rows. The distributions of a slice are used while they are in the
CPU's cache; only what was asked for leaves it. Prompts that want no row have a slice of size 0.

All of the writer is the body of one `Scan`: every step samples the token that the next one is fed. (An output layer has
to be in such a body itself: onnxruntime does not pack the weights of a graph within a graph within a graph.)

Inputs of the reader (a graph of no rows or no sampling ignores some of them; they may have any values then)

    tokens                int64 [steps, batch]         steps, batch >= 1
    state.NAME            float32 [batch, *shape]      before the first step
    more_hidden           float32 [more, H]            hidden rows computed elsewhere, numbered after the run's own
    slices                int64 [slices >= 1, size]    numbers of wanted rows: of each one, in any order
    rows                  int64 [rows]                 step * batch + row of the batch, repeats allowed
    targets               int64 [rows, 1]              the wanted token, or -1: sample one
    uniforms              float32 [rows, 1]            in [0, 1 - 2**-22]
    redraws               float32 [rows, redraws >= 1] likewise, where the pick lies outside its nucleus
    inverse_temperatures  float32 [rows, 1]            where tempered; at most 5, or all weights might underflow;
                                                       0: the likeliest token is taken, the lowest of equals
    limits                float32 [rows, 3]            min_p, top_p, top_k; 0, more than 1, V or more: no limit
    bars                  int64 [rows, 1]              where barred, the token that is not taken, or -1
    num_ranked            int64 [1]                    the largest top_k that is a limit, in 1..V-1
    num_best              int64 [1]                    number of the likeliest tokens, k, in 1..V
    want_tokens           bool []                      false: every target is given
    want_samples          bool []                      false: the likeliest token is taken in every row
    want_likeliest        bool []                      whether it is taken in any
    want_ranked           bool []                      whether any row has a top_k that is a limit
    want_unranked         bool []                      whether any sampled row has none; the next four are of such rows
    want_tempered         bool []                      whether any has a temperature or a barred token
    want_bars             bool []                      whether any has a barred token, or one with a top_k does
    want_min_p, want_nucleus  bool []                  whether any has a min_p, a top_p
    want_logits, want_logprobs, want_ranks, want_best  bool []

Outputs of the reader; those of rows are undefined where they are not wanted

    hidden                float32 [steps, batch, H]
    next.NAME             float32 [steps, batch, *shape]
    picked                int64 [slices, size, 1]      the target, or the sampled token
    picked_logprob        float32 [slices, size, 1]
    logits, logprobs      float32 [slices, size, V]
    rank                  int64 [slices, size, 1]      1 + the number of likelier tokens than the picked one
    best, best_logprobs   int64, float32 [slices, size, k]  likeliest first, ties to the lower id

Inputs of the writer

    token                 int64 [batch]                fed in the first step
    state.NAME            float32 [batch, *shape]      before the first step
    uniforms              float32 [steps, batch, 1]    in [0, 1 - 2**-22]
    redraws               float32 [steps, batch, redraws]
    inverse_temperatures, limits, bars, num_ranked, want_samples, want_likeliest, want_ranked, want_unranked,
    want_tempered, want_bars, want_min_p, want_nucleus  as the reader's, of the rows of the batch

Outputs of the writer

    next.NAME             float32 [steps, batch, *shape]
    picked                int64 [steps, batch, 1]
    picked_logprob        float32 [steps, batch, 1]
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

import numpy as np

from meari.runtime.graphs.bundle_graph import Parts, copy_nodes, finished
from meari.runtime.graphs.layers import draw_layers
from meari.runtime.graphs.onnx_graph import INT64, Drawing
from meari.runtime.graphs.rows import Choice
from meari.runtime.graphs.sampler import NUM_LIMITS, WANTS, draw_choice

__all__ = ["READER_WANTS", "reader_graph", "writer_graph"]

READER_WANTS: Final = (*WANTS, "want_tokens", "want_logits", "want_logprobs", "want_ranks", "want_best")
SETTINGS: Final = ("inverse_temperatures", "limits", "bars")  # of a row
ROW_OUTPUTS: Final = ("picked", "picked_logprob", "logits", "logprobs", "rank", "best", "best_logprobs")


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
    """Draw what comes of the wanted rows: a Scan over their slices, with the output layer in its body."""
    hidden_size, vocabulary_size = parts.hidden_size, parts.vocabulary_size
    main.input("more_hidden", "float32", ["more", hidden_size])
    slices = main.input("slices", "int64", ["slices", "size"])
    main.input("rows", "int64", ["rows"])
    main.input("targets", "int64", ["rows", 1])
    main.input("uniforms", "float32", ["rows", 1])
    main.input("redraws", "float32", ["rows", "redraws"])
    _declare_settings(main, "rows")
    main.input("num_best", "int64", [1])
    made = main.op("Reshape", "hidden", main.integers(-1, hidden_size))
    main.op("Concat", made, "more_hidden", outputs=["all_hidden"], axis=0)
    body = main.inside("slice")
    body.input("slice.numbers", "int64", ["size"])
    body.op("Gather", "all_hidden", _of_slice(body, "rows"), outputs=["slice.hidden"], axis=0)
    _draw_output_layer(body, parts, "slice.", hidden="slice.hidden")
    values = [*_draw_tokens(body, vocabulary_size), *_draw_tables(body)]
    for name, value in zip(ROW_OUTPUTS, values, strict=True):
        dtype = "int64" if name in ("picked", "rank", "best") else "float32"
        body.output(value, dtype, ["some", "width"])
        main.output(name, dtype, ["slices", "some", "width"])
    main.op("Scan", slices, outputs=ROW_OUTPUTS, body=body, num_scan_inputs=1)


def _of_slice(drawing: Drawing, name: str) -> str:
    """Return the rows of an input that belong to the slice."""
    return drawing.op("Gather", name, "slice.numbers", axis=0)


def _draw_output_layer(body: Drawing, parts: Parts, prefix: str, hidden: str) -> None:
    """Draw PREFIX + logits and PREFIX + logprobs of hidden vectors, with the bundle's constants."""
    graph = parts.output.model.graph
    constants = {tensor.name: f"output.{tensor.name}" for tensor in graph.initializer}
    copy_nodes(graph, body.graph, prefix, {**constants, "hidden": hidden})


def _draw_tokens(body: Drawing, vocabulary_size: int) -> list[str]:
    """Draw `picked` and `picked_logprob` of a slice."""
    targets = _of_slice(body, "targets")

    def chosen(branch: Drawing) -> list[str]:
        choice = Choice(*(_of_slice(branch, name) for name in ("uniforms", "redraws", *SETTINGS)))
        picked = draw_choice(branch, "slice.logprobs", choice, vocabulary_size)
        return [branch.op("Where", branch.op("Less", targets, branch.number(0)), picked, targets)]

    (picked,) = _either(body, "want_tokens", chosen, lambda branch: [branch.op("Identity", targets)], ("int64",))
    return [picked, body.op("GatherElements", "slice.logprobs", picked, outputs=["slice.picked"], axis=1)]


def _draw_tables(body: Drawing) -> list[str]:
    """Draw `logits`, `logprobs`, `rank`, `best` and `best_logprobs` of a slice, each where it is wanted."""

    def ranks(branch: Drawing) -> list[str]:
        ahead = branch.op("Cast", branch.op("Greater", "slice.logprobs", "slice.picked"), to=INT64)
        count = branch.op("ReduceSum", ahead, branch.integers(1), keepdims=1)
        return [branch.op("Add", count, branch.number(1))]

    def best(branch: Drawing) -> list[str]:
        found = [f"{branch.name}.{name}" for name in ("logprobs", "ids")]
        branch.op("TopK", "slice.logprobs", "num_best", outputs=found, axis=1)
        return found[::-1]

    def copy(name: str) -> Callable[[Drawing], list[str]]:
        return lambda branch: [branch.op("Identity", name)]

    def table(want: str, draw: Callable[[Drawing], list[str]], *dtypes: str) -> list[str]:
        return _either(body, want, draw, lambda branch: _nothing(branch, *dtypes), dtypes)

    return [
        *table("want_logits", copy("slice.logits"), "float32"),
        *table("want_logprobs", copy("slice.logprobs"), "float32"),
        *table("want_ranks", ranks, "int64"),
        *table("want_best", best, "int64", "float32"),
    ]


def _nothing(drawing: Drawing, *dtypes: str) -> list[str]:
    """Return a table of no rows for each type."""
    return [drawing.op("Identity", drawing.constant(np.zeros((0, 1), dtype), f"no.{dtype}")) for dtype in dtypes]


def _either(
    drawing: Drawing,
    condition: str,
    then: Callable[[Drawing], list[str]],
    otherwise: Callable[[Drawing], list[str]],
    dtypes: Sequence[str],
) -> list[str]:
    """Append an If whose branches make tables of these types."""
    branches = drawing.inside(f"{condition}.then"), drawing.inside(f"{condition}.else")
    for branch, draw in zip(branches, (then, otherwise), strict=True):
        for value, dtype in zip(draw(branch), dtypes, strict=True):
            branch.output(value, dtype, ["some", "width"])
    outputs = [f"{drawing.name}.{condition}.{number}" for number in range(len(dtypes))]
    drawing.op("If", condition, outputs=outputs, then_branch=branches[0], else_branch=branches[1])
    return outputs


def writer_graph(parts: Parts) -> bytes:
    """Draw the writer. Raises ValueError where the operator sets of the bundle's graphs do not fit."""
    main = Drawing("writer")
    for name in WANTS:
        main.input(name, "bool", [])
    _declare_settings(main, "batch")
    starts = [main.input(f"state.{name}", "float32", ["batch", *shape]) for name, shape in parts.state.items()]
    token = main.input("token", "int64", ["batch"])
    numbers = main.input("uniforms", "float32", ["steps", "batch", 1])
    redraws = main.input("redraws", "float32", ["steps", "batch", "redraws"])
    new = [f"next.{name}" for name in parts.state]
    outputs = [*(f"last.{name}" for name in (*parts.state, "token")), *new, "picked", "picked_logprob"]
    main.op("Scan", *starts, token, numbers, redraws, outputs=outputs, body=_step_body(main, parts), num_scan_inputs=2)
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
    body.input("step.redraws", "float32", ["batch", "redraws"])
    copy_nodes(parts.cell.model.graph, body.graph, "cell.", {})
    _draw_output_layer(body, parts, "write.", hidden="cell.hidden")
    choice = Choice("step.uniform", "step.redraws", *SETTINGS)
    picked = draw_choice(body, "write.logprobs", choice, parts.vocabulary_size)
    for name, shape in parts.state.items():
        body.output(f"cell.next_{name}", "float32", ["batch", *shape])
    body.output(body.op("Reshape", picked, body.integers(-1)), "int64", ["batch"])
    for name, shape in parts.state.items():
        body.output(body.op("Identity", f"cell.next_{name}"), "float32", ["batch", *shape])
    body.output(picked, "int64", ["batch", 1])
    body.output(body.op("GatherElements", "write.logprobs", picked, axis=1), "float32", ["batch", 1])
    return body


def _declare_settings(main: Drawing, rows: str) -> None:
    """Declare the inputs that say how the tokens of all rows are chosen."""
    for name, dtype, width in zip(SETTINGS, ("float32", "float32", "int64"), (1, NUM_LIMITS, 1), strict=True):
        main.input(name, dtype, [rows if name != "bars" else "barred", width])
    main.input("num_ranked", "int64", [1])
