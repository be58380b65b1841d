"""Log-probabilities → the next token of each row, inside the graph.

Input: names of values in a graph. Output: nodes that pick a token. Must not know: bundles, sequences.

    weight      w_i = exp(logprob_i / temperature)
    pick        the first token at which the running sum of the weights passes uniform * total; with min_p, a token that
                weighs less than that share of the likeliest one counts nothing
    mass_from   with top_p: the sum of the weights that are at least the picked token's
    mass        with top_p: the sum of the weights of the tokens that min_p leaves

Limits are float32, in which a tiny one is 0: they are bounded so that the likeliest token always stays.

A small vocabulary is sorted where there is any limit. In a large one the running sum goes over blocks of about sqrt(V)
tokens first, then over the tokens of one block. There a nucleus needs no sorting: a pick belongs to it if less than
top_p of the mass lies above it, and where it does not, the caller draws again (sampling by rejection, as in
FlashInfer's sorting-free kernels, Ye et al. 2025, arXiv 2501.01005).

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

__all__ = ["NUM_LIMITS", "Choice", "draw_likeliest", "draw_masses", "draw_sampler", "is_small"]

NUM_LIMITS: Final = 3  # min_p, top_p, top_k
ALMOST_ONE: Final = 1 - 2.0**-23  # x times 1/x in float32 is more than that
MIN_WEIGHT: Final = 2.0**-100  # weights below count nothing beside limits; its reciprocal times a vocabulary is finite
SMALL: Final = 512  # a vocabulary that is sorted faster than it is processed otherwise


def is_small(vocabulary_size: int) -> bool:
    """True if all limits are applied in the graph, by sorting."""
    return vocabulary_size <= SMALL


@dataclass(frozen=True)
class Choice:
    """Names of the values that decide on a row's token, see engine_graphs.py.

    uniforms, inverse_temperatures  float32 [rows, 1]
    limits                          float32 [rows, 3]
    bars                            int64 [rows, 1]
    """

    uniforms: str
    inverse_temperatures: str
    limits: str
    bars: str


class _Blocks:
    """The blocks of a row of the vocabulary: one if small, else about sqrt(V), unpadded if a divisor is near."""

    def __init__(self, vocabulary_size: int) -> None:
        if is_small(vocabulary_size):
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

    def sums(self, drawing: Drawing, blocks: str) -> str:
        """Return the sum of each block, [rows, blocks]."""
        return drawing.op("ReduceSum", blocks, drawing.integers(2), keepdims=0)

    def last(self, drawing: Drawing, running: str, count: int) -> str:
        """Return the end of a running sum, [rows, 1]."""
        return _column(drawing, running, count - 1)

    def mass(self, drawing: Drawing, flat: str) -> str:
        """Return the sum of each row, [rows, 1]."""
        if self.count == 1:
            return self.last(drawing, drawing.op("CumSum", flat, drawing.number(1)), self.size)
        running = drawing.op("CumSum", self.sums(drawing, self.of(drawing, flat)), drawing.number(1))
        return self.last(drawing, running, self.count)


def draw_sampler(drawing: Drawing, logprobs: str, choice: Choice, vocabulary_size: int) -> tuple[str, str]:
    """Append the sampler.

    logprobs  float32 [rows, V]
    returns   picked int64 [rows, 1], weights float32 [rows, V or, filled up with zeros, a little more]
    """
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

    def limited(branch: Drawing) -> str:
        if is_small(vocabulary_size):
            limited = _has_limits(branch, choice.limits, vocabulary_size)
            ranked = _pick_sorted(branch, logprobs, weights, choice, vocabulary_size)
            return branch.op("Where", limited, ranked, _pick(branch, weights, choice.uniforms, cut))
        unit = _min_p_unit(branch, weights, choice.limits)
        return _pick(branch, _in_units_of(branch, weights, unit), choice.uniforms, cut)

    def whole(branch: Drawing) -> str:
        return _pick(branch, weights, choice.uniforms, cut)

    return _either(drawing, "want_limits", limited, whole, ("int64", 1)), weights


def draw_likeliest(drawing: Drawing, logprobs: str, bars: str, vocabulary_size: int) -> str:
    """Append the choice of the likeliest token but the barred one, the lowest of equals; int64 [rows, 1]."""

    def barred(branch: Drawing) -> str:
        return _likeliest(branch, _barred(branch, logprobs, bars), vocabulary_size)

    def free(branch: Drawing) -> str:
        return _likeliest(branch, logprobs, vocabulary_size)

    return _either(drawing, "want_bars", barred, free, ("int64", 1))


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


def draw_masses(drawing: Drawing, weights: str, picked: str, limits: str, vocabulary_size: int) -> list[str]:
    """Append the masses that decide on a nucleus, mass_from and mass, float32 [rows, 1] each (undefined if unused)."""
    cut = _Blocks(vocabulary_size)

    def mass_of(branch: Drawing, unit: str) -> str:
        return branch.op("Mul", cut.mass(branch, _in_units_of(branch, weights, unit)), unit)

    def limited(branch: Drawing) -> str:
        return mass_of(branch, _min_p_unit(branch, weights, limits))

    def whole(branch: Drawing) -> str:
        return cut.mass(branch, weights)

    def masses(branch: Drawing) -> str:
        picked_weight = branch.op("GatherElements", weights, picked, axis=1)
        mass_from = mass_of(branch, _not_underflown(branch, picked_weight))
        return branch.op("Concat", mass_from, _either(branch, "want_limits", limited, whole, ("float32", 1)), axis=1)

    def nothing(branch: Drawing) -> str:
        return branch.op("Cast", branch.op("Concat", picked, picked, axis=1), to=FLOAT)

    both = _either(drawing, "want_masses", masses, nothing, ("float32", 2))
    return [_column(drawing, both, column) for column in (0, 1)]


def _barred(drawing: Drawing, logprobs: str, bars: str) -> str:
    """Return the log-probabilities with the lowest float32 at each row's barred token, [rows, V]."""
    least = drawing.constant(np.array(np.finfo(np.float32).min, np.float32))
    place = drawing.op("Max", bars, drawing.number(0))
    own = drawing.op("GatherElements", logprobs, place, axis=1)
    left = drawing.op("Where", drawing.op("Less", bars, drawing.number(0)), own, least)
    return drawing.op("ScatterElements", logprobs, place, left, axis=1)


