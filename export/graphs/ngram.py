"""An n-gram model in the graphs of a bundle.

Input: a graph under construction, `NgramWeights`. Output: values of the graph. Must not know: how n-grams are counted.

The cell keeps the last tokens in its state, as numbers, and appends them to the hidden vector; the output layer looks
up what follows them. So the mixture is a part of the bundle, and whatever runs a bundle runs it: its state travels,
and rows do not depend on one another.

The contexts of all lengths are one table, hashed without loss: the keys of a bucket lie side by side, and are compared
with the wanted one. Interpolation is linear, so p of a token is a sum over the lengths at which it follows

    p(w | h) = unigram(w) left_1 … left_K + sum_k p_k(w) left_(k+1) … left_K

and the distribution takes one pass for the network and the unigrams; then each successor adds its term. A context's
successors are whole blocks, each of which is one look-up, and single ones. Those of all rows are one list, made by
NonZero. In a small vocabulary the pairs are a table of all distributions, in the place of the unigrams, and few tokens
follow longer contexts: these are short blocks, filled up with successors that add nothing, so there is one list less.

A row alone costs what its operators cost to start, about a microsecond each, so there are as few as possible.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from meari.bundle_format.names import NGRAM_STATE
from meari.export.graph import GraphBuilder
from meari.export.ngram import BOUNDARY, Ids, NgramLevel, NgramWeights

BUCKET_SIZE = 4  # contexts on average
BLOCK_SIZES = (16, 1)  # successors
SMALL_BLOCK_SIZES = (2,)
SMALL_VOCABULARY = 256
WIDTHS = (np.uint8, np.uint16, np.int32, np.int64)  # of integers in tables
FEW_LANES = 64
NO_KEY = -1
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
    """What follows the contexts, in blocks of one size: of context c, numbers[c] blocks from first[c] on.

    first, numbers  [C + 1]
    tokens          [blocks, size]
    probabilities   float16 [blocks, size]
    """

    first: Ids
    numbers: Ids
    tokens: Ids
    probabilities: Array


@dataclass(frozen=True)
class _Tables:
    """The contexts of all lengths in the order of their buckets, C in all, and after them one for a context that is
    absent: nothing follows it, and everything is left to the shorter one.

    shortest    float32 [1, V], the unigrams; in a small vocabulary [V + 1, V], what follows the newest token
    lengths     [1, 1] or [V + 1, 1], of the contexts to which these distributions belong
    buckets     [B, 1], the first context of each bucket
    largest     number of contexts of the largest bucket
    keys        [C + largest], the last ones of no context
    left        float32 [C + 1], what is left for the shorter context
    successors  in blocks of each size, the largest first
    """

    shortest: Array
    lengths: Ids
    buckets: Ids
    largest: int
    keys: Ids
    left: Array
    successors: Sequence[_Successors]

    @property
    def num_contexts(self) -> int:
        return len(self.left) - 1

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
    sizes = np.bincount(keys % num_buckets, minlength=num_buckets)
    left = np.concatenate([level.left for level in levels])[order]
    numbers = np.concatenate([np.diff(level.first) for level in levels])
    first, numbers = (np.cumsum(numbers) - numbers)[order], numbers[order]
    return _Tables(
        shortest,
        lengths,
        (np.cumsum(sizes) - sizes)[:, None],
        int(sizes.max()),
        np.append(keys[order], np.full(sizes.max(), NO_KEY)),
        np.append(left, np.float32(1)),
        _in_blocks(levels, first, numbers, SMALL_BLOCK_SIZES if is_small else BLOCK_SIZES),
    )


def _pairs(weights: NgramWeights) -> tuple[Array, Ids]:
    """Return the distribution after each token, float32 [V + 1, V], and whether it is known, int64 [V + 1, 1].

    The first ones stand for no token.
    """
    size, level = weights.vocabulary_size, weights.levels[0]
    after, is_known = np.tile(weights.unigram.astype(np.float64), (size + 1, 1)), np.zeros((size + 1, 1), np.int64)
    after[level.contexts] *= level.left[:, None]
    after[np.repeat(level.contexts, np.diff(level.first)), level.tokens] += level.probabilities
    is_known[level.contexts] = 1
    return after.astype(np.float32), is_known


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
    total, first_block = num_blocks.sum(), np.cumsum(num_blocks) - num_blocks
    taken, place = _ranges(first, numbers), _ranges(first_block * size, numbers)
    tokens, probabilities = np.zeros(total * size, np.int64), np.zeros(total * size, np.float16)
    tokens[place] = np.concatenate([level.tokens for level in levels])[taken]
    probabilities[place] = np.concatenate([level.probabilities for level in levels])[taken]
    blocks = tokens.reshape(-1, size), probabilities.reshape(-1, size)
    return _Successors(np.append(first_block, total), np.append(num_blocks, 0), *blocks)


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
        share = self._share(recent, length)
        rest = graph.op("Sub", graph.shared_constant("ngram.one", np.ones(1, np.float32)), share)
        of_shortest, factors = self._factors(index, share)
        base = graph.op("Add", graph.op("Mul", probabilities, rest), graph.op("Mul", shortest, of_shortest))
        factors = graph.op("Reshape", factors, graph.integers(-1, 1))
        contexts = graph.op("Reshape", index, graph.integers(-1))
        total = graph.op("Reshape", base, graph.integers(-1))
        for successors in tables.successors:
            if len(successors.tokens):
                where, terms = self._terms(successors, contexts, factors)
                total = graph.op("ScatterElements", total, where, terms, axis=0, reduction="add")
        rows = graph.integers(-1, self._weights.vocabulary_size)
        return graph.op("Reshape", _logarithms(graph, total), rows)

    def _share(self, recent: ir.Value, length: ir.Value) -> ir.Value:
        """Write the share of n-grams, float32 [batch, 1]. length: of the longest context found, int64 [batch, 1]."""
        graph, shares = self._graph, self._weights.shares
        if not self._weights.knows_beginning:
            oldest = graph.op("Gather", recent, graph.integers(self._longest - 1), axis=1)
            is_mixed = graph.op("Cast", graph.op("Less", graph.integers(BOUNDARY), oldest), to=int(ir.DataType.INT64))
            length = graph.op("Mul", graph.op("Add", length, graph.integers(1)), is_mixed)
            shares = np.append(np.float32(0), shares)
        return graph.op("Gather", graph.constant("ngram.shares", shares), length)

    def _find(self, recent: ir.Value) -> ir.Value:
        """Write the look-up of contexts, int64 [batch, K]."""
        graph, tables = self._graph, self._tables
        base, places = self._weights.vocabulary_size + 1, np.arange(self._longest)
        lengths = places[self._longest - self._num_lengths :]
        powers = np.where(places[:, None] <= lengths, base ** places[:, None], 0)  # [longest, K]
        keys = graph.op("MatMul", recent, graph.constant("ngram.powers", powers))
        keys = graph.op("Add", keys, graph.constant("ngram.lengths", lengths * base**self._longest))
        bucket = graph.op("Mod", keys, graph.integers(len(tables.buckets)))
        lanes = graph.constant("ngram.lanes", np.arange(tables.largest))
        place = graph.op("Add", self._looked_up("buckets", tables.buckets, bucket), lanes)  # [batch, K, largest]
        found = graph.op("Gather", graph.constant("ngram.keys", tables.keys), place)
        is_equal = graph.op("Equal", found, graph.op("Unsqueeze", keys, graph.integers(2)))
        place = graph.op("Where", is_equal, place, self._absent)
        return graph.op("ReduceMin", place, graph.integers(2), keepdims=0)

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
        factors   float32 [batch * K, 1]
        """
        graph, name = self._graph, f"by{successors.tokens.shape[1]}."
        most = int(successors.numbers.max())
        radix = graph.integers(most + 1)
        code = self._looked_up(f"{name}blocks", successors.first * (most + 1) + successors.numbers, contexts)
        first, number = graph.op("Div", code, radix), graph.op("Mod", code, radix)
        lanes = self._lanes(name, most, number)
        is_block = graph.op("NonZero", graph.op("Less", lanes, graph.op("Unsqueeze", number, graph.integers(1))))
        context, lane = graph.split(is_block, [1, 1], axis=0)  # [1, blocks]
        block = graph.op("Add", graph.op("Gather", first, context), lane)
        own = graph.op("Gather", graph.constant(f"ngram.{name}probabilities", successors.probabilities), block)
        own = graph.op("Cast", own, to=int(ir.DataType.FLOAT))
        terms = graph.op("Mul", own, graph.op("Gather", factors, context))  # [1, blocks, size]
        row = graph.op("Div", context, graph.integers(self._num_lengths))
        begin = graph.op("Mul", row, graph.integers(self._weights.vocabulary_size))
        begin = graph.op("Unsqueeze", begin, graph.integers(2))
        where = graph.op("Add", self._looked_up(f"{name}tokens", successors.tokens, block), begin)
        return graph.op("Reshape", where, graph.integers(-1)), graph.op("Reshape", terms, graph.integers(-1))

    def _lanes(self, name: str, most: int, number: ir.Value) -> ir.Value:
        """Write 0, 1, … up to the largest number of blocks, of all contexts if there are few, else of those found."""
        graph = self._graph
        if most <= FEW_LANES:
            return graph.constant(f"ngram.{name}lanes", np.arange(most))
        longest = graph.op("ReduceMax", graph.op("Concat", number, graph.integers(0), axis=0), keepdims=0)
        return graph.op("Range", self._scalar(0), longest, self._scalar(1))

    @property
    def _absent(self) -> ir.Value:
        return self._graph.integers(self._tables.num_contexts)

    def _scalar(self, value: int) -> ir.Value:
        return self._graph.shared_constant(f"ngram.int{value}", np.array(value, np.int64))

    def _looked_up(self, name: str, table: Ids, index: ir.Value) -> ir.Value:
        """Store a table of integers and write a look-up."""
        found = self._graph.op("Gather", self._graph.constant(f"ngram.{name}", _smallest(table)), index)
        return self._graph.op("Cast", found, to=int(ir.DataType.INT64))


