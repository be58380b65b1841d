"""An n-gram model in the graphs of a bundle.

Input: a graph under construction, `NgramWeights`. Output: values of the graph. Must not know: how n-grams are counted.

The cell keeps the last tokens in its state, as numbers, and appends them to the hidden vector; the output layer looks
up what follows them. So the mixture is a part of the bundle, and whatever runs a bundle runs it: its state travels,
and rows do not depend on one another.

The contexts of all lengths are one table, hashed without loss: a context lies in bucket `key mod B`, and `key div B`
tells those of a bucket apart. Interpolation is linear, so p of a token is a sum over the lengths at which it follows

    p(w | h) = unigram(w) left_1 … left_K + sum_k count_k(w) scale_k left_(k+1) … left_K

and the distribution takes one pass for the network and the unigrams; then each successor adds its term. A context's
successors are whole blocks, each of which is one look-up, and single ones. Those of all rows are one list, made by
NonZero. In a small vocabulary the pairs are a table of all distributions, in the place of the unigrams, and few tokens
follow longer contexts: these are short blocks, filled up with successors that add nothing, so there is one list less.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from meari.bundle_format.names import NGRAM_STATE
from meari.export.graph import GraphBuilder
from meari.export.ngram import Ids, NgramLevel, NgramWeights

BUCKET_SIZE = 4  # contexts on average
BLOCK_SIZES = (16, 1)  # successors
SMALL_BLOCK_SIZES = (2,)
SMALL_VOCABULARY = 256
WIDTHS = (np.uint8, np.uint16, np.int32, np.int64)  # of integers in tables
VECTOR = 16  # numbers in the largest vector of a CPU
MAX_PIECE = 8192  # numbers, of which onnxruntime makes one task

Array = np.ndarray[tuple[int, ...], np.dtype[np.generic]]


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


def mixed(graph: GraphBuilder, weights: NgramWeights, recent: ir.Value, probabilities: ir.Value) -> ir.Value:
    """Write the logarithms of a mixture of two distributions.

    recent         float32 [batch, order - 1], as `remember_tokens` writes it
    probabilities  float32 [batch, V], of the network
    returns        float32 [batch, V]
    """
    return _Mixture(graph, weights).drawn(graph.op("Cast", recent, to=int(ir.DataType.INT64)), probabilities)


@dataclass(frozen=True)
class _Successors:
    """What follows the contexts, in blocks of one size: of context c, blocks first[c] … first[c + 1] - 1.

    first   [C + 2]
    tokens  [blocks, size]
    counts  float16 [blocks, size]
    """

    first: Ids
    tokens: Ids
    counts: Array


@dataclass(frozen=True)
class _Tables:
    """The contexts of all lengths in the order of their buckets, C in all, and after them one for a context that is
    absent: nothing follows it, and everything is left to the shorter one.

    shortest    float32 [1, V], the unigrams; in a small vocabulary [V + 1, V], what follows the newest token
    lengths     [1, 1] or [V + 1, 1], of the contexts to which these distributions belong
    buckets     [B, 2]: those of bucket b are buckets[b, 0] … buckets[b, 1] - 1
    quotients   [C], of their keys by B
    scale       float32 [C + 1], the probability of one count
    left        float32 [C + 1], what is left for the shorter context
    successors  in blocks of each size, the largest first
    """

    shortest: Array
    lengths: Ids
    buckets: Ids
    quotients: Ids
    scale: Array
    left: Array
    successors: Sequence[_Successors]

    @property
    def num_contexts(self) -> int:
        return len(self.quotients)

    @property
    def has_pairs(self) -> bool:
        """True if the shortest contexts are those of one token."""
        return len(self.shortest) > 1


def _tables(weights: NgramWeights) -> _Tables:
    base, longest = weights.vocabulary_size + 1, len(weights.levels)
    is_small = weights.vocabulary_size <= SMALL_VOCABULARY
    has_pairs = is_small and longest > 1
    shortest, lengths = _pairs(weights) if has_pairs else (weights.unigram[None], np.zeros((1, 1), np.int64))
    first_length = int(has_pairs)
    levels = weights.levels[first_length:]
    keys = np.concatenate([level.contexts + n * base**longest for n, level in enumerate(levels, first_length)])
    num_buckets = max(1, len(keys) // BUCKET_SIZE) | 1
    order = np.argsort(keys % num_buckets, kind="stable")
    ends = np.cumsum(np.bincount(keys % num_buckets, minlength=num_buckets))
    scale = np.concatenate([level.scale for level in levels])[order]
    backoff = np.concatenate([level.backoff for level in levels])[order]
    numbers = np.concatenate([np.diff(level.first) for level in levels])
    first, numbers = (np.cumsum(numbers) - numbers)[order], numbers[order]
    blocks = _in_blocks(levels, first, numbers, SMALL_BLOCK_SIZES if is_small else BLOCK_SIZES)
    return _Tables(
        shortest,
        lengths,
        np.stack([np.concatenate([[0], ends[:-1]]), ends], axis=1),
        keys[order] // num_buckets,
        np.append(scale, np.float32(1)),
        np.append(backoff * scale, np.float32(1)),
        blocks,
    )


def _pairs(weights: NgramWeights) -> tuple[Array, Ids]:
    """Return the distribution after each token, float32 [V + 1, V], and whether it is known, int64 [V + 1, 1].

    The first ones stand for no token.
    """
    size, level = weights.vocabulary_size, weights.levels[0]
    probabilities, is_known = (
        np.tile(weights.unigram.astype(np.float64), (size + 1, 1)),
        np.zeros((size + 1, 1), np.int64),
    )
    counts = np.zeros((len(level.contexts), size))
    counts[np.repeat(np.arange(len(counts)), np.diff(level.first)), level.tokens] = level.counts
    backoff, scale = level.backoff[:, None], level.scale[:, None]
    probabilities[level.contexts] = (counts + backoff * probabilities[level.contexts]) * scale
    is_known[level.contexts] = 1
    return probabilities.astype(np.float32), is_known


def _in_blocks(levels: Sequence[NgramLevel], first: Ids, numbers: Ids, sizes: Sequence[int]) -> Sequence[_Successors]:
    """Divide the successors of each context, of which numbers[c] are at first[c] and behind, into blocks."""
    divided = []
    for size in sizes:
        num_blocks = -(-numbers // size) if size == sizes[-1] else numbers // size
        taken = np.minimum(numbers, num_blocks * size)
        divided.append(_successors(levels, first, taken, num_blocks, size))
        first, numbers = first + taken, numbers - taken
    return divided


def _successors(levels: Sequence[NgramLevel], first: Ids, numbers: Ids, num_blocks: Ids, size: int) -> _Successors:
    """Put numbers[c] successors of each context, from the one at first[c] on, into num_blocks[c] blocks."""
    ends = np.cumsum(num_blocks)
    first_block = np.concatenate([[0], ends, ends[-1:]])
    taken, place = _ranges(first, numbers), _ranges(first_block[:-2] * size, numbers)
    tokens, counts = np.zeros(ends[-1] * size, np.int64), np.zeros(ends[-1] * size, np.float16)
    tokens[place] = np.concatenate([level.tokens for level in levels])[taken]
    counts[place] = np.concatenate([level.counts for level in levels])[taken]
    return _Successors(first_block, tokens.reshape(-1, size), counts.reshape(-1, size))


def _ranges(first: Ids, numbers: Ids) -> Ids:
    """Return first[0], first[0] + 1, …, first[1], …: numbers[c] indices for each c."""
    ends = np.cumsum(numbers)
    found: Ids = np.repeat(first - (ends - numbers), numbers) + np.arange(ends[-1])
    return found


class _Mixture:
    """The mixture under construction. K: the number of lengths of contexts that are looked up."""

    def __init__(self, graph: GraphBuilder, weights: NgramWeights) -> None:
        self._graph, self._weights, self._tables = graph, weights, _tables(weights)
        self._longest = len(weights.levels)
        self._num_lengths = self._longest - self._tables.has_pairs

    def drawn(self, recent: ir.Value, probabilities: ir.Value) -> ir.Value:
        """Write the logarithms of the mixture, float32 [batch, V]. recent: int64 [batch, longest]."""
        graph, tables = self._graph, self._tables
        index = self._find(recent)
        is_found = graph.op("Cast", graph.op("Less", index, self._absent), to=int(ir.DataType.INT64))
        length = graph.op("ReduceSum", is_found, graph.integers(1), keepdims=1)
        shortest = graph.constant("ngram.shortest", tables.shortest)
        if tables.has_pairs:
            newest = graph.op("Gather", recent, self._scalar(0), axis=1)
            shortest = graph.op("Gather", shortest, newest)
            length = graph.op("Add", length, graph.op("Gather", graph.constant("ngram.known", tables.lengths), newest))
        share = graph.op("Gather", graph.constant("ngram.shares", self._weights.shares), length)  # [batch, 1]
        rest = graph.op("Sub", graph.shared_constant("ngram.one", np.ones(1, np.float32)), share)
        of_shortest, factors = self._factors(index, share)
        scale = graph.op("Gather", graph.constant("ngram.scale", tables.scale), index)
        base = graph.op("Add", graph.op("Mul", probabilities, rest), graph.op("Mul", shortest, of_shortest))
        factors = graph.op("Reshape", graph.op("Mul", factors, scale), graph.integers(-1, 1))
        contexts = graph.op("Reshape", index, graph.integers(-1))
        total = graph.op("Reshape", base, graph.integers(-1))
        for successors in tables.successors:
            if len(successors.tokens):
                where, terms = self._terms(successors, contexts, factors)
                total = graph.op("ScatterElements", total, where, terms, axis=0, reduction="add")
        return _logarithms(graph, total, self._weights.vocabulary_size)

    def _find(self, recent: ir.Value) -> ir.Value:
        """Write the look-up of contexts, int64 [batch, K]."""
        graph, tables = self._graph, self._tables
        base, num_buckets = self._weights.vocabulary_size + 1, len(tables.buckets)
        places = np.arange(self._longest)
        lengths = places[self._longest - self._num_lengths :]
        powers = np.where(places[:, None] <= lengths, base ** places[:, None], 0)  # [longest, K]
        keys = graph.op("MatMul", recent, graph.constant("ngram.powers", powers))
        keys = graph.op("Add", keys, graph.constant("ngram.lengths", lengths * base**self._longest))
        bounds = self._looked_up("buckets", tables.buckets, graph.op("Mod", keys, graph.integers(num_buckets)))
        start, end = graph.split(bounds, [1, 1])  # [batch, K, 1]
        most = int(np.diff(tables.buckets).max())
        place = graph.op("Add", start, graph.constant("ngram.lanes", np.arange(most)))
        is_inside = graph.op("Less", place, end)
        place = graph.op("Min", place, graph.integers(tables.num_contexts - 1))
        quotient = graph.op("Unsqueeze", graph.op("Div", keys, graph.integers(num_buckets)), graph.integers(2))
        is_equal = graph.op("Equal", self._looked_up("quotients", tables.quotients, place), quotient)
        found = graph.op("Where", graph.op("And", is_equal, is_inside), place, self._absent)
        return graph.op("ReduceMin", found, graph.integers(2), keepdims=0)

    def _factors(self, index: ir.Value, share: ir.Value) -> Sequence[ir.Value]:
        """Write the share times what longer contexts leave, for the shortest and for each length: [batch, 1 and K]."""
        graph, number = self._graph, self._num_lengths
        left = graph.op("Gather", graph.constant("ngram.left", self._tables.left), index)
        is_longer = np.arange(number) >= np.arange(number + 1)[:, None]  # [K + 1, K]
        one = graph.shared_constant("ngram.one", np.ones(1, np.float32))
        kept = graph.op(
            "Where", graph.constant("ngram.longer", is_longer), graph.op("Unsqueeze", left, graph.integers(1)), one
        )
        product = graph.op("ReduceProd", kept, graph.integers(2), keepdims=0)
        return graph.split(graph.op("Mul", product, share), [1, number])

    def _terms(self, successors: _Successors, contexts: ir.Value, factors: ir.Value) -> tuple[ir.Value, ir.Value]:
        """Write what successors add to all rows, and where, row * V + token.

        contexts  int64 [batch * K]
        factors   float32 [batch * K, 1], of a count
        """
        graph, name = self._graph, f"by{successors.tokens.shape[1]}."
        first = graph.constant(f"ngram.{name}first", _smallest(successors.first))
        start = self._integers(first, contexts)
        number = graph.op("Sub", self._integers(first, graph.op("Add", contexts, graph.integers(1))), start)
        longest = graph.op("ReduceMax", graph.op("Concat", number, graph.integers(0), axis=0), keepdims=0)
        lanes = graph.op("Range", self._scalar(0), longest, self._scalar(1))
        is_block = graph.op("NonZero", graph.op("Less", lanes, graph.op("Unsqueeze", number, graph.integers(1))))
        context, lane = (graph.op("Gather", is_block, self._scalar(axis), axis=0) for axis in (0, 1))
        block = graph.op("Add", graph.op("Gather", start, context), lane)
        counts = graph.op("Gather", graph.constant(f"ngram.{name}counts", successors.counts), block)
        counts = graph.op("Cast", counts, to=int(ir.DataType.FLOAT))
        terms = graph.op("Mul", counts, graph.op("Gather", factors, context))  # [blocks, size]
        row = graph.op("Unsqueeze", graph.op("Div", context, graph.integers(self._num_lengths)), graph.integers(1))
        begin = graph.op("Mul", row, graph.integers(self._weights.vocabulary_size))
        where = graph.op("Add", self._looked_up(f"{name}tokens", successors.tokens, block), begin)
        return graph.op("Reshape", where, graph.integers(-1)), graph.op("Reshape", terms, graph.integers(-1))

    @property
    def _absent(self) -> ir.Value:
        return self._graph.integers(self._tables.num_contexts)

    def _scalar(self, value: int) -> ir.Value:
        return self._graph.shared_constant(f"ngram.int{value}", np.array(value, np.int64))

    def _looked_up(self, name: str, table: Ids, index: ir.Value) -> ir.Value:
        """Store a table of integers and write a look-up."""
        return self._integers(self._graph.constant(f"ngram.{name}", _smallest(table)), index)

    def _integers(self, table: ir.Value, index: ir.Value) -> ir.Value:
        """Write the look-up of integers of any width."""
        return self._graph.op("Cast", self._graph.op("Gather", table, index), to=int(ir.DataType.INT64))


def _logarithms(graph: GraphBuilder, numbers: ir.Value, width: int) -> ir.Value:
    """Write the logarithms of [batch * width] numbers, as [batch, width].

    Numbers behind the last full vector of the CPU get another function's logarithm, whose last bit differs, and several
    threads cut long tensors anywhere. So a row's bits would depend on its place, were it not for pieces of whole
    vectors: as many as are too short together to be cut at once, more by a Loop. (A Scan does not take a batch without
    rows.)
    """
    num_pieces = -(-width // MAX_PIECE)
    piece = -(-width // (num_pieces * VECTOR)) * VECTOR
    padding = num_pieces * piece - width
    if padding:
        rows = graph.op("Reshape", numbers, graph.integers(-1, width))
        one = graph.shared_constant("ngram.float1", np.array(1, np.float32))
        numbers = graph.op("Pad", rows, graph.integers(0, 0, 0, padding), one)
    pieces = graph.op("Reshape", numbers, graph.integers(-1, piece))
    number = graph.op("Gather", graph.op("Shape", pieces), graph.integers(0))
    always = graph.shared_constant("ngram.always", np.array(True))  # noqa: FBT003 (the value itself)
    body = _piece_body(pieces, piece)
    if 2 * piece > MAX_PIECE:
        found = graph.op("Loop", number, always, body=body)
    else:
        is_short = graph.op("Less", number, graph.integers(MAX_PIECE // piece + 1))
        at_once = _branch(ir.node("Log", [pieces]), "at_once")
        one_by_one = _branch(ir.node("Loop", [number, always], attributes={"body": body}), "one_by_one")
        found = graph.op("If", is_short, then_branch=at_once, else_branch=one_by_one)
    rows = graph.op("Reshape", found, graph.integers(-1, num_pieces * piece))
    return graph.op("Slice", rows, graph.integers(0), graph.integers(width), graph.integers(1)) if padding else rows


def _piece_body(pieces: ir.Value, size: int) -> ir.Graph:
    """Return a step of the Loop: the logarithms of one piece."""
    boolean, integer = ir.TensorType(ir.DataType.BOOL), ir.TensorType(ir.DataType.INT64)
    step = ir.Value(name="ngram.step", shape=ir.Shape(()), type=integer)
    goes_on = ir.Value(name="ngram.goes_on", shape=ir.Shape(()), type=boolean)
    row = ir.node("Gather", [pieces, step], attributes={"axis": 0})
    log = ir.node("Log", row.outputs)
    still = ir.node("Identity", [goes_on])
    for node, name in ((row, "row"), (log, "log"), (still, "still")):
        node.outputs[0].name = f"ngram.{name}"
    still.outputs[0].type, still.outputs[0].shape = boolean, goes_on.shape
    log.outputs[0].type, log.outputs[0].shape = ir.TensorType(ir.DataType.FLOAT), ir.Shape((size,))
    outputs = [still.outputs[0], log.outputs[0]]
    return ir.Graph([step, goes_on], outputs, nodes=[row, log, still], name="ngram.piece")


def _branch(node: ir.Node, name: str) -> ir.Graph:
    """Return a branch of an If: one node, which takes what it needs from outside."""
    node.outputs[0].name = f"ngram.{name}"
    node.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
    return ir.Graph([], node.outputs, nodes=[node], name=f"ngram.branch.{name}")


def _smallest(values: Ids) -> Array:
    """Return integers of at least zero in the narrowest type that the graphs use."""
    largest = int(values.max(initial=0))
    return values.astype(next(width for width in WIDTHS if largest <= np.iinfo(width).max))
