"""From the distributions of a step to the next tokens.

The order is that of Hugging Face's `generate`: logit bias, repetition penalty (CTRL, Keskar et al. 2019, arXiv
1909.05858: the logit of a token that has occurred is divided by r where positive, multiplied by r where negative),
temperature, top_k, top_p (nucleus, Holtzman et al. 2019, arXiv 1904.09751), min_p. Then one uniform number picks a
token from what is left.

Most rows are sampled inside the graph (service/graphs/sampler.py): those with a temperature of at least 0.2, min_p,
top_p and, of a small vocabulary, top_k. The others are picked here from their log-probabilities, and so are, with a
large vocabulary, the few whose pick lies outside its nucleus.

The uniform number of a token is a function of the seed, of the sample's lineage and of the token's position in the
whole text: it does not matter in how many requests a text was written. Every operation works on a row by itself: a
row's token does not depend on the rows beside it.
"""

from __future__ import annotations

import hashlib
import itertools
import struct
from collections.abc import Iterable, Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from service.engine.calls import GRID, Sampling
from service.engine.runner import Asked, Ran, Written
from service.graphs.sampler import NUM_LIMITS

Floats32 = npt.NDArray[np.float32]
Floats64 = npt.NDArray[np.float64]
Ids = npt.NDArray[np.int64]
HUGE: Final = 1e300  # a score past it stays there: two that overflowed could not be compared
LEAST_TEMPERATURE_IN_GRAPH: Final = 0.2  # float32 weights of a flat distribution would underflow below
BELOW_ONE: Final = np.float32(1 - 2**-22)
NO_LIMIT: Final = 1e9
NO_COLUMNS: Final = (1.0, 0.0, NO_LIMIT, NO_LIMIT)
BLOCK: Final = 8  # positions whose uniform numbers come from one hash
UNPACK: Final = struct.Struct("<8Q").unpack


def forked(lineage: tuple[int, ...], position: int, index: int) -> tuple[int, ...]:
    """The lineage of sample `index` after a text of `position` tokens: the text's own, or a number like no other's.

    It takes the same room however often a text was forked.
    """
    if not index:
        return lineage
    names = ",".join(map(str, (*lineage, position, index)))
    return (int.from_bytes(hashlib.blake2b(names.encode(), digest_size=8).digest(), "big"),)


class Sampler:
    """How one sample takes its tokens: settings, random numbers, tokens seen so far.

    index     number of the sample within its request: samples of one seed are independent, and the first is the same
              however many there are
    seen      the tokens of the text so far: the repetition penalty counts them
    position  of the first token that will be sampled: how many there are before it
    """

    def __init__(self, settings: Sampling, index: int, seen: Iterable[int], position: int) -> None:
        self.settings = settings
        self.lineage = forked(settings.lineage, position, index)
        self._position = position
        name = ",".join(map(str, (settings.seed, *self.lineage)))
        self._key = hashlib.blake2b(name.encode(), digest_size=32).digest()
        self._block: tuple[int, tuple[float, ...]] = (-1, ())
        self._seen = set(seen) if settings.repetition_penalty != 1.0 else None
        bias = dict(settings.logit_bias)
        self._bias = (np.array(list(bias), np.int64), np.array(list(bias.values()), np.float64)) if bias else None
        self.reshapes = self._seen is not None or self._bias is not None
        self.is_greedy = settings.temperature == 0.0 and not self.reshapes
        self.is_warm = settings.temperature >= LEAST_TEMPERATURE_IN_GRAPH and not self.reshapes
        self.is_top_k = settings.top_k > 0 and settings.temperature > 0.0 and not self.reshapes
        top_p = settings.top_p if settings.top_p < 1.0 else NO_LIMIT
        inverse = 1.0 / settings.temperature if self.is_warm else 1.0
        self.columns = (inverse, settings.min_p, top_p, settings.top_k or NO_LIMIT)  # as the graph takes them

    def uniform(self) -> float:
        """The number of the next token, in [0, 1)."""
        number, place = divmod(self._position, BLOCK)
        if self._block[0] != number:
            self._block = (number, self._numbers(number))
        self._position += 1
        return self._block[1][place]

    def _numbers(self, number: int, attempt: int = 0) -> tuple[float, ...]:
        """Those of a block of positions, as far as it was drawn again: hashed, so that any of them is found at once."""
        message = struct.pack("<QQ", number, attempt)
        return tuple((bits >> 11) * 2.0**-53 for bits in UNPACK(hashlib.blake2b(message, key=self._key).digest()))

    def saw(self, token: int) -> None:
        """Count a token as seen."""
        if self._seen is not None:
            self._seen.add(token)

    def pick(self, logits: Floats32) -> int:
        """Take a token by all the settings. logits: float32 [vocabulary_size]."""
        settings = self.settings
        scores = self._reshaped(logits)
        if settings.temperature == 0.0:
            return int(scores.argmax())
        scores = (scores - scores.max()) / settings.temperature
        kept = truncated(scores, settings.top_k, settings.top_p, settings.min_p)
        if kept is None:
            return int(pick_by_cumulative(np.exp(scores)[None], np.array([self.uniform()]))[0])
        choice = pick_by_cumulative(np.exp(scores[kept])[None], np.array([self.uniform()]))[0]
        return int(kept[choice])

    def settle(self, logprobs: Floats32, token: int) -> int:
        """A token of the nucleus, where `token`, sampled without regard to top_p, may lie outside.

        logprobs  float32 [vocabulary_size]

        By rejection: what weighs as much as a rejected token or less is left out of the next draw, so a few will do.
        """
        settings = self.settings
        scores = (logprobs.astype(np.float64) - float(logprobs.max())) / settings.temperature
        weights = np.exp(scores)
        limit = settings.top_p * float(weights.sum())
        for attempt in itertools.count(1):
            ahead = np.flatnonzero(weights >= weights[token])
            ahead = ahead[(weights[ahead] > weights[token]) | (ahead < token)]
            if not len(ahead) or float(weights[ahead].sum()) < limit:
                return token
            likely = ahead[weights[ahead] >= settings.min_p]
            again = np.array(self._numbers(self._position, attempt)[:1])
            token = int(likely[pick_by_cumulative(weights[likely][None], again)[0]])
        raise AssertionError("each attempt leaves fewer tokens")

    def _reshaped(self, logits: Floats32) -> Floats64:
        scores = logits.astype(np.float64)
        if self._bias is not None:
            scores[self._bias[0]] += self._bias[1]
        if self._seen:
            seen = np.array(sorted(self._seen), np.int64)
            penalty = self.settings.repetition_penalty
            penalised = np.where(scores[seen] > 0, scores[seen] / penalty, scores[seen] * penalty)
            scores[seen] = np.minimum(penalised, HUGE)
        return scores


