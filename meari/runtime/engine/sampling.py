"""From a distribution to the next token of one sample.

The order and the meaning are vLLM's: logit bias, repetition penalty (CTRL, Keskar et al. 2019, arXiv 1909.05858: the
logit of a token that has occurred is divided by r where positive, multiplied by r where negative), frequency and
presence penalties (OpenAI's: the one is subtracted for each time that a token was generated, the other once; the prompt
counts nothing), temperature (below 1e-5 the likeliest token), min_p, top_k (with all that are as likely as the k-th),
and top_p of what these leave (nucleus, Holtzman et al. 2019, arXiv 1904.09751). Then one uniform number picks a token
from what is left. Of equals the lowest id goes first, where vLLM leaves the order to its sort.

This file does it for one sample; `draws.py` says which rows of a run are sampled inside the graph instead.

The uniform number of a token is a function of the sample's seed and of the token's position in the whole text: it does
not matter in how many requests a text was written. Every operation works on a row by itself: a row's token does not
depend on the rows beside it.
"""

from __future__ import annotations

import hashlib
import itertools
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
LEAST_TEMPERATURE: Final = 1e-5  # below, the likeliest token is taken
LEAST_TEMPERATURE_IN_GRAPH: Final = 0.2  # float32 weights of a flat distribution would underflow below
MOST_MIN_P_IN_GRAPH: Final = 1 - 2.0**-20  # float32 weights are not told apart more finely
LEAST_PENALTY: Final = 1e-30  # a smaller one changes nothing but what overflows
NO_LIMIT: Final = 1e9
BLOCK: Final = 8  # positions whose uniform numbers come from one hash
UNPACK: Final = struct.Struct("<8Q").unpack
NOTHING_GENERATED: Final[Mapping[int, int]] = MappingProxyType({})


class Sampler:
    """How one sample takes its tokens: settings, random numbers, tokens seen so far.

    index     number of the sample within its request: samples of one seed are independent, and the first is the same
              however many there are
    seen      the tokens of the text so far: the repetition penalty counts them
    position  of the first token that will be sampled: how many there are before it
    end_id    the token that settings.min_tokens keeps away
    generated how often each token of the text so far was sampled: the other two penalties count them
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
        self._block: tuple[int, tuple[float, ...]] = (-1, ())
        self._seen = set(seen) if settings.repetition_penalty != 1.0 else None
        self._generated = Counter(generated) if settings.frequency_penalty or settings.presence_penalty else None
        bias = dict(settings.logit_bias)
        self._bias = (np.array(list(bias), np.int64), np.array(list(bias.values()), np.float64)) if bias else None
        self._reshapes = not (self._seen is None and self._generated is None and self._bias is None)
        self._takes_likeliest = settings.temperature < LEAST_TEMPERATURE
        self._has_limits = settings.top_k > 0 or settings.top_p < 1.0 or settings.min_p > 0.0
        is_warm = settings.temperature >= LEAST_TEMPERATURE_IN_GRAPH
        self._is_in_reach = is_warm and settings.min_p <= MOST_MIN_P_IN_GRAPH
        top_p = settings.top_p if settings.top_p < 1.0 else NO_LIMIT
        inverse = 1.0 / settings.temperature if is_warm else 1.0
        self.columns = (inverse, settings.min_p, top_p, settings.top_k or NO_LIMIT)  # as the graph takes them

    @property
    def num_before_end(self) -> int:
        """Number of the next tokens that cannot be the end."""
        return max(0, self._num_before_end)

    @property
    def reshapes(self) -> bool:
        """True where the next token is taken from logits that the graph cannot make of the model's."""
        needs_order = self._has_limits and not self._takes_likeliest
        return self._reshapes or (self._num_before_end > 0 and needs_order)

    @property
    def is_greedy(self) -> bool:
        """True where the next token is the model's likeliest one."""
        return self._takes_likeliest and not self.reshapes

    @property
    def is_warm(self) -> bool:
        """True where float32 weights are fine enough to sample the next token."""
        return self._is_in_reach and not self.reshapes

    @property
    def is_top_k(self) -> bool:
        """True where the next token is one of the model's top_k likeliest ones."""
        return self.settings.top_k > 0 and not self._takes_likeliest and not self.reshapes

    def uniform(self) -> float:
        """The number of the next token, in [0, 1)."""
        number, place = divmod(self._position, BLOCK)
        if self._block[0] != number:
            self._block = (number, self._numbers(number))
        self._position += 1
        return self._block[1][place]

    def uniforms(self, count: int) -> list[float]:
        """The numbers of the next `count` tokens."""
        found: list[float] = []
        while len(found) < count:
            number, place = divmod(self._position, BLOCK)
            if self._block[0] != number:
                self._block = (number, self._numbers(number))
            some = self._block[1][place : place + count - len(found)]
            self._position += len(some)
            found += some
        return found

    def _numbers(self, number: int, attempt: int = 0) -> tuple[float, ...]:
        """Those of a block of positions, as far as it was drawn again: hashed, so that any of them is found at once."""
        message = struct.pack("<QQ", number, attempt)
        return tuple((bits >> 11) * 2.0**-53 for bits in UNPACK(hashlib.blake2b(message, key=self._key).digest()))

    def advance(self, count: int) -> None:
        """Count down the tokens that cannot be the end."""
        self._num_before_end -= count

    def saw(self, token: int) -> None:
        """Count a sampled token."""
        if self._seen is not None:
            self._seen.add(token)
        if self._generated is not None:
            self._generated[token] += 1

    def pick(self, logits: Floats32) -> int:
        """Take a token by all the settings. logits: float32 [vocabulary_size]."""
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

    def settle(self, logprobs: Floats32, token: int) -> int:
        """A token of the nucleus, where `token`, sampled without regard to top_p, may lie outside.

        logprobs  float32 [vocabulary_size]

        By rejection: what weighs as much as a rejected token or less is left out of the next draw, so a few will do.
        """
        settings = self.settings
        scores = (logprobs.astype(np.float64) - float(logprobs.max())) / settings.temperature
        weights = np.exp(scores)
        weights[weights < settings.min_p] = 0.0
        limit = settings.top_p * float(weights.sum())
        for attempt in itertools.count(1):
            ahead = np.flatnonzero(weights >= weights[token])
            ahead = ahead[(weights[ahead] > weights[token]) | (ahead < token)]
            if not len(ahead) or float(weights[ahead].sum()) < limit:
                return token
            again = np.array(self._numbers(self._position, attempt)[:1])
            token = int(ahead[pick_by_cumulative(weights[ahead][None], again)[0]])
        raise AssertionError("each attempt leaves fewer tokens")

    def _reshaped(self, logits: Floats32) -> Floats64:
        scores = logits.astype(np.float64)
        if self._bias is not None:
            scores[self._bias[0]] += self._bias[1]
        if self._seen:
            seen = np.array(sorted(self._seen), np.int64)
            penalty = max(self.settings.repetition_penalty, LEAST_PENALTY)
            scores[seen] = np.where(scores[seen] > 0, scores[seen] / penalty, scores[seen] * penalty)
        if self._generated:
            counts = np.array(list(self._generated.values()), np.float64)
            penalties = self.settings.frequency_penalty * counts + self.settings.presence_penalty
            scores[list(self._generated)] -= penalties
        if self._num_before_end > 0:
            scores[self.end_id] = -np.inf
        return scores


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
    """Log-probabilities as they are handed out: float64, rounded to the grid of 2**-30 nats (see calls.py)."""
    rounded: Floats64 = np.rint(logprobs.astype(np.float64) * GRID) / GRID
    return rounded
