"""A few texts that the finished graphs write, for the model card.

In: graphs, a tokenizer, a seed. Out: texts. Plain sampling at one temperature; the server has more to offer.
"""

import numpy as np

from meari.export.sessions import GraphModel, Graphs
from meari.models.text.tokenizer import Tokenizer

NUM_SAMPLES = 3
MOST_TOKENS = 200
TEMPERATURE = 0.8
SEED = 1


def draw_samples(graphs: Graphs, tokenizer: Tokenizer) -> list[str]:
    """Texts from the boundary token to their end or 200 tokens, the same ones each time."""
    opened = GraphModel(graphs)
    return [
        tokenizer.decode(_draw(opened, tokenizer, np.random.default_rng([SEED, row]))) for row in range(NUM_SAMPLES)
    ]


def _draw(opened: GraphModel, tokenizer: Tokenizer, generator: np.random.Generator) -> list[int]:
    state = opened.initial_state(1)
    token = tokenizer.end_id
    tokens: list[int] = []
    while len(tokens) < MOST_TOKENS:
        hidden, state = opened.step(np.array([token]), state)
        logits = opened.logprobs(hidden)[0].astype(np.float64) / TEMPERATURE
        if tokenizer.unknown_id is not None:
            logits[tokenizer.unknown_id] = -np.inf
        weights = np.exp(logits - logits.max())
        token = int(generator.choice(len(weights), p=weights / weights.sum()))
        if token == tokenizer.end_id:
            break
        tokens.append(token)
    return tokens