def _either(
    drawing: Drawing,
    condition: str,
    then: Callable[[Drawing], str],
    otherwise: Callable[[Drawing], str],
    result: tuple[str, int | str],
) -> str:
    """Append an If; `result` is the type and the width of what comes out, [rows, width]."""
    branches = []
    for name, draw in (("then", then), ("else", otherwise)):
        branch = drawing.inside(f"{condition}.{name}")
        branch.output(draw(branch), result[0], ["rows", result[1]])
        branches.append(branch)
    return drawing.op("If", condition, then_branch=branches[0], else_branch=branches[1])


def _pick(drawing: Drawing, weights: str, uniforms: str, cut: _Blocks) -> str:
    """Return the token at which the running sum passes uniform * total, int64 [rows, 1]."""
    if cut.count == 1:
        running = drawing.op("CumSum", weights, drawing.number(1))
        threshold = drawing.op("Mul", cut.last(drawing, running, cut.size), uniforms)
        return _first_past(drawing, running, threshold)
    blocks = cut.of(drawing, weights)
    sums = cut.sums(drawing, blocks)
    running = drawing.op("CumSum", sums, drawing.number(1))
    threshold = drawing.op("Mul", cut.last(drawing, running, cut.count), uniforms)
    block = _first_past(drawing, running, threshold)
    before = drawing.op("GatherElements", drawing.op("Sub", running, sums), block, axis=1)
    inside = drawing.op("CumSum", drawing.op("GatherND", blocks, block, batch_dims=1), drawing.number(1))
    # Both sums of a block are rounded: what is left to pass may be a little below 0 or above what the block weighs.
    rest = drawing.op("Max", drawing.op("Sub", threshold, before), drawing.constant(np.array(0, np.float32)))
    last = drawing.op("Less", inside, cut.last(drawing, inside, cut.size))
    place = drawing.op("Min", _first_past(drawing, inside, rest), _count(drawing, last))
    return drawing.op("Add", drawing.op("Mul", block, drawing.number(cut.size)), place)


