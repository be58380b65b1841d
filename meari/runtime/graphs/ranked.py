"""The top_k likeliest tokens of each row, and a choice of one of them, inside the graph.

Input: names of values in a graph. Output: nodes that choose a token. Must not know: the other rows' samplers.

They are found in the blocks with the top_k largest maxima, among tokens no less likely than the least of these. So few
are left that they are sampled in order: min_p, then top_p, then the running sum.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from meari.runtime.graphs.onnx_graph import FLOAT, INT64, Drawing
from meari.runtime.graphs.rows import (
    Blocks,
    Choice,
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

MARGIN: Final = 2.0**-6  # nats below the bound, so that a token at the bound comes before those left out
NUM_RANKINGS: Final = 2  # at most: without and with all ties
TOKEN: Final = ("int64", 1)  # type and width of a number a row


def draw_ranked(drawing: Drawing, logprobs: str, choice: Choice, vocabulary_size: int) -> str:
    """Append the sampler of the top_k likeliest tokens and those as likely as the last of them, int64 [rows, 1].

    min_p and top_p apply to them in order, of equals the lower ids first. A row without a top_k gets any token.
    """
    ids, found = _with_ties(drawing, logprobs, choice, vocabulary_size)
    axis = drawing.number(1)
    scores = drawing.op("Sub", found, column(drawing, found, 0))
    weights = drawing.op("Exp", drawing.op("Mul", scores, choice.inverse_temperatures))
    is_top_k = drawing.op("GreaterOrEqual", found, _last_of_top_k(drawing, found, choice))
    is_likely = drawing.op("GreaterOrEqual", weights, column(drawing, choice.limits, 0))
    kept = where(drawing, weights, drawing.op("And", is_top_k, is_likely))
    running = drawing.op("CumSum", kept, axis)
    limit = drawing.op("Mul", total(drawing, running), reached(drawing, choice))
    before = drawing.op("Sub", running, kept)  # 0 before the first, which the limit therefore leaves
    kept = where(drawing, kept, drawing.op("Less", before, not_underflown(drawing, limit)))
    running = drawing.op("CumSum", kept, axis)
    place = first_past(drawing, running, drawing.op("Mul", total(drawing, running), choice.uniforms))
    return drawing.op("GatherElements", ids, place, axis=1)


def _with_ties(drawing: Drawing, logprobs: str, choice: Choice, vocabulary_size: int) -> tuple[str, str]:
    """Return the likeliest tokens, int64 [rows, ranked], and their log-probabilities.

    The likeliest come first, of equals the lower ids; the barred token comes last, with the lowest float32. There are
    two more than `num_ranked`, of which the first tells whether ties go on, and the other may be barred; with more
    ties, all of them.
    """
    body = drawing.inside("ranking")
    body.input(f"{body.name}.number", "int64", [])
    body.input(f"{body.name}.goes_on", "bool", [])
    most = body.input(f"{body.name}.most", "int64", [1])
    body.input(f"{body.name}.ids", "int64", ["rows", "before"])
    body.input(f"{body.name}.found", "float32", ["rows", "before"])
    ids, found = _without_bars(body, logprobs, _rank(body, logprobs, most, vocabulary_size), choice.bars)
    least = _last_of_top_k(body, found, choice)
    next_one = body.op("Gather", found, choice.num_ranked, axis=1)
    ties = body.op("Cast", body.op("Equal", next_one, least), to=INT64)
    is_any = body.op("Greater", body.op("ReduceMax", ties, keepdims=0), body.number(0))

    def with_all_ties(branch: Drawing) -> str:
        as_likely = count(branch, branch.op("GreaterOrEqual", logprobs, least))
        return branch.op("ReduceMax", as_likely, branch.integers(0), keepdims=1)

    def as_many(branch: Drawing) -> str:
        return branch.op("Unsqueeze", most, branch.integers(0))

    more = body.op("Reshape", either(body, is_any, with_all_ties, as_many, TOKEN, "any_tie"), body.integers(1))
    body.output(body.op("Less", most, more), "bool", [])
    body.output(more, "int64", [1])
    body.output(ids, "int64", ["rows", "ranked"])
    body.output(found, "float32", ["rows", "ranked"])
    two_more = drawing.op("Add", choice.num_ranked, drawing.integers(2))
    enough = drawing.op("Min", two_more, drawing.integers(vocabulary_size))
    nothing = [drawing.constant(np.zeros((1, 0), dtype), f"ranking.{dtype}") for dtype in ("int64", "float32")]
    results = [f"{drawing.name}.{name}" for name in ("most", "ids", "found")]
    goes_on = drawing.constant(np.array(True))  # noqa: FBT003 (the value itself)
    drawing.op("Loop", drawing.number(NUM_RANKINGS), goes_on, enough, *nothing, outputs=results, body=body)
    return results[1], results[2]


def _without_bars(drawing: Drawing, logprobs: str, ids: str, bars: str) -> tuple[str, str]:
    """Move each row's barred token, if it is among the ranked ones, behind the others."""
    least = drawing.constant(np.array(np.finfo(np.float32).min, np.float32))
    own = drawing.op("GatherElements", logprobs, ids, axis=1)
    own = drawing.op("Where", drawing.op("Equal", ids, bars), least, own)
    all_of_them = drawing.op("Shape", own, start=1)
    found, places = (f"{drawing.name}.{name}" for name in ("in_order", "places"))
    drawing.op("TopK", own, all_of_them, outputs=[found, places], axis=1)
    return drawing.op("GatherElements", ids, places, axis=1), found


