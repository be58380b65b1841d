"""A distribution → the next token of one sample.

Input: logits or log-probabilities of one row, settings, a seed. Output: a token. Must not know: sequences, other rows.

The order and the meaning are vLLM's: logit bias, repetition penalty (CTRL, Keskar et al. 2019, arXiv 1909.05858: the
logit of a token that has occurred is divided by r where positive, multiplied by r where negative), frequency and
presence penalties (OpenAI's: the frequency penalty is subtracted each time a token was generated, the presence penalty
once; the prompt does not count), temperature (below 1e-5 the likeliest token), min_p, top_k (with all tokens as likely
as the k-th), and top_p of the tokens left (nucleus, Holtzman et al. 2019, arXiv 1904.09751). Then one uniform number
picks a token. Ties go to the lowest id, where vLLM leaves the order to its sort.

`batch.py` decides which rows of a run are sampled inside the graph instead.

The uniform number of a token is a function of the sample's seed and of the token's position in the whole text: it does
not matter in how many requests a text was written.
"""

from __future__ import annotations

import hashlib
import math
import struct
from collections import Counter
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Final

import numpy as np
import numpy.typing as npt

from meari.runtime.engine.calls import GRID, Sampling, sample_seed

Floats32 = npt.NDArray[np.float32]
Floats64 = npt.NDArray[np.float64]
Ids = npt.NDArray[np.int64]
MIN_TEMPERATURE: Final = 1e-5  # below, the likeliest token is taken
MIN_TEMPERATURE_IN_GRAPH: Final = 0.2  # below, float32 weights of a flat distribution underflow
MAX_MIN_P_IN_GRAPH: Final = 1 - 2.0**-20  # the resolution of float32 weights
MIN_TOP_P_IN_GRAPH: Final = 2.0**-20
SURE_REDRAWS: Final = 6  # of a token outside a nucleus of half the mass and more
MIN_PENALTY: Final = 1e-30  # smaller ones only overflow
NO_LIMIT: Final = 1e9
BLOCK: Final = 8  # positions whose uniform numbers come from one hash
PACK: Final = struct.Struct("<QQ").pack
GOLDEN: Final = np.uint64(0x9E3779B97F4A7C15)
NOTHING_GENERATED: Final[Mapping[int, int]] = MappingProxyType({})


