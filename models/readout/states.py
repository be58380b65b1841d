"""Inputs of a reservoir's readout along a row of token ids, a bounded piece at a time.

Input: a model and token ids. Output: states, with the features of an expansion, and the tokens that follow.
Must not know: the use of the states.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from meari.models.cells.esn import EchoStateNetwork

Ids = NDArray[Any]

MAX_ROWS = 64  # pieces of the row that are run side by side
WARMUP_TOKENS = (
    64  # at the beginning of a piece; their states are not yielded, because the first one is not the text's own
)
CHUNK_TOKENS = 4096  # yielded at a time
MIN_PIECE_TOKENS = 4 * WARMUP_TOKENS


@torch.no_grad()
def state_chunks(
    model: EchoStateNetwork, ids: Ids, masked: NDArray[np.int64] | None = None
) -> Iterator[tuple[Tensor, Tensor]]:
    """Run the row as equal pieces side by side, each from the initial state.

    ids     unsigned integers [num_tokens], at least two
    masked  int64 [num_masked], places of tokens that are run like all others; the states before them are not yielded
    yields  states float32 [n, readout_inputs] and the tokens that follow them, int64 [n], on the device of the model

    A row too short for several pieces is run as one, without warming up.
    """
    num_targets = len(ids) - 1
    num_rows = min(MAX_ROWS, max(1, num_targets // MIN_PIECE_TOKENS))
    length = num_targets // num_rows
    places = np.arange(num_rows)[:, None] * length + np.arange(length + 1)
    rows = torch.from_numpy(np.asarray(ids)[places].astype(np.int64)).to(model.device)
    is_learnt = torch.ones(len(ids), dtype=torch.bool)
    if masked is not None:
        is_learnt[masked] = False
    learnt = is_learnt[places].to(model.device)
    step = max(1, CHUNK_TOKENS // num_rows)
    state = model.initial_state(num_rows)
    begin = 0
    if num_rows > 1:
        _, state = model(rows[:, :WARMUP_TOKENS], state)
        begin = WARMUP_TOKENS
    for start in range(begin, length, step):
        stop = min(start + step, length)
        hidden, state = model(rows[:, start:stop], state)
        following = slice(start + 1, stop + 1)
        yield model.readout_states(hidden[learnt[:, following]]), rows[:, following][learnt[:, following]]