def _last_of_top_k(drawing: Drawing, found: str, choice: Choice) -> str:
    """Return the log-probability of each row's top_k-th token, of those ranked; a row without a top_k has the last."""
    last = drawing.op("Cast", choice.num_ranked, to=FLOAT)
    place = drawing.op("Cast", drawing.op("Min", column(drawing, choice.limits, 2), last), to=INT64)
    return drawing.op("GatherElements", found, drawing.op("Sub", place, drawing.number(1)), axis=1)


def _rank(drawing: Drawing, logprobs: str, most: str, vocabulary_size: int) -> str:
    """Return the `most` likeliest tokens, likeliest first, of equals the lower ids first, int64 [rows, most]."""
    cut = Blocks(vocabulary_size, times=2)
    if cut.count == 1:
        return _places_of_largest(drawing, logprobs, most)
    if cut.padding:
        least = drawing.constant(np.array(np.finfo(np.float32).min, np.float32))
        logprobs = drawing.op("Pad", logprobs, drawing.integers(0, 0, 0, cut.padding), least)
    blocks = cut.of(drawing, logprobs)
    maxima = drawing.op("ReduceMax", blocks, drawing.integers(2), keepdims=0)
    enough = drawing.op("Min", most, drawing.integers(cut.count))
    largest = _places_of_largest(drawing, maxima, enough, in_order=False)
    ordered = f"{drawing.name}.ordered"  # so that of equal tokens the lower ids come first
    drawing.op("TopK", largest, enough, outputs=[ordered, f"{ordered}.places"], axis=1, largest=0)
    found = drawing.op("GatherND", blocks, drawing.op("Unsqueeze", ordered, drawing.integers(2)), batch_dims=1)
    # At least `most` tokens are as likely as the least likely of the maxima: the order of others is left out, which is
    # most of what TopK takes. If there are not so many blocks, all tokens are there.
    least_maximum = drawing.op("ReduceMin", f"{maxima}.largest", drawing.integers(1), keepdims=1)
    bound = drawing.op("Sub", least_maximum, drawing.constant(np.array(MARGIN, np.float32)))
    is_short = drawing.op("Greater", most, drawing.integers(cut.count))
    bound = drawing.op("Where", is_short, drawing.constant(np.array(np.finfo(np.float32).min, np.float32)), bound)
    found = drawing.op("Max", drawing.op("Reshape", found, drawing.integers(0, -1)), bound)
    places = _places_of_largest(drawing, found, most)
    size = drawing.number(cut.size)
    block = drawing.op("GatherElements", ordered, drawing.op("Div", places, size), axis=1)
    return drawing.op("Add", drawing.op("Mul", block, size), drawing.op("Mod", places, size))


def _places_of_largest(drawing: Drawing, values: str, most: str, *, in_order: bool = True) -> str:
    """Return the places of the `most` largest values, largest first unless in no order, of equals the lower first."""
    outputs = [f"{values}.{kind}" for kind in ("largest", "places")]
    drawing.op("TopK", values, most, outputs=outputs, axis=1, sorted=int(in_order))
    return outputs[1]
