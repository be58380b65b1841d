"""Loss on text that was not trained on. Input: a model and token ids. Output: nats a token."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from meari.claims.text import Ids
from meari.models.language_model import LanguageModel

NUM_ROWS = 32
WARM_TOKENS = 128  # before each piece, read but not counted
CHUNK_TOKENS = 64

Floats = NDArray[np.float64]


def held_out_loss(model: LanguageModel, ids: Ids) -> float:
    """Nats a token; the row is cut into equal pieces that run side by side, each warmed up on the tokens before it.

    ids   int64 [num_tokens]
    """
    warm = min(WARM_TOKENS, len(ids) // 4)
    num_rows = max(1, min(NUM_ROWS, (len(ids) - 1 - warm) // (2 * CHUNK_TOKENS)))
    length = (len(ids) - 1 - warm) // num_rows
    rows = ids[np.arange(num_rows)[:, None] * length + np.arange(warm + length + 1)]
    return float(token_losses(model, rows)[:, warm:].mean())


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
