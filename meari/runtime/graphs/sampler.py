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

Every reduction runs over the inner of three axes or as a running sum, for which onnxruntime takes one kernel whatever
the number of rows: a row's pick does not depend on the rows beside it. What stands in an `If` costs a pass over all
rows and tokens (a `Where` would cost ten).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np

from meari.runtime.graphs.onnx_graph import FLOAT, INT64, Drawing

__all__ = ["NUM_LIMITS", "WANTS", "Choice", "draw_choice", "draw_likeliest"]

NUM_LIMITS: Final = 3  # min_p, top_p, top_k
WANTS: Final = (
    "want_samples", "want_likeliest", "want_ranked", "want_unranked", "want_tempered", "want_bars", "want_min_p",
    "want_nucleus",
)  # fmt: skip
ALMOST_ONE: Final = 1 - 2.0**-23  # x times 1/x in float32 is more than that
REACHED: Final = 1 - 2.0**-19  # of a sum of weights: more than its rounding errors
MIN_WEIGHT: Final = 2.0**-100  # weights below count nothing beside limits; its reciprocal times a vocabulary is finite
SMALL: Final = 512  # a vocabulary whose running sum takes less time than that over blocks
TOKEN: Final = ("int64", 1)  # type and width of a choice


@dataclass(frozen=True)
class Choice:
    """Names of the values that decide on a row's token, see engine_graphs.py.

    uniforms              float32 [rows, 1]
    redraws               float32 [rows, redraws], where a row has a top_p
    inverse_temperatures  float32 [rows, 1]; 0: the likeliest token is taken
    limits                float32 [rows, 3]
    bars                  int64 [rows, 1]
    num_ranked            int64 [1]
    """

    uniforms: str
    redraws: str
    inverse_temperatures: str
    limits: str
    bars: str
    num_ranked: str


