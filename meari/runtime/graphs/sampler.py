"""Log-probabilities → the next token of each row, inside the graph.

Input: names of values in a graph. Output: nodes that choose a token. Must not know: bundles, sequences.

    weight   w_i = exp(logprob_i / temperature)
    min_p    a token that weighs less than that share of the likeliest one counts nothing
    pick     the first token at which the running sum of the weights passes uniform * total
    nucleus  with top_p: less than top_p of the total lies ahead of a token, of equals the lower ids. A pick outside
             becomes one of the tokens ahead of it, by the next number, until one is inside

Limits are float32, in which a tiny one is 0: they are bounded so that the likeliest token always stays. Weights are
equal to a bound, and sums to top_p of the total, if float32 cannot tell them apart safely.

The running sum goes over blocks of about sqrt(V) tokens first, then over the tokens of one block; a small vocabulary is
one block. A nucleus needs no order: it is sampled by rejection, as in FlashInfer's sorting-free kernels (Ye et al.
2025, arXiv 2501.01005), and only rows whose pick lies outside are looked at again. The top_k likeliest tokens are found
in the blocks with the top_k largest maxima; what is left of such a row is so little that it is sampled in order.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from meari.runtime.graphs.onnx_graph import FLOAT, INT64, Drawing
from meari.runtime.graphs.ranked import draw_ranked
from meari.runtime.graphs.rows import (
    Blocks,
    Choice,
    barred,
    column,
    either,
    in_units_of,
    not_underflown,
    reached,
)

__all__ = ["NUM_LIMITS", "WANTS", "draw_choice", "draw_likeliest"]

NUM_LIMITS: Final = 3  # min_p, top_p, top_k
WANTS: Final = (
    "want_samples", "want_likeliest", "want_ranked", "want_unranked", "want_tempered", "want_bars", "want_min_p",
    "want_nucleus",
)  # fmt: skip
TOKEN: Final = ("int64", 1)  # type and width of a choice


def draw_choice(drawing: Drawing, logprobs: str, choice: Choice, vocabulary_size: int) -> str:
    """Append the choice of a token for each row of log-probabilities, float32 [rows, V]; int64 [rows, 1]."""

    def likeliest(branch: Drawing) -> str:
        return draw_likeliest(branch, logprobs, choice.bars, vocabulary_size)

    def unranked(branch: Drawing) -> str:
        return _draw_sampled(branch, logprobs, choice, vocabulary_size)

    def nothing(branch: Drawing) -> str:
        return branch.op("Cast", choice.uniforms, to=INT64)

    def drawn(branch: Drawing) -> str:
        by_block = either(branch, "want_unranked", unranked, nothing, TOKEN)

        def ranked(inner: Drawing) -> str:
            top_k, most = column(inner, choice.limits, 2), inner.op("Cast", choice.num_ranked, to=FLOAT)
            in_order = draw_ranked(inner, logprobs, choice, vocabulary_size)
            return inner.op("Where", inner.op("LessOrEqual", top_k, most), in_order, by_block)

        picked = either(branch, "want_ranked", ranked, lambda inner: inner.op("Identity", by_block), TOKEN)

        def both(inner: Drawing) -> str:
            is_greedy = inner.op("Equal", choice.inverse_temperatures, inner.constant(np.array(0, np.float32)))
            return inner.op("Where", is_greedy, likeliest(inner), picked)

        return either(branch, "want_likeliest", both, lambda inner: inner.op("Identity", picked), TOKEN)

    return either(drawing, "want_samples", drawn, likeliest, TOKEN)


def _draw_sampled(drawing: Drawing, logprobs: str, choice: Choice, vocabulary_size: int) -> str:
    """Append the sampler, int64 [rows, 1]."""
    cut = Blocks(vocabulary_size)

    def only_tempered(branch: Drawing) -> str:
        return branch.op("Exp", branch.op("Mul", logprobs, choice.inverse_temperatures))

    def without_bars(branch: Drawing) -> str:
        left = barred(branch, logprobs, choice.bars)
        largest = branch.op("ReduceMax", left, branch.integers(1), keepdims=1)
        is_free, none = branch.op("Less", choice.bars, branch.number(0)), branch.constant(np.array(0, np.float32))
        shifted = branch.op("Sub", left, branch.op("Where", is_free, none, largest))  # else all might underflow
        return branch.op("Exp", branch.op("Mul", shifted, choice.inverse_temperatures))

    def tempered(branch: Drawing) -> str:
        return either(branch, "want_bars", without_bars, only_tempered, ("float32", "width"))

    def plain(branch: Drawing) -> str:
        return branch.op("Exp", logprobs)

    weights = either(drawing, "want_tempered", tempered, plain, ("float32", "width"))
    if cut.padding:
        weights = drawing.op("Pad", weights, drawing.integers(0, 0, 0, cut.padding))

    def bounded(branch: Drawing) -> str:
        largest = branch.op("ReduceMax", weights, branch.integers(1), keepdims=1)
        least = not_underflown(branch, branch.op("Mul", largest, column(branch, choice.limits, 0)))
        return _pick_in_nucleus(branch, in_units_of(branch, weights, least), choice, cut)

    def unbounded(branch: Drawing) -> str:
        return _pick_in_nucleus(branch, weights, choice, cut)

    return either(drawing, "want_min_p", bounded, unbounded, TOKEN)


def draw_likeliest(drawing: Drawing, logprobs: str, bars: str, vocabulary_size: int) -> str:
    """Append the choice of the likeliest token but the barred one, the lowest of equals; int64 [rows, 1]."""

    def without_bars(branch: Drawing) -> str:
        return _likeliest(branch, barred(branch, logprobs, bars), vocabulary_size)

    def free(branch: Drawing) -> str:
        return _likeliest(branch, logprobs, vocabulary_size)

    return either(drawing, "want_bars", without_bars, free, TOKEN)


def _likeliest(drawing: Drawing, logprobs: str, vocabulary_size: int) -> str:
    """Return the likeliest token, int64 [rows, 1].

    onnxruntime's ArgMax takes ten times as long as its ReduceMax, so it gets the maxima of blocks, then one block.
    """
    cut = Blocks(vocabulary_size)
    if cut.count == 1:
        return drawing.op("ArgMax", logprobs, axis=1, keepdims=1)
    if cut.padding:
        least = drawing.constant(np.array(np.finfo(np.float32).min, np.float32))
        logprobs = drawing.op("Pad", logprobs, drawing.integers(0, 0, 0, cut.padding), least)
    blocks = cut.of(drawing, logprobs)
    maxima = drawing.op("ReduceMax", blocks, drawing.integers(2), keepdims=0)
    block = drawing.op("ArgMax", maxima, axis=1, keepdims=1)
    place = drawing.op("ArgMax", drawing.op("GatherND", blocks, block, batch_dims=1), axis=1, keepdims=1)
    return drawing.op("Add", drawing.op("Mul", block, drawing.number(cut.size)), place)


def _pick_in_nucleus(drawing: Drawing, weights: str, choice: Choice, cut: Blocks) -> str:
    """Return a pick of the nucleus where a row has one, int64 [rows, 1]."""
    sums = cut.sums(drawing, weights)
    picked = sums.pick(drawing, choice.uniforms)

    def nucleus(branch: Drawing) -> str:
        limit = not_underflown(branch, branch.op("Mul", sums.total, reached(branch, choice)))
        own = not_underflown(branch, branch.op("GatherElements", weights, picked, axis=1))
        as_heavy = cut.sums(branch, in_units_of(branch, weights, own))
        others = branch.op("Sub", branch.op("Mul", as_heavy.total, own), own)  # of equals, some come after the pick
        doubtful = branch.op("Reshape", branch.op("GreaterOrEqual", others, limit), branch.integers(-1))
        rows = branch.op("Reshape", branch.op("NonZero", doubtful), branch.integers(-1))

        def redrawn(inner: Drawing) -> str:
            return _redraw(inner, rows, picked, weights, limit, choice.redraws, cut)

        is_any = branch.op("Greater", branch.op("Size", rows), branch.number(0))
        return either(branch, is_any, redrawn, lambda inner: inner.op("Identity", picked), TOKEN, "any")

    return either(drawing, "want_nucleus", nucleus, lambda branch: branch.op("Identity", picked), TOKEN)


def _redraw(drawing: Drawing, rows: str, picked: str, weights: str, limit: str, redraws: str, cut: Blocks) -> str:
    """Draw again until no pick lies outside its nucleus, int64 [rows, 1].

    rows   int64 [doubtful rows]
    limit  float32 [rows, 1], of the weights ahead of a token of the nucleus

    Each pass leaves only the tokens ahead of the one before. After the last number of `redraws`, which hardly a row in
    a million needs, a pick stays as it is.
    """
    body = drawing.inside("redraw")
    attempt = body.input(f"{body.name}.attempt", "int64", [])
    body.input(f"{body.name}.goes_on", "bool", [])
    left = body.input(f"{body.name}.rows", "int64", ["left"])
    before = body.input(f"{body.name}.picked", "int64", ["rows", 1])
    own_weights, token = (body.op("Gather", value, left, axis=0) for value in (weights, before))
    ahead = cut.sums(body, _ahead_of(body, own_weights, token, cut.count * cut.size))
    is_inside = body.op("Less", ahead.total, body.op("Gather", limit, left, axis=0))
    number = body.op("Reshape", attempt, body.integers(1))
    uniforms = body.op("Gather", body.op("Gather", redraws, left, axis=0), number, axis=1)
    again = ahead.pick(body, uniforms, may_be_empty=True)
    chosen = body.op("Where", is_inside, token, again)
    after = body.op("ScatterND", before, body.op("Unsqueeze", left, body.integers(1)), chosen)
    outside = body.op("Not", body.op("Reshape", is_inside, body.integers(-1)))
    still = body.op("Compress", left, outside, axis=0)
    body.output(body.op("Greater", body.op("Size", still), body.number(0)), "bool", [])
    body.output(still, "int64", ["still"])
    body.output(after, "int64", ["rows", 1])
    most = drawing.op("Gather", drawing.op("Shape", redraws), drawing.number(1), axis=0)
    goes_on = drawing.constant(np.array(True))  # noqa: FBT003 (the value itself)
    results = [f"{drawing.name}.{name}" for name in ("still", "redrawn")]
    drawing.op("Loop", most, goes_on, rows, picked, outputs=results, body=body)
    return results[1]


def _ahead_of(drawing: Drawing, weights: str, token: str, size: int) -> str:
    """Return the weights of the tokens ahead of one, heavier or as heavy with a lower id, [rows, size]; others as 0."""
    own = drawing.op("GatherElements", weights, token, axis=1)
    ids = drawing.constant(np.arange(size)[None], "ids")
    tied = drawing.op("And", drawing.op("Equal", weights, own), drawing.op("Less", ids, token))
    ahead = drawing.op("Or", drawing.op("Greater", weights, own), tied)
    return drawing.op("Mul", weights, drawing.op("Cast", ahead, to=FLOAT))
