"""The share of an n-gram model in a bundle, and the check of graphs that mix it in.

Input: graphs with and without it, held-out tokens. Output: `NgramWeights` with shares; a `CheckFailed` with the reason.
Must not know: how n-grams are counted, the graphs' operators.
"""

from dataclasses import dataclass

import numpy as np

from meari.export.errors import MixtureMismatch
from meari.export.ngram import Doubles, Ids, NgramWeights, fit_shares
from meari.export.perplexity import hidden_vectors, target_logprobs
from meari.export.sessions import GraphModel, Graphs, Tokens
from meari.export.verification import TORCH_TOLERANCE, check_normalised
from meari.models.evaluation import groups, quick_rows
from meari.models.text.token_file import UNCOUNTED, TokenFile

NUM_ROWS = 8
NUM_STEPS = 64


@dataclass(frozen=True)
class Sample:
    """Held-out tokens, and what a network makes of them.

    logprobs  float64 [N], of the network
    targets   int64 [N]
    recent    int64 [N, order - 1], the tokens before each, as `NgramWeights.find` takes them
    """

    logprobs: Doubles
    targets: Ids
    recent: Ids

    @property
    def nats_per_token(self) -> float:
        return -float(self.logprobs.mean())


def sampled(graphs: Graphs, held_out: TokenFile, order: int, *, counts_ends: bool) -> Sample:
    """Run the beginning of a held-out text. graphs: without n-grams."""
    opened = GraphModel(graphs)
    logprobs, targets, contexts = [], [], []
    for group in groups(quick_rows(held_out)):
        recent = np.zeros((len(group), order - 1), np.int64)
        for tokens, hidden, following in hidden_vectors(opened, group, counts_ends=counts_ends):
            counted = following != UNCOUNTED
            logprobs.append(target_logprobs(opened, hidden[counted], following[counted]).astype(np.float64))
            targets.append(following[counted])
            for each, rows in zip(tokens, counted, strict=True):
                recent = after(recent, each)
                contexts.append(recent[rows])
    return Sample(np.concatenate(logprobs), np.concatenate(targets), np.concatenate(contexts))


def fitted(ngram: NgramWeights, sample: Sample) -> tuple[NgramWeights, float]:
    """Return the n-gram model with the shares that make held-out tokens likeliest, and their nats a token then."""
    of_ngram, lengths = ngram.probabilities(sample.targets, sample.recent)
    of_network = np.exp(sample.logprobs)
    is_mixed = ngram.is_mixed(sample.recent)
    ngram = ngram.with_shares(fit_shares(of_network[is_mixed], of_ngram[is_mixed], lengths[is_mixed], ngram.order))
    share = ngram.share(lengths, sample.recent)
    return ngram, -float(np.log((1 - share) * of_network + share * of_ngram).mean())


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
        share = ngram.share(lengths, np.repeat(recent, size, axis=0)).reshape(network.shape)
        expected = np.log((1 - share) * network + share * of_ngram.reshape(network.shape))
        difference = float(np.abs(got - expected).max())
        if not difference <= TORCH_TOLERANCE:
            raise MixtureMismatch(
                f"log-probabilities differ from the mixture of the network and the n-grams by {difference:.3g} nats at "
                f"step {step}, expected at most {TORCH_TOLERANCE:g}"
            )
