"""The share of an n-gram model in a bundle, and the check of graphs that mix it in.

Input: graphs with and without it, held-out tokens. Output: `NgramWeights` with shares; a `CheckFailed` with the reason.
Must not know: how n-grams are counted, the graphs' operators.
"""

import numpy as np

from meari.export.errors import MixtureMismatch
from meari.export.ngram import Ids, NgramWeights, fit_shares
from meari.export.perplexity import scored_groups, scored_steps
from meari.export.sessions import GraphModel, Graphs, Tokens
from meari.export.verification import TORCH_TOLERANCE, check_normalised
from meari.models.text.token_file import TokenFile

MAX_FITTED = 200_000  # held-out tokens
NUM_ROWS = 8
NUM_STEPS = 64


def fitted(ngram: NgramWeights, graphs: Graphs, held_out: TokenFile, *, counts_ends: bool) -> NgramWeights:
    """Return the n-gram model with the shares that make held-out tokens likeliest.

    graphs  without it
    """
    opened = GraphModel(graphs)
    network, targets, contexts = [], [], []
    num_tokens = 0
    for group in scored_groups(held_out):
        recent = np.zeros((len(group), ngram.order - 1), np.int64)
        for tokens, rows, wanted, logprobs in scored_steps(opened, group, counts_ends=counts_ends):
            recent = after(recent, tokens)
            network.append(np.exp(logprobs[rows, wanted].astype(np.float64)))
            targets.append(wanted)
            contexts.append(recent[rows])
            num_tokens += len(rows)
        if num_tokens >= MAX_FITTED:
            break
    of_ngram, lengths = ngram.probabilities(np.concatenate(targets), np.concatenate(contexts))
    return ngram.with_shares(fit_shares(np.concatenate(network), of_ngram, lengths, ngram.order))


def after(recent: Ids, tokens: Tokens) -> Ids:
    """Return the last tokens after one more in each row, int64 [rows, order - 1], as `NgramWeights.find` takes them."""
    return np.concatenate([tokens[:, None] + 1, recent[:, :-1]], axis=1)


def check_mixture(mixed: Graphs, alone: Graphs, ngram: NgramWeights, held_out: Tokens) -> None:
    """Compare the distributions of graphs with the mixture of the network's, by the graphs without it, and n-grams'.

    held_out  int64 [num_tokens]; half of the rows are taken from it, as far as it goes, the others are random

    Raises MixtureMismatch above 1e-4 nats, NotNormalised where a distribution's sum is off by more than 1e-5.
    """
    size = ngram.vocabulary_size
    tokens = np.random.default_rng(0).integers(0, size, (NUM_ROWS, NUM_STEPS))
    num_real = min(NUM_ROWS // 2, len(held_out) // NUM_STEPS)
    tokens[:num_real] = held_out[: num_real * NUM_STEPS].reshape(num_real, NUM_STEPS)
    with_ngram, without = GraphModel(mixed), GraphModel(alone)
    state, other = with_ngram.initial_state(NUM_ROWS), without.initial_state(NUM_ROWS)
    recent = np.zeros((NUM_ROWS, ngram.order - 1), np.int64)
    for step in range(NUM_STEPS):
        hidden, state = with_ngram.step(tokens[:, step], state)
        alone_hidden, other = without.step(tokens[:, step], other)
        recent = after(recent, tokens[:, step])
        got = with_ngram.logprobs(hidden)
        check_normalised(got)
        network = np.exp(without.logprobs(alone_hidden).astype(np.float64))
        words = np.tile(np.arange(size), NUM_ROWS)
        of_ngram, lengths = ngram.probabilities(words, np.repeat(recent, size, axis=0))
        share = ngram.shares[lengths].reshape(network.shape)
        expected = np.log((1 - share) * network + share * of_ngram.reshape(network.shape))
        difference = float(np.abs(got - expected).max())
        if not difference <= TORCH_TOLERANCE:
            raise MixtureMismatch(
                f"log-probabilities differ from the mixture of the network and the n-grams by {difference:.3g} nats at "
                f"step {step}, expected at most {TORCH_TOLERANCE:g}"
            )
