"""An n-gram model of the training text, mixed into a bundle's distributions.

Input: token ids of the training text; probabilities of held-out tokens. Output: `NgramWeights`. Must not know: torch,
ONNX, files.

    p(w | h) = (c(h w) - D) / c(h) + left(h) p(w | h without its oldest token)

Modified Kneser–Ney smoothing, interpolated (Chen and Goodman, "An empirical study of smoothing techniques for language
modeling", 1999): shorter n-grams are counted by the number of different tokens before them, and three discounts D
depend on the count. N-grams that occur once, and those that hardly say more than the shorter ones, are left out, which
makes the tables several times smaller: an n-gram gains c(h w) log(p(w | h) / p(w | h without it)) nats of the training
text (Seymore and Rosenfeld, "Scalable backoff language models", 1996). Whatever is subtracted, left out or rounded goes
to the shorter context, so every distribution sums to one.

A text begins with the boundary token, and nothing is known before it. In the mixture

    P(w) = (1 - share) P_network(w) + share p(w | h)

the share depends on the length of the longest context found (Jelinek and Mercer, 1980). Where the training text was one
stream, nobody has seen how a text begins: there it is zero until the longest context is full.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from meari.bundle_format.names import END_ID
from meari.export.errors import UnusableRun
from meari.export.weights import Floats

Ids = NDArray[np.int64]
Doubles = NDArray[np.float64]

MAX_KEY = 2**63 - 1
NUM_ROUNDS = 40  # of expectation maximisation
MAX_SHARE = 0.95
NUM_SUPPOSED = 10  # tokens of the mean share, for lengths of which there are few
BOUNDARY = END_ID + 1  # as it stands among the tokens before


@dataclass(frozen=True)
class NgramLevel:
    """All n-grams of one length n, by their contexts of n - 1 tokens.

    contexts       int64 [C], ascending: the sum of (id + 1) * (V + 1)**j, j = 0 for the newest token; 0 where there is
                   none
    first          int64 [C + 1]: the successors of a context are first[c] … first[c + 1] - 1
    tokens         int64 [S], ascending within a context
    probabilities  float16 [S], of discounted counts
    left           float32 [C], what is left for the shorter context
    """

    contexts: Ids
    first: Ids
    tokens: Ids
    probabilities: NDArray[np.float16]
    left: Floats


@dataclass(frozen=True)
class NgramWeights:
    """An n-gram model and its shares in the mixture.

    unigram          float32 [V]
    levels           n-grams of 2, 3, … tokens
    shares           float32 [order], by the number of tokens of the longest context found
    knows_beginning  whether texts begin in the training text as they do elsewhere; else the share is zero until
                     order - 1 tokens have come after the boundary
    """

    unigram: Floats
    levels: tuple[NgramLevel, ...]
    shares: Floats
    knows_beginning: bool = True

    @property
    def vocabulary_size(self) -> int:
        return len(self.unigram)

    @property
    def order(self) -> int:
        """Number of tokens of the longest n-grams."""
        return len(self.levels) + 1

    @property
    def num_ngrams(self) -> list[int]:
        """Number of n-grams of each length."""
        return [len(self.unigram), *(len(level.tokens) for level in self.levels)]

    def with_shares(self, shares: Floats) -> NgramWeights:
        return replace(self, shares=shares)

    def share(self, lengths: Ids, recent: Ids) -> Floats:
        """Return the share in the mixture, [N]. lengths: of the longest contexts found; recent: as in `find`."""
        return np.where(self.is_mixed(recent), self.shares[lengths], np.float32(0))

    def is_mixed(self, recent: Ids) -> NDArray[np.bool_]:
        """Return where n-grams have a share at all, [N]."""
        return np.ones(len(recent), np.bool_) if self.knows_beginning else recent[:, -1] > BOUNDARY

    def find(self, recent: Ids) -> list[tuple[Ids, NDArray[np.bool_]]]:
        """Look up contexts, one level after the other.

        recent   int64 [N, order - 1]: ids + 1 of the tokens before, the newest first; 0 where there is none
        returns  for each level the index of the context and whether there is one, [N] each
        """
        keys, base, found = np.zeros(len(recent), np.int64), self.vocabulary_size + 1, []
        for length, level in enumerate(self.levels):
            keys = keys + recent[:, length] * base**length
            index = np.minimum(np.searchsorted(level.contexts, keys), len(level.contexts) - 1)
            found.append((index, level.contexts[index] == keys))
        return found

    def probabilities(self, targets: Ids, recent: Ids) -> tuple[Doubles, Ids]:
        """Compute p of tokens and the lengths of the longest contexts found, [N] each, in double precision.

        targets  int64 [N]
        recent   as in `find`
        """
        total, lengths = self.unigram[targets].astype(np.float64), np.zeros(len(targets), np.int64)
        for level, (index, is_found) in zip(self.levels, self.find(recent), strict=True):
            keys = np.repeat(np.arange(len(level.contexts)), np.diff(level.first)) * self.vocabulary_size + level.tokens
            wanted = index * self.vocabulary_size + targets
            place = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
            own = np.where(keys[place] == wanted, level.probabilities[place], 0.0)
            total = np.where(is_found, own + level.left[index] * total, total)
            lengths += is_found
        return total, lengths


def history(ids: Ids, end_id: int, order: int) -> Ids:
    """Return what precedes every token but the first of a token file: int64 [num_tokens - 1, order - 1], as in `find`.

    ids  int64 [num_tokens], documents with the boundary `end_id` before, between and behind
    """
    positions = np.arange(1, len(ids))
    begins = np.maximum.accumulate(np.where(ids == end_id, np.arange(len(ids)), 0))[:-1]
    recent = np.zeros((len(positions), order - 1), np.int64)
    for back in range(1, order):
        is_inside = positions - back >= begins
        recent[is_inside, back - 1] = ids[positions[is_inside] - back] + 1
    return recent


def longest_order(vocabulary_size: int) -> int:
    """Return the number of tokens of the longest n-grams that can be numbered, also together with their lengths."""
    base = vocabulary_size + 1
    return next(n for n in itertools.count(1) if max(base, n + 1) * base**n > MAX_KEY)


def count_ngrams(
    ids: Ids,
    vocabulary_size: int,
    end_id: int,
    order: int,
    *,
    masked: Ids | None = None,
    min_count: int = 2,
    min_gain: float = 0.0,
) -> NgramWeights:
    """Estimate an n-gram model from a token file; its shares in the mixture are zero.

    order      number of tokens of the longest n-grams, at least 2; shorter ones are the longest where none is kept
    masked     int64 [num_masked]: places of tokens that are contexts, but follow none
    min_count  how often an n-gram must occur to be kept, at least 1; for two tokens one less is enough
    min_gain   how many nats it must gain

    Raises UnusableRun where there are too many tokens to number n-grams of that length, or no pair is kept.
    """
    base, most = vocabulary_size + 1, longest_order(vocabulary_size)
    if order > most:
        raise UnusableRun(f"--ngram: got {order}, expected at most {most} for {vocabulary_size:,} tokens")
    recent, targets = history(ids, end_id, order), ids[1:].astype(np.int64)
    keys = targets.copy()
    for back in range(order - 1):
        keys += recent[:, back] * base ** (back + 1)
    del recent
    if masked is not None:
        keys = np.delete(keys, masked - 1)
    tables: list[_Table] = []
    counted, counts = np.unique(keys, return_counts=True)
    for length in range(order, 0, -1):
        fewest = 1 if length == 1 else max(1, min_count - (length == 2))
        occurrences = _occurrences(keys, base**length)
        tables.append(_Table(counted, counts, occurrences, occurrences >= fewest))
        counted, counts = np.unique(counted % base ** (length - 1), return_counts=True)
    single, *longer = reversed(tables)
    unigram = np.zeros(vocabulary_size)
    unigram[single.keys] = single.discounted
    unigram += (single.counts.sum() - unigram.sum()) / vocabulary_size
    unigram /= unigram.sum()
    weights = NgramWeights(unigram.astype(np.float32), (), np.zeros(1, np.float32))
    for table in longer:
        if min_gain > 0:
            table = replace(table, is_kept=table.is_kept & (_gains(table, weights) >= min_gain))  # noqa: PLW2901
        if not table.is_kept.any():
            break
        levels = (*weights.levels, _level(table, base))
        weights = NgramWeights(weights.unigram, levels, np.zeros(len(levels) + 1, np.float32))
    if not weights.levels:
        raise UnusableRun(f"--ngram: got a text of {len(targets):,} tokens without a pair that is worth keeping")
    return weights


@dataclass(frozen=True)
class _Table:
    """n-grams of one length.

    keys         int64 [S], ascending: the token, then its context from the newest token, as digits from the lowest
    counts       int64 [S]: how often they occur, or after how many different tokens, if they are parts of longer ones
    occurrences  int64 [S]: how often they occur
    is_kept      bool [S]
    """

    keys: Ids
    counts: Ids
    occurrences: Ids
    is_kept: NDArray[np.bool_]

    @property
    def discounted(self) -> Doubles:
        return self.counts - _discounts(self.counts)


def _occurrences(keys: Ids, modulus: int) -> Ids:
    """Return how often each different n-gram occurs, in ascending order."""
    return np.unique(keys % modulus, return_counts=True)[1]


def _gains(table: _Table, shorter: NgramWeights) -> Doubles:
    """Return how many nats of the training text each kept n-gram gains over the shorter ones, [S]; 0 of the others."""
    base, gains = shorter.vocabulary_size + 1, np.zeros(len(table.keys))
    if not table.is_kept.any():
        return gains
    level, kept = _level(table, base), table.keys[table.is_kept]
    contexts, targets = kept // base, kept % base
    recent = contexts[:, None] // base ** np.arange(len(shorter.levels)) % base
    by_shorter, _ = shorter.probabilities(targets, recent)
    left, own = level.left[np.searchsorted(level.contexts, contexts)], level.probabilities.astype(np.float64)
    gains[table.is_kept] = np.log((own + left * by_shorter) / ((own + left) * by_shorter))
    return gains * table.occurrences


def _discounts(counts: Ids) -> Doubles:
    """Return what is subtracted from each count: D1, D2 or D3+ (Chen and Goodman, 1999, equation 26)."""
    once, twice, thrice, four = ((counts == n).sum() for n in (1, 2, 3, 4))
    discounts = np.array([0.0, 0.5, 1.0, 1.5])
    if min(once, twice, thrice, four) > 0:
        ratio = once / (once + 2 * twice)
        next_to_last = np.array([twice / once, thrice / twice, four / thrice])
        estimated = np.arange(1, 4) - np.arange(2, 5) * ratio * next_to_last
        if (estimated > 0).all() and (estimated < (1, 2, 3)).all():
            discounts[1:] = estimated
    taken: Doubles = discounts[np.minimum(counts, 3)]
    return taken


def _level(table: _Table, base: int) -> NgramLevel:
    contexts, index = np.unique(table.keys // base, return_inverse=True)
    keys, owners = table.keys[table.is_kept], index[table.is_kept]
    exact = table.discounted[table.is_kept] / np.bincount(index, table.counts)[owners]
    rounded = exact.astype(np.float16)
    below = np.where(rounded > exact, np.nextafter(rounded, np.float16(0)), rounded)
    exact_left, left = (1 - np.bincount(owners, each, minlength=len(contexts)) for each in (exact, rounded))
    rounded = np.where((left < exact_left / 2)[owners], below, rounded)
    left = 1 - np.bincount(owners, rounded, minlength=len(contexts))
    known, numbers = np.unique(owners, return_counts=True)
    first = np.concatenate([[0], np.cumsum(numbers)])
    return NgramLevel(contexts[known], first, keys % base, rounded, left[known].astype(np.float32))


def fit_shares(network: Doubles, ngram: Doubles, lengths: Ids, order: int) -> Floats:
    """Return the shares that make held-out tokens likeliest, float32 [order], by expectation maximisation.

    network, ngram  probabilities of the tokens, [N] each
    lengths         of the longest contexts found, [N], each less than `order`; with none all shares are zero
    """
    if not len(lengths):
        return np.zeros(order, np.float32)
    shares = np.full(order, 0.2)
    numbers = np.bincount(lengths, minlength=order)
    for _ in range(NUM_ROUNDS):
        share = shares[lengths]
        responsible = share * ngram / ((1 - share) * network + share * ngram)
        sums = np.bincount(lengths, responsible, minlength=order)
        shares = (sums + NUM_SUPPOSED * responsible.mean()) / (numbers + NUM_SUPPOSED)
    fitted: Floats = np.minimum(shares, MAX_SHARE).astype(np.float32)
    return fitted