def _pick_sorted(drawing: Drawing, logprobs: str, weights: str, choice: Choice, vocabulary_size: int) -> str:
    """Draw a pick among the tokens that min_p, top_k and top_p leave, int64 [rows, 1].

    All tokens as likely as the k-th are kept; of ties at the edge of a nucleus the lowest ids are kept.
    """
    axis, last = drawing.number(1), vocabulary_size - 1
    ranked_logprobs, tokens = f"{drawing.name}.ranked", f"{drawing.name}.tokens"
    drawing.op("TopK", logprobs, drawing.integers(vocabulary_size), outputs=[ranked_logprobs, tokens], axis=1)
    ranked = drawing.op("GatherElements", weights, tokens, axis=1)
    kept = _where(drawing, ranked, _is_top_k(drawing, ranked_logprobs, choice.limits, vocabulary_size))
    least = drawing.op("Mul", _column(drawing, ranked, 0), _column(drawing, choice.limits, 0))
    kept = _where(drawing, kept, drawing.op("GreaterOrEqual", ranked, least))
    running = drawing.op("CumSum", kept, axis)
    limit = drawing.op("Mul", _column(drawing, running, last), _column(drawing, choice.limits, 1))
    before = drawing.op("Sub", running, kept)  # 0 before the first, which the limit therefore leaves
    kept = _where(drawing, kept, drawing.op("Less", before, _not_underflown(drawing, limit)))
    running = drawing.op("CumSum", kept, axis)
    threshold = drawing.op("Mul", _column(drawing, running, last), choice.uniforms)
    # A row with limits and a barred token is sampled elsewhere: here it may have nothing left.
    place = drawing.op("Min", _first_past(drawing, running, threshold), drawing.number(last))
    return drawing.op("GatherElements", tokens, place, axis=1)


def _is_top_k(drawing: Drawing, ranked: str, limits: str, vocabulary_size: int) -> str:
    """Return a mask of the ranked log-probabilities that are at least the k-th, bool [rows, V]."""
    everything = drawing.constant(np.array(vocabulary_size, np.float32))
    count = drawing.op("Cast", drawing.op("Min", _column(drawing, limits, 2), everything), to=INT64)
    kth = drawing.op("GatherElements", ranked, drawing.op("Sub", count, drawing.number(1)), axis=1)
    return drawing.op("GreaterOrEqual", ranked, kth)


def _has_limits(drawing: Drawing, limits: str, vocabulary_size: int) -> str:
    """Return a mask of the rows that have limits, bool [rows, 1]: the others get their token as if none had."""
    none, whole, everything = (drawing.constant(np.array(n, np.float32)) for n in (0, 1, vocabulary_size))
    min_p = drawing.op("Greater", _column(drawing, limits, 0), none)
    top_p = drawing.op("Less", _column(drawing, limits, 1), whole)
    top_k = drawing.op("Less", _column(drawing, limits, 2), everything)
    return drawing.op("Or", drawing.op("Or", min_p, top_p), top_k)


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


def _min_p_unit(drawing: Drawing, weights: str, limits: str) -> str:
    """Return the least weight that min_p leaves, as a unit, [rows, 1]."""
    largest = drawing.op("ReduceMax", weights, drawing.integers(1), keepdims=1)
    return _not_underflown(drawing, drawing.op("Mul", largest, _column(drawing, limits, 0)))


def _not_underflown(drawing: Drawing, weight: str) -> str:
    """Bound the weight from below, so that its reciprocal is finite."""
    return drawing.op("Max", weight, drawing.constant(np.array(MIN_WEIGHT, np.float32)))


def _where(drawing: Drawing, weights: str, mask: str) -> str:
    """Return the weights, 0 where the mask is false."""
    return drawing.op("Mul", weights, drawing.op("Cast", mask, to=FLOAT))