class Draws:
    """The samplers of some rows together: what a run is asked for them, and the tokens that come of it."""

    def __init__(self, samplers: Sequence[Sampler | None], sorts: bool, whole: bool = False) -> None:
        """samplers: one a row, None for a row of which only the log-probabilities are wanted (`whole`).

        sorts  whether the graph applies top_p and top_k (Runner.sorts)
        """
        self._samplers = samplers
        in_graph = [s is not None and s.is_warm and (sorts or not s.is_top_k) for s in samplers]
        self._in_graph = np.array(in_graph, bool)
        self._drawing = [s for s, used in zip(samplers, in_graph, strict=True) if s is not None and used]
        columns = np.array([NO_COLUMNS if s is None else s.columns for s in samplers], np.float32)
        columns = columns.reshape(len(samplers), 1 + NUM_LIMITS)
        self._inverse = np.where(self._in_graph, columns[:, 0], np.float32(1))[:, None]
        self._limits = columns[:, 1:]
        self._top_p = columns[:, 2]
        self._targets = np.where(self._in_graph, -1, 0)[:, None]
        self._limited = self._in_graph & (self._top_p < 1.0) & (not sorts)
        self._tempered = bool((self._inverse != 1.0).any())
        ours = self._limits[self._in_graph]
        self._is_limited = bool((ours[:, 0] > 0).any() or (sorts and (ours[:, 1:] < NO_LIMIT).any()))
        self._masses = bool(self._limited.any())
        self._wants_whole = whole
        self.whole = whole or self._masses or not all(in_graph)
        self._greedy = [row for row, s in enumerate(samplers) if s is not None and s.is_greedy]
        self._top_k = [row for row, s in enumerate(samplers) if s is not None and s.is_top_k and not in_graph[row]]
        elsewhere = {*self._greedy, *self._top_k}
        self._single = [
            row for row, s in enumerate(samplers) if s is not None and not in_graph[row] and row not in elsewhere
        ]
        self._is_greedy = len(self._greedy) == len(samplers)
        self._tracking = [row for row, s in enumerate(samplers) if s is not None and s.reshapes]

    def asked(self, places: Ids, before: tuple[Ids, Ids] | None = None) -> Asked:
        """What to ask of a run for these rows at `places`, after rows with given targets (places and targets, [n])."""
        uniforms = np.zeros((len(places), 1), np.float32)
        if self._drawing:
            drawn = np.array([sampler.uniform() for sampler in self._drawing], np.float32)
            uniforms[self._in_graph, 0] = np.minimum(drawn, BELOW_ONE)
        columns: list[npt.NDArray[Any]] = [self._targets, uniforms, self._inverse, self._limits]
        if before is not None and len(before[0]):
            places = np.concatenate([before[0], places])
            nothing = np.zeros((len(before[0]), 1), np.float32)
            given = (before[1][:, None], nothing, nothing, np.zeros((len(before[0]), NUM_LIMITS), np.float32))
            columns = [np.concatenate([ours, theirs]) for ours, theirs in zip(given, columns, strict=True)]
        targets, numbers, inverse, limits = columns
        flags = (bool(self._drawing), self._tempered, self._is_limited, self._masses, self.whole)
        return Asked(places, targets, numbers, inverse, limits, *flags)

    @property
    def may_write(self) -> bool:
        """Whether the graph can take several tokens of these rows one after another."""
        return bool(self._samplers) and (not self.whole or (self._is_greedy and not self._wants_whole))

    def written(self, steps: int) -> Written:
        """How the next `steps` tokens of every row are taken."""
        uniforms = np.zeros((steps, len(self._samplers), 1), np.float32)
        if not self._is_greedy:
            drawn = np.array([[s.uniform() for _ in range(steps)] for s in self._drawing], np.float32)
            uniforms[:, :, 0] = np.minimum(drawn, BELOW_ONE).T
        return Written(uniforms, self._inverse, self._limits, not self._is_greedy, self._tempered, self._is_limited)

    @np.errstate(over="ignore")  # of a tiny temperature or penalty: exp(-inf) is 0, as it should be
    def choose(self, ran: Ran, first: int = 0) -> tuple[list[int], list[float]]:
        """Tokens and their log-probabilities, for the rows from `first` on of what was asked for."""
        assert ran.picked is not None
        assert ran.picked_logprobs is not None
        tokens: list[int] = ran.picked[first:].tolist()
        raw = ran.picked_logprobs[first:]
        if self.whole and tokens:
            assert ran.logits is not None
            assert ran.logprobs is not None
            logprobs = ran.logprobs[first:]
            self._correct(tokens, ran, ran.logits[first:], logprobs, first)
            raw = logprobs[np.arange(len(tokens)), tokens]
        for row in self._tracking:
            sampler = self._samplers[row]
            assert sampler is not None
            sampler.saw(tokens[row])
        values: list[float] = on_grid(raw).tolist()
        return tokens, values

    def _correct(self, tokens: list[int], ran: Ran, logits: Floats32, logprobs: Floats32, first: int) -> None:
        """Take the tokens that the graph does not take."""
        if self._masses:
            assert ran.mass is not None
            assert ran.mass_from is not None
            assert ran.picked_logprobs is not None
            weights = np.exp(ran.picked_logprobs[first:] * self._inverse[:, 0])
            inside = ran.mass_from[first:] - weights < self._top_p * ran.mass[first:]
            for row in np.flatnonzero(self._limited & ~inside).tolist():
                tokens[row] = self._sampler(row).settle(logprobs[row], tokens[row])
        if self._greedy:
            for row, token in zip(self._greedy, logprobs[self._greedy].argmax(axis=1).tolist(), strict=True):
                tokens[row] = token
        if self._top_k:
            samplers = [self._sampler(row) for row in self._top_k]
            chosen = logprobs if len(self._top_k) == len(logprobs) else logprobs[self._top_k]
            for row, token in zip(self._top_k, pick_of_top_k(samplers, chosen).tolist(), strict=True):
                tokens[row] = token
        for row in self._single:
            tokens[row] = self._sampler(row).pick(logits[row])

    def _sampler(self, row: int) -> Sampler:
        sampler = self._samplers[row]
        assert sampler is not None
        return sampler