class _Blocks:
    """The blocks of a row of the vocabulary: one if small, else about sqrt(V), unpadded if a divisor is near."""

    def __init__(self, vocabulary_size: int) -> None:
        if vocabulary_size <= SMALL:
            self.count, self.size, self.padding = 1, vocabulary_size, 0
            return
        root = max(2, round(vocabulary_size**0.5))
        near = sorted(range(max(2, root // 3), 3 * root + 1), key=lambda size: abs(size - root))
        exact = (size for size in near if vocabulary_size % size == 0 and vocabulary_size // size > 1)
        self.size = next(exact, root)
        self.count = -(-vocabulary_size // self.size)
        self.padding = self.count * self.size - vocabulary_size

    def of(self, drawing: Drawing, flat: str) -> str:
        """Reshape [rows, V] to [rows, blocks, size]."""
        return drawing.op("Reshape", flat, drawing.integers(-1, self.count, self.size))

    def sums(self, drawing: Drawing, flat: str) -> _Sums:
        """Draw the running sum of weights, float32 [rows, V]."""
        if self.count == 1:
            running = drawing.op("CumSum", flat, drawing.number(1))
            return _Sums(self, flat, running, running, _column(drawing, running, self.size - 1))
        blocks = self.of(drawing, flat)
        sums = drawing.op("ReduceSum", blocks, drawing.integers(2), keepdims=0)
        running = drawing.op("CumSum", sums, drawing.number(1))
        return _Sums(self, blocks, sums, running, _column(drawing, running, self.count - 1))


@dataclass(frozen=True)
class _Sums:
    """Weights and their running sum: over blocks, or over tokens where there is one block.

    weights        [rows, blocks, size], or [rows, V]
    sums, running  [rows, blocks], or the latter [rows, V] twice
    total          [rows, 1]
    """

    cut: _Blocks
    weights: str
    sums: str
    running: str
    total: str

    def pick(self, drawing: Drawing, uniforms: str, *, may_be_empty: bool = False) -> str:
        """Return the token at which the running sum passes uniform * total, int64 [rows, 1].

        may_be_empty  whether a row may have no weight; any token is returned there
        """
        threshold = drawing.op("Mul", self.total, uniforms)
        block = _first_past(drawing, self.running, threshold)
        if self.cut.count == 1:
            return block
        if may_be_empty:
            block = drawing.op("Min", block, drawing.number(self.cut.count - 1))
        before = drawing.op("GatherElements", drawing.op("Sub", self.running, self.sums), block, axis=1)
        own = drawing.op("GatherND", self.weights, block, batch_dims=1)
        inside = drawing.op("CumSum", own, drawing.number(1))
        # Both sums of a block are rounded: what is left to pass may be a little below 0 or above what the block weighs.
        rest = drawing.op("Max", drawing.op("Sub", threshold, before), drawing.constant(np.array(0, np.float32)))
        last = drawing.op("Less", inside, _column(drawing, inside, self.cut.size - 1))
        place = drawing.op("Min", _first_past(drawing, inside, rest), _count(drawing, last))
        return drawing.op("Add", drawing.op("Mul", block, drawing.number(self.cut.size)), place)


def draw_choice(drawing: Drawing, logprobs: str, choice: Choice, vocabulary_size: int) -> str:
    """Append the choice of a token for each row of log-probabilities, float32 [rows, V]; int64 [rows, 1]."""

    def likeliest(branch: Drawing) -> str:
        return draw_likeliest(branch, logprobs, choice.bars, vocabulary_size)

    def unranked(branch: Drawing) -> str:
        return _draw_sampled(branch, logprobs, choice, vocabulary_size)

    def ranked(branch: Drawing) -> str:
        picked = _draw_ranked(branch, logprobs, choice, vocabulary_size)

        def both(inner: Drawing) -> str:
            top_k, most = _column(inner, choice.limits, 2), inner.op("Cast", choice.num_ranked, to=FLOAT)
            return inner.op("Where", inner.op("LessOrEqual", top_k, most), picked, unranked(inner))

        return _either(branch, "want_unranked", both, lambda inner: inner.op("Identity", picked), TOKEN)

    def drawn(branch: Drawing) -> str:
        picked = _either(branch, "want_ranked", ranked, unranked, TOKEN)

        def both(inner: Drawing) -> str:
            is_greedy = inner.op("Equal", choice.inverse_temperatures, inner.constant(np.array(0, np.float32)))
            return inner.op("Where", is_greedy, likeliest(inner), picked)

        return _either(branch, "want_likeliest", both, lambda inner: inner.op("Identity", picked), TOKEN)

    return _either(drawing, "want_samples", drawn, likeliest, TOKEN)


def _draw_sampled(drawing: Drawing, logprobs: str, choice: Choice, vocabulary_size: int) -> str:
    """Append the sampler, int64 [rows, 1]."""
    cut = _Blocks(vocabulary_size)

    def only_tempered(branch: Drawing) -> str:
        return branch.op("Exp", branch.op("Mul", logprobs, choice.inverse_temperatures))

    def barred(branch: Drawing) -> str:
        left = _barred(branch, logprobs, choice.bars)
        largest = branch.op("ReduceMax", left, branch.integers(1), keepdims=1)
        is_free, none = branch.op("Less", choice.bars, branch.number(0)), branch.constant(np.array(0, np.float32))
        shifted = branch.op("Sub", left, branch.op("Where", is_free, none, largest))  # else all might underflow
        return branch.op("Exp", branch.op("Mul", shifted, choice.inverse_temperatures))

    def tempered(branch: Drawing) -> str:
        return _either(branch, "want_bars", barred, only_tempered, ("float32", "width"))

    def plain(branch: Drawing) -> str:
        return branch.op("Exp", logprobs)

    weights = _either(drawing, "want_tempered", tempered, plain, ("float32", "width"))
    if cut.padding:
        weights = drawing.op("Pad", weights, drawing.integers(0, 0, 0, cut.padding))

    def bounded(branch: Drawing) -> str:
        largest = branch.op("ReduceMax", weights, branch.integers(1), keepdims=1)
        least = _not_underflown(branch, branch.op("Mul", largest, _column(branch, choice.limits, 0)))
        return _pick_in_nucleus(branch, _in_units_of(branch, weights, least), choice, cut)

    def unbounded(branch: Drawing) -> str:
        return _pick_in_nucleus(branch, weights, choice, cut)

    return _either(drawing, "want_min_p", bounded, unbounded, TOKEN)


def _draw_ranked(drawing: Drawing, logprobs: str, choice: Choice, vocabulary_size: int) -> str:
    """Append the sampler of the top_k likeliest tokens and those as likely as the last of them, int64 [rows, 1].

    min_p and top_p apply to them in order, of equals the lower ids first. A row without a top_k gets any token.
    """
    ids = _with_ties(drawing, logprobs, choice, vocabulary_size)
    found, axis = drawing.op("GatherElements", logprobs, ids, axis=1), drawing.number(1)
    scores = drawing.op("Sub", found, _column(drawing, found, 0))
    weights = drawing.op("Exp", drawing.op("Mul", scores, choice.inverse_temperatures))
    is_top_k = drawing.op("GreaterOrEqual", found, _last_of_top_k(drawing, found, choice))
    is_likely = drawing.op("GreaterOrEqual", weights, _column(drawing, choice.limits, 0))
    mask = drawing.op("And", is_top_k, is_likely)

    def barred(branch: Drawing) -> str:
        return branch.op("And", mask, branch.op("Not", branch.op("Equal", ids, choice.bars)))

    mask = _either(drawing, "want_bars", barred, lambda branch: branch.op("Identity", mask), ("bool", "kept"))
    kept = _where(drawing, weights, mask)
    running = drawing.op("CumSum", kept, axis)
    limit = drawing.op("Mul", _total(drawing, running), _reached(drawing, choice))
    before = drawing.op("Sub", running, kept)  # 0 before the first, which the limit therefore leaves
    kept = _where(drawing, kept, drawing.op("Less", before, _not_underflown(drawing, limit)))
    running = drawing.op("CumSum", kept, axis)
    place = _first_past(drawing, running, drawing.op("Mul", _total(drawing, running), choice.uniforms))
    return drawing.op("GatherElements", ids, place, axis=1)


def _with_ties(drawing: Drawing, logprobs: str, choice: Choice, vocabulary_size: int) -> str:
    """Return the `num_ranked` likeliest tokens and at least one more, as many as there are ties, int64 [rows, ranked].

    The likeliest come first, of equals the lower ids.
    """

    def ranked(branch: Drawing, count: str, width: str) -> str:
        def barred(inner: Drawing) -> str:
            return _rank(inner, _barred(inner, logprobs, choice.bars), count, vocabulary_size)

        def free(inner: Drawing) -> str:
            return _rank(inner, logprobs, count, vocabulary_size)

        return _either(branch, "want_bars", barred, free, ("int64", width))

    ids = ranked(drawing, drawing.op("Add", choice.num_ranked, drawing.integers(1)), "ranked")
    found = drawing.op("GatherElements", logprobs, ids, axis=1)
    least = _last_of_top_k(drawing, found, choice)
    ties = drawing.op("Cast", drawing.op("Equal", _total(drawing, found), least), to=INT64)
    is_any = drawing.op("Greater", drawing.op("ReduceMax", ties, keepdims=0), drawing.number(0))

    def more(branch: Drawing) -> str:
        as_likely = _count(branch, branch.op("GreaterOrEqual", logprobs, least))
        most = branch.op("ReduceMax", as_likely, branch.integers(0, 1), keepdims=0)
        return ranked(branch, branch.op("Reshape", most, branch.integers(1)), "tied")

    return _either(drawing, is_any, more, lambda branch: branch.op("Identity", ids), ("int64", "kept"), "any_tie")


def _last_of_top_k(drawing: Drawing, found: str, choice: Choice) -> str:
    """Return the log-probability of each row's top_k-th token, of those ranked; a row without a top_k has the last."""
    last = drawing.op("Cast", choice.num_ranked, to=FLOAT)
    place = drawing.op("Cast", drawing.op("Min", _column(drawing, choice.limits, 2), last), to=INT64)
    return drawing.op("GatherElements", found, drawing.op("Sub", place, drawing.number(1)), axis=1)


def _rank(drawing: Drawing, logprobs: str, count: str, vocabulary_size: int) -> str:
    """Return the `count` likeliest tokens, likeliest first, of equals the lower ids first, int64 [rows, count]."""
    cut = _Blocks(vocabulary_size)
    if cut.count == 1:
        return _places_of_largest(drawing, logprobs, count)
    if cut.padding:
        least = drawing.constant(np.array(np.finfo(np.float32).min, np.float32))
        logprobs = drawing.op("Pad", logprobs, drawing.integers(0, 0, 0, cut.padding), least)
    blocks = cut.of(drawing, logprobs)
    maxima = drawing.op("ReduceMax", blocks, drawing.integers(2), keepdims=0)
    enough = drawing.op("Min", count, drawing.integers(cut.count))
    largest = _places_of_largest(drawing, maxima, enough)
    ordered = f"{drawing.name}.ordered"  # so that of equal tokens the lower ids come first
    drawing.op("TopK", largest, enough, outputs=[ordered, f"{ordered}.places"], axis=1, largest=0)
    found = drawing.op("GatherND", blocks, drawing.op("Unsqueeze", ordered, drawing.integers(2)), batch_dims=1)
    places = _places_of_largest(drawing, drawing.op("Reshape", found, drawing.integers(0, -1)), count)
    size = drawing.number(cut.size)
    block = drawing.op("GatherElements", ordered, drawing.op("Div", places, size), axis=1)
    return drawing.op("Add", drawing.op("Mul", block, size), drawing.op("Mod", places, size))


def _places_of_largest(drawing: Drawing, values: str, count: str) -> str:
    """Return the places of the `count` largest values, largest first, of equals the lower first."""
    outputs = [f"{values}.{kind}" for kind in ("largest", "places")]
    drawing.op("TopK", values, count, outputs=outputs, axis=1)
    return outputs[1]


def draw_likeliest(drawing: Drawing, logprobs: str, bars: str, vocabulary_size: int) -> str:
    """Append the choice of the likeliest token but the barred one, the lowest of equals; int64 [rows, 1]."""

    def barred(branch: Drawing) -> str:
        return _likeliest(branch, _barred(branch, logprobs, bars), vocabulary_size)

    def free(branch: Drawing) -> str:
        return _likeliest(branch, logprobs, vocabulary_size)

    return _either(drawing, "want_bars", barred, free, TOKEN)


def _likeliest(drawing: Drawing, logprobs: str, vocabulary_size: int) -> str:
    """Return the likeliest token, int64 [rows, 1].

    onnxruntime's ArgMax takes ten times as long as its ReduceMax, so it gets the maxima of blocks, then one block.
    """
    cut = _Blocks(vocabulary_size)
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


def _barred(drawing: Drawing, logprobs: str, bars: str) -> str:
    """Return the log-probabilities with the lowest float32 at each row's barred token, [rows, V]."""
    least = drawing.constant(np.array(np.finfo(np.float32).min, np.float32))
    place = drawing.op("Max", bars, drawing.number(0))
    own = drawing.op("GatherElements", logprobs, place, axis=1)
    left = drawing.op("Where", drawing.op("Less", bars, drawing.number(0)), own, least)
    return drawing.op("ScatterElements", logprobs, place, left, axis=1)


def _pick_in_nucleus(drawing: Drawing, weights: str, choice: Choice, cut: _Blocks) -> str:
    """Return a pick of the nucleus where a row has one, int64 [rows, 1]."""
    sums = cut.sums(drawing, weights)
    picked = sums.pick(drawing, choice.uniforms)

    def nucleus(branch: Drawing) -> str:
        limit = _not_underflown(branch, branch.op("Mul", sums.total, _reached(branch, choice)))
        own = _not_underflown(branch, branch.op("GatherElements", weights, picked, axis=1))
        as_heavy = cut.sums(branch, _in_units_of(branch, weights, own))
        others = branch.op("Sub", branch.op("Mul", as_heavy.total, own), own)  # of equals, some come after the pick
        doubtful = branch.op("Reshape", branch.op("GreaterOrEqual", others, limit), branch.integers(-1))
        rows = branch.op("Reshape", branch.op("NonZero", doubtful), branch.integers(-1))

        def redrawn(inner: Drawing) -> str:
            return _redraw(inner, rows, picked, weights, limit, choice.redraws, cut)

        is_any = branch.op("Greater", branch.op("Size", rows), branch.number(0))
        return _either(branch, is_any, redrawn, lambda inner: inner.op("Identity", picked), TOKEN, "any")

    return _either(drawing, "want_nucleus", nucleus, lambda branch: branch.op("Identity", picked), TOKEN)


def _redraw(drawing: Drawing, rows: str, picked: str, weights: str, limit: str, redraws: str, cut: _Blocks) -> str:
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


def _either(
    drawing: Drawing,
    condition: str,
    then: Callable[[Drawing], str],
    otherwise: Callable[[Drawing], str],
    result: tuple[str, int | str],
    name: str = "",
) -> str:
    """Append an If; `result` is the type and the width of what comes out, [rows, width]. name: of the condition."""
    branches = []
    for case, draw in (("then", then), ("else", otherwise)):
        branch = drawing.inside(f"{name or condition}.{case}")
        branch.output(draw(branch), result[0], ["rows", result[1]])
        branches.append(branch)
    return drawing.op("If", condition, then_branch=branches[0], else_branch=branches[1])


def _reached(drawing: Drawing, choice: Choice) -> str:
    """Return top_p, less by what sums of weights may be off, [rows, 1]."""
    return drawing.op("Mul", _column(drawing, choice.limits, 1), drawing.constant(np.array(REACHED, np.float32)))


def _total(drawing: Drawing, running: str) -> str:
    """Return the last column, [rows, 1]."""
    return drawing.op("Gather", running, drawing.integers(-1), axis=1)


def _column(drawing: Drawing, table: str, number: int) -> str:
    """Return one column of [rows, columns], as [rows, 1]."""
    return drawing.op("Gather", table, drawing.integers(number), axis=1)


def _first_past(drawing: Drawing, running: str, threshold: str) -> str:
    """Return the first place at which `running` [rows, n] passes `threshold`, int64 [rows, 1]."""
    return _count(drawing, drawing.op("LessOrEqual", running, threshold))


def _count(drawing: Drawing, mask: str) -> str:
    return drawing.op("ReduceSum", drawing.op("Cast", mask, to=INT64), drawing.integers(1), keepdims=1)


def _in_units_of(drawing: Drawing, weights: str, unit: str) -> str:
    """Return the weights divided by `unit` [rows, 1], 0 where they are below it."""
    times = drawing.op("Div", drawing.constant(np.array(1, np.float32)), unit)
    return drawing.op("ThresholdedRelu", drawing.op("Mul", weights, times), alpha=ALMOST_ONE)


def _not_underflown(drawing: Drawing, weight: str) -> str:
    """Bound the weight from below, so that its reciprocal is finite."""
    return drawing.op("Max", weight, drawing.constant(np.array(MIN_WEIGHT, np.float32)))


def _where(drawing: Drawing, weights: str, mask: str) -> str:
    """Return the weights, 0 where the mask is false."""
    return drawing.op("Mul", weights, drawing.op("Cast", mask, to=FLOAT))