def _logarithms(graph: GraphBuilder, numbers: ir.Value) -> ir.Value:
    """Write the logarithms of a vector.

    Numbers behind the last full vector of the CPU get another function's logarithm, whose last bit differs, and several
    threads cut long tensors anywhere. So a row's bits would depend on its place, were it not for a full vector behind
    all numbers, and for a Loop over pieces that are too short to be cut. (A Scan does not take a batch without rows.)
    """
    number = graph.op("Shape", numbers)
    is_short = graph.op("Less", number, graph.integers(MAX_PIECE - VECTOR + 1))
    branches = {"then_branch": _at_once(graph, numbers), "else_branch": _piece_by_piece(graph, numbers, number)}
    return graph.op("Slice", graph.op("If", is_short, **branches), graph.integers(0), number, graph.integers(0))


def _at_once(graph: GraphBuilder, numbers: ir.Value) -> ir.Graph:
    """Return a branch: the logarithms of a vector and of a full vector behind it."""
    branch = _Body("at_once")
    ones = graph.constant("ngram.ones", np.ones(VECTOR, np.float32))
    return branch.finished([], [branch.op("Log", branch.op("Concat", numbers, ones, axis=0))])


def _piece_by_piece(graph: GraphBuilder, numbers: ir.Value, number: ir.Value) -> ir.Graph:
    """Return a branch: the logarithms of a vector, filled up to a whole number of pieces."""
    branch, size = _Body("by_piece"), graph.integers(MAX_PIECE)
    num_pieces = branch.op("Div", branch.op("Add", number, graph.integers(MAX_PIECE - 1)), size)
    one = graph.constant("ngram.float1", np.array(1, np.float32))
    missing = branch.op("Sub", branch.op("Mul", num_pieces, size), number)
    padded = branch.op("Pad", numbers, branch.op("Concat", graph.integers(0), missing, axis=0), one)
    pieces = branch.op("Reshape", padded, graph.integers(-1, MAX_PIECE))
    always = graph.shared_constant("ngram.always", np.array(True))  # noqa: FBT003 (the value itself)
    found = branch.op("Loop", num_pieces, always, body=_piece(pieces))
    return branch.finished([], [branch.op("Reshape", found, graph.integers(-1))])


