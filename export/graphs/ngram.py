"""An n-gram model in the graphs of a bundle.

Input: a graph under construction, `NgramWeights`. Output: values of the graph. Must not know: how n-grams are counted.

The cell keeps the last tokens in its state, as numbers, and appends them to the hidden vector; the output layer looks
up what follows them. So the mixture is a part of the bundle, and whatever runs a bundle runs it: its state travels,
and rows do not depend on one another.

A context is found by hashing without loss: it lies in bucket `key mod B`, and `key div B` tells those of a bucket
apart. The successors of all rows are one list, made from their numbers by NonZero.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from meari.bundle_format.names import NGRAM_STATE
from meari.export.graph import GraphBuilder
from meari.export.ngram import Ids, NgramLevel, NgramWeights

BUCKET_SIZE = 4  # contexts on average
MAX_UINT16 = 0xFFFF
MAX_INT32 = 2**31 - 1


def remember_tokens(graph: GraphBuilder, token: ir.Value, hidden: ir.Value, num_tokens: int) -> ir.Value:
    """Write the state of the last tokens, ids + 1 with the newest first, and return the hidden vector followed by it.

    token       int64 [batch]
    hidden      float32 [batch, H]
    num_tokens  how many are remembered
    """
    recent = graph.input(NGRAM_STATE, ir.DataType.FLOAT, [num_tokens])
    newest = graph.op("Unsqueeze", graph.op("Cast", token, to=int(ir.DataType.FLOAT)), graph.integers(1))
    newest = graph.op("Add", newest, graph.shared_constant("ngram.one", np.ones(1, np.float32)))
    kept = graph.op("Slice", recent, graph.integers(0), graph.integers(num_tokens - 1), graph.integers(1))
    remembered = graph.op("Concat", newest, kept, axis=1)
    graph.output(f"next_{NGRAM_STATE}", remembered, [num_tokens])
    return graph.op("Concat", hidden, remembered, axis=1)


def mixed(graph: GraphBuilder, weights: NgramWeights, recent: ir.Value, logprobs: ir.Value) -> ir.Value:
    """Write the mixture of two distributions.

    recent    float32 [batch, order - 1], as `remember_tokens` writes it
    logprobs  float32 [batch, V], of the network
    returns   float32 [batch, V]
    """
    ids = graph.op("Cast", recent, to=int(ir.DataType.INT64))
    total = graph.constant("ngram.unigram", weights.unigram[None])
    key: ir.Value | None = None
    found: ir.Value | None = None
    for length, level in enumerate(weights.levels):
        place = graph.op("Gather", ids, graph.integers(length), axis=1)  # [batch, 1]
        digit = graph.op("Mul", place, graph.integers((weights.vocabulary_size + 1) ** length))
        key = digit if key is None else graph.op("Add", key, digit)
        drawing = _Level(graph, f"ngram{length + 2}", level)
        index = drawing.find(key)
        total = drawing.interpolated(index, total)
        is_found = graph.op("Cast", graph.op("Less", index, drawing.absent), to=int(ir.DataType.INT64))
        found = is_found if found is None else graph.op("Add", found, is_found)
    assert found is not None
    share = graph.op("Gather", graph.constant("ngram.shares", weights.shares), found)  # [batch, 1]
    rest = graph.op("Sub", graph.shared_constant("ngram.one", np.ones(1, np.float32)), share)
    of_network = graph.op("Mul", graph.op("Exp", logprobs), rest)
    return _logarithm(graph, graph.op("Add", of_network, graph.op("Mul", total, share)))


def _logarithm(graph: GraphBuilder, numbers: ir.Value) -> ir.Value:
    """Write logarithms, of sums of one number each: Log itself takes another function for the numbers that do not fill
    a vector, whose last bit differs, so that a row's bits would depend on its place.
    """
    return graph.op("ReduceLogSum", graph.op("Unsqueeze", numbers, graph.integers(2)), graph.integers(2), keepdims=0)


@dataclass(frozen=True)
class _Buckets:
    """Contexts in the order of their buckets.

    order      int64 [C], their indices
    first      int64 [B + 1]: bucket b has order[first[b]:first[b + 1]]
    quotients  int64 [C], of their keys by B
    largest    number of contexts in the largest bucket
    """

    order: Ids
    first: Ids
    quotients: Ids
    largest: int

    @property
    def number(self) -> int:
        return len(self.first) - 1


def _in_buckets(contexts: Ids) -> _Buckets:
    number = max(1, len(contexts) // BUCKET_SIZE) | 1
    buckets = contexts % number
    order = np.argsort(buckets, kind="stable")
    sizes = np.bincount(buckets, minlength=number)
    return _Buckets(order, np.concatenate([[0], np.cumsum(sizes)]), contexts[order] // number, int(sizes.max()))


class _Level:
    """n-grams of one length in the graph."""

    def __init__(self, graph: GraphBuilder, name: str, level: NgramLevel) -> None:
        self._graph, self._name = graph, name
        self._buckets = _in_buckets(level.contexts)
        order, numbers = self._buckets.order, np.diff(level.first)
        successors = _concatenated(level.first[order], numbers[order])
        starts = np.concatenate([[0], np.cumsum(numbers[order])])
        # One more row for a context that is absent: nothing follows it, and everything is left to the shorter one.
        self._first = graph.constant(f"{name}.first", _smallest(np.append(starts, starts[-1])))
        self._scale = graph.constant(f"{name}.scale", np.append(level.scale[order], np.float32(1)))
        self._backoff = graph.constant(f"{name}.backoff", np.append(level.backoff[order], np.float32(1)))
        self._tokens = graph.constant(f"{name}.tokens", _smallest(level.tokens[successors]))
        self._counts = graph.constant(f"{name}.counts", level.counts[successors])
        self.absent = graph.integers(len(level.contexts))

    def find(self, key: ir.Value) -> ir.Value:
        """Write the look-up of contexts, int64 [batch, 1]; `absent` stands for none."""
        graph, buckets = self._graph, self._buckets
        quotient = graph.op("Div", key, graph.integers(buckets.number))
        bucket = graph.op("Sub", key, graph.op("Mul", quotient, graph.integers(buckets.number)))
        first = graph.constant(f"{self._name}.buckets", _smallest(buckets.first))
        start = self._integers(first, bucket)
        end = self._integers(first, graph.op("Add", bucket, graph.integers(1)))
        lanes = graph.shared_constant(f"ngram.lanes{buckets.largest}", np.arange(buckets.largest, dtype=np.int64)[None])
        place = graph.op("Min", graph.op("Add", start, lanes), graph.integers(len(buckets.quotients) - 1))
        quotients = self._integers(graph.constant(f"{self._name}.quotients", _smallest(buckets.quotients)), place)
        is_it = graph.op("And", graph.op("Equal", quotients, quotient), graph.op("Less", place, end))
        found = graph.op("Where", is_it, place, self.absent)
        return graph.op("ReduceMin", found, graph.integers(1), keepdims=1)

    def interpolated(self, index: ir.Value, shorter: ir.Value) -> ir.Value:
        """Write p of all tokens, float32 [batch, V], from that of the shorter contexts, [batch or 1, V].

        index  int64 [batch, 1]
        """
        graph = self._graph
        start = self._integers(self._first, index)
        number = graph.op("Sub", self._integers(self._first, graph.op("Add", index, graph.integers(1))), start)
        longest = graph.op(
            "ReduceMax",
            graph.op("Concat", number, graph.shared_constant("ngram.nothing", np.zeros((1, 1), np.int64)), axis=0),
            keepdims=0,
        )
        lanes = graph.op("Range", self._scalar(0), longest, self._scalar(1))
        row, column = self._pair(graph.op("NonZero", graph.op("Less", lanes, number)))
        place = graph.op("Add", graph.op("Gather", graph.op("Reshape", start, graph.integers(-1)), row), column)
        counts = graph.op("Cast", graph.op("Gather", self._counts, place), to=int(ir.DataType.FLOAT))
        token = self._integers(self._tokens, place)
        where = graph.op("Concat", *(graph.op("Unsqueeze", each, graph.integers(1)) for each in (row, token)), axis=1)
        # As counts of this level, what the shorter contexts give, so that the scale is the last factor of all of them.
        left = graph.op("Mul", shorter, graph.op("Gather", self._backoff, index))
        return graph.op(
            "Mul", graph.op("ScatterND", left, where, counts, reduction="add"), graph.op("Gather", self._scale, index)
        )

    def _pair(self, indices: ir.Value) -> Sequence[ir.Value]:
        return [self._graph.op("Gather", indices, self._scalar(axis), axis=0) for axis in (0, 1)]

    def _scalar(self, value: int) -> ir.Value:
        return self._graph.shared_constant(f"ngram.int{value}", np.array(value, np.int64))

    def _integers(self, table: ir.Value, index: ir.Value) -> ir.Value:
        """Write the look-up of integers of any width."""
        return self._graph.op("Cast", self._graph.op("Gather", table, index), to=int(ir.DataType.INT64))


def _concatenated(first: Ids, numbers: Ids) -> Ids:
    """Return first[0], first[0] + 1, …, first[1], …: numbers[c] indices for each c."""
    ends = np.cumsum(numbers)
    total = int(ends[-1]) if len(ends) else 0
    return np.repeat(first - (ends - numbers), numbers) + np.arange(total)


def _smallest(values: Ids) -> np.ndarray[tuple[int, ...], np.dtype[np.integer]]:
    """Return integers of at least zero in the narrowest type that the graphs use."""
    largest = int(values.max(initial=0))
    width = np.uint16 if largest <= MAX_UINT16 else np.int32 if largest <= MAX_INT32 else np.int64
    return values.astype(width)
