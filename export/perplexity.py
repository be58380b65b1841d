"""Held-out perplexity of finished graphs, and what int8 may cost of it.

In: graphs and held-out token ids. Out: perplexities, or `PrecisionLost`. Knows nothing of torch.
"""

from dataclasses import dataclass

import numpy as np

from export.errors import PrecisionLost, UnusableRun
from export.precision import Precision
from export.sessions import GraphModel, Graphs, Tokens
from export.verification import check_normalised
from models.text.tokenizer import END_ID

MOST_TOKENS = 50_000
LEAST_TOKENS = 64  # both precisions run the same tokens, so that few tell one per cent
NUM_STREAMS = 64
MOST_LOSS = 0.01  # of the fp32 perplexity


@dataclass(frozen=True)
class HeldOutPerplexity:
    """Of the graphs that are exported, and of the same weights in float32, on the same tokens."""

    num_tokens: int
    perplexity: float
    perplexity_fp32: float

    @property
    def loss(self) -> float:
        """Relative: 0.01 is one per cent above fp32."""
        return self.perplexity / self.perplexity_fp32 - 1

    def in_words(self, precision: Precision) -> str:
        """Both perplexities, or the one where they are the same."""
        text = f"{precision} has perplexity {self.perplexity:.4f} over {self.num_tokens:,} tokens"
        if precision is Precision.FP32:
            return text
        return f"{text}, fp32 {self.perplexity_fp32:.4f} ({self.loss:+.2%})"


def check_precision(graphs: Graphs, reference: Graphs, held_out: Tokens) -> HeldOutPerplexity | None:
    """Compare with the float32 graphs of the same weights, which may be the same ones.

    held_out   int64 [num_tokens], in which 0 is the boundary
    returns    None where there is too little text to tell, and float32 needs no telling

    Raises PrecisionLost at more than one per cent, UnusableRun where there is too little text for int8.
    """
    if len(held_out) <= LEAST_TOKENS:
        if graphs.precision is Precision.FP32:
            return None
        raise UnusableRun(
            f"got {len(held_out)} held-out tokens, expected more than {LEAST_TOKENS:,} to measure int8 on: "
            "give the run folder that holds tokens/, or a larger validation part, or export with --precision fp32"
        )
    nats_fp32, num_tokens = nats_per_token(reference, held_out)
    nats = nats_fp32 if graphs is reference else nats_per_token(graphs, held_out)[0]
    found = HeldOutPerplexity(num_tokens, float(np.exp(nats)), float(np.exp(nats_fp32)))
    if not found.loss <= MOST_LOSS:
        raise PrecisionLost(
            f"held-out text: {found.in_words(graphs.precision)}, expected at most {MOST_LOSS:+.0%}; "
            "export with --precision fp32"
        )
    return found


def nats_per_token(graphs: Graphs, held_out: Tokens) -> tuple[float, int]:
    """Run the first 50,000 tokens as parallel streams, each from the initial state and again at every
    boundary. A stream's first input is the boundary, as a served text's is: a model need not know what to make of
    the initial state and any other token.

    Returns the mean of -ln P, and over how many tokens.
    """
    opened = GraphModel(graphs)
    ids = held_out[: MOST_TOKENS + 1]
    num_streams = min(NUM_STREAMS, len(ids) - 1)
    num_steps = (len(ids) - 1) // num_streams
    inputs = ids[: num_streams * num_steps].reshape(num_streams, num_steps).copy()
    inputs[:, 0] = END_ID
    targets = ids[1 : num_streams * num_steps + 1].reshape(num_streams, num_steps)
    state = opened.initial_state(num_streams)
    rows = np.arange(num_streams)
    total = 0.0
    for step in range(num_steps):
        for tensor in state.values():
            tensor[inputs[:, step] == END_ID] = 0.0
        hidden, state = opened.step(inputs[:, step], state)
        logprobs = opened.logprobs(hidden)
        check_normalised(logprobs)
        total -= float(logprobs[rows, targets[:, step]].astype(np.float64).sum())
    return total / inputs.size, inputs.size
