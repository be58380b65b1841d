"""Claim 6: how much context each family uses.

Input: trained models, held-out text. Output: the loss at the same places when only the last k tokens are read from the
initial state. Training streams start afresh at random places, so models know histories that are cut off.
Must not know: the page.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from matplotlib.figure import Figure
from torch.nn import functional

from meari.bundle_format.names import Family
from meari.claims.claim import Claim, Condition, Expectation, Measurement, around, between
from meari.claims.evaluation import Floats
from meari.claims.families import FAMILIES, NAMES
from meari.claims.pictures import LINE_STYLES, finish, log_ticks, panels, plot_seeds
from meari.claims.text import Ids
from meari.claims.workbench import Workbench
from meari.models.language_model import LanguageModel

BATCH_TOKENS = 32_768
MIN_DRAWN = 1e-3  # nats a token, on a logarithmic axis
NEAR = 0.02  # nats a token that a used-up history may cost
WORSE = 0.01  # nats a token that more history may not cost


@dataclass(frozen=True)
class Context:
    """losses   by family, one for each length of history"""

    lengths: tuple[int, ...]
    losses: dict[str, tuple[float, ...]]

    def excess(self, family: Family) -> list[float]:
        """Return each loss less that with the longest history, at the same places."""
        losses = self.losses[family.value]
        return [loss - losses[-1] for loss in losses]

    def used(self, family: Family) -> float:
        """Return the tokens of history from which on the loss is within NEAR of the longest history's, interpolated in
        log k.

        A cut between two measured lengths; the shortest length where that is near already.
        """
        means = self.excess(family)
        far = max((index for index, mean in enumerate(means) if mean > NEAR), default=-1)
        if far < 0:
            return float(self.lengths[0])
        share = (means[far] - NEAR) / (means[far] - means[far + 1])
        return float(self.lengths[far] * (self.lengths[far + 1] / self.lengths[far]) ** share)


@torch.no_grad()
def cut_losses(model: LanguageModel, rows: Ids, length: int) -> Floats:
    """Return -ln P of the last token of each row after only the `length` tokens before it: int64 [n, time] → float64
    [n].
    """
    tokens = torch.from_numpy(rows[:, -length - 1 :])
    losses = []
    for piece in torch.split(tokens, max(1, BATCH_TOKENS // length)):
        hidden, _ = model(piece[:, :-1], model.initial_state(len(piece)))
        losses.append(functional.cross_entropy(model.logits(hidden[:, -1]), piece[:, -1], reduction="none"))
    return torch.cat(losses).double().numpy()


def measure(bench: Workbench) -> Measurement[Context]:
    """Measure every family at every length, at the same places."""
    lengths = bench.sizes.contexts
    rows = bench.pieces(bench.sizes.context_places, lengths[-1] + 1)
    losses = {}
    for family in FAMILIES:
        model = bench.trained(family).model
        losses[family.value] = tuple(float(cut_losses(model, rows, length).mean()) for length in lengths)
    return Measurement(Context(lengths, losses), bench.cut_short(FAMILIES))


def judge(numbers: Context) -> tuple[Condition, ...]:
    elman, gru, lstm, esn = (numbers.used(family) for family in FAMILIES)
    figures = f"Elman {elman:.0f}, GRU {gru:.0f}, LSTM {lstm:.0f}, ESN {esn:.0f} tokens"
    return (
        Condition("GRU and LSTM both use more context than the Elman net", min(gru, lstm) > elman, figures),
        Condition(
            "each of the trained recurrences uses more context than the ESN", min(elman, gru, lstm) > esn, figures
        ),
    )


def describe(seeds: Sequence[Context]) -> tuple[str, str]:
    lengths = seeds[0].lengths

    def loss(family: Family, place: int) -> str:
        return around([numbers.losses[family.value][place] for numbers in seeds])

    used = ", ".join(
        f"{NAMES[family]} {between([numbers.used(family) for numbers in seeds], '.0f')}" for family in FAMILIES
    )
    ends = ", ".join(f"{NAMES[family]} {loss(family, 0)} → {loss(family, -1)}" for family in FAMILIES)
    return (
        f"The loss is within {NEAR:g} nats a token of that with {lengths[-1]} tokens of history after: {used} tokens.",
        f"From {lengths[0]} to {lengths[-1]} tokens of history the loss falls: {ends}.",
    )


def expect(seeds: Sequence[Context]) -> tuple[Expectation, ...]:
    """Expect that more history gives no worse a loss, to any family."""
    labels = tuple(f"{length} tokens of history" for length in seeds[0].lengths)
    return tuple(
        Expectation(
            f"loss of the {NAMES[family]}", labels, tuple(numbers.losses[family.value] for numbers in seeds), WORSE
        )
        for family in FAMILIES
    )


def draw(seeds: Sequence[Context]) -> Figure:
    figure, (loss, excess) = panels(2)
    lengths = seeds[0].lengths
    for family in FAMILIES:
        look = LINE_STYLES[family]
        plot_seeds(loss, lengths, [numbers.losses[family.value] for numbers in seeds], look)
        rows = [[max(value, MIN_DRAWN) for value in numbers.excess(family)[:-1]] for numbers in seeds]
        plot_seeds(excess, lengths[:-1], rows, look)
        used = float(np.median([numbers.used(family) for numbers in seeds]))
        excess.axvline(used, color=look.colour, linewidth=0.8, linestyle=":")
    excess.set_yscale("log")
    excess.axhline(NEAR, color="black", linewidth=0.6, linestyle="--")
    for axes in (loss, excess):
        log_ticks(axes, lengths)
    finish(loss, "loss (bars: smallest to largest seed)", "tokens of history", "held-out loss, nats a token")
    finish(excess, f"above the longest history (dotted: reaches {NEAR:g})", "tokens of history", "nats a token")
    return figure


CLAIM = Claim(
    number=6,
    slug="context",
    title="How much context each family uses",
    says="A recurrent net could use everything that it has read; in fact an Elman net uses little of it, a gated one "
    "more, and a fixed reservoir only the last few tokens.",
    kind=Context,
    setting=f"Loss at the same held-out places after only the last k tokens, read from the initial state; the context "
    f"used is the k at which it comes within {NEAR:g} nats of that of the longest history, interpolated between the "
    "measured k.",
    measure=measure,
    judge=judge,
    describe=describe,
    draw=draw,
    expect=expect,
)