class Sampler:
    """The settings, random numbers and token counts of one sample.

    index     number of the sample within its request: samples of one seed are independent, and the first is the same
              however many there are
    seen      tokens of the text so far, for the repetition penalty
    position  number of tokens before the first that will be sampled
    end_id    the token that settings.min_tokens bars
    generated how often each token of the text so far was sampled, for the frequency and presence penalties

    reshapes   whether the next token is sampled from logits that only this file computes
    is_greedy  whether it is the model's likeliest
    is_drawn   whether the graph samples it: float32 weights are fine enough
    columns    inverse temperature, min_p, top_p and top_k, as the graph expects them of a token that it samples
    """

    def __init__(
        self,
        settings: Sampling,
        index: int,
        seen: Iterable[int],
        position: int,
        end_id: int,
        generated: Mapping[int, int] = NOTHING_GENERATED,
    ) -> None:
        self.settings = settings
        self.seed = sample_seed(settings.seed, position, index)
        self.end_id = end_id
        self._num_before_end = settings.min_tokens
        self._position = position
        self._key = hashlib.blake2b(b"%d" % self.seed, digest_size=32).digest()
        self._block = (-1, b"")
        self._seen = set(seen) if settings.repetition_penalty != 1.0 else None
        self._generated = Counter(generated) if settings.frequency_penalty or settings.presence_penalty else None
        bias = dict(settings.logit_bias)
        self._bias = (np.array(list(bias), np.int64), np.array(list(bias.values()), np.float64)) if bias else None
        self.reshapes = not (self._seen is None and self._generated is None and self._bias is None)
        self._takes_likeliest = settings.temperature < MIN_TEMPERATURE
        is_warm = settings.temperature >= MIN_TEMPERATURE_IN_GRAPH
        in_reach = settings.min_p <= MAX_MIN_P_IN_GRAPH and settings.top_p >= MIN_TOP_P_IN_GRAPH
        self.is_greedy = self._takes_likeliest and not self.reshapes
        self.is_drawn = is_warm and in_reach and not self.reshapes
        top_p = settings.top_p if settings.top_p < 1.0 else NO_LIMIT
        inverse = 1.0 / settings.temperature if self.is_drawn else 0.0
        self.columns = (inverse, settings.min_p, top_p, settings.top_k or NO_LIMIT)  # as the graph expects them

    @property
    def num_before_end(self) -> int:
        """Number of the next tokens that cannot be the end."""
        return max(0, self._num_before_end)

    @property
    def num_redraws(self) -> int:
        """Number of draws after the first until a token outside the nucleus is less likely than one in a million.

        Each leaves, on average, half of the mass between the nucleus and the token before.
        """
        top_p = self.settings.top_p
        return SURE_REDRAWS + math.ceil(-math.log(top_p) / math.log(2)) if top_p < 1.0 else 0

    def uniform(self) -> float:
        """Return the uniform number of the next token, in [0, 1)."""
        return float(uniforms_of(self.take_bits(1))[0])

    def take_bits(self, count: int) -> bytes:
        """Return the random bits of the next `count` tokens, for `uniforms_of`: 8 bytes each."""
        number, place = divmod(self._position, BLOCK)
        self._position += count
        if self._block[0] != number:
            self._block = (number, self._hash(number))
        bits = self._block[1]
        while place + count > BLOCK * (self._block[0] - number + 1):
            self._block = (self._block[0] + 1, self._hash(self._block[0] + 1))
            bits += self._block[1]
        return bits[8 * place : 8 * (place + count)]

    def _hash(self, number: int) -> bytes:
        """Hash a block of positions, so that the bits of any of them are found at once."""
        return hashlib.blake2b(PACK(number, 0), key=self._key).digest()

    def advance(self, count: int) -> None:
        """Count down the tokens that cannot be the end."""
        self._num_before_end -= count

    def count(self, token: int) -> None:
        """Count a sampled token."""
        if self._seen is not None:
            self._seen.add(token)
        if self._generated is not None:
            self._generated[token] += 1

    def pick(self, logits: Floats32) -> int:
        """Pick a token by all the settings. logits: float32 [vocabulary_size]."""
        settings = self.settings
        scores = self._reshaped(logits)
        if self._takes_likeliest:
            return int(scores.argmax())
        scores = (scores - scores.max()) / settings.temperature
        kept = truncated(scores, settings.top_k, settings.top_p, settings.min_p)
        if kept is None:
            return int(pick_by_cumulative(np.exp(scores)[None], np.array([self.uniform()]))[0])
        choice = pick_by_cumulative(np.exp(scores[kept])[None], np.array([self.uniform()]))[0]
        return int(kept[choice])

    def _reshaped(self, logits: Floats32) -> Floats64:
        scores = logits.astype(np.float64)
        if self._bias is not None:
            scores[self._bias[0]] += self._bias[1]
        if self._seen:
            seen = np.array(sorted(self._seen), np.int64)
            penalty = max(self.settings.repetition_penalty, MIN_PENALTY)
            scores[seen] = np.where(scores[seen] > 0, scores[seen] / penalty, scores[seen] * penalty)
        if self._generated:
            counts = np.array(list(self._generated.values()), np.float64)
            penalties = self.settings.frequency_penalty * counts + self.settings.presence_penalty
            scores[list(self._generated)] -= penalties
        if self._num_before_end > 0:
            scores[self.end_id] = -np.inf
        return scores


