"""The figures that a server must reproduce before it trusts a bundle: tokens, log-probabilities and the last
state.

In: checked graphs. Out: the bytes of golden.npz and how far another machine's figures may lie from them.

    tokens      int64 [steps, rows], the first step being the boundary token
    logprobs    float32 [steps, rows, V], of the token after each step
    state_NAME  float32 [rows, *shape], after the last step; before the first one it is zero
"""

import io
from dataclasses import dataclass
from typing import Any

import numpy as np

from meari.export.precision import Precision
from meari.export.sessions import GraphModel, Graphs, Tokens
from meari.models.text.tokenizer import END_ID

NUM_STEPS = 8
NUM_ROWS = 2
# Processors round exp and tanh differently in the last bit. In int8 such a bit can move an activation to the next
# integer: with random noise of 1e-6 in the states, up to 0.01 nats were seen.
TOLERANCES = {Precision.FP32: 1e-4, Precision.INT8: 5e-2}


@dataclass(frozen=True)
class Golden:
    content: bytes
    tolerance: float


def make_golden(graphs: Graphs, held_out: Tokens) -> Golden:
    """Run two rows for eight steps: one of held-out text where there is some, one of random tokens."""
    opened = GraphModel(graphs)
    tokens = np.random.default_rng(0).integers(0, opened.vocabulary_size, (NUM_STEPS, NUM_ROWS))
    tokens[0] = END_ID
    text = held_out[held_out != END_ID][: NUM_STEPS - 1]
    tokens[1 : len(text) + 1, 0] = text
    state = opened.initial_state(NUM_ROWS)
    logprobs = []
    for row in tokens:
        hidden, state = opened.step(row, state)
        logprobs.append(opened.logprobs(hidden))
    arrays: dict[str, Any] = {f"state_{name}": value for name, value in state.items()}
    stream = io.BytesIO()
    np.savez_compressed(stream, allow_pickle=False, tokens=tokens, logprobs=np.stack(logprobs), **arrays)
    return Golden(stream.getvalue(), TOLERANCES[graphs.precision])
