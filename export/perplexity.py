"""Held-out figures of finished graphs, and the limit of what int8 may cost.

Input: graphs and held-out token files. Output: the figures that a server of these graphs gives, beside those of the
float32 checkpoint, or `PrecisionLost`. Must not know: the writing of a bundle.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from meari.bundle_format.names import Document, Precision
from meari.export.errors import PrecisionLost, UnusableRun
from meari.export.sessions import GraphModel, Graphs, Tokens
from meari.export.verification import check_normalised
from meari.export.weights import Floats
from meari.models.evaluation import MAX_ROWS, NUM_WARMUP, Row, chunks, groups, scored_rows, segment_rows
from meari.models.figures import Figures, figures, show_perplexity
from meari.models.text.token_file import UNCOUNTED, TokenFile

MIN_TOKENS = 64  # both precisions run the same tokens, so a few show a difference of one per cent
TRY_FP32 = "; export with --precision fp32"
MAX_LOSS = 0.01  # of the fp32 perplexity
MAX_STREAM_TOKENS = 200_000  # run in sequence; a longer stream is cut into such pieces, which run side by side
NOTHING = np.zeros(0, np.float32)
CHECKED_EVERY = 16  # distributions: of one the sum


@dataclass(frozen=True)
class HeldOutFigures:
    """Figures of a part of the corpus.

    served         by the exported graphs
    checkpoint     by their checkpoint
    without_ngram  by the graphs without the n-grams that are mixed in; None if there are none
    """

    served: Figures
    checkpoint: Figures
    without_ngram: Figures | None = None

    @property
    def network(self) -> Figures:
        """Figures of what the checkpoint became in the graphs."""
        return self.without_ngram or self.served

    @property
    def loss(self) -> float:
        """Relative loss of the network's perplexity: 0.01 is one per cent above the checkpoint."""
        return self.network.perplexity / self.checkpoint.perplexity - 1

    def in_words(self, precision: Precision) -> str:
        """Return both perplexities in words; `meari evaluate` gives that of the checkpoint."""
        exported, checkpoint = (show_perplexity(each.perplexity, 4) for each in (self.network, self.checkpoint))
        without = "" if self.without_ngram is None else " without its n-grams"
        return (
            f"the {precision} bundle{without} has perplexity {exported} over {self.served.num_tokens:,} tokens, "
            f"the checkpoint {checkpoint} ({self.loss:+.2%})"
        )


def measure_graphs(graphs: Graphs, tokens: TokenFile, *, counts_ends: bool) -> Figures:
    """Run a token file as a server does: documents from the initial state and the boundary, or one stream.

    A stream of more than 200,000 tokens is run in pieces, each warmed up on the tokens before it.
    """
    (served,) = _measured([graphs], tokens, counts_ends=counts_ends)
    return served


def measure_mixture(mixed: Graphs, alone: Graphs, tokens: TokenFile, *, counts_ends: bool) -> tuple[Figures, Figures]:
    """Return the figures of graphs with an n-gram model and of the same graphs without it, as `measure_graphs` does.

    The cell runs once: the hidden vector of the mixture begins with the network's.
    """
    served, without = _measured([mixed, alone], tokens, counts_ends=counts_ends)
    return served, without


def check_precision(precision: Precision, validation: HeldOutFigures | None) -> None:
    """Raise PrecisionLost at more than one per cent, UnusableRun if there is too little text for int8."""
    if precision is Precision.FP32:
        return
    num_tokens = validation.checkpoint.num_tokens if validation else 0
    if validation is None or num_tokens < MIN_TOKENS:
        raise UnusableRun(
            f"got {num_tokens} held-out tokens, expected at least {MIN_TOKENS:,} to measure int8 on: "
            "give the run folder that holds tokens/, or a larger validation part, or export with --precision fp32"
        )
    if not validation.loss <= MAX_LOSS:
        raise PrecisionLost(
            f"validation text: {validation.in_words(precision)}, expected at most {MAX_LOSS:+.0%}{TRY_FP32}"
        )


def _rows(tokens: TokenFile) -> Iterator[Row]:
    num_pieces = -(-len(tokens.ids) // MAX_STREAM_TOKENS)
    if tokens.unit is Document.FILE and num_pieces > 1:
        return iter(segment_rows(tokens.ids, min(num_pieces, MAX_ROWS), NUM_WARMUP))
    return scored_rows(tokens)


def _measured(several: Sequence[Graphs], tokens: TokenFile, *, counts_ends: bool) -> list[Figures]:
    """Return the figures of several graphs; the cell is the first one's."""
    opened = [GraphModel(graphs) for graphs in several]
    nats, num_tokens = np.zeros(len(opened)), 0
    for group in groups(_rows(tokens)):
        for _, hidden, targets in hidden_vectors(opened[0], group, counts_ends=counts_ends):
            counted = targets != UNCOUNTED
            num_tokens += int(counted.sum())
            nats -= [_total(model, hidden[counted], targets[counted]) for model in opened]
    num_ends = tokens.num_documents if counts_ends else 0
    return [figures(float(each), num_tokens, tokens.num_characters, tokens.num_bytes, num_ends) for each in nats]


def _total(model: GraphModel, hidden: Floats, targets: Tokens) -> float:
    return float(target_logprobs(model, hidden[:, : model.hidden_size], targets).astype(np.float64).sum())


def hidden_vectors(
    model: GraphModel, group: list[Row], *, counts_ends: bool
) -> Iterator[tuple[Tokens, Floats, Tokens]]:
    """Run rows side by side, and yield after some steps, so that the output layer runs for many of them at once.

    yields  tokens int64 [S, B], the hidden vectors after them, float32 [S, B, H], and the tokens that follow, int64
            [S, B], UNCOUNTED where one is not scored
    """
    state = model.initial_state(len(group))
    num_steps = max(1, MAX_ROWS // len(group))
    for inputs, targets in chunks(group, counts_ends=counts_ends):
        for begin in range(0, inputs.shape[1], num_steps):
            part = slice(begin, begin + num_steps)
            tokens, hidden = np.ascontiguousarray(inputs[:, part].T), []
            for each in tokens:
                after, state = model.step(each, state)
                hidden.append(after)
            yield tokens, np.stack(hidden), targets[:, part].T


def target_logprobs(model: GraphModel, hidden: Floats, targets: Tokens) -> Floats:
    """Return ln P of the tokens that follow, and check some of the distributions.

    hidden   float32 [N, H]
    targets  int64 [N]
    returns  float32 [N]

    Raises NotNormalised.
    """
    if len(targets) == 0:
        return NOTHING
    logprobs = model.logprobs(hidden)
    check_normalised(logprobs[::CHECKED_EVERY])
    return logprobs[np.arange(len(targets)), targets]