def pick_of_top_k(samplers: Sequence[Sampler], logprobs: Floats32) -> Ids:
    """A token for each row whose sampler has a top_k; top_p and min_p apply to what that leaves.

    logprobs  float32 [rows, vocabulary_size]
    returns   int64 [rows]
    """
    settings = [sampler.settings for sampler in samplers]
    counts = np.array([min(s.top_k, logprobs.shape[1]) for s in settings])
    scores, tokens = _ranked(logprobs, counts)
    scores[np.arange(scores.shape[1]) >= counts[:, None]] = -np.inf
    temperatures, top_p, min_p = np.array([(s.temperature, s.top_p, s.min_p) for s in settings]).T
    weights = np.exp((scores - scores[:, :1]) / temperatures[:, None])
    running = np.cumsum(weights, axis=1)  # in order, so that a row's sums do not depend on the longest row
    outside = (running - weights >= (top_p * running[:, -1])[:, None]) & (top_p < 1.0)[:, None]
    outside[:, 0] = False
    weights[outside | (weights < min_p[:, None])] = 0.0
    chosen = pick_by_cumulative(weights, np.array([s.uniform() for s in samplers]))
    picked: Ids = tokens[np.arange(len(tokens)), chosen]
    return picked


def _ranked(logprobs: Floats32, counts: Ids) -> tuple[Floats64, Ids]:
    """The counts[row] likeliest tokens of each row and maybe some more, likeliest first, ties to the lower id.

    returns  log-probabilities float64 and ids int64 [rows, max(counts)]; past what a row has, anything

    What is below the bound is no candidate. The others are sorted as integers, the bits of a log-probability above its
    token's id: of numbers that are not positive the larger ones have the smaller bits.
    """
    num_rows, size = logprobs.shape
    flat = np.flatnonzero(logprobs >= _least_of_top_k(logprobs, counts)[:, None])
    rows, ids = np.divmod(flat, size)
    first = np.searchsorted(rows, np.arange(num_rows + 1))
    bits = logprobs.reshape(-1)[flat].view(np.uint32).astype(np.uint64)
    keys = np.full((num_rows, int(np.diff(first).max())), np.iinfo(np.uint64).max)
    keys[rows, np.arange(len(rows)) - first[rows]] = (bits << np.uint64(32)) | ids.astype(np.uint64)
    keys.sort(axis=1)
    keys = keys[:, : counts.max()]
    scores = (keys >> np.uint64(32)).astype(np.uint32).view(np.float32)
    return scores.astype(np.float64), (keys & np.uint64(2**32 - 1)).astype(np.int64)


