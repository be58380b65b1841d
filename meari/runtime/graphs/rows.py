"""Rows of weights or log-probabilities in a graph: blocks of the vocabulary, running sums, and what both samplers need.

Input: names of values in a graph. Output: nodes. Must not know: how a token is chosen.

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

ALMOST_ONE: Final = 1 - 2.0**-23  # x times 1/x in float32 is more than that
REACHED: Final = 1 - 2.0**-19  # of a sum of weights: more than its rounding errors
MIN_WEIGHT: Final = 2.0**-100  # weights below count nothing beside limits; its reciprocal times a vocabulary is finite
SMALL: Final = 512  # a vocabulary whose running sum takes less time than that over blocks


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
    num_ranked: str = "num_ranked"


class Blocks:
    """The blocks of a row of the vocabulary: one if small, else about sqrt(V), unpadded if a divisor is near."""

    def __init__(self, vocabulary_size: int, *, times: int = 1) -> None:
        """times: as many blocks, each so much smaller."""
        if vocabulary_size <= SMALL:
            self.count, self.size, self.padding = 1, vocabulary_size, 0
            return
        root = max(2, round(vocabulary_size**0.5 / times))
        near = sorted(range(max(2, root // 3), 3 * root + 1), key=lambda size: abs(size - root))
        exact = (size for size in near if vocabulary_size % size == 0 and vocabulary_size // size > 1)
        self.size = next(exact, root)
        self.count = -(-vocabulary_size // self.size)
        self.padding = self.count * self.size - vocabulary_size

    def of(self, drawing: Drawing, flat: str) -> str:
        """Reshape [rows, V] to [rows, blocks, size]."""
        return drawing.op("Reshape", flat, drawing.integers(-1, self.count, self.size))

    def sums(self, drawing: Drawing, flat: str) -> Sums:
        """Draw the running sum of weights, float32 [rows, V]."""
        if self.count == 1:
            running = drawing.op("CumSum", flat, drawing.number(1))
            return Sums(self, flat, running, running, column(drawing, running, self.size - 1))
        blocks = self.of(drawing, flat)
        sums = drawing.op("ReduceSum", blocks, drawing.integers(2), keepdims=0)
        running = drawing.op("CumSum", sums, drawing.number(1))
        return Sums(self, blocks, sums, running, column(drawing, running, self.count - 1))


@dataclass(frozen=True)
class Sums:
    """Weights and their running sum: over blocks, or over tokens where there is one block.

    weights        [rows, blocks, size], or [rows, V]
    sums, running  [rows, blocks], or the latter [rows, V] twice
    total          [rows, 1]
    """

    cut: Blocks
    weights: str
    sums: str
    running: str
    total: str

    def pick(self, drawing: Drawing, uniforms: str, *, may_be_empty: bool = False) -> str:
        """Return the token at which the running sum passes uniform * total, int64 [rows, 1].

        may_be_empty  whether a row may have no weight; any token is returned there
        """
        threshold = drawing.op("Mul", self.total, uniforms)
        block = first_past(drawing, self.running, threshold)
        if self.cut.count == 1:
            return block
        if may_be_empty:
            block = drawing.op("Min", block, drawing.number(self.cut.count - 1))
        before = drawing.op("GatherElements", drawing.op("Sub", self.running, self.sums), block, axis=1)
        own = drawing.op("GatherND", self.weights, block, batch_dims=1)
        inside = drawing.op("CumSum", own, drawing.number(1))
        # Both sums of a block are rounded: what is left to pass may be a little below 0 or above what the block weighs.
        rest = drawing.op("Max", drawing.op("Sub", threshold, before), drawing.constant(np.array(0, np.float32)))
        last = drawing.op("Less", inside, column(drawing, inside, self.cut.size - 1))
        place = drawing.op("Min", first_past(drawing, inside, rest), count(drawing, last))
        return drawing.op("Add", drawing.op("Mul", block, drawing.number(self.cut.size)), place)


def either(
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


def reached(drawing: Drawing, choice: Choice) -> str:
    """Return top_p, less by what sums of weights may be off, [rows, 1]."""
    return drawing.op("Mul", column(drawing, choice.limits, 1), drawing.constant(np.array(REACHED, np.float32)))


def total(drawing: Drawing, running: str) -> str:
    """Return the last column, [rows, 1]."""
    return drawing.op("Gather", running, drawing.integers(-1), axis=1)


def column(drawing: Drawing, table: str, number: int) -> str:
    """Return one column of [rows, columns], as [rows, 1]."""
    return drawing.op("Gather", table, drawing.integers(number), axis=1)


def first_past(drawing: Drawing, running: str, threshold: str) -> str:
    """Return the first place at which `running` [rows, n] passes `threshold`, int64 [rows, 1]."""
    return count(drawing, drawing.op("LessOrEqual", running, threshold))


def count(drawing: Drawing, mask: str) -> str:
    return drawing.op("ReduceSum", drawing.op("Cast", mask, to=INT64), drawing.integers(1), keepdims=1)


def in_units_of(drawing: Drawing, weights: str, unit: str) -> str:
    """Return the weights divided by `unit` [rows, 1], 0 where they are below it."""
    times = drawing.op("Div", drawing.constant(np.array(1, np.float32)), unit)
    return drawing.op("ThresholdedRelu", drawing.op("Mul", weights, times), alpha=ALMOST_ONE)


def not_underflown(drawing: Drawing, weight: str) -> str:
    """Bound the weight from below, so that its reciprocal is finite."""
    return drawing.op("Max", weight, drawing.constant(np.array(MIN_WEIGHT, np.float32)))


def where(drawing: Drawing, weights: str, mask: str) -> str:
    """Return the weights, 0 where the mask is false."""
    return drawing.op("Mul", weights, drawing.op("Cast", mask, to=FLOAT))


def barred(drawing: Drawing, logprobs: str, bars: str) -> str:
    """Return the log-probabilities with the lowest float32 at each row's barred token, [rows, V]."""
    least = drawing.constant(np.array(np.finfo(np.float32).min, np.float32))
    place = drawing.op("Max", bars, drawing.number(0))
    own = drawing.op("GatherElements", logprobs, place, axis=1)
    left = drawing.op("Where", drawing.op("Less", bars, drawing.number(0)), own, least)
    return drawing.op("ScatterElements", logprobs, place, left, axis=1)
