"""From the distributions of a step to the next tokens.

The order is that of Hugging Face's `generate`: logit bias, repetition penalty (CTRL, Keskar et al. 2019, arXiv
1909.05858: the logit of a token that has occurred is divided by r where positive, multiplied by r where negative),
temperature, top_k, top_p (nucleus, Holtzman et al. 2019, arXiv 1904.09751), min_p. Then one uniform number picks a
token from what is left.

Every sampler owns its random generator, and every operation works on a row by itself: a row's token does not depend
on the rows beside it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
import numpy.typing as npt

from service.engine.calls import GRID, Sampling

Floats32 = npt.NDArray[np.float32]
Floats64 = npt.NDArray[np.float64]
Ids = npt.NDArray[np.int64]
HUGE: Final = 1e300  # a score past it stays there: two that overflowed could not be compared


class Sampler:
    """How one sample takes its tokens: settings, random generator, tokens seen so far.

    index    number of the sample within its request: samples of one seed are independent, and the first is the same
             however many there are
    context  the prompt's tokens: the repetition penalty counts them as seen
    """

    def __init__(self, settings: Sampling, index: int, context: Sequence[int]) -> None:
        self.settings = settings
        self._random = np.random.Generator(np.random.PCG64(np.random.SeedSequence(settings.seed, spawn_key=(index,))))
        self._seen = set(context) if settings.repetition_penalty != 1.0 else None
        bias = dict(settings.logit_bias)
        self._bias = (np.array(list(bias), np.int64), np.array(list(bias.values()), np.float64)) if bias else None
        reshapes = self._seen is not None or self._bias is not None
        truncates = settings.top_k > 0 or settings.top_p < 1.0 or settings.min_p > 0.0
        self.is_greedy = settings.temperature == 0.0 and not reshapes
        self.is_plain = settings.temperature > 0.0 and not reshapes and not truncates

    def uniform(self) -> float:
        """The next number of this sample's generator, in [0, 1)."""
        return self._random.random()

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


@np.errstate(over="ignore")  # of a tiny temperature or penalty: exp(-inf) is 0, as it should be
def sample_rows(samplers: Sequence[Sampler], logits: Floats32, logprobs: Floats32) -> list[int]:
    """One token for each row.

    samplers  one a row
    logits    float32 [rows, vocabulary_size]
    logprobs  float32 [rows, vocabulary_size], the log-softmax of the logits
    returns   token ids
    """
    tokens = [0] * len(samplers)
    plain = [row for row, sampler in enumerate(samplers) if sampler.is_plain]
    greedy = [row for row, sampler in enumerate(samplers) if sampler.is_greedy]
    if plain:
        temperatures = np.array([samplers[row].settings.temperature for row in plain])
        uniforms = np.array([samplers[row].uniform() for row in plain])
        scores = logprobs[plain].astype(np.float64)
        scores = (scores - scores.max(axis=1, keepdims=True)) / temperatures[:, None]
        for row, token in zip(plain, pick_by_cumulative(np.exp(scores), uniforms), strict=True):
            tokens[row] = int(token)
    if greedy:
        for row, token in zip(greedy, logits[greedy].argmax(axis=1), strict=True):
            tokens[row] = int(token)
    for row, sampler in enumerate(samplers):
        if not (sampler.is_plain or sampler.is_greedy):
            tokens[row] = sampler.pick(logits[row])
        sampler.saw(tokens[row])
    return tokens


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
    count = min(count, logprobs.shape[1])
    thresholds = np.partition(logprobs, -count, axis=1)[:, -count]
    best = np.empty((len(logprobs), count), np.int64)
    for row, (values, threshold) in enumerate(zip(logprobs, thresholds, strict=True)):
        candidates = np.flatnonzero(values >= threshold)
        best[row] = candidates[np.argsort(-values[candidates], kind="stable")][:count]
    return best
