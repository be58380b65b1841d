"""Loss on text that was not trained on, with its error. In: a model and token ids. Out: nats a token."""

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from claims.text import Ids
from models.language_model import LanguageModel

NUM_ROWS = 32
WARM_TOKENS = 128  # before each piece, read but not counted
CHUNK_TOKENS = 64

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Estimate:
    """A mean and the standard error that the spread over pieces of text gives it."""

    mean: float
    standard_error: float

    @staticmethod
    def of(values: Floats) -> "Estimate":
        """Of independent values, float64 [n]."""
        error = float(values.std(ddof=1)) / math.sqrt(len(values)) if len(values) > 1 else 0.0
        return Estimate(float(values.mean()), error)


def held_out_loss(model: LanguageModel, ids: Ids) -> Estimate:
    """Nats a token; the row is cut into equal pieces that run side by side, each warmed up on the tokens before it.

    ids   int64 [num_tokens]
    """
    warm = min(WARM_TOKENS, len(ids) // 4)
    num_rows = max(1, min(NUM_ROWS, (len(ids) - 1 - warm) // (2 * CHUNK_TOKENS)))
    length = (len(ids) - 1 - warm) // num_rows
    rows = ids[np.arange(num_rows)[:, None] * length + np.arange(warm + length + 1)]
    return Estimate.of(token_losses(model, rows)[:, warm:].mean(1))


@torch.no_grad()
def token_losses(model: LanguageModel, rows: Ids) -> Floats:
    """-ln P of every token after the first, from the initial state: int64 [batch, time + 1] → float64 [batch, time].

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
