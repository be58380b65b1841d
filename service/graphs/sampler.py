"""Log-probabilities → the next token of each row, inside the graph.

    weight      w_i = exp(logprob_i / temperature)
    pick        the first token at which the running sum of the weights passes uniform * total; with min_p, a token that
                weighs less than `least_share` of the likeliest one counts nothing here
    mass_from   with top_p: what all tokens weigh that weigh at least as much as the picked one
    mass        with top_p: what all tokens weigh

The running sum goes over blocks of about sqrt(V) tokens first, then over the tokens of one block. A nucleus needs no
sorting: a pick belongs to it if less than top_p of the mass lies above it, and where it does not, the caller draws
again (sampling by rejection, as in FlashInfer's sorting-free kernels, Ye et al. 2025, arXiv 2501.01005).

Every reduction runs over the inner of three axes or as a running sum, for which onnxruntime takes one kernel whatever
the number of rows: a row's pick does not depend on the rows beside it. What stands in an `If` costs a pass over all
rows and tokens (a `Where` would cost ten).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from service.graphs.drawing import Drawing
from service.graphs.onnx_format import FLOAT, INT64

__all__ = ["draw_sampler"]


class _Blocks:
    """How a row of the vocabulary is cut: without padding where a divisor lies near the square root."""

    def __init__(self, vocabulary_size: int) -> None:
        root = max(2, round(vocabulary_size**0.5))
        near = sorted(range(max(2, root // 3), 3 * root + 1), key=lambda size: abs(size - root))
        exact = (size for size in near if vocabulary_size % size == 0 and vocabulary_size // size > 1)
        self.size = next(exact, root)
        self.count = max(2, -(-vocabulary_size // self.size))
        self.padding = self.count * self.size - vocabulary_size

    def of(self, drawing: Drawing, flat: str) -> str:
        """[rows, V] as [rows, blocks, size]."""
        return drawing.op("Reshape", flat, drawing.integers(-1, self.count, self.size))

    def sums(self, drawing: Drawing, blocks: str) -> str:
        """[rows, blocks]."""
        return drawing.op("ReduceSum", blocks, drawing.integers(2), keepdims=0)

    def last(self, drawing: Drawing, running: str, count: int) -> str:
        """The end of a running sum, [rows, 1]."""
        return drawing.op("Gather", running, drawing.integers(count - 1), axis=1)

    def mass(self, drawing: Drawing, flat: str) -> str:
        """The sum of each row, [rows, 1]."""
        running = drawing.op("CumSum", self.sums(drawing, self.of(drawing, flat)), drawing.number(1))
        return self.last(drawing, running, self.count)


def draw_sampler(drawing: Drawing, logprobs: str, vocabulary_size: int) -> tuple[str, str, str]:
    """Append the sampler; it takes what is left to choose from the graph's own inputs (see engine_graph.py).

    logprobs  float32 [rows, V]
    returns   picked int64 [rows, 1]; mass_from and mass float32 [rows, 1]
    """
    cut = _Blocks(vocabulary_size)

    def tempered(branch: Drawing) -> list[str]:
        return [branch.op("Exp", branch.op("Mul", logprobs, "inverse_temperatures"))]

    (weights,) = _either(drawing, "want_tempered", tempered, lambda branch: [branch.op("Exp", logprobs)])
    if cut.padding:
        weights = drawing.op("Pad", weights, drawing.integers(0, 0, 0, cut.padding))

    def shared(branch: Drawing) -> list[str]:
        largest = branch.op("ReduceMax", weights, branch.integers(1), keepdims=1)
        return _pick(branch, _at_least(branch, weights, branch.op("Mul", largest, "least_shares")), cut)

    (picked,) = _either(drawing, "want_shares", shared, lambda branch: _pick(branch, weights, cut))

    def nucleus(branch: Drawing) -> list[str]:
        weight = branch.op("GatherElements", weights, picked, axis=1)
        return [cut.mass(branch, _at_least(branch, weights, weight)), cut.mass(branch, weights)]

    def unasked(branch: Drawing) -> list[str]:
        return [branch.op("Identity", "least_shares"), branch.op("Identity", "least_shares")]

    mass_from, mass = _either(drawing, "want_masses", nucleus, unasked)
    return picked, mass_from, mass


def _either(
    drawing: Drawing,
    condition: str,
    then: Callable[[Drawing], list[str]],
    otherwise: Callable[[Drawing], list[str]],
) -> list[str]:
    """Append an If whose branches give the same values, float32 but for a single picked token."""
    branches = []
    for name, draw in (("then", then), ("else", otherwise)):
        branch = drawing.inside(f"{condition}.{name}")
        results = draw(branch)
        for result in results:
            is_token = condition == "want_shares"
            width: int | str = "width" if condition == "want_tempered" else 1
            branch.output(result, "int64" if is_token else "float32", ["rows", width])
        branches.append(branch)
    outputs = [f"{drawing.name}.{condition}.{number}" for number in range(len(results))]
    drawing.op("If", condition, outputs=outputs, then_branch=branches[0], else_branch=branches[1])
    return outputs


def _pick(drawing: Drawing, weights: str, cut: _Blocks) -> list[str]:
    """The token at which the running sum passes uniform * total, int64 [rows, 1]."""
    zero = drawing.constant(np.array(0, np.float32))
    blocks = cut.of(drawing, weights)
    sums = cut.sums(drawing, blocks)
    running = drawing.op("CumSum", sums, drawing.number(1))
    total = cut.last(drawing, running, cut.count)
    threshold = drawing.op("Mul", total, "uniforms")
    block = _first_past(drawing, running, threshold, total)
    before = drawing.op("GatherElements", drawing.op("Sub", running, sums), block, axis=1)
    inside = drawing.op("CumSum", drawing.op("GatherND", blocks, block, batch_dims=1), drawing.number(1))
    rest = drawing.op("Max", drawing.op("Sub", threshold, before), zero)
    place = _first_past(drawing, inside, rest, cut.last(drawing, inside, cut.size))
    return [drawing.op("Add", drawing.op("Mul", block, drawing.number(cut.size)), place)]


def _first_past(drawing: Drawing, running: str, threshold: str, last: str) -> str:
    """Where `running` [rows, n] first passes `threshold`, at most where it reaches `last`; int64 [rows, 1]."""
    places = []
    for passed in (drawing.op("LessOrEqual", running, threshold), drawing.op("Less", running, last)):
        counted = drawing.op("Cast", passed, to=INT64)
        places.append(drawing.op("ReduceSum", counted, drawing.integers(1), keepdims=1))
    return drawing.op("Min", *places)


def _at_least(drawing: Drawing, weights: str, least: str) -> str:
    """The weights, 0 where they are below `least` [rows, 1]."""
    mask = drawing.op("Cast", drawing.op("GreaterOrEqual", weights, least), to=FLOAT)
    return drawing.op("Mul", weights, mask)
