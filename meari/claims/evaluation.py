"""Use of a trained model: loss of held-out text, written texts, and the share of a text that repeats itself.

Input: a model and token ids; prompts and a way of sampling. Output: nats a token, token ids, shares. Must not know: the
claims.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from meari.claims.text import Ids
from meari.models.language_model import LanguageModel

NUM_ROWS = 32
WARMUP_TOKENS = 128  # before each piece, not counted
CHUNK_TOKENS = 64

Floats = NDArray[np.float64]
NGRAM = 8  # characters
WINDOW = 256  # characters before, searched for the n-gram; fixed, so that a longer text has no more chances


def held_out_loss(model: LanguageModel, ids: Ids) -> float:
    """Return nats a token; the row is cut into equal pieces that run side by side, each warmed up on the tokens before
    it.

    ids   int64 [num_tokens]
    """
    warm = min(WARMUP_TOKENS, len(ids) // 4)
    num_rows = max(1, min(NUM_ROWS, (len(ids) - 1 - warm) // (2 * CHUNK_TOKENS)))
    length = (len(ids) - 1 - warm) // num_rows
    rows = ids[np.arange(num_rows)[:, None] * length + np.arange(warm + length + 1)]
    return float(token_losses(model, rows)[:, warm:].mean())


@torch.no_grad()
def token_losses(model: LanguageModel, rows: Ids) -> Floats:
    """Return -ln P of every token after the first, from the initial state: int64 [batch, time + 1] → float64 [batch,
    time].

    Leaves the model's mode as it was.
    """
    was_training = model.training
    model.eval()
    tokens = torch.from_numpy(rows)
    state = model.initial_state(len(rows))
    pieces = []
    for begin in range(0, rows.shape[1] - 1, CHUNK_TOKENS):
        piece = tokens[:, begin : begin + CHUNK_TOKENS + 1]
        hidden, state = model(piece[:, :-1], state)
        logits = model.logits(hidden).transpose(1, 2)
        pieces.append(functional.cross_entropy(logits, piece[:, 1:], reduction="none").double().numpy())
    model.train(was_training)
    return np.concatenate(pieces, axis=1)


@dataclass(frozen=True)
class Sampling:
    """Way of sampling. temperature 0: the likeliest token; top_p 1: no limit."""

    name: str
    temperature: float = 1.0
    top_p: float = 1.0


SAMPLINGS = (
    Sampling("greedy", 0.0),
    Sampling("temperature 0.5", 0.5),
    Sampling("temperature 0.8", 0.8),
    Sampling("temperature 1.0"),
    Sampling("top-p 0.9", 1.0, 0.9),
)


@torch.no_grad()
def write_texts(model: LanguageModel, prompts: Ids, num_tokens: int, sampling: Sampling, seed: int) -> Ids:
    """Continue every prompt: int64 [batch, prompt] → int64 [batch, num_tokens]."""
    generator = torch.Generator().manual_seed(seed)
    hidden, state = model(torch.from_numpy(prompts), model.initial_state(len(prompts)))
    last, written = hidden[:, -1], []
    for _ in range(num_tokens):
        token = pick(model.logits(last), sampling, generator)
        written.append(token)
        last, state = model.step(token, state)
    return np.asarray(torch.stack(written, dim=1).numpy(), dtype=np.int64)


def pick(logits: Tensor, sampling: Sampling, generator: torch.Generator) -> Tensor:
    """Pick one token a row: float32 [batch, V] → int64 [batch]."""
    if sampling.temperature == 0:
        return logits.argmax(1)
    probabilities = (logits / sampling.temperature).softmax(1)
    if sampling.top_p < 1:
        ordered, places = probabilities.sort(dim=1, descending=True)
        # A token stays if the likelier ones weigh less than top_p together, so the first one always stays.
        ordered[ordered.cumsum(1) - ordered >= sampling.top_p] = 0
        probabilities = torch.zeros_like(probabilities).scatter_(1, places, ordered)
    return torch.multinomial(probabilities, 1, generator=generator).squeeze(1)


def repeated(rows: Ids, begin: int) -> Floats:
    """Mark with 1 where the NGRAM that ends at a place has occurred within the WINDOW before, from place `begin` on.

    rows     int64 [batch, time]
    returns  float64 [batch, time - begin]
    """
    grams = np.lib.stride_tricks.sliding_window_view(rows, NGRAM, axis=1)  # [batch, time - NGRAM + 1, NGRAM]
    found = np.zeros((len(rows), rows.shape[1] - begin))
    for row in range(len(rows)):
        last: dict[bytes, int] = {}
        for place in range(grams.shape[1]):
            key, end = grams[row, place].tobytes(), place + NGRAM - 1
            if end >= begin and key in last and end - last[key] <= WINDOW:
                found[row, end - begin] = 1.0
            last[key] = end
    return found