def _least_of_top_k(logprobs: Floats32, counts: Ids) -> Floats32:
    """A lower bound of the counts[row]-th largest value of each row, float32 [rows].

    The k-th largest of the maxima of some blocks is at most the k-th largest of all.
    """
    num_rows, size = logprobs.shape
    length = max(1, size // max(256, 2 * int(counts.max())))  # many blocks: their maxima are taken side by side
    num_blocks = size // length
    maxima = logprobs[:, : num_blocks * length].reshape(num_rows, length, num_blocks).max(axis=1)
    bounds: Floats32
    if (counts == counts[0]).all():
        place = num_blocks - int(counts[0])
        bounds = np.partition(maxima, place, axis=1)[:, place]
    else:
        bounds = np.sort(maxima, axis=1)[np.arange(num_rows), num_blocks - counts]
    return bounds


def pick_by_cumulative(weights: Floats64, uniforms: Floats64) -> Ids:
    """Invert each row's cumulative distribution.

    weights   float64 [rows, choices], >= 0, not all zero, need not sum to 1
    uniforms  float64 [rows], in [0, 1)
    returns   int64 [rows]; a choice of weight 0 is never taken
    """
    cumulative = np.cumsum(weights, axis=1)
    totals = cumulative[:, -1]
    thresholds = np.minimum(uniforms * totals, np.nextafter(totals, 0.0))
    picked: Ids = (cumulative <= thresholds[:, None]).sum(axis=1)
    return picked


def truncated(scores: Floats64, top_k: int, top_p: float, min_p: float) -> Ids | None:
    """Which tokens top_k, top_p and min_p leave, one after the other; ties go to the lower id.

    scores   float64 [vocabulary_size], log-weights whose largest is 0
    returns  int64 [kept], likeliest first, at least one; None when nothing is switched on
    """
    if top_k == 0 and top_p >= 1.0 and min_p == 0.0:
        return None
    if 0 < top_k < len(scores):
        # No token below the k-th largest score can be kept; only the others need sorting.
        candidates = np.flatnonzero(scores >= np.partition(scores, -top_k)[-top_k])
    else:
        candidates = np.arange(len(scores))
    order = candidates[np.argsort(-scores[candidates], kind="stable")]
    if top_k:
        order = order[:top_k]
    weights = np.exp(scores[order])
    num_kept = len(order)
    if top_p < 1.0:
        before = np.cumsum(weights) - weights
        num_kept = max(1, int((before < top_p * weights.sum()).sum()))
    if min_p > 0.0:
        num_kept = min(num_kept, int((weights >= min_p * weights[0]).sum()))
    return order[:num_kept]


def on_grid(logprobs: Floats32) -> Floats64:
    """Log-probabilities as they are handed out: float64, rounded to the grid of 2**-30 nats (see calls.py)."""
    rounded: Floats64 = np.rint(logprobs.astype(np.float64) * GRID) / GRID
    return rounded


def likeliest(logprobs: Floats32, count: int) -> Ids:
    """The `count` likeliest tokens of each row, likeliest first, ties to the lower id.

    logprobs  float32 [rows, vocabulary_size]
    returns   int64 [rows, min(count, vocabulary_size)]
    """
    num_rows, size = logprobs.shape
    count = min(count, size)
    flat = np.flatnonzero(logprobs >= _least_of_top_k(logprobs, np.full(num_rows, count))[:, None])
    rows = flat // size
    order = np.lexsort((-logprobs.reshape(-1)[flat], rows))  # stable: ties stay in the order of their ids
    first = np.searchsorted(rows, np.arange(num_rows))
    best: Ids = flat[order[first[:, None] + np.arange(count)]] % size
    return best