def _piece(pieces: ir.Value) -> ir.Graph:
    """Return a step of the Loop: the logarithms of one piece."""
    body = _Body("piece")
    step = ir.Value(name="ngram.step", shape=ir.Shape(()), type=ir.TensorType(ir.DataType.INT64))
    goes_on = ir.Value(name="ngram.goes_on", shape=ir.Shape(()), type=ir.TensorType(ir.DataType.BOOL))
    still = body.op("Identity", goes_on)
    still.shape, still.type = goes_on.shape, goes_on.type
    return body.finished([step, goes_on], [still, body.op("Log", body.op("Gather", pieces, step, axis=0))])


class _Body:
    """A graph within a node. Its values have names that no value outside has."""

    def __init__(self, name: str) -> None:
        self._name = f"ngram.{name}"
        self._tape = ir.tape.Tape()

    def op(self, op_type: str, *inputs: ir.Value, **attributes: int | ir.Graph) -> ir.Value:
        """Append an operator of one output."""
        value = self._tape.op(op_type, inputs, attributes=attributes)
        value.name = f"{self._name}{len(self._tape.nodes)}"
        return value

    def finished(self, inputs: Sequence[ir.Value], outputs: Sequence[ir.Value]) -> ir.Graph:
        """Return the graph. Outputs without a type are float32."""
        for output in outputs:
            output.type = output.type or ir.TensorType(ir.DataType.FLOAT)
        return ir.Graph(inputs, outputs, nodes=self._tape.nodes, name=self._name)


def _smallest(values: Ids) -> Array:
    """Return integers of at least zero in the narrowest type that the graphs use."""
    largest = int(values.max(initial=0))
    return values.astype(next(width for width in WIDTHS if largest <= np.iinfo(width).max))
