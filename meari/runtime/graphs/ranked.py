"""The top_k likeliest tokens of each row, and a choice of one of them, inside the graph.

Input: names of values in a graph. Output: nodes that choose a token. Must not know: the other rows' samplers.

They are found in the blocks with the top_k largest maxima. So few are left that they are sampled in order: min_p, then
top_p, then the running sum. One more than wanted is ranked, which tells whether ties go on; only then are there more.
"""

from __future__ import annotations

import numpy as np

from meari.runtime.graphs.onnx_graph import FLOAT, INT64, Drawing
from meari.runtime.graphs.rows import (
    Blocks,
    Choice,
    barred,
    column,
    count,
    either,
    first_past,
    not_underflown,
    reached,
    total,
    where,
)

__all__ = ["draw_ranked"]


def draw_ranked(drawing: Drawing, logprobs: str, choice: Choice, vocabulary_size: int) -> str:
    """Append the sampler of the top_k likeliest tokens and those as likely as the last of them, int64 [rows, 1].

    min_p and top_p apply to them in order, of equals the lower ids first. A row without a top_k gets any token.
    """
    ids = _with_ties(drawing, logprobs, choice, vocabulary_size)
    found, axis = drawing.op("GatherElements", logprobs, ids, axis=1), drawing.number(1)
    scores = drawing.op("Sub", found, column(drawing, found, 0))
    weights = drawing.op("Exp", drawing.op("Mul", scores, choice.inverse_temperatures))
    is_top_k = drawing.op("GreaterOrEqual", found, _last_of_top_k(drawing, found, choice))
    is_likely = drawing.op("GreaterOrEqual", weights, column(drawing, choice.limits, 0))
    mask = drawing.op("And", is_top_k, is_likely)

    def without_bars(branch: Drawing) -> str:
        return branch.op("And", mask, branch.op("Not", branch.op("Equal", ids, choice.bars)))

    mask = either(drawing, "want_bars", without_bars, lambda branch: branch.op("Identity", mask), ("bool", "kept"))
    kept = where(drawing, weights, mask)
    running = drawing.op("CumSum", kept, axis)
    limit = drawing.op("Mul", total(drawing, running), reached(drawing, choice))
    before = drawing.op("Sub", running, kept)  # 0 before the first, which the limit therefore leaves
    kept = where(drawing, kept, drawing.op("Less", before, not_underflown(drawing, limit)))
    running = drawing.op("CumSum", kept, axis)
    place = first_past(drawing, running, drawing.op("Mul", total(drawing, running), choice.uniforms))
    return drawing.op("GatherElements", ids, place, axis=1)


def _with_ties(drawing: Drawing, logprobs: str, choice: Choice, vocabulary_size: int) -> str:
    """Return the `num_ranked` likeliest tokens and at least one more, as many as there are ties, int64 [rows, ranked].

    The likeliest come first, of equals the lower ids.
    """

    def ranked(branch: Drawing, most: str, width: str) -> str:
        def without_bars(inner: Drawing) -> str:
            return _rank(inner, barred(inner, logprobs, choice.bars), most, vocabulary_size)

        def free(inner: Drawing) -> str:
            return _rank(inner, logprobs, most, vocabulary_size)

        return either(branch, "want_bars", without_bars, free, ("int64", width))

    ids = ranked(drawing, drawing.op("Add", choice.num_ranked, drawing.integers(1)), "ranked")
    found = drawing.op("GatherElements", logprobs, ids, axis=1)
    least = _last_of_top_k(drawing, found, choice)
    ties = drawing.op("Cast", drawing.op("Equal", total(drawing, found), least), to=INT64)
    is_any = drawing.op("Greater", drawing.op("ReduceMax", ties, keepdims=0), drawing.number(0))

    def more(branch: Drawing) -> str:
        as_likely = count(branch, branch.op("GreaterOrEqual", logprobs, least))
        largest = branch.op("ReduceMax", as_likely, branch.integers(0, 1), keepdims=0)
        return ranked(branch, branch.op("Reshape", largest, branch.integers(1)), "tied")

    return either(drawing, is_any, more, lambda branch: branch.op("Identity", ids), ("int64", "kept"), "any_tie")


def _last_of_top_k(drawing: Drawing, found: str, choice: Choice) -> str:
    """Return the log-probability of each row's top_k-th token, of those ranked; a row without a top_k has the last."""
    last = drawing.op("Cast", choice.num_ranked, to=FLOAT)
    place = drawing.op("Cast", drawing.op("Min", column(drawing, choice.limits, 2), last), to=INT64)
    return drawing.op("GatherElements", found, drawing.op("Sub", place, drawing.number(1)), axis=1)


def _rank(drawing: Drawing, logprobs: str, most: str, vocabulary_size: int) -> str:
    """Return the `most` likeliest tokens, likeliest first, of equals the lower ids first, int64 [rows, most]."""
    cut = Blocks(vocabulary_size)
    if cut.count == 1:
        return _places_of_largest(drawing, logprobs, most)
    if cut.padding:
        least = drawing.constant(np.array(np.finfo(np.float32).min, np.float32))
        logprobs = drawing.op("Pad", logprobs, drawing.integers(0, 0, 0, cut.padding), least)
    blocks = cut.of(drawing, logprobs)
    maxima = drawing.op("ReduceMax", blocks, drawing.integers(2), keepdims=0)
    enough = drawing.op("Min", most, drawing.integers(cut.count))
    largest = _places_of_largest(drawing, maxima, enough)
    ordered = f"{drawing.name}.ordered"  # so that of equal tokens the lower ids come first
    drawing.op("TopK", largest, enough, outputs=[ordered, f"{ordered}.places"], axis=1, largest=0)
    found = drawing.op("GatherND", blocks, drawing.op("Unsqueeze", ordered, drawing.integers(2)), batch_dims=1)
    places = _places_of_largest(drawing, drawing.op("Reshape", found, drawing.integers(0, -1)), most)
    size = drawing.number(cut.size)
    block = drawing.op("GatherElements", ordered, drawing.op("Div", places, size), axis=1)
    return drawing.op("Add", drawing.op("Mul", block, size), drawing.op("Mod", places, size))


def _places_of_largest(drawing: Drawing, values: str, most: str) -> str:
    """Return the places of the `most` largest values, largest first, of equals the lower first."""
    outputs = [f"{values}.{kind}" for kind in ("largest", "places")]
    drawing.op("TopK", values, most, outputs=outputs, axis=1)
    return outputs[1]