def uniforms_of(bits: bytes) -> Floats64:
    """Return a uniform number in [0, 1) for every 8 bytes, float64 [numbers]."""
    return _uniform(np.frombuffer(bits, "<u8"))


def _uniform(bits: npt.NDArray[np.uint64]) -> Floats64:
    numbers: Floats64 = (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53
    return numbers


def redraws_of(bits: bytes, count: int) -> Floats64:
    """Return `count` further uniform numbers for every 8 bytes, float64 [numbers, count].

    They are the next of SplitMix64 from there (Steele et al., "Fast splittable pseudorandom number generators", 2014).
    """
    mixed = np.frombuffer(bits, "<u8")[:, None] + GOLDEN * np.arange(1, count + 1, dtype=np.uint64)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        mixed = (mixed ^ (mixed >> np.uint64(shift))) * np.uint64(factor)
    mixed ^= mixed >> np.uint64(31)
    return _uniform(mixed)


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
    """Return the tokens that min_p, top_k and top_p leave, applied in that order.

    scores   float64 [vocabulary_size], log-weights whose largest is 0
    returns  int64 [kept], likeliest first, of equals the lower id first; at least one; None when nothing is switched on
    """
    if top_k == 0 and top_p >= 1.0 and min_p == 0.0:
        return None
    candidates = np.flatnonzero(np.exp(scores) >= min_p) if min_p > 0.0 else np.arange(len(scores))
    if 0 < top_k < len(candidates):
        least = np.partition(scores[candidates], -top_k)[-top_k]
        candidates = candidates[scores[candidates] >= least]
    order = candidates[np.argsort(-scores[candidates], kind="stable")]
    if top_p >= 1.0:
        return order
    weights = np.exp(scores[order])
    before = np.cumsum(weights) - weights
    num_kept = max(1, int((before < top_p * weights.sum()).sum()))
    return order[:num_kept]


def on_grid(logprobs: Floats32) -> Floats64:
    """Round log-probabilities to the grid of 2**-30 nats (see calls.py), as float64."""
    rounded: Floats64 = np.rint(logprobs.astype(np.float64) * GRID) / GRID
    return rounded


def _lower_bounds(logprobs: Floats32, count: int) -> Floats32:
    """Return a lower bound of the count-th largest value of each row, float32 [rows].

    The k-th largest of the maxima of some blocks is at most the k-th largest of all.
    """
    num_rows, size = logprobs.shape
    length = max(1, size // max(512, 2 * count))  # many blocks: their maxima are computed side by side
    num_blocks = size // length
    maxima = logprobs[:, : num_blocks * length].reshape(num_rows, length, num_blocks).max(axis=1)
    place = num_blocks - count
    bounds: Floats32 = np.partition(maxima, place, axis=1)[:, place]
    return bounds


def likeliest(logprobs: Floats32, count: int) -> Ids:
    """Return the `count` likeliest tokens of each row, likeliest first, ties to the lower id.

    logprobs  float32 [rows, vocabulary_size]
    returns   int64 [rows, min(count, vocabulary_size)]
    """
    num_rows, size = logprobs.shape
    count = min(count, size)
    flat = np.flatnonzero(logprobs >= _lower_bounds(logprobs, count)[:, None])
    rows = flat // size
    order = np.lexsort((-logprobs.reshape(-1)[flat], rows))  # stable: ties stay in the order of their ids
    first = np.searchsorted(rows, np.arange(num_rows))
    best: Ids = flat[order[first[:, None] + np.arange(count)]] % size
    return best


def alternatives(logprobs: Floats32, count: int) -> tuple[Ids, Floats64]:
    """Return the `count` likeliest tokens of one row, float32 [1, vocabulary_size], and their log-probabilities."""
    if count == 0:
        return np.empty(0, np.int64), np.empty(0)
    ids = likeliest(logprobs, count)[0]
    return ids, on_grid(logprobs[0, ids])
