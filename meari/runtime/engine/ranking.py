"""The likeliest tokens of some rows, without sorting a vocabulary.

Bounds from block maxima leave few candidates, and only those are sorted. Every row is ranked by itself.
"""

from __future__ import annotations

import numpy as np

from meari.runtime.engine.sampling import Floats32, Floats64, Ids


def ranked(logprobs: Floats32, counts: Ids) -> tuple[Floats64, Ids]:
    """The counts[row] likeliest tokens of each row, those as likely as the last of them, and maybe some more.

    returns  log-probabilities float64 and ids int64 [rows, most], likeliest first, ties to the lower id; past what a
             row has, a log-probability of -inf

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
    last = keys[np.arange(num_rows), counts - 1] | np.uint64(2**32 - 1)
    keys = keys[:, : (keys <= last[:, None]).sum(axis=1).max()]
    scores = (keys >> np.uint64(32)).astype(np.uint32).view(np.float32).astype(np.float64)
    scores[np.isnan(scores)] = -np.inf  # of what was filled up
    return scores, (keys & np.uint64(2**32 - 1)).astype(np.int64)


def _least_of_top_k(logprobs: Floats32, counts: Ids) -> Floats32:
    """A lower bound of the counts[row]-th largest value of each row, float32 [rows].

    The k-th largest of the maxima of some blocks is at most the k-th largest of all.
    """
    num_rows, size = logprobs.shape
    length = max(1, size // max(512, 2 * int(counts.max())))  # many blocks: their maxima are taken side by side
    num_blocks = size // length
    maxima = logprobs[:, : num_blocks * length].reshape(num_rows, length, num_blocks).max(axis=1)
    bounds: Floats32
    if (counts == counts[0]).all():
        place = num_blocks - int(counts[0])
        bounds = np.partition(maxima, place, axis=1)[:, place]
    else:
        bounds = np.sort(maxima, axis=1)[np.arange(num_rows), num_blocks - counts]
    return bounds


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
